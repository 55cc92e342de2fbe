"""Train several: what a search consists of, how it is started and cancelled, and what comes out at the end."""

import json
from io import StringIO
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from django_q.models import OrmQ
from hypothesis import given
from hypothesis import strategies as st

from registry.models import ModelVersion
from tests.factories import (
    ConditionFactory,
    DatasetFactory,
    EpochMetricFactory,
    ModelVersionFactory,
    PreparationFactory,
    TeamFactory,
    TrainingRunFactory,
    put_cache,
)
from training import preflight, searching
from training.comparing import compare
from training.configurations import PRESETS, ConfigurationError
from training.ml.initial import InitialWeights
from training.models import EpochMetric, SavedPreset, Search, SpeedTest, TrainingRun
from training.models import run as run_module
from training.search_preflight import outlook
from training.searching import MAX_RUNS, auc_margin, parse_values, plan
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError
from xrayplatform.system import NotEnoughDisk

STANDARD = PRESETS["standard"].configuration
NEW = "/training/searches/new/"
HTMX = {"HX-Request": "true"}


def grid(architectures=("Custom_CNN",), eta=None, **values):
    return plan(architectures, STANDARD, values, preset="standard", eta=eta)


def text(response):
    return response.content.decode()


# -- The grid


def test_every_combination_becomes_a_run():
    found = grid(["Custom_CNN", "ResNet50"], learning_rate=[0.001, 0.01], optimizer=["adam", "sgd"])
    assert len(found.candidates) == 8
    first, last = found.candidates[0], found.candidates[-1]
    assert (first.architecture, first.varied) == ("Custom_CNN", {"learning_rate": 0.001, "optimizer": "adam"})
    assert (last.architecture, last.configuration.learning_rate, last.configuration.optimizer) == (
        "ResNet50",
        0.01,
        "sgd",
    )
    assert last.configuration.epochs == STANDARD.epochs


@given(
    st.lists(st.sampled_from(["Custom_CNN", "VGG16", "ResNet50"]), min_size=1, max_size=5),
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.lists(st.sampled_from([0.0, 0.1, 0.2]), min_size=1, max_size=5),
)
def test_the_runs_are_all_different_and_as_many_as_the_choices_allow(architectures, seeds, dropouts):
    count = len(set(architectures)) * len(set(seeds)) * len(set(dropouts))
    if not 2 <= count <= MAX_RUNS:
        with pytest.raises(ConfigurationError):
            grid(architectures, seed=seeds, dropout=dropouts)
        return
    candidates = grid(architectures, seed=seeds, dropout=dropouts).candidates
    assert len(candidates) == count
    assert len({(item.architecture, item.configuration) for item in candidates}) == count


def test_a_single_value_changes_the_option_in_all_runs():
    found = grid(["Custom_CNN", "VGG16"], epochs=[4])
    assert [item.configuration.epochs for item in found.candidates] == [4, 4]
    assert (found.base.epochs, found.values) == (4, {})


def test_all_runs_of_a_race_can_have_another_number_of_epochs():
    assert grid(eta=3, seed=[1, 2, 3], epochs=[6]).rungs == (2, 6)


@pytest.mark.parametrize(
    ("architectures", "values", "field", "complaint"),
    [
        (["Custom_CNN"], {"learning_rate": [0.1, 7]}, "learning_rate", "Learning rate must be .* not 7"),
        (["Custom_CNN"], {"optimizer": ["adam", "magic"]}, "optimizer", "not 'magic'"),
        (["Custom_CNN"], {"flip": [True, "maybe"]}, "flip", "not 'maybe'"),
        (["Custom_CNN"], {"speed": [1, 2]}, "speed", "There is no training option 'speed'"),
        (["Custom_CNN"], {"image_size": [64, 128]}, "image_size", "chosen with the preparation"),
        (["Custom_CNN"], {"seed": []}, "seed", "at least one value"),
        (["Custom_CNN"], {}, "values", "one run only"),
        (["Custom_CNN"], {"seed": [1, 1.0]}, "values", "one run only"),
        ([], {"seed": [1, 2]}, "architectures", "at least one architecture"),
        (["Custom_CNN"], {"seed": list(range(61))}, "values", "These are 61 runs; at most 60"),
        (["Custom_CNN"], {"seed": [1], "epochs": [3], "zoom": [0.1], "dropout": [0.1]}, "values", "At most 3"),
    ],
)
def test_what_cannot_be_is_refused_with_the_option_and_the_value(architectures, values, field, complaint):
    with pytest.raises(ConfigurationError, match=complaint) as refusal:
        grid(architectures, **values)
    assert refusal.value.field == field


