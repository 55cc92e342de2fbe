"""Deleting a version: archived first, never while anything refers to it, whole or not at all, its number kept."""

import json
import threading
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.urls import reverse
from django.utils import timezone

from inference.models import EvaluationRun
from registry import backups, orphans, references, retention
from registry.models import (
    ActivationError,
    DeletedVersion,
    Evaluation,
    LabelError,
    ModelVersion,
    ScheduledActivation,
    StateError,
    ThresholdSet,
    VersionNote,
    VersionTag,
)
from registry.models.evaluation import file_of
from registry.retention import DeletionError, delete
from tests.factories import (
    ConditionFactory,
    EvaluationRunFactory,
    ModelVersionFactory,
    PackageImportFactory,
    PredictionFactory,
    PreparationFactory,
    ScheduledActivationFactory,
    ThresholdSetFactory,
    TrainingRunFactory,
    UserFactory,
)
from tests.inference.versions import make_version
from tests.registry.evaluations import make_evaluation
from xrayplatform import audit
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import Job

IN_TWO_DAYS = 2 * 86_400


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def version(chest):
    return make_version(chest)


@pytest.fixture
def archived(version, alice):
    version.archive(by=alice, reason="superseded")
    return version


@pytest.fixture
def ada(team):
    """A model manager who may delete as well."""
    user = UserFactory(username="ada-may-delete", roles=["model manager", "version remover"])
    team.members.add(user)
    return user


@pytest.fixture
def committed(django_capture_on_commit_callbacks):
    """Deletes as outside of a test: what waits for the commit is done."""

    def work(version, **wish):
        with django_capture_on_commit_callbacks(execute=True):
            return delete(version, **{"by": None, "reason": "never used"} | wish)

    return work


def refusal(version, by=None, reason="never used"):
    with pytest.raises(DeletionError) as error:
        delete(version, by=by, reason=reason)
    assert ModelVersion.objects.filter(pk=version.pk).exists()
    return str(error.value)


# -- What goes and what stays


def test_a_version_goes_with_its_files_and_its_number_is_kept_in_mind(archived, ada, committed):
    evaluation = make_evaluation(archived, patients=10)
    backups.keep(archived)
    places = [archived.folder, backups.folder_of(archived), file_of(evaluation.key)]
    assert all(path.exists() for path in places)
    gone = committed(archived, by=ada, reason="  never used ")
    assert not any(path.exists() for path in places)
    assert not ModelVersion.objects.exists()
    assert (gone.version_key, gone.number, gone.by, gone.reason) == (archived.pk, 1, ada, "never used")
    assert (gone.sha256, gone.made_at) == (archived.sha256, archived.created_at)
    assert gone.size > 2 * archived.size


def test_what_belongs_to_it_goes_with_it(chest, archived, committed):
    neighbour = make_version(chest)
    stays = make_evaluation(neighbour, patients=10)
    evaluation = make_evaluation(archived, patients=10)
    EvaluationRunFactory(version=archived, state=Job.State.SUCCEEDED, evaluation=evaluation)
    EvaluationRunFactory(version=archived, state=Job.State.FAILED)
    ThresholdSetFactory(version=archived)
    ScheduledActivationFactory(version=archived, state="cancelled")
    archived.tag("night run", by=None)
    archived.add_note("Trained without augmentation.", by=None)
    archived.verify()
    committed(archived)
    for model in (Evaluation, EvaluationRun, ThresholdSet, ScheduledActivation, VersionTag, VersionNote):
        assert not model.objects.filter(version=archived.pk).exists(), model
    assert neighbour.evaluations.get() == stays
    assert stays.images.labels.size
    assert not neighbour.verify().is_damaged


