"""Preparing a dataset: whole patients go to one side, the split can be repeated, and names never leave the files."""

import contextlib
import html
import itertools
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.urls import reverse

from datasets import decoding, preparing, splitting
from datasets.cache import open_cache
from datasets.models import Dataset, DatasetImage, Preparation, Scan
from datasets.tasks import run_preparation
from datasets.versions import find_version
from tests.datasets.files import dicom, encode, gradient, save
from tests.datasets.test_scan import noise, scan
from tests.journey.instance import ROOT, Instance
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError
from xrayplatform.system import NotEnoughDisk

pytestmark = pytest.mark.django_db

SIZE = 64


@pytest.fixture
def folder(settings):
    return settings.DATASET_ROOT / "CHEST" / "lungs"


def fill(folder, count=12, name="{}.png", **shape):
    """`count` different pictures in each of two classes."""
    for offset, label in enumerate(("NORMAL", "PNEUMONIA")):
        for number in range(count):
            picture = noise(1000 * offset + number, **shape)
            save(folder / label / name.format(number), encode(picture, "PNG"))


def prepare(by=None, **options):
    scan()
    return prepare_again(by, **options)


def prepare_again(by=None, **options):
    job = Preparation.create(Dataset.objects.get(), by, image_size=SIZE, **options)
    run_preparation(job, 1)
    job.refresh_from_db()
    return job


def failure(job):
    assert job.state == "failed"
    assert not job.manifest.exists()
    assert not [path.name for path in job.cache_root().glob("*") if path.suffix != ".part"]
    return f"{job.error} {job.hint}"


def spy_on_decoding(monkeypatch):
    """The names of the files that are decoded for a preparation from now on."""
    decoded = []
    real = decoding.Decoders.run

    def run(self, requests):
        def noted():
            for key, request in requests:
                if request["op"] == "prepare":
                    decoded.append(Path(request["path"]).name)
                yield key, request

        return real(self, noted())

    monkeypatch.setattr(decoding.Decoders, "run", run)
    return decoded


def pixel_folders():
    return sorted(path.name for path in Preparation.cache_root().glob("pixels-*"))


def test_every_image_is_in_exactly_one_split_and_each_split_has_every_class(folder):
    fill(folder, 20)
    job = prepare()
    assert (job.state, job.shared_patients, job.excluded) == ("succeeded", 0, 0)
    totals = [job.split_total(split) for split in splitting.SPLITS]
    assert sum(totals) == job.manifest.count() == 40
    assert totals[0] == pytest.approx(28, abs=2)
    assert all(set(job.counts[split]) == {"NORMAL", "PNEUMONIA"} for split in splitting.SPLITS)
    assert job.is_ready and job.dataset.preparation == job


def test_the_cache_holds_the_pixels_of_the_manifest_in_its_order(folder):
    fill(folder)
    job = prepare()
    data = open_cache(job.cache_folder)
    rows = list(job.manifest.all())
    assert data.images.shape == (24, SIZE, SIZE) and data.images.dtype == np.uint8
    assert [data.classes[label] for label in data.labels] == [row.class_name for row in rows]
    assert [splitting.SPLITS[split] for split in data.splits] == [row.split for row in rows]
    assert data.groups.tolist() == [row.group for row in rows]
    assert data.digest == job.cache_digest
    assert len({image.tobytes() for image in data.images}) == 24


def test_a_patient_told_by_the_file_names_stays_on_one_side(folder):
    for patient in range(10):
        for view in range(3):
            for offset, label in enumerate(("NORMAL", "PNEUMONIA")):
                seed = 100 * offset + 10 * patient + view
                save(folder / label / f"patient{patient + 50 * offset}_view{view}.png", seed=seed)
    job = prepare()
    sides = {}
    for row in job.manifest.all():
        sides.setdefault(row.path.split("_view")[0], set()).add(row.split)
    assert len(sides) == 20
    assert {len(splits) for splits in sides.values()} == {1}
    assert (job.group_key, job.shared_patients) == ("file-name", 0)
    assert "patient12_view1" in job.group_description


def test_a_patient_told_by_a_folder_stays_on_one_side_and_the_page_says_so(folder):
    for patient in range(20):
        for view in range(2):
            label = "NORMAL" if patient < 10 else "PNEUMONIA"
            save(folder / label / f"study{patient:02d}" / f"{view}.png", seed=100 * patient + view)
    job = prepare()
    sides = {}
    for row in job.manifest.all():
        sides.setdefault(row.path.rsplit("/", 1)[0], set()).add(row.split)
    assert {len(splits) for splits in sides.values()} == {1}
    assert (job.group_key, job.group_description) == ("folder", "patient folder: 40 images")


@pytest.fixture
def dicom_folder(folder):
    """Ten patients with two images each, whose file names tell nothing."""
    for patient in range(20):
        for view in range(2):
            label = "NORMAL" if patient < 10 else "PNEUMONIA"
            picture = gradient(seed=100 * patient + view).astype(np.uint16)
            tags = {"PatientID": f"HOSP-{patient:04d}", "PatientName": f"Mustermann^Erika{patient}"}
            save(folder / label / f"{view * 100 + patient}.dcm", dicom(picture, **tags))
    return folder


def test_a_patient_told_by_dicom_stays_on_one_side(dicom_folder):
    job = prepare()
    assert (job.state, job.group_key, job.shared_patients) == ("succeeded", "dicom", 0)
    split = dict(job.manifest.values_list("path", "split"))
    for patient in range(20):
        label = "NORMAL" if patient < 10 else "PNEUMONIA"
        assert split[f"{label}/{patient}.dcm"] == split[f"{label}/{100 + patient}.dcm"]


