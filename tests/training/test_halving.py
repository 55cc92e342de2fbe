"""Successive halving: who is compared when, who goes on, who is stopped; and nothing blocks a search."""

import hashlib
import math
import random
from dataclasses import replace

import pytest
from django.utils import timezone
from django_q.models import OrmQ
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import PreparationFactory, TrainingRunFactory, put_cache
from training.configurations import PRESETS
from training.ml.architectures import ARCHITECTURES, PublishedWeights
from training.models import Search, TrainingRun
from training.pretrained import pretrained_folder
from training.searching import (
    ETAS,
    SMALLEST_RUNG,
    going_on,
    next_rung,
    places,
    plan,
    planned_epochs,
    ranking,
    rungs,
)
from xrayplatform.audit import AuditEntry

STANDARD = PRESETS["standard"].configuration

# -- The arithmetic


def test_nine_runs_of_25_epochs_are_compared_after_3_and_8():
    assert rungs(25, 9) == (3, 8, 25)
    assert [places(runs) for runs in (9, 3, 1)] == [3, 1, 1]


def test_two_runs_are_compared_once():
    assert rungs(25, 2) == (8, 25)


def test_a_training_too_short_to_be_divided_is_not():
    assert rungs(5, 9) == (5,)
    assert rungs(3, 60, eta=2) == (3,)


@given(st.integers(1, 500), st.integers(1, 60), st.sampled_from(ETAS))
def test_rungs_grow_from_two_epochs_or_more_to_all(epochs, runs, eta):
    ladder = rungs(epochs, runs, eta=eta)
    assert ladder[-1] == epochs
    assert list(ladder) == sorted(set(ladder))
    assert len(ladder) == 1 or ladder[0] >= SMALLEST_RUNG


@given(st.integers(1, 500), st.integers(1, 60), st.sampled_from(ETAS))
def test_there_are_never_more_comparisons_than_it_takes_to_find_one_winner(epochs, runs, eta):
    ladder = rungs(epochs, runs, eta=eta)
    for _ in ladder[:-1]:
        assert runs > 1
        runs = places(runs, eta=eta)


@given(st.integers(1, 500), st.integers(2, 60), st.sampled_from(ETAS))
def test_a_race_never_trains_more_than_the_grid(epochs, runs, eta):
    each = [epochs] * runs
    assert planned_epochs(each, rungs(epochs, runs, eta=eta), eta=eta) <= planned_epochs(each)


@given(st.integers(1, 500), st.integers(1, 60), st.sampled_from(ETAS))
def test_the_limits_lead_from_the_first_rung_to_no_limit(epochs, runs, eta):
    ladder = rungs(epochs, runs, eta=eta)
    limit, seen = next_rung(ladder, 0), []
    while limit is not None:
        seen.append(limit)
        limit = next_rung(ladder, limit)
    assert tuple(seen) == ladder[:-1]


@given(st.dictionaries(st.integers(1, 99), st.none() | st.floats(allow_nan=True), max_size=12))
def test_the_ranking_is_by_loss_and_what_is_no_number_comes_last(losses):
    order = ranking(losses)
    assert sorted(order) == sorted(losses)
    shown = [math.inf if losses[run] is None or math.isnan(losses[run]) else losses[run] for run in order]
    assert shown == sorted(shown)


def test_of_equal_losses_the_earlier_run_comes_first():
    assert ranking({3: 0.5, 1: 0.5, 2: None}) == [1, 3, 2]


@given(st.dictionaries(st.integers(1, 99), st.none() | st.floats(0, 5), max_size=12), st.integers(1, 12))
def test_whoever_is_as_good_as_one_that_goes_on_goes_on_too(losses, number):
    chosen = going_on(losses, number)
    assert chosen[:number] == ranking(losses)[:number]
    stopped = {losses[run] for run in losses if run not in chosen} - {None}
    assert not stopped & {losses[run] for run in chosen}


def test_a_run_without_a_loss_ties_with_nobody():
    assert going_on({1: None, 2: math.nan, 3: None}, 1) == [1]


# -- Initial weights


def race(architectures=("VGG16",), pretrained=("VGG16",), **values):
    chosen = values or {"seed": list(range(9))}
    base = STANDARD.with_options(**{name: chosen.pop(name) for name in ("epochs",) if name in chosen})
    return plan(architectures, base, chosen, preset="standard", eta=3).starting_from_weights(pretrained)


def test_runs_that_start_from_weights_are_not_compared_while_only_their_heads_learn():
    # The head learns alone for 5 epochs, so the rung at 3 is left out and more runs train to the end.
    assert race(pretrained=()).rungs == (3, 8, 25)
    assert (race().rungs, race().starts) == ((8, 25), [9, 3])


