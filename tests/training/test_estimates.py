"""How long a training takes and how much memory it needs: the arithmetic, what was measured, and the speed test."""

import json
import subprocess
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from django_q.models import OrmQ

from tests.factories import EpochMetricFactory, PreparationFactory, TrainingRunFactory
from training import estimates, live, measuring
from training.configurations import PRESETS
from training.estimates import Plan, Speed
from training.ml import stages
from training.ml.architectures import ARCHITECTURES
from training.models import SpeedTest, TrainingRun
from training.models.speed import require_memory
from training.tasks import measure_speed
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError

STANDARD = PRESETS["standard"].configuration
GIB = estimates.GIB
HOUR = timezone.timedelta(hours=1)


def plan(**changes):
    given = {
        "architecture": "Custom_CNN", "image_size": 224, "batch_size": 10, "minimum_steps": 1, "epochs": 20,
        "head_epochs": 0, "train": 1000, "validation": 200, "test": 100,
    }  # fmt: skip
    return Plan(**given | changes)


# -- Arithmetic


def test_a_training_takes_its_start_its_epochs_and_its_evaluation():
    took = estimates.duration(plan(), Speed(step=1.0, prediction=0.5, start=30))
    assert took.epoch == 100 * 1.0 + 20 * 0.5
    # The test part, validation for threshold and calibration, and every image once for doubtful labels.
    assert took.evaluation == (1300 + 300) / 10 * 0.5
    assert took.total == 30 + 20 * took.epoch + took.evaluation


def test_epochs_of_the_head_cost_one_pass_through_the_backbone_together():
    scratch = estimates.duration(plan(), Speed(1.0, 0.5, 30))
    tuned = estimates.duration(plan(head_epochs=5), Speed(1.0, 0.5, 30))
    assert tuned.total == scratch.total - 5 * scratch.epoch + 1200 / 10 * 0.5


@pytest.mark.parametrize(("images", "batch", "minimum", "steps"), [(100, 32, 1, 4), (100, 32, 40, 40), (96, 32, 3, 3)])
def test_an_epoch_has_as_many_steps_as_the_pipeline_makes(images, batch, minimum, steps):
    assert plan(train=images, batch_size=batch, minimum_steps=minimum).steps == steps


@pytest.mark.parametrize("images", [1, 99, 1000])
@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("minimum", [1, 40])
def test_the_steps_of_an_epoch_are_those_of_the_training(images, batch, minimum):
    estimated = plan(train=images, batch_size=batch, minimum_steps=minimum).steps
    assert estimated == stages.steps_per_epoch(images, batch, minimum)


def test_progress_tells_the_share_of_the_present_epoch():
    middle = stages.TRAINING_STARTS + (stages.TRAINING_ENDS - stages.TRAINING_STARTS) * 3.25 / 10
    assert estimates.epochs_done(middle, 10, 3) == pytest.approx(3.25)
    assert estimates.epochs_done(0.0, 10, 3) == 3, "a resumed run starts where it was"
    assert estimates.epochs_done(0.9, 10, 3) == 4
    assert estimates.epochs_done(1.0, 10, 10) == 10


def test_the_time_left_follows_the_steady_epochs():
    left = estimates.seconds_left([90, 10, 12, 11], 4.5, 10, evaluation=7)
    assert left == 5.5 * 11 + 7, "the first epoch holds the compilation"
    assert estimates.seconds_left([90], 1, 10, evaluation=0) == 9 * 90
    assert estimates.seconds_left([], 0, 10, expected_epoch=5, evaluation=1) == 51
    assert estimates.seconds_left([], 0, 10, evaluation=1) is None


def test_memory_grows_with_network_batch_and_pixels_and_a_measurement_beats_the_formula():
    small = estimates.memory("Custom_CNN", 128, 8)
    for larger in (("Custom_CNN", 128, 16), ("Custom_CNN", 224, 8), ("ResNet50", 128, 8)):
        assert estimates.memory(*larger).expected > small.expected
    assert estimates.memory("ResNet50", 224, 8, 2 * GIB).expected == 2 * GIB