def everything_stored(settings):
    """All rows of all tables and all bytes below the model folder, as one text."""
    rows = [str(list(model._base_manager.values())) for model in apps.get_models() if model._meta.managed]
    files = [path.read_bytes().decode("latin-1") for path in settings.MODEL_ROOT.rglob("*") if path.is_file()]
    return "\n".join([*rows, *files])


def test_neither_names_nor_numbers_of_patients_are_stored_anywhere(dicom_folder, settings):
    prepare()
    stored = everything_stored(settings)
    assert DatasetImage.objects.exclude(patient_key="").count() == 40
    assert "CHEST/lungs" in stored
    assert "Mustermann" not in stored and "HOSP-" not in stored and "Erika" not in stored


def test_patients_of_a_csv_are_not_stored_either(settings):
    folder = settings.DATASET_ROOT / "knee"
    lines = ["file,label,patient"]
    for number in range(24):
        save(folder / "images" / f"{number}.png", seed=number)
        lines.append(f"{number}.png,{'ill' if number % 2 else 'well'},Mustermann-{number // 2}")
    (folder / "labels.csv").write_text("\n".join(lines))
    job = prepare()
    assert (job.group_key, job.shared_patients) == ("csv", 0)
    assert "Mustermann" not in everything_stored(settings)


def test_the_pseudonym_of_a_patient_depends_on_the_secret_key(dicom_folder, settings):
    scan()
    before = set(DatasetImage.objects.values_list("patient_key", flat=True))
    settings.SECRET_KEY = "another"
    scan()
    assert before.isdisjoint(DatasetImage.objects.values_list("patient_key", flat=True))


def test_the_same_seed_gives_the_same_split_and_another_seed_another(folder):
    fill(folder, 20)
    first = prepare(seed=3)
    again, other = prepare_again(seed=3), prepare_again(seed=4)
    assert first.split_digest == again.split_digest != other.split_digest
    assert first.cache_digest == again.cache_digest
    assert first.dataset_digest == other.dataset_digest == Dataset.objects.get().digest


def test_a_split_that_the_folders_bring_is_kept(settings):
    seeds = itertools.count()
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for label in ("broken", "whole"):
            for number in range(count):
                save(settings.DATASET_ROOT / "bones" / split / label / f"{number}.png", seed=next(seeds))
    job = prepare()
    wanted = {"train": "train", "val": "validation", "test": "test"}
    assert {(row.split, wanted[row.path.split("/")[0]]) for row in job.manifest.all()} == {
        (split, split) for split in splitting.SPLITS
    }


def test_what_straddled_the_folders_division_is_told_by_a_bounded_list_of_files_and_by_no_patient(
    settings, client, alice
):
    """25 patients of the test part have an image in train, too."""
    seeds = itertools.count()
    for split, patients in (("train", range(60)), ("val", range(60, 80)), ("test", range(35, 60))):
        for label in ("broken", "whole"):
            for patient in patients:
                number = 2 * patient + (label == "whole")
                name = f"patient{number}_{split}.png"
                save(settings.DATASET_ROOT / "bones" / split / label / name, encode(noise(next(seeds)), "PNG"))
    for label in ("broken", "whole"):
        for number in range(200, 210):
            name = f"patient{number}{'00' if label == 'whole' else ''}_x.png"
            save(settings.DATASET_ROOT / "bones/test" / label / name, encode(noise(next(seeds)), "PNG"))
    job = prepare(alice)
    assert (job.state, job.shared_patients) == ("succeeded", 0), job.error
    told = " ".join(job.warnings)
    assert "50 patients (or source pictures) were in more than one folder part" in told
    assert "Moved into train: 0 validation and 50 test images." in told
    assert "shrank from 70 to 20 images" in told
    listed = next(warning for warning in job.warnings if warning.startswith("In several folder parts"))
    assert "train/broken/patient100_train.png (train), test/broken/patient100_test.png (test);" in listed
    assert listed.count("(test)") == preparing.STRADDLING_LISTED
    assert listed.endswith(" And 40 more.")
    client.force_login(alice)
    assert listed in html.unescape(client.get(job.get_absolute_url()).content.decode())
    assert listed in client.get(reverse("api:preparation-detail", args=[job.pk])).json()["warnings"]


def test_the_class_weights_make_up_for_an_imbalance(folder):
    fill(folder, 30)
    for number in range(18):
        (folder / "NORMAL" / f"{number}.png").unlink()
    weights = prepare().class_weights
    assert weights["NORMAL"] > 1 > weights["PNEUMONIA"]


@pytest.mark.parametrize(
    ("fit", "shape", "used", "warned"),
    [
        ("auto", {"height": 32, "width": 32}, "stretch", True),
        ("auto", {"height": 24, "width": 32}, "pad", False),
        ("pad", {"height": 32, "width": 32}, "pad", False),
        ("stretch", {"height": 24, "width": 32}, "stretch", False),
    ],
)
def test_images_become_square_as_chosen_or_as_the_dataset_suggests(folder, fit, shape, used, warned):
    fill(folder, **shape)
    job = prepare(fit=fit)
    assert job.pipeline["fit"] == used
    assert any("squeezed" in warning for warning in job.warnings) == warned


