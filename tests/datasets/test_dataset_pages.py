"""Dataset Overview and the pages of a dataset and a preparation: buttons, live fragments, hostile names."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django_q.models import OrmQ

from datasets.models import FileProblem, Preparation, Scan
from tests.factories import DatasetFactory, PreparationFactory, ScanFactory

LIST = "/datasets/"
HTMX = {"HX-Request": "true"}
CHOSEN = {
    "seed": 7, "image_size": 128, "fit": "pad", "validation_share": 0.1, "test_share": 0.2, "source_splits": "ignore",
}  # fmt: skip


@pytest.fixture
def page(client, alice):
    client.force_login(alice)
    return lambda url, **options: client.get(url, **options)


def text(response):
    return response.content.decode()


def messages_in_the_queue():
    return [(message.key, message.task["func"], message.task["args"]) for message in OrmQ.objects.all()]


# -- Scan


def test_the_scan_button_puts_a_scan_into_the_queue(page, client, alice):
    assert f'action="{reverse("datasets:scan-start")}"' in text(page(LIST))
    assert client.post(reverse("datasets:scan-start")).url == LIST
    scan = Scan.objects.get()
    assert (scan.state, scan.created_by) == ("queued", alice)
    assert messages_in_the_queue() == [("xray", "datasets.tasks.scan", (scan.pk, 1))]


def test_a_second_click_starts_no_second_scan_and_says_why(page, client):
    for _ in range(2):
        response = client.post(reverse("datasets:scan-start"), follow=True)
    assert "is already under way" in text(response)
    assert Scan.objects.count() == OrmQ.objects.count() == 1


def test_the_api_starts_a_scan_that_can_be_followed(client, alice):
    client.force_login(alice)
    answer = client.post(reverse("api:dataset-scan"))
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    followed = client.get(reverse("api:scan-detail", args=[answer.json()["id"]])).json()
    assert followed == answer.json()


@pytest.mark.parametrize("state", ["queued", "running"])
def test_the_fragment_of_a_scan_polls_while_it_goes_on(page, state):
    url = reverse("datasets:scan-status", args=[ScanFactory(state=state, message="12 files read").pk])
    response = page(url, headers=HTMX)
    assert f'hx-get="{url}"' in text(response)
    assert '"X-Poll": "1"' in text(response)
    assert "12 files read" in text(response)
    assert "HX-Refresh" not in response


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_the_fragment_of_a_scan_that_ended_stops_polling_and_reloads_the_page_once(page, state):
    scan = ScanFactory(state=state)
    response = page(reverse("datasets:scan-status", args=[scan.pk]), headers=HTMX)
    assert response["HX-Refresh"] == "true"
    assert "hx-get" not in text(response)
    assert "hx-get" not in text(page(LIST))


def test_a_failed_scan_says_what_went_wrong_and_what_to_do(page):
    ScanFactory(state="failed", error="The dataset folder is not there.", hint="Mount it.")
    content = text(page(LIST))
    assert "The dataset folder is not there." in content and "Mount it." in content


def test_a_running_scan_can_be_cancelled_from_the_page(page, client, alice):
    scan = ScanFactory(state="running")
    url = reverse("datasets:scan-cancel", args=[scan.pk])
    assert f'action="{url}"' in text(page(LIST))
    client.post(url)
    scan.refresh_from_db()
    assert scan.cancel_requested


def test_who_may_not_scan_sees_no_button(client, bob):
    ScanFactory(state="running")
    client.force_login(bob)
    content = text(client.get(LIST))
    assert "scan-start" not in content and reverse("datasets:scan-start") not in content
    assert "/cancel/" not in content


def test_an_empty_overview_explains_the_structures(page):
    content = text(page(LIST))
    assert "No datasets yet" in content and "make_samples" in content


# -- A dataset


def test_a_dataset_shows_classes_counts_balance_and_problems(page):
    dataset = DatasetFactory(
        name="CHEST/study",
        counts={"NORMAL": 10, "PNEUMONIA": 30},
        problems=[{"path": "NORMAL/x.png", "reason": "The file is empty (0 bytes)."}],
        problems_count=1,
        unreadable_count=1,
    )
    content = text(page(dataset.get_absolute_url()))
    for expected in ("CHEST/study", "3.0 : 1", "75.0 %", "NORMAL/x.png", "The file is empty (0 bytes)."):
        assert expected in content
    assert "1 listed" in text(page(LIST))


def test_a_hostile_file_name_is_shown_as_text(page):
    name = '<img src=x onerror="alert(1)">.png'
    dataset = DatasetFactory(name=f"CHEST/{name}", problems=[{"path": name, "reason": name}], problems_count=1)
    for url in (dataset.get_absolute_url(), LIST):
        content = text(page(url))
        assert "<img src=x" not in content
        assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;.png" in content


def test_synthetic_datasets_are_marked_wherever_they_appear(page):
    dataset = DatasetFactory(synthetic=True)
    preparation = PreparationFactory(dataset=dataset, synthetic=True)
    for url in (LIST, dataset.get_absolute_url(), preparation.get_absolute_url()):
        assert "Synthetic sample images" in text(page(url))


def test_an_offline_dataset_says_so_and_cannot_be_prepared(page, client):
    dataset = DatasetFactory(state="offline")
    assert "Folder not there" in text(page(LIST))
    response = client.post(reverse("datasets:preparation-start", args=[dataset.pk]), CHOSEN, follow=True)
    assert "was not there at the last scan" in text(response)
    assert not Preparation.objects.exists()


# -- Prepare


def test_the_prepare_button_puts_a_preparation_into_the_queue_with_what_was_chosen(page, client, alice):
    dataset = DatasetFactory()
    url = reverse("datasets:preparation-start", args=[dataset.pk])
    assert f'action="{url}"' in text(page(dataset.get_absolute_url()))
    response = client.post(url, CHOSEN)
    job = Preparation.objects.get()
    assert response.url == job.get_absolute_url()
    assert {name: getattr(job, name) for name in CHOSEN} == CHOSEN
    assert (job.dataset, job.created_by) == (dataset, alice)
    assert messages_in_the_queue() == [("xray", "datasets.tasks.prepare", (job.pk, 1))]


def test_the_button_of_the_overview_sends_what_the_form_needs(page, client):
    """The card's form has hidden fields only; what they hold must be accepted."""
    dataset = DatasetFactory()
    url = reverse("datasets:preparation-start", args=[dataset.pk])
    card = page(LIST).content.decode().partition(f'action="{url}"')[2].partition("</form>")[0]
    sent = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', card))
    assert client.post(url, sent).status_code == 302
    job = Preparation.objects.get()
    assert (job.image_size, job.fit, job.validation_share, job.test_share) == (224, "auto", 0.15, 0.15)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"seed": -1}, "greater than or equal to 0"),
        ({"seed": "x"}, "Enter a whole number"),
        ({"image_size": 7}, "7 is not one of the available choices"),
        ({"fit": "round"}, "round is not one of the available choices"),
        ({"validation_share": 0.5}, "less than or equal to 0.4"),
        ({"test_share": "nan"}, "Enter a number"),
        ({"test_share": ""}, "This field is required"),
        ({"source_splits": "perhaps"}, "perhaps is not one of the available choices"),
    ],
)
def test_a_wrong_option_is_named_beside_its_field(client, alice, wrong, complaint):
    dataset = DatasetFactory()
    client.force_login(alice)
    response = client.post(reverse("datasets:preparation-start", args=[dataset.pk]), CHOSEN | wrong)
    assert response.status_code == 400
    assert list(response.context["form"].errors) == list(wrong)
    assert complaint in text(response)
    assert not Preparation.objects.exists()