@pytest.mark.parametrize(
    ("architecture", "size", "batch", "peak_mb"),
    [
        ("Custom_CNN", 128, 8, 778), ("Custom_CNN", 224, 32, 812), ("EfficientNetB0", 224, 8, 2163),
        ("ResNet50", 224, 8, 2408), ("DenseNet121", 224, 8, 2915), ("VGG16", 224, 4, 1308),
        ("MobileNetV3Small", 224, 8, 1192), ("EfficientNetV2B0", 224, 8, 1787), ("ConvNeXtTiny", 224, 8, 3199),
    ],
)  # fmt: skip
def test_the_formula_stays_above_what_was_measured_and_its_least_below(architecture, size, batch, peak_mb):
    """Peaks of the training process on a processor, with two classes and AdamW."""
    need = estimates.memory(architecture, size, batch)
    assert need.at_least < peak_mb * 1024**2 < 1.15 * need.expected


def test_the_largest_batch_that_fits_is_found():
    fits = estimates.largest_batch("EfficientNetB0", 224, 4 * GIB)
    assert estimates.memory("EfficientNetB0", 224, fits).expected <= 4 * GIB
    assert estimates.memory("EfficientNetB0", 224, 2 * fits).expected > 4 * GIB
    assert estimates.largest_batch("EfficientNetB0", 224, 0.1 * GIB) == 0


# -- Hopeless trainings


def machine(memory_gb, gpus=()):
    return SimpleNamespace(memory_total=memory_gb * GIB, memory_used=0, gpus=gpus, cpu_count=2)


def test_what_cannot_fit_is_refused_with_a_batch_size_that_does(db):
    with pytest.raises(JobError, match="Not enough memory: EfficientNetB0 with batches of 512 images") as refusal:
        require_memory("EfficientNetB0", 224, 512, machine(8))
    assert "Choose a batch size of" in refusal.value.hint
    require_memory("EfficientNetB0", 224, 16, machine(8))


def test_on_a_gpu_nothing_is_refused_because_the_batch_is_halved_there(db):
    require_memory("EfficientNetB0", 224, 512, machine(8, gpus=("one",)))


def test_a_measured_peak_decides_before_the_formula(db):
    speed_test(peak_memory=20 * GIB)
    with pytest.raises(JobError, match=r"needs at least 18\.0 GB"):
        require_memory("Custom_CNN", 64, 32, machine(16))


# -- What was measured


def speed_test(**fields):
    given = {
        "architecture": "Custom_CNN", "image_size": 64, "batch_size": 32, "state": "succeeded",
        "step_seconds": 0.5, "prediction_seconds": 0.2, "start_seconds": 12.0, "peak_memory": GIB,
        "finished_at": timezone.now(),
    }  # fmt: skip
    return SpeedTest.objects.create(**given | fields)


def test_without_any_measurement_nothing_is_claimed(db):
    assert live.measured("Custom_CNN", 64, 32, fine_tuning=False) is None


def test_a_speed_test_of_the_same_sizes_is_exact(db):
    speed_test()
    found = live.measured("Custom_CNN", 64, 32, fine_tuning=False)
    assert (found.exact, found.speed.step, found.speed.start) == (True, 0.5, 12.0)
    assert live.measured("Custom_CNN", 64, 32, fine_tuning=True) is None


def test_other_sizes_are_scaled_by_pixels_and_said_to_be_rough(db):
    speed_test()
    found = live.measured("Custom_CNN", 128, 16, fine_tuning=False)
    assert (found.exact, found.speed.step) == (False, 0.5 * 4 / 2)
    assert "with 64 pixels and batches of 32" in found.source


def test_the_newest_of_tests_and_trainings_counts(world):
    speed_test(finished_at=timezone.now() - timezone.timedelta(days=1))
    TrainingRunFactory(
        preparation=world.preparation, batch_size=32, images_per_second=128.0, progress_at=timezone.now()
    )
    found = live.measured("Custom_CNN", 64, 32, fine_tuning=False)
    # Which training is not said: it may be another team's.
    assert found.speed.step == 32 / 128
    assert found.source == f"seen in a training of {timezone.localdate():%Y-%m-%d}"


