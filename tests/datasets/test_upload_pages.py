"""The Upload page and its API: who gets in, where the bytes go on their way, and what people are told."""

import zipfile
from io import BytesIO

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django_q.models import OrmQ
from knox.models import AuthToken

from datasets import receiving
from datasets.models import Dataset, Upload
from datasets.tasks import upload as upload_task
from tests.datasets.files import encode, gradient, save
from tests.factories import DatasetFactory, TeamFactory, UploadFactory
from xrayplatform.audit import AuditEntry
from xrayplatform.system import GIB

NEW = "/datasets/upload/"
API = "/api/v1/uploads/"
HTMX = {"HX-Request": "true"}
PNG = encode(gradient(seed=50), "PNG")


def sent(name="a.png", content=PNG):
    return SimpleUploadedFile(name, content)


def text(response):
    return response.content.decode()


@pytest.fixture
def dataset(settings, team):
    """A dataset of alice's team with a folder, not scanned: the pages ask the tables alone."""
    found = DatasetFactory(name="CHEST/study", condition__team=team)
    for number, name in enumerate(found.classes):
        save(found.folder / name / f"{number}.png")
        found.images.create(
            path=f"{name}/{number}.png",
            folder=name,
            size=1,
            mtime_ns=1,
            digest=name,
            class_name=name,
            width=1,
            height=1,
        )
    return found


@pytest.fixture
def url(dataset):
    return reverse("datasets:upload-create", args=[dataset.pk])


@pytest.fixture
def as_alice(client, alice):
    client.force_login(alice)
    return client


def left_behind():
    return list(Upload.root().iterdir()) if Upload.root().is_dir() else []


# -- The form


def test_the_page_shows_classes_limits_and_the_quota_before_anything_is_chosen(as_alice, url, team, settings):
    settings.UPLOAD_QUOTA_GB, settings.MAX_ARCHIVE_MB = 8, 300
    UploadFactory(dataset=None, name="x", team=team, size=2 * GIB)
    content = text(as_alice.get(url))
    for expected in (
        "NORMAL",
        "PNEUMONIA",
        "6.0\xa0GB of 8.0\xa0GB",
        "300.0\xa0MB",
        "Chest clinic",
        "up to 1,000 at once",
    ):
        assert expected in content, expected
    assert 'enctype="multipart/form-data"' in content and "multiple" in content
    assert 'accept=".jpg,.jpeg,.png,.dcm,.csv,.zip"' in content


def test_every_field_has_a_label(as_alice, url):
    for page in (url, NEW):
        form = as_alice.get(page).context["form"]
        content = text(as_alice.get(page))
        for field in form:
            assert f'for="{field.id_for_label}"' in content, field.name


def test_a_dataset_with_its_labels_in_a_csv_file_says_what_that_means(as_alice, url, dataset):
    Dataset.objects.filter(pk=dataset.pk).update(layout="images-csv")
    assert "ask IT to add their rows" in text(as_alice.get(url))


def test_images_sent_for_a_class_become_a_job_with_a_page_of_its_own(as_alice, url, dataset, alice):
    response = as_alice.post(url, {"files": [sent("a.png"), sent("b.png")], "class_folder": "NORMAL"})
    job = Upload.objects.get()
    assert response.url == job.get_absolute_url()
    assert (job.dataset, job.class_folder, job.files, job.created_by) == (dataset, "NORMAL", 2, alice)
    assert job.size == 2 * len(PNG)
    assert [message.task["func"] for message in OrmQ.objects.all()] == ["datasets.tasks.upload"]
    assert left_behind() == [job.staging]
    upload_task(job.pk, 1)
    assert (dataset.folder / "NORMAL/a.png").read_bytes() == PNG
    content = text(as_alice.get(job.get_absolute_url()))
    assert "1 file added" in content and "The same picture is in this upload already" in content
    assert dataset.get_absolute_url() in content
    assert left_behind() == []


def test_a_new_class_may_be_named(as_alice, url):
    as_alice.post(url, {"files": sent(), "new_class": "tuberculosis"})
    assert Upload.objects.get().class_folder == "tuberculosis"


def test_a_new_dataset_goes_to_a_team_of_the_sender(as_alice, alice, team):
    other = TeamFactory(name="Not hers")
    content = text(as_alice.get(NEW))
    assert "Chest clinic" in content and "Not hers" not in content
    as_alice.post(NEW, {"files": sent("x.zip"), "name": "HAND/new", "team": team.pk})
    job = Upload.objects.get()
    assert (job.dataset, job.name, job.team) == (None, "HAND/new", team)
    for wrong in (other.pk, ""):
        response = as_alice.post(NEW, {"files": sent("x.zip"), "name": "HAND/other", "team": wrong})
        assert response.status_code == 400
        assert list(response.context["form"].errors) == ["team"]


