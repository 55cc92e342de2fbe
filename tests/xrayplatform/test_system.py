"""System Status: free disk before something is written, and queues that show signs of life or do not."""

import shutil
from collections import namedtuple
from datetime import timedelta

import psutil
import pytest
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ

from tests.factories import ScanFactory
from xrayplatform import system, tasks
from xrayplatform.system import GIB, NotEnoughDisk, WorkerSign

Usage = namedtuple("Usage", "total used free")
Memory = namedtuple("Memory", "total")


@pytest.fixture
def free(monkeypatch, settings):
    settings.MIN_FREE_DISK_GB = 5

    def set_free(gigabytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GIB, 0, int(gigabytes * GIB)))

    return set_free


def test_what_would_leave_too_little_free_disk_is_refused_with_the_figures(free):
    free(5.5)
    with pytest.raises(NotEnoughDisk) as refusal:
        system.require_disk(GIB)
    assert "this needs 1.00 GB and 5 GB must stay free, but only 5.50 GB are free" in str(refusal.value)


def test_what_fits_passes_to_the_byte(free):
    free(6)
    system.require_disk(GIB)
    with pytest.raises(NotEnoughDisk):
        system.require_disk(GIB + 1)


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_that_of_its_parent(settings, tmp_path):
    settings.MODEL_ROOT = tmp_path / "not" / "there" / "yet"
    assert system.resources().disk_free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)


def test_the_machine_is_told_in_bytes_and_percent(db):
    resources = system.resources()
    assert 0 < resources.memory_used < resources.memory_total
    assert 0 < resources.disk_free < resources.disk_total
    assert 0 <= resources.cpu_percent <= 100
    assert resources.cpu_count >= 1


# -- Memory


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vmstat", "pgfault 12\noom_kill 3\n"),
        ("memory.events", "low 0\noom 5\noom_kill 3\noom_group_kill 0\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
    ],
)
def test_what_the_kernel_killed_for_lack_of_memory_is_counted(monkeypatch, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(system, "OOM_COUNTERS", (tmp_path / name, tmp_path / "not-there"))
    monkeypatch.setattr(system, "_own_group", lambda name: [])
    assert system.oom_kills() == 3


def test_the_counters_of_this_machine_can_be_read():
    assert system.oom_kills() >= 0
    assert 0 < system.memory_limit() <= psutil.virtual_memory().total


@pytest.mark.parametrize(("text", "limit"), [("max\n", 16 * GIB), (f"{2 * GIB}\n", 2 * GIB), (str(1 << 62), 16 * GIB)])
def test_a_container_may_have_less_memory_than_the_machine(monkeypatch, tmp_path, text, limit):
    (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(system, "MEMORY_LIMITS", (tmp_path / "memory.max",))
    monkeypatch.setattr(system, "_own_group", lambda name: [])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(16 * GIB))
    assert system.memory_limit() == limit


# -- Queues


def queues():
    return {row["cluster"]: row for row in system.queue_status()}


def test_a_queue_without_any_sign_is_not_alive(db):
    assert [(row["cluster"], row["alive"], row["last_sign"]) for row in system.queue_status()] == [
        ("xray", False, None),
        ("train", False, None),
    ]


def test_a_queue_is_alive_for_three_minutes_after_a_sign(db):
    WorkerSign.leave("train")
    assert queues()["train"]["alive"] and not queues()["xray"]["alive"]
    WorkerSign.objects.update(at=timezone.now() - timedelta(minutes=2, seconds=55))
    assert queues()["train"]["alive"]
    WorkerSign.objects.update(at=timezone.now() - timedelta(minutes=3, seconds=1))
    assert not queues()["train"]["alive"]


def test_signs_replace_each_other(db):
    WorkerSign.leave("train")
    WorkerSign.leave("train")
    assert WorkerSign.objects.count() == 1


def test_every_minute_a_sign_is_left_and_the_idle_training_queue_is_asked_for_one(db):
    tasks.every_minute()
    assert queues()["xray"]["alive"]
    message = OrmQ.objects.get(key="train").task
    assert (message["func"], message["args"]) == ("xrayplatform.tasks.leave_sign", ("train",))
    tasks.every_minute()
    assert OrmQ.objects.filter(key="train").count() == 1
    tasks.leave_sign("train")
    assert queues()["train"]["alive"]


def test_every_minute_jobs_whose_worker_died_are_ended(db):
    job = ScanFactory()
    job.claim(1)
    type(job).objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    tasks.every_minute()
    job.refresh_from_db()
    assert job.state == "failed"


def test_the_page_shows_which_queue_gives_no_sign_and_renews_itself(client, auditor):
    WorkerSign.leave("xray")
    client.force_login(auditor)
    page = client.get(reverse("xrayplatform:system-status")).content.decode()
    assert page.count("No sign of life") == 1
    assert f'hx-get="{reverse("xrayplatform:system-status")}"' in page
    fragment = client.get(reverse("xrayplatform:system-status"), headers={"HX-Request": "true"}).content.decode()
    assert "<html" in page and "<html" not in fragment


def test_the_api_tells_the_same(client, auditor):
    client.force_login(auditor)
    answer = client.get(reverse("api:system-list")).json()
    assert {"cpu_percent", "memory_total", "disk_free", "gpus"} <= answer["resources"].keys()
    assert [row["cluster"] for row in answer["queues"]] == ["xray", "train"]
