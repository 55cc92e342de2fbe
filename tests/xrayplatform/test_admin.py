"""The admin: every table is there or hidden on purpose, and what never changes offers no way to change it."""

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group
from django.urls import reverse
from django.utils import timezone
from knox.models import AuthToken

from inference.models import (
    DicomDestination,
    DicomRoute,
    LowerPrecision,
    MonitoringAlert,
    ReceivedObject,
    ServingPolicy,
    ServingProcess,
    ServingReference,
    Unanswered,
    Verdict,
)
from registry.models import DeletedVersion, IntegrityCheck, TrustedOrigin, VerificationRun, Webhook
from tests.factories import (
    BatchFactory,
    ConditionFactory,
    ExperimentFactory,
    ModelVersionFactory,
    MonitoringAlertFactory,
    PredictionFactory,
    TeamFactory,
    UserFactory,
)
from training.models import TrainingQueue
from xrayplatform import audit
from xrayplatform.audit import AuditEntry
from xrayplatform.system import WorkerSign

# Django's own, and the queue's: a task's function is any importable path, so who edits them can run code.
HIDDEN = {
    "admin.logentry", "auth.permission", "contenttypes.contenttype", "sessions.session", "xrayplatform.systemaccess",
    "django_q.schedule", "django_q.task", "django_q.success", "django_q.failure", "django_q.ormq",
    "datasets.scannedfolder",
    # Shown with the import that was made of it.
    "registry.receivedpackage",
    # What somebody was told is nobody else's business.
    "xrayplatform.notification", "xrayplatform.idempotentanswer",
    # Where the audit log ends; System Status tells whether it does.
    "xrayplatform.audithead",
    # Shown with its batch.
    "inference.batchitem",
}  # fmt: skip
READ_ONLY = {
    "xrayplatform.auditentry", "xrayplatform.workersign", "datasets.datasetimage", "datasets.scan",
    "datasets.fileproblem", "datasets.finding", "datasets.decision", "datasets.upload",
    "datasets.preparation", "datasets.preparedimage", "training.trainingrun", "training.epochmetric",
    "training.search", "training.trainingqueue", "training.runnote",
    "training.speedtest", "training.savedpreset",
    "registry.modelversion", "registry.deployment", "registry.activation", "registry.evaluation",
    "registry.integritycheck", "registry.scheduledactivation", "registry.verificationrun", "registry.webhookdelivery",
    "registry.thresholdset", "registry.packageimport", "registry.statechange", "registry.versiontag",
    "registry.conditionexport", "registry.versionnote", "registry.deletedversion", "inference.prediction",
    "inference.evaluationrun", "auth.group",
    "inference.receivedobject", "inference.dicomdelivery",
    "inference.servingpolicy", "inference.servingreference", "inference.lowerprecision", "inference.servingprocess",
    "inference.unanswered", "inference.batch", "inference.verdict", "inference.experiment", "inference.monitoringalert",
}  # fmt: skip
EDITABLE = {"xrayplatform.team", "xrayplatform.condition", "datasets.dataset", "auth.user", "knox.authtoken"}
EDITABLE |= {"registry.trustedorigin", "registry.webhook", "inference.dicomroute", "inference.dicomdestination"}


def label(model):
    return f"{model._meta.app_label}.{model._meta.model_name}"


def urls_of(model, *pages):
    return [reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}") for page in pages]


def change_url(obj):
    return reverse(f"admin:{obj._meta.app_label}_{obj._meta.model_name}_change", args=[obj.pk])


