"""Two to ten versions side by side: the page, the API and the command say the same, and only what the data allow."""

import json
from io import StringIO
from unittest.mock import patch

import pytest
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils.html import escape

from registry import comparisons
from registry.models.evaluation import file_of
from tests.factories import ConditionFactory, ModelVersionFactory, PredictionFactory
from tests.registry.evaluations import make_evaluation

PAGE = reverse("registry:version-compare")
API = reverse("api:version-compare")
GRADES = ["none", "mild", "severe"]


@pytest.fixture(autouse=True)
def nothing_cached():
    cache.clear()
    comparisons.ANSWERS.forget()


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def make_version(chest):
    def make(number, **fields):
        return ModelVersionFactory(condition=chest, number=number, **fields)

    return make


@pytest.fixture
def good_and_poor(make_version):
    """v1 is hardly better than guessing, v2 good; both on the same images."""
    poor, good = make_version(1), make_version(2, dataset_name="CHEST/other", architecture="DenseNet121")
    evaluation = make_evaluation(poor, quality=0.2, seed=1)
    make_evaluation(good, images_like=evaluation, quality=3.0, seed=2)
    return [poor, good]


def numbers(versions, **more):
    return {"version": [version.pk for version in versions], **more}


def page_of(client, versions, status=200, **more):
    response = client.get(PAGE, numbers(versions, **more))
    assert response.status_code == status
    return response.content.decode()


def asked(client, versions, **more):
    return client.get(API, numbers(versions, **more))


def test_the_better_version_is_first_marked_by_a_word_and_the_difference_said_in_words(logged_in, good_and_poor):
    page = page_of(logged_in, good_and_poor)
    assert "v2 is better than v1 by " in page
    assert "<strong>Best</strong>" in page
    assert '<i class="bi bi-trophy" aria-hidden="true"></i> best</span>' in page
    ranking = page.split("Ranking by AUC</caption>")[1].split("</table>")[0]
    assert ranking.index("v2</a>") < ranking.index("v1</a>")


def test_a_comparison_on_validation_images_says_that_choices_were_made_on_them(logged_in, make_version):
    first, second = make_version(1), make_version(2)
    tuned = make_evaluation(first, kind="validation", seed=1)
    make_evaluation(second, kind="validation", images_like=tuned, seed=2)
    (note, *_) = asked(logged_in, [first, second], images=tuned.images_digest).json()["notes"]
    assert note.startswith("These are the validation images of v1 and v2: ") and "advantage" not in note
    assert escape(note) in page_of(logged_in, [first, second], images=tuned.images_digest)


def test_a_version_that_alone_was_tuned_on_the_images_is_named(logged_in, make_version):
    first, second = make_version(1), make_version(2)
    tuned = make_evaluation(first, kind="validation", seed=1)
    make_evaluation(second, kind="external", images_like=tuned, seed=2)
    (note, *_) = asked(logged_in, [first, second], images=tuned.images_digest).json()["notes"]
    assert "validation images of v1:" in note and note.endswith("The others have no such advantage here.")


def test_equal_versions_share_the_first_place_and_none_is_marked_best(logged_in, make_version):
    versions = [make_version(number) for number in (1, 2, 3)]
    first = make_evaluation(versions[0], seed=1)
    make_evaluation(versions[1], images_like=first, seed=2)
    make_evaluation(versions[2], images_like=first, seed=3, quality=0.1)
    document = asked(logged_in, versions).json()
    assert [(row["label"], row["place"], row["shared"]) for row in document["ranking"]][2] == ("v3", 3, False)
    assert [row["place"] for row in document["ranking"]] == [1, 1, 3]
    assert "auc" not in document["best"]
    page = page_of(logged_in, versions)
    assert "The data cannot tell v1 and v2 apart" in page
    assert page.count("Shares this place") == 2
    assert "<strong>Best</strong>" not in page


def test_every_figure_of_every_version_stands_in_the_table_with_its_interval(logged_in, good_and_poor):
    page = page_of(logged_in, good_and_poor)
    for version in good_and_poor:
        auc = version.evaluations.get().metrics["auc"]
        assert f"{auc['value']:.3f}<br>" in page
        assert f"{auc['low']:.3f} to {auc['high']:.3f}" in page


