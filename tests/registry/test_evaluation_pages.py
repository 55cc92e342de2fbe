"""The report of an evaluation on the page, on paper, over the API and by command shows the same stored figures."""

import json
from io import StringIO
from unittest.mock import patch

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.html import escape

from registry import report_tables
from registry.models import Evaluation
from registry.models import evaluation as evaluation_module
from registry.models.evaluation import file_of
from registry.reports import EvaluatedImages
from tests.factories import ConditionFactory, ModelVersionFactory
from tests.registry.evaluations import make_evaluation, make_images
from xrayplatform.audit import AuditEntry
from xrayplatform.templatetags.platform_tags import figure, percent

GRADES = ["none", "mild", "severe"]


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def version(chest):
    return ModelVersionFactory(condition=chest, number=1)


@pytest.fixture
def graded(chest):
    metrics = {"quadratic_kappa": 0.7, "classes": GRADES}
    return ModelVersionFactory(
        condition=chest, number=2, classes=GRADES, positive_class="", threshold=None, metrics=metrics
    )


def page_of(client, evaluation):
    response = client.get(evaluation.get_absolute_url())
    assert response.status_code == 200
    return response.content.decode()


def shown(report, key):
    """A figure and its interval in the words of the page."""
    value, low, high = (report["metrics"][key][name] for name in ("value", "low", "high"))
    if report_tables.FIGURES[key].is_share:
        return percent(value), f"{100 * low:.1f} to {percent(high)}"
    return figure(value), f"{figure(low)} to {figure(high)}"


def test_the_page_shows_every_stored_figure_with_its_interval(logged_in, version):
    evaluation = make_evaluation(version)
    page = page_of(logged_in, evaluation)
    for key in evaluation.metrics:
        value, interval = shown(evaluation.report, key)
        assert f'{value}<br><small class="muted nowrap">{interval}</small>' in page, key


def test_the_charts_are_drawn_from_the_stored_report(logged_in, version):
    evaluation = make_evaluation(version)
    page = page_of(logged_in, evaluation)
    charts = json.loads(page.split('id="report-charts" type="application/json">')[1].split("</script>")[0])
    for name in ("roc", "pr", "calibration"):
        assert charts[name] == evaluation.report[name]
    for name in ("roc", "pr", "calibration"):
        assert f'data-report-chart="{name}"' in page


def test_the_page_says_how_the_figures_came_about(logged_in, version):
    page = page_of(logged_in, make_evaluation(version, preparation=7))
    assert "80 images of 40 patients" in page
    assert "2,000 resamples of whole patients (seed 20517)" in page
    assert "50.0\N{NO-BREAK SPACE}%, chosen on the validation part" in page
    assert "preparation 7" in page
    assert version.sha256 in page
    assert "the interval of the calibration error (ECE) is only approximate" in page


def test_subgroups_have_their_own_figures_and_a_bar(logged_in, version):
    evaluation = make_evaluation(version)
    page = page_of(logged_in, evaluation)
    (by_sex,) = evaluation.report["subgroups"]
    assert by_sex["attribute"] == "sex"
    for group in by_sex["groups"]:
        assert percent(group["metrics"]["accuracy"]["value"]) in page
    assert page.count('class="interval-bar"') == 2
    assert "By image format" not in page


def test_the_page_says_how_many_versions_used_the_images(logged_in, version, graded):
    first = make_evaluation(version)
    assert "No other version was measured on these images." in page_of(logged_in, first)
    make_evaluation(version, images_like=first, seed=3)
    assert first.versions_measured == 1
    other = ModelVersionFactory(condition=version.condition, number=3)
    make_evaluation(other, images_like=first, seed=4)
    make_evaluation(graded)
    page = page_of(logged_in, first)
    assert "2 versions were measured on these images." in page
    assert "used 2 times" in page