def test_the_values_are_counted_before_each_is_looked_at(monkeypatch):
    def looked_at(*args):
        raise AssertionError("looked at a value")

    monkeypatch.setattr(searching, "_checked", looked_at)
    with pytest.raises(ConfigurationError, match="These are 100000 runs"):
        grid(seed=list(range(100_000)))
    with pytest.raises(ConfigurationError, match="At most 3 options can vary"):
        grid(**{name: [1, 2] for name in searching.VARIABLE})


def test_a_value_that_is_given_often_counts_once():
    assert len(grid(seed=[1, 1.0, 2] * 40).candidates) == 2


def test_epochs_cannot_vary_in_a_race():
    with pytest.raises(ConfigurationError, match="all are compared after equally many"):
        grid(eta=3, epochs=[5, 10])


def test_the_share_that_goes_on_has_limits():
    with pytest.raises(ConfigurationError, match="One run in 2 or 3 or 4"):
        grid(eta=1, seed=[1, 2])


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("0.001, 0.0003", [0.001, 0.0003]),
        ("1;2", ["1;2"]),
        (" adamw,sgd ,", ["adamw", "sgd"]),
        ("yes, no", [True, False]),
        ("default, 16", [None, 16]),
        ("1e-3", [0.001]),
    ],
)
def test_values_are_read_from_a_list_with_commas(words, values):
    assert parse_values("x", words) == values


def test_an_empty_list_of_values_is_refused():
    with pytest.raises(ConfigurationError, match="Give the values of learning rate"):
        parse_values("learning_rate", " , ")


# -- Starting


def test_a_search_starts_all_its_runs_with_low_priority(world, alice):
    search = Search.start(world.dataset, grid(seed=[1, 2, 3]), alice, name=" Seeds ")
    runs = list(search.runs.order_by("pk"))
    assert [run.configuration["seed"] for run in runs] == [1, 2, 3]
    assert {(run.priority, run.state, run.created_by, run.preset) for run in runs} == {
        (-1, "queued", alice, "standard")
    }
    assert (search.name, search.preparation, search.mode) == ("Seeds", world.preparation, "grid")
    assert OrmQ.objects.filter(key="train").exists()
    entry = AuditEntry.objects.get(action="search.start")
    assert (entry.actor, entry.after["runs"], entry.after["values"]) == (alice, 3, {"seed": [1, 2, 3]})


def test_a_search_without_a_name_is_called_by_what_varies(world):
    search = Search.start(world.dataset, grid(["Custom_CNN", "VGG16"], learning_rate=[0.01, 0.001]), None)
    assert search.name == "2 architectures, Learning rate"


def test_when_one_run_cannot_be_created_none_is(world, monkeypatch):
    create = TrainingRun.create.__func__

    def fail_at_third(cls, *args, **options):
        if TrainingRun.objects.exclude(pk=world.run.pk).count() == 2:
            raise JobError("The disk is full.")
        return create(cls, *args, **options)

    monkeypatch.setattr(TrainingRun, "create", classmethod(fail_at_third))
    before = AuditEntry.objects.count()
    with pytest.raises(JobError):
        Search.start(world.dataset, grid(seed=[1, 2, 3]), None)
    assert TrainingRun.objects.count() == 1
    assert Search.objects.count() == 1
    assert not OrmQ.objects.exists()
    assert AuditEntry.objects.count() == before


def test_single_trainings_of_colleagues_go_before_a_search(world, alice):
    Search.start(world.dataset, grid(seed=[1, 2]), alice)
    single = TrainingRunFactory(preparation=world.preparation)
    world.run.request_cancel(alice)
    assert TrainingRun.claim_next() == single


# -- The form


def choices(world, **changes):
    chosen = {
        "dataset": world.dataset.pk, "architectures": ["Custom_CNN", "VGG16"], "configuration": "standard",
        "option_1": "learning_rate", "values_1": "0.001, 0.0003", "mode": "halving", "eta": "3", "name": "Rates",
    }  # fmt: skip
    return chosen | changes


