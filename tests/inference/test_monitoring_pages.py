"""The Monitoring page, its alerts, datasets of corrections from the browser, and the same over the API."""

import json

import numpy as np
import pytest

from datasets.models import Dataset, Scan
from inference import alerting
from inference.models import MonitoringAlert
from tests.factories import ConditionFactory, ModelVersionFactory, MonitoringAlertFactory, UserFactory
from tests.inference.test_corrections import analysed, both_classes
from tests.inference.use import answered, judged, noon, referenced, unanswered
from xrayplatform.audit import AuditEntry

PAGE = "/analysis/monitoring/"
CORRECTIONS = "/analysis/monitoring/corrections/"
API = "/api/v1/"
RANDOM = np.random.default_rng(7)


@pytest.fixture
def version(team):
    return ModelVersionFactory(condition=ConditionFactory(slug="chest", team=team))


@pytest.fixture
def manager(team):
    """A model manager who is nothing else."""
    user = UserFactory(username="mona", roles=["model manager"])
    team.members.add(user)
    return user


def charts(response):
    page = response.content.decode()
    return json.loads(page.split('<script id="monitoring-charts" type="application/json">')[1].split("</script>")[0])


def test_the_page_shows_the_weeks_with_a_table_for_each_chart(logged_in, version, alice):
    referenced(version)
    rows = answered(version, noon(1), RANDOM.random(100) / 3, RANDOM.random(100), latency_ms=120)
    answered(version, noon(3), RANDOM.random(60), RANDOM.random(60), latency_ms=80)
    judged(rows[0], "PNEUMONIA", alice)
    unanswered(version.condition, noon(1), "refused", 10, code="contrast", version=version)
    response = logged_in.get(PAGE, {"condition": "chest"})
    page = response.content.decode()
    found = charts(response)
    # The week between, in which nothing was asked, is a gap.
    assert found["answers"] == [60, None, 100] and found["refused"] == [0, None, 10]
    assert found["psi"][2] > 1 and found["limits"]["psi"] == 0.25
    assert len(found["shares"]["week"]) == len(found["shares"]["expected"]) == 10
    for text in ("Contrast 10", "9.1\u00a0%", "1 of 100", "Probability of PNEUMONIA", "By chance up to"):
        assert text in page, text
    assert page.count("data-monitoring-chart=") == 5
    assert "Retrain with what readers corrected" in page


def test_another_measure_and_another_version_can_be_chosen(logged_in, version):
    referenced(version)
    other = ModelVersionFactory(condition=version.condition, number=version.number + 1)
    answered(version, noon(1), RANDOM.random(60), RANDOM.random(60) / 3)
    answered(other, noon(1), [0.9] * 3, shown=False)
    chosen = {"condition": "chest", "version": version.number, "measure": "mean"}
    response = logged_in.get(PAGE, chosen)
    assert charts(response)["psi"][0] > 1 and "Mean grey value, week from" in response.content.decode()
    shadow = logged_in.get(PAGE, {"condition": "chest", "version": f"{other.number}-shadow"})
    assert charts(shadow)["answers"] == [3] and f"v{other.number} as a shadow" in shadow.content.decode()


def test_what_makes_no_sense_in_the_address_harms_nothing(logged_in, version):
    answered(version, noon(1), [0.9])
    page = logged_in.get(PAGE, {"condition": "chest", "version": "<b>", "measure": "nothing"})
    assert page.status_code == 200 and "<b>" not in page.content.decode()
    assert logged_in.get(PAGE, {"condition": "unknown"}).status_code == 404


def test_empty_pages_say_what_to_do_next(logged_in, version):
    assert "Not in use yet" in logged_in.get(PAGE, {"condition": "chest"}).content.decode()
    assert "Limits" in logged_in.get(PAGE).content.decode()


def test_another_team_sees_neither_page_nor_corrections(client, charlie, version, alice):
    answered(version, noon(1), [0.9])
    client.force_login(charlie)
    assert client.get(PAGE, {"condition": "chest"}).status_code == 404
    assert "Chest" not in client.get(PAGE).content.decode()
    assert client.get(CORRECTIONS, {"condition": "chest"}).status_code == 404
    assert client.post(CORRECTIONS, {"condition": "chest"}).status_code == 404


def test_an_alert_is_acknowledged_once_with_a_comment(client, manager, alice, version):
    unanswered(version.condition, noon(1), "failed", 30, version=version)
    (alert,) = alerting.watch(version.condition)
    client.force_login(manager)
    assert alert.text in client.get(PAGE, {"condition": "chest"}).content.decode().replace("&#x27;", "'")
    address = f"/analysis/monitoring/alerts/{alert.pk}/acknowledge/"
    for nothing in (" ", "The disk\0"):
        silent = client.post(address, {"comment": nothing}, follow=True)
        assert "the alert stays open" in silent.content.decode()
    client.post(address, {"comment": "The disk was full."})
    client.force_login(alice)
    late = client.post(address, {"comment": "No, it was the network."}, follow=True)
    assert "before you" in late.content.decode()
    alert.refresh_from_db()
    assert (alert.seen_by, alert.comment) == (manager, "The disk was full.")
    (entry,) = AuditEntry.objects.filter(action="monitoringalert.acknowledge")
    assert (entry.actor, entry.after) == (manager, {"comment": "The disk was full."})
    assert "Acknowledged alerts" in client.get(PAGE, {"condition": "chest"}).content.decode()


