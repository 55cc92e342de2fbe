"""The training queue: what runs, what waits, in which order, why, and who may change that."""

import json
from io import StringIO

import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.utils import timezone
from django_q.models import OrmQ

from tests.factories import (
    ConditionFactory,
    DatasetFactory,
    EpochMetricFactory,
    PreparationFactory,
    SearchFactory,
    TrainingRunFactory,
    UserFactory,
)
from training.models import SpeedTest, TrainingQueue, TrainingRun
from training.templatetags.training_panels import roughly
from training.waiting import overview, remaining_seconds
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError
from xrayplatform.system import WorkerSign

PAGE = "/training/queue/"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def waiting(world, alice):
    """Three runs of alice's team; `world.run` is the first. A worker lives."""
    WorkerSign.leave("train")
    others = [TrainingRunFactory(preparation=world.preparation, created_by=alice) for _ in range(2)]
    return [world.run, *others]


@pytest.fixture
def of_others(waiting):
    """A run of another team."""
    condition = ConditionFactory(team=UserFactory(username="dora").teams.create(name="Trauma"))
    preparation = PreparationFactory(dataset=DatasetFactory(name="ARM/hidden study", condition=condition))
    return TrainingRunFactory(preparation=preparation, created_by=UserFactory(username="dora2"))


def set_run(run, **fields):
    TrainingRun.objects.filter(pk=run.pk).update(**fields)


def order(user):
    return [entry.run and entry.run.pk for entry in overview(user).waiting]


def why(user):
    return [entry.why for entry in overview(user).waiting]


def text(response):
    return response.content.decode()


# -- Order and reasons


def test_runs_wait_by_priority_and_then_by_age(waiting, alice):
    first, second, third = waiting
    set_run(third, priority=1)
    set_run(first, priority=-1)
    assert order(alice) == [third.pk, second.pk, first.pk]
    assert order(alice)[0] == TrainingRun.objects.startable().first().pk


def test_the_order_shown_is_the_order_in_which_runs_are_taken(waiting, alice):
    set_run(waiting[2], priority=1)
    shown = order(alice)
    taken = []
    while run := TrainingRun.claim_next():
        taken.append(run.pk)
    assert taken == shown


def test_each_waiting_run_says_why_it_waits(waiting, alice):
    assert why(alice) == [
        "Next, as soon as a worker is free.",
        "Its turn comes after one other run.",
        "Its turn comes after 2 other runs.",
    ]


def test_a_team_at_its_limit_waits_for_itself(waiting, alice, world):
    world.team.training_limit = 1
    world.team.save()
    set_run(waiting[0], state="running", lease_until=timezone.now())
    assert why(alice)[0].startswith("Chest clinic trains 1 at once, as many as it may.")
    assert not TrainingRun.objects.startable().exists()


def test_what_a_limit_blocks_has_no_place_and_is_not_ahead_of_others(waiting, of_others, alice, world):
    measured(world)
    TrainingRun.objects.filter(pk=of_others.pk).update(priority=-1)
    world.team.training_limit = 0
    world.team.save()
    entries = overview(None).waiting
    assert [(entry.place, entry.starts_in) for entry in entries[:3]] == [(None, None)] * 3
    assert entries[0].why == "Chest clinic may not train at present; an administrator sets the limit."
    assert (entries[3].place, entries[3].starts_in, entries[3].why) == (1, 0, "Next, as soon as a worker is free.")


def test_a_run_that_is_tried_again_later_says_when_and_lets_others_pass(waiting, of_others, alice):
    later = timezone.now() + timezone.timedelta(minutes=5)
    for run in (waiting[0], of_others):
        set_run(run, not_before=later, message="Waiting for disk space")
    at = f"{timezone.localtime(later):%H:%M}"
    words = why(alice)
    assert (words[0], words[1]) == (
        f"Tried again at {at}: Waiting for disk space",
        "Next, as soon as a worker is free.",
    )
    assert words[3] == f"Tried again at {at}.", "what another team's run waits for is its own affair"
    set_run(waiting[0], not_before=timezone.now())
    assert overview(alice).waiting[0].place == 1


