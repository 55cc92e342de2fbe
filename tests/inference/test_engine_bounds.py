"""What a process keeps and takes on has bounds: compiled versions, requests at work and requests that wait."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from inference import engine, turns
from inference.engine import Engine, EngineError, load, precision_check, supported_precisions
from inference.models import Prediction, ServingProcess, model_in_service, prediction
from inference.models import serving_process as processes
from inference.turns import Busy, Turns
from tests.datasets.files import encode
from tests.factories import ConditionFactory
from tests.inference.test_engine import Loader
from tests.inference.versions import make_version

PICTURE = encode(np.full((64, 64), 220, np.uint8), "PNG")


@pytest.fixture
def clock(monkeypatch):
    """The engine's time, in seconds, as a list of one."""
    now = [10_000.0]
    monkeypatch.setattr(engine.time, "monotonic", lambda: now[0])
    return now


def asked(models: Engine, key: str, version: int, clock: list[float], epoch: int = 1) -> Loader:
    """The key is asked a second later; returns the loader, which counts what was loaded for it."""
    clock[0] += 1
    loader = Loader()
    models.get(key, version, epoch, loader)
    return loader


# -- Compiled versions


def test_at_most_so_many_versions_stay_and_those_used_the_longest_ago_go_first(clock):
    models = Engine(kept=2)
    asked(models, "chest", 1, clock)
    asked(models, "knee", 2, clock)
    asked(models, "chest", 1, clock)
    asked(models, "hand", 3, clock)
    assert models.state().loaded == (3, 1)
    assert asked(models, "chest", 1, clock).calls == 0
    assert asked(models, "knee", 2, clock).calls == 1
    assert models.state().loaded == (2, 1)


def test_a_version_that_left_is_loaded_again_while_other_conditions_go_on(clock):
    models = Engine(kept=1)
    asked(models, "chest", 1, clock)
    asked(models, "knee", 2, clock)
    again = Loader()
    again.may_end.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(models.get, "chest", 1, 1, again) for _ in range(2)]
        assert again.started.wait(10)
        assert asked(models, "knee", 2, clock).calls == 0
        assert not any(request.done() for request in waiting)
        again.may_end.set()
        assert {request.result(10).model for request in waiting} == {again.model}
    assert again.calls == 1


def test_the_previous_version_of_a_condition_in_use_outlives_a_condition_that_is_idle(clock):
    models = Engine(kept=3)
    asked(models, "knee", 9, clock)
    clock[0] += engine.PREVIOUS_SECONDS
    asked(models, "chest", 1, clock)
    asked(models, "chest", 2, clock, epoch=2)
    asked(models, "hand", 3, clock)
    assert set(models.state().loaded) == {1, 2, 3}
    assert asked(models, "chest", 1, clock, epoch=3).calls == 0


def test_previous_versions_never_drive_out_what_answers(clock):
    models = Engine(kept=3)
    for condition, version in (("chest", 1), ("knee", 3), ("hand", 5)):
        asked(models, condition, version, clock)
        asked(models, condition, version + 1, clock, epoch=2)
    assert set(models.state().loaded) == {2, 4, 6}


def test_what_leaves_is_freed_at_once(tmp_path, settings, db):
    settings.MODEL_ROOT = tmp_path
    versions = [make_version(ConditionFactory(), slope) for slope in (3.0, 5.0)]
    models = Engine(kept=1)
    gc.disable()
    try:
        model = models.get("a", 1, 1, lambda: load(versions[0].folder, versions[0].sha256)).model
        model.predict(np.zeros((1, 64, 64), np.uint8))
        left = weakref.ref(model)
        del model
        models.get("b", 2, 1, lambda: load(versions[1].folder, versions[1].sha256))
        assert left() is None
    finally:
        gc.enable()


# -- Versions by themselves


def test_a_version_by_itself_is_loaded_once_and_shared_with_service(clock):
    models, loader = Engine(), Loader()
    with ThreadPoolExecutor(4) as pool:
        found = {request.result(10) for request in [pool.submit(models.of_version, 7, loader) for _ in range(4)]}
    assert found == {loader.model} and loader.calls == 1
    assert models.get("chest", 7, 1, Loader()).model is loader.model
    assert asked(models, "knee", 7, clock).calls == 0