def test_the_speed_of_a_head_alone_says_nothing_about_the_rest(world):
    run = TrainingRunFactory(
        preparation=world.preparation, batch_size=32, images_per_second=5000.0, initial_weights="ImageNet"
    )
    EpochMetricFactory(run=run, epoch=1, stage="head")
    assert live.measured("Custom_CNN", 64, 32, fine_tuning=True) is None
    EpochMetricFactory(run=run, epoch=2, stage="fine-tuning")
    assert live.measured("Custom_CNN", 64, 32, fine_tuning=True).speed.step == 32 / 5000


def finished(world, **fields):
    """A training of five epochs of 10 s, whose first took 14 s, that lasted 90 s in all."""
    now = timezone.now()
    given = {"batch_size": 32, "images_per_second": 40 * 32 / 10, "epoch": 5, "state": "succeeded"}
    given |= {"started_at": now - timezone.timedelta(seconds=90), "finished_at": now}
    run = TrainingRunFactory(preparation=world.preparation, **given | fields)
    for epoch, seconds in enumerate([14, 10, 10, 10, 10], start=1):
        EpochMetricFactory(run=run, epoch=epoch, seconds=seconds)
    return run


def test_the_start_is_what_finished_trainings_took_beside_epochs_and_evaluation(world):
    speed_test(start_seconds=300.0, finished_at=timezone.now() - timezone.timedelta(days=1))
    finished(world)
    # 36 s without the epochs, and 4 s of the first to compile.
    assert live.measured("Custom_CNN", 64, 32, fine_tuning=False).speed.start == pytest.approx(40, abs=0.5)


def test_an_interrupted_training_tells_nothing_about_the_start(world):
    finished(world, interruptions=[{"at": "2026-11-25T13:02:00+00:00", "attempt": 1, "reason": "x", "counted": True}])
    assert live.measured("Custom_CNN", 64, 32, fine_tuning=False).speed.start == estimates.START_SECONDS


def test_the_start_of_fine_tuning_is_not_taken_for_that_of_a_training_from_scratch(world):
    speed_test(start_seconds=300.0, fine_tuning=True)
    TrainingRunFactory(preparation=world.preparation, batch_size=32, images_per_second=128.0)
    assert live.measured("Custom_CNN", 64, 32, fine_tuning=False).speed.start == estimates.START_SECONDS
    speed_test(start_seconds=9.0, image_size=128)
    assert live.measured("Custom_CNN", 64, 32, fine_tuning=False).speed.start == 9


def test_what_was_measured_beside_a_training_is_not_exact(world):
    now = timezone.now()
    speed_test(started_at=now, finished_at=now)
    run = TrainingRunFactory(preparation=world.preparation, state="succeeded", started_at=now - HOUR)
    for end, exact in ((now - HOUR / 2, True), (now + HOUR, False)):
        TrainingRun.objects.filter(pk=run.pk).update(finished_at=end)
        found = live.measured("Custom_CNN", 64, 32, fine_tuning=False)
        assert found.exact == exact and ("while a training was running" in found.source) != exact
    speed_test(step_seconds=0.3, started_at=now + 2 * HOUR, finished_at=now + 2 * HOUR)
    speed_test(step_seconds=0.9, started_at=now, finished_at=now + 3 * HOUR)
    assert live.measured("Custom_CNN", 64, 32, fine_tuning=False).speed.step == 0.3, "undisturbed comes first"


def test_what_was_measured_takes_two_queries_however_much_it_is(world, django_assert_num_queries):
    for _ in range(5):
        speed_test()
        finished(world)
    with django_assert_num_queries(2):
        assert live.measured("Custom_CNN", 64, 32, fine_tuning=False)