def test_without_a_worker_the_page_says_what_to_do(world, alice, client):
    client.force_login(alice)
    page = text(client.get(PAGE))
    assert "No training worker gives a sign of life." in page
    assert "manage.py run_queue train" in page


def test_a_paused_queue_says_by_whom_and_why(waiting, alice, client):
    TrainingQueue.pause(alice, "New memory is built in until noon")
    assert why(alice) == ["The queue is paused."] * 3
    client.force_login(alice)
    page = text(client.get(PAGE))
    assert "The queue is paused</strong> by alice" in page
    assert "New memory is built in until noon" in page


def test_a_run_that_waits_for_its_search_has_no_place(waiting, alice, world):
    search = SearchFactory(preparation=world.preparation)
    set_run(waiting[0], held=True, search=search, epoch=3)
    seen = overview(alice)
    assert [entry.run.pk for entry in seen.held] == [waiting[0].pk]
    assert f"Waits after 3 epochs until the other runs of search {search.pk}" in seen.held[0].why
    assert order(alice) == [run.pk for run in waiting[1:]]


def test_an_empty_queue_says_that_a_training_starts_at_once(alice, client):
    WorkerSign.leave("train")
    client.force_login(alice)
    assert "A new training starts at once." in text(client.get(PAGE))


# -- Other teams


def test_runs_of_other_teams_take_their_place_without_a_name(waiting, of_others, alice, client):
    set_run(of_others, priority=1)
    assert order(alice) == [None, *(run.pk for run in waiting)]
    client.force_login(alice)
    for page in (text(client.get(PAGE)), text(client.get("/api/v1/queue/"))):
        for secret in ("hidden study", "Trauma", "dora", f"/runs/{of_others.pk}/"):
            assert secret not in page
    assert "A run of another team" in text(client.get(PAGE))


def test_why_the_run_of_another_team_waits_does_not_name_the_team(waiting, of_others, alice):
    team = of_others.preparation.dataset.condition.team
    team.training_limit = 0
    team.save()
    assert why(alice)[3] == "Its team may not train at present; an administrator sets the limit."
    set_run(of_others, state="running")
    TrainingRunFactory(preparation=of_others.preparation)
    team.training_limit = 1
    team.save()
    assert why(alice)[3] == "Its team trains as many at once as it may."


def test_another_teams_running_and_held_runs_are_nameless_too(waiting, of_others, alice, client):
    client.force_login(alice)
    for fields in ({"state": "running"}, {"state": "queued", "held": True, "epoch": 2}):
        set_run(of_others, **fields)
        page = text(client.get(PAGE))
        assert "run of another team" in page and "hidden study" not in page


def test_the_command_line_sees_every_name(waiting, of_others):
    assert order(None) == [*(run.pk for run in waiting), of_others.pk]


# -- How long


def measured(world):
    preparation = world.preparation
    SpeedTest.objects.create(
        architecture="Custom_CNN", image_size=preparation.image_size, batch_size=32, state="succeeded",
        step_seconds=0.5, prediction_seconds=0.1, start_seconds=10.0, finished_at=timezone.now(),
    )  # fmt: skip


def test_what_was_measured_tells_how_long_each_takes_and_when_it_starts(waiting, world, alice):
    measured(world)
    entries = overview(alice).waiting
    # 40 steps of half a second an epoch and one batch of validation, 5 epochs, evaluation in two batches.
    assert entries[0].seconds == pytest.approx(10 + 5 * (20 + 0.1) + 0.2, abs=0.2)
    assert entries[0].starts_in == 0
    assert entries[2].starts_in == pytest.approx(2 * entries[0].seconds)


def test_nothing_is_promised_where_nothing_was_measured(waiting, alice):
    assert [(entry.seconds, entry.starts_in) for entry in overview(alice).waiting][1] == (None, None)


def test_a_run_of_a_search_lasts_until_its_next_comparison(waiting, world):
    measured(world)
    set_run(waiting[0], epoch_limit=2)
    seconds = remaining_seconds(TrainingRun.objects.all())
    assert seconds[waiting[0].pk] == pytest.approx(10 + 2 * 20.1, abs=0.2)


