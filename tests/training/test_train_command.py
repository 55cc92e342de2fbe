"""`manage.py train`: one JSON object on standard output, clear errors, and exit status 0 only on success."""

import json
import time
from io import StringIO
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command
from django_q.models import OrmQ

from tests.factories import DatasetFactory, ModelVersionFactory
from training.management.commands import train as command
from training.models import TrainingRun
from xrayplatform.audit import AuditEntry
from xrayplatform.system import WorkerSign


def start(*args, **options):
    out, err = StringIO(), StringIO()
    call_command("train", *args, stdout=out, stderr=err, **options)
    return out.getvalue(), err.getvalue()


def fails(*args, **options):
    """The JSON object of a call that must end with exit status 1."""
    out = StringIO()
    with pytest.raises(SystemExit) as end:
        call_command("train", *args, json=True, stdout=out, stderr=StringIO(), **options)
    assert end.value.code == 1
    return json.loads(out.getvalue())


@pytest.fixture
def ends(monkeypatch, world):
    """A worker lives, and instead of waiting half a second the command lets it claim the run and end it."""
    WorkerSign.leave("train")

    def use(end):
        def work(seconds):
            run = TrainingRun.objects.latest("pk")
            if run.claim(1):
                end(run)

        monkeypatch.setattr(command, "time", SimpleNamespace(sleep=work, monotonic=time.monotonic))

    return use


def test_without_waiting_the_run_is_queued(world):
    out, _ = start(world.dataset.name, json=True)
    run = TrainingRun.objects.latest("pk")
    answer = json.loads(out)
    assert answer.pop("seconds") >= 0
    nothing_yet = {"version": None, "metrics": None, "warnings": [], "hints": [], "eta_seconds": None}
    assert answer == {"run": run.pk, "state": "queued", "condition": "chest"} | nothing_yet
    assert OrmQ.objects.get().key == "train"


def test_options_change_the_configuration(world):
    start(world.dataset.name, configuration="standard", epochs=2, batch_size=8, learning_rate=0.01, seed=5)
    run = TrainingRun.objects.latest("pk")
    chosen = {name: run.configuration[name] for name in ("epochs", "batch_size", "learning_rate", "seed")}
    assert chosen == {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "seed": 5}
    assert run.preset == "standard"


def test_waiting_ends_with_the_version_and_its_metrics(world, ends):
    version = ModelVersionFactory(condition=world.condition, number=7)

    def succeed(run):
        run.write(version=version, message="Training, epoch 1 of 5")
        run.succeed("Version 7")

    ends(succeed)
    out, err = start(world.dataset.name, wait=True, json=True)
    answer = json.loads(out)
    assert (answer["state"], answer["version"], answer["metrics"]["auc"]) == ("succeeded", 7, 0.95)
    assert "Version 7" in err


def test_a_run_that_failed_ends_with_status_1_and_the_reason(world, ends):
    ends(lambda run: run.fail("Out of memory.", "Use a smaller batch size."))
    answer = fails(world.dataset.name, wait=True)
    assert (answer["state"], answer["error"], answer["hint"]) == (
        "failed",
        "Out of memory.",
        "Use a smaller batch size.",
    )


def test_without_a_worker_the_command_does_the_work_itself(world, monkeypatch):
    done = []

    class InThisThread:
        def __init__(self, target, args, daemon):
            self.start = lambda: target(*args)
            self.is_alive = lambda: False

    def train_here(run):
        assert run.claim(run.attempt)
        run.succeed("done here")
        done.append(run.pk)

    monkeypatch.setattr(command, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(command, "threading", SimpleNamespace(Thread=InThisThread))
    monkeypatch.setattr(command, "connection", SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(command, "train_here", train_here)
    out, err = start(world.dataset.name, wait=True, json=True)
    answer = json.loads(out)
    assert (done, answer["state"]) == ([answer["run"]], "succeeded")
    assert "No training worker took the run; running it here." in err


def test_a_worker_that_is_busy_is_waited_for(world, monkeypatch, ends):
    world.run.claim(1)
    monkeypatch.setattr(command, "WORKER_TAKES_WITHIN_SECONDS", 0)
    ends(lambda run: run.succeed("by the worker"))
    _, err = start(world.dataset.name, wait=True, json=True)
    assert "running it here" not in err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"epochs": 0}, "Epochs must be a whole number from 1 to 500, not 0."),
        ({"epochs": 10**400}, f"Epochs must be a whole number from 1 to 500, not 1{'0' * 36}...."),
        ({"batch_size": 10**6}, "Batch size must be a whole number from 1 to 512"),
        ({"learning_rate": -1.0}, "Learning rate must be a number above 0"),
        ({"seed": -1}, "Seed must be a whole number from 0"),
        ({"user": "nobody"}, "There is no active user nobody."),
    ],
)
def test_an_option_out_of_range_is_named_with_what_is_allowed(world, options, complaint):
    assert complaint in fails(world.dataset.name, **options)["error"]
    with pytest.raises(CommandError):
        start(world.dataset.name, **options)
    assert TrainingRun.objects.count() == 1


