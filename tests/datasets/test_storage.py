"""Decoded pixels take space: it is shown, given back by hand or by age, and never taken from whoever needs it."""

import json
import os
import shutil
from datetime import timedelta
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from datasets import storage
from datasets.cache import CacheError, open_cache
from datasets.models import Dataset, Preparation
from tests.datasets.files import encode, save
from tests.datasets.test_prepare import SIZE, cancel_when, fill, prepare, prepare_again
from tests.datasets.test_scan import noise, scan
from tests.factories import DatasetFactory, PreparationFactory, TrainingRunFactory
from training.configurations import PRESETS
from training.models import NotPrepared, TrainingRun
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError

pytestmark = pytest.mark.django_db


@pytest.fixture
def folder(settings):
    return settings.DATASET_ROOT / "CHEST" / "lungs"


@pytest.fixture
def ready(folder):
    """A finished preparation."""
    fill(folder)
    return prepare()


def below(path):
    return sorted(found.name for found in path.glob("*"))


def age(preparation, days):
    Preparation.objects.filter(pk=preparation.pk).update(finished_at=timezone.now() - timedelta(days=days))


def old(days=storage.DAYS):
    return timezone.now() - timedelta(days=days)


# -- By hand


def test_removing_the_pixels_frees_their_space_and_keeps_the_split(ready, alice):
    manifest = list(ready.manifest.values())
    taken = sum(path.stat().st_size for path in ready.cache_root().rglob("*") if path.is_file())
    assert ready.remove_pixels(by=alice) == taken >= 24 * SIZE * SIZE
    assert below(ready.cache_root()) == []
    assert list(ready.manifest.values()) == manifest
    assert ready.removed_at is not None
    assert (ready.state, ready.shared_patients) == ("succeeded", 0)


def test_without_pixels_a_preparation_is_not_ready_and_not_offered_for_training(ready, alice):
    assert ready.is_ready
    ready.remove_pixels(by=alice)
    assert not ready.is_ready
    assert not Preparation.objects.get(pk=ready.pk).is_ready
    assert Dataset.objects.get().preparation is None
    with pytest.raises(CacheError, match="prepare the dataset again"):
        open_cache(ready.cache_folder)


def test_the_removal_is_in_the_audit_log(ready, alice):
    ready.remove_pixels(by=alice)
    entry = AuditEntry.objects.get(action="preparation.remove_pixels")
    assert (entry.actor, entry.before) == (alice, {"bytes": ready.cache_bytes})


def test_pixels_cannot_be_removed_twice(ready, alice):
    ready.remove_pixels(by=alice)
    with pytest.raises(JobError, match="has no decoded pixels"):
        ready.remove_pixels(by=alice)
    assert AuditEntry.objects.filter(action="preparation.remove_pixels").count() == 1


def test_after_a_removal_the_dataset_can_be_prepared_again(ready, alice):
    ready.remove_pixels(by=alice)
    again = prepare_again()
    assert again.is_ready
    assert (again.split_digest, again.cache_digest) == (ready.split_digest, ready.cache_digest)
    assert Dataset.objects.get().preparation == again


def test_pixels_that_another_preparation_uses_stay_for_it(ready, alice):
    other = prepare_again(seed=5)
    assert other.pixels == ready.pixels
    freed = ready.remove_pixels(by=alice)
    assert 0 < freed < SIZE * SIZE * 24, "only the list of rows was this one's own"
    assert not ready.is_ready and other.is_ready
    assert below(ready.cache_root()) == sorted([other.pixels, other.cache_folder.name])
    assert open_cache(other.cache_folder).images.shape == (24, SIZE, SIZE)
    other.remove_pixels(by=alice)
    assert below(ready.cache_root()) == []


@pytest.mark.parametrize("state", ["queued", "running"])
def test_pixels_that_a_training_needs_are_not_removed(ready, alice, state):
    run = TrainingRunFactory(preparation=ready, state=state)
    with pytest.raises(JobError, match="is in use by a job"):
        ready.remove_pixels(by=alice)
    assert ready.is_ready and Preparation.objects.get().removed_at is None
    type(run).objects.update(state="cancelled")
    ready.remove_pixels(by=alice)


def test_pixels_that_a_training_of_another_preparation_shares_stay(ready, alice):
    other = prepare_again(seed=5)
    TrainingRunFactory(preparation=other, state="running")
    ready.remove_pixels(by=alice)
    assert other.is_ready
    assert open_cache(other.cache_folder).images.shape == (24, SIZE, SIZE)