def test_the_form_starts_a_search(logged_in, world, alice):
    response = logged_in.post(NEW, choices(world))
    search = Search.objects.latest("pk")
    assert response.url == search.get_absolute_url()
    assert (search.runs.count(), search.mode, search.created_by) == (4, "halving", alice)
    assert search.parameters["eta"] == 3


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"values_1": "0.001, 7"}, "Learning rate must be a number above 0 up to 1, not 7."),
        ({"values_1": f"0.1, {10**380}"}, "Learning rate must be a number above 0 up to 1, not 1000"),
        ({"values_1": ""}, "Give the values of learning rate"),
        ({"option_1": ""}, "Choose the option that these are the values of."),
        ({"option_2": "learning_rate", "values_2": "0.1"}, "This option varies already"),
        ({"option_1": "image_size"}, "not one of the available choices"),
        ({"architectures": []}, "This field is required"),
        ({"architectures": ["GPT"]}, "not one of the available choices"),
        ({"mode": "magic"}, "not one of the available choices"),
        ({"configuration": "forever"}, "not one of the available choices"),
        ({"dataset": 999999}, "not one of the available choices"),
        ({"eta": "9"}, "not one of the available choices"),
        ({"option_1": "epochs", "values_1": "5, 6"}, "all are compared after equally many"),
        ({"option_1": "seed", "values_1": ",".join(map(str, range(40)))}, "These are 80 runs; at most 60"),
        ({"architectures": ["VGG16"], "values_1": "0.1"}, "This is one run only."),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_started(logged_in, world, changes, complaint):
    response = logged_in.post(NEW, choices(world, **changes))
    assert response.status_code == 400
    assert complaint in text(response)
    assert Search.objects.count() == 1


def test_a_dataset_that_is_not_prepared_is_refused_with_a_link(logged_in, world):
    other = DatasetFactory()
    response = logged_in.post(NEW, choices(world, dataset=other.pk))
    assert response.status_code == 400
    assert f'href="{other.get_absolute_url()}#prepare"' in text(response)


def test_a_saved_preset_of_the_team_can_be_the_base_and_another_teams_cannot(logged_in, world, alice, charlie):
    own = SavedPreset.objects.create(
        name="Gentle", team=world.team, configuration=STANDARD.with_options(epochs=7).to_json()
    )
    other = SavedPreset.objects.create(name="Theirs", team=charlie.teams.get(), configuration=STANDARD.to_json())
    logged_in.post(NEW, choices(world, configuration=own.key))
    search = Search.objects.latest("pk")
    assert (search.runs.first().epochs, search.parameters["configuration"]) == (7, "Gentle")
    assert logged_in.post(NEW, choices(world, configuration=other.key)).status_code == 400


def test_while_choosing_the_page_says_how_many_runs_come_out(logged_in, world):
    fragment = text(logged_in.get(NEW, choices(world, values_1="0.001, 0.0003, 0.01"), headers=HTMX))
    assert "<strong>6 runs.</strong>" in fragment
    assert "compared after 3 and 8 epochs" in fragment
    assert "How long that takes is not known yet" in fragment
    assert "<html" not in fragment
    assert Search.objects.count() == 1


def test_while_choosing_the_page_says_how_long_it_takes(logged_in, world):
    for architecture in ("Custom_CNN", "VGG16"):
        SpeedTest.objects.create(
            architecture=architecture, image_size=64, batch_size=16, state="succeeded", step_seconds=1.0,
            prediction_seconds=0.1, start_seconds=5, finished_at=timezone.now(),
        )  # fmt: skip
    assert "in all on this server" in text(logged_in.get(NEW, choices(world), headers=HTMX))
    assert "in all on this server" in text(logged_in.get(NEW, choices(world, mode="grid"), headers=HTMX))


def test_while_choosing_the_page_says_what_is_wrong(logged_in, world):
    assert "not 7." in text(logged_in.get(NEW, choices(world, values_1="7"), headers=HTMX))


def test_while_choosing_the_page_says_how_many_train_to_the_end(logged_in, world):
    many = choices(world, option_1="seed", values_1=",".join(map(str, range(14))))
    assert "3 train to the end, 25 epochs" in text(logged_in.get(NEW, many, headers=HTMX))
    assert "One trains to the end" in text(logged_in.get(NEW, choices(world), headers=HTMX))
    assert "All train to the end" in text(logged_in.get(NEW, choices(world, mode="grid"), headers=HTMX))


@pytest.fixture
def other_size(world):
    """A saved configuration whose images the dataset has no preparation of."""
    configuration = STANDARD.with_options(image_size=128, preprocessing=[])
    return SavedPreset.objects.create(name="Larger", team=world.team, configuration=configuration.to_json())