def test_the_run_with_the_longest_head_stage_decides_for_all():
    assert race(head_epochs=[0, 1, 6, 7]).rungs == (25,)
    assert race(head_epochs=[0, 1, 6]).rungs == (8, 25)
    assert race(["Custom_CNN", "VGG16"], seed=[1, 2, 3, 4, 5]).rungs == (8, 25)


def test_where_the_head_alone_learns_to_the_end_there_is_nothing_to_wait_for():
    assert race(fine_tuning_depth=[0], seed=list(range(9))).rungs == (3, 8, 25)
    assert race(fine_tuning_depth=[0, 0.5, 1]).first_rung == 7


@given(st.integers(1, 100), st.integers(0, 50), st.integers(2, 20))
def test_no_comparison_lies_in_the_head_stage(epochs, head, runs):
    found = race(epochs=epochs, head_epochs=[head], seed=list(range(runs)))
    assert all(rung >= found.head_epochs[0] + SMALLEST_RUNG for rung in found.rungs[:-1])


@pytest.fixture
def installed(world, monkeypatch):
    """ImageNet weights of VGG16, as far as anybody looks before a training."""
    published = PublishedWeights("vgg.h5", hashlib.sha256(b"published").hexdigest(), "folder")
    monkeypatch.setitem(ARCHITECTURES, "VGG16", replace(ARCHITECTURES["VGG16"], pretrained=published))
    pretrained_folder().mkdir()
    (pretrained_folder() / published.file_name).write_bytes(b"published")


def test_a_search_asks_its_runs_what_they_start_from(world, installed):
    planned = plan(["VGG16"], STANDARD, {"seed": list(range(9))}, preset="standard", eta=3)
    search = Search.start(world.dataset, planned, None)
    assert search.parameters["rungs"] == [8, 25]
    assert {run.epoch_limit for run in search.runs.all()} == {8}
    scratch = Search.start(world.dataset, planned, None, initial="scratch")
    assert scratch.parameters["rungs"] == [3, 8, 25]
    assert {run.initial_weights for run in scratch.runs.all()} == {"scratch"}


# -- The search


@pytest.fixture
def search(world):
    """Nine runs of 25 epochs; the first rung is at 3 epochs."""
    rates = [round(0.0001 * (number + 1), 4) for number in range(9)]
    planned = plan(["Custom_CNN"], STANDARD, {"learning_rate": rates}, preset="standard", eta=3)
    found = Search.start(world.dataset, planned, None, name="Rates")
    OrmQ.objects.all().delete()
    return found


def runs_of(search):
    return list(search.runs.order_by("pk"))


def reach(run, epochs, loss):
    """The run trained so far and waits for the others."""
    for epoch in range(1, epochs + 1):
        run.metrics.get_or_create(epoch=epoch, defaults={"loss": 0.5, "val_loss": loss + 0.01 * (epochs - epoch)})
    TrainingRun.objects.filter(pk=run.pk).update(state="queued", held=True, epoch=epochs)


def end(run, state, loss=None):
    if loss is not None:
        run.metrics.update_or_create(epoch=1, defaults={"val_loss": loss})
    TrainingRun.objects.filter(pk=run.pk).update(state=state, finished_at=timezone.now())


def reach_all(search, epochs, losses):
    for run, loss in zip([run for run in runs_of(search) if run.is_active], losses, strict=True):
        reach(run, epochs, loss)


def states(search):
    return [(run.state, run.held, run.epoch_limit) for run in runs_of(search)]


GOES_ON, STOPPED, WAITS = ("queued", False, 8), ("cancelled", False, 3), ("queued", True, 3)
LOSSES = [0.9, 0.3, 0.8, 0.2, 0.7, 0.1, 0.6, 0.5, 0.4]


def test_all_runs_start_with_the_limit_of_the_first_rung(search):
    assert states(search) == [("queued", False, 3)] * 9
    assert search.parameters["rungs"] == [3, 8, 25]


def test_the_audit_log_keeps_search_and_priority_of_each_run(search):
    entries = AuditEntry.objects.filter(action="run.start")
    assert {(entry.after["search"], entry.after["priority"]) for entry in entries} == {(search.pk, "Low")}
    assert entries.count() == 9


def test_a_run_that_waits_for_the_others_says_so(search):
    run = runs_of(search)[0]
    assert run.claim(1)
    run.pause(3)
    run.refresh_from_db()
    assert run.held and run.message == "Waits after 3 epochs for the other runs of its search"