def test_how_long_a_run_takes_that_may_not_go_on_is_not_told(waiting, world, alice):
    measured(world)
    set_run(waiting[0], epoch_limit=2, epoch=2, held=True, search=SearchFactory(preparation=world.preparation))
    assert overview(alice).held[0].seconds is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5, "1 min"), (100, "2 min"), (3540, "59 min"), (3600, "1 h"), (6000, "1 h 40 min"), (40_000, "11 h")],
)
def test_an_estimate_is_shown_no_more_precisely_than_it_is(seconds, words):
    assert roughly(seconds) == words


def test_the_dashboard_shows_the_next_runs_and_how_many_more_there_are(waiting, world, alice, client):
    for _ in range(7):
        TrainingRunFactory(preparation=world.preparation)
    client.force_login(alice)
    page = text(client.get("/"))
    assert "5 more in the queue" in page
    assert page.count("Progress of the training") == 5


# -- Changing it


def test_a_change_of_priority_is_recorded(waiting, alice, client):
    client.force_login(alice)
    answer = client.post(f"/training/runs/{waiting[2].pk}/prioritise/", {"priority": "1"})
    assert answer.url == PAGE
    assert order(alice)[0] == waiting[2].pk
    entry = AuditEntry.objects.get(action="trainingrun.prioritise")
    assert (entry.actor, entry.before, entry.after) == (alice, {"priority": "Normal"}, {"priority": "High"})


@pytest.mark.parametrize("priority", ["", "2", "many"])
def test_a_priority_that_does_not_exist_changes_nothing(waiting, alice, client, priority):
    client.force_login(alice)
    page = text(client.post(f"/training/runs/{waiting[2].pk}/prioritise/", {"priority": priority}, follow=True))
    assert "Choose low, normal or high." in page
    assert not AuditEntry.objects.filter(action="trainingrun.prioritise").exists()


@pytest.mark.parametrize("state", ["running", "succeeded", "failed", "cancelled"])
def test_only_a_waiting_run_has_a_place_to_change(waiting, alice, state):
    set_run(waiting[0], state=state)
    with pytest.raises(JobError, match="does not wait any more"):
        waiting[0].prioritise(1, alice)
    assert not AuditEntry.objects.filter(action="trainingrun.prioritise").exists()


def test_pausing_needs_a_reason(waiting, alice, client):
    client.force_login(alice)
    answer = client.post(f"{PAGE}pause/", {"reason": " "})
    assert answer.status_code == 400
    assert "This field is required." in text(answer)
    assert not TrainingQueue.current().paused


def test_pausing_and_opening_are_recorded_and_opening_wakes_the_workers(waiting, alice, client):
    client.force_login(alice)
    assert client.post(f"{PAGE}pause/", {"reason": "Updates"}).url == PAGE
    assert TrainingRun.claim_next() is None
    OrmQ.objects.all().delete()
    assert client.post(f"{PAGE}open/").url == PAGE
    assert OrmQ.objects.filter(key="train").exists()
    assert TrainingRun.claim_next() == waiting[0]
    actions = AuditEntry.objects.filter(object_type="trainingqueue").values_list("action", "actor__username")
    assert [(action.split(".")[1], actor) for action, actor in actions] == [("open", "alice"), ("pause", "alice")]


def test_pausing_twice_for_the_same_reason_is_said_and_recorded_once(waiting, alice, client):
    client.force_login(alice)
    client.post(f"{PAGE}pause/", {"reason": "Updates"})
    page = text(client.post(f"{PAGE}pause/", {"reason": "Updates"}, follow=True))
    assert "The queue was paused already" in page and "Change the reason" in page
    assert AuditEntry.objects.filter(action="trainingqueue.pause").count() == 1


@pytest.mark.parametrize("way", ["page", "api", "command"])
def test_a_paused_queue_takes_a_new_reason_and_keeps_the_old_one_in_the_audit_log(waiting, alice, client, way):
    TrainingQueue.pause(alice, "Updates")
    client.force_login(alice)
    if way == "page":
        client.post(f"{PAGE}pause/", {"reason": "Until Monday"})
    elif way == "api":
        assert client.post("/api/v1/queue/pause/", {"reason": "Until Monday"}).json()["reason"] == "Until Monday"
    else:
        command("--pause", "Until Monday")
    assert TrainingQueue.current().reason == "Until Monday"
    entry = AuditEntry.objects.filter(action="trainingqueue.pause").order_by("-seq").first()
    assert (entry.before, entry.after) == ({"reason": "Updates"}, {"reason": "Until Monday"})