def test_one_image_that_is_not_square_is_enough_to_keep_the_proportions(folder):
    fill(folder, height=32, width=32)
    save(folder / "NORMAL" / "odd.png", encode(gradient(20, 32, seed=9), "PNG"))
    assert prepare(fit="auto").pipeline["fit"] == "pad"


def test_a_picture_with_two_labels_is_left_out_with_both_its_copies(folder):
    fill(folder)
    picture = encode(gradient(40, 40, seed=77), "PNG")
    save(folder / "NORMAL" / "same.png", picture)
    save(folder / "PNEUMONIA" / "same.png", picture)
    job = prepare()
    assert (job.excluded, job.manifest.count()) == (2, 24)
    assert not job.manifest.filter(path__contains="same").exists()
    assert "2 images were left out: the same picture has two labels." in job.warnings


def test_unreadable_and_excluded_images_are_counted_as_left_out(folder):
    fill(folder)
    save(folder / "NORMAL" / "text.png", b"this is only text")
    scan()
    DatasetImage.objects.get(path="NORMAL/0.png").decide("by-hand", "exclude", "a lateral view", by=None)
    job = prepare_again()
    assert (job.excluded, job.manifest.count()) == (2, 23)
    assert job.left_out == {"unreadable": 1, "excluded": 1}


def test_a_dataset_with_one_class_is_refused(folder):
    fill(folder)
    scan()
    DatasetImage.objects.update(class_name="NORMAL")
    assert "No image of class PNEUMONIA is left to prepare." in failure(prepare_again())


def test_without_any_sign_of_the_patient_the_page_does_not_speak_of_patients(folder, client, alice):
    fill(folder)
    job = prepare()
    assert (job.group_key, job.shared_patients, job.patients_are_known) == ("image", 0, False)
    assert "patients are not known" in job.message
    client.force_login(alice)
    page = client.get(job.get_absolute_url()).content.decode()
    assert "Patients are not known." in page and "0 patients shared" not in page


def test_more_than_can_be_held_back_is_refused_at_once(folder):
    fill(folder)
    scan()
    with pytest.raises(JobError, match=r"0\.80 together, at most 0\.60 can be held back"):
        Preparation.create(Dataset.objects.get(), None, validation_share=0.4, test_share=0.4)


def test_a_class_with_fewer_than_ten_images_is_refused_by_name(folder):
    fill(folder, 9)
    for number in range(9, 12):
        save(folder / "NORMAL" / f"{number}.png", seed=number)
    assert "Each class needs at least 10 usable images: PNEUMONIA has 9" in failure(prepare())


def test_a_class_with_too_few_patients_is_refused_by_name(folder):
    fill(folder)
    for number in range(12):
        picture = folder / "PNEUMONIA" / f"{number}.png"
        picture.rename(picture.with_name(f"patient{number % 2}_view{number}.png"))
    assert "images of at least 3 patients" in failure(prepare())


def test_a_dataset_whose_images_are_all_gone_is_refused(folder):
    fill(folder)
    scan()
    DatasetImage.objects.all().delete()
    assert "at least two classes" in failure(prepare_again())


def test_not_enough_disk_is_refused_before_anything_is_written(folder, monkeypatch):
    fill(folder)
    asked = []

    def refuse(count):
        asked.append(count)
        raise NotEnoughDisk("Not enough free disk: this needs 3 GB.")

    monkeypatch.setattr("datasets.preparing.require_disk", refuse)
    assert "Not enough free disk" in failure(prepare())
    assert asked[0] >= 24 * SIZE * SIZE


@contextlib.contextmanager
def files_limited_to(bytes_):
    """The decoding processes cannot write beyond that many bytes of a file, as on a disk that is full."""
    decoding.shared().close()
    real = decoding.Decoders._start

    def start(self):
        child = real(self)
        resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (bytes_, bytes_))
        return child

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding.Decoders, "_start", start)
        yield
    decoding.shared().close()


def test_a_disk_that_fills_up_on_the_way_is_told_and_the_next_attempt_goes_on(folder, monkeypatch):
    fill(folder)
    scan()
    with files_limited_to(128 + 10 * SIZE * SIZE):
        told = failure(prepare_again())
    assert told == (
        "The decoded images could not be written: File too large Check the disk, then prepare again with the same "
        "choices: it goes on where it stopped."
    )
    decoded = spy_on_decoding(monkeypatch)
    job = prepare_again()
    assert job.state == "succeeded"
    assert 14 <= len(decoded) < 24, "the first ten rows fitted, but for those under way when it ended"


def test_a_folder_that_cannot_be_written_is_told_without_its_path(folder, settings):
    fill(folder)
    scan()
    Preparation.cache_root().parent.mkdir(exist_ok=True)
    Preparation.cache_root().write_text("somebody put a file here")
    job = prepare_again()
    assert (job.state, job.error) == ("failed", "The decoded images could not be written: Not a directory")


def test_a_file_that_changed_since_the_scan_stops_the_preparation(folder):
    fill(folder)
    scan()
    save(folder / "NORMAL" / "3.png", encode(noise(555), "PNG"))
    assert "NORMAL/3.png has other pixels than at the scan. Scan again" in failure(prepare_again())


@pytest.mark.parametrize("damaged", [False, True])
def test_scanning_again_helps_even_when_the_changed_file_kept_its_size_and_time(folder, damaged):
    """As after a copy that keeps times, or when a disk loses bits."""
    fill(folder)
    scan()
    file = folder / "NORMAL/3.png"
    data, before = file.read_bytes(), file.stat()
    other = encode(gradient(8, 8, seed=555), "PNG").ljust(len(data), b"\0")
    assert len(other) == len(data)
    save(file, bytes(len(data)) if damaged else other)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "Scan again" in failure(prepare_again())
    assert prepare().state == "succeeded"