def test_who_is_in_no_team_is_told_that_everybody_will_see_the_dataset(as_alice, alice):
    assert "everybody will see" not in text(as_alice.get(NEW))
    alice.teams.clear()
    assert "everybody will see" in text(as_alice.get(NEW))
    as_alice.post(NEW, {"files": sent("x.zip"), "name": "HAND/new"})
    assert Upload.objects.get().team is None


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"class_folder": "NORMAL"}, "files"),
        ({"class_folder": "unknown", "files": "file"}, "class_folder"),
        ({"class_folder": "NORMAL", "new_class": "x", "files": "file"}, "new_class"),
    ],
)
def test_what_is_wrong_is_told_beside_its_field_and_nothing_is_kept(as_alice, url, data, field):
    response = as_alice.post(url, data | ({"files": sent()} if "files" in data else {}))
    assert response.status_code == 400
    assert list(response.context["form"].errors) == [field]
    assert left_behind() == [] and not Upload.objects.exists()


def test_a_refusal_for_the_state_of_things_is_a_409_with_words_and_nothing_is_kept(as_alice, url):
    as_alice.post(url, {"files": sent(), "class_folder": "NORMAL"})
    response = as_alice.post(url, {"files": sent(), "class_folder": "NORMAL"})
    assert response.status_code == 409
    assert "is under way" in text(response)
    assert len(left_behind()) == Upload.objects.count() == 1
    response = as_alice.post(url, {"files": sent(), "new_class": "../x"})
    assert response.status_code == 409 and "leads out of the folder" in text(response)
    assert len(left_behind()) == 1


def test_more_files_than_a_request_may_have_are_refused_with_words(as_alice, url, settings):
    settings.DATA_UPLOAD_MAX_NUMBER_FILES = 2
    response = as_alice.post(url, {"files": [sent(f"{n}.png") for n in range(3)], "class_folder": "NORMAL"})
    assert response.status_code == 400
    assert "Send them as a zip" in text(response)
    assert left_behind() == []
    answer = as_alice.post(API, {"files": [sent(f"{n}.png") for n in range(3)], "dataset": 1})
    assert answer.status_code == 400
    assert "files" in answer.json()["errors"]
    assert left_behind() == []


# -- On their way


def test_names_of_the_sender_never_become_paths(as_alice, url):
    as_alice.post(url, {"files": sent("../../../etc/passwd.png"), "class_folder": "NORMAL"})
    (staging,) = left_behind()
    assert sorted(path.name for path in staging.iterdir()) == ["received-000000", "received.json"]


def test_bytes_go_to_the_disk_as_they_come(as_alice, url, monkeypatch):
    sizes = []
    original = receiving.InboxHandler.receive_data_chunk

    def seen(handler, raw, start):
        sizes.append(len(raw))
        return original(handler, raw, start)

    monkeypatch.setattr(receiving.InboxHandler, "receive_data_chunk", seen)
    big = bytes(3 * 1024**2)
    as_alice.post(url, {"files": sent("x.zip", big), "class_folder": "NORMAL"})
    assert sum(sizes) == len(big)
    assert max(sizes) <= receiving.InboxHandler.chunk_size
    assert (Upload.objects.get().staging / "received-000000").stat().st_size == len(big)


def test_files_in_other_fields_are_not_kept(as_alice, url):
    as_alice.post(url, {"other": sent("b.png"), "files": sent("a.png"), "class_folder": "NORMAL"})
    assert Upload.objects.get().files == 1


def test_a_full_disk_is_told_and_leaves_nothing(as_alice, url, monkeypatch):
    def full(inbox, name):
        raise OSError(28, "No space left on device", "/secret/path")

    monkeypatch.setattr(receiving.Inbox, "open", full)
    response = as_alice.post(url, {"files": sent(), "class_folder": "NORMAL"})
    assert response.status_code == 409
    assert "No space left on device" in text(response) and "/secret" not in text(response)
    answer = as_alice.post(API, {"files": sent(), "name": "x"})
    assert answer.status_code == 409 and "No space left" in answer.json()["detail"]


def test_a_body_that_does_not_fit_on_the_disk_is_refused_before_it_is_read(as_alice, url, settings, monkeypatch):
    monkeypatch.setattr(receiving.Inbox, "open", lambda *args: pytest.fail("the body was read"))
    settings.MIN_FREE_DISK_GB = 10**9
    response = as_alice.post(url, {"files": sent(), "class_folder": "NORMAL"})
    assert response.status_code == 409 and "Not enough free disk" in text(response)


