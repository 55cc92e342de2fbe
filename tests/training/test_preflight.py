"""What is said before a training starts: each check alone, the estimate, and the fragment of the form."""

import json
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.core.management import call_command
from django.urls import reverse
from django.utils import timezone

from datasets.models import Dataset
from tests.factories import (
    ConditionFactory,
    DatasetFactory,
    EpochMetricFactory,
    PreparationFactory,
    TrainingRunFactory,
)
from training import preflight as module
from training.configurations import PRESETS
from training.models import SpeedTest, TrainingQueue, TrainingRun
from training.preflight import preflight
from xrayplatform.jobs import JobError
from xrayplatform.system import NotEnoughDisk, WorkerSign
from xrayplatform.teams import Team

QUICK = PRESETS["quick"].configuration
GIB = 1024**3
HOUR = timedelta(hours=1)
CHECK = "/training/new/check/"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def machine(monkeypatch):
    """A machine with 8 GB, 6 of them free, and a worker that lives."""
    there = SimpleNamespace(memory_total=8 * GIB, memory_used=2 * GIB, gpus=(), cpu_count=2)
    for place in ("training.preflight.resources", "training.models.speed.resources"):
        monkeypatch.setattr(place, lambda: there)
    return there


@pytest.fixture
def worker(db):
    WorkerSign.leave("train")


def checks(dataset, user, architecture="Custom_CNN", configuration=QUICK, **options):
    return {check.name: check for check in preflight(dataset, architecture, configuration, user, **options).checks}


def test_where_all_is_well_every_check_says_so(world, alice, machine, worker):
    TrainingRun.objects.all().delete()
    found = preflight(world.dataset, "Custom_CNN", QUICK, alice)
    assert {check.name: check.level for check in found.checks} == dict.fromkeys(
        ("Dataset", "Initial weights", "Processor", "Memory", "Disk", "Queue"), "ok"
    )
    assert found.can_start and found.duration is None
    assert found.measure == {
        "architecture": "Custom_CNN", "image_size": 64, "batch_size": 32, "fine_tuning": False
    }  # fmt: skip


def test_an_unprepared_dataset_is_a_problem_with_the_way_to_prepare_it(alice, machine):
    dataset = DatasetFactory()
    check = checks(dataset, alice)["Dataset"]
    assert (check.level, check.url) == ("problem", f"{dataset.get_absolute_url()}#prepare")
    assert "Dataset not prepared" in check.text and "Prepare for Training" in check.advice
    assert not preflight(dataset, "Custom_CNN", QUICK, alice).can_start


def test_another_image_size_than_prepared_leads_to_a_preparation_with_it(world, alice, machine):
    check = checks(world.dataset, alice, configuration=QUICK.with_options(image_size=224))["Dataset"]
    assert check.level == "problem" and "image_size=224" in check.url


def test_missing_pretrained_weights_are_a_warning_or_a_problem_by_what_was_asked(world, alice, machine):
    assert checks(world.dataset, alice, "ResNet50")["Initial weights"].level == "warning"
    asked = checks(world.dataset, alice, "ResNet50", initial="imagenet")["Initial weights"]
    assert asked.level == "problem" and "scratch" in asked.advice
    assert checks(world.dataset, alice, "ResNet50", initial="scratch")["Initial weights"].level == "ok"


def test_too_little_disk_is_a_problem(world, alice, machine, monkeypatch):
    def refuse(count):
        raise NotEnoughDisk("Not enough free disk.")

    monkeypatch.setattr(module, "require_disk", refuse)
    check = checks(world.dataset, alice)["Disk"]
    assert check.level == "problem" and "Storage" in check.advice


def test_little_free_memory_is_a_warning_with_a_batch_that_fits(world, alice, machine):
    machine.memory_used = 6.2 * GIB
    check = checks(world.dataset, alice, "EfficientNetB0", QUICK.with_options(batch_size=128))["Memory"]
    assert check.level == "warning"
    assert "with half the batch size" in check.text and "images would fit" in check.advice


def test_hopeless_memory_is_a_problem_and_refused_at_the_start_with_the_same_words(world, alice, machine):
    machine.memory_total = 0.5 * GIB
    wanted = QUICK.with_options(batch_size=512)
    check = checks(world.dataset, alice, "VGG16", wanted)["Memory"]
    assert check.level == "problem" and "Not enough memory" in check.text
    with pytest.raises(JobError) as refusal:
        TrainingRun.create(world.dataset, "VGG16", wanted, alice, preset="quick")
    assert (str(refusal.value), refusal.value.hint) == (check.text, check.advice)


def test_on_a_gpu_too_large_a_batch_only_warns(world, alice, machine):
    machine.gpus = (SimpleNamespace(name="Tesla", memory_total=GIB),)
    found = checks(world.dataset, alice, "VGG16", QUICK.with_options(batch_size=512))
    assert found["Processor"].text == "Trains on Tesla."
    assert found["Memory"].level == "warning" and "half the batch size" in found["Memory"].advice