def test_the_training_that_made_it_and_the_import_that_brought_it_stay_without_it(archived, committed, client, alice):
    preparation = PreparationFactory(dataset__condition=archived.condition)
    run = TrainingRunFactory(preparation=preparation, state=Job.State.SUCCEEDED, version=archived)
    job = PackageImportFactory(condition=archived.condition, version=archived, state=Job.State.SUCCEEDED)
    committed(archived)
    run.refresh_from_db()
    job.refresh_from_db()
    assert (run.version, run.lost_its_version, job.version) == (None, True, None)
    client.force_login(alice)
    for page in (run, job):
        assert "was deleted" in client.get(page.get_absolute_url()).content.decode()
    for name in ("training:run-list", "xrayplatform:dashboard"):
        assert client.get(reverse(name)).status_code == 200
    assert client.get(reverse("api:run-detail", args=[run.pk])).json()["version"] is None


def test_pages_of_other_versions_and_comparisons_go_on_without_it(chest, archived, committed, client, alice):
    stays = [make_version(chest), make_version(chest)]
    committed(archived)
    client.force_login(alice)
    chosen = "&".join(f"version={one.pk}" for one in stays)
    addresses = [
        stays[0].get_absolute_url(),
        reverse("registry:version-lineage", args=[stays[0].pk]),
        f"{reverse('registry:version-compare')}?{chosen}",
        reverse("registry:version-list"),
    ]
    assert [client.get(address).status_code for address in addresses] == [200] * 4
    assert client.get(archived.get_absolute_url()).status_code == 404
    gone = client.get(f"{reverse('registry:version-compare')}?version={archived.pk}&version={stays[0].pk}")
    assert gone.status_code in (200, 302, 404)


def test_a_number_is_never_given_again(chest, archived, committed):
    committed(archived)
    assert make_version(chest).number == 2


def test_the_audit_log_keeps_what_it_was_who_deleted_it_and_why(archived, ada, committed):
    committed(archived, by=ada, reason="never used")
    entry = AuditEntry.objects.filter(action="version.delete").get()
    assert (entry.actor, entry.object_label, entry.object_id) == (ada, "chest v1", str(archived.pk))
    assert (entry.after, entry.before["sha256"]) == ({"reason": "never used"}, archived.sha256)
    earlier = AuditEntry.objects.filter(action="version.register").get()
    assert earlier.object_label == "chest v1"


# -- Refusals


@pytest.mark.parametrize("state", ["candidate", "approved"])
def test_a_version_is_archived_before_it_is_deleted(version, alice, state):
    if state == "approved":
        version.approve(by=alice, reason="looks well")
    assert "it is not archived; archive it first" in refusal(version)
    assert version.folder.is_dir()


@pytest.mark.parametrize("reason", ["", "   ", "x" * 501])
def test_without_a_reason_that_can_be_kept_nothing_is_deleted(archived, reason):
    assert "reason" in refusal(archived, reason=reason)


def in_service(version):
    make_version(version.condition)
    version.activate(by=None, reason="first")


def was_in_service(version):
    others = [make_version(version.condition) for _ in range(2)]
    for one in (version, *others):
        one.activate(by=None, reason="next")


def way_back(version):
    for one in (version, make_version(version.condition)):
        one.activate(by=None, reason="next")


def planned(version):
    ScheduledActivation.objects.plan(version, timezone.now() + timedelta(days=1), by=None, reason="after the audit")


def started_from(version):
    TrainingRunFactory(initial="version", initial_version=version)


def had_started_from(version):
    TrainingRunFactory(initial="version", initial_version=version, state="succeeded")


def being_evaluated(version):
    EvaluationRunFactory(version=version)


def has_a_child(version):
    ModelVersionFactory(condition=version.condition, parent=version, number=90)


def answered(version):
    PredictionFactory(version=version)