@pytest.fixture
def rows(world, alice):
    """A row of every registered table."""
    prepared = {"row": 0, "path": "NORMAL/0.png", "digest": "d", "class_name": "NORMAL", "split": "train", "group": 0}
    world.preparation.manifest.create(**prepared)
    world.dataset.file_problems.create(path="NORMAL/x.png", code="empty", reason="The file is empty.")
    world.image.decide("by-hand", "exclude", "test", by=alice)
    world.condition.activations.create(to_version=world.version, by=alice)
    apps.get_model("registry", "Deployment").objects.create(condition=world.condition, active=world.version)
    TrustedOrigin.objects.create(name="Friends", public_key="ab" * 32)
    world.version.approve(by=alice, reason="Read by two.")
    world.version.add_note("Looks fine.", by=alice)
    gone = {"version_key": 10**6, "number": 99, "sha256": "a" * 64, "size": 1, "made_at": timezone.now()}
    DeletedVersion.objects.create(condition=world.condition, architecture="VGG16", reason="unused", by=alice, **gone)
    IntegrityCheck.objects.note(world.version, None)
    VerificationRun.objects.create()
    Webhook.objects.create(name="PACS", url="https://pacs.example/", secret="s" * 16, events=[]).enqueue("x.y", {})
    DicomRoute.objects.create(condition=world.condition)
    received = ReceivedObject.objects.create(sop_uid="1.2", study_uid="1.3", source="ROOM1", condition=world.condition)
    archive = DicomDestination.objects.create(name="PACS", kind="stow", url="https://pacs.example/")
    received.deliveries.create(destination=archive, what="report", next_at=timezone.now())
    ServingPolicy.objects.create(condition=world.condition)
    ServingReference.objects.create(version=world.version)
    LowerPrecision.objects.create(version=world.version, precision="bf16", tolerance=0.01)
    ServingProcess.objects.create(host="web", pid=1, condition=world.condition, version=world.version, epoch=1)
    Unanswered.objects.create(condition=world.condition, kind="busy", text="Busy.", channel="web")
    Verdict.objects.create(prediction=world.prediction, agrees=True, label="PNEUMONIA", by=alice)
    MonitoringAlert.objects.create(
        condition=world.condition, week=timezone.now().date(), measure="errors", value=0.5, limit=0.1, text="Too many."
    )
    world.run.notes.create(author=alice, text="Looks fine.")
    TrainingQueue.current()
    WorkerSign.leave("train")
    AuthToken.objects.create(alice)
    audit.record("x.y", world.version, actor=alice)
    return {model: model._base_manager.first() for model in admin.site._registry}


def test_every_table_is_in_the_admin_or_hidden_on_purpose():
    registered = {label(model) for model in admin.site._registry}
    assert registered == READ_ONLY | EDITABLE
    assert {label(model) for model in apps.get_models()} == registered | HIDDEN


def test_lists_and_rows_open_for_a_superuser(rows, admin_client):
    for model, obj in rows.items():
        assert obj is not None, f"no row of {label(model)} to look at"
        for url in (*urls_of(model, "changelist"), change_url(obj)):
            assert admin_client.get(url).status_code == 200, url


def test_lists_can_be_searched(rows, admin_client):
    for model, options in admin.site._registry.items():
        if options.search_fields:
            assert admin_client.get(urls_of(model, "changelist")[0], {"q": "a"}).status_code == 200, label(model)


def test_not_even_a_superuser_adds_changes_or_deletes_what_never_changes(rows, admin_client):
    for model, obj in rows.items():
        if label(model) not in READ_ONLY:
            continue
        before = model._base_manager.filter(pk=obj.pk).values().get()
        delete = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_delete", args=[obj.pk])
        for url in (*urls_of(model, "add"), change_url(obj), delete):
            assert admin_client.post(url, {"post": "yes"}).status_code == 403, url
        assert model._base_manager.filter(pk=obj.pk).values().get() == before
        assert 'name="_save"' not in admin_client.get(change_url(obj)).content.decode()


def test_no_action_deletes_rows_that_never_change(rows, admin_client):
    for model, obj in rows.items():
        if label(model) in READ_ONLY:
            selected = {"action": "delete_selected", "_selected_action": obj.pk, "post": "yes"}
            admin_client.post(urls_of(model, "changelist")[0], selected)
            assert model._base_manager.filter(pk=obj.pk).exists(), label(model)


def test_the_tables_of_the_queue_have_no_address(admin_client):
    for name in ("schedule", "ormq", "success", "failure", "task"):
        assert admin_client.get(f"/admin/django_q/{name}/").status_code == 404


def test_of_a_dataset_only_the_condition_can_be_chosen(rows, admin_client, world):
    page = admin_client.get(change_url(world.dataset))
    assert list(page.context["adminform"].form.fields) == ["condition"]


def test_an_administrator_sees_tables_of_the_platform_but_not_the_audit_log(rows, client, administrator, world):
    client.force_login(administrator)
    assert client.get(change_url(world.team)).status_code == 200
    assert client.get(urls_of(AuditEntry, "changelist")[0]).status_code == 403


def test_a_change_of_an_administrator_is_in_the_audit_log(client, administrator, team, alice):
    client.force_login(administrator)
    response = client.post(change_url(team), {"name": "Lung clinic", "members": [alice.pk]})
    assert response.status_code == 302
    team.refresh_from_db()
    assert team.name == "Lung clinic"
    entry = AuditEntry.objects.get(action="team.change")
    assert (entry.actor, entry.object_label) == (administrator, "Lung clinic")