@pytest.mark.parametrize("started", [False, True])
def test_a_preparation_that_the_configuration_lacks_is_named_with_a_link_to_make_it(
    logged_in, world, other_size, started
):
    wanted = choices(world, configuration=other_size.key)
    page = text(logged_in.post(NEW, wanted) if started else logged_in.get(NEW, wanted, headers=HTMX))
    assert "no finished preparation with images of 128 pixels and no preprocessing step" in page
    assert f"{world.dataset.get_absolute_url()}?image_size=128#prepare" in page
    assert Search.objects.count() == 1


def test_the_time_is_that_of_the_preparation_the_configuration_asks_for(world, other_size, alice):
    for size in (128, 64):
        put_cache(PreparationFactory(dataset=world.dataset, image_size=size))
    for size, seconds in ((128, 1.0), (64, 50.0)):
        SpeedTest.objects.create(
            architecture="Custom_CNN", image_size=size, batch_size=16, state="succeeded", step_seconds=seconds,
            prediction_seconds=0.1, start_seconds=5, finished_at=timezone.now(),
        )  # fmt: skip
    wanted = plan(["Custom_CNN"], other_size.as_preset().configuration, {"seed": [1, 2]}, preset="Larger")
    usual = plan(["Custom_CNN"], STANDARD, {"seed": [1, 2]}, preset="standard")
    assert 10 * outlook(world.dataset, wanted, alice).seconds < outlook(world.dataset, usual, alice).seconds


def test_while_choosing_the_page_says_what_stands_against_an_architecture(logged_in, world, monkeypatch):
    def refuse(need):
        raise NotEnoughDisk("Not enough disk.")

    monkeypatch.setattr(preflight, "require_disk", refuse)
    there = SimpleNamespace(memory_total=2**28, memory_used=0, gpus=(), cpu_count=2)
    monkeypatch.setattr(preflight, "resources", lambda: there)
    fragment = text(logged_in.get(NEW, choices(world), headers=HTMX))
    for words in ("Custom CNN: disk", "VGG16: disk", "VGG16: memory", "VGG16: initial weights", "Not enough memory"):
        assert f"<strong>{words}" in fragment or words in fragment


# -- Initial weights


def test_all_runs_start_from_what_was_chosen(logged_in, world):
    logged_in.post(NEW, choices(world, initial="scratch"))
    search = Search.objects.latest("pk")
    assert {run.initial for run in search.runs.all()} == {"scratch"}
    assert search.parameters["initial"] == "scratch"
    assert "<dd>From scratch</dd>" in text(logged_in.get(search.get_absolute_url()))


def test_weights_that_are_not_there_are_a_problem_before_and_a_refusal_at_the_start(logged_in, world):
    fragment = text(logged_in.get(NEW, choices(world, initial="imagenet"), headers=HTMX))
    assert "The ImageNet weights of VGG16 are not installed." in fragment
    refused = logged_in.post(NEW, choices(world, initial="imagenet"))
    assert refused.status_code == 400
    assert "has no published ImageNet weights" in text(refused)
    assert Search.objects.count() == 1


def test_a_version_to_start_from_must_be_named_and_seen(logged_in, world):
    nothing = logged_in.post(NEW, choices(world, initial="version"))
    assert "Choose the version whose weights" in text(nothing)
    foreign = ModelVersionFactory(condition=ConditionFactory(team=TeamFactory()))
    assert foreign.pk not in [version.pk for version in ModelVersion.objects.to_start_from(nothing.wsgi_request.user)]
    hidden = logged_in.post(NEW, choices(world, initial="version", initial_version=foreign.pk))
    assert "not one of the available choices" in text(hidden)
    assert Search.objects.count() == 1


def test_what_the_runs_of_an_architecture_start_from_is_verified_once(logged_in, world, monkeypatch):
    verified = []

    def verify(*args):
        verified.append(args)
        return InitialWeights("version", "chest version 1")

    monkeypatch.setattr(run_module, "from_version", verify)
    logged_in.post(NEW, choices(world, initial="version", initial_version=world.version.pk))
    assert Search.objects.latest("pk").runs.count() > 2
    assert sorted(args[-1] for args in verified) == ["Custom_CNN", "VGG16"]


def test_a_search_from_a_version_names_it(logged_in, world, monkeypatch):
    words = InitialWeights("version", "chest version 1")
    monkeypatch.setattr(run_module, "from_version", lambda *args: words)
    logged_in.post(NEW, choices(world, initial="version", initial_version=world.version.pk))
    search = Search.objects.latest("pk")
    assert {(run.initial_version, run.initial_weights) for run in search.runs.all()} == {(world.version, words.words)}
    # They start from weights: nobody is compared while the heads alone learn.
    assert search.parameters["rungs"] == [8, 25]
    assert world.version.get_absolute_url() in text(logged_in.get(search.get_absolute_url()))