def test_while_the_dataset_is_being_prepared_its_pixels_stay(ready, alice):
    """The preparation under way may be about to use the same ones."""
    waiting = Preparation.create(Dataset.objects.get(), alice, image_size=SIZE)
    with pytest.raises(JobError, match="is being prepared"):
        ready.remove_pixels(by=alice)
    waiting.request_cancel(alice)
    ready.remove_pixels(by=alice)


def test_a_preparation_under_way_has_nothing_to_remove(alice):
    job = PreparationFactory(state="running")
    with pytest.raises(JobError, match="is in use by a job"):
        job.remove_pixels(by=alice)


def test_a_removal_that_cannot_be_recorded_removes_nothing(ready, alice, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no audit")

    monkeypatch.setattr("xrayplatform.audit.record", fail)
    with pytest.raises(RuntimeError):
        ready.remove_pixels(by=alice)
    assert Preparation.objects.get().is_ready and Preparation.objects.get().removed_at is None


def before_the_lock(monkeypatch, act):
    """Let this happen in the moment before somebody gets the lock on the dataset."""
    rows = type(Dataset.objects.all())
    real = rows.select_for_update

    def lock(self, *args, **options):
        monkeypatch.setattr(rows, "select_for_update", real)
        act()
        return real(self, *args, **options)

    monkeypatch.setattr(rows, "select_for_update", lock)


def test_a_training_that_begins_just_before_keeps_the_pixels(ready, alice, monkeypatch):
    before_the_lock(monkeypatch, lambda: TrainingRunFactory(preparation=ready))
    with pytest.raises(JobError, match="is in use by a job"):
        ready.remove_pixels(by=alice)
    assert ready.is_ready


def test_a_preparation_that_is_created_just_before_keeps_the_pixels(ready, alice, monkeypatch):
    before_the_lock(monkeypatch, lambda: PreparationFactory(dataset=ready.dataset, state="queued"))
    with pytest.raises(JobError, match="is being prepared"):
        ready.remove_pixels(by=alice)
    assert ready.is_ready


def test_a_training_does_not_begin_with_pixels_that_were_removed_just_before(ready, alice, monkeypatch):
    before_the_lock(monkeypatch, lambda: Preparation.objects.get().remove_pixels(by=alice))
    with pytest.raises(JobError, match="has no decoded pixels any more"):
        TrainingRun.create(ready.dataset, "Custom_CNN", PRESETS["quick"].configuration, alice, preset="quick")
    assert not TrainingRun.objects.exists()


def test_a_preparation_of_an_earlier_release_or_without_its_pixels_is_not_offered_for_training(ready, alice):
    meaning = ready.cache_folder / "cache.json"
    content = meaning.read_text()
    meaning.write_text(json.dumps(json.loads(content) | {"format": 1}))
    assert not ready.is_ready
    meaning.write_text(content)
    assert ready.is_ready
    shutil.rmtree(ready.cache_root() / ready.pixels)
    assert not ready.is_ready
    with pytest.raises(NotPrepared):
        TrainingRun.create(ready.dataset, "Custom_CNN", PRESETS["quick"].configuration, alice, preset="quick")


# -- By age


def test_old_preparations_are_pruned_but_the_newest_of_each_dataset_stays(ready, folder, settings, alice):
    newest = prepare_again(fit="stretch")
    for preparation in (ready, newest):
        age(preparation, 90)
    other = PreparationFactory(dataset=DatasetFactory(), finished_at=old(90))
    assert list(Preparation.unused_since(old())) == [ready]
    pruned = storage.prune(Preparation.unused_since(old()), old(), by=alice)
    assert pruned["preparations"] == 1 and pruned["bytes"] >= 24 * SIZE * SIZE
    assert [row.removed_at is None for row in Preparation.objects.order_by("pk")] == [False, True, True]
    assert newest.is_ready
    assert other.removed_at is None


def test_a_preparation_that_is_young_enough_stays(ready):
    prepare_again(seed=1)
    age(ready, 20)
    assert not Preparation.unused_since(old(30)).exists()
    assert list(Preparation.unused_since(old(10))) == [ready]


def test_when_the_newest_one_has_no_pixels_the_newest_that_has_some_stays(ready, alice):
    newest = prepare_again(seed=1)
    newest.remove_pixels(by=alice)
    age(ready, 90)
    assert not Preparation.unused_since(old()).exists()


def test_pruning_passes_over_what_a_job_uses(ready, alice):
    newest = prepare_again(fit="stretch")
    age(ready, 90)
    TrainingRunFactory(preparation=ready, state="running")
    assert storage.prune(Preparation.unused_since(old()), old(), by=alice) == {"preparations": 0, "bytes": 0}
    assert ready.is_ready and newest.is_ready


# -- Left over


@pytest.fixture
def unfinished(ready, folder, monkeypatch, alice):
    """The folder of a preparation that was cancelled while it decoded."""
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    save(folder / "NORMAL/new.png", encode(noise(900), "PNG"))
    scan()
    cancel_when("decoded", alice, fit="stretch")
    (found,) = ready.cache_root().glob("*.part")
    return found


def make_old(folder):
    os.utime(folder, ((timezone.now() - timedelta(days=90)).timestamp(),) * 2)


def test_what_stopped_preparations_left_behind_is_pruned_by_its_age(unfinished, ready, alice):
    assert storage.prune([], old(), by=alice) == {"preparations": 0, "bytes": 0}
    make_old(unfinished)
    pruned = storage.prune([], old(), by=alice)
    assert pruned["preparations"] == 0 and pruned["bytes"] > 0
    assert not unfinished.exists()
    assert ready.is_ready


def test_nothing_is_taken_for_left_over_while_something_is_prepared(unfinished, alice):
    make_old(unfinished)
    waiting = Preparation.create(Dataset.objects.get(), alice, image_size=SIZE)
    storage.prune([], old(), by=alice)
    assert unfinished.exists()
    waiting.request_cancel(alice)
    storage.prune([], old(), by=alice)
    assert not unfinished.exists()


def test_what_a_lost_database_left_is_pruned_and_what_is_named_is_not(ready, alice):
    root = ready.cache_root()
    stray = root / "pixels-77-abc"
    shutil.copytree(root / ready.pixels, stray)
    for folder in root.iterdir():
        make_old(folder)
    storage.prune([], old(), by=alice)
    assert below(root) == sorted([ready.pixels, ready.cache_folder.name])


def test_finished_and_unfinished_space_is_told_apart(unfinished, ready):
    use = storage.use()
    blocks = [path.stat().st_blocks * 512 for path in unfinished.iterdir()]
    assert use["unfinished"] == sum(blocks)
    assert use["finished"] >= 24 * SIZE * SIZE


def test_an_unfinished_folder_counts_what_it_really_takes(ready):
    """Its files have their full length from the start, with holes."""
    part = ready.cache_root() / "pixels-1-abc.part"
    part.mkdir()
    with (part / "images.npy").open("wb") as file:
        file.truncate(10_000_000)
    assert storage.use()["unfinished"] < 1_000_000


def test_what_a_job_renames_or_removes_while_the_space_is_counted_is_no_error(ready, monkeypatch):
    whole = storage.use()["finished"]
    real = Path.lstat

    def gone(path):
        if path.name == "hashes.npy":
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(Path, "lstat", gone)
    assert 0 < storage.use()["finished"] < whole
    assert storage._bytes(ready.cache_root() / "renamed") == 0


def test_no_cache_folder_is_no_space():
    assert storage.use() == {"finished": 0, "unfinished": 0}
    assert storage.prune([], timezone.now(), by=None) == {"preparations": 0, "bytes": 0}


# -- The command


def run(*args, **options):
    out = StringIO()
    call_command("prune_pixels", *args, json=True, stdout=out, stderr=StringIO(), **options)
    return json.loads(out.getvalue())


def test_the_command_prunes_by_age(ready):
    prepare_again(fit="stretch")
    age(ready, 90)
    answer = run()
    assert (answer["preparations"], answer["use"]["unfinished"]) == (1, 0)
    assert not ready.is_ready
    assert AuditEntry.objects.get(action="storage.prune").after["preparations"] == 1


def test_the_command_removes_one_by_its_number_whatever_its_age(ready):
    assert run(preparation=ready.pk)["preparations"] == 1
    assert not ready.is_ready
    with pytest.raises(CommandError, match="There is no preparation 999999"):
        call_command("prune_pixels", preparation=999999, stdout=StringIO())


def test_a_number_of_days_below_zero_is_refused(ready):
    with pytest.raises(CommandError, match="--days must be 0 or more"):
        call_command("prune_pixels", days=-1, stdout=StringIO())
    assert ready.is_ready


def test_what_is_left_is_what_was_there(ready, alice):
    """Removing one of two that share pixels must not touch a byte of them."""
    other = prepare_again(seed=5)
    before = np.array(open_cache(other.cache_folder).images)
    ready.remove_pixels(by=alice)
    assert np.array_equal(open_cache(other.cache_folder).images, before)
    assert open_cache(other.cache_folder).digest == other.cache_digest