@pytest.mark.parametrize("page", ["dataset", "new"])
def test_a_post_without_the_token_is_refused_and_leaves_nothing(alice, url, page):
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    address = url if page == "dataset" else NEW
    data = {"files": sent(), "class_folder": "NORMAL", "name": "x"}
    assert client.post(address, data).status_code == 403
    assert client.post(API, data).status_code == 403
    assert left_behind() == [] and not Upload.objects.exists()
    token = str(client.get(address).context["csrf_token"])
    answer = client.post(url, {"files": sent(), "class_folder": "NORMAL", "csrfmiddlewaretoken": token})
    assert answer.status_code == 302


def test_of_who_may_not_upload_no_byte_is_read(client, bob, url, monkeypatch):
    monkeypatch.setattr(receiving.Inbox, "open", lambda *args: pytest.fail("the body was read"))
    assert client.post(url, {"files": sent()}).status_code == 302
    assert client.post(API, {"files": sent()}).status_code == 401
    client.force_login(bob)
    assert client.post(url, {"files": sent()}).status_code == 403
    assert client.post(NEW, {"files": sent()}).status_code == 403


def test_of_who_may_not_upload_the_api_reads_no_byte(bob, alice, settings, monkeypatch):
    """With a session that has to show its token: the check looks for it in the body."""
    monkeypatch.setattr(receiving.Inbox, "open", lambda *args: pytest.fail("the body was read"))
    client = Client(enforce_csrf_checks=True)
    client.force_login(bob)
    for address in (API, f"{API}1/cancel/"):
        assert client.post(address, {"files": sent()}).status_code == 403
    assert client.post(f"{API}1/", {"files": sent()}).status_code == 405
    refusals = AuditEntry.objects.filter(action="access.refused").order_by("seq")
    assert [entry.actor for entry in refusals] == [bob, bob]
    client.force_login(alice)
    settings.MIN_FREE_DISK_GB = 10**9
    answer = client.post(API, {"files": sent(), "name": "x"})
    assert answer.status_code == 409 and "Not enough free disk" in answer.json()["detail"]
    assert client.get(API).status_code == 200
    assert left_behind() == []


def test_an_api_token_decides_before_a_session_that_may_not(bob, alice, client):
    client.force_login(bob)
    token = AuthToken.objects.create(alice)[1]
    answer = client.post(API, {"files": sent(), "name": "HAND/new"}, headers={"Authorization": f"Token {token}"})
    assert answer.status_code == 202, text(answer)
    assert Upload.objects.get().created_by == alice


# -- Read-only


def test_a_folder_that_it_mounts_shows_no_form_but_says_why(as_alice, url, dataset, settings):
    settings.DATASET_READ_ONLY = True
    for page in (url, NEW):
        response = as_alice.get(page)
        assert response.status_code == 200
        assert "Nothing can be uploaded here" in text(response) and "ask them to put the images there" in text(response)
        assert 'type="file"' not in text(response)
        refused = as_alice.post(page, {"files": sent(), "class_folder": "NORMAL", "name": "x"})
        assert refused.status_code == 409
    for target in ({"dataset": dataset.pk}, {"name": "x"}):
        answer = as_alice.post(API, {"files": sent(), "class_folder": "NORMAL"} | target)
        assert answer.status_code == 409
        assert answer["Content-Type"] == "application/problem+json"
    assert left_behind() == []


# -- One upload


@pytest.mark.parametrize("state", ["queued", "running"])
def test_the_page_polls_its_fragment_while_the_job_goes_on(as_alice, dataset, state):
    job = UploadFactory(dataset=dataset, state=state, message="7 of 40 images checked")
    whole, fragment = (
        text(as_alice.get(job.get_absolute_url())),
        text(as_alice.get(job.get_absolute_url(), headers=HTMX)),
    )
    assert f'hx-get="{job.get_absolute_url()}"' in whole and f'hx-get="{job.get_absolute_url()}"' in fragment
    assert '"X-Poll": "1"' in fragment and "7 of 40 images checked" in fragment
    assert "<html" in whole and "<html" not in fragment
    assert reverse("datasets:upload-cancel", args=[job.pk]) in fragment


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_the_page_of_a_job_that_ended_does_not_poll(as_alice, dataset, state):
    url = UploadFactory(dataset=dataset, state=state).get_absolute_url()
    assert "hx-get" not in text(as_alice.get(url)) + text(as_alice.get(url, headers=HTMX))


