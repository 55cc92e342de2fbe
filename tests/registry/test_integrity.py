"""A version whose files changed: it is found, shown, told once, never used, and restored from its backup."""

import json
import os
import shutil
import time
from io import StringIO

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from inference.engine import Engine
from inference.models import Prediction, prediction
from registry import announcing, artifacts, backups, tasks
from registry.models import ActivationError, IntegrityCheck, ModelVersion, VerificationRun
from tests.datasets.files import encode
from tests.factories import ConditionFactory
from tests.inference.versions import BRIGHT, make_version, stage
from xrayplatform import audit
from xrayplatform.audit import AuditEntry
from xrayplatform.notifications import Notification
from xrayplatform.tasks import EACH_MINUTE, every_minute

# Of the list, whose filters name damage as well.
RED = '<span class="badge state-failed"><i class="bi bi-x-octagon" aria-hidden="true"></i> Damaged</span>'


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    engine = Engine()
    monkeypatch.setattr(prediction, "ENGINE", engine)
    return engine


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def version(chest):
    return make_version(chest)


def spoil(version, member="weights.safetensors"):
    path = version.folder / member
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def text(response):
    return response.content.decode()


def messages_of(user):
    return list(Notification.objects.of(user).values_list("text", flat=True))


# -- Finding it


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda version: spoil(version), "changed"),
        (lambda version: spoil(version, "manifest.json"), "changed"),
        (lambda version: (version.folder / "openvino/model.bin").unlink(), "missing"),
        (lambda version: shutil.rmtree(version.folder), "missing"),
        (lambda version: (version.folder / "weights.safetensors").write_bytes(b""), "truncated"),
    ],
    ids=["weights changed", "manifest changed", "file missing", "folder missing", "file cut off"],
)
def test_each_kind_of_damage_is_found(version, harm, reason):
    assert not version.verify().is_damaged
    harm(version)
    check = version.verify()
    assert (check.reason, check.is_damaged) == (reason, True)
    assert check.since is not None


def test_the_version_itself_is_not_changed_by_a_look_at_its_files(version):
    before = ModelVersion.objects.filter(pk=version.pk).values().get()
    spoil(version)
    version.verify()
    assert ModelVersion.objects.filter(pk=version.pk).values().get() == before


def test_damage_is_told_once_and_is_in_the_audit_log_once(version, alice, bob, administrator, charlie):
    spoil(version)
    for _ in range(3):
        version.verify()
    for user in (alice, administrator):
        assert len([words for words in messages_of(user) if "chest v1 is damaged and is not used" in words]) == 1
    assert messages_of(bob) == messages_of(charlie) == []
    assert AuditEntry.objects.filter(action="version.damaged").count() == 1


def test_an_administrator_of_another_team_is_sent_to_system_status(version, administrator):
    spoil(version)
    version.verify()
    assert Notification.objects.get(user=administrator).url == reverse("xrayplatform:system-status")


def test_a_version_that_is_whole_again_is_usable_again(version, alice):
    content = (version.folder / "weights.safetensors").read_bytes()
    spoil(version)
    assert version.verify().is_damaged
    with pytest.raises(ActivationError, match="was changed after it was registered"):
        version.activate(by=alice, reason="x")
    (version.folder / "weights.safetensors").write_bytes(content)
    version.activate(by=alice, reason="put back by hand")
    assert IntegrityCheck.objects.get().since is None
    assert AuditEntry.objects.filter(action="version.whole").count() == 1