# -- Comparing


@pytest.fixture
def finished(world, alice):
    """Run 0 failed; 1 is best on validation and worse on test than 2; 3 was stopped."""
    counts = {split: {"NORMAL": 50, "PNEUMONIA": 50} for split in ("train", "validation", "test")}
    world.preparation.counts, world.preparation.split_digest = counts, "s" * 64
    world.preparation.save()
    search = Search.start(world.dataset, grid(learning_rate=[0.1, 0.01, 0.001, 0.0001]), alice)
    runs = list(search.runs.order_by("pk"))
    for run, loss, auc in zip(runs[1:], (0.2, 0.3, 0.1), (0.95, 0.94, 0.7), strict=True):
        EpochMetricFactory(run=run, epoch=1, val_loss=loss + 1, val_auc=0.5)
        EpochMetricFactory(run=run, epoch=2, val_loss=loss, val_auc=auc)
    for run, state, auc in zip(runs, ("failed", "succeeded", "succeeded", "cancelled"), (0, 0.9, 0.99, 0), strict=True):
        version = None
        if state == "succeeded":
            version = ModelVersionFactory(
                condition=world.condition, metrics={"auc": auc, "accuracy": 0.8, "f1": 0.7}, split_digest="s" * 64
            )
        TrainingRun.objects.filter(pk=run.pk).update(state=state, version=version, epoch=2)
    return search


def test_the_best_is_chosen_on_validation_never_on_test(finished):
    first, second, third, fourth = compare(finished).standings
    # The stopped run has the lowest loss, but no version to choose.
    assert (first.run.state, first.is_best) == ("cancelled", False)
    assert (second.options, second.is_best, second.best.epoch) == ({"learning_rate": 0.01}, True, 2)
    assert (third.test["auc"], third.is_best) == (0.99, False)
    assert (fourth.place, fourth.best) == (None, None)


def test_the_conclusion_names_the_best_the_margin_the_chance_and_the_looks_at_the_test_part(finished, world):
    best, chance, test = compare(finished).conclusion
    runs = list(finished.runs.order_by("pk"))
    assert f"run {runs[1].pk} (Custom_CNN, learning rate 0.01) is best: loss 0.200, AUC 0.950 after 2 epochs." in best
    assert "its loss is higher by 0.100." in best
    assert "With 100 validation images" in chance and "One other finished run lies within that." in chance
    # The version of `world` was measured on the same split.
    assert "looked at 3 times" in test


def test_there_is_no_conclusion_while_a_run_goes_on(finished):
    finished.runs.filter(state="failed").update(state="running")
    assert compare(finished).conclusion == []


def test_without_a_finished_run_there_is_nothing_to_choose(finished):
    finished.runs.update(state="failed", version=None)
    assert compare(finished).conclusion == [
        "No run of this search finished, so there is nothing to choose from. Each run's page says why."
    ]


def test_a_single_finished_run_is_not_called_better_than_others(finished):
    TrainingRun.objects.filter(pk=list(finished.runs.order_by("pk"))[2].pk).update(state="failed")
    assert "No other run finished" in compare(finished).conclusion[0]


def test_the_winner_of_a_race_is_compared_with_its_closest_rival_after_equally_many_epochs(world):
    search = Search.start(world.dataset, grid(eta=3, seed=[1, 2, 3]), None)
    winner, rival, _ = search.runs.order_by("pk")
    for run, losses in ((winner, [0.9, 0.5, 0.1]), (rival, [0.8, 0.6])):
        for epoch, loss in enumerate(losses, start=1):
            EpochMetricFactory(run=run, epoch=epoch, val_loss=loss)
    version = ModelVersionFactory(condition=world.condition)
    search.runs.update(state="cancelled", epoch=2)
    search.runs.filter(pk=winner.pk).update(state="succeeded", version=version, epoch=3)
    assert "was stopped after 2 epochs with a loss of 0.600, where the best had 0.500." in compare(search).conclusion[0]


def test_the_margin_of_an_auc_is_that_of_hanley_and_mcneil():
    # Their table: for AUC 0.9 with 50 and 50 cases the standard error is about 0.0317.
    # Moved towards chance by one image more, it is a little larger.
    assert 1.96 * 0.0317 < auc_margin(0.9, 50, 50) < 1.96 * 0.035
    assert auc_margin(0.9, 0, 50) is None


