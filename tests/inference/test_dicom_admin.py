"""Administrators connect the platform with the hospital's devices and archives, and look after what gets stuck."""

from types import SimpleNamespace

import pytest
from django.contrib.auth.models import Permission
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ

from inference.models import DicomDelivery, DicomDestination, DicomRoute, ReceivedObject
from inference.receiving import analyse_received
from tests.factories import ConditionFactory, TeamFactory, UserFactory
from tests.inference.dicom_network import arrive, only_row, radiograph
from xrayplatform.audit import AuditEntry

CSTORE = {"name": "PACS", "kind": "cstore", "host": "pacs.hospital", "port": "104", "ae_title": "PACS", "report": "on"}
STOW = {"name": "Web", "kind": "stow", "url": "https://pacs.example/dicom-web", "report": "on", "active": "on"}


@pytest.fixture
def ada(client, administrator, team):
    """The browser of an administrator of the team."""
    team.members.add(administrator)
    client.force_login(administrator)
    return client


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def foreign():
    """A condition of another team."""
    return ConditionFactory(slug="foreign", name="Foreign", team=TeamFactory())


def url(model, page="changelist", *args):
    return reverse(f"admin:inference_{model.__name__.lower()}_{page}", args=args)


def add(browser, model, **fields):
    """What is wrong, by field; nothing when it was saved."""
    response = browser.post(url(model, "add"), fields)
    return dict(response.context["adminform"].form.errors) if response.status_code == 200 else {}


def act(browser, model, action, *rows):
    return browser.post(url(model), {"action": action, "_selected_action": [row.pk for row in rows]}, follow=True)


def said(response):
    return [str(message) for message in response.context["messages"]]


# -- Routes


def test_a_route_is_added_in_capitals_and_recorded(ada, administrator, chest):
    assert not add(ada, DicomRoute, position="5", modality="DX", body_part="CHEST", condition=chest.pk, active="on")
    made = DicomRoute.objects.get()
    assert (made.modality, made.body_part, made.condition) == ("DX", "CHEST", chest)
    entry = AuditEntry.objects.get(action="dicomroute.add")
    assert (entry.actor, entry.object_label) == (administrator, "DX CHEST to Chest")


@pytest.mark.parametrize("field", ["modality", "body_part"])
def test_what_no_dicom_header_can_hold_is_no_route(ada, chest, field):
    assert field in add(ada, DicomRoute, position="5", condition=chest.pk, **{field: "a\\b"})
    assert not DicomRoute.objects.exists()


def test_routes_to_other_teams_are_neither_seen_nor_made(ada, foreign):
    made = DicomRoute.objects.create(condition=foreign)
    assert "condition" in add(ada, DicomRoute, position="5", condition=foreign.pk)
    assert ada.get(url(DicomRoute, "change", made.pk)).status_code == 302
    assert "Foreign" not in ada.get(url(DicomRoute)).content.decode()


# -- Destinations


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (CSTORE, set()),
        (CSTORE | {"host": "", "port": "", "ae_title": ""}, {"host", "port", "ae_title"}),
        (CSTORE | {"ae_title": "SEVENTEEN_LETTERS"}, {"ae_title"}),
        (CSTORE | {"ae_title": "A\\B"}, {"ae_title"}),
        (CSTORE | {"port": "70000"}, {"port"}),
        (CSTORE | {"host": "http://pacs/"}, {"host"}),
        (STOW, set()),
        (STOW | {"url": ""}, {"url"}),
        (STOW | {"url": "ftp://pacs.example/"}, {"url"}),
        (STOW | {"url": "https://pacs.example/?a=b"}, {"url"}),
        (STOW | {"url": "https://user:word@pacs.example/"}, {"url"}),
        (STOW | {"url": "http://8.8.8.8/dicom-web"}, {"url"}),
        (STOW | {"url": "https://10.1.2.3/dicom-web"}, {"url"}),
        (STOW | {"url": "http://127.0.0.1/dicom-web"}, {"url"}),
    ],
)
def test_a_destination_has_what_a_delivery_needs(ada, fields, wrong):
    assert set(add(ada, DicomDestination, **fields)) == wrong
    assert DicomDestination.objects.exists() == (not wrong)


def test_within_a_listed_network_an_archive_needs_no_encryption(ada, settings):
    settings.WEBHOOK_PRIVATE_NETWORKS = ["10.0.0.0/8"]
    assert not add(ada, DicomDestination, **STOW | {"url": "http://10.1.2.3:8042/dicom-web"})


def test_the_secret_of_an_archive_is_kept_and_never_shown(ada):
    add(ada, DicomDestination, **STOW, authorization="Bearer secret-word")
    made = DicomDestination.objects.get()
    assert "secret-word" not in ada.get(url(DicomDestination, "change", made.pk)).content.decode()
    ada.post(url(DicomDestination, "change", made.pk), STOW | {"name": "Archive"})
    made.refresh_from_db()
    assert (made.name, made.authorization) == ("Archive", "Bearer secret-word")
    assert "secret-word" not in str(list(AuditEntry.objects.values()))


