"""A whole condition leaves as one file: made by the queue with progress, kept for a day, for its own team alone."""

import io
import json
import zipfile
from datetime import timedelta

import pytest
from django.db import connection
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ

from registry import exporting, packages
from registry.models import ConditionExport
from registry.models.condition_export import KEPT_FOR
from registry.package_tasks import export_condition, run_export
from registry.signing import SignatureState
from tests.factories import ConditionFactory, UserFactory
from tests.inference.versions import make_version
from xrayplatform import jobs, tasks
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError, LeaseLost
from xrayplatform.notifications import Notification
from xrayplatform.tasks import EACH_MINUTE

pytestmark = pytest.mark.django_db
PAGE = "/models/conditions/chest/export/"
API = "/api/v1/conditions/chest/export/"


@pytest.fixture
def condition(team, alice):
    made = ConditionFactory(slug="chest", name="Chest", team=team)
    for _ in range(2):
        make_version(made, by=alice)
    return made


@pytest.fixture
def job(condition, alice):
    return ConditionExport.start(condition, alice)


@pytest.fixture
def done(job):
    return run(job)


@pytest.fixture
def other_manager(team):
    user = UserFactory(username="mona", roles=["model manager"])
    team.members.add(user)
    return user


def run(job):
    run_export(job, job.attempt)
    job.refresh_from_db()
    return job


def left(settings):
    return sorted(path.name for path in (settings.MODEL_ROOT / "exports").glob("*"))


def content(answer):
    return zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content)))


def audited(action):
    return AuditEntry.objects.filter(action=action)


# -- The job


def test_all_versions_are_written_into_one_file_with_progress(job, alice, settings, monkeypatch):
    monkeypatch.setattr(jobs, "REPORT_EVERY_SECONDS", 0.0)
    seen = []
    job.listener = lambda job: seen.append((job.progress, job.message))
    run(job)
    assert (job.state, job.error, job.progress) == ("succeeded", "", 1.0)
    assert (job.versions_count, job.left_out, job.size) == (2, [], job.file.stat().st_size)
    assert left(settings) == [job.file.name]
    with zipfile.ZipFile(job.file) as archive:
        assert archive.namelist() == ["chest-v1.xrpkg.zip", "chest-v2.xrpkg.zip", "history.json"]
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    sizes = [version.size for version in job.condition.versions.order_by("number")]
    assert (sizes[0] / sum(sizes), "Writing version 2") in seen
    assert Notification.objects.get(user=alice).text.startswith("Export of Chest has finished: 2 of 2 versions")


def test_each_package_of_it_is_signed_by_this_site(done, tmp_path):
    key = exporting.site_key()
    with zipfile.ZipFile(done.file) as archive:
        archive.extract("chest-v2.xrpkg.zip", tmp_path)
    label = packages.read_label(tmp_path / "chest-v2.xrpkg.zip", trusted={key.key_id: key.public_key})
    assert label.signature.state == SignatureState.TRUSTED


def test_the_queue_finds_its_task(job):
    export_condition(job.pk, 1)
    job.refresh_from_db()
    assert job.state == "succeeded"
    assert ConditionExport.task == f"{export_condition.__module__}.{export_condition.__name__}"


def test_a_damaged_version_is_left_out_and_named(condition, job, logged_in):
    (condition.versions.get(number=1).folder / "weights.safetensors").unlink()
    run(job)
    assert (job.state, job.message.split(",")[0]) == ("succeeded", "1 of 2 versions")
    assert [one["number"] for one in job.left_out] == [1]
    page = logged_in.get(job.get_absolute_url()).content.decode()
    assert "Version 1: " in page and "is missing" in page


def test_no_transaction_is_open_while_a_package_is_written(job, monkeypatch):
    open_at_first = len(connection.savepoint_ids)
    depths = []
    write = packages.write

    def look(*args, **options):
        depths.append(len(connection.savepoint_ids))
        return write(*args, **options)

    monkeypatch.setattr(packages, "write", look)
    run(job)
    assert depths == [open_at_first] * 2


def test_one_export_of_a_condition_for_each_user_at_once(condition, job, alice, other_manager):
    assert ConditionExport.start(condition, alice) == job
    assert ConditionExport.start(condition, other_manager) != job
    assert OrmQ.objects.count() == 2
    run(job)
    assert ConditionExport.start(condition, alice) != job
    assert audited("conditionexport.start").filter(actor=alice).count() == 2