def test_the_queue_says_what_is_ahead_or_why_nothing_starts(world, alice, machine):
    assert "No training worker" in checks(world.dataset, alice)["Queue"].text
    WorkerSign.leave("train")
    assert checks(world.dataset, alice)["Queue"].text.startswith("Starts after one other run")
    TrainingRunFactory(preparation=world.preparation)
    assert checks(world.dataset, alice)["Queue"].text.startswith("Starts after 2 other runs")
    TrainingQueue.pause(alice, "update")
    paused = checks(world.dataset, alice)["Queue"]
    assert (paused.level, paused.text) == ("warning", "The training queue is paused: update")


def test_a_new_run_overtakes_what_waits_with_low_priority(world, alice, machine, worker):
    TrainingRun.objects.update(priority=-1)
    for _ in range(20):
        TrainingRunFactory(preparation=world.preparation, priority=-1)
    assert checks(world.dataset, alice)["Queue"].text == "Starts at once: nothing is ahead of it."
    TrainingRunFactory(preparation=world.preparation, state="running", priority=-1)
    TrainingRunFactory(preparation=world.preparation, priority=1)
    assert checks(world.dataset, alice)["Queue"].text == "Starts after 2 other runs."


def test_what_the_limit_of_another_team_blocks_is_not_ahead(world, alice, machine, worker):
    TrainingRun.objects.all().delete()
    condition = ConditionFactory(team=Team.objects.create(name="Trauma", training_limit=0))
    TrainingRunFactory(preparation=PreparationFactory(dataset=DatasetFactory(condition=condition)))
    assert checks(world.dataset, alice)["Queue"].text == "Starts at once: nothing is ahead of it."


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (0, "Chest clinic may not train at present; an administrator sets the limit."),
        (1, "Chest clinic trains 1 at once, as many as it may. It starts when one of them has ended."),
    ],
)
def test_the_limit_of_the_own_team_is_told_before_the_start(world, alice, machine, worker, limit, words):
    Team.objects.update(training_limit=limit)
    TrainingRun.objects.update(state="running")
    world.dataset.refresh_from_db()
    check = checks(Dataset.objects.get(pk=world.dataset.pk), alice)["Queue"]
    assert (check.level, check.text) == ("warning", words)


def test_the_checks_take_few_queries_whatever_was_measured_and_waits(
    world, alice, machine, worker, django_assert_max_num_queries
):
    for number in range(8):
        measured(finished_at=timezone.now())
        run = TrainingRunFactory(
            preparation=world.preparation, state="running", epoch=1, images_per_second=50.0 + number, batch_size=32
        )
        EpochMetricFactory(run=run, epoch=1, seconds=10)
    with django_assert_max_num_queries(30):
        preflight(world.dataset, "Custom_CNN", QUICK, alice)


def measured(**fields):
    given = {"architecture": "Custom_CNN", "image_size": 64, "batch_size": 32, "state": "succeeded"}
    SpeedTest.objects.create(**given | {"step_seconds": 0.5, "prediction_seconds": 0.2, "start_seconds": 12} | fields)


def test_a_measurement_makes_an_estimate(world, alice, machine):
    measured()
    found = preflight(world.dataset, "Custom_CNN", QUICK, alice)
    assert found.exact and found.measure is None
    # Five epochs of 40 steps and one batch of validation; the start; the evaluation.
    assert found.duration.total == pytest.approx(12 + 5 * (40 * 0.5 + 0.2) + 0.4, abs=0.3)
    rough = preflight(world.dataset, "Custom_CNN", QUICK.with_options(batch_size=16), alice)
    assert not rough.exact and rough.measure["batch_size"] == 16


# -- The fragment and the button


def ask(client, world, **changes):
    form = {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "configuration": "quick"} | changes
    return client.get(CHECK, form, headers=HTMX).content.decode()


def test_the_form_is_followed_by_what_it_would_lead_to(logged_in, world, machine):
    page = logged_in.get("/training/new/").content.decode()
    assert f'hx-get="{CHECK}"' in page and "not csrfmiddlewaretoken" in page
    answer = ask(logged_in, world)
    assert "How long it takes is not known yet" in answer and "Measure" in answer
    measured()
    answer = ask(logged_in, world)
    assert "About 1 min 53 s</strong> without early stopping, 20 s of it for each epoch" in answer
    assert "Measure" not in answer
    assert "Very roughly" in ask(logged_in, world, batch_size=16)
    assert TrainingRun.objects.count() == 1


def test_options_that_cannot_be_used_are_named(logged_in, world):
    answer = ask(logged_in, world, epochs=0)
    assert "Epochs must be a whole number from 1 to 500" in answer


def test_another_teams_dataset_is_not_looked_at(client, charlie, world):
    client.force_login(charlie)
    answer = ask(client, world)
    assert "options cannot be used" in answer and world.dataset.name not in answer