@pytest.mark.parametrize(
    "label",
    [lambda gone: gone.tag("pilot", by=None), lambda gone: gone.add_note("Good.", by=None)],
    ids=["tag", "note"],
)
def test_who_labels_what_was_just_deleted_is_told_so(archived, label):
    gone = ModelVersion.objects.select_related("condition").get(pk=archived.pk)
    delete(archived, by=None, reason="never used")
    with pytest.raises(LabelError, match="chest v1 was deleted meanwhile"):
        label(gone)


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (in_service, "it is in service for Chest; put another version there first"),
        (was_in_service, "it was in service, and that history stays readable"),
        (way_back, "a rollback of its condition would go back to it"),
        (planned, "its activation is planned; cancel that first"),
        (has_a_child, "versions started from its weights"),
        (started_from, "a training starts from its weights; wait until that has ended, or cancel it"),
        (had_started_from, "a training started from its weights, and its record stays readable"),
        (being_evaluated, "it is being evaluated; wait until that has ended, or cancel it"),
        (answered, "predictions name it, and they stay readable"),
    ],
)
def test_what_refers_to_a_version_keeps_it_and_is_named(version, begin, reason):
    begin(version)
    ModelVersion.objects.filter(pk=version.pk).update(state="archived")
    assert reason in refusal(version)
    assert version.folder.is_dir()
    assert references.references(ModelVersion.objects.filter(pk=version.pk))[version.pk]


def test_what_another_app_does_with_a_version_keeps_it(archived, monkeypatch):
    monkeypatch.setattr(references, "USES", [lambda versions: {archived.pk: ["it answers in experiment 4"]}])
    assert "it answers in experiment 4" in refusal(archived)


def test_a_row_that_nobody_thought_of_keeps_it_too(archived, monkeypatch):
    PredictionFactory(version=archived)
    monkeypatch.setattr(references, "REFERENCES", [])
    monkeypatch.setattr(retention, "obstacles", lambda versions: {archived.pk: []})
    assert "something began to use it just now" in refusal(archived)
    assert archived.folder.is_dir()
    assert not DeletedVersion.objects.exists()


def test_a_refusal_is_in_the_audit_log(version, ada):
    refusal(version, by=ada)
    entry = AuditEntry.objects.filter(action="version.delete").get()
    assert (entry.outcome, entry.actor) == ("refused", ada)
    assert "it is not archived" in entry.after["reason"]


def test_nothing_is_deleted_while_the_disk_of_the_models_is_not_mounted(archived, settings, tmp_path):
    root, settings.MODEL_ROOT = settings.MODEL_ROOT, tmp_path
    assert "is the disk mounted?" in refusal(archived)
    settings.MODEL_ROOT = root
    assert archived.folder.is_dir()


def test_a_damaged_version_can_be_deleted(archived, committed):
    (archived.folder / "weights.safetensors").unlink()
    archived.verify()
    committed(archived)
    assert not archived.folder.exists()


def test_it_is_deleted_once(archived, committed):
    committed(archived)
    with pytest.raises(DeletionError, match="somebody else has just deleted it"):
        delete(archived, by=None, reason="never used")
    assert DeletedVersion.objects.count() == 1


# -- Crashes at each step


@pytest.mark.parametrize("after", range(6))
def test_a_crash_before_the_commit_leaves_the_version_whole(archived, monkeypatch, after, committed):
    """after: how many rows of any kind are written or removed before the database fails."""
    evaluation = make_evaluation(archived, patients=10)
    ThresholdSetFactory(version=archived)
    written = []

    def fail(execute, sql, params, many, context):
        if sql.startswith(("INSERT", "DELETE")):
            written.append(sql)
            if len(written) > after:
                raise DatabaseError("the power is gone")
        return execute(sql, params, many, context)

    with pytest.raises(DatabaseError), connection.execute_wrapper(fail):
        committed(archived)
    assert len(written) == after + 1
    archived.refresh_from_db()
    assert not archived.verify().is_damaged
    assert evaluation.images.labels.size
    assert not DeletedVersion.objects.exists()
    committed(archived)
    assert not archived.folder.exists()


def test_a_crash_after_the_commit_leaves_files_that_are_found_and_stand_in_nobodys_way(chest, archived):
    make_version(chest)
    evaluation = make_evaluation(archived, patients=10)
    backups.keep(archived)
    # The test's own transaction is never committed, so that nothing is done after the commit.
    delete(archived, by=None, reason="never used")
    assert archived.folder.is_dir()
    found = orphans.look(timezone.now().timestamp() + IN_TWO_DAYS)
    files = {path: path.exists() for path in (archived.folder, backups.folder_of(archived), file_of(evaluation.key))}
    assert all(files.values())
    assert {one.path for one in found.removable} >= set(files)
    assert make_version(chest).number == 3
    orphans.remove(found, by=None)
    assert not any(path.exists() for path in files)