def test_a_file_that_is_gone_since_the_scan_stops_the_preparation(folder):
    fill(folder)
    scan()
    (folder / "NORMAL" / "3.png").unlink()
    assert "NORMAL/3.png could be read at the scan but not now" in failure(prepare_again())


def test_an_offline_dataset_is_refused_at_once(folder):
    fill(folder)
    scan()
    Dataset.objects.update(state="offline")
    with pytest.raises(JobError, match="was not there at the last scan"):
        Preparation.create(Dataset.objects.get(), None)
    assert not Preparation.objects.exists()


def test_one_dataset_is_prepared_once_at_a_time(folder):
    fill(folder)
    scan()
    first = Preparation.create(Dataset.objects.get(), None)
    with pytest.raises(JobError, match="is already being prepared"):
        Preparation.create(Dataset.objects.get(), None)
    first.request_cancel(None)
    assert Preparation.create(Dataset.objects.get(), None).state == "queued"


def test_of_two_clicks_at_once_the_second_is_told_so_too(folder, monkeypatch):
    fill(folder)
    scan()
    Preparation.create(Dataset.objects.get(), None)
    monkeypatch.setattr(type(Preparation.objects.all()), "active", lambda self: self.none())
    with pytest.raises(JobError, match="is already being prepared"):
        Preparation.create(Dataset.objects.get(), None)
    assert Preparation.objects.count() == 1


def cancel_when(message, by, **options):
    """A preparation that is cancelled at its first report with these words."""
    job = Preparation.create(Dataset.objects.get(), by, image_size=SIZE, **options)

    def listener(job):
        if message in job.message:
            Preparation.objects.get(pk=job.pk).request_cancel(by)

    job.listener = listener
    run_preparation(job, 1)
    job.refresh_from_db()
    assert job.state == "cancelled"
    return job


def test_a_cancelled_preparation_leaves_the_last_one_in_use_and_what_it_decoded_for_the_next(
    folder, monkeypatch, alice
):
    fill(folder)
    ready = prepare()
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    save(folder / "NORMAL/new.png", encode(noise(900), "PNG"))
    scan()
    job = cancel_when("decoded", alice, fit="stretch")
    assert not job.manifest.exists() and not job.cache_folder.exists()
    assert Dataset.objects.get().preparation == ready
    (unfinished,) = Preparation.cache_root().glob("*.part")
    decoded = spy_on_decoding(monkeypatch)
    again = prepare_again(fit="stretch")
    assert again.state == "succeeded"
    assert len(decoded) < 25
    assert not unfinished.exists()


def test_a_preparation_that_fails_at_the_very_end_keeps_its_pixels_for_the_next(folder, monkeypatch):
    fill(folder)

    def broken(*args):
        raise RuntimeError("the database went away")

    real = preparing._proof
    monkeypatch.setattr(preparing, "_proof", broken)
    with pytest.raises(RuntimeError, match="went away"):
        prepare()
    job = Preparation.objects.get()
    assert (job.state, job.error) == ("failed", "The job stopped on an unexpected error.")
    assert not job.manifest.exists() and not job.cache_folder.exists()
    monkeypatch.setattr(preparing, "_proof", real)
    decoded = spy_on_decoding(monkeypatch)
    assert prepare_again().state == "succeeded"
    assert decoded == []


def test_the_manifest_is_stored_in_short_steps_and_forgotten_when_the_job_is_cancelled(folder, monkeypatch, alice):
    fill(folder)
    scan()
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    monkeypatch.setattr(preparing, "BATCH", 5)
    job = cancel_when("15 of 24 rows stored", alice)
    assert not job.manifest.exists() and not job.cache_folder.exists()
    assert prepare_again().manifest.count() == 24


def test_what_a_killed_preparation_stored_is_no_version_and_is_forgotten_by_the_next(folder, monkeypatch):
    fill(folder)
    finished = prepare()
    killed = Preparation.create(Dataset.objects.get(), None, image_size=SIZE)
    killed.claim(1)
    for row in finished.manifest.all():
        row.pk, row.preparation = None, killed
        row.save()
    with pytest.raises(JobError, match="has no version"):
        find_version(killed.dataset, str(killed.pk))
    killed.fail("The worker died.")
    monkeypatch.setattr(preparing, "BATCH", 5)
    assert prepare_again().manifest.count() == finished.manifest.count() == 24
    assert not killed.manifest.exists()


# -- Only what is needed is decoded


def test_when_nothing_changed_the_same_pixels_are_used_again(folder, monkeypatch):
    fill(folder)
    first = prepare()
    decoded = spy_on_decoding(monkeypatch)
    again = prepare_again()
    assert decoded == []
    assert (again.pixels, again.cache_digest) == (first.pixels, first.cache_digest)
    assert pixel_folders() == [first.pixels]
    assert np.array_equal(open_cache(again.cache_folder).images, open_cache(first.cache_folder).images)


@pytest.mark.parametrize("options", [{"seed": 9}, {"test_share": 0.2}, {"source_splits": "ignore"}, {"fit": "pad"}])
def test_choices_that_do_not_touch_the_pixels_use_the_same_ones(folder, monkeypatch, options):
    fill(folder, 20)
    first = prepare()
    decoded = spy_on_decoding(monkeypatch)
    other = prepare_again(**options)
    assert (decoded, other.pixels) == ([], first.pixels)
    assert other.is_ready and first.is_ready


