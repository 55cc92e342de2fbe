"""Operating points: chosen on validation, reported on test, saved with a reason and never by the way."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse

from registry import operating_points
from registry.models import Deployment, ThresholdSet
from registry.models.evaluation import file_of
from registry.weighing import Weighing, Wish
from tests.factories import ConditionFactory, ModelVersionFactory
from tests.registry.evaluations import make_evaluation
from xrayplatform.audit import AuditEntry
from xrayplatform.templatetags.platform_tags import percent

NO_BREAK = "\N{NO-BREAK SPACE}"


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def version(chest):
    version = ModelVersionFactory(condition=chest, number=1)
    make_evaluation(version, kind="validation", seed=1)
    make_evaluation(version, seed=2)
    return version


@pytest.fixture
def url(version):
    return reverse("registry:threshold-edit", args=[version.pk])


@pytest.fixture
def weighing(version):
    return Weighing.of(version)


def slider_of(page):
    return json.loads(page.split('id="slider-data" type="application/json">')[1].split("</script>")[0])


def saved():
    return list(ThresholdSet.objects.order_by("number"))


# -- What a threshold does


def test_a_criterion_is_met_on_validation_and_reported_on_test(version, weighing):
    threshold = weighing.threshold(Wish("sensitivity", target=0.95))
    figures = weighing.figures(threshold)
    assert figures["validation"]["sensitivity"]["value"] >= 0.95
    test = version.evaluations.get(kind="test")
    called = test.images.probabilities[:, 1] >= threshold
    assert figures["test"]["hits"] == int((called & (test.images.labels == 1)).sum())
    assert figures["test"]["alarms"] == int((called & (test.images.labels == 0)).sum())


def test_scores_are_weighed_after_the_temperature(chest):
    version = ModelVersionFactory(condition=chest, number=3, temperature=2.0)
    validation = make_evaluation(version, kind="validation")
    weighing = Weighing.of(version)
    odds = validation.images.probabilities[:, 1] / validation.images.probabilities[:, 0]
    assert weighing.validation.scores == pytest.approx(odds**0.5 / (1 + odds**0.5))


def test_at_the_trained_threshold_the_figures_are_those_of_the_report(version, weighing):
    report = version.evaluations.get(kind="test").report
    figures = weighing.figures(weighing.trained)["test"]
    for name in ("sensitivity", "specificity"):
        assert figures[name]["value"] == pytest.approx(report["metrics"][name]["value"], abs=1e-12)


def test_the_page_begins_with_the_threshold_of_the_training(logged_in, url, weighing):
    page = logged_in.get(url).content.decode()
    slider = slider_of(page)
    assert slider["thresholds"][slider["position"]] == 0.5
    for part, figures in weighing.figures(0.5).items():
        rate = figures["sensitivity"]
        text = f"{percent(rate['value'])} ({percent(rate['low'])} to {percent(rate['high'])})"
        assert f'data-part="{part}" data-figure="sensitivity">{text}</td>' in page
        assert f'data-part="{part}" data-figure="alarms">{figures["alarms"]}</td>' in page


def test_every_position_of_the_slider_has_the_figures_of_its_threshold(logged_in, url, weighing):
    slider = slider_of(logged_in.get(url).content.decode())
    assert slider["thresholds"] == sorted(slider["thresholds"])
    for part, points in slider["parts"].items():
        assert len(points) == len(slider["thresholds"])
        for threshold, point in zip(slider["thresholds"], points, strict=True):
            figures = weighing.figures(threshold)[part]
            assert point["hits"] == figures["hits"]
            assert point["specificity"] == list(figures["specificity"].values())


def test_a_criterion_on_the_page_finds_its_threshold(logged_in, url, weighing):
    page = logged_in.get(url, {"criterion": "specificity", "target": "90", "prevalence": "5"}).content.decode()
    threshold = weighing.threshold(Wish("specificity", 0.9))
    slider = slider_of(page)
    assert slider["thresholds"][slider["position"]] == threshold
    values = weighing.figures(threshold, 0.05)["test"]["predictive_values"]
    assert f'data-part="test" data-figure="ppv">{percent(values["positive"])}</td>' in page
    assert f'data-part="test" data-figure="npv">{percent(values["negative"])}</td>' in page


def test_without_a_script_a_threshold_is_typed_and_shown(logged_in, url, weighing):
    page = logged_in.get(url, {"criterion": "by hand", "threshold": "0.123", "prevalence": "10"}).content.decode()
    assert 'name="threshold" type="number" min="0" max="1" step="any" value="0.123"' in page
    assert f'data-figure="hits">{weighing.figures(0.123)["validation"]["hits"]}</td>' in page


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"criterion": "sensitivity"}, "Target: This criterion needs a target."),
        ({"criterion": "sensitivity", "target": "150"}, "must lie between 0 and 1"),
        ({"criterion": "by hand"}, "Threshold: Give the threshold"),
        ({"criterion": "by hand", "threshold": "2"}, "A threshold lies between 0 and 1, and 2 does not."),
        ({"criterion": "best"}, "Select a valid choice"),
        ({"criterion": "cost", "target": "3", "prevalence": "0"}, "The prevalence must lie between 0 and 1"),
        ({"criterion": "youden", "prevalence": "120"}, "less than or equal to 100"),
    ],
)
def test_what_cannot_be_met_is_said_in_words_and_the_page_stays_usable(logged_in, url, query, said):
    response = logged_in.get(url, query)
    assert response.status_code == 400
    assert said in response.content.decode()
    assert slider_of(response.content.decode())["thresholds"]


def test_the_page_asks_the_database_little(logged_in, alice, url, weighing, django_assert_max_num_queries):
    for threshold in (0.2, 0.3, 0.4, 0.6):
        weighing.save(Wish("by hand", threshold=threshold), reason="x", by=alice)
    with django_assert_max_num_queries(15):
        logged_in.get(url)


# -- Saving


def test_saving_makes_the_next_set_with_figures_and_audit_entry_and_changes_nothing_in_service(
    logged_in, alice, version, url, weighing
):
    found = weighing.threshold(Wish("sensitivity", 0.95))
    asked = {"criterion": "sensitivity", "target": "95", "prevalence": "10", "threshold": found, "reason": "Screening"}
    page = logged_in.post(url, asked, follow=True).content.decode()
    assert "Threshold set 1 of chest v1 is saved. Nothing in service has changed" in page
    (point,) = saved()
    assert point.threshold == found != 0.5
    assert (point.criterion, point.target, point.prevalence) == ("sensitivity", 0.95, 0.1)
    assert (point.created_by, point.reason) == (alice, "Screening")
    assert {"validation": point.validation, "test": point.test} == weighing.figures(point.threshold, 0.1)
    entry = AuditEntry.objects.get(action="version.threshold")
    assert (entry.actor, entry.object_id, entry.before) == (alice, str(version.pk), {"threshold": 0.5})
    assert entry.after == {"threshold_set": 1, "threshold": point.threshold, "reason": "Screening"}
    assert not Deployment.objects.exists()


def test_a_criterion_that_finds_another_threshold_than_was_looked_at_saves_nothing(logged_in, version, url, weighing):
    asked = {"criterion": "sensitivity", "target": "95", "reason": "Screening"}
    form = logged_in.get(url, asked).content.decode().split('id="save-form"')[1]
    shown = form.split('name="threshold" value="')[1].split('"')[0]
    assert float(shown) == weighing.threshold(Wish("sensitivity", 0.95))
    # Somebody evaluates the version on validation again while the page is open.
    make_evaluation(version, kind="validation", seed=9)
    now = Weighing.of(version).threshold(Wish("sensitivity", 0.95))
    response = logged_in.post(url, asked | {"threshold": shown})
    page = response.content.decode()
    assert response.status_code == 400 and saved() == []
    assert f"now finds the threshold {now:g}, not {float(shown):g}" in page and "Look at the figures again" in page
    assert f'name="threshold" value="{now}"' in page
    api = reverse("api:version-operating-points", args=[version.pk])
    told = logged_in.post(api, asked | {"target": 0.95, "threshold": float(shown)})
    assert told.status_code == 400 and "now finds" in told.json()["errors"]["threshold"][0]
    logged_in.post(url, asked | {"threshold": str(now)})
    assert [point.threshold for point in saved()] == [now]


def test_a_prevalence_far_below_one_in_a_thousand_is_kept_as_it_was_typed(logged_in, url, weighing):
    asked = {"criterion": "cost", "target": "500", "prevalence": "0.03"}
    page = logged_in.get(url, asked).content.decode()
    assert 'type="hidden" name="prevalence" value="0.03"' in page
    assert '<strong id="shown-prevalence">0.03&nbsp;%</strong>' in page
    logged_in.post(url, asked | {"reason": "Screening"})
    (point,) = saved()
    assert point.prevalence == pytest.approx(0.0003)
    assert point.threshold == weighing.threshold(Wish("cost", 500, 0.0003))
    assert f"prevalence 0.03{NO_BREAK}%</td>" in logged_in.get(url).content.decode()


def test_the_button_that_saves_says_which_threshold(logged_in, url):
    page = logged_in.get(url, {"criterion": "by hand", "threshold": "0.25"}).content.decode()
    assert f"Save <span data-shown-threshold>{percent(0.25)}</span> as a threshold set</button>" in page


def test_the_page_lists_the_sets_and_marks_the_one_in_service(logged_in, alice, version, url, weighing):
    for threshold in (0.2, 0.3):
        weighing.save(Wish("by hand", threshold=threshold), reason=f"at {threshold}", by=alice)
    Deployment.objects.create(condition=version.condition, active=version, threshold_set=saved()[0], epoch=1)
    page = logged_in.get(url).content.decode()
    assert "at 0.2" in page and "at 0.3" in page
    assert page.count("In service") == 1
    assert page.index("at 0.3") < page.index("In service") < page.index("at 0.2") < page.index("As trained")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reason": " "}, "Reason: This field is required."),
        ({"reason": "x" * 501}, "at most 500 characters"),
        ({"threshold": "1"}, "A threshold lies between 0 and 1"),
        ({"threshold": "nan"}, "Enter a number"),
        ({"criterion": "sensitivity", "target": "120"}, "must lie between 0 and 1"),
    ],
)
def test_a_set_that_cannot_be_saved_says_why_and_keeps_what_was_typed(logged_in, url, changes, said):
    response = logged_in.post(url, {"criterion": "by hand", "threshold": "0.4", "reason": "kept words"} | changes)
    page = response.content.decode()
    assert response.status_code == 400
    assert said in page
    assert saved() == []
    if "reason" not in changes:
        assert 'value="kept words"' in page
    else:
        assert 'name="threshold" type="number" min="0" max="1" step="any" value="0.4"' in page


def test_who_may_only_look_sees_no_form_and_is_refused(client, bob, url):
    client.force_login(bob)
    assert "save-form" not in client.get(url).content.decode()
    assert client.post(url, {"criterion": "youden", "reason": "x"}).status_code == 403
    assert saved() == []


def test_another_team_does_not_find_the_page(client, charlie, url, version):
    client.force_login(charlie)
    assert client.get(url).status_code == 404
    assert client.post(url, {"criterion": "youden", "reason": "x"}).status_code == 404
    assert client.get(reverse("api:version-operating-points", args=[version.pk])).status_code == 404


# -- Where there is nothing to choose


def test_a_version_of_several_classes_says_why_it_has_no_threshold(logged_in, chest):
    version = ModelVersionFactory(
        condition=chest, classes=["a", "b", "c"], positive_class="", threshold=None, metrics={"classes": []}
    )
    url = reverse("registry:threshold-edit", args=[version.pk])
    assert "tells 3 classes apart and calls the most probable one" in logged_in.get(url).content.decode()
    assert logged_in.post(url, {"criterion": "youden", "reason": "x"}).status_code == 409
    api = reverse("api:version-operating-points", args=[version.pk])
    assert logged_in.get(api).status_code == 409


def test_a_version_whose_validation_answers_were_not_kept_says_what_to_do(logged_in, chest):
    version = ModelVersionFactory(condition=chest, number=8)
    page = logged_in.get(reverse("registry:threshold-edit", args=[version.pk])).content.decode()
    assert "Evaluate it on the validation part of its preparation first." in page


def test_answers_that_were_changed_or_lost_are_not_used(logged_in, version, url):
    file_of(version.evaluations.get(kind="validation").key).unlink()
    page = logged_in.get(url).content.decode()
    assert "are missing. Evaluate the version again." in page
    assert "slider-data" not in page


def test_without_test_answers_the_page_shows_validation_alone(logged_in, chest):
    version = ModelVersionFactory(condition=chest, number=9)
    make_evaluation(version, kind="validation")
    page = logged_in.get(reverse("registry:threshold-edit", args=[version.pk])).content.decode()
    assert "There are no answers on test images" in page
    assert list(slider_of(page)["parts"]) == ["validation"]


# -- API and command


def test_the_api_gives_points_and_sets_and_saves_the_same_way(logged_in, alice, version, weighing):
    url = reverse("api:version-operating-points", args=[version.pk])
    answer = logged_in.post(url, {"criterion": "youden", "reason": "balanced"})
    assert answer.status_code == 201
    assert answer.json()["threshold"] == weighing.threshold(Wish("youden"))
    assert (answer.json()["number"], answer.json()["created_by"]) == (1, "alice")
    given = logged_in.get(url).json()
    assert given["trained"] == 0.5
    assert given["sets"] == [answer.json()]
    first = given["points"][0]
    assert first["test"] == weighing.figures(first["threshold"])["test"]
    assert AuditEntry.objects.filter(action="version.threshold", actor=alice).count() == 1


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"criterion": "youden"}, "reason"),
        ({"criterion": "cost", "reason": "x"}, "target"),
        ({"criterion": "by hand", "reason": "x"}, "threshold"),
        ({"criterion": "by hand", "threshold": 1.5, "reason": "x"}, "threshold"),
        ({"criterion": "by hand", "threshold": "nan", "reason": "x"}, "threshold"),
        ({"criterion": "sensitivity", "target": 7, "reason": "x"}, "threshold"),
        ({"criterion": "youden", "prevalence": 10, "reason": "x"}, "prevalence"),
        ({"criterion": "youden", "prevalence": "nan", "reason": "x"}, "prevalence"),
    ],
)
def test_the_api_names_what_is_wrong(logged_in, version, asked, field):
    answer = logged_in.post(reverse("api:version-operating-points", args=[version.pk]), asked)
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == [field]
    assert saved() == []


def operating_point(**options):
    out = StringIO()
    call_command("operating_point", "chest", "1", stdout=out, **options)
    return out.getvalue()


def test_the_command_shows_a_criterion_and_saves_only_when_told(version, weighing):
    shown = json.loads(operating_point(criterion="specificity", target=0.9, prevalence=0.1, json=True))
    assert shown["threshold"] == weighing.threshold(Wish("specificity", 0.9))
    assert shown["figures"] == weighing.figures(shown["threshold"], 0.1)
    assert (shown["saved"], saved()) == (None, [])
    text = operating_point(criterion="specificity", target=0.9, save=True, reason="Few alarms")
    assert "Saved as threshold set 1; nothing in service has changed." in text
    assert saved()[0].threshold == shown["threshold"]


def test_the_command_refuses_what_the_page_refuses(version, bob):
    for options, said in (
        ({"criterion": "cost"}, "needs a --target"),
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"prevalence": 10.0}, "share between 0 and 1"),
        ({"save": True}, "Give the reason"),
        ({"save": True, "reason": "x" * 501}, "500 characters"),
        ({"save": True, "reason": "x", "user": "bob"}, "no role that allows saving"),
        ({"criterion": "sensitivity", "target": 2.0}, "must lie between 0 and 1"),
    ):
        with pytest.raises(CommandError, match=said):
            operating_point(**options)
    assert saved() == []


def test_criteria_have_the_same_names_on_the_page_and_in_the_arithmetic():
    assert set(operating_points.CRITERIA) == set(ThresholdSet.Criterion.values) - {"by hand"}
