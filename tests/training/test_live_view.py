"""The page of a run while it goes on: progress, curves with their table, hints, interruptions, what holds it up."""

import json
import socket
import uuid
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.urls import reverse
from django.utils import timezone

from tests.factories import EpochMetricFactory, ModelVersionFactory, TrainingRunFactory
from training import estimates, hints
from training.management.commands.train_run import Reporter
from training.ml import stages
from training.models import EpochMetric, TrainingQueue, TrainingRun
from xrayplatform.system import WorkerSign

HTMX = {"HX-Request": "true"}


@pytest.fixture
def run(world):
    """Running, three of five epochs done, a quarter of the fourth too."""
    done = stages.TRAINING_STARTS + (stages.TRAINING_ENDS - stages.TRAINING_STARTS) * 3.25 / 5
    run = TrainingRunFactory(
        preparation=world.preparation, state="running", phase="training", epoch=3, progress=done,
        batch_size=32, images_per_second=64.0, peak_memory=2**30,
    )  # fmt: skip
    for epoch in (1, 2, 3):
        EpochMetricFactory(
            run=run, epoch=epoch, loss=0.7 - epoch / 10, val_loss=0.8 - epoch / 10, auc=0.8, val_auc=0.75, seconds=20,
            learning_rate=0.001, val_accuracy=0.7,
        )  # fmt: skip
    return run


def page_of(client, run):
    return client.get(run.get_absolute_url()).content.decode()


def status_of(client, run):
    return client.get(reverse("training:run-status", args=[run.pk]), headers=HTMX).content.decode()


def unlearned(run, epochs=5):
    for epoch in range(1, epochs + 1):
        EpochMetricFactory(run=run, epoch=epoch, loss=0.693, val_loss=0.693, val_auc=0.5, val_accuracy=0.6)


def test_the_page_shows_progress_of_run_and_epoch_speed_and_time_left(logged_in, run):
    page = page_of(logged_in, run)
    assert "Progress within epoch 4" in page and "25.0\u00a0%" in page
    for label, figure in (("images a second", "64.0"), ("images a batch", "32"), ("peak memory", "1.0\u00a0GB")):
        assert f"<dt>{label}</dt><dd>{figure}</dd>" in page
    assert "<dt>best validation loss (epoch 3)</dt><dd>0.500</dd>" in page
    assert "about 35 s left without early stopping" in page


def test_figures_of_another_machine_are_said_to_be_those(logged_in, run):
    for host, told in ((socket.gethostname(), False), ("gpu-server", True)):
        TrainingRun.objects.filter(pk=run.pk).update(host=host)
        assert ("The training runs on" in page_of(logged_in, run)) == told


def test_every_curve_has_its_numbers_in_the_table(logged_in, run):
    page = page_of(logged_in, run)
    for chart in ("loss", "auc", "accuracy", "rate"):
        assert f'data-chart="{chart}"' in page
    assert (
        "<td>–</td><td>0.400</td><td>0.500</td><td>80.0\u00a0%</td><td>70.0\u00a0%</td><td>0.800</td><td>0.750</td>"
        "<td>0.001</td><td>20.0</td>"
    ) in page
    curves = logged_in.get(reverse("training:run-curves", args=[run.pk])).json()
    assert curves["auc"] == [0.8] * 3 and set(EpochMetric.QUANTITIES) < set(curves)


def test_what_is_renewed_brings_status_and_rows(logged_in, run):
    fragment = status_of(logged_in, run)
    assert 'hx-trigger="every 2s"' in fragment
    assert fragment.count('<th scope="row">') == 3


def test_while_only_the_head_learns_the_page_says_so(logged_in, run):
    run.initial_weights, run.epoch = "ImageNet", 2
    run.configuration |= {"epochs": 10, "head_epochs": 5}
    run.epochs = 10
    run.save()
    page = page_of(logged_in, run)
    assert "the new head learns" in page and "Progress within epoch" not in page
    run.epoch = 6
    run.save()
    assert "fine-tuning" in page_of(logged_in, run)


