"""Model Training: the form that starts a run, and the page on which one is followed."""

import pytest
from django.urls import reverse
from django_q.models import OrmQ

from tests.factories import DatasetFactory, EpochMetricFactory, ModelVersionFactory, TrainingRunFactory
from training.models import TrainingRun

CREATE = "/training/new/"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def logged_in(client, alice):
    client.force_login(alice)
    return client


def text(response):
    return response.content.decode()


def choices(world, **changes):
    return {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "configuration": "quick"} | changes


def test_the_train_button_puts_a_run_into_the_training_queue(logged_in, world, alice):
    response = logged_in.post(CREATE, choices(world, epochs=3, seed=9))
    run = TrainingRun.objects.latest("pk")
    assert response.url == run.get_absolute_url()
    assert (run.preparation, run.created_by, run.state, run.epochs) == (world.preparation, alice, "queued", 3)
    assert (run.configuration["epochs"], run.configuration["seed"], run.preset) == (3, 9, "quick")
    message = OrmQ.objects.get()
    assert (message.key, message.task["args"]) == ("train", (run.pk, 1))


def test_every_architecture_and_configuration_is_offered_with_what_to_expect(logged_in, world):
    page = text(logged_in.get(CREATE))
    for name in ("EfficientNetB0", "ResNet50", "DenseNet121", "VGG16", "Custom_CNN"):
        assert f'value="{name}"' in page
    for name in ("Quick Test", "Standard", "Intensive"):
        assert name in page
    assert page.count("Pretrained weights are not installed") == 4


def test_the_dataset_of_the_link_is_chosen_in_the_form(logged_in, world):
    other = DatasetFactory()
    page = text(logged_in.get(CREATE, {"dataset": other.pk}))
    assert f'<option value="{other.pk}" selected>' in page
    assert "(not prepared)" in page


def test_a_dataset_that_is_not_prepared_is_refused_with_a_link_to_where_it_is_prepared(logged_in, world):
    other = DatasetFactory()
    response = logged_in.post(CREATE, choices(world, dataset=other.pk))
    assert response.status_code == 400
    assert "Dataset not prepared." in text(response)
    assert f'href="{other.get_absolute_url()}#prepare"' in text(response)
    assert TrainingRun.objects.count() == 1


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("epochs", 0, "greater than or equal to 1"),
        ("epochs", 501, "Epochs must be a whole number from 1 to 500"),
        ("batch_size", "many", "Enter a whole number"),
        ("batch_size", 1000, "Batch size must be a whole number from 1 to 512"),
        ("learning_rate", 0, "Learning rate must be a number above 0"),
        ("learning_rate", "nan", "Enter a number"),
        ("seed", -3, "greater than or equal to 0"),
        ("architecture", "GPT", "not one of the available choices"),
        ("configuration", "forever", "not one of the available choices"),
        ("dataset", 999999, "not one of the available choices"),
    ],
)
def test_what_is_wrong_is_said_beside_its_field(logged_in, world, field, value, complaint):
    response = logged_in.post(CREATE, choices(world, **{field: value}))
    assert response.status_code == 400
    assert list(response.context["form"].errors) == [field]
    assert complaint in text(response)
    assert not OrmQ.objects.exists()


def test_the_api_names_the_wrong_field_and_the_reason(logged_in, world):
    answer = logged_in.post(reverse("api:run-list"), choices(world, epochs=501))
    assert answer.status_code == 400
    assert "from 1 to 500" in str(answer.json()["errors"]["epochs"])


def test_the_api_answers_409_for_a_dataset_that_is_not_prepared(logged_in, world):
    answer = logged_in.post(reverse("api:run-list"), choices(world, dataset=DatasetFactory().pk))
    assert answer.status_code == 409
    assert "Dataset not prepared" in answer.json()["detail"]


def test_without_any_dataset_the_page_leads_to_the_scan(logged_in, db):
    page = text(logged_in.get(CREATE))
    assert "No dataset to train with" in page and reverse("datasets:dataset-list") in page