def test_the_pair_table_has_raw_and_corrected_p_values(logged_in, make_version):
    versions = [make_version(number) for number in (1, 2, 3)]
    first = make_evaluation(versions[0], seed=1)
    for seed, version in enumerate(versions[1:], 2):
        make_evaluation(version, images_like=first, seed=seed, quality=1.2)
    pairs = asked(logged_in, versions).json()["pairs"]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [("v1", "v2"), ("v1", "v3"), ("v2", "v3")]
    assert any(pair["auc"]["p_corrected"] > pair["auc"]["p"] for pair in pairs)
    page = page_of(logged_in, versions)
    table = page.split('id="pairs-title"')[1].split("</table>")[0]
    for pair in pairs:
        for p in (
            pair["auc"]["p"],
            pair["auc"]["p_corrected"],
            pair["decisions"]["p"],
            pair["metrics"]["f1"]["p_corrected"],
        ):
            assert ("&lt; 0.001" if p < 0.001 else f"{p:.3f}") in table
    assert "AUC: DeLong." in table


def test_versions_of_different_test_parts_are_not_ranked_and_the_page_offers_common_images(logged_in, make_version):
    versions = [make_version(1), make_version(2)]
    make_evaluation(versions[0], seed=1)
    make_evaluation(versions[1], seed=2, patients=30)
    page = page_of(logged_in, versions)
    assert "were not tested on the same images" in page
    assert "Not ranked." in page
    assert "No pair of these versions can be tested" in page
    assert reverse("inference:evaluation-run-several") in page
    assert "best</span>" not in page


def test_a_clinician_is_not_offered_what_only_data_scientists_may_start(client, bob, make_version):
    versions = [make_version(1), make_version(2)]
    make_evaluation(versions[0], seed=1)
    make_evaluation(versions[1], seed=2)
    client.force_login(bob)
    assert reverse("inference:evaluation-run-several") not in page_of(client, versions)


def test_overlapping_test_parts_can_be_compared_on_the_images_that_all_share(logged_in, make_version):
    versions = [make_version(1), make_version(2)]
    first = make_evaluation(versions[0], seed=1, quality=0.2)
    images = first.images
    part = images.where(images.groups >= 10)
    good = make_evaluation(versions[1], images_like=first, seed=2, quality=3.0).images
    make_evaluation(versions[1], images=good.where(good.groups >= 10))
    document = asked(logged_in, versions).json()
    assert document["pairs"] == []
    (shared,) = [one["value"] for one in document["image_sets"] if one["value"].startswith("shared-")][:1]
    together = asked(logged_in, versions, images=shared).json()
    assert [row["images"] for row in together["measured"]] == [len(part.labels)] * 2
    assert together["same_images"]
    assert together["pairs"][0]["better"] == "v2"
    page = page_of(logged_in, versions, images=shared)
    assert "v2 is better than v1" in page
    assert "were computed again on the images that all share" in page


def test_images_that_all_were_measured_on_are_offered_by_the_name_of_their_dataset(logged_in, good_and_poor):
    first = make_evaluation(good_and_poor[0], kind="external", seed=5)
    make_evaluation(good_and_poor[1], kind="external", images_like=first, seed=6)
    document = asked(logged_in, good_and_poor).json()
    label = "Another clinic: other images, 80 images"
    assert {"value": first.images_digest, "label": label, "shared": False} in document["image_sets"]
    outside = asked(logged_in, good_and_poor, images=first.images_digest).json()
    assert {row["kind"] for row in outside["evaluations"]} == {"external"}
    assert outside["metrics"]["auc"][0]["value"] == first.metrics["auc"]["value"]


def test_a_version_without_kept_answers_is_named_and_the_others_are_compared(logged_in, good_and_poor, make_version):
    old = make_version(3)
    page = page_of(logged_in, [*good_and_poor, old])
    assert "The answers of v3 on the test part were not kept" in page
    assert "v2 is better than v1" in page


def test_answers_that_were_changed_on_the_disk_are_said_and_nothing_of_it_is_kept(logged_in, good_and_poor):
    path = file_of(good_and_poor[0].evaluations.get().key)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    document = asked(logged_in, good_and_poor).json()
    assert any("were changed" in sentence for sentence in document["obstacles"])
    path.write_bytes(content)
    assert asked(logged_in, good_and_poor).json()["pairs"]


@pytest.mark.parametrize("metric", ["f1", "brier", "log_loss"])
def test_the_ranking_goes_by_the_figure_of_choice(logged_in, good_and_poor, metric):
    document = asked(logged_in, good_and_poor, metric=metric).json()
    assert document["metric"] == metric
    assert document["ranking"][0]["label"] == "v2"
    assert document["ranking"][0]["value"] == document["metrics"][metric][1]["value"]