@pytest.mark.parametrize("option", ["--architecture=GPT", "--schedule=never", "--epochs=many", "--image-size=100"])
def test_an_option_that_does_not_exist_is_refused_with_those_there_are(world, option):
    with pytest.raises(CommandError, match=r"invalid (choice|int value)"):
        start(world.dataset.name, option)


def test_an_unknown_dataset_is_refused_with_those_there_are(world):
    assert "Known datasets: CHEST/secret study" in fails("KNEE")["error"]


def test_a_dataset_that_is_not_prepared_is_refused_with_what_to_do(db):
    DatasetFactory(name="CHEST/raw")
    error = fails("CHEST/raw")["error"]
    assert "Dataset not prepared: CHEST/raw" in error and "Prepare for Training" in error


def test_a_person_reads_figures_instead_of_json(world, ends):
    version = ModelVersionFactory(condition=world.condition, number=7, metrics={"auc": 0.95, "accuracy": None})

    def succeed(run):
        run.write(version=version)
        run.succeed()

    ends(succeed)
    out, _ = start(world.dataset.name, wait=True)
    assert "chest version 7" in out and "0.950" in out and "not available" in out


def test_the_run_is_recorded_as_started_from_the_command_line_or_by_the_user(world, alice):
    start(world.dataset.name)
    start(world.dataset.name, user="alice")
    newest, oldest = AuditEntry.objects.filter(action="run.start")
    assert (oldest.channel, oldest.actor) == ("command", None)
    assert newest.actor == alice


def test_every_training_option_can_be_given(world):
    options = (
        "--optimizer sgd --schedule step --step-epochs 3 --step-factor 0.5 --balance sampling --label-smoothing 0.1 "
        "--head-epochs 2 --fine-tuning-depth 0.4 --flip --rotation 3 --blur 0.5 --deterministic --preprocessing"
    )
    start(world.dataset.name, *options.split())
    stored = TrainingRun.objects.latest("pk").configuration
    given = {"optimizer": "sgd", "schedule": "step", "step_epochs": 3, "step_factor": 0.5, "balance": "sampling"}
    given |= {"label_smoothing": 0.1, "head_epochs": 2, "fine_tuning_depth": 0.4, "flip": True, "rotation": 3.0}
    given |= {"blur": 0.5, "deterministic": True, "preprocessing": []}
    assert {name: stored[name] for name in given} == given


def test_flipping_a_chest_is_warned_about_and_not_refused(world):
    out, err = start(world.dataset.name, "--flip", json=True)
    (warning,) = json.loads(out)["warnings"]
    assert "heart lies on the left" in warning and warning in err
    assert TrainingRun.objects.latest("pk").configuration["flip"]


def test_a_saved_preset_is_chosen_by_its_number_and_seen_by_its_team_only(world, alice, charlie):
    start(world.dataset.name, configuration=world.preset.key, user="alice")
    run = TrainingRun.objects.latest("pk")
    assert (run.epochs, run.preset) == (7, world.preset.name)
    assert "There is no configuration" in fails(world.dataset.name, configuration="forever")["error"]
    world.condition.team = None
    world.condition.save()
    charlie.groups.set(alice.groups.all())
    error = fails(world.dataset.name, configuration=world.preset.key, user="charlie")["error"]
    assert "There is no configuration" in error and world.preset.name not in error