def test_a_running_training_estimates_itself(world):
    counts = {"NORMAL": 160, "PNEUMONIA": 160}
    world.preparation.counts = dict.fromkeys(("train", "validation", "test"), counts)
    run = TrainingRunFactory(
        preparation=world.preparation, state="running", epoch=3, progress=0.02 + 0.91 * 3 / 5,
        batch_size=32, images_per_second=320.0,
    )  # fmt: skip
    for epoch, seconds in enumerate([60, 10, 10], start=1):
        EpochMetricFactory(run=run, epoch=epoch, seconds=seconds)
    assert run.eta_seconds == pytest.approx(2 * 10 + 960 / 320 / 3, abs=0.1)
    run.state = "succeeded"
    assert run.eta_seconds is None


def test_a_training_that_stopped_early_has_only_its_evaluation_left(world):
    counts = {"NORMAL": 160, "PNEUMONIA": 160}
    world.preparation.counts = dict.fromkeys(("train", "validation", "test"), counts)
    run = TrainingRunFactory(
        preparation=world.preparation, state="running", phase="evaluating", epoch=3, progress=0.965,
        batch_size=32, images_per_second=320.0,
    )  # fmt: skip
    EpochMetricFactory(run=run, epoch=3, seconds=100)
    assert run.eta_seconds == pytest.approx(960 / 320 / 3 / 2)


def test_before_its_first_epoch_a_run_is_estimated_by_what_was_measured(world):
    run = TrainingRunFactory(preparation=world.preparation, state="running")
    assert run.eta_seconds is None
    speed_test()
    # 40 steps at least an epoch, 0.5 s each; one batch of validation.
    assert run.eta_seconds == pytest.approx(5 * (40 * 0.5 + 0.2) + 0.4, abs=0.3)


# -- The speed test itself


@pytest.fixture
def child(monkeypatch):
    """A line of shell in place of the process that times the steps."""
    monkeypatch.setattr(measuring, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(measuring, "TERMINATE_GRACE_SECONDS", 0.3)
    started = []

    def use(script):
        def start(test, output, errors):
            started.append(subprocess.Popen(["sh", "-c", script], stdout=output, stderr=errors, start_new_session=True))
            return started[-1]

        monkeypatch.setattr(measuring, "_start", start)
        return started

    yield use
    for process in started:
        assert process.poll() is not None, "a child was left running"


TIMED = json.dumps({"step_seconds": 0.25, "prediction_seconds": 0.1, "start_seconds": 9, "peak_memory": 10**9})


def request(by=None, **changes):
    given = {"architecture": "Custom_CNN", "image_size": 64, "batch_size": 32} | changes
    return SpeedTest.request(*given.values(), by)


def test_a_speed_test_is_queued_once_however_often_it_is_asked_for(alice):
    first, second = request(alice), request(alice)
    assert first == second
    assert OrmQ.objects.filter(key="xray").count() == 1
    assert AuditEntry.objects.get(action="speedtest.start").actor == alice


def test_the_child_of_a_speed_test_gets_no_password_and_does_not_believe_that_it_is_a_queue(alice, monkeypatch):
    given = {}
    monkeypatch.setattr(measuring.subprocess, "Popen", lambda command, **options: given.update(options))
    for name in ("EMAIL_URL", "Q_CLUSTER_NAME", "QUEUE_LIFELINE"):
        monkeypatch.setenv(name, "7")
    measuring._start(request(alice), None, None)
    assert given["env"]["EMAIL_URL"] == ""
    assert not {"Q_CLUSTER_NAME", "QUEUE_LIFELINE"} & set(given["env"])


def test_a_speed_test_keeps_what_its_child_measured(alice, child):
    child(f"echo from a library; echo '{TIMED}'")
    test = request(alice)
    measure_speed(test.pk, 1)
    test.refresh_from_db()
    assert (test.state, test.step_seconds, test.images_per_second) == ("succeeded", 0.25, 128)
    assert (test.start_seconds, test.peak_memory) == (9, 10**9)
    assert test.message == "128.0 images a second"
    measure_speed(test.pk, 1)
    assert AuditEntry.objects.filter(action="speedtest.succeeded").count() == 1


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo no such layer >&2; exit 3", "The steps could not be timed: no such layer."),
        ("exit 0", "The steps could not be timed: the process ended with status 0."),
        ("kill -9 $$", "killed, most likely for lack of memory"),
    ],
)
def test_a_child_that_fails_is_explained(db, child, script, error):
    child(script)
    test = request()
    measure_speed(test.pk, 1)
    test.refresh_from_db()
    assert test.state == "failed" and error in test.error and test.hint