def test_another_shape_or_size_has_pixels_of_its_own(folder, monkeypatch):
    fill(folder)
    first = prepare()
    decoded = spy_on_decoding(monkeypatch)
    stretched = prepare_again(fit="stretch")
    assert len(decoded) == 24
    assert stretched.pixels != first.pixels
    assert not np.array_equal(open_cache(stretched.cache_folder).images, open_cache(first.cache_folder).images)


def test_after_images_were_added_renamed_or_removed_only_new_ones_are_decoded(folder, monkeypatch):
    fill(folder)
    first = prepare()
    save(folder / "NORMAL/00.png", encode(noise(900), "PNG"))
    save(folder / "PNEUMONIA/zz.png", encode(noise(901), "PNG"))
    (folder / "NORMAL/5.png").rename(folder / "NORMAL/99.png")
    (folder / "NORMAL/6.png").unlink()
    decoded = spy_on_decoding(monkeypatch)
    job = prepare()
    assert sorted(decoded) == ["00.png", "zz.png"]
    old, new = ({row.digest: row.row for row in one.manifest.all()} for one in (first, job))
    before, after = open_cache(first.cache_folder).images, open_cache(job.cache_folder).images
    common = old.keys() & new.keys()
    assert len(common) == 23
    assert all(np.array_equal(before[old[digest]], after[new[digest]]) for digest in common)


def test_a_row_that_rotted_on_the_disk_is_not_taken_over(folder, monkeypatch):
    fill(folder)
    first = prepare()
    rotten = first.manifest.get(path="NORMAL/3.png").row
    images = np.load(Preparation.cache_root() / first.pixels / "images.npy", mmap_mode="r+")
    images[rotten, 5, 5] ^= 1
    images.flush()
    save(folder / "NORMAL/new.png", encode(noise(900), "PNG"))
    decoded = spy_on_decoding(monkeypatch)
    assert prepare().state == "succeeded"
    assert sorted(decoded) == ["3.png", "new.png"]


def test_pixels_that_rotted_stay_with_those_who_use_them_when_they_cannot_be_decoded_again(folder):
    fill(folder)
    first = prepare()
    images = np.load(Preparation.cache_root() / first.pixels / "images.npy", mmap_mode="r+")
    images[first.manifest.get(path="NORMAL/3.png").row, 5, 5] ^= 1
    images.flush()
    (folder / "NORMAL/3.png").rename(folder / "away")
    assert prepare_again(seed=5).state == "failed"
    assert first.is_ready
    assert open_cache(first.cache_folder).images.shape == (24, SIZE, SIZE)
    (folder / "away").rename(folder / "NORMAL/3.png")
    assert prepare(seed=5).cache_digest != first.cache_digest
    assert prepare_again().cache_digest == first.cache_digest, "both have whole pixels again"


def test_taking_over_decoded_rows_tells_how_far_it_is_and_can_be_cancelled(folder, monkeypatch, alice):
    fill(folder)
    prepare()
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    save(folder / "NORMAL/new.png", encode(noise(900), "PNG"))
    scan()
    decoded = spy_on_decoding(monkeypatch)
    cancel_when("decoded images checked", alice)
    assert decoded == []


@pytest.mark.parametrize("left", ["hashes.npy", "images.npy"])
def test_what_a_removal_left_behind_when_it_was_interrupted_is_no_finished_cache(folder, left):
    fill(folder)
    first = prepare()
    pixels = Preparation.cache_root() / first.pixels
    for file in pixels.iterdir():
        if file.name != left:
            file.unlink()
    again = prepare_again()
    assert again.state == "succeeded"
    assert open_cache(again.cache_folder).images.shape == (24, SIZE, SIZE)


def complete_rows(models):
    """Numbers of the rows that an unfinished preparation has written."""
    found = list((models / "cache").glob("pixels-*.part/hashes.npy"))
    try:
        return np.flatnonzero(np.load(found[0], mmap_mode="r").any(axis=1)) if found else np.zeros(0, int)
    except (OSError, ValueError):
        return np.zeros(0, int)


def query(instance, sql, *parameters):
    with contextlib.closing(sqlite3.connect(instance.folder / "db.sqlite3")) as connection, connection:
        return connection.execute(sql, parameters).fetchall()