def test_without_versions_or_room_none_is_started(team, condition, alice, settings):
    with pytest.raises(JobError, match="nothing to export"):
        ConditionExport.start(ConditionFactory(team=team), alice)
    settings.MIN_FREE_DISK_GB = 10**9
    with pytest.raises(JobError, match="Not enough free disk"):
        ConditionExport.start(condition, alice)
    assert not ConditionExport.objects.exists()
    assert not OrmQ.objects.exists()


# -- Nothing stays of what did not finish


def test_a_running_export_is_cancelled_between_two_versions_and_leaves_nothing(job, alice, settings, monkeypatch):
    monkeypatch.setattr(jobs, "REPORT_EVERY_SECONDS", 0.0)
    write = packages.write

    def write_and_click(*args, **options):
        ConditionExport.objects.get(pk=job.pk).request_cancel(alice)
        return write(*args, **options)

    monkeypatch.setattr(packages, "write", write_and_click)
    run(job)
    assert (job.state, job.expires_at) == ("cancelled", None)
    assert left(settings) == []
    assert audited("version.export").count() == 0
    assert not Notification.objects.exists()


def test_a_click_in_the_last_moment_leaves_nothing_either(job, alice, settings, monkeypatch):
    write = exporting.write_condition

    def write_and_click(*args, **options):
        history = write(*args, **options)
        ConditionExport.objects.get(pk=job.pk).request_cancel(alice)
        return history

    monkeypatch.setattr(exporting, "write_condition", write_and_click)
    assert run(job).state == "cancelled"
    assert left(settings) == []


def test_a_waiting_export_is_cancelled_at_once(job, alice):
    assert job.request_cancel(alice)
    assert run(job).state == "cancelled"


def test_a_full_disk_ends_it_with_the_reason_and_leaves_nothing(job, alice, settings, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.artifacts, "sync", full)
    run(job)
    assert (job.state, job.error) == ("failed", "The file cannot be written: No space left on device.")
    assert left(settings) == []
    assert "has failed" in Notification.objects.get(user=alice).text


def test_what_a_crash_left_goes_when_the_dead_worker_is_found(job, settings):
    assert job.claim(1)
    job.file.parent.mkdir()
    for end in (".part", ".package", ".package.part"):
        job.file.with_name(job.file.name + end).write_bytes(b"x")
    ConditionExport.objects.update(lease_until=timezone.now() - 2 * jobs.LEASE)
    jobs.reap()
    job.refresh_from_db()
    assert job.state == "failed"
    assert left(settings) == []


def test_a_frozen_worker_that_wakes_up_leaves_no_file(job, settings, monkeypatch):
    write = exporting.write_condition

    def write_and_freeze(*args, **options):
        history = write(*args, **options)
        ConditionExport.objects.update(lease_until=timezone.now() - 2 * jobs.LEASE)
        jobs.reap()
        job.file.write_bytes(b"put in place after the others cleaned up")
        return history

    monkeypatch.setattr(exporting, "write_condition", write_and_freeze)
    with pytest.raises(LeaseLost):
        run(job)
    job.refresh_from_db()
    assert job.state == "failed"
    assert left(settings) == []


# -- For a day