def test_a_deletion_whose_audit_entry_fails_does_not_happen(archived, monkeypatch, committed):
    def fail(*args, **kwargs):
        raise DatabaseError("no audit")

    monkeypatch.setattr(audit, "record", fail)
    with pytest.raises(DatabaseError):
        committed(archived)
    assert ModelVersion.objects.filter(pk=archived.pk).exists()
    assert archived.folder.is_dir()


def test_files_that_cannot_be_removed_are_left_for_the_check(archived, committed, monkeypatch, caplog):
    def refuse(path):
        raise OSError("read-only")

    monkeypatch.setattr(retention.shutil, "rmtree", refuse)
    committed(archived)
    assert not ModelVersion.objects.exists()
    assert "could not be removed; registry_check finds it" in caplog.text


# -- At the same time


@pytest.mark.parametrize("other", ["reopen", "activate", "plan", "verify", "delete"])
def test_what_comes_after_a_deletion_is_told_so(archived, committed, other):
    stale = ModelVersion.objects.select_related("condition").get(pk=archived.pk)
    kept, folder = archived.folder.with_name("kept"), archived.folder
    folder.rename(kept)
    committed(archived)
    kept.rename(folder)
    later = timezone.now() + timedelta(days=1)
    deeds = {
        "reopen": lambda: stale.reopen(by=None, reason="after all"),
        "activate": lambda: activate_anyway(stale),
        "plan": lambda: plan_anyway(stale, later),
        "delete": lambda: delete(stale, by=None, reason="never used"),
        "verify": lambda: stale.verify(),
    }
    if other == "verify":
        deeds[other]()
        assert not AuditEntry.objects.filter(action="version.damaged").exists()
        return
    with pytest.raises((StateError, ActivationError, DeletionError), match=r"deleted (it|meanwhile)"):
        deeds[other]()


def activate_anyway(version):
    version.state = "candidate"
    version.activate(by=None, reason="better")


def plan_anyway(version, at):
    version.state = "candidate"
    ScheduledActivation.objects.plan(version, at, by=None, reason="better")


