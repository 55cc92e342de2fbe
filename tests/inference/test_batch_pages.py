"""The pages and the API of batches: real uploads, who gets in, what is told while they run and afterwards."""

import csv
import io
import zipfile
from io import BytesIO

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from django_q.models import OrmQ

from datasets.models import Upload
from inference.engine import Engine
from inference.models import Batch, BatchItem, prediction
from inference.tasks import analyse_batch
from tests.factories import BatchFactory, ConditionFactory, DatasetFactory, PredictionFactory
from tests.inference.test_batch import BRIGHT_PNG, DARK_PNG, LETTER, packed
from tests.inference.versions import make_version
from xrayplatform.audit import AuditEntry
from xrayplatform.idempotency import IdempotentAnswer

NEW = "/analysis/batches/new/"
API = "/api/v1/batches/"
HTMX = {"HX-Request": "true", "X-Poll": "1"}


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setattr(prediction, "ENGINE", Engine())


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def version(chest, alice):
    version = make_version(chest)
    version.activate(by=alice, reason="agreed")
    return version


@pytest.fixture
def as_bob(client, bob):
    client.force_login(bob)
    return client


def file(name, content):
    return SimpleUploadedFile(name, content)


def text(response):
    return b"".join(response).decode() if response.streaming else response.content.decode()


def left_behind():
    return [*Upload.root().glob("*"), *Batch.root().glob("*")]


def run(job):
    analyse_batch(job.pk, job.attempt)
    job.refresh_from_db()
    return job


# -- Sending


def test_files_sent_by_the_form_become_a_job_with_a_page(version, as_bob, bob):
    files = [file("a.png", DARK_PNG), file("films.zip", packed([("b.png", BRIGHT_PNG)]))]
    response = as_bob.post(NEW, {"condition": "chest", "name": "Night", "files": files})
    job = Batch.objects.get()
    assert response.url == job.get_absolute_url()
    assert (job.name, job.created_by, job.condition.slug) == ("Night", bob, "chest")
    assert [message.task["func"] for message in OrmQ.objects.all()] == ["inference.tasks.analyse_batch"]
    assert left_behind() == [job.folder]
    page = text(as_bob.get(response.url))
    assert 'hx-trigger="every 2s"' in page and "Waiting" in page
    run(job)
    page = text(as_bob.get(response.url))
    assert "hx-trigger" not in page and "2 files analysed, 0 refused." in page
    for item in job.items.all():
        assert item.name in page and item.prediction.get_absolute_url() in page
    assert left_behind() == []


def test_a_hostile_zip_through_the_real_upload_is_refused_in_words_and_leaves_nothing(version, as_bob):
    as_bob.post(NEW, {"condition": "chest", "files": file("x.zip", packed([("../../evil.png", DARK_PNG)]))})
    job = run(Batch.objects.get())
    page = text(as_bob.get(job.get_absolute_url()))
    assert "leads out of the folder" in page and "Go on with the rest" not in page
    assert left_behind() == []