def test_a_file_goes_after_a_day(done, condition, alice, other_manager, settings, logged_in):
    fresh = run(ConditionExport.start(condition, other_manager))
    ConditionExport.objects.filter(pk=done.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    tasks.every_minute()
    done.refresh_from_db()
    assert (done.state, done.expires_at) == ("succeeded", None)
    assert left(settings) == [fresh.file.name]
    page = logged_in.get(done.get_absolute_url()).content.decode()
    assert "was removed a day after it was made" in page and "/download/" not in page
    answer = logged_in.get(reverse("registry:export-download", args=[done.pk]), follow=True)
    assert "There is no file of this export" in answer.content.decode()


def test_the_minute_asks_once_when_nothing_expires(done, django_assert_num_queries):
    (work,) = [work for work in EACH_MINUTE if work.__name__ == "expire"]
    with django_assert_num_queries(1):
        work()
    assert done.file.exists()
    assert timedelta(0) < done.expires_at - timezone.now() <= KEPT_FOR


# -- Pages


def test_the_page_starts_it_and_shows_the_file_when_it_is_there(condition, alice, logged_in):
    version = condition.versions.first()
    assert PAGE in logged_in.get(version.get_absolute_url()).content.decode()
    assert "2 versions" in logged_in.get(PAGE).content.decode()
    assert not ConditionExport.objects.exists()
    address = logged_in.post(PAGE).url
    assert logged_in.post(PAGE).url == address
    job = ConditionExport.objects.get()
    page = logged_in.get(address).content.decode()
    assert "<progress" in page and "every 2s" in page and "/cancel/" in page
    run(job)
    fragment = logged_in.get(address, headers={"HX-Request": "true"}).content.decode()
    assert "<html" not in fragment and "every 2s" not in fragment
    download = reverse("registry:export-download", args=[job.pk])
    assert download in fragment
    assert job.get_absolute_url() in logged_in.get(PAGE).content.decode()
    answer = logged_in.get(download)
    assert 'filename="chest.zip"' in answer["Content-Disposition"]
    assert int(answer["Content-Length"]) == job.size
    assert "history.json" in content(answer).namelist()


def test_each_download_is_in_the_audit_log(done, condition, other_manager, client):
    assert not audited("condition.export").exists()
    client.force_login(other_manager)
    for _ in range(2):
        b"".join(client.get(reverse("registry:export-download", args=[done.pk])).streaming_content)
    entry = audited("condition.export").first()
    assert audited("condition.export").count() == 2
    assert (entry.actor, entry.object_id) == (other_manager, str(condition.pk))
    assert entry.after == {"export": done.pk, "versions": 2, "left_out": 0}


def test_a_lost_file_is_said_and_not_audited(done, logged_in):
    done.file.unlink()
    answer = logged_in.get(reverse("registry:export-download", args=[done.pk]), follow=True)
    assert "The file cannot be read" in answer.content.decode()
    assert not audited("condition.export").exists()


def test_the_page_cancels(job, logged_in):
    address = reverse("registry:export-cancel", args=[job.pk])
    assert logged_in.post(address).url == job.get_absolute_url()
    assert "had ended already" in logged_in.post(address, follow=True).content.decode()
    job.refresh_from_db()
    assert job.state == "cancelled"


def test_the_page_says_why_none_is_started(condition, logged_in, settings):
    settings.MIN_FREE_DISK_GB = 10**9
    assert "Not enough free disk" in logged_in.post(PAGE, follow=True).content.decode()


def test_another_team_finds_neither_page_nor_file(done, client, charlie):
    client.force_login(charlie)
    pages = [done.get_absolute_url(), reverse("registry:export-download", args=[done.pk]), PAGE]
    interfaces = [f"/api/v1/condition-exports/{done.pk}/", f"/api/v1/condition-exports/{done.pk}/download/"]
    assert [client.get(address).status_code for address in pages + interfaces] == [404] * 5
    assert [client.post(address).status_code for address in (PAGE, API)] == [404] * 2
    assert client.get("/api/v1/condition-exports/").json()["results"] == []
    assert not audited("condition.export").exists()


# -- API


def test_the_api_starts_follows_and_gives_the_file(condition, logged_in):
    answer = logged_in.post(API)
    assert answer.status_code == 202, answer.content
    number = answer.json()["id"]
    assert logged_in.post(API).json()["id"] == number
    address = f"/api/v1/condition-exports/{number}/"
    early = logged_in.get(f"{address}download/")
    assert (early.status_code, early.json()["detail"][:25]) == (409, "There is no file of this ")
    run(ConditionExport.objects.get())
    told = logged_in.get(address).json()
    assert (told["state"], told["condition"], told["versions_count"]) == ("succeeded", "chest", 2)
    with content(logged_in.get(f"{address}download/")) as archive:
        history = json.loads(archive.read("history.json"))
    assert [row["number"] for row in history["versions"]] == [1, 2]
    assert audited("condition.export").get().channel == "api"


def test_the_api_cancels(job, logged_in):
    assert logged_in.post(f"/api/v1/condition-exports/{job.pk}/cancel/").json()["state"] == "cancelled"


def test_the_api_says_why_none_is_started(condition, logged_in, settings):
    settings.MIN_FREE_DISK_GB = 10**9
    answer = logged_in.post(API)
    assert (answer.status_code, "Not enough free disk" in answer.json()["detail"]) == (409, True)