def test_a_challenger_loads_while_the_champion_answers(clock):
    models, challenger = Engine(), Loader()
    asked(models, "chest", 1, clock)
    challenger.may_end.clear()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(models.of_version, 2, challenger)
        assert challenger.started.wait(10)
        assert asked(models, "chest", 1, clock).calls == 0
        challenger.may_end.set()
        assert loading.result(10) is challenger.model


def test_a_challenger_that_fails_is_tried_again_only_after_a_while(clock):
    models, challenger = Engine(), Loader()
    challenger.error = RuntimeError("damaged")
    for _ in range(3):
        with pytest.raises(EngineError, match="damaged"):
            models.of_version(2, challenger)
    assert challenger.calls == 1
    clock[0] += engine.RETRY_SECONDS
    challenger.error = None
    assert models.of_version(2, challenger) is challenger.model


def test_a_challenger_in_use_is_not_driven_out_by_a_condition_that_is_idle(clock):
    models, challenger = Engine(kept=2), Loader()
    asked(models, "knee", 1, clock)
    clock[0] += 1
    models.of_version(2, challenger)
    asked(models, "chest", 3, clock)
    models.of_version(2, challenger)
    assert challenger.calls == 1
    assert set(models.state().loaded) == {2, 3}


def test_the_state_names_what_answers_what_is_kept_and_why_a_newer_one_is_not_there(clock):
    models, broken = Engine(), Loader()
    asked(models, "chest", 1, clock)
    asked(models, "chest", 2, clock, epoch=2)
    broken.error = EngineError("manifest.json is missing")
    models.get("chest", 3, 3, broken)
    (row,) = models.state().serving
    assert (row.key, row.version_id, row.epoch, row.previous_id) == ("chest", 2, 2, 1)
    assert row.failure == "manifest.json is missing"


# -- Turns


def occupied(queue: Turns, pool: ThreadPoolExecutor) -> tuple[threading.Event, list]:
    """Somebody works until the event is set."""
    begun, may_end = threading.Event(), threading.Event()

    def work():
        with queue.take():
            begun.set()
            may_end.wait(10)

    request = pool.submit(work)
    assert begun.wait(10)
    return may_end, [request]


def wait_until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("It did not happen.")


def test_those_who_wait_come_in_the_order_in_which_they_asked():
    queue, order = Turns(1, 5), []
    with ThreadPoolExecutor(6) as pool:
        may_end, requests = occupied(queue, pool)

        def work(number):
            with queue.take():
                order.append(number)

        for number in range(4):
            requests.append(pool.submit(work, number))
            wait_until(lambda: queue.waiting == number + 1)  # noqa: B023
        may_end.set()
        for request in requests:
            request.result(10)
    assert order == [0, 1, 2, 3]
    assert (queue.working, queue.waiting) == (0, 0)


def test_beyond_the_bound_people_are_told_when_to_come_back():
    queue = Turns(1, 1)
    with ThreadPoolExecutor(2) as pool:
        may_end, requests = occupied(queue, pool)
        waiting = pool.submit(lambda: queue.take().__enter__())
        wait_until(lambda: queue.waiting == 1)
        with pytest.raises(Busy, match="send it again in 2 seconds") as refused, queue.take():
            pass
        may_end.set()
        waiting.result(10)
        requests[0].result(10)
    assert refused.value.retry_after == 2