def test_who_may_only_look_sees_no_secret_either(client, roles):
    made = DicomDestination.objects.create(**STOW | {"report": True, "active": True}, authorization="secret-word")
    viewer = UserFactory(is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename="view_dicomdestination"))
    client.force_login(viewer)
    shown = client.get(url(DicomDestination, "change", made.pk))
    assert shown.status_code == 200
    assert "secret-word" not in shown.content.decode()


def test_conditions_of_other_teams_stay_chosen_and_unseen(ada, chest, foreign):
    add(ada, DicomDestination, **CSTORE, conditions=[chest.pk])
    made = DicomDestination.objects.get()
    made.conditions.add(foreign)
    assert "Foreign" not in ada.get(url(DicomDestination, "change", made.pk)).content.decode()
    ada.post(url(DicomDestination, "change", made.pk), CSTORE)
    assert list(made.conditions.all()) == [foreign]


# -- What was received


@pytest.fixture
def unrouted(db):
    analyse_received(arrive(radiograph(BodyPartExamined="KNEE")))
    return only_row()


def test_what_no_route_takes_is_analysed_for_a_condition_by_hand(ada, administrator, chest, unrouted):
    response = act(ada, ReceivedObject, "analyse_for_chest", unrouted)
    assert said(response) == ["Handed to the queue: 1."]
    unrouted.refresh_from_db()
    assert (unrouted.state, unrouted.condition) == ("waiting", chest)
    assert [row.task["args"] for row in OrmQ.objects.all()] == [(unrouted.file,)]
    assert AuditEntry.objects.get(action="dicom.route", outcome="success").actor == administrator


def test_after_a_route_was_made_its_images_are_found_again(ada, chest, unrouted):
    DicomRoute.objects.create(body_part="KNEE", condition=chest)
    act(ada, ReceivedObject, "analyse_by_routes", unrouted)
    analyse_received(unrouted.file)
    unrouted.refresh_from_db()
    assert unrouted.condition == chest


def test_conditions_of_other_teams_cannot_be_chosen(ada, foreign, unrouted):
    assert "Foreign" not in ada.get(url(ReceivedObject)).content.decode()
    act(ada, ReceivedObject, "analyse_for_foreign", unrouted)
    unrouted.refresh_from_db()
    assert (unrouted.state, unrouted.condition) == ("unrouted", None)


def test_what_is_not_kept_any_more_is_told(ada, chest, unrouted):
    unrouted.drop_file()
    (words,) = said(act(ada, ReceivedObject, "analyse_for_chest", unrouted))
    assert "send those again from the device" in words


def test_images_of_other_teams_are_not_seen(ada, foreign):
    row = ReceivedObject.objects.create(sop_uid="1.2.3", study_uid="1", source="ROOM9", condition=foreign)
    assert "ROOM9" not in ada.get(url(ReceivedObject)).content.decode()
    assert ada.get(url(ReceivedObject, "change", row.pk)).status_code == 302


# -- Deliveries


@pytest.fixture
def failed(chest):
    name = arrive()
    received = ReceivedObject.objects.create(
        file=name, sop_uid="1.2.3", study_uid="1", source="ROOM1", condition=chest, state="answered"
    )
    archive = DicomDestination.objects.create(name="PACS", kind="cstore", host="h", port=1, ae_title="A")
    fields = {"what": "report", "state": "failed", "tries": 5, "message": "away", "next_at": timezone.now()}
    return received.deliveries.create(destination=archive, **fields)


def test_a_failed_delivery_is_sent_again(ada, administrator, failed):
    assert said(act(ada, DicomDelivery, "send_again", failed)) == ["Under way: 1."]
    failed.refresh_from_db()
    assert (failed.state, failed.tries) == ("waiting", 0)
    assert [row.task["args"] for row in OrmQ.objects.all()] == [(failed.pk,)]
    assert AuditEntry.objects.get(action="dicom.send_again").actor == administrator


def test_a_delivery_without_its_image_is_not_sent_again(ada, failed):
    failed.received.drop_file()
    (words,) = said(act(ada, DicomDelivery, "send_again", failed))
    assert "Not sent: 1" in words


def test_deliveries_of_other_teams_are_not_seen_and_not_sent(client, roles, failed):
    other = UserFactory(roles=["administrator"], is_staff=True)
    client.force_login(other)
    assert "away" not in client.get(url(DicomDelivery)).content.decode()
    act(client, DicomDelivery, "send_again", failed)
    failed.refresh_from_db()
    assert failed.state == "failed"


@pytest.mark.parametrize(("model", "action"), [(ReceivedObject, "analyse_by_routes"), (DicomDelivery, "send_again")])
def test_who_may_only_look_has_no_action(client, roles, failed, model, action):
    viewer = UserFactory(is_staff=True, is_active=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__in=["view_receivedobject", "view_dicomdelivery"]))
    failed.received.condition.team.members.add(viewer)
    client.force_login(viewer)
    row = SimpleNamespace(pk=model.objects.get().pk)
    assert client.get(url(model)).status_code == 200
    act(client, model, action, row)
    failed.refresh_from_db()
    assert (failed.state, only_row().state) == ("failed", "answered")