def test_a_dataset_that_is_being_prepared_offers_no_second_preparation(page, client):
    dataset = DatasetFactory()
    running = PreparationFactory(dataset=dataset, state="running")
    content = text(page(dataset.get_absolute_url()))
    assert "It is being prepared" in content and running.get_absolute_url() in content
    url = reverse("datasets:preparation-start", args=[dataset.pk])
    assert url not in content
    response = client.post(url, CHOSEN, follow=True)
    assert "is already being prepared" in text(response)
    answer = client.post(reverse("api:dataset-prepare", args=[dataset.pk]))
    assert answer.status_code == 409


@pytest.mark.parametrize("state", ["queued", "running"])
def test_the_page_of_a_preparation_polls_its_fragment_while_it_goes_on(page, state):
    url = PreparationFactory(state=state, message="7 of 40 images decoded").get_absolute_url()
    whole, fragment = text(page(url)), text(page(url, headers=HTMX))
    assert f'hx-get="{url}"' in whole and f'hx-get="{url}"' in fragment
    assert "7 of 40 images decoded" in fragment
    assert "<html" in whole and "<html" not in fragment


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_the_page_of_a_preparation_that_ended_does_not_poll(page, state):
    url = PreparationFactory(state=state).get_absolute_url()
    assert 'hx-trigger="every' not in text(page(url)) + text(page(url, headers=HTMX))