def test_a_child_that_takes_too_long_is_stopped(db, child, monkeypatch):
    monkeypatch.setattr(measuring, "TIME_LIMIT_SECONDS", 0.1)
    started = child("sleep 60")
    test = request()
    measure_speed(test.pk, 1)
    test.refresh_from_db()
    assert "did not end within" in test.error
    assert started[0].returncode is not None


def test_a_child_that_eats_all_memory_is_stopped_before_the_machine_chooses(db, child, monkeypatch):
    monkeypatch.setattr(measuring, "LEAST_FREE_SHARE", 1.1)
    child("sleep 60")
    test = request()
    measure_speed(test.pk, 1)
    test.refresh_from_db()
    assert "The memory ran out" in test.error and "smaller batch size" in test.hint


def test_the_child_is_asked_for_what_is_to_be_measured(db, monkeypatch):
    given = {}

    def remember(command, **options):
        given.update(options, command=command)
        return SimpleNamespace(pid=1)

    monkeypatch.setattr(measuring.subprocess, "Popen", remember)
    test = request()
    test.fine_tuning = True
    measuring._start(test, None, None)
    words = ["time_steps", "Custom_CNN", "--image-size", "64", "--batch-size", "32", "--fine-tuning"]
    assert given["command"][-len(words) :] == words
    assert "Q_CLUSTER_NAME" not in given["env"] and given["start_new_session"]


def test_the_command_measures_here_and_prints_json(db, child, capsys):
    child(f"echo '{TIMED}'")
    call_command("speed_test", "Custom_CNN", "--image-size", "64", "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["images_per_second"], result["batch_size"]) == (128, ARCHITECTURES["Custom_CNN"].batch_size)


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--image-size", "100", "invalid choice: 100"),
        ("--batch-size", "0", "from 1 to 512, not 0"),
        ("--batch-size", "100000", "from 1 to 512, not 100000"),
    ],
)
def test_the_command_refuses_the_sizes_that_programs_may_not_ask_for_either(db, option, value, complaint):
    with pytest.raises(CommandError, match=complaint):
        call_command("speed_test", "Custom_CNN", option, value)
    assert not SpeedTest.objects.exists()


def test_a_command_whose_measurement_fails_ends_with_an_error(db, child, capsys):
    child("exit 3")
    with pytest.raises(SystemExit):
        call_command("speed_test", "Custom_CNN", "--json")
    assert "could not be timed" in json.loads(capsys.readouterr().out)["error"]


def test_the_command_refuses_who_may_not_measure(bob):
    with pytest.raises(CommandError, match="no role"):
        call_command("speed_test", "Custom_CNN", "--user", "bob")


@pytest.mark.slow
def test_a_real_child_times_real_steps(db):
    pytest.importorskip("tensorflow")
    test = request(image_size=64, batch_size=2)
    measure_speed(test.pk, 1)
    test.refresh_from_db()
    assert test.state == "succeeded", test.error
    assert 0 < test.step_seconds < test.start_seconds
    assert test.prediction_seconds > 0 and test.peak_memory > 10**8


def test_a_plan_counts_the_head_only_with_pretrained_weights(db):
    preparation = PreparationFactory()
    assert live.plan(preparation, "ResNet50", STANDARD, pretrained=False).head_epochs == 0
    assert live.plan(preparation, "ResNet50", STANDARD, pretrained=True).head_epochs == STANDARD.head_epochs
    alone = STANDARD.with_options(fine_tuning_depth=0)
    assert live.plan(preparation, "ResNet50", alone, pretrained=True).head_epochs == STANDARD.epochs