def test_hints_are_shown_live_with_advice_and_the_way_to_the_data(logged_in, world):
    run = TrainingRunFactory(preparation=world.preparation, state="running", epoch=5)
    unlearned(run)
    world.preparation.counts["validation"] = {"NORMAL": 1, "PNEUMONIA": 9}
    fragment = status_of(logged_in, run)
    assert "The network is not learning" in fragment or "gives every validation image the same class" in fragment
    assert reverse("datasets:quality-report", args=[world.dataset.pk]) in fragment
    assert "hint-problem" in fragment
    assert 'data-announce="Run' in fragment and "finished. The network" in fragment


def test_programs_get_the_time_left(logged_in, run):
    detail = logged_in.get(reverse("api:run-detail", args=[run.pk])).json()
    assert detail["eta_seconds"] == pytest.approx(35, abs=1)
    TrainingRun.objects.filter(pk=run.pk).update(state="succeeded")
    assert logged_in.get(reverse("api:run-detail", args=[run.pk])).json()["eta_seconds"] is None


def test_programs_get_the_same_hints(logged_in, world):
    run = TrainingRunFactory(preparation=world.preparation, state="running", epoch=5)
    unlearned(run)
    (hint,) = logged_in.get(reverse("api:run-hints", args=[run.pk])).json()
    assert (hint["code"], hint["level"]) == ("not-learning", "problem")
    assert hint["advice"] == hints.WHAT_TO_DO["not-learning"]


def test_without_anything_unusual_the_page_says_that(logged_in, run):
    TrainingRunFactory._meta.model.objects.filter(pk=run.pk).update(epoch=4)
    assert "Nothing unusual in the curves so far." in page_of(logged_in, run)


def test_a_low_figure_of_the_finished_version_leads_to_the_data(logged_in, world):
    version = ModelVersionFactory(condition=world.condition, metrics={"auc": 0.62, "accuracy": 0.6, "warnings": []})
    run = TrainingRunFactory(preparation=world.preparation, state="succeeded", version=version, epoch=5)
    EpochMetricFactory(run=run, epoch=5, val_loss=0.6, val_auc=0.64)
    page = page_of(logged_in, run)
    assert "on the test part the AUC is 0.620" in page
    assert "New training with other options" in page


def test_interruptions_are_told_in_words_each_with_its_attempt(logged_in, run):
    run.attempt = 2
    run.interruptions = [
        {
            "at": "2026-11-25T13:02:00+00:00",
            "attempt": 1,
            "reason": "The worker died.",
            "counted": True,
            "outcome": "Going on from a checkpoint in epoch 2.",
        },
        {"at": "2026-11-25T14:00:00+00:00", "attempt": 2, "reason": "Paused after epoch 2.", "counted": False},
    ]
    run.save()
    page = page_of(logged_in, run)
    assert "Interrupted 2026-11-25 13:02: The worker died. That was attempt 1 of 3. Going on from a checkpoint" in page
    assert "2026-11-25 14:00: Paused after epoch 2." in page
    assert "<dt>attempt of 3</dt><dd>2</dd>" in page
    assert logged_in.get(reverse("api:run-detail", args=[run.pk])).json()["interruptions"] == run.interruptions


def test_what_a_resumed_training_says_first_is_kept_with_its_interruption(run):
    run.claim(1)
    run.interruptions = [{"at": "2026-11-25T13:02:00+00:00", "attempt": 1, "reason": "Died.", "counted": True}]
    TrainingRun.objects.filter(pk=run.pk).update(
        state="running", lease_token=uuid.uuid4(), interruptions=run.interruptions
    )
    run.refresh_from_db()
    told = {"phase": "training", "fraction": 0.5, "epoch": 3, "epochs": 5, "metrics": None, "batch_size": 8}
    told |= {"images_per_second": None, "stage": ""}
    report = Reporter(run, lambda line: None)
    report(SimpleNamespace(**told, message="Going on from a checkpoint in epoch 3."))
    report(SimpleNamespace(**told | {"metrics": {"loss": 0.5, "seconds": 1.0}}, message=""))
    report(SimpleNamespace(**told, message="Out of memory: going on with batches of 4 images."))
    run.refresh_from_db()
    assert [item["outcome"] for item in run.interruptions] == ["Going on from a checkpoint in epoch 3."]