def test_cautions_stand_above_the_figures_with_what_to_do(logged_in, version):
    page = page_of(logged_in, make_evaluation(version, quality=0.0, patients=200))
    assert page.index("Did not learn") < page.index('id="figures-title"')
    assert "Do not use it." in page


def test_a_test_far_below_validation_is_a_caution_of_the_test_alone(version):
    validation = make_evaluation(version, kind="validation", quality=4.0, patients=100)
    test = make_evaluation(version, quality=0.7, patients=100, seed=5)
    external = make_evaluation(version, kind="external", quality=0.7, patients=100, seed=6)
    codes = {one.kind: {caution.code for caution in one.cautions} for one in (validation, test, external)}
    assert "validation-above-test" in codes["test"]
    assert "validation-above-test" not in codes["validation"] | codes["external"]


def test_the_report_of_the_validation_part_says_that_choices_were_made_on_it(logged_in, version):
    validation = make_evaluation(version, kind="validation", seed=1)
    assert "threshold were chosen on them" in page_of(logged_in, validation)
    assert "threshold were chosen on them" not in page_of(logged_in, make_evaluation(version))


def test_every_filled_cell_of_the_matrix_leads_to_its_images(logged_in, version):
    evaluation = make_evaluation(version)
    page = page_of(logged_in, evaluation)
    address = f"/analysis/evaluated/{evaluation.pk}/images/"
    filled = sum(count > 0 for row in evaluation.report["confusion_matrix"] for count in row)
    assert page.count(f'href="{address}?true=') == filled
    assert f'href="{address}?true=NORMAL&amp;predicted=NORMAL"' in page


def test_classes_of_an_ordinal_version_and_their_mean_are_shown(logged_in, graded):
    evaluation = make_evaluation(graded)
    page = page_of(logged_in, evaluation)
    assert "Quadratic kappa" in page
    assert "Mean of the classes" in page
    assert "The most probable class." in page
    for row in evaluation.report["per_class"]:
        assert figure(row["auc"]["value"]) in page
    assert "Operating point" not in page


def test_a_report_without_auc_says_why(logged_in, version):
    images = make_images(2, 20)
    positive = np.tile([0.2, 0.8], 20)
    one_class = EvaluatedImages(
        **{**vars(images), "labels": np.ones(40, np.int64), "probabilities": np.stack([1 - positive, positive], axis=1)}
    )
    evaluation = make_evaluation(version, images=one_class)
    assert evaluation.metrics["auc"]["value"] is None
    page = page_of(logged_in, evaluation)
    assert "not available" in page
    assert "All images are PNEUMONIA; this figure needs images of another class." in page
    assert "No ROC curve: it needs images of at least two classes." in page
    assert logged_in.get(reverse("registry:evaluation-print", args=[evaluation.pk])).status_code == 200


def test_the_page_does_not_read_the_answers(logged_in, version):
    evaluation = make_evaluation(version)
    file_of(evaluation.key).unlink()
    with patch.object(evaluation_module.np, "load", side_effect=AssertionError):
        page_of(logged_in, evaluation)


def test_the_page_asks_the_database_little(logged_in, version, django_assert_max_num_queries):
    evaluation = make_evaluation(version)
    with django_assert_max_num_queries(14):
        page_of(logged_in, evaluation)


def test_the_page_of_many_classes_is_drawn_quickly(logged_in, chest):
    classes = [f"class {number}" for number in range(10)]
    version = ModelVersionFactory(condition=chest, number=5, classes=classes, positive_class="", threshold=None)
    evaluation = make_evaluation(version, patients=400)
    page = page_of(logged_in, evaluation)
    assert page.count('<th scope="row">class 3</th>') >= 3
    assert len(page) < 1_500_000