def test_refused_files_are_listed_with_hostile_names_as_text(as_alice, dataset):
    hostile = "<img src=x onerror=alert(1)>.png"
    refusals = [{"name": hostile, "reason": "The file is empty."}]
    job = UploadFactory(dataset=dataset, state="failed", error="No image.", hint="See.", refused=7, refusals=refusals)
    content = text(as_alice.get(job.get_absolute_url()))
    assert "<img src=x" not in content and "&lt;img src=x" in content
    assert "The first 1 of 7 are listed." in content and "<caption" in content


def test_a_running_upload_can_be_cancelled_from_its_page(as_alice, dataset):
    job = UploadFactory(dataset=dataset, state="running")
    assert as_alice.post(reverse("datasets:upload-cancel", args=[job.pk])).url == job.get_absolute_url()
    job.refresh_from_db()
    assert job.cancel_requested


def test_a_clinician_of_the_team_sees_an_upload_and_no_cancel_button(client, bob, dataset):
    job = UploadFactory(dataset=dataset, state="running")
    client.force_login(bob)
    content = text(client.get(job.get_absolute_url()))
    assert "/cancel/" not in content
    assert client.post(reverse("datasets:upload-cancel", args=[job.pk])).status_code == 403


def test_another_team_sees_nothing(client, charlie, dataset, url, team):
    jobs = [UploadFactory(dataset=dataset), UploadFactory(dataset=None, name="new", team=team)]
    client.force_login(charlie)
    assert client.get(url).status_code == 404
    assert client.post(url, {"files": sent()}).status_code == 404
    for job in jobs:
        assert client.get(job.get_absolute_url()).status_code == 404
        assert client.post(reverse("datasets:upload-cancel", args=[job.pk])).status_code == 404
        assert client.get(f"{API}{job.pk}/").status_code == 404
    assert client.get(API).json()["results"] == []
    assert client.post(API, {"files": sent(), "dataset": dataset.pk}).status_code == 404
    assert client.post(API, {"files": sent(), "name": "x", "team": team.pk}).status_code == 404
    assert left_behind() == []
    assert "CHEST/study" not in text(client.get(NEW))


# -- The API


def test_the_api_takes_a_zip_and_tells_what_became_of_it(api, alice, dataset):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("NORMAL/a.png", PNG)
        archive.writestr("NORMAL/b.png", b"no picture")
    api.force_authenticate(alice)
    answer = api.post(API, {"files": sent("x.zip", buffer.getvalue()), "dataset": dataset.pk})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    upload_task(answer.json()["id"], 1)
    followed = api.get(f"{API}{answer.json()['id']}/").json()
    assert (followed["state"], followed["accepted"], followed["refused"]) == ("succeeded", 1, 1)
    assert followed["refusals"][0]["name"] == "NORMAL/b.png"
    assert api.get(API, {"dataset": dataset.pk}).json()["results"] == [followed]
    assert AuditEntry.objects.filter(action="upload.create", actor=alice).count() == 1


def test_the_api_makes_a_new_dataset_for_the_senders_only_team(api, alice, team):
    api.force_authenticate(alice)
    answer = api.post(API, {"files": [sent()], "name": "HAND/new", "class_folder": "normal"})
    assert answer.status_code == 202
    assert Upload.objects.get().team == team
    TeamFactory().members.add(alice)
    answer = api.post(API, {"files": [sent()], "name": "HAND/other"})
    assert answer.status_code == 400 and "team" in answer.json()["errors"]
    assert api.post(API, {"files": [sent()], "name": "HAND/other", "team": team.pk}).status_code == 202


@pytest.mark.parametrize("data", [{}, {"dataset": "1", "name": "x"}, {"name": ""}, {"dataset": "x"}])
def test_the_api_says_what_is_missing(api, alice, data):
    api.force_authenticate(alice)
    answer = api.post(API, data | {"files": sent()})
    assert answer.status_code == 400
    assert answer.json()["errors"]
    assert left_behind() == []


def test_the_api_cancels_a_waiting_upload_and_removes_its_files(api, alice, dataset):
    api.force_authenticate(alice)
    pk = api.post(API, {"files": sent(), "dataset": dataset.pk, "class_folder": "NORMAL"}).json()["id"]
    assert len(left_behind()) == 1
    assert api.post(f"{API}{pk}/cancel/").json()["state"] == "cancelled"
    assert left_behind() == []


def test_a_row_and_its_files_appear_together_or_not_at_all(as_alice, url, monkeypatch):
    """A queue that cannot be reached: no row, no message; what was received is removed a day later at the latest."""

    def unreachable(job):
        raise ConnectionError("the queue")

    monkeypatch.setattr(Upload, "enqueue", unreachable)
    with pytest.raises(ConnectionError), transaction.atomic():
        as_alice.post(url, {"files": sent(), "class_folder": "NORMAL"})
    assert not Upload.objects.exists() and not OrmQ.objects.exists()