@pytest.mark.django_db(transaction=True)
def test_of_a_deletion_and_an_activation_at_once_one_wins():
    """Reopened and activated by the one, deleted by the other: in service and there, or gone and not in service."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite in memory refuses a second writer instead of letting it wait; runs on PostgreSQL")
    chest = ConditionFactory(slug="chest")
    version = make_version(chest)
    version.archive(by=None, reason="superseded")
    barrier, told = threading.Barrier(2), []

    def work(deed):
        try:
            mine = ModelVersion.objects.select_related("condition").get(pk=version.pk)
            barrier.wait(10)
            deed(mine)
        except (StateError, ActivationError, DeletionError) as error:
            told.append(str(error))
        finally:
            connection.close()

    def use(mine):
        mine.reopen(by=None, reason="after all")
        mine.activate(by=None, reason="better")

    deeds = [use, lambda mine: delete(mine, by=None, reason="never used")]
    threads = [threading.Thread(target=work, args=[deed]) for deed in deeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(told) == 1
    there = ModelVersion.objects.filter(pk=version.pk).exists()
    assert there == version.folder.is_dir() == chest.activations.exists()
    assert there != DeletedVersion.objects.exists()


# -- By page, API and command


def test_who_may_not_delete_is_not_offered_it(archived, alice, client):
    client.force_login(alice)
    address = reverse("registry:versions-delete")
    assert address not in client.get(archived.get_absolute_url()).content.decode()
    assert client.get(f"{address}?version={archived.pk}").status_code == 403
    assert client.post(address, {"version": archived.pk, "reason": "x"}).status_code == 403
    assert client.delete(reverse("api:version-detail", args=[archived.pk])).status_code == 403


def test_a_remover_deletes_on_a_page_that_says_what_goes(archived, ada, client, django_capture_on_commit_callbacks):
    client.force_login(ada)
    address = reverse("registry:versions-delete")
    assert address in client.get(archived.get_absolute_url()).content.decode()
    page = client.get(f"{address}?version={archived.pk}").content.decode()
    assert "chest v1" in page
    assert "never be given again" in page
    with django_capture_on_commit_callbacks(execute=True):
        page = client.post(address, {"version": archived.pk, "reason": "never used"}, follow=True).content.decode()
    assert "chest v1 was deleted." in page
    assert DeletedVersion.objects.get().by == ada
    assert not archived.folder.exists()


def test_the_page_says_why_a_version_cannot_be_deleted(version, ada, client):
    client.force_login(ada)
    address = reverse("registry:versions-delete")
    assert "it is not archived" in client.get(f"{address}?version={version.pk}").content.decode()
    page = client.post(address, {"version": version.pk, "reason": "x"}, follow=True).content.decode()
    assert "chest v1 was not deleted: it is not archived" in page
    assert ModelVersion.objects.filter(pk=version.pk).exists()


def test_the_page_wants_a_reason(archived, ada, client):
    client.force_login(ada)
    answer = client.post(reverse("registry:versions-delete"), {"version": archived.pk, "reason": " "})
    assert answer.status_code == 400
    assert "Give the reason" in answer.content.decode()
    assert ModelVersion.objects.filter(pk=archived.pk).exists()


def test_the_api_deletes_with_a_reason_and_says_why_not(chest, archived, ada, client):
    candidate = make_version(chest)
    client.force_login(ada)
    answer = client.delete(
        reverse("api:version-detail", args=[candidate.pk]), {"reason": "x"}, content_type="application/json"
    )
    assert answer.status_code == 409
    assert "it is not archived" in answer.json()["detail"]
    assert client.delete(reverse("api:version-detail", args=[archived.pk])).status_code == 400
    answer = client.delete(f"{reverse('api:version-detail', args=[archived.pk])}?reason=never+used")
    assert answer.status_code == 204
    assert DeletedVersion.objects.get().reason == "never used"


@pytest.mark.parametrize(
    "body", ["[1]", '"unused"', "1", "null", "{", '{"reason": {"a": 1}}', '{"reason": "a\\u0000"}']
)
def test_a_body_that_holds_no_reason_is_told_so(archived, ada, client, body):
    client.force_login(ada)
    answer = client.delete(reverse("api:version-detail", args=[archived.pk]), body, content_type="application/json")
    assert answer.status_code == 400
    assert ModelVersion.objects.filter(pk=archived.pk).exists()


def test_the_command_deletes_and_prints_one_json_object(archived, ada):
    out = StringIO()
    call_command("delete_version", "chest", "1", reason="never used", user=ada.username, json=True, stdout=out)
    told = json.loads(out.getvalue())
    assert (told["condition"], told["version"], told["reason"]) == ("chest", 1, "never used")
    assert told["freed"] > 0
    assert DeletedVersion.objects.get().by == ada


def test_the_command_refuses_what_the_page_refuses(version, alice, charlie):
    with pytest.raises(CommandError, match="it is not archived"):
        call_command("delete_version", "chest", "1", reason="x", stdout=StringIO())
    with pytest.raises(CommandError, match="no role that allows this"):
        call_command("delete_version", "chest", "1", reason="x", user="alice", stdout=StringIO())
    with pytest.raises(CommandError, match="There is no version 9"):
        call_command("delete_version", "chest", "9", reason="x", stdout=StringIO())


def test_another_teams_version_is_not_deleted(archived, client):
    stranger = UserFactory(roles=["version remover"])
    client.force_login(stranger)
    page = client.get(f"{reverse('registry:versions-delete')}?version={archived.pk}")
    assert page.status_code == 404
    assert client.post(reverse("registry:versions-delete"), {"version": archived.pk, "reason": "x"}).status_code == 404
    answer = client.delete(f"{reverse('api:version-detail', args=[archived.pk])}?reason=x")
    assert answer.status_code == 404
