"""Earlier analyses: which are listed, and by what they are found."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from inference.models import Verdict
from tests.factories import ConditionFactory, ModelVersionFactory, PredictionFactory, TeamFactory
from tests.tampering import tampered
from xrayplatform.audit import AuditEntry

PAGE = reverse("inference:prediction-list")


@pytest.fixture
def version(team):
    condition = ConditionFactory(slug="chest", name="Chest", team=team)
    return ModelVersionFactory(condition=condition, number=1)


@pytest.fixture
def make(version, bob):
    def make(**fields):
        return PredictionFactory(**{"id": uuid4(), "version": version, "created_by": bob} | fields)

    return make


@pytest.fixture
def listed(client, bob):
    client.force_login(bob)

    def listed(**query):
        response = client.get(PAGE, query)
        assert response.status_code == 200
        return set(response.context["page"])

    return listed


def test_answers_of_shadows_and_of_other_teams_are_not_listed(make, listed):
    shown = make()
    make(shown=False, paired_with=shown)
    of_no_team = make(version=ModelVersionFactory(condition__team=None))
    make(version=ModelVersionFactory(condition__team=TeamFactory()))
    assert listed() == {shown, of_no_team}


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ({"decision": "NORMAL"}, {"decision": "NORMAL"}),
        ({"channel": "api"}, {"channel": "api"}),
        ({"who": "ALICE"}, {"created_by": "alice"}),
    ],
    ids=lambda found: next(iter(found)),
)
def test_they_are_found_by_decision_way_and_person(make, listed, alice, query, fields):
    wanted = make(**{name: alice if value == "alice" else value for name, value in fields.items()})
    other = make()
    assert listed() == {wanted, other}
    assert listed(**query) == {wanted}


def test_they_are_found_by_condition_and_version(make, listed, version, team):
    second = ModelVersionFactory(condition=version.condition, number=2)
    knee = ModelVersionFactory(condition=ConditionFactory(slug="knee", team=team))
    first, by_second, of_knee = make(), make(version=second), make(version=knee)
    assert listed(condition="chest") == {first, by_second}
    assert listed(version=second.pk) == {by_second}
    assert listed(condition="knee", version=knee.pk) == {of_knee}
    assert listed(condition="knee", version=version.pk) == set()


def test_they_are_found_by_day(make, listed):
    old, new = make(), make()
    tampered(old, created_at=timezone.now() - timedelta(days=3))
    today = timezone.localdate()
    assert listed(since=today) == {new}
    assert listed(until=today - timedelta(days=1)) == {old}
    assert listed(since=today - timedelta(days=5), until=today) == {old, new}


def test_they_are_found_by_what_readers_said(make, listed, alice, bob):
    silent, agreed, contradicted, taken_back = make(), make(), make(), make()
    Verdict.objects.give(agreed, alice, True)
    Verdict.objects.give(contradicted, alice, True)
    Verdict.objects.give(contradicted, bob, False)
    Verdict.objects.give(taken_back, bob, False)
    Verdict.objects.give(taken_back, bob, True)
    assert listed(verdict="given") == {agreed, contradicted, taken_back}
    assert listed(verdict="none") == {silent}
    assert listed(verdict="not mine") == {silent, agreed}
    assert listed(verdict="disagreed") == {contradicted}


def test_a_filter_that_cannot_be_is_named_and_another_teams_condition_is_none(make, client, bob):
    make()
    foreign = ConditionFactory(slug="secret", name="Secret", team=TeamFactory())
    client.force_login(bob)
    page = client.get(PAGE, {"condition": foreign.slug, "since": "yesterday"}).content.decode()
    assert "Enter a valid date." in page and "Select a valid choice." in page and "Secret" not in page


def test_the_audit_log_says_what_was_looked_for(make, listed):
    make()
    listed(decision="NORMAL", who="alice")
    entry = AuditEntry.objects.get(action="prediction.list")
    assert entry.after == {"page": 1, "decision": "NORMAL", "who": "alice"}


def test_more_rows_do_not_need_more_queries(make, listed, alice, bob):
    def count():
        with CaptureQueriesContext(connection) as queries:
            listed()
        return len(queries)

    Verdict.objects.give(make(), bob, True)
    # The first request of a session writes it.
    count()
    few = count()
    for _ in range(12):
        answer = make()
        Verdict.objects.give(answer, bob, True)
        Verdict.objects.give(answer, alice, False)
    assert count() == few


def test_the_page_says_when_nothing_is_like_that(make, client, bob):
    make()
    client.force_login(bob)
    page = client.get(PAGE, {"verdict": "given"}).content.decode()
    assert "No analysis like that" in page and "Any" in page