def test_the_measure_button_queues_a_test_whose_fragment_follows_it(logged_in, machine):
    wanted = {"architecture": "Custom_CNN", "image_size": 64, "batch_size": 8}
    started = logged_in.post(reverse("training:speed-test-start"), wanted, headers=HTMX)
    test = SpeedTest.objects.latest("pk")
    assert (test.batch_size, test.fine_tuning) == (8, False)
    url = reverse("training:speed-test-detail", args=[test.pk])
    assert f'hx-get="{url}"' in started.content.decode()
    assert "HX-Trigger" not in logged_in.get(url, headers=HTMX)
    SpeedTest.objects.filter(pk=test.pk).update(state="succeeded", step_seconds=0.1, start_seconds=9)
    ended = logged_in.get(url, headers=HTMX)
    assert ended["HX-Trigger"] == "measured" and "hx-get" not in ended.content.decode()
    assert "80.0 images a second" in ended.content.decode()
    assert "A training ran" not in ended.content.decode()
    assert "Speed test" in logged_in.get(url).content.decode(), "it is a page too"


def test_a_measurement_beside_a_training_says_that_it_is_too_slow(logged_in, world, machine):
    now = timezone.now()
    measured(started_at=now, finished_at=now, host="gpu-server")
    test = SpeedTest.objects.latest("pk")
    url = reverse("training:speed-test-detail", args=[test.pk])
    TrainingRunFactory(preparation=world.preparation, state="running", started_at=now - HOUR, host="other")
    assert "A training ran on this machine meanwhile" not in logged_in.get(url, headers=HTMX).content.decode()
    assert logged_in.get(reverse("api:speedtest-detail", args=[test.pk])).json()["disturbed"] is False
    TrainingRunFactory(preparation=world.preparation, state="running", started_at=now - HOUR, host="gpu-server")
    assert "A training ran on this machine meanwhile" in logged_in.get(url, headers=HTMX).content.decode()
    assert logged_in.get(reverse("api:speedtest-detail", args=[test.pk])).json()["disturbed"] is True
    answer = ask(logged_in, world)
    assert "Very roughly" in answer and "while a training was running" in answer and "Measure" in answer


def test_a_measurement_that_failed_stays_on_the_page_with_its_reason(logged_in, machine):
    test = SpeedTest.objects.create(
        architecture="VGG16", image_size=64, batch_size=8, state="failed", error="The memory ran out.", hint="Less."
    )
    answer = logged_in.get(reverse("training:speed-test-detail", args=[test.pk]), headers=HTMX)
    assert "HX-Trigger" not in answer, "asking again would wipe the reason away"
    assert "The memory ran out." in answer.content.decode()


def test_what_cannot_be_measured_is_refused(logged_in, machine):
    url = reverse("training:speed-test-start")
    assert logged_in.post(url, {"architecture": "GPT"}, headers=HTMX).status_code == 400
    machine.memory_total = GIB // 2
    refused = logged_in.post(url, {"architecture": "VGG16", "image_size": 224, "batch_size": 512}, headers=HTMX)
    assert refused.status_code == 409 and "Not enough memory" in refused.content.decode()
    assert not SpeedTest.objects.exists()


def test_the_command_line_asks_for_the_same(world, machine, capsys):
    measured()
    call_command("train", world.dataset.name, "--check", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["can_start"] and answer["seconds"]["epoch"] == pytest.approx(20.2)
    call_command("train", world.dataset.name, "--check")
    shown = capsys.readouterr().out
    assert "ok       Dataset: Prepared" in shown
    assert "time     about 1 min 53 s without early stopping, measured on" in shown
    with pytest.raises(SystemExit):
        call_command("train", DatasetFactory().name, "--check")
    assert "problem  Dataset: Dataset not prepared" in capsys.readouterr().out
    assert TrainingRun.objects.count() == 1


def test_programs_ask_for_the_same(logged_in, world, machine):
    measured()
    form = {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "configuration": "quick"}
    answer = logged_in.post(reverse("api:run-estimate"), form).json()
    assert answer["can_start"] and answer["exact"]
    assert answer["seconds"]["epoch"] == pytest.approx(20.2)
    assert {check["name"] for check in answer["checks"]} >= {"Dataset", "Memory", "Queue"}
    made = logged_in.post(reverse("api:speedtest-list"), {"architecture": "Custom_CNN", "image_size": 64})
    assert (made.status_code, made.json()["batch_size"]) == (202, 32)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"architecture": "LeNet"}, "LeNet is not a choice; there are"),
        ({"image_size": "100"}, "100 is not a choice; there are 64, 128, 224, 299"),
        ({"state": "asleep"}, "there are queued"),
        ({"batch_size": "many"}, "number"),
    ],
)
def test_programs_are_told_which_speed_tests_they_can_ask_for(logged_in, world, wanted, says):
    url = reverse("api:speedtest-list")
    answer = logged_in.get(url, wanted)
    assert answer.status_code == 400 and says in str(answer.json()["errors"])
    test = world.speed_test
    right = {"architecture": test.architecture, "image_size": test.image_size, "batch_size": test.batch_size}
    assert len(logged_in.get(url, right).json()["results"]) == 1