@pytest.mark.parametrize("state", ["queued", "running"])
def test_the_status_of_a_run_polls_while_it_goes_on(logged_in, world, state):
    run = TrainingRunFactory(preparation=world.preparation, state=state, epoch=2, message="Training, epoch 3 of 5")
    url = reverse("training:run-status", args=[run.pk])
    response = logged_in.get(url, headers=HTMX)
    assert f'hx-get="{url}"' in text(response)
    assert "Epoch 2 of 5 finished" in text(response) and "Training, epoch 3 of 5" in text(response)
    assert "HX-Refresh" not in response
    assert f'hx-get="{url}"' in text(logged_in.get(run.get_absolute_url()))


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_the_status_of_a_run_that_ended_stops_polling_and_reloads_the_page_once(logged_in, world, state):
    run = TrainingRunFactory(preparation=world.preparation, state=state)
    response = logged_in.get(reverse("training:run-status", args=[run.pk]), headers=HTMX)
    assert response["HX-Refresh"] == "true"
    assert "hx-get" not in text(response)
    assert "hx-get" not in text(logged_in.get(run.get_absolute_url()))


def test_the_page_shows_the_end_of_the_log_as_text(logged_in, world):
    world.run.log_path.parent.mkdir(parents=True)
    lines = [f"line {number}" for number in range(100)]
    world.run.log_path.write_text("\n".join([*lines, "<script>alert(1)</script>"]))
    page = text(logged_in.get(world.run.get_absolute_url()))
    assert "line 99" in page and "line 50" not in page
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    answer = logged_in.get(reverse("api:run-log", args=[world.run.pk])).json()
    assert answer["log"].startswith("line 0\n")


def test_a_run_without_a_log_shows_none(logged_in, world):
    assert "End of the log" not in text(logged_in.get(world.run.get_absolute_url()))
    assert logged_in.get(reverse("api:run-log", args=[world.run.pk])).json() == {"log": ""}


def test_a_log_with_broken_characters_is_shown(world):
    world.run.log_path.parent.mkdir(parents=True)
    world.run.log_path.write_bytes(b"fine \xff\xfe broken")
    assert "fine" in world.run.log_tail() and "broken" in world.run.log_tail()


def test_the_curves_are_one_list_a_quantity_in_the_order_of_the_epochs(logged_in, world):
    run = TrainingRunFactory(preparation=world.preparation)
    for epoch in (2, 1, 3):
        EpochMetricFactory(run=run, epoch=epoch, loss=1 / epoch, val_auc=None if epoch == 1 else 0.9)
    curves = logged_in.get(reverse("training:run-curves", args=[run.pk])).json()
    assert curves["epoch"] == [1, 2, 3]
    assert curves["loss"] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert curves["val_auc"] == [None, 0.9, 0.9]
    assert {len(values) for values in curves.values()} == {3}
    rows = logged_in.get(reverse("api:run-metrics", args=[run.pk])).json()
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_a_failed_run_says_why_and_what_to_do(logged_in, world):
    run = TrainingRunFactory(preparation=world.preparation, state="failed", error="Out of memory.", hint="Use less.")
    page = text(logged_in.get(run.get_absolute_url()))
    assert "Out of memory." in page and "Use less." in page


def test_a_finished_run_leads_to_its_version(logged_in, world):
    version = ModelVersionFactory(condition=world.condition)
    run = TrainingRunFactory(preparation=world.preparation, state="succeeded", version=version)
    page = text(logged_in.get(run.get_absolute_url()))
    assert version.get_absolute_url() in page and "0.950" in page


def test_a_run_is_cancelled_from_its_page(logged_in, world):
    url = reverse("training:run-cancel", args=[world.run.pk])
    assert f'action="{url}"' in text(logged_in.get(world.run.get_absolute_url()))
    logged_in.post(url)
    world.run.refresh_from_db()
    assert world.run.state == "cancelled"
    again = logged_in.post(url, follow=True)
    assert "The run had already ended." in text(again)


def test_who_may_not_cancel_or_start_sees_no_such_button(client, bob, world):
    client.force_login(bob)
    page = text(client.get(world.run.get_absolute_url())) + text(client.get(reverse("training:run-list")))
    assert "/cancel/" not in page and CREATE not in page


def test_the_list_shows_runs_newest_first_without_a_query_for_each(logged_in, world, django_assert_max_num_queries):
    runs = [TrainingRunFactory(preparation=world.preparation, state="succeeded") for _ in range(12)]
    with django_assert_max_num_queries(20):
        page = logged_in.get(reverse("training:run-list"))
    assert [run.pk for run in page.context["page"]] == [run.pk for run in reversed([world.run, *runs])]