def test_the_printed_report_has_the_same_figures_and_nothing_to_unfold(logged_in, version):
    evaluation = make_evaluation(version)
    page = logged_in.get(reverse("registry:evaluation-print", args=[evaluation.pk])).content.decode()
    for key in evaluation.metrics:
        assert all(words in page for words in shown(evaluation.report, key)), key
    assert "Print or save as PDF" in page
    assert escape(version.condition.intended_use) in page
    assert "<details" not in page
    assert "theme.js" not in page
    assert "<script>" not in page
    assert "/analysis/evaluated/" not in page
    assert "the interval of the calibration error (ECE) is only approximate" in page


def test_a_printed_report_is_in_the_audit_log_and_one_on_the_screen_is_not(logged_in, alice, version):
    evaluation = make_evaluation(version)
    page_of(logged_in, evaluation)
    assert not AuditEntry.objects.filter(object_type="evaluation").exists()
    logged_in.get(reverse("registry:evaluation-print", args=[evaluation.pk]))
    entry = AuditEntry.objects.get(action="evaluation.print")
    assert (entry.actor, entry.object_type, entry.object_id) == (alice, "evaluation", str(evaluation.pk))


# -- On the page of the version


def version_page(client, version):
    return client.get(version.get_absolute_url()).content.decode()


def test_the_version_shows_the_intervals_of_its_own_test_part(logged_in, version):
    test = make_evaluation(version)
    make_evaluation(version, kind="external", quality=1.0, seed=2)
    page = version_page(logged_in, version)
    value, interval = shown(test.report, "auc")
    assert f'<dd>{value}<br><small class="muted nowrap">{interval}</small></dd>' in page
    assert f'href="{test.get_absolute_url()}"' in page


def test_external_evaluations_stand_beside_the_internal_one_with_the_drop(logged_in, version):
    test = make_evaluation(version, quality=3.0, patients=100)
    external = make_evaluation(version, kind="external", quality=0.5, patients=100, seed=2)
    page = version_page(logged_in, version)
    difference = test.metrics["auc"]["value"] - external.metrics["auc"]["value"]
    assert f"AUC is {difference:.3f} lower than on the test part" in page
    assert "The intervals do not overlap" in page
    assert page.count("lower than on the test part") == 2
    assert "Another clinic" in page


def test_a_version_of_an_earlier_release_says_that_intervals_are_missing(logged_in, version):
    page = version_page(logged_in, version)
    assert "The answers behind these figures were not kept" in page
    assert f'/analysis/evaluations/new/?version={version.pk}">Evaluate it on its test part</a>' in page
    assert "0.950" in page


def test_a_version_can_be_evaluated_on_other_images_by_who_may(client, alice, bob, version):
    make_evaluation(version)
    for user, offered in ((alice, True), (bob, False)):
        client.force_login(user)
        assert ("Evaluate on other images" in version_page(client, version)) == offered


def test_the_queries_of_the_version_page_do_not_grow_with_its_evaluations(
    logged_in, version, django_assert_num_queries
):
    def measure(*seeds):
        for seed in seeds:
            make_evaluation(version, seed=seed)
            make_evaluation(version, kind="external", seed=seed)

    measure(0)
    version_page(logged_in, version)
    with CaptureQueriesContext(connection) as few:
        version_page(logged_in, version)
    measure(1, 2, 3)
    with django_assert_num_queries(len(few)):
        version_page(logged_in, version)


# -- Teams, API and command


def test_another_team_finds_neither_page_nor_paper_nor_json(client, charlie, version):
    evaluation = make_evaluation(version)
    client.force_login(charlie)
    for name in ("registry:evaluation-detail", "registry:evaluation-print", "api:evaluation-detail"):
        assert client.get(reverse(name, args=[evaluation.pk])).status_code == 404
    assert client.get(reverse("api:evaluation-list")).json()["results"] == []