@given(st.floats(0, 1), st.integers(1, 3000), st.integers(1, 3000))
def test_the_margin_of_an_auc_is_never_nothing(auc, positives, negatives):
    margin = auc_margin(auc, positives, negatives)
    assert min(3 / min(positives, negatives), 0.5) <= margin <= 0.5
    assert margin == pytest.approx(auc_margin(1 - auc, negatives, positives), abs=1e-6)


@pytest.mark.parametrize(("images", "margin"), [(5, 0.5), (20, 0.15), (50, 0.06), (500, 0.006)])
def test_a_perfect_auc_of_few_images_is_uncertain_all_the_same(images, margin):
    assert auc_margin(1.0, images, images) == pytest.approx(margin, abs=0.0005)


def test_a_perfect_auc_is_not_called_certain(finished):
    for before, after in ((0.95, 1.0), (0.94, 0.95)):
        EpochMetric.objects.filter(run__search=finished, val_auc=before).update(val_auc=after)
    chance = compare(finished).conclusion[1]
    assert "an AUC of 1.000 is uncertain by about 0.060 (95 %). One other finished run lies within that." in chance


def test_with_too_few_images_of_a_class_no_run_is_called_best(finished, world, logged_in):
    world.preparation.counts["validation"] = {"NORMAL": 50, "PNEUMONIA": 19}
    world.preparation.save()
    found = compare(Search.objects.get(pk=finished.pk))
    lowest, too_few, _ = found.conclusion
    assert "has the lowest loss: loss 0.200" in lowest and "best" not in lowest
    assert "too few validation images to tell them apart: 19 of PNEUMONIA" in too_few
    assert "95 %" not in " ".join(found.conclusion)
    assert "Lowest loss</span>" in text(logged_in.get(finished.get_absolute_url()))


def test_twenty_images_of_each_class_are_enough_for_a_claim(finished, world):
    world.preparation.counts["validation"] = {"NORMAL": 20, "PNEUMONIA": 20}
    world.preparation.save()
    found = compare(Search.objects.get(pk=finished.pk))
    assert found.too_few == ""
    assert "is best" in found.conclusion[0]


def test_the_page_shows_the_comparison_and_the_conclusion(logged_in, finished):
    page = text(logged_in.get(finished.get_absolute_url()))
    for words in ("Conclusion", "Learning rate", "0.0001", "looked at 3 times", "is best: loss 0.200", "0.990"):
        assert words in page
    assert "every 3s" not in page


def test_the_fragment_renews_the_tables_and_reloads_the_page_at_the_end(logged_in, finished):
    ended = logged_in.get(finished.get_absolute_url(), headers=HTMX)
    assert ended["HX-Refresh"] == "true"
    finished.runs.filter(state="failed").update(state="running")
    going_on = logged_in.get(finished.get_absolute_url(), headers=HTMX)
    assert "HX-Refresh" not in going_on
    assert "every 3s" in text(going_on)
    assert text(going_on).count('hx-swap-oob="true"') == 2


def test_the_curves_of_all_runs_come_as_json(logged_in, finished):
    curves = logged_in.get(f"{finished.get_absolute_url()}curves/").json()["runs"]
    assert [len(curve["epoch"]) for curve in curves] == [2, 2, 2, 0]
    assert [curve["best"] for curve in curves] == [False, True, False, False]


def test_the_list_shows_how_far_each_search_is(logged_in, finished):
    page = text(logged_in.get("/training/searches/"))
    assert "Learning rate" in page and "Ended" in page
    assert "No search yet" not in page


def test_cancelling_all_keeps_what_finished(logged_in, finished):
    finished.runs.filter(state="failed").update(state="queued")
    assert logged_in.post(f"{finished.get_absolute_url()}cancel/").url == finished.get_absolute_url()
    assert sorted(finished.runs.values_list("state", flat=True)) == ["cancelled", "cancelled", "succeeded", "succeeded"]
    assert AuditEntry.objects.get(action="search.cancel").after == {"runs": 1}
    page = text(logged_in.post(f"{finished.get_absolute_url()}cancel/", follow=True))
    assert "All its runs had already ended." in page


# -- API and command