@pytest.mark.slow
def test_a_killed_preparation_goes_on_where_it_was_and_gives_what_an_undisturbed_one_gives(tmp_path):
    whole = Instance(tmp_path / "whole")
    killed = Instance(tmp_path / "killed", dataset_root=whole.datasets)
    folder = whole.datasets / "CHEST" / "lungs"
    fill(folder, 60, height=900, width=900)
    whole.set_up()
    whole.command("scan_dataset")
    shutil.copy(whole.folder / "db.sqlite3", killed.folder)
    undisturbed = whole.command("prepare_dataset", "CHEST/lungs", "--image-size", SIZE)

    process = subprocess.Popen(
        [sys.executable, ROOT / "manage.py", "prepare_dataset", "CHEST/lungs", "--image-size", str(SIZE)],
        env=killed.environment, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(complete_rows(killed.models)) < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = complete_rows(killed.models).tolist()
    assert 10 <= len(done) < 120

    paths = dict(query(whole, "SELECT row, path FROM datasets_preparedimage"))
    for row in done:
        (folder / paths[row]).unlink()  # whoever decodes these again fails
    query(killed, "UPDATE datasets_preparation SET lease_until = '2000-01-01 00:00:00'")
    resumed = killed.command("prepare_dataset", "CHEST/lungs", "--image-size", SIZE)

    assert (resumed["split_digest"], resumed["shared_patients"]) == (undisturbed["split_digest"], 0)
    caches = [instance.models / "cache" for instance in (whole, killed)]
    pixels = [next(cache.glob("pixels-*/images.npy")).read_bytes() for cache in caches]
    assert pixels[0] == pixels[1]
    states = query(killed, "SELECT state, cache_digest FROM datasets_preparation ORDER BY id")
    (digest,) = query(whole, "SELECT cache_digest FROM datasets_preparation")[0]
    assert states == [("failed", ""), ("succeeded", digest)]


# -- Choices


def test_the_shares_are_those_that_were_asked_for(folder):
    fill(folder, 40)
    job = prepare(validation_share=0.25, test_share=0.2)
    assert [job.split_total(split) for split in splitting.SPLITS] == pytest.approx([44, 20, 16], abs=2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"test_share": 0.5}, "The test share must be from 0.05 to 0.4, not 0.5."),
        ({"validation_share": 0.0}, "The validation share must be from 0.05 to 0.4, not 0.0."),
        ({"seed": -1}, "The seed must be from 0 to"),
    ],
)
def test_shares_and_seeds_out_of_bounds_are_refused_at_once(folder, options, told):
    fill(folder)
    scan()
    with pytest.raises(JobError, match=told):
        Preparation.create(Dataset.objects.get(), None, **options)
    assert not Preparation.objects.exists()


def test_the_division_of_the_folders_can_be_ignored(settings):
    seeds = itertools.count()
    for split, count in (("train", 12), ("val", 12), ("test", 12)):
        for label in ("broken", "whole"):
            for number in range(count):
                path = settings.DATASET_ROOT / "bones" / split / label / f"{number}.png"
                save(path, encode(noise(next(seeds)), "PNG"))
    kept, anew = prepare(), prepare_again(source_splits="ignore")
    assert kept.split_total("train") == 24
    assert anew.split_total("train") == pytest.approx(50, abs=2)


def test_the_teams_own_pattern_tells_the_patients(folder):
    for patient in range(10):
        for view in range(3):
            for offset, label in enumerate(("NORMAL", "PNEUMONIA")):
                name = f"{view}x{patient + 50 * offset}q.png"
                save(folder / label / name, encode(noise(100 * offset + 10 * patient + view), "PNG"))
    scan()
    Dataset.objects.get().choose_pattern(r"x(?P<patient>\d+)q", by=None)
    job = prepare_again()
    assert (job.group_key, job.pattern) == ("file-name", r"x(?P<patient>\d+)q")
    sides = {}
    for row in job.manifest.all():
        sides.setdefault(row.path.split("x")[1], set()).add(row.split)
    assert len(sides) == 20
    assert all(len(splits) == 1 for splits in sides.values())


def test_classes_are_renamed_merged_and_dropped_as_the_team_chose(settings):
    seeds = itertools.count()
    for grade in range(5):
        for number in range(12):
            path = settings.DATASET_ROOT / "knee" / str(grade) / f"{number}.png"
            save(path, encode(noise(next(seeds)), "PNG"))
    scan()
    choices = {"0": "none", "1": "", "2": "some", "3": "some", "4": "much"}
    Dataset.objects.get().choose_classes(choices, by=None)
    job = prepare_again()
    assert (job.state, job.classes) == ("succeeded", ["none", "some", "much"])
    assert job.class_choices == choices
    assert job.left_out == {"dropped-class": 12}
    assert sum(job.counts[split].get("some", 0) for split in splitting.SPLITS) == 24
    data = open_cache(job.cache_folder)
    assert [data.classes[label] for label in data.labels] == [row.class_name for row in job.manifest.all()]


def test_a_choice_between_the_click_and_the_start_is_used_and_recorded(folder):
    """The job may wait for a worker; what it used must be what it says it used."""
    fill(folder)
    scan()
    job = Preparation.create(Dataset.objects.get(), None, image_size=SIZE)
    Dataset.objects.get().choose_classes({"NORMAL": "healthy"}, by=None)
    run_preparation(Preparation.objects.get(pk=job.pk), 1)
    job.refresh_from_db()
    assert job.classes == ["healthy", "PNEUMONIA"]
    assert job.class_choices == {"NORMAL": "healthy"}


def test_all_choices_are_of_the_moment_when_the_work_began(folder, monkeypatch):
    fill(folder)
    scan()
    Dataset.objects.get().choose_pattern(r"(?P<patient>\d+)", by=None)
    job = Preparation.create(Dataset.objects.get(), None, image_size=SIZE)
    assert (job.pattern, job.class_choices, job.classes) == ("", {}, []), "nothing is taken before"
    Dataset.objects.get().choose_pattern(r"(?P<patient>\d+)\.png", by=None)
    real = splitting.group_keys

    def choose_first(rows, pattern):
        dataset = Dataset.objects.get()
        dataset.choose_classes({"NORMAL": "healthy"}, by=None)
        dataset.choose_pattern("", by=None)
        return real(rows, pattern)

    monkeypatch.setattr(splitting, "group_keys", choose_first)
    run_preparation(job, 1)
    job.refresh_from_db()
    assert (job.state, job.pattern, job.class_choices) == ("succeeded", r"(?P<patient>\d+)\.png", {})
    assert job.classes == list(open_cache(job.cache_folder).classes) == ["NORMAL", "PNEUMONIA"]
    assert set(job.manifest.values_list("class_name", flat=True)) == {"NORMAL", "PNEUMONIA"}


