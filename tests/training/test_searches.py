"""Train several: what a search consists of, how it is started and cancelled, and what comes out at the end."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from django_q.models import OrmQ
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import DatasetFactory, EpochMetricFactory, ModelVersionFactory, TrainingRunFactory
from training.comparing import compare
from training.configurations import PRESETS, ConfigurationError
from training.models import SavedPreset, Search, SpeedTest, TrainingRun
from training.searching import MAX_RUNS, auc_margin, parse_values, plan
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError

STANDARD = PRESETS["standard"].configuration
NEW = "/training/searches/new/"
HTMX = {"HX-Request": "true"}


def grid(architectures=("Custom_CNN",), eta=None, **values):
    return plan(architectures, STANDARD, values, preset="standard", eta=eta)


def text(response):
    return response.content.decode()


@pytest.fixture
def logged_in(client, alice):
    client.force_login(alice)
    return client


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
    with pytest.raises(JobError):
        Search.start(world.dataset, grid(seed=[1, 2, 3]), None)
    assert TrainingRun.objects.count() == 1
    assert Search.objects.count() == 1
    assert not OrmQ.objects.exists()
    assert not AuditEntry.objects.exists()


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
    assert auc_margin(0.9, 50, 50) == pytest.approx(1.96 * 0.0317, abs=0.002)
    assert auc_margin(0.9, 0, 50) is None
    assert auc_margin(1.0, 5, 5) == 0


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


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"values": {"dropout": [0.1, 9]}}, "dropout"),
        ({"values": {}}, "values"),
        ({"configuration": "forever"}, "configuration"),
        ({"architectures": []}, "architectures"),
        ({"architectures": ["GPT"]}, "architectures"),
        ({"eta": 7}, "eta"),
        ({"values": {"dropout": [{"a": 1}]}}, "dropout"),
        ({"values": {"optimizer": [["adam"]]}}, "optimizer"),
    ],
)
def test_the_api_names_the_field_that_is_wrong(logged_in, world, changes, field):
    wanted = {"dataset": world.dataset.pk, "architectures": ["Custom_CNN"], "values": {"dropout": [0.1, 0.2]}} | changes
    answer = logged_in.post("/api/v1/searches/", wanted, content_type="application/json")
    assert answer.status_code == 400
    assert field in answer.json()["errors"]


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