def test_a_batch_that_was_halved_for_lack_of_memory_is_told(logged_in, run):
    run.batch_size = 8
    run.save()
    words = "The memory did not suffice for batches of 32 images; the training goes on with batches of 8."
    assert words in page_of(logged_in, run)


def test_without_a_worker_the_page_says_why_nothing_starts(logged_in, world):
    assert "No training worker gives a sign of life" in page_of(logged_in, world.run)
    WorkerSign.leave("train")
    assert "This run does not start" not in page_of(logged_in, world.run)
    WorkerSign.objects.update(at=timezone.now() - timedelta(minutes=10))
    assert "No training worker gives a sign of life" in page_of(logged_in, world.run)


def test_a_paused_queue_is_told_with_its_reason(logged_in, world, alice):
    WorkerSign.leave("train")
    TrainingQueue.pause(alice, "Servers move on Friday")
    assert "The training queue is paused: Servers move on Friday" in page_of(logged_in, world.run)


def test_a_limit_of_the_team_is_told_on_the_page_of_the_run(logged_in, world):
    WorkerSign.leave("train")
    world.team.training_limit = 0
    world.team.save()
    assert "Chest clinic may not train at present; an administrator sets the limit." in page_of(logged_in, world.run)
    world.team.training_limit = 1
    world.team.save()
    assert "This run does not start" not in page_of(logged_in, world.run)
    TrainingRunFactory(preparation=world.preparation, state="running")
    assert "Chest clinic trains 1 at once, as many as it may." in page_of(logged_in, world.run)


def test_the_duration_of_a_resumed_run_is_that_of_the_whole(logged_in, run):
    TrainingRun.objects.filter(pk=run.pk).update(
        state="succeeded", started_at=timezone.now() - timedelta(hours=3), finished_at=timezone.now(),
        interruptions=[{"at": "2026-11-25T13:02:00+00:00", "attempt": 1, "reason": "Died.", "counted": True}],
    )  # fmt: skip
    assert "3 h 0 min from the first start, with what lay between its attempts" in page_of(logged_in, run)


def test_following_a_run_costs_a_bounded_number_of_queries(logged_in, run, django_assert_max_num_queries):
    status_of(logged_in, run)
    for epoch in range(4, 30):
        EpochMetricFactory(run=run, epoch=epoch)
    with django_assert_max_num_queries(16):
        status_of(logged_in, run)


def test_a_version_keeps_its_training_history_as_charts_table_and_json(logged_in, world):
    rows = [
        {"epoch": 1, "stage": "head", "loss": 0.6, "val_loss": 0.5, "accuracy": 0.7, "val_accuracy": 0.75,
         "auc": 0.8, "val_auc": 0.85, "learning_rate": 0.001, "seconds": 3.0},
        {"epoch": 2, "loss": 0.4, "val_loss": 0.45, "accuracy": 0.8, "val_accuracy": 0.8, "val_auc": 0.9,
         "learning_rate": 0.0005, "seconds": 2.0},
    ]  # fmt: skip
    version = ModelVersionFactory(condition=world.condition, history=rows)
    page = logged_in.get(version.get_absolute_url()).content.decode()
    assert "How it was trained" in page and "charts.js" in page
    script = page.split('<script id="curves" type="application/json">')[1].split("</script>")[0]
    assert json.loads(script)["val_auc"] == [0.85, 0.9]
    assert json.loads(script)["auc"] == [0.8, None]
    assert "<td>head</td><td>0.600</td>" in page
    assert logged_in.get(reverse("api:version-history", args=[version.pk])).json() == rows


def test_a_version_without_a_history_shows_no_empty_charts(logged_in, world):
    page = logged_in.get(world.version.get_absolute_url()).content.decode()
    assert "How it was trained" not in page and "charts.js" not in page


def test_the_head_counts_as_one_piece_of_work_in_the_progress():
    whole = stages.TRAINING_ENDS - stages.TRAINING_STARTS
    # Five epochs of the head and five others: six pieces.
    third = stages.TRAINING_STARTS + whole * 2 / 6
    assert estimates.epochs_done(third, 10, 5, head_epochs=5) == pytest.approx(6)
    assert estimates.epochs_done(third + whole * 0.5 / 6, 10, 6, head_epochs=5) == pytest.approx(6.5)