def test_a_finished_preparation_proves_that_no_patient_is_shared_and_leads_to_the_training(page):
    job = PreparationFactory(group_description="file name like patient12: 40 images", warnings=["Look at this."])
    content = text(page(job.get_absolute_url()))
    assert "0 patients shared between the splits." in content
    assert "file name like patient12" in content and "Look at this." in content
    assert f"{reverse('training:run-create')}?dataset={job.dataset.pk}" in content


def test_a_failed_preparation_says_what_to_do(page):
    job = PreparationFactory(state="failed", error="PNEUMONIA has 9", hint="Add images.", shared_patients=None)
    content = text(page(job.get_absolute_url()))
    assert "PNEUMONIA has 9" in content and "Add images." in content
    assert "patients shared" not in content


def queries(page, url):
    with CaptureQueriesContext(connection) as captured:
        assert page(url).status_code == 200
    return len(captured)


def test_the_overview_asks_the_database_as_often_for_many_datasets_as_for_one(page):
    PreparationFactory()
    page(LIST)
    once = queries(page, LIST), queries(page, reverse("api:dataset-list"))
    for _ in range(8):
        dataset = PreparationFactory().dataset
        PreparationFactory(dataset=dataset)
    assert (queries(page, LIST), queries(page, reverse("api:dataset-list"))) == once


# -- What was found, what stands in the way


def test_a_dataset_with_a_question_says_so_and_leads_to_the_answer(page):
    question = {"code": "x", "text": "One level or two?", "suggested": "one", "options": []}
    dataset = DatasetFactory(question=question)
    content = text(page(dataset.get_absolute_url()))
    assert "One level or two?" in content
    assert f"{reverse('datasets:dataset-choices', args=[dataset.pk])}#question" in content


def test_a_dataset_with_a_question_is_not_prepared_before_it_is_answered(page, client):
    dataset = DatasetFactory(question={"code": "x", "text": "?", "suggested": "one", "options": []})
    response = client.post(reverse("datasets:preparation-start", args=[dataset.pk]), CHOSEN, follow=True)
    assert "can be read in more than one way" in text(response)
    assert not Preparation.objects.exists()


def test_a_dataset_whose_images_are_missing_says_how_many_and_asks(page):
    dataset = DatasetFactory(missing_count=30, images_count=40, state="offline")
    content = text(page(dataset.get_absolute_url()))
    assert "30 of 40 known images are not there any more" in content
    assert reverse("datasets:missing-accept", args=[dataset.pk]) in content


def test_who_may_not_choose_gets_no_button_for_it(client, bob):
    dataset = DatasetFactory(missing_count=3, question={"code": "x", "text": "?", "suggested": "one", "options": []})
    client.force_login(bob)
    content = text(client.get(dataset.get_absolute_url()))
    assert "A data scientist answers the question" in content
    assert reverse("datasets:missing-accept", args=[dataset.pk]) not in content
    assert reverse("datasets:dataset-choices", args=[dataset.pk]) not in content


def test_unreadable_files_are_listed_a_page_at_a_time(page):
    dataset = DatasetFactory(unreadable_count=130, problems_count=130)
    FileProblem.objects.bulk_create(
        FileProblem(dataset=dataset, path=f"NORMAL/{number:03}.png", code="empty", reason="The file is empty.")
        for number in range(130)
    )
    url = reverse("datasets:problem-list", args=[dataset.pk])
    assert url in text(page(dataset.get_absolute_url()))
    first, second = text(page(url)), text(page(url, data={"page": 2}))
    assert "NORMAL/099.png" in first and "NORMAL/100.png" not in first
    assert "NORMAL/129.png" in second and "Page 2 of 2" in second
    for hostile in ("0", "-1", "x", "9" * 30, ""):
        assert page(url, data={"page": hostile}).status_code == 200


def test_the_choices_of_the_team_are_told_on_the_page_of_the_dataset(page):
    dataset = DatasetFactory(class_choices={"VIRUS": "PNEUMONIA", "OTHER": ""}, ordinal=True)
    content = text(page(dataset.get_absolute_url()))
    assert "VIRUS is used as PNEUMONIA" in content and "OTHER is left out" in content
    assert "grades that follow each other" in content
