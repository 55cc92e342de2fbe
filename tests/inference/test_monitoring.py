"""Figures of weeks in use, per version, and the alerts that follow from them."""

import json
from datetime import date, datetime, timedelta
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from django.core.management import call_command
from django.utils import timezone

from inference import alerting, tasks
from inference.models import MonitoringAlert, ServingPolicy, Verdict
from inference.monitoring import _compared, figures, monday, this_week
from registry.models import Activation
from registry.models.webhook import Event, Webhook, WebhookDelivery
from tests.factories import ConditionFactory, ModelVersionFactory, PredictionFactory
from tests.inference.use import answered, at, judged, noon, referenced, unanswered
from xrayplatform.audit import AuditEntry
from xrayplatform.notifications import Notification

RANDOM = np.random.default_rng(5)


@pytest.fixture
def version(team):
    return ModelVersionFactory(condition=ConditionFactory(slug="chest", team=team))


def test_a_week_counts_what_happened_in_it(version, alice):
    some = answered(version, noon(1), [0.9, 0.8, 0.1, 0.2], channel="api", latency_ms=100)
    answered(version, noon(1, day=6), [0.7], channel="web", latency_ms=400)
    unanswered(version.condition, noon(1), "refused", 2, code="contrast", version=version)
    unanswered(version.condition, noon(1), "failed", 1, version=version)
    unanswered(version.condition, noon(1), "unreadable", 1, version=version)
    judged(some[0], "PNEUMONIA", alice)
    judged(some[2], "PNEUMONIA", alice)
    (week,) = figures(version.condition)
    assert (week.week, week.version, week.shown) == (this_week() - timedelta(weeks=1), version, True)
    assert (week.answers, week.requests, week.channels) == (5, 9, {"api": 4, "web": 1})
    assert (week.p50, week.p95) == (100, 340)
    assert week.unanswered == {"refused": 2, "failed": 1, "unreadable": 1}
    assert week.refusals == {"contrast": 2}
    assert week.refused.value == pytest.approx(2 / 9)
    # An unreadable file is its sender's.
    assert week.errors.value == pytest.approx(1 / 9)
    assert [(one.name, one.count) for one in week.decisions] == [("NORMAL", 2), ("PNEUMONIA", 3)]
    assert (week.readers.judged, week.readers.of) == (2, 5)
    assert week.readers.agreement.value == 0.5
    assert week.readers.sensitivity.value == 0.5
    assert week.readers.specificity.value is None


def test_the_newest_verdict_of_an_answer_counts(version, alice, bob):
    (one,) = answered(version, noon(1), [0.9])
    judged(one, "NORMAL", alice)
    judged(one, "PNEUMONIA", bob)
    (week,) = figures(version.condition)
    assert week.readers.judged == 1 and week.readers.agreement.value == 1.0
    assert Verdict.objects.count() == 2


def test_versions_and_shadows_are_counted_apart_and_other_conditions_not_at_all(version):
    other = ModelVersionFactory(condition=version.condition, number=version.number + 1)
    answered(version, noon(1), [0.9] * 3)
    answered(other, noon(1), [0.9] * 2, shown=False)
    answered(other, noon(1), [0.9])
    answered(ModelVersionFactory(), noon(1), [0.9])
    found = [(week.version, week.shown, week.answers) for week in figures(version.condition)]
    assert found == [(other, True, 1), (other, False, 2), (version, True, 3)]


def test_weeks_begin_on_monday_midnight_at_the_site(version, settings):
    """Sunday 23:30 UTC is Monday in Berlin."""
    settings.TIME_ZONE = "Europe/Berlin"
    with timezone.override("Europe/Berlin"):
        answered(version, datetime.fromisoformat("2030-01-06T22:30:00+00:00"), [0.9])
        answered(version, datetime.fromisoformat("2030-01-06T23:30:00+00:00"), [0.9] * 2)
        found = figures(version.condition, last=date(2030, 1, 7))
    assert [(week.week, week.answers) for week in found] == [(date(2030, 1, 7), 2), (date(2029, 12, 31), 1)]
    assert monday(date(2030, 1, 6)) == date(2029, 12, 31)


def test_a_request_without_an_answer_counts_for_the_version_that_was_in_service(version):
    newer = ModelVersionFactory(condition=version.condition, number=version.number + 1)
    unanswered(version.condition, noon(4), "no model")
    with at(noon(3)):
        Activation.objects.create(condition=version.condition, to_version=version)
    unanswered(version.condition, noon(2), "refused", code="size")
    with at(noon(1)):
        Activation.objects.create(condition=version.condition, from_version=version, to_version=newer)
    unanswered(version.condition, noon(1, day=1), "refused", code="size")
    found = figures(version.condition)
    assert [week.version for week in found] == [newer, version, None]
    assert found[2].errors.value == 1.0