def test_nothing_is_decided_while_one_run_is_still_on_its_way(search):
    reach_all(search, 3, LOSSES)
    for state in ("running", "queued"):
        TrainingRun.objects.filter(pk=runs_of(search)[8].pk).update(state=state, held=False)
        assert not search.decide()
    assert states(search)[:8] == [WAITS] * 8


def test_the_best_third_goes_on_and_the_rest_is_stopped_with_words(search):
    reach_all(search, 3, LOSSES)
    assert search.decide()
    expected = [GOES_ON if loss <= 0.3 else STOPPED for loss in LOSSES]
    assert states(search) == expected
    messages = [run.message for run in runs_of(search)]
    assert messages[5] == "Goes on after 3 epochs: 1st of 9"
    assert messages[4] == "Stopped by the search after 3 epochs: 7th of 9"
    assert OrmQ.objects.exists()


def test_every_decision_is_in_the_audit_log(search):
    reach_all(search, 3, LOSSES)
    search.decide()
    assert AuditEntry.objects.filter(action="trainingrun.continue").count() == 3
    stopped = AuditEntry.objects.filter(action="trainingrun.cancelled")
    assert stopped.count() == 6
    worst = stopped.get(object_id=str(runs_of(search)[0].pk)).after
    assert (worst["search"], worst["epochs"], worst["place"], worst["of"]) == (search.pk, 3, 9, 9)


def test_deciding_again_changes_nothing(search):
    reach_all(search, 3, LOSSES)
    search.decide()
    before, entries = states(search), AuditEntry.objects.count()
    assert not search.decide()
    assert (states(search), AuditEntry.objects.count()) == (before, entries)


def test_the_race_goes_from_rung_to_rung_until_one_trains_to_the_end(search):
    reach_all(search, 3, LOSSES)
    search.decide()
    reach_all(search, 8, [0.25, 0.15, 0.05])
    search.decide()
    active = [run for run in runs_of(search) if run.is_active]
    assert [(run.epoch_limit, run.held) for run in active] == [(None, False)]
    assert active[0] == runs_of(search)[5]
    assert not search.decide()
    end(active[0], "succeeded")
    assert not search.is_active


def test_a_run_that_failed_gives_its_place_to_nobody(search):
    runs = runs_of(search)
    reach_all(search, 3, LOSSES)
    for run in runs[:6]:
        end(run, "failed")
    search.decide()
    assert [run.is_active for run in runs_of(search)] == [False] * 6 + [True] * 3
    assert runs_of(search)[6].message == "Goes on after 3 epochs: 3rd of 3"


def test_when_all_but_one_failed_the_one_goes_on(search):
    reach_all(search, 3, LOSSES)
    for run in runs_of(search)[1:]:
        end(run, "failed")
    search.decide()
    assert states(search)[0] == GOES_ON


def test_when_all_failed_there_is_nothing_to_decide(search):
    for run in runs_of(search):
        end(run, "failed")
    assert not search.decide()


def test_a_run_that_stopped_early_by_itself_is_a_rival_like_the_others(search):
    reach_all(search, 3, LOSSES)
    end(runs_of(search)[5], "succeeded")
    search.decide()
    going_on = [index for index, run in enumerate(runs_of(search)) if run.is_active]
    assert going_on == [1, 3]


def test_a_run_without_a_figure_comes_last(search):
    reach_all(search, 3, LOSSES)
    runs_of(search)[5].metrics.update(val_loss=None)
    search.decide()
    assert runs_of(search)[5].message == "Stopped by the search after 3 epochs: 9th of 9"


def test_a_draw_stops_nobody_and_is_said(search):
    reach_all(search, 3, [0.9, 0.3, 0.3, 0.2, 0.3, 0.1, 0.3, 0.5, 0.4])
    search.decide()
    assert [index for index, run in enumerate(runs_of(search)) if run.is_active] == [1, 2, 3, 4, 5, 6]
    assert runs_of(search)[6].message == "Goes on after 3 epochs: 6th of 9, level with the 3rd"
    assert runs_of(search)[8].message == "Stopped by the search after 3 epochs: 7th of 9"


def test_when_all_tie_all_go_on_to_the_end(search):
    for epochs in (3, 8):
        reach_all(search, epochs, [0.5] * 9)
        assert search.decide()
    assert states(search) == [("queued", False, None)] * 9


def test_a_run_that_was_asked_to_stop_does_not_go_on(search):
    reach_all(search, 3, LOSSES)
    TrainingRun.objects.filter(pk=runs_of(search)[5].pk).update(cancel_requested=True)
    search.decide()
    best = runs_of(search)[5]
    assert (best.state, best.message) == ("cancelled", "Cancelled on request")
    assert runs_of(search)[8].message == "Goes on after 3 epochs: 3rd of 8"