def test_a_pattern_that_cannot_be_used_is_told_as_such(folder):
    """One that was accepted may still take too long for the names that came since."""
    fill(folder)
    scan()
    Dataset.objects.update(pattern="(unclosed")
    assert "Correct the dataset's pattern for file names" in failure(prepare_again())


def test_one_picture_in_two_merged_classes_is_no_conflict(settings):
    seeds = itertools.count()
    for grade in range(3):
        for number in range(12):
            path = settings.DATASET_ROOT / "knee" / str(grade) / f"{number}.png"
            save(path, encode(noise(next(seeds)), "PNG"))
    for grade in (1, 2):
        save(settings.DATASET_ROOT / "knee" / str(grade) / "same.png", encode(noise(999), "PNG"))
    assert prepare().left_out == {"label-conflict": 2}
    Dataset.objects.get().choose_classes({"1": "some", "2": "some"}, by=None)
    merged = prepare_again()
    assert (merged.left_out, merged.manifest.count()) == ({}, 38)
    assert len(set(merged.manifest.filter(path__contains="same").values_list("split", flat=True))) == 1


def test_excluding_one_copy_settles_a_conflict(folder):
    fill(folder)
    for label in ("NORMAL", "PNEUMONIA"):
        save(folder / label / "same.png", encode(noise(777), "PNG"))
    scan()
    copy = DatasetImage.objects.get(path="NORMAL/same.png")
    copy.decide("label-conflict", "exclude", "The report says pneumonia.", by=None)
    job = prepare_again()
    assert job.left_out == {"excluded": 1}
    assert job.manifest.filter(path="PNEUMONIA/same.png").exists()


def test_an_image_that_was_kept_in_spite_of_a_finding_is_used(folder):
    fill(folder)
    scan()
    DatasetImage.objects.get(path="NORMAL/1.png").decide("blurred", "keep", "sharp enough", by=None)
    assert prepare_again().manifest.filter(path="NORMAL/1.png").exists()


def test_an_exclusion_holds_for_the_pixels_that_were_judged(folder):
    fill(folder)
    scan()
    image = DatasetImage.objects.get(path="NORMAL/1.png")
    image.decide("by-hand", "exclude", "a lateral view", by=None)
    assert not prepare_again().manifest.filter(path="NORMAL/1.png").exists()
    save(folder / "NORMAL/1.png", encode(noise(888), "PNG"))
    job = prepare()
    assert job.manifest.filter(path="NORMAL/1.png").exists()
    assert job.left_out == {}


def test_an_exclusion_that_was_taken_back_is_over(folder):
    fill(folder)
    scan()
    image = DatasetImage.objects.get(path="NORMAL/1.png")
    image.decide("by-hand", "exclude", "a lateral view", by=None)
    image.withdraw("by-hand", by=None)
    assert prepare_again().manifest.count() == 24


def test_whatever_is_left_out_is_counted_by_its_reason(settings):
    folder = settings.DATASET_ROOT / "knee"
    seeds = itertools.count()
    for grade in ("a", "b", "c"):
        for number in range(12):
            save(folder / grade / f"{number}.png", encode(noise(next(seeds)), "PNG"))
    save(folder / "a/text.png", b"this is only text")
    for grade in ("a", "b"):
        save(folder / grade / "same.png", encode(noise(999), "PNG"))
    scan()
    Dataset.objects.get().choose_classes({"c": ""}, by=None)
    for number in (1, 2):
        DatasetImage.objects.get(path=f"a/{number}.png").decide("by-hand", "exclude", "lateral", by=None)
    job = prepare_again()
    assert job.left_out == {"unreadable": 1, "excluded": 2, "label-conflict": 2, "dropped-class": 12}
    assert (job.excluded, job.manifest.count()) == (17, 22)


# -- Leaks


def test_turned_copies_of_one_picture_are_on_the_same_side(folder):
    fill(folder, 14, height=64, width=64)
    for offset, label in enumerate(("NORMAL", "PNEUMONIA")):
        for number in range(14):
            turned = np.rot90(noise(1000 * offset + number, height=64, width=64), 1 + number % 3)
            save(folder / label / f"copy{chr(97 + number)}.png", encode(np.ascontiguousarray(turned), "PNG"))
    job = prepare()
    assert job.group_key == "near-duplicate"
    split = dict(job.manifest.values_list("path", "split"))
    for label in ("NORMAL", "PNEUMONIA"):
        for number in range(14):
            assert split[f"{label}/{number}.png"] == split[f"{label}/copy{chr(97 + number)}.png"]


def test_patients_who_share_a_picture_are_on_the_same_side(folder):
    """The same film filed under two numbers: were they apart, the test would know it from the training."""
    for patient in range(24):
        label = "NORMAL" if patient < 12 else "PNEUMONIA"
        for view in range(2):
            seed = 500 if view and patient in (3, 4) else 10 * patient + view
            save(folder / label / f"patient{patient}_{view}.png", encode(noise(seed), "PNG"))
    job = prepare()
    assert (job.state, job.shared_patients) == ("succeeded", 0)
    split = dict(job.manifest.values_list("path", "split"))
    assert len({split[f"NORMAL/patient{patient}_{view}.png"] for patient in (3, 4) for view in (0, 1)}) == 1