def test_a_file_that_the_disk_cannot_read_is_damage_too(version, alice, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(artifacts, "_sha256", fail)
    check = version.verify()
    assert (check.reason, "Input/output error" in check.message) == ("unreadable", True)
    with pytest.raises(ActivationError, match="cannot be read"):
        version.activate(by=alice, reason="x")


def test_files_that_were_put_back_while_they_were_read_are_read_again(version, monkeypatch):
    whole = version.folder.with_name("whole")
    shutil.copytree(version.folder, whole)
    spoil(version)
    load, looks = artifacts.load, []

    def load_and_put_back(folder, sha256):
        looks.append(folder)
        try:
            return load(folder, sha256)
        finally:
            if len(looks) == 1:
                artifacts.place(whole, folder)

    monkeypatch.setattr(artifacts, "load", load_and_put_back)
    assert not version.verify().is_damaged
    assert len(looks) == 2


def test_no_lock_is_held_while_files_are_read(version, monkeypatch):
    spoil(version)
    load, depths = artifacts.load, []
    depth = len(connection.savepoint_ids)

    def load_and_note(folder, sha256):
        depths.append(len(connection.savepoint_ids))
        return load(folder, sha256)

    monkeypatch.setattr(artifacts, "load", load_and_note)
    assert version.verify().is_damaged
    assert set(depths) == {depth}


def test_damage_found_between_proof_and_switch_keeps_the_version_out_of_service(version, alice, monkeypatch):
    def found(*args):
        spoil(version)
        version.verify()

    monkeypatch.setattr(backups, "keep_both", found)
    with pytest.raises(ActivationError, match="was changed after it was registered"):
        version.activate(by=alice, reason="x")
    assert AuditEntry.objects.get(action="version.activate").outcome == "refused"


def test_what_loads_at_the_second_try_is_not_called_unusable(version, alice):
    version.report_unusable("for a moment there was no memory")
    assert not IntegrityCheck.objects.get(version=version).is_damaged


# -- Showing it


def test_a_damaged_version_is_red_on_list_page_api_and_system_status(version, alice, client):
    spoil(version)
    version.verify()
    client.force_login(alice)
    assert RED in text(client.get(reverse("registry:version-list")))
    page = text(client.get(version.get_absolute_url()))
    assert "This version is damaged and is not used." in page
    assert "was changed after it was registered" in page
    assert "/activate/" not in page
    assert client.get(reverse("api:version-detail", args=[version.pk])).json()["damaged"] is True
    status = client.get(reverse("api:system-list")).json()["damaged_versions"]
    assert [(row["version"], row["name"]) for row in status] == [(version.pk, "chest v1")]
    assert "is damaged and is not used" in text(client.get(reverse("xrayplatform:system-status")))


def test_another_team_does_not_see_it_on_system_status(version, charlie, client):
    spoil(version)
    version.verify()
    client.force_login(charlie)
    assert "chest v1" not in text(client.get(reverse("xrayplatform:system-status")))
    assert client.get(reverse("api:system-list")).json()["damaged_versions"] == []


def test_a_version_that_is_whole_is_shown_so(version, alice, client):
    client.force_login(alice)
    page = text(client.get(version.get_absolute_url()))
    assert "not yet" in page
    page = text(client.post(reverse("registry:version-verify", args=[version.pk]), follow=True))
    assert "Every file of chest v1 is what was registered." in page
    assert RED not in text(client.get(reverse("registry:version-list")))
    answer = client.post(reverse("api:version-verify", args=[version.pk])).json()
    assert (answer["version"], answer["damaged"], answer["reason"]) == (version.pk, False, "")


def test_a_list_of_versions_costs_the_same_queries_however_many_are_damaged(
    chest, version, alice, client, django_assert_max_num_queries
):
    for _ in range(4):
        spoil(other := make_version(chest, graph=False))
        other.verify()
    client.force_login(alice)
    with django_assert_max_num_queries(16):
        client.get(reverse("registry:version-list"))


# -- By command, and each night


def test_the_command_verifies_all_and_fails_when_one_is_damaged(chest, version):
    make_version(chest)
    out = StringIO()
    call_command("verify_models", json=True, stdout=out, stderr=StringIO())
    assert json.loads(out.getvalue()) == {"verified": 2, "failed": 0, "damaged": []}
    spoil(version)
    out = StringIO()
    with pytest.raises(SystemExit) as end:
        call_command("verify_models", json=True, stdout=out, stderr=StringIO())
    assert end.value.code == 1
    (row,) = json.loads(out.getvalue())["damaged"]
    assert (row["condition"], row["version"], row["reason"]) == ("chest", 1, "changed")


def test_the_command_verifies_one_version_or_one_condition(chest, version):
    spoil(make_version(chest))
    out = StringIO()
    call_command("verify_models", "chest", "1", stdout=out, stderr=StringIO())
    assert "1 versions verified, 0 damaged." in out.getvalue()
    with pytest.raises(SystemExit):
        call_command("verify_models", "chest", stdout=StringIO(), stderr=StringIO())
    with pytest.raises(CommandError, match="no such version"):
        call_command("verify_models", "chest", "9")


@pytest.fixture
def night(monkeypatch):
    at = timezone.now().replace(hour=2)
    monkeypatch.setattr(tasks.timezone, "localtime", lambda: at)


def test_each_night_all_versions_are_verified_once(chest, version, night):
    spoil(version)
    tasks.every_minute()
    tasks.every_minute()
    run = VerificationRun.objects.get()
    tasks.verify_all(run.pk, run.attempt)
    run.refresh_from_db()
    assert (run.state, run.message) == ("succeeded", "1 versions verified, 1 damaged")
    assert (run.versions_count, run.damaged_count) == (1, 1)
    tasks.every_minute()
    assert VerificationRun.objects.count() == 1


def test_by_day_no_verification_begins(version, monkeypatch):
    monkeypatch.setattr(tasks.timezone, "localtime", lambda: timezone.now().replace(hour=14))
    tasks.every_minute()
    assert not VerificationRun.objects.exists()


def test_the_minute_task_does_the_work_of_the_registry(db, monkeypatch):
    assert tasks.every_minute in EACH_MINUTE
    done = []
    monkeypatch.setattr("xrayplatform.tasks.EACH_MINUTE", [lambda: 1 / 0, lambda: done.append(True)])
    every_minute()
    assert done == [True]


def test_the_progress_of_the_night_names_no_version_as_every_team_sees_it(version, night, monkeypatch):
    tasks.every_minute()
    run = VerificationRun.objects.get()
    said = []
    monkeypatch.setattr(VerificationRun, "renew", lambda self, **fields: said.append(fields["message"]))
    tasks.verify_all(run.pk, run.attempt)
    assert said == ["0 of 1 versions verified"]


# -- While it answers


def ask(client, user):
    client.force_login(user)
    image = SimpleUploadedFile("x.png", encode(BRIGHT, "PNG"))
    return client.post("/analysis/", {"condition": "chest", "image": image}, follow=True)


def test_a_version_that_cannot_be_loaded_is_told_once_and_the_previous_one_answers(
    chest, version, alice, bob, client, engine, monkeypatch
):
    monkeypatch.setattr("inference.engine.RETRY_SECONDS", 0.0)
    version.activate(by=alice, reason="first")
    ask(client, bob)
    newer = make_version(chest, -8.0)
    newer.activate(by=alice, reason="newer")
    spoil(newer, "openvino/model.bin")
    for _ in range(3):
        assert ask(client, bob).status_code == 200
    assert Prediction.objects.first().version == version
    assert IntegrityCheck.objects.get(version=newer).reason == "changed"
    assert len([words for words in messages_of(alice) if "chest v2 is damaged" in words]) == 1
    assert AuditEntry.objects.filter(action="version.damaged").count() == 1


def test_a_process_that_begins_with_a_damaged_version_answers_with_the_one_before_until_it_is_restored(
    chest, version, alice, bob, client, monkeypatch
):
    monkeypatch.setattr("inference.engine.RETRY_SECONDS", 0.0)
    version.activate(by=alice, reason="first")
    newer = make_version(chest, -8.0)
    newer.activate(by=alice, reason="newer")
    spoil(newer, "openvino/model.bin")
    for _ in range(2):
        page = text(ask(client, bob))
        assert Prediction.objects.first().version == version
        assert "chest v1 answered: the version in service could not be loaded." in page
    newer.restore(by=alice)
    ask(client, bob)
    assert Prediction.objects.first().version == newer
    spoil(newer)
    spoil(version)
    monkeypatch.setattr(prediction, "ENGINE", Engine())
    assert ask(client, bob).status_code == 503


def test_a_version_that_was_taken_out_again_does_not_answer_for_a_damaged_one(chest, version, alice, bob, client):
    version.activate(by=alice, reason="first")
    withdrawn = make_version(chest, -8.0)
    deployment = withdrawn.activate(by=alice, reason="newer")
    deployment.roll_back(by=alice, reason="it misses too much")
    spoil(version, "openvino/model.bin")
    assert ask(client, bob).status_code == 503
    assert not Prediction.objects.exists()


def test_a_version_that_is_whole_and_cannot_be_loaded_is_told_as_well(chest, version, alice, bob, client, monkeypatch):
    version.activate(by=alice, reason="first")
    monkeypatch.setattr("inference.engine.GOLDEN_TOLERANCE", -1.0)
    assert ask(client, bob).status_code == 503
    check = IntegrityCheck.objects.get(version=version)
    assert (check.reason, check.is_damaged) == ("unusable", True)
    assert version.verify().is_damaged
    monkeypatch.undo()
    assert not version.verify().is_damaged


def test_the_older_version_never_answers_without_saying_so(chest, version, alice, bob, client):
    version.activate(by=alice, reason="first")
    newer = make_version(chest, -8.0)
    newer.activate(by=alice, reason="newer")
    spoil(newer, "openvino/model.bin")
    for _ in range(3):
        assert "chest v1 answered: the version in service could not be loaded." in text(ask(client, bob))


def test_when_both_are_damaged_their_files_are_not_read_for_each_request(
    chest, version, alice, bob, client, monkeypatch
):
    version.activate(by=alice, reason="first")
    newer = make_version(chest, -8.0)
    newer.activate(by=alice, reason="newer")
    spoil(newer)
    spoil(version)
    read, tries = prediction.load, []
    monkeypatch.setattr(prediction, "load", lambda *args, **options: [tries.append(args), read(*args, **options)][1])
    for _ in range(3):
        assert ask(client, bob).status_code == 503
    assert len(tries) == 2


# -- A disk that is not mounted


@pytest.fixture
def unmount(version, settings):
    """The folder of models, as it is when its disk is not mounted: `how` is what is there instead."""
    root = settings.MODEL_ROOT

    def unmount(how="nothing"):
        root.rename(root.with_name("elsewhere"))
        if how != "nothing":
            (root / how).mkdir(parents=True)

    yield unmount


@pytest.fixture
def mount(settings):
    def mount():
        shutil.rmtree(settings.MODEL_ROOT, ignore_errors=True)
        settings.MODEL_ROOT.with_name("elsewhere").rename(settings.MODEL_ROOT)

    return mount


def alerts(user):
    return [words for words in messages_of(user) if "is the disk mounted?" in words]


@pytest.mark.parametrize("how", ["nothing", ".", "registry", "registry/.staging"])
def test_an_unmounted_disk_makes_one_alert_and_no_damaged_version(
    chest, version, unmount, how, alice, bob, administrator, charlie
):
    make_version(chest)
    unmount(how)
    for _ in range(2):
        for one in ModelVersion.objects.all():
            assert one.verify().message == "The folder of models is not there: is the disk mounted?"
    assert not IntegrityCheck.objects.exists()
    assert not AuditEntry.objects.filter(action="version.damaged").exists()
    assert AuditEntry.objects.filter(action="models.missing").count() == 1
    assert [len(alerts(user)) for user in (alice, charlie, administrator, bob)] == [1, 1, 1, 0]
    assert not any("damaged" in words for words in messages_of(alice) if "none is damaged" not in words)


def test_without_any_version_an_empty_folder_is_no_alert(db, settings, alice):
    call_command("verify_models", stdout=StringIO(), stderr=StringIO())
    assert alerts(alice) == []


def test_the_command_says_that_the_disk_is_not_mounted(version, unmount, alice):
    unmount()
    for _ in range(2):
        with pytest.raises(CommandError, match="is the disk mounted"):
            call_command("verify_models", stdout=StringIO(), stderr=StringIO())
    assert len(alerts(alice)) == 1


def test_the_night_says_so_and_calls_nothing_damaged(version, unmount, night):
    unmount()
    tasks.every_minute()
    run = VerificationRun.objects.get()
    tasks.verify_all(run.pk, run.attempt)
    run.refresh_from_db()
    assert (run.state, run.error) == ("failed", "The folder of models is not there: is the disk mounted?")
    assert not IntegrityCheck.objects.exists()


def test_a_disk_that_goes_while_all_are_verified_ends_it(chest, version, unmount, monkeypatch):
    make_version(chest)
    load = artifacts.load

    def load_and_go(folder, sha256):
        found = load(folder, sha256)
        unmount()
        return found

    monkeypatch.setattr(artifacts, "load", load_and_go)
    with pytest.raises(CommandError, match="is the disk mounted"):
        call_command("verify_models", stdout=StringIO(), stderr=StringIO())
    assert not IntegrityCheck.objects.exclude(reason="").exists()


def test_after_the_disk_was_there_again_its_loss_is_another_alert(version, unmount, mount, alice):
    for count in (1, 2):
        unmount()
        version.verify()
        assert len(alerts(alice)) == count
        mount()
        call_command("verify_models", stdout=StringIO(), stderr=StringIO())
    assert not version.verify().is_damaged


def test_pages_and_api_show_it(version, unmount, mount, alice, client):
    client.force_login(alice)
    status, words = reverse("xrayplatform:system-status"), "is the disk mounted?"
    assert words not in text(client.get(status))
    unmount()
    assert words in text(client.get(status))
    assert client.get(reverse("api:system-list")).json()["models_missing"] is True
    page = text(client.post(reverse("registry:version-verify", args=[version.pk]), follow=True))
    assert words in page and "is damaged" not in page
    answer = client.post(reverse("api:version-verify", args=[version.pk]))
    assert (answer.status_code, words in answer.json()["detail"]) == (409, True)
    mount()
    assert words not in text(client.get(status))
    assert client.get(reverse("api:system-list")).json()["models_missing"] is False


def test_what_is_in_service_goes_on_from_memory_and_nothing_else_goes_into_service(
    chest, version, unmount, alice, bob, client, monkeypatch
):
    version.activate(by=alice, reason="first")
    newer = make_version(chest)
    ask(client, bob)
    unmount()
    assert ask(client, bob).status_code == 200
    assert Prediction.objects.count() == 2
    with pytest.raises(ActivationError, match="is the disk mounted"):
        newer.activate(by=alice, reason="newer")
    monkeypatch.setattr(prediction, "ENGINE", Engine())
    assert ask(client, bob).status_code == 503
    assert not IntegrityCheck.objects.exclude(reason="").exists()
    assert len(alerts(alice)) == 1


# -- Backup and restoration


@pytest.fixture
def used(chest, version, alice):
    version.activate(by=alice, reason="first")
    return version


def test_what_goes_into_service_and_what_it_replaces_are_backed_up(chest, used, alice, settings):
    newer = make_version(chest)
    newer.activate(by=alice, reason="newer")
    for each in (used, newer):
        folder = settings.MODEL_ROOT / "backups" / "chest" / str(each.number)
        assert artifacts.load(folder, each.sha256).sha256 == each.sha256
        # What spoils the version must not spoil its backup.
        assert (folder / "weights.safetensors").stat().st_ino != (each.folder / "weights.safetensors").stat().st_ino


def test_a_damaged_backup_is_made_anew(chest, used, alice):
    (backups.folder_of(used) / "weights.safetensors").write_bytes(b"x")
    make_version(chest).activate(by=alice, reason="newer")
    artifacts.load(backups.folder_of(used), used.sha256)


def test_only_the_newest_backups_are_kept_and_those_in_service_always(chest, used, alice, settings):
    settings.MODEL_BACKUPS_KEPT = 2
    for _ in range(3):
        make_version(chest).activate(by=alice, reason="newer")
    assert sorted(path.name for path in backups.folder_of(used).parent.iterdir()) == ["3", "4"]


def test_what_a_crash_left_of_a_backup_is_removed_a_day_later(chest, used, alice):
    left, young = (backups.folder_of(used).parent / name for name in ("7-0123.part", "7-4567.part"))
    for path in (left, young):
        path.mkdir()
    os.utime(left, (0, 0))
    make_version(chest).activate(by=alice, reason="newer")
    assert not left.exists()
    assert young.exists()


def test_the_age_of_a_backup_is_that_of_its_last_service_and_not_of_the_training(chest, version, alice):
    os.utime(version.folder, (0, 0))
    for _ in range(2):
        version.activate(by=alice, reason="first")
        folder = backups.folder_of(version)
        assert folder.stat().st_mtime > time.time() - 60
        os.utime(folder, (0, 0))
        make_version(chest).activate(by=alice, reason="newer")
        assert folder.stat().st_mtime > time.time() - 60


def test_a_copy_that_is_being_made_of_an_old_version_is_not_taken_for_what_a_crash_left(chest, version, monkeypatch):
    os.utime(version.folder, (0, 0))
    monkeypatch.setattr(artifacts, "sync_tree", lambda folder: backups.prune(folder.parent, set()))
    artifacts.load(backups.keep(version), version.sha256)


def test_a_backup_that_cannot_be_placed_leaves_nothing(used, monkeypatch):
    shutil.rmtree(backups.folder_of(used))

    def fail(*args):
        raise OSError("Directory not empty")

    monkeypatch.setattr(artifacts, "place", fail)
    with pytest.raises(backups.BackupError, match="Directory not empty"):
        backups.keep(used)
    assert not list(backups.folder_of(used).parent.iterdir())


def test_old_backups_that_cannot_be_removed_do_not_stand_in_the_way(chest, used, alice, monkeypatch):
    def fail(*args):
        raise FileNotFoundError("removed by somebody else")

    monkeypatch.setattr(backups, "prune", fail)
    newer = make_version(chest)
    assert newer.activate(by=alice, reason="newer").active == newer


def test_a_backup_that_fails_does_not_stand_in_the_way_of_an_activation(chest, used, alice, settings):
    newer = make_version(chest)
    shutil.rmtree(backups.folder_of(used).parent)
    settings.MIN_FREE_DISK_GB = 10**9
    newer.activate(by=alice, reason="newer")
    assert not backups.folder_of(newer).exists()


def test_a_damaged_version_is_restored_from_its_backup(used, alice, client):
    spoil(used)
    used.verify()
    client.force_login(alice)
    page = text(client.post(reverse("registry:version-restore", args=[used.pk]), follow=True))
    assert "The files of chest v1 were put back from the backup and are what was registered." in page
    artifacts.load(used.folder, used.sha256)
    assert AuditEntry.objects.filter(action="version.restore").get().actor == alice
    assert not list((used.folder.parents[1] / ".staging").glob("restore-*"))


def test_a_restoration_over_the_api_and_by_command(used, alice, client):
    client.force_login(alice)
    shutil.rmtree(used.folder)
    answer = client.post(reverse("api:version-restore", args=[used.pk]))
    assert (answer.status_code, answer.json()["damaged"]) == (200, False)
    spoil(used)
    out = StringIO()
    call_command("restore_version", "chest", "1", json=True, stdout=out)
    assert json.loads(out.getvalue())["sha256"] == used.sha256
    with pytest.raises(CommandError, match="chest v1 is whole; there is nothing to restore"):
        call_command("restore_version", "chest", "1")


def test_a_backup_that_is_not_what_was_registered_is_not_used(used, alice, client):
    spoil(used)
    (backups.folder_of(used) / "weights.safetensors").write_bytes(b"x")
    client.force_login(alice)
    answer = client.post(reverse("api:version-restore", args=[used.pk]))
    assert answer.status_code == 409
    assert "cannot be restored from its backup" in answer.json()["detail"]
    assert used.verify().is_damaged


def test_a_version_that_was_never_in_service_has_no_backup(version, alice):
    spoil(version)
    with pytest.raises(backups.BackupError, match="There is no backup of chest v1"):
        version.restore(by=alice)


# -- A crash at each step


class Crash(BaseException):
    """As when the process is killed: nothing that catches errors catches it."""


def crash(*args, **kwargs):
    raise Crash


REGISTERING = [
    (artifacts, "place"),
    (artifacts, "sync"),
    (ModelVersion, "save"),
    (audit, "record"),
    (announcing, "tell_new_version"),
]


@pytest.mark.parametrize(("owner", "step"), REGISTERING, ids=[step for _, step in REGISTERING])
def test_a_crash_while_registering_leaves_no_half_version(chest, owner, step):
    staged, sha256, manifest = stage()
    about = {"dataset_name": "d", "dataset_digest": "d", "split_digest": "s", "origin": "test"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, step, crash)
        with pytest.raises(Crash):
            ModelVersion.objects.register(chest, staged, sha256=sha256, manifest=manifest, by=None, **about)
    assert not ModelVersion.objects.exists()
    assert not AuditEntry.objects.filter(action="version.register").exists()
    version = make_version(chest)
    assert (version.number, version.verify().is_damaged) == (1, False)


def test_nothing_is_registered_below_a_disk_that_is_not_mounted(chest, settings, tmp_path):
    first = make_version(chest)
    mounted, settings.MODEL_ROOT = settings.MODEL_ROOT, tmp_path / "empty"
    with pytest.raises(artifacts.ArtifactError, match="is the disk mounted"):
        make_version(chest)
    settings.MODEL_ROOT = mounted
    assert [version.pk for version in ModelVersion.objects.all()] == [first.pk]
    assert make_version(chest).number == 2


BACKING_UP = [(shutil, "copytree"), (artifacts, "sync_tree"), (artifacts, "place"), (artifacts, "sync")]


@pytest.mark.parametrize(("owner", "step"), BACKING_UP, ids=[step for _, step in BACKING_UP])
def test_a_crash_while_backing_up_leaves_no_half_backup_and_the_version_in_service(chest, alice, owner, step):
    version = make_version(chest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, step, crash)
        with pytest.raises(Crash):
            version.activate(by=alice, reason="first")
    folder = backups.folder_of(version)
    assert not folder.exists() or artifacts.load(folder, version.sha256)
    version.activate(by=alice, reason="first")
    artifacts.load(folder, version.sha256)
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(backups.PART)] == ["1"]


RESTORING = [(shutil, "copytree"), (artifacts, "place"), (artifacts, "sync"), (audit, "record")]


@pytest.mark.parametrize(("owner", "step"), RESTORING, ids=[step for _, step in RESTORING])
def test_a_crash_while_restoring_can_be_followed_by_another_try(used, alice, owner, step):
    spoil(used)
    used.verify()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, step, crash)
        with pytest.raises(Crash):
            used.restore(by=alice)
    if used.verify().is_damaged:
        used.restore(by=alice)
    artifacts.load(used.folder, used.sha256)
