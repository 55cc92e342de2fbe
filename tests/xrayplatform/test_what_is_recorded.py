"""Looking at images and answers, taking them along, coming in and being refused: each leaves an entry."""

import pytest
from django.urls import reverse

from xrayplatform.audit import AuditEntry

# fmt: off
LOOKING = [
    ("datasets:image-list", "dataset", "dataset.view_images"),
    ("datasets:image-detail", "image", "image.view"),
    ("datasets:quality-report", "dataset", "dataset.view_quality"),
    ("registry:evaluation-print", "evaluation", "evaluation.print"),
    ("inference:prediction-detail", "prediction", "prediction.view"),
    ("inference:batch-detail", "batch", "batch.view"),
    ("inference:batch-csv", "batch", "batch.export"),
    ("api:image-list", "", "dataset.view_images"),
    ("api:prediction-detail", "prediction", "prediction.view"),
    ("api:predictionexport-fhir", "prediction", "prediction.export"),
    ("api:batch-items", "batch", "batch.view"),
    ("api:batch-results", "batch", "batch.export"),
    ("registry:version-card", "version", "version.card"),
]
# fmt: on


def entries(**wanted):
    return list(AuditEntry.objects.filter(**wanted).values_list("action", "outcome"))


@pytest.mark.parametrize(("name", "of", "action"), LOOKING, ids=[row[0] for row in LOOKING])
def test_who_looks_at_something_or_takes_it_along_leaves_an_entry(world, alice, client, name, of, action):
    client.force_login(alice)
    obj = getattr(world, of) if of else None
    key = [] if obj is None else [obj.slug if of == "condition" else obj.pk]
    query = {"as": "json"} if name == "registry:version-card" else {}
    response = client.get(reverse(name, args=key), query)
    if response.streaming:
        b"".join(response.streaming_content)
    assert response.status_code == 200
    assert (action, "success") in entries(actor=alice)


@pytest.mark.parametrize("name", ["xrayplatform:auditentry-list", "api:auditentry-list", "api:system-list"])
def test_who_may_not_is_refused_and_recorded(bob, client, name):
    client.force_login(bob)
    assert client.get(reverse(name)).status_code == 403
    assert entries(actor=bob) == [("access.refused", "refused")]


def test_coming_in_and_going_is_recorded_and_so_are_attempts(alice, client, password):
    login = reverse("xrayplatform:login")
    client.post(login, {"username": "alice", "password": "wrong"})
    client.post(login, {"username": "alice", "password": password})
    client.post(reverse("xrayplatform:logout"))
    found = AuditEntry.objects.order_by("seq").values_list("action", "outcome", "actor_name")
    assert list(found) == [
        ("user.login", "refused", "alice"),
        ("user.login", "success", "alice"),
        ("user.logout", "success", "alice"),
    ]


def test_a_token_that_is_made_or_refused_is_recorded(alice, client, password):
    for given in ("wrong", password):
        client.post(reverse("api:token-list"), {"username": "alice", "password": given})
    found = AuditEntry.objects.filter(action="token.create").order_by("seq").values_list("outcome", flat=True)
    assert list(found) == ["refused", "success"]


def test_reading_the_audit_log_as_a_file_is_recorded_and_reading_its_page_is_not(auditor, client):
    client.force_login(auditor)
    client.get(reverse("xrayplatform:auditentry-list"))
    client.get(reverse("xrayplatform:auditentry-export"))
    assert entries(actor=auditor) == [("audit.export", "success")]