def test_the_proof_is_counted_in_what_was_stored(folder):
    fill(folder, 20)
    job = prepare()
    rows = list(job.manifest.values_list("group", "split"))
    assert job.group_counts == {split: len({g for g, s in rows if s == split}) for split in splitting.SPLITS}
    assert job.shared_patients == sum(len({s for g, s in rows if g == group}) > 1 for group, _ in set(rows)) == 0
    assert job.dataset_digest == Dataset.objects.get().digest


@pytest.mark.parametrize("told", ["Images of one patient", "Pictures with equal pixels"])
def test_a_split_that_leaks_ends_the_preparation_whatever_made_it(folder, monkeypatch, told):
    for patient in range(24):
        label = "NORMAL" if patient < 12 else "PNEUMONIA"
        for view in range(2):
            seed = 3 if patient == 3 else 10 * patient + view
            save(folder / label / f"patient{patient}_{view}.png", encode(noise(seed), "PNG"))
    real_keys, real_split = splitting.group_keys, splitting.split

    def keys_of_each_image(rows, pattern):
        found = real_keys(rows, pattern)
        apart = [f"image {number}" for number in range(len(rows))]
        return type(found)(apart, found.name, found.description, found.warnings)

    def leak(labels, keys, *args, **options):
        result = real_split(labels, keys, *args, **options)
        splits = [splitting.SPLITS[number % 3] for number in range(len(labels))]
        return type(result)(splits, result.warnings, result.moved, result.shares, result.deviation)

    if told.startswith("Pictures"):
        monkeypatch.setattr(splitting, "group_keys", keys_of_each_image)
    monkeypatch.setattr(splitting, "split", leak)
    job = prepare()
    assert (job.state, job.error) == ("failed", f"{told} would be in two splits.")
    assert not job.manifest.exists() and not job.cache_folder.exists()


def test_a_scan_that_comes_between_is_noticed(folder, monkeypatch):
    """A plan that is half from before and half from after it would prove nothing."""
    fill(folder)
    scan()
    real = splitting.group_keys

    def scan_first(*args):
        Dataset.objects.update(digest="")
        return real(*args)

    monkeypatch.setattr(splitting, "group_keys", scan_first)
    assert "A scan changed the dataset while the splits were chosen" in failure(prepare_again())


def test_while_a_scan_is_under_way_nothing_is_prepared(folder):
    fill(folder)
    scan()
    Scan.create(None)
    with pytest.raises(JobError, match="is still being scanned"):
        Preparation.create(Dataset.objects.get(), None)


def test_the_split_does_not_depend_on_the_language_of_the_database(folder):
    """Rows are in the order of the bytes of their paths, whatever a server sorts first."""
    names = ["ä", "Z", "z", "ñ", "р", "胸", "_", "Ö", "o", "A1", "a 1", "é"]
    for offset, label in enumerate(("NORMAL", "öl")):
        for number, name in enumerate(names):
            save(folder / label / f"{name}.png", encode(noise(100 * offset + number), "PNG"))
    job = prepare()
    paths = list(job.manifest.values_list("path", flat=True))
    assert paths == sorted(paths, key=str.encode)


def test_the_cache_says_whether_the_classes_are_grades(settings):
    seeds = itertools.count()
    for grade in range(3):
        for number in range(10):
            save(settings.DATASET_ROOT / "knee" / str(grade) / f"{number}.png", seed=next(seeds))
    assert open_cache(prepare().cache_folder).ordinal


def test_a_preparation_stays_as_it_was_when_the_dataset_is_scanned_again(folder):
    fill(folder)
    job = prepare()
    before = list(job.manifest.values())
    (folder / "NORMAL" / "0.png").unlink()
    scan()
    assert list(job.manifest.values()) == before
    assert job.dataset_digest != Dataset.objects.get().digest


def test_the_start_and_the_end_are_in_the_audit_log(folder, alice):
    fill(folder)
    job = prepare(alice, seed=5)
    start = AuditEntry.objects.get(action="dataset.prepare")
    assert (start.actor, start.after["seed"]) == (alice, 5)
    assert AuditEntry.objects.get(action="preparation.succeeded").after == {
        "split": job.split_digest,
        "shared_patients": 0,
    }


def test_the_command_prints_one_json_object(folder):
    fill(folder)
    scan()
    out = StringIO()
    call_command("prepare_dataset", "CHEST/lungs", image_size=SIZE, json=True, stdout=out, stderr=StringIO())
    answer = json.loads(out.getvalue())
    assert answer["train"] + answer["validation"] + answer["test"] == 24
    assert (answer["group_key"], answer["shared_patients"], answer["excluded"]) == ("image", 0, 0)
    assert answer["preparation"] == Preparation.objects.get().pk


def test_the_command_names_the_datasets_there_are_when_it_knows_none_of_that_name(folder):
    fill(folder)
    scan()
    with pytest.raises(CommandError, match=r"no dataset 'KNEE'.*Known datasets: CHEST/lungs"):
        call_command("prepare_dataset", "KNEE", stdout=StringIO(), stderr=StringIO())


def test_the_command_fails_with_the_reason_of_the_job(folder):
    fill(folder, 5)
    scan()
    out = StringIO()
    with pytest.raises(SystemExit) as end:
        call_command("prepare_dataset", "CHEST/lungs", json=True, stdout=out, stderr=StringIO())
    assert end.value.code == 1
    assert "Each class needs at least 10 usable images" in json.loads(out.getvalue())["error"]