def test_a_change_of_the_training_limit_keeps_both_values(client, administrator, team):
    client.force_login(administrator)
    for limit in ("2", "0"):
        client.post(change_url(team), {"name": team.name, "members": [administrator.pk], "training_limit": limit})
    newest = AuditEntry.objects.filter(action="team.training_limit").order_by("-seq").first()
    assert (newest.before, newest.after) == ({"training_limit": 2}, {"training_limit": 0})


def user_form(user, **changes):
    fields = {"username": user.username, "date_joined_0": "2026-01-01", "date_joined_1": "00:00:00", "is_active": "on"}
    return fields | changes


def test_an_administrator_gives_a_role_and_it_is_recorded(client, administrator, bob):
    client.force_login(administrator)
    role = Group.objects.get(name="model manager")
    assert client.post(change_url(bob), user_form(bob, groups=[role.pk])).status_code == 302
    assert [group.name for group in bob.groups.all()] == ["model manager"]
    assert AuditEntry.objects.filter(action="user.change", actor=administrator, object_id=str(bob.pk)).exists()


def test_an_administrator_cannot_make_a_superuser_nor_give_single_permissions(client, administrator, bob):
    client.force_login(administrator)
    client.post(change_url(bob), user_form(bob, is_superuser="on", user_permissions=[1, 2]))
    bob.refresh_from_db()
    assert not bob.is_superuser
    assert not bob.user_permissions.exists()


def test_an_administrator_can_neither_change_a_superuser_nor_set_the_password_of_one(client, administrator, admin_user):
    client.force_login(administrator)
    password = admin_user.password
    assert client.post(change_url(admin_user), user_form(admin_user, username="mine")).status_code == 403
    url = reverse("admin:auth_user_password_change", args=[admin_user.pk])
    answer = client.post(url, {"password1": "a new long one 9", "password2": "a new long one 9"})
    assert answer.status_code == 403
    admin_user.refresh_from_db()
    assert (admin_user.username, admin_user.password) == ("admin", password)


def test_nobody_deletes_a_user(admin_client):
    user = UserFactory()
    url = reverse("admin:auth_user_delete", args=[user.pk])
    assert admin_client.post(url, {"post": "yes"}).status_code == 403
    assert type(user).objects.filter(pk=user.pk).exists()


def test_an_administrator_revokes_a_token(client, administrator, alice):
    token, _ = AuthToken.objects.create(alice)
    client.force_login(administrator)
    url = reverse("admin:knox_authtoken_delete", args=[token.pk])
    assert client.post(url, {"post": "yes"}).status_code == 302
    assert not AuthToken.objects.exists()
    assert AuditEntry.objects.filter(action="authtoken.delete", actor=administrator).exists()


def test_an_administrator_sees_and_edits_what_the_own_teams_may_see_only(rows, world, administrator, client):
    client.force_login(administrator)
    hidden = [world.dataset, world.preparation, world.run, world.version, world.prediction, world.image, world.metric]
    hidden += [world.finding, world.upload, world.search]
    for obj in hidden:
        assert client.get(change_url(obj)).status_code == 302
    world.team.members.add(administrator)
    for obj in hidden:
        assert client.get(change_url(obj)).status_code == 200
    assert AuditEntry.objects.filter(action="prediction.view", actor=administrator).exists()


def test_filters_name_no_conditions_of_other_teams(rows, world, administrator, client):
    for _ in range(2):
        foreign = ConditionFactory(name="Of others", team=TeamFactory())
        BatchFactory(condition=foreign)
        ExperimentFactory(condition=foreign)
        PredictionFactory(version=ModelVersionFactory(condition=foreign))
        MonitoringAlertFactory(condition=foreign)
    world.team.members.add(administrator)
    client.force_login(administrator)
    for model in ("batch", "experiment", "prediction", "verdict", "unanswered", "monitoringalert", "receivedobject"):
        page = client.get(reverse(f"admin:inference_{model}_changelist"))
        assert page.status_code == 200 and "Of others" not in page.content.decode(), model


def test_an_administrator_points_a_dataset_at_another_condition(world, administrator, client):
    world.team.members.add(administrator)
    other = ConditionFactory(team=world.team)
    client.force_login(administrator)
    client.post(change_url(world.dataset), {"condition": other.pk})
    world.dataset.refresh_from_db()
    assert world.dataset.condition == other
    assert AuditEntry.objects.filter(action="dataset.change", actor=administrator).exists()