def test_the_last_run_that_is_cancelled_lets_the_others_be_decided(search, django_capture_on_commit_callbacks, alice):
    reach_all(search, 3, LOSSES)
    last = runs_of(search)[8]
    TrainingRun.objects.filter(pk=last.pk).update(held=False)
    with django_capture_on_commit_callbacks(execute=True):
        last.request_cancel(alice)
    assert [run.is_active for run in runs_of(search)] == [loss in (0.1, 0.2, 0.3) for loss in LOSSES]


@pytest.mark.parametrize("how", ["fail", "pause"])
def test_the_last_run_that_ends_or_pauses_lets_the_others_be_decided(search, django_capture_on_commit_callbacks, how):
    reach_all(search, 3, LOSSES)
    last = runs_of(search)[8]
    TrainingRun.objects.filter(pk=last.pk).update(held=False)
    last.claim(last.attempt)
    with django_capture_on_commit_callbacks(execute=True):
        last.fail("No memory.") if how == "fail" else last.pause(3)
    assert sum(run.is_active for run in runs_of(search)) == 3


def test_a_decision_that_a_crash_prevented_is_made_up_for_within_a_minute(search):
    reach_all(search, 3, LOSSES)
    TrainingRun.resend_lost()
    assert sum(run.is_active for run in runs_of(search)) == 3


def test_a_search_that_cannot_be_decided_does_not_keep_others_waiting(search, world, monkeypatch):
    reach_all(search, 3, LOSSES)
    other = Search.objects.create(name="x", mode="halving", preparation=world.preparation, parameters={"rungs": [3, 8]})
    TrainingRunFactory(search=other, preparation=world.preparation, held=True, epoch_limit=3)
    decide = Search.decide

    def fail_for_one(self):
        if self.pk == other.pk:
            raise RuntimeError("broken")
        return decide(self)

    monkeypatch.setattr(Search, "decide", fail_for_one)
    assert Search.objects.decide() == 1
    assert sum(run.is_active for run in runs_of(search)) == 3


def test_cancelling_a_search_lets_nobody_go_on(search, django_capture_on_commit_callbacks, alice):
    reach_all(search, 3, LOSSES)
    TrainingRun.objects.filter(pk=runs_of(search)[8].pk).update(held=False)
    with django_capture_on_commit_callbacks(execute=True):
        assert search.cancel(alice) == 9
    assert {run.state for run in runs_of(search)} == {"cancelled"}
    assert not AuditEntry.objects.filter(action="trainingrun.continue").exists()
    assert AuditEntry.objects.get(action="search.cancel").actor == alice
    assert search.cancel(alice) == 0


def test_the_checkpoint_of_a_run_that_waits_stays_and_of_one_that_was_stopped_goes(
    search, django_capture_on_commit_callbacks
):
    for run in runs_of(search):
        run.work_folder.mkdir(parents=True)
    reach_all(search, 3, LOSSES)
    with django_capture_on_commit_callbacks(execute=True):
        search.decide()
    assert [run.work_folder.exists() for run in runs_of(search)] == [loss <= 0.3 for loss in LOSSES]


def test_in_a_grid_nobody_is_stopped(world):
    grid = plan(["Custom_CNN"], STANDARD, {"seed": [1, 2]}, preset="standard")
    search = Search.start(world.dataset, grid, None)
    assert states(search) == [("queued", False, None)] * 2
    assert not search.decide()


def test_runs_too_short_to_be_divided_all_train_to_the_end(db):
    preparation = PreparationFactory()
    put_cache(preparation)
    short = plan(["Custom_CNN"], PRESETS["quick"].configuration, {"seed": [1, 2]}, preset="quick", eta=3)
    search = Search.start(preparation.dataset, short, None)
    assert states(search) == [("queued", False, None)] * 2


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_to_its_runs_a_search_comes_to_an_end(search, seed):
    """Runs get to their limit, fail, stop early or are cancelled; every third time nobody is there to decide."""
    chance = random.Random(seed)
    for step in range(60):
        going = [run for run in runs_of(search) if run.is_active and not run.held]
        if not going:
            break
        run = chance.choice(going)
        outcome = chance.choice(["limit", "limit", "limit", "failed", "succeeded", "cancelled"])
        if outcome == "limit" and run.epoch_limit:
            reach(run, run.epoch_limit, chance.random())
        else:
            end(run, "succeeded" if outcome == "limit" else outcome, chance.random())
        if step % 3:
            search.decide()
        elif not any(other.is_active and not other.held for other in runs_of(search)):
            Search.objects.decide()
        stopped = sum("Stopped by the search" in run.message for run in runs_of(search))
        assert stopped < 9
    assert not any(run.is_active for run in runs_of(search))