def test_the_api_starts_shows_and_cancels_a_search(logged_in, world):
    wanted = {
        "dataset": world.dataset.pk,
        "architectures": ["Custom_CNN"],
        "values": {"dropout": [0.1, 0.2, 0.3]},
        "mode": "halving",
    }
    answer = logged_in.post("/api/v1/searches/", wanted, content_type="application/json")
    assert answer.status_code == 202
    made = answer.json()
    assert [run["options"] for run in made["runs"]] == [{"dropout": 0.1}, {"dropout": 0.2}, {"dropout": 0.3}]
    assert (made["active"], made["conclusion"], made["parameters"]["rungs"]) == (True, [], [8, 25])
    shown = logged_in.get(f"/api/v1/searches/{made['id']}/").json()
    assert shown == made
    assert made["id"] in [row["id"] for row in logged_in.get("/api/v1/searches/").json()["results"]]
    assert logged_in.post(f"/api/v1/searches/{made['id']}/cancel/").json()["active"] is False


def test_the_api_and_the_command_say_what_a_search_would_be_and_start_nothing(logged_in, world):
    wanted = {
        "dataset": world.dataset.pk,
        "architectures": ["Custom_CNN"],
        "values": {"seed": list(range(9))},
        "mode": "halving",
        "initial": "scratch",
    }
    answer = logged_in.post("/api/v1/searches/estimate/", wanted, content_type="application/json")
    assert answer.status_code == 200
    found = answer.json()
    assert (found["can_start"], found["runs"], found["rungs"], found["to_the_end"]) == (True, 9, [3, 8, 25], 1)
    assert (found["epochs"], found["seconds"]) == (9 * 3 + 3 * 5 + 17, None)
    options = {"vary": ["seed=0,1,2,3,4,5,6,7,8"], "mode": "halving", "initial": "scratch", "check": True}
    assert json.loads(command("create", world.dataset.name, json=True, **options)) == found
    words = command("create", world.dataset.name, **options)
    assert "9, compared after 3 and 8 epochs; 1 train to the end" in words and "not known" in words
    assert Search.objects.count() == 1
    assert not AuditEntry.objects.filter(action="search.start").exists()


def test_what_stands_against_a_search_is_in_the_estimate_and_fails_the_check(logged_in, world):
    wanted = {"dataset": world.dataset.pk, "architectures": ["VGG16", "Custom_CNN"], "initial": "imagenet"}
    found = logged_in.post("/api/v1/searches/estimate/", wanted, content_type="application/json").json()
    problems = {check["name"] for check in found["checks"] if check["level"] == "problem"}
    assert found["can_start"] is False
    assert {"VGG16: initial weights", "Custom CNN: initial weights"} <= problems
    refused = logged_in.post("/api/v1/searches/", wanted, content_type="application/json")
    assert refused.status_code == 409
    options = {"architecture": ["VGG16", "Custom_CNN"], "initial": "imagenet"}
    with pytest.raises(SystemExit):
        command("create", world.dataset.name, check=True, **options)
    with pytest.raises(CommandError, match="ImageNet weights of VGG16 are not installed"):
        command("create", world.dataset.name, **options)
    assert Search.objects.count() == 1


def test_the_estimate_names_a_preparation_that_is_missing(logged_in):
    wanted = {"dataset": DatasetFactory().pk, "architectures": ["Custom_CNN"], "values": {"seed": [1, 2]}}
    found = logged_in.post("/api/v1/searches/estimate/", wanted, content_type="application/json").json()
    assert (found["can_start"], found["checks"][0]["name"], found["seconds"]) == (False, "Dataset", None)
    assert found["checks"][0]["url"].endswith("#prepare")


def test_the_command_starts_from_a_version(world, monkeypatch):
    monkeypatch.setattr(run_module, "from_version", lambda *args: InitialWeights("version", "chest version 1"))
    name = f"{world.condition.slug}:{world.version.number}"
    command("create", world.dataset.name, vary=["seed=1,2"], initial_version=name)
    search = Search.objects.latest("pk")
    assert {run.initial_version for run in search.runs.all()} == {world.version}
    with pytest.raises(CommandError, match="no version; write it like"):
        command("create", world.dataset.name, vary=["seed=1,2"], initial_version="three")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"initial": "magic"}, "initial"),
        ({"initial": "version", "initial_version": 999999}, "initial_version"),
        ({"values": {"dropout": [0.1, 9]}}, "dropout"),
        ({"values": {}}, "values"),
        ({"configuration": "forever"}, "configuration"),
        ({"architectures": []}, "architectures"),
        ({"architectures": ["GPT"]}, "architectures"),
        ({"eta": 7}, "eta"),
        ({"values": {"dropout": [{"a": 1}]}}, "dropout"),
        ({"values": {"optimizer": [["adam"]]}}, "optimizer"),
        ({"values": {"epochs": [5, 10**400]}}, "epochs"),
        ({"values": {"learning_rate": [0.1, 10**400]}}, "learning_rate"),
        ({"values": {"learning_rate": [0.1, True]}}, "learning_rate"),
        ({"eta": True}, "eta"),
        ({"option": "seed"}, "option"),
        ({"dataset": True}, "dataset"),
        ({"dataset": 1.5}, "dataset"),
        ({"dataset": 10**400}, "dataset"),
    ],
)
def test_the_api_names_the_field_that_is_wrong(logged_in, world, changes, field):
    wanted = {"dataset": world.dataset.pk, "architectures": ["Custom_CNN"], "values": {"dropout": [0.1, 0.2]}} | changes
    answer = logged_in.post("/api/v1/searches/", wanted, content_type="application/json")
    assert answer.status_code == 400
    assert field in answer.json()["errors"]