def test_images_and_probabilities_are_compared_with_validation(version):
    referenced(version)
    answered(version, noon(1), RANDOM.random(100), RANDOM.random(100))
    answered(version, noon(2), RANDOM.random(100) / 3, RANDOM.random(100) / 3)
    same, other = figures(version.condition)
    assert {one.key for one in same.drift} == {"probability-1", "mean"}
    for key in ("probability-1", "mean"):
        assert same.drift_of(key).comparison.stability.p > 0.001
        assert other.drift_of(key).comparison.stability.value > 1
        assert other.drift_of(key).comparison.distance.value > 0.5
    assert [one.expected for one in same.decisions] == pytest.approx([0.5, 0.5], abs=0.15)


def test_every_class_of_several_is_compared(db):
    version = ModelVersionFactory(classes=["NORMAL", "BACTERIA", "VIRUS"], positive_class="")
    probabilities = {"NORMAL": 0.1, "BACTERIA": 0.2, "VIRUS": 0.7}
    with at(noon(1)):
        PredictionFactory(version=version, decision="VIRUS", probabilities=probabilities, measures={"mean": 0.5})
    (week,) = figures(version.condition)
    assert [one.label for one in week.drift][:3] == [f"Probability of {name}" for name in version.classes]
    assert [one.key for one in week.drift] == ["probability-0", "probability-1", "probability-2", "mean"]
    assert week.readers.sensitivity is None


def test_copies_of_one_image_count_once_for_drift_and_each_as_an_answer(version):
    answered(version, noon(1), [0.5] * 4, digests=["a", "a", "a", "b"])
    (week,) = figures(version.condition)
    assert week.answers == 4 and week.drift_of("mean").comparison.count == 2


def test_without_a_reference_or_with_few_images_nothing_is_compared(version):
    answered(version, noon(1), RANDOM.random(100))
    (week,) = figures(version.condition)
    assert week.drift_of("mean").comparison.too_few
    referenced(version)
    answered(version, noon(2), RANDOM.random(10))
    assert figures(version.condition)[1].drift_of("mean").comparison.too_few


def test_of_many_images_a_sample_is_compared(version, monkeypatch):
    monkeypatch.setattr("inference.monitoring.MOST_COMPARED", 100)
    referenced(version)
    answered(version, noon(1), RANDOM.random(400))
    (week,) = figures(version.condition)
    assert week.answers == 400
    assert 50 < week.drift_of("probability-1").comparison.count < 160


def test_warnings_of_the_gate_are_counted_by_check(version):
    def verdicts(outcome):
        return [
            {"check": "size", "outcome": outcome, "value": 1.0, "limit": 2.0, "text": 'It says "outcome": "fail".'},
            {"check": "colour", "outcome": "pass", "value": None, "limit": None, "text": ""},
        ]

    answered(version, noon(1), [0.9] * 2, gate=verdicts("warn"))
    answered(version, noon(1), [0.9], gate=verdicts("fail"))
    answered(version, noon(1), [0.9] * 4, gate=verdicts("pass"))
    (week,) = figures(version.condition)
    assert week.warnings == {"size": 3}


def test_the_number_of_queries_does_not_grow_with_the_answers(version, alice, django_assert_max_num_queries):
    referenced(version)
    for row in answered(version, noon(1), RANDOM.random(60)):
        judged(row, "NORMAL", alice)
    with django_assert_max_num_queries(10):
        figures(version.condition)


# -- Alerts


def drifted(version):
    referenced(version)
    answered(version, noon(1), RANDOM.random(100) / 3, RANDOM.random(100))


def test_a_drift_beyond_limit_and_chance_is_told_once_to_managers_people_and_systems(version, alice, bob, charlie):
    webhook = Webhook.objects.create(name="PACS", url="https://example.org/", secret="s" * 16, events=[Event.ALERT])
    drifted(version)
    (alert,) = alerting.watch(version.condition)
    assert (alert.measure, alert.version, alert.week) == ("probability-1", version, noon(1).date())
    assert alert.value > alert.limit == 0.25
    assert "Probability of PNEUMONIA differs from validation" in alert.text
    assert alerting.watch_all() == 0
    assert MonitoringAlert.objects.count() == 1
    assert AuditEntry.objects.filter(action="monitoringalert.create", object_id=alert.pk).count() == 1
    # Alice may put models in service; bob of her team may not, and charlie is of another team.
    assert [note.user for note in Notification.objects.all()] == [alice]
    delivery = WebhookDelivery.objects.get(webhook=webhook)
    assert (delivery.event, delivery.payload["measures"]) == ("monitoring.alert", ["probability-1"])


def test_many_figures_of_one_week_are_one_message(version, alice):
    unanswered(version.condition, noon(1), "failed", 30, version=version)
    unanswered(version.condition, noon(1), "refused", 30, version=version)
    assert {alert.measure for alert in alerting.watch(version.condition)} == {"refusals", "errors"}
    (note,) = Notification.objects.all()
    assert note.text.startswith(f"{version}, week from {noon(1):%Y-%m-%d}: The input gate refused 50.0 %")
    assert note.text.endswith("And 1 more beyond their limits.")