def test_the_time_to_come_back_follows_how_long_answers_took_of_late(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(turns.time, "monotonic", lambda: now[0])
    queue = Turns(2, 0)
    with queue.take():
        now[0] += 7.0
    with queue.take(), queue.take(), pytest.raises(Busy) as refused, queue.take():
        pass
    assert refused.value.retry_after == 7


def test_a_turn_that_ends_with_an_error_is_given_back():
    queue = Turns(1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), queue.take():
            raise ZeroDivisionError
    assert queue.working == 0


@pytest.fixture
def chest(team, alice, monkeypatch):
    """A condition with a version in service, in a process that has no model yet."""
    monkeypatch.setattr(prediction, "ENGINE", Engine())
    monkeypatch.setattr(processes, "_told", {})
    condition = ConditionFactory(slug="chest", team=team)
    make_version(condition).activate(by=alice, reason="agreed")
    return condition


@pytest.fixture
def nobody_may_wait(monkeypatch):
    """The only turn is taken, and nobody may wait for it."""
    full = Turns(1, 0)
    monkeypatch.setattr("inference.analysing.TURNS", full)
    with full.take():
        yield


def test_a_busy_platform_answers_the_api_with_503_and_when_to_try_again(chest, client, bob, nobody_may_wait):
    client.force_login(bob)
    form = {"condition": "chest", "image": SimpleUploadedFile("x.png", PICTURE)}
    response = client.post("/api/v1/predictions/", form)
    assert (response.status_code, response["Retry-After"]) == (503, "1")
    assert "send it again in 1 second." in response.json()["detail"]
    assert not Prediction.objects.exists()


def test_a_busy_platform_says_so_in_the_form(chest, client, bob, nobody_may_wait):
    client.force_login(bob)
    form = {"condition": "chest", "image": SimpleUploadedFile("x.png", PICTURE)}
    response = client.post("/analysis/", form)
    assert (response.status_code, response["Retry-After"]) == (503, "1")
    assert "send it again in 1 second." in response.content.decode()


# -- Precisions


def test_a_precision_that_the_processor_does_not_have_is_refused_in_words(chest, monkeypatch):
    version = chest.versions.get()
    monkeypatch.setattr(engine, "supported_precisions", lambda: ("f32",))
    with pytest.raises(EngineError, match="does not compute in bf16, only in f32"):
        load(version.folder, version.sha256, precision="bf16")


def test_float32_is_always_there():
    assert "f32" in supported_precisions()


def test_a_precision_keeps_the_answers_within_a_tolerance_and_without_a_changed_decision(chest):
    version = chest.versions.get()
    model = load(version.folder, version.sha256)
    pixels = np.stack([np.full((64, 64), value, np.uint8) for value in (100, 127, 180)])
    stored = model.predict(pixels)

    def checked(answers, **options):
        options = {"positive_class": "PNEUMONIA", "threshold": 0.5, "tolerance": 0.02} | options
        return precision_check(model, pixels, answers, **options)

    same = checked(stored)
    assert same.keeps_the_answers and (same.precision, same.images, same.changed_decisions) == ("f32", 3, 0)
    other = stored + np.array([[-0.01, 0.01]])
    changed = checked(other)
    assert changed.largest_difference == pytest.approx(0.01) and changed.changed_decisions == 1
    assert not changed.keeps_the_answers
    assert checked(other, threshold=0.9).keeps_the_answers
    assert not checked(other, threshold=0.9, tolerance=0.005).keeps_the_answers
    assert not checked(np.full_like(stored, np.nan)).keeps_the_answers
    with pytest.raises(ValueError, match="have no answers of"):
        checked(stored[:2])


# -- Which process serves what


def test_the_request_that_swaps_writes_what_the_process_serves_and_no_other_does(
    chest, alice, django_assert_num_queries
):
    model_in_service(chest)
    (row,) = ServingProcess.objects.alive()
    assert (row.condition, row.version.number, row.epoch) == (chest, 1, 1)
    with django_assert_num_queries(0):
        ServingProcess.objects.tell(chest, row.version_id, row.epoch)
    make_version(chest, 2.0).activate(by=alice, reason="better")
    model_in_service(chest)
    (row,) = ServingProcess.objects.alive()
    assert (row.version.number, row.epoch) == (2, 2)


def test_processes_that_are_gone_vanish(chest):
    version = chest.versions.get()
    here = processes.socket.gethostname()
    ServingProcess.objects.create(host=here, pid=2**22 + 1, condition=chest, version=version, epoch=1)
    elsewhere = ServingProcess.objects.create(host="elsewhere", pid=1, condition=chest, version=version, epoch=1)
    assert ServingProcess.objects.alive() == [elsewhere]
    old = processes.timezone.now() - 2 * processes.STALE_AFTER
    ServingProcess.objects.filter(pk=elsewhere.pk).update(at=old)
    assert ServingProcess.objects.alive() == []
    model_in_service(chest)
    assert [row.pid for row in ServingProcess.objects.all()] == [processes.os.getpid()]
