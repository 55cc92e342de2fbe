"""Preparing a dataset: whole patients go to one side, the split can be repeated, and names never leave the files."""

import itertools
import json
import os
from io import StringIO

import numpy as np
import pytest
from django.apps import apps
from django.core.management import CommandError, call_command

from datasets import splitting
from datasets.cache import open_cache
from datasets.models import Dataset, DatasetImage, Preparation
from datasets.tasks import run_preparation
from tests.datasets.files import dicom, encode, gradient, save
from tests.datasets.test_scan import scan
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
            picture = gradient(seed=1000 * offset + number, **shape)
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
    assert [path.name for path in job.cache_folder.parent.glob("*")] == []
    return f"{job.error} {job.hint}"


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
    DatasetImage.objects.filter(path="NORMAL/0.png").update(excluded=True)
    job = prepare_again()
    assert (job.excluded, job.manifest.count()) == (2, 23)


def test_a_dataset_with_one_class_is_refused(folder):
    fill(folder)
    scan()
    DatasetImage.objects.update(class_name="NORMAL")
    assert "at least two classes; the dataset has one (NORMAL)" in failure(prepare_again())


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

    monkeypatch.setattr("datasets.tasks.require_disk", refuse)
    assert "Not enough free disk" in failure(prepare())
    assert asked[0] >= 24 * SIZE * SIZE


def test_a_disk_that_fills_up_on_the_way_is_told_and_leaves_no_cache(folder, monkeypatch):
    fill(folder)

    def full(folder, *args, **options):
        raise OSError(28, "No space left on device", str(folder / "images.npy"))

    monkeypatch.setattr("datasets.tasks.write_cache", full)
    told = failure(prepare())
    assert told == "The decoded images could not be written: No space left on device Check the disk, then try again."


def test_a_file_that_changed_since_the_scan_stops_the_preparation(folder):
    fill(folder)
    scan()
    save(folder / "NORMAL" / "3.png", encode(gradient(30, 30, seed=555), "PNG"))
    assert "NORMAL/3.png has other pixels than at the scan. Scan again" in failure(prepare_again())


@pytest.mark.parametrize("damaged", [False, True])
def test_scanning_again_helps_even_when_the_changed_file_kept_its_size_and_time(folder, damaged):
    """As after a copy that keeps times, or when a disk loses bits."""
    fill(folder)
    scan()
    file = folder / "NORMAL/3.png"
    data, before = file.read_bytes(), file.stat()
    other = encode(gradient(seed=555), "PNG")
    save(file, bytes(len(data)) if damaged else other.ljust(len(data), b"\0")[: len(data)])
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


def test_a_cancelled_preparation_leaves_no_cache_and_the_last_one_in_use(folder, monkeypatch, alice):
    fill(folder)
    ready = prepare()
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0)
    job = Preparation.create(Dataset.objects.get(), alice, image_size=SIZE)

    def cancel(job):
        if "decoded" in job.message:
            Preparation.objects.get(pk=job.pk).request_cancel(alice)

    job.listener = cancel
    run_preparation(job, 1)
    job.refresh_from_db()
    assert job.state == "cancelled"
    assert not job.manifest.exists()
    assert list(job.cache_folder.parent.iterdir()) == [ready.cache_folder]
    assert Dataset.objects.get().preparation == ready


def test_a_preparation_that_fails_at_the_very_end_leaves_no_cache(folder, monkeypatch):
    fill(folder)

    def broken(*args):
        raise RuntimeError("the database went away")

    monkeypatch.setattr(splitting, "shared_groups", broken)
    with pytest.raises(RuntimeError, match="went away"):
        prepare()
    job = Preparation.objects.get()
    assert failure(job).startswith("The job stopped on an unexpected error.")


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
    assert AuditEntry.objects.get(action="preparation.succeeded").after == {"split": job.split_digest}


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