def test_the_api_lists_figures_and_gives_one_report_whole(logged_in, version):
    test, external = make_evaluation(version), make_evaluation(version, kind="external", seed=2)
    listed = logged_in.get(reverse("api:evaluation-list")).json()["results"]
    assert [row["id"] for row in listed] == [external.pk, test.pk]
    assert listed[1]["metrics"] == test.metrics
    assert "report" not in listed[0]
    whole = logged_in.get(reverse("api:evaluation-detail", args=[test.pk])).json()
    assert whole["report"] == test.report
    assert whole["versions_measured"] == 1
    assert {"code", "text", "advice"} == set(whole["cautions"][0])


def test_the_drop_on_other_images_is_told_by_the_api_and_the_command_as_on_the_page(logged_in, version):
    test = make_evaluation(version, quality=3.0, patients=100)
    external = make_evaluation(version, kind="external", quality=0.5, patients=100, seed=2)
    page = version_page(logged_in, version)

    def told(evaluation):
        return logged_in.get(reverse("api:evaluation-detail", args=[evaluation.pk])).json()

    whole = told(external)
    assert len(whole["drop"]) == 2 and " ".join(whole["drop"]) in page
    difference = external.metrics["auc"]["value"] - test.metrics["auc"]["value"]
    assert whole["drop_by_figure"]["auc"] == pytest.approx(difference) and difference < 0
    assert (told(test)["drop"], told(test)["drop_by_figure"]) == ([], {})
    by_command = json.loads(report("chest", "1", kind="external", json=True))
    assert by_command["drop"] == whole["drop"] and by_command["drop_by_figure"] == whole["drop_by_figure"]
    assert whole["drop"][0] in report("chest", "1", kind="external")
    assert "than on the test part" not in report("chest", "1")


def test_without_a_test_part_measured_there_is_no_drop(version):
    external = make_evaluation(version, kind="external")
    assert (external.drop, external.drop_by_figure) == ([], {})


def test_the_api_filters_evaluations_by_version_kind_and_images(logged_in, version, graded):
    test, other = make_evaluation(version), make_evaluation(graded, kind="external")

    def found(**query):
        return [row["id"] for row in logged_in.get(reverse("api:evaluation-list"), query).json()["results"]]

    assert found(version=version.pk) == [test.pk]
    assert found(kind="external") == [other.pk]
    assert found(images_digest=test.images_digest) == [test.pk]
    assert logged_in.get(reverse("api:evaluation-list"), {"kind": "best"}).status_code == 400


def report(*args, **options):
    out = StringIO()
    call_command("report", *args, stdout=out, **options)
    return out.getvalue()


def test_the_command_prints_the_report(version):
    test = make_evaluation(version)
    text = report("chest", "1")
    assert "80 images of 40 patients" in text
    auc = test.metrics["auc"]
    assert f"{auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f})" in text
    assert json.loads(report("chest", "1", json=True))["report"] == test.report


def test_the_command_takes_the_newest_of_a_kind_or_one_by_number(version):
    make_evaluation(version, kind="external")
    newest = make_evaluation(version, kind="external", seed=1)
    test = make_evaluation(version)
    assert json.loads(report("chest", "1", kind="external", json=True))["evaluation"] == newest.pk
    assert json.loads(report("chest", "1", evaluation=test.pk, json=True))["kind"] == "test"
    with pytest.raises(CommandError, match=r"no evaluation of kind validation\. Its evaluations: \d+ \(test\)"):
        report("chest", "1", kind="validation")
    with pytest.raises(CommandError, match="no evaluation 999"):
        report("chest", "1", evaluation=999)


def test_the_command_shows_a_user_only_versions_of_the_team(version, bob, charlie):
    make_evaluation(version)
    assert "Accuracy" in report("chest", "1", user="bob")
    with pytest.raises(CommandError, match="There is no version 1 of 'chest'"):
        report("chest", "1", user="charlie")


def test_evaluations_cannot_be_changed(version):
    evaluation = make_evaluation(version)
    with pytest.raises(TypeError, match="never changed"):
        evaluation.save()
    assert Evaluation.objects.newest(version, "test") == evaluation