def test_a_drift_that_may_be_chance_is_not_told(version):
    """With 60 images a stability index of 0.3 comes by chance."""
    ServingPolicy.objects.create(condition=version.condition, max_psi=0.05)
    random = np.random.default_rng(1)
    referenced(version, seed=2, count=60)
    answered(version, noon(1), random.random(60), random.random(60))
    (week,) = figures(version.condition)
    assert max(one.comparison.stability.value for one in week.drift) > 0.05
    assert alerting.watch(version.condition) == []


def test_a_significant_drift_within_the_limit_is_not_told(version):
    ServingPolicy.objects.create(condition=version.condition, max_psi=50)
    drifted(version)
    assert alerting.watch(version.condition) == []


def test_refusals_errors_slowness_and_disagreement_beyond_their_limits_are_told(version, alice):
    for row in answered(version, noon(1), [0.9] * 60, latency_ms=5000):
        judged(row, "NORMAL", alice)
    unanswered(version.condition, noon(1), "refused", 60, code="unlike", version=version)
    unanswered(version.condition, noon(1), "busy", 20, version=version)
    alerts = {alert.measure: alert for alert in alerting.watch(version.condition)}
    assert set(alerts) == {"refusals", "errors", "latency", "agreement"}
    assert alerts["latency"].value == 5000
    assert "Readers agreed with 0.0 % of 60 answers" in alerts["agreement"].text


def test_a_share_that_few_requests_show_is_not_told(version, alice):
    for row in answered(version, noon(1), [0.9] * 5, latency_ms=5000):
        judged(row, "NORMAL", alice)
    unanswered(version.condition, noon(1), "failed", 5, version=version)
    assert alerting.watch(version.condition) == []


def test_the_running_week_counts_up_to_last_midnight(version):
    """On Wednesday morning Monday counts, and what has come since midnight does not."""
    wednesday = noon(0, day=2)
    unanswered(version.condition, wednesday - timedelta(hours=1), "failed", 30, version=version)
    with at(wednesday):
        assert alerting.watch(version.condition) == []
        unanswered(version.condition, wednesday - timedelta(days=2), "failed", 30, version=version)
        (alert,) = alerting.watch(version.condition)
        assert alert.week == this_week()


def test_requests_when_nothing_was_in_service_are_told_once_too(version, alice):
    unanswered(version.condition, noon(1), "no model", 30)
    (alert,) = alerting.watch(version.condition)
    assert alert.version is None and alerting.watch(version.condition) == []


def test_shadows_are_not_told_of(version):
    referenced(version)
    answered(version, noon(1), RANDOM.random(100) / 3, shown=False)
    assert alerting.watch(version.condition) == []


def test_once_an_hour_a_task_looks_at_all_conditions(version, alice, monkeypatch):
    sent = []
    monkeypatch.setattr(tasks, "async_task", lambda name, **options: sent.append(name))
    for minute in (0, tasks.WATCH_AT, tasks.WATCH_AT + 1):
        with at(noon(1).replace(minute=minute)):
            tasks.watch_when_due()
    assert sent == ["inference.tasks.watch_use"]
    drifted(version)
    tasks.watch_use()
    assert MonitoringAlert.objects.count() == 1


def test_without_drift_hardly_a_week_is_told(version):
    """Two hundred weeks of the same images as on validation, each with two figures: none beyond chance and limit."""
    ServingPolicy.objects.create(condition=version.condition, max_psi=0.0)
    usual = referenced(version, count=150)
    random = np.random.default_rng(6)
    told = 0
    for _ in range(200):
        week = _week(version, usual, random)
        told += len(list(alerting._drifts(week, 0.0)))
    assert told <= 2


def _week(version, usual, random):
    found = [
        _compared("mean", "Mean", random.random(100), usual.measures["mean"]),
        _compared("probability-1", "P", random.random(100), usual.probabilities["PNEUMONIA"]),
    ]
    return SimpleNamespace(drift=found)


# -- Command


def run(*arguments):
    out = StringIO()
    call_command("monitoring", *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_the_command_tells_the_weeks_and_the_open_alerts(version, alice, capsys):
    drifted(version)
    alerting.watch(version.condition)
    result = run("chest", "--user", "alice")
    (week,) = result["weeks"]
    assert week["version"] == version.number and week["drift"][0]["psi"]["value"] > 0.25
    assert [alert["measure"] for alert in result["alerts"]] == ["probability-1"]
    assert run("chest", "--weeks", "1")["weeks"] == []
    out = StringIO()
    call_command("monitoring", "chest", stdout=out)
    assert "largest PSI" in out.getvalue()


def test_the_command_knows_no_condition_of_another_team(version, charlie):
    with pytest.raises(SystemExit):
        run("chest", "--user", "charlie")