def test_several_classes_have_a_link_for_each_and_their_mean(logged_in, make_version):
    graded = {"classes": GRADES, "positive_class": "", "threshold": None, "metrics": {"quadratic_kappa": 0.5}}
    versions = [make_version(number, **graded) for number in (1, 2)]
    first = make_evaluation(versions[0], seed=1)
    make_evaluation(versions[1], images_like=first, seed=2)
    page = page_of(logged_in, versions, **{"class": "mild"})
    assert 'aria-current="true">mild</a>' in page
    assert "&amp;class=#curves-title" in page
    charts = json.loads(page.split('id="comparison-charts" type="application/json">')[1].split("</script>")[0])
    assert [curve["class"] for curve in charts["roc"]] == ["mild", "mild"]
    assert asked(logged_in, versions).json()["curves"]["class"] == ""
    assert "compared by the paired bootstrap" in page


def test_curves_have_table_twins(logged_in, good_and_poor):
    document = asked(logged_in, good_and_poor).json()
    assert len(document["curves"]["roc_table"]) == len(document["curves"]["pr_table"]) == 21
    page = page_of(logged_in, good_and_poor)
    assert "the true positive rate that is reached with at most" in page
    assert "The best precision that goes with at least this recall" in page


def test_trainings_are_laid_over_each_other_by_epoch(logged_in, make_version):
    short = [{"epoch": 1, "val_loss": 0.7, "val_auc": 0.6}]
    long = [*short, {"epoch": 2, "val_loss": 0.512, "val_auc": None}]
    versions = [make_version(1, history=short), make_version(2, history=long)]
    page = page_of(logged_in, versions)
    assert "0.512" in page
    assert 'data-comparison-chart="val_loss"' in page
    assert asked(logged_in, versions).json()["histories"][1]["epochs"] == [1, 2]


def test_settings_that_differ_are_shown_with_the_words_of_the_training_and_equal_ones_are_not(logged_in, make_version):
    first = make_version(1)
    second = make_version(2, configuration={**first.configuration, "epochs": 77}, image_size=224)
    page = page_of(logged_in, [first, second])
    settings = page.split('id="settings-title"')[1]
    assert '<th scope="row">Epochs</th>' in settings
    assert "77" in settings
    assert '<th scope="row">Image size</th>' in settings
    assert "Learning rate" not in settings


def test_the_time_of_an_answer_is_the_median_of_what_was_measured_in_use(logged_in, make_version):
    versions = [make_version(1), make_version(2)]
    for milliseconds in (10, 20, 900):
        PredictionFactory(version=versions[0], latency_ms=milliseconds)
    row = page_of(logged_in, versions).split("Time of an answer (median)")[1].split("</tr>")[0]
    assert "20 ms" in row
    assert "not measured" in row


@pytest.mark.parametrize("count", [1, 11])
def test_fewer_than_two_and_more_than_ten_are_refused_with_the_chooser(logged_in, make_version, count):
    versions = [make_version(number) for number in range(1, count + 1)]
    words = f"Choose 2 to 10 versions to compare; {'1 was' if count == 1 else '11 were'} chosen."
    assert words in page_of(logged_in, versions, 400)
    assert words in str(asked(logged_in, versions).json()["errors"])


def test_naming_one_twice_is_naming_it_once(logged_in, make_version):
    version = make_version(1)
    assert "1 was chosen" in page_of(logged_in, [version, version], 400)


def test_versions_of_several_conditions_are_refused(logged_in, make_version, team):
    other = ModelVersionFactory(condition=ConditionFactory(slug="wrist", name="Wrist", team=team))
    words = "These versions answer different questions: Chest, Wrist."
    versions = [make_version(1), other]
    assert words in page_of(logged_in, versions, 400)
    assert words in str(asked(logged_in, versions).json())


def test_a_version_of_another_team_is_not_found_on_the_page_or_by_the_api(client, charlie, good_and_poor):
    own = ModelVersionFactory(condition=ConditionFactory(slug="own", team=None))
    client.force_login(charlie)
    assert "chest" not in page_of(client, [own, good_and_poor[0]], 404)
    assert asked(client, [own, good_and_poor[0]]).status_code == 404
    assert "CHEST" not in client.get(PAGE).content.decode()


@pytest.mark.parametrize("wrong", ["x", "-1", "9" * 40, "1e3", "٣"])
def test_what_is_no_number_of_a_version_is_not_found(logged_in, good_and_poor, wrong):
    assert logged_in.get(PAGE, {"version": [good_and_poor[0].pk, wrong]}).status_code == 404