def test_a_zip_with_a_link_is_refused(version, as_bob):
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        link = zipfile.ZipInfo("a.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    as_bob.post(NEW, {"condition": "chest", "files": file("x.zip", out.getvalue())})
    assert "is a link" in run(Batch.objects.get()).error


def test_wrong_forms_say_what_is_missing_and_keep_nothing(version, as_bob):
    for data in ({"condition": "chest"}, {"condition": "knee", "files": file("a.png", DARK_PNG)}):
        response = as_bob.post(NEW, data)
        assert response.status_code == 400
    assert not Batch.objects.exists() and left_behind() == []


def test_too_many_files_and_a_full_disk_are_told(version, as_bob, settings):
    settings.DATA_UPLOAD_MAX_NUMBER_FILES = 1
    files = [file("a.png", DARK_PNG), file("b.png", DARK_PNG)]
    response = as_bob.post(NEW, {"condition": "chest", "files": files})
    assert response.status_code == 400 and "Send them as a zip" in text(response)
    settings.MIN_FREE_DISK_GB = 10**9
    response = as_bob.post(NEW, {"condition": "chest", "files": files[0]})
    assert response.status_code == 409 and "Not enough free disk" in text(response)
    assert not Batch.objects.exists() and left_behind() == []


@pytest.mark.parametrize("url", [NEW, API])
def test_the_upload_has_the_limit_of_archives(url, client, settings, db):
    settings.MAX_UPLOAD_MB, settings.MAX_ARCHIVE_MB = 0, 0
    assert client.post(url, {"files": file("a.png", DARK_PNG)}).status_code == 413


def test_a_form_without_its_token_is_refused(version, bob):
    client = Client(enforce_csrf_checks=True)
    client.force_login(bob)
    assert client.post(NEW, {"condition": "chest", "files": file("a.png", DARK_PNG)}).status_code == 403
    assert left_behind() == []


def test_every_field_has_a_label(version, as_bob):
    dataset = DatasetFactory(condition=version.condition)
    page = as_bob.get(NEW, {"dataset": dataset.pk})
    for form in (page.context["form"], page.context["folder_form"]):
        for field in form:
            assert f'for="{field.id_for_label}"' in text(page), field.name


# -- A folder of a dataset


@pytest.fixture
def dataset(chest):
    found = DatasetFactory(name="CHEST/study", condition=chest)
    for folder in ("test/A", "test/B"):
        found.images.create(
            path=f"{folder}/1.png", folder=folder, size=1, mtime_ns=1, digest=folder, class_name="A", width=1, height=1
        )
        (found.folder / folder).mkdir(parents=True)
        (found.folder / folder / "1.png").write_bytes(DARK_PNG)
    return found


def test_a_dataset_is_chosen_by_its_number_and_a_folder_from_those_that_the_scan_found(version, dataset, as_bob):
    page = text(as_bob.get(NEW, {"dataset": dataset.pk}))
    assert "test/A" in page and "test/B" in page
    response = as_bob.post(NEW, {"dataset": dataset.pk, "condition": "chest", "folder": "test/A"})
    job = run(Batch.objects.get())
    assert response.url == job.get_absolute_url()
    assert [item.name for item in job.items.all()] == ["1.png"]
    for folder in ("../..", "/etc", "test/C"):
        answer = as_bob.post(NEW, {"dataset": dataset.pk, "condition": "chest", "folder": folder})
        assert answer.status_code == 400, folder
    assert Batch.objects.count() == 1


def test_another_teams_dataset_is_not_found(chest, dataset, client, charlie):
    client.force_login(charlie)
    assert client.get(NEW, {"dataset": dataset.pk}).status_code == 404
    own = ConditionFactory(slug="knee", team=charlie.teams.get())
    response = client.post(NEW, {"dataset": dataset.pk, "condition": own.slug})
    assert response.status_code == 404
    assert client.post(API, {"dataset": dataset.pk, "condition": own.slug}).status_code == 400
    assert client.post(API, {"dataset": 10**30, "condition": own.slug}).status_code == 400


# -- Looking


@pytest.fixture
def ended(version, chest):
    """120 files: every third refused, of the others some with a warning."""
    job = BatchFactory(condition=chest, items_count=120)
    for position in range(120):
        fields = {"state": "refused", "code": "empty", "error": "The file is empty."}
        if position % 3:
            gate = [{"check": "colour", "outcome": "warn", "value": 1, "limit": 0, "text": "It is in colour."}]
            warned = position % 5 == 0
            answer = PredictionFactory(version=version, batch=job, gate=gate if warned else [])
            fields = {"state": "answered", "prediction": answer, "code": "colour" if warned else ""}
        BatchItem.objects.create(batch=job, position=position, name=f"film-{position:03d}.png", **fields)
    return job


@pytest.mark.parametrize(
    ("show", "count"), [("", 120), ("answered", 80), ("warned", 16), ("refused", 40), ("waiting", 0), ("nonsense", 120)]
)
def test_the_items_are_shown_page_by_page_all_or_of_one_kind(ended, as_bob, show, count):
    page = as_bob.get(ended.get_absolute_url(), {"show": show})
    assert page.context["page"].paginator.count == count
    assert len(page.context["rows"]) == min(count, 50)
    if show == "warned":
        assert "It is in colour." in text(page)
    if show == "refused":
        assert "The file is empty." in text(page)
    last = as_bob.get(ended.get_absolute_url(), {"show": show, "page": 99})
    assert last.status_code == 200


def test_the_page_counts_decisions_and_asks_the_database_a_few_times_only(ended, as_bob, django_assert_max_num_queries):
    with django_assert_max_num_queries(25):
        page = as_bob.get(ended.get_absolute_url())
    assert page.context["decisions"] == {"PNEUMONIA": 80}
    assert as_bob.get(ended.get_absolute_url(), {"decision": "NORMAL"}).context["page"].paginator.count == 0


def test_looking_is_audited_but_not_each_poll(ended, as_bob, bob):
    as_bob.get(ended.get_absolute_url())
    fragment = text(as_bob.get(ended.get_absolute_url(), headers=HTMX))
    assert "<html" not in fragment and "film-001.png" in fragment
    assert AuditEntry.objects.filter(action="batch.view", actor=bob).count() == 1


def test_the_downloads_are_audited_and_kept_by_no_cache(ended, as_bob, bob):
    response = as_bob.get(reverse("inference:batch-csv", args=[ended.pk]))
    assert response["Content-Disposition"] == f'attachment; filename="batch-{ended.pk}-chest.csv"'
    assert response["Cache-Control"] == "no-store"
    rows = list(csv.reader(io.StringIO(text(response).lstrip("\ufeff"))))
    assert len(rows) == 121 and {len(row) for row in rows} == {len(rows[0])}
    response = as_bob.get(reverse("inference:batch-json", args=[ended.pk]))
    assert len(response.json()["results"]) == 120
    exports = AuditEntry.objects.filter(action="batch.export", actor=bob).order_by("seq")
    assert [entry.after["format"] for entry in exports] == ["csv", "json"]


def test_the_list_shows_the_own_teams_batches_with_their_counts(ended, as_bob, client, charlie):
    page = text(as_bob.get(reverse("inference:batch-list")))
    assert ended.get_absolute_url() in page and "<td>80</td>" in page
    client.force_login(charlie)
    assert ended.get_absolute_url() not in text(client.get(reverse("inference:batch-list")))


def test_a_failed_batch_goes_on_by_a_button(chest, as_bob, alice):
    as_bob.post(NEW, {"condition": "chest", "files": file("a.png", DARK_PNG)})
    job = run(Batch.objects.get())
    assert "Go on with the rest" in text(as_bob.get(job.get_absolute_url()))
    make_version(chest).activate(by=alice, reason="agreed")
    as_bob.post(reverse("inference:batch-go-on", args=[job.pk]))
    job.refresh_from_db()
    assert job.state == "queued"
    assert run(job).state == "succeeded"


def test_a_batch_is_cancelled_by_its_button(version, as_bob):
    as_bob.post(NEW, {"condition": "chest", "files": file("a.png", DARK_PNG)})
    job = Batch.objects.get()
    as_bob.post(reverse("inference:batch-cancel", args=[job.pk]))
    assert "Cancelled before it started" in text(as_bob.get(job.get_absolute_url()))
    assert left_behind() == []


# -- The API


def test_the_whole_way_over_the_api(version, as_bob):
    files = [file("a.png", DARK_PNG), file("letter.png", LETTER)]
    answer = as_bob.post(API, {"condition": "chest", "name": "Night", "files": files})
    assert answer.status_code == 202, text(answer)
    told = answer.json()
    assert (told["state"], told["condition"], told["name"], told["decisions"]) == ("queued", "chest", "Night", {})
    run(Batch.objects.get())
    address = f"{API}{told['id']}/"
    told = as_bob.get(address).json()
    assert (told["answered"], told["refused"], told["decisions"]) == (1, 1, {"NORMAL": 1})
    items = as_bob.get(f"{address}items/", {"page_size": 1}).json()
    assert items["results"][0]["decision"] == "NORMAL"
    assert "text file" in as_bob.get(items["next"]).json()["results"][0]["error"]
    assert [row["state"] for row in as_bob.get(f"{address}results/").json()["results"]] == ["answered", "refused"]
    for way in ({"query_params": {"format": "csv"}}, {"headers": {"Accept": "text/csv"}}):
        table = text(as_bob.get(f"{address}results/", **way))
        assert table.lstrip("\ufeff").startswith("position,file,state"), way
    assert as_bob.get(API, {"state": "succeeded"}).json()["results"][0]["id"] == told["id"]
    assert as_bob.post(f"{address}cancel/").json()["state"] == "succeeded"


def test_a_dataset_is_named_in_json(version, dataset, as_bob):
    wanted = {"condition": "chest", "dataset": dataset.pk, "folder": "test"}
    answer = as_bob.post(API, wanted, content_type="application/json")
    assert answer.status_code == 202, text(answer)
    assert run(Batch.objects.get()).items.count() == 2
    assert as_bob.post(API, wanted | {"folder": "../.."}, content_type="application/json").status_code == 409
    assert as_bob.post(API, {"condition": "chest"}, content_type="application/json").status_code == 400


def test_the_same_batch_sent_again_with_its_key_is_made_once(version, as_bob):
    def send(name="a.png", content=DARK_PNG):
        wanted = {"condition": "chest", "files": [file(name, content), file("b.png", BRIGHT_PNG)]}
        return as_bob.post(API, wanted, headers={"Idempotency-Key": "night 12"})

    first, again = send(), send()
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json() and again["Idempotency-Replayed"] == "true"
    assert Batch.objects.count() == 1
    for other in ({"content": BRIGHT_PNG}, {"name": "c.png"}):
        assert send(**other).status_code == 422
    assert Batch.objects.count() == 1 and left_behind() == [Batch.objects.get().folder]
    assert IdempotentAnswer.objects.count() == 1