def test_who_may_not_change_the_queue_gets_no_buttons(waiting, bob, client):
    client.force_login(bob)
    page = text(client.get(PAGE))
    for control in ("Pause the queue", "/prioritise/", "/cancel/"):
        assert control not in page
    assert "Run " in page


def test_the_polled_fragment_is_the_list_alone(waiting, alice, client):
    client.force_login(alice)
    fragment = text(client.get(PAGE, headers=HTMX))
    assert "<html" not in fragment
    assert 'hx-trigger="every 5s"' in fragment and "X-Poll" in fragment


def test_the_page_takes_few_queries_however_many_runs_wait(
    waiting, world, alice, client, django_assert_max_num_queries
):
    measured(world)
    for _ in range(20):
        TrainingRunFactory(preparation=world.preparation, created_by=alice)
    client.force_login(alice)
    for _ in range(10):
        run = TrainingRunFactory(preparation=world.preparation, state="running", epoch=1, images_per_second=50.0)
        TrainingRun.objects.filter(pk=run.pk).update(batch_size=32)
        EpochMetricFactory(run=run, epoch=1, seconds=10)
    client.force_login(alice)
    with django_assert_max_num_queries(30):
        page = text(client.get(PAGE, headers=HTMX))
    assert page.count("left without early stopping") == 10


# -- API and command


def test_the_api_shows_and_changes_the_queue(waiting, alice, client):
    client.force_login(alice)
    shown = client.get("/api/v1/queue/").json()
    assert [entry["run"] for entry in shown["waiting"]] == [run.pk for run in waiting]
    assert client.post("/api/v1/queue/pause/", {"reason": "Updates"}).json()["paused"] is True
    assert client.post("/api/v1/queue/pause/", {}).status_code == 400
    assert client.post("/api/v1/queue/open/").json()["paused"] is False
    answer = client.post(f"/api/v1/runs/{waiting[2].pk}/prioritise/", {"priority": "high"})
    assert answer.json()["priority"] == 1
    set_run(waiting[2], state="running")
    answer = client.post(f"/api/v1/runs/{waiting[2].pk}/prioritise/", {"priority": "low"})
    assert answer.status_code == 409
    assert "does not wait any more" in answer.json()["detail"]


def command(*args, **options):
    out = StringIO()
    call_command("training_queue", *args, stdout=out, **options)
    return out.getvalue()


def test_the_command_shows_the_queue(waiting, of_others):
    assert [entry["place"] for entry in json.loads(command(json=True))["waiting"]] == [1, 2, 3, 4]
    shown = command()
    assert f"waiting  run {waiting[0].pk}: Custom_CNN on CHEST/secret study" in shown


def test_the_command_pauses_opens_and_prioritises(waiting):
    assert json.loads(command("--pause", "Updates", json=True))["paused"]
    assert "Paused by the command line: Updates" in command()
    assert not json.loads(command("--open", json=True))["paused"]
    shown = json.loads(command("--priority", str(waiting[2].pk), "high", json=True))
    assert shown["waiting"][0]["run"] == waiting[2].pk


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--pause", " "], "Say why the queue is paused"),
        (["--priority", "1", "urgent"], "must be one of low, normal, high, not urgent"),
        (["--priority", "999999", "high"], "There is no run 999999"),
        (["--priority", "x", "high"], "There is no run x"),
        (["--priority", "9" * 30, "high"], "There is no run 9"),
    ],
)
def test_the_command_says_what_is_wrong(waiting, options, complaint):
    with pytest.raises(CommandError, match=complaint):
        command(*options)


def test_a_user_of_the_command_needs_the_right_and_sees_the_own_teams_runs(waiting, of_others, bob):
    with pytest.raises(CommandError, match="no role that allows this"):
        command("--pause", "x", user="bob")
    bob.groups.add(Group.objects.get(name="model manager"))
    command("--pause", "x", user="bob")
    assert "a run of another team" in command(user="bob")
    with pytest.raises(CommandError, match="There is no run"):
        command("--priority", str(of_others.pk), "high", user="bob")