@pytest.mark.parametrize(
    ("name", "value"), [("metric", "magic"), ("images", "shared-1-2"), ("images", "f" * 64), ("class", "<b>x</b>")]
)
def test_choices_that_are_none_are_refused_in_words(logged_in, good_and_poor, name, value):
    page = page_of(logged_in, good_and_poor, 400, **{name: value})
    assert "<b>x</b>" not in page
    assert "Choose" in page
    assert asked(logged_in, good_and_poor, **{name: value}).status_code == 400


def test_hostile_names_stay_text(logged_in, make_version):
    hostile = "<script>alert(1)</script>\"'&"
    fields = {"dataset_name": hostile, "classes": ["NORMAL", hostile], "positive_class": hostile}
    versions = [make_version(number, **fields, history=[{"epoch": 1, "val_loss": 0.5}]) for number in (1, 2)]
    versions.append(make_version(3, architecture=hostile[:60], **fields))
    first = make_evaluation(versions[0], seed=1)
    for seed, version in enumerate(versions[1:], 2):
        make_evaluation(version, images_like=first, seed=seed)
    page = page_of(logged_in, versions)
    assert "<script>alert(1)" not in page
    assert escape(hostile) in page


def test_the_chooser_offers_conditions_with_two_versions_and_the_list_has_check_boxes(logged_in, good_and_poor, team):
    lone = ModelVersionFactory(condition=ConditionFactory(slug="lone", name="Lonely", team=team))
    page = logged_in.get(PAGE).content.decode()
    assert all(f'value="{version.pk}"' in page for version in good_and_poor)
    assert "Lonely" not in page
    listed = logged_in.get(reverse("registry:version-list")).content.decode()
    assert f'<form class="card" method="get" action="{PAGE}">' in listed
    assert all(f'name="version" value="{version.pk}"' in listed for version in [*good_and_poor, lone])


def test_without_two_versions_the_page_says_what_to_do(logged_in):
    assert "There is nothing to compare yet" in logged_in.get(PAGE).content.decode()


def test_the_navigation_leads_here_and_marks_one_page_only(logged_in, good_and_poor):
    page = page_of(logged_in, good_and_poor)
    navigation = page.split('id="navigation"')[1].split("</nav>")[0]
    assert navigation.count("aria-current") == 1
    assert f'href="{PAGE}" aria-current="page"' in navigation
    listed = logged_in.get(reverse("registry:version-list")).content.decode()
    assert listed.split('id="navigation"')[1].split("</nav>")[0].count("aria-current") == 1


def test_ten_versions_take_few_queries_and_fewer_when_they_were_compared_before(
    logged_in, make_version, django_assert_max_num_queries
):
    versions = [make_version(number) for number in range(1, 11)]
    first = make_evaluation(versions[0], seed=1, patients=20)
    for seed, version in enumerate(versions[1:], 2):
        make_evaluation(version, images_like=first, seed=seed)
    with django_assert_max_num_queries(14):
        page = page_of(logged_in, versions)
    assert "36 other pairs" in page
    with django_assert_max_num_queries(13):
        page_of(logged_in, versions)


def test_a_comparison_is_computed_once_and_answers_are_read_once(logged_in, good_and_poor):
    with patch.object(comparisons, "compare", wraps=comparisons.compare) as compare:
        first = asked(logged_in, good_and_poor).json()
        assert asked(logged_in, good_and_poor).json() == first
        page_of(logged_in, good_and_poor, metric="f1")
    assert compare.call_count == 1
    make_evaluation(good_and_poor[0], images_like=good_and_poor[1].evaluations.get(), seed=9)
    assert asked(logged_in, good_and_poor).json()["metrics"]["auc"][0] != first["metrics"]["auc"][0]


def test_the_command_prints_what_the_api_answers(logged_in, good_and_poor):
    out = StringIO()
    call_command("compare_models", "chest", "1", "2", json=True, stdout=out)
    assert json.loads(out.getvalue()) == asked(logged_in, good_and_poor).json()
    out = StringIO()
    call_command("compare_models", "chest", "2", "1", metric="f1", stdout=out)
    assert "Ranking by F1\n   1  v2" in out.getvalue()
    assert "v2 is better than v1" in out.getvalue()


def test_the_command_refuses_what_cannot_be_compared(good_and_poor, charlie):
    with pytest.raises(CommandError, match="1 was chosen"):
        call_command("compare_models", "chest", "1")
    with pytest.raises(CommandError, match="There is no version 9"):
        call_command("compare_models", "chest", "1", "9")
    with pytest.raises(CommandError, match="There is no version 1"):
        call_command("compare_models", "chest", "1", "2", user="charlie")