def test_a_mode_that_does_not_exist_is_no_filter(logged_in, world):
    answer = logged_in.get("/api/v1/searches/", {"mode": "magic"})
    assert answer.status_code == 400 and "there are grid, halving" in str(answer.json()["errors"]["mode"])
    assert logged_in.get("/api/v1/searches/", {"mode": "grid"}).json()["results"]


def test_a_search_on_a_dataset_that_is_not_prepared_is_a_conflict(logged_in):
    wanted = {"dataset": DatasetFactory().pk, "architectures": ["Custom_CNN"], "values": {"seed": [1, 2]}}
    answer = logged_in.post("/api/v1/searches/", wanted, content_type="application/json")
    assert answer.status_code == 409
    assert "Dataset not prepared" in answer.json()["detail"]


@pytest.mark.parametrize("address", [NEW, "/api/v1/searches/"])
def test_a_search_cannot_be_started_on_another_teams_dataset(client, world, charlie, address):
    client.force_login(charlie)
    wanted = choices(world) | {"values": {"seed": [1, 2]}}
    answer = (
        client.post(address, wanted, content_type="application/json")
        if "api" in address
        else client.post(address, wanted)
    )
    assert answer.status_code == 400
    assert world.dataset.name not in text(answer)
    assert Search.objects.count() == 1


def command(*args, **options):
    out = StringIO()
    call_command("search", *args, stdout=out, **options)
    return out.getvalue()


def test_the_command_creates_lists_shows_and_cancels(world):
    made = json.loads(
        command(
            "create", world.dataset.name, vary=["learning_rate=0.001,0.0003", "flip=yes,no"], mode="halving", json=True
        )
    )
    assert len(made["runs"]) == 4
    assert made["runs"][1]["options"] == {"learning_rate": 0.001, "flip": False}
    listed = json.loads(command("list", json=True))["searches"]
    counts = {"runs": 4, "active": 4, "finished": 0}
    assert listed[0] == {"search": made["search"], "name": "Learning rate, Flip", "mode": "halving"} | counts
    number = str(made["search"])
    assert "queued: Custom_CNN learning_rate 0.001" in command("show", number)
    assert json.loads(command("cancel", number, json=True))["active"] is False


@pytest.mark.parametrize(
    ("arguments", "options", "complaint"),
    [
        (["create", "CHEST/secret study"], {"vary": ["dropout=0.1,9"]}, "Dropout must be"),
        (["create", "CHEST/secret study"], {"vary": ["dropout"]}, "Write each option once"),
        (["create", "CHEST/secret study"], {"vary": ["seed=1", "seed=2"]}, "Write each option once"),
        (
            ["create", "CHEST/secret study"],
            {"configuration": "x", "vary": ["seed=1,2"]},
            "There is no configuration 'x'",
        ),
        (["create", "CHEST/none"], {"vary": ["seed=1,2"]}, "Known datasets"),
        (["create"], {}, "Name the dataset"),
        (["show"], {}, "Which search"),
        (["show", "999999"], {}, "There is no search 999999"),
        (["cancel", "x"], {}, "There is no search x"),
    ],
)
def test_the_command_says_what_is_wrong(world, arguments, options, complaint):
    with pytest.raises(Exception, match=complaint):
        command(*arguments, **options)


def test_a_user_of_the_command_needs_the_right_and_a_team(world, bob, charlie):
    with pytest.raises(CommandError, match="no role that allows this"):
        command("create", world.dataset.name, user="bob", vary=["seed=1,2"])
    assert "Learning rates" in command("list", user="bob")
    with pytest.raises(CommandError, match="There is no search"):
        command("show", str(world.search.pk), user="charlie")