def test_all_alerts_of_a_week_are_acknowledged_at_once_and_those_of_others_are_not(client, manager, version):
    told = {"condition": version.condition, "version": version}
    first, second = (MonitoringAlertFactory(measure=name, **told) for name in ("errors", "latency"))
    other = MonitoringAlertFactory(week="2030-01-14", **told)
    client.force_login(manager)
    client.post(f"/analysis/monitoring/alerts/{first.pk}/acknowledge/", {"comment": "Full disk.", "all": "1"})
    assert MonitoringAlert.objects.get(pk=second.pk).comment == "Full disk."
    assert MonitoringAlert.objects.get(pk=other.pk).seen_at is None


def test_corrections_are_shown_before_they_are_made_and_then_made(logged_in, version, alice, bob):
    both_classes(version, alice)
    disputed = analysed(version, 9)
    judged(disputed, "NORMAL", alice)
    judged(disputed, "PNEUMONIA", bob)
    preview = logged_in.get(CORRECTIONS, {"condition": "chest"}).content.decode()
    assert "2 images, 1 of them corrected" in preview
    assert "1 image: readers disagree." in preview and "NORMAL or PNEUMONIA" in preview
    assert "no fair sample" in preview and "are not here" in preview
    assert not Dataset.objects.exists()
    made = logged_in.post(CORRECTIONS, {"condition": "chest", "version": version.number}, follow=True)
    dataset = Dataset.objects.get()
    assert f"2 images are in {dataset}" in made.content.decode() and "not scanned yet" in made.content.decode()
    assert Scan.objects.count() == 1


def test_what_stands_in_the_way_of_corrections_is_said(logged_in, version, alice, settings):
    assert "No reader has judged" in logged_in.get(CORRECTIONS, {"condition": "chest"}).content.decode()
    both_classes(version, alice)
    settings.DATASET_READ_ONLY = True
    page = logged_in.get(CORRECTIONS, {"condition": "chest"})
    assert "cannot be written to" in page.content.decode() and "Make the dataset" not in page.content.decode()
    refused = logged_in.post(CORRECTIONS, {"condition": "chest"})
    assert refused.status_code == 409 and "cannot be written to" in refused.content.decode()


def test_the_api_tells_the_weeks_of_a_condition(api, version, alice, charlie):
    referenced(version)
    answered(version, noon(1), RANDOM.random(60), RANDOM.random(60))
    api.force_authenticate(alice)
    found = api.get(f"{API}monitoring/", {"condition": "chest", "weeks": 2}).json()
    (week,) = found["weeks"]
    assert (week["answers"], week["version"]) == (60, version.number)
    assert week["drift"][0]["psi"]["low"] <= week["drift"][0]["psi"]["value"]
    assert api.get(f"{API}monitoring/", {"condition": "chest", "weeks": 0}).status_code == 400
    api.force_authenticate(charlie)
    assert api.get(f"{API}monitoring/", {"condition": "chest"}).status_code == 400


def test_the_api_lists_and_acknowledges_alerts(api, manager, version):
    alert = MonitoringAlertFactory(condition=version.condition, version=version)
    api.force_authenticate(manager)
    assert [row["id"] for row in api.get(f"{API}alerts/", {"unseen": "true", "condition": "chest"}).json()["results"]]
    address = f"{API}alerts/{alert.pk}/acknowledge/"
    assert api.post(address, {}).status_code == 400
    assert api.post(address, {"comment": "Seen."}).json()["comment"] == "Seen."
    assert api.post(address, {"comment": "Again."}).status_code == 409
    assert api.get(f"{API}alerts/", {"unseen": "true"}).json()["results"] == []
    assert MonitoringAlert.objects.get().comment == "Seen."


def test_the_api_shows_and_makes_corrections(api, version, alice):
    api.force_authenticate(alice)
    assert api.get(f"{API}corrections/", {"condition": "chest"}).status_code == 409
    both_classes(version, alice)
    shown = api.get(f"{API}corrections/", {"condition": "chest"}).json()
    assert (shown["images"], shown["corrected"]) == (2, 1)
    made = api.post(f"{API}corrections/", {"condition": "chest", "version": version.number})
    assert made.status_code == 201
    assert made.json()["dataset"]["name"] == Dataset.objects.get().name
    assert api.post(f"{API}corrections/", {"condition": "chest", "version": 999}).status_code == 400
