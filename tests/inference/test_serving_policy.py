"""What the checks do in a condition: who may decide it, which values make sense, and that nobody undoes another's."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from inference.gate import CHECKS
from inference.models import ServingPolicy
from inference.policies import EXPLANATIONS, PolicyConflict, PolicyError, change, values_of
from tests.factories import ConditionFactory
from xrayplatform.audit import AuditEntry

pytestmark = pytest.mark.django_db
API = "/api/v1/policies/chest/"


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def page(chest):
    return reverse("inference:policy-edit", args=["chest"])


def filled(response, **changes):
    """What a browser would send after these changes."""
    form = response.context["form"]
    return {name: form[name].initial for name in form.fields} | changes


def test_every_check_is_explained_and_has_a_field(chest):
    assert set(EXPLANATIONS) == set(CHECKS)
    assert len(values_of(ServingPolicy.objects.of(chest))) == len(CHECKS) + 5


def test_a_model_manager_changes_it_and_the_audit_log_has_both_values(logged_in, page, chest, alice):
    response = logged_in.post(page, filled(logged_in.get(page), on_unlike="refuse", max_latency_ms="1500.5"))
    assert response.url == page
    policy = ServingPolicy.objects.get(condition=chest)
    assert (policy.on_unlike, policy.max_latency_ms, policy.on_size) == ("refuse", 1500.5, "warn")
    entry = AuditEntry.objects.get(action="servingpolicy.change")
    assert (entry.actor, entry.before, entry.after) == (
        alice,
        {"on_unlike": "warn", "max_latency_ms": 2000},
        {"on_unlike": "refuse", "max_latency_ms": 1500.5},
    )


def test_saving_what_is_there_changes_nothing(logged_in, page):
    logged_in.post(page, filled(logged_in.get(page)))
    assert not ServingPolicy.objects.exists() and not AuditEntry.objects.filter(action="servingpolicy.change").exists()


def test_of_two_who_decide_at_once_the_second_is_told_and_nothing_is_undone(logged_in, page, chest):
    seen = filled(logged_in.get(page), on_size="refuse")
    change(chest, {"on_unlike": "refuse"}, by=None)
    response = logged_in.post(page, seen)
    assert response.status_code == 409 and "Somebody else has changed this policy" in response.content.decode()
    assert response.context["form"]["on_unlike"].initial == "refuse"
    policy = ServingPolicy.objects.get()
    assert (policy.on_size, policy.on_unlike) == ("warn", "refuse")
    assert logged_in.post(page, filled(response, on_size="refuse")).status_code == 302


def test_a_form_whose_seen_values_were_forged_is_refused(logged_in, page):
    response = logged_in.post(page, filled(logged_in.get(page), seen="forged", on_size="refuse"))
    assert response.status_code == 400 and not ServingPolicy.objects.exists()
    assert "Load the page again" in response.content.decode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_refusal_share", "1.5"),
        ("max_error_share", "-0.1"),
        ("max_latency_ms", "0"),
        ("max_latency_ms", "nan"),
        ("max_psi", "inf"),
        ("min_agreement", "80"),
        ("on_unlike", "ignore"),
    ],
)
def test_values_that_make_no_sense_are_refused_everywhere(logged_in, page, chest, name, value):
    response = logged_in.post(page, filled(logged_in.get(page), **{name: value}))
    assert response.status_code == 400 and list(response.context["form"].errors) == [name]
    answer = logged_in.patch(API, {name: value}, content_type="application/json")
    assert answer.status_code == 400 and list(answer.json()["errors"]) == [name]
    with pytest.raises(CommandError, match=name):
        call_command("serving_policy", "chest", "--set", f"{name}={value}", stdout=StringIO())
    with pytest.raises(PolicyError, match=name):
        change(chest, {name: value if name == "on_unlike" else float(value)}, by=None)
    assert not ServingPolicy.objects.exists()


def test_a_reader_sees_it_and_changes_nothing(client, bob, page):
    client.force_login(bob)
    shown = client.get(page)
    assert (
        shown.status_code == 200 and b"<select" not in shown.content and b"A model manager can change" in shown.content
    )
    assert client.post(page, filled(shown)).status_code == 403
    assert client.get(API).json()["on_unlike"] == "warn"
    assert client.patch(API, {"on_unlike": "refuse"}, content_type="application/json").status_code == 403
    assert not ServingPolicy.objects.exists()


def test_another_teams_policy_does_not_exist(client, charlie, page):
    client.force_login(charlie)
    assert client.get(page).status_code == client.get(API).status_code == 404
    assert client.patch(API, {"on_unlike": "refuse"}, content_type="application/json").status_code == 404


def test_the_api_changes_what_is_sent_and_compares_what_was_seen(logged_in, chest):
    seen = logged_in.get(API).json()
    body = {"on_unlike": "refuse", "seen": {"on_unlike": seen["on_unlike"]}}
    assert logged_in.patch(API, body, content_type="application/json").json() == seen | {"on_unlike": "refuse"}
    again = logged_in.patch(API, body | {"on_unlike": "warn"}, content_type="application/json")
    assert again.status_code == 409 and ServingPolicy.objects.get().on_unlike == "refuse"
    wrong = logged_in.patch(API, {"on_unlikely": "refuse"}, content_type="application/json")
    assert wrong.status_code == 400 and "There is no field on_unlikely" in str(wrong.json()["errors"])


def test_the_command_shows_and_changes_it(chest, alice, bob):
    out = StringIO()
    call_command("serving_policy", "chest", "--set", "on_unlike=refuse", "max_psi=0.4", json=True, stdout=out)
    assert json.loads(out.getvalue()) == {"condition": "chest", **values_of(ServingPolicy.objects.get())}
    out = StringIO()
    call_command("serving_policy", "chest", user="bob", stdout=out)
    assert "on_unlike = refuse" in out.getvalue() and "max_psi = 0.4 (population stability index)" in out.getvalue()
    with pytest.raises(CommandError, match="no role"):
        call_command("serving_policy", "chest", "--set", "on_size=warn", user="bob", stdout=StringIO())
    with pytest.raises(CommandError, match="no condition"):
        call_command("serving_policy", "knee", stdout=StringIO())


def test_a_conflict_is_one_only_in_what_was_looked_at(chest):
    change(chest, {"on_unlike": "refuse"}, by=None)
    change(chest, {"on_size": "refuse"}, by=None, seen={"on_size": "warn"})
    with pytest.raises(PolicyConflict):
        change(chest, {"on_size": "warn"}, by=None, seen={"on_size": "warn"})
