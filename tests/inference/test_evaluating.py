"""Measuring a version on images of a dataset: which images count, which are left out and why, and what is stored."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from django.conf import settings
from PIL import Image

from datasets import decoding, duplicates
from datasets.models import Preparation
from inference.evaluating import BATCH
from inference.models import EvaluationRun
from inference.tasks import run_evaluation
from registry.models import Evaluation, ModelVersion
from tests.datasets.files import dicom, encode, save
from tests.datasets.test_prepare import spy_on_decoding
from tests.factories import ConditionFactory, DatasetFactory, TeamFactory
from tests.inference.lungs import (
    BRIGHT,
    DARK,
    NAME,
    evaluated,
    film,
    patient_film,
    prepared,
    rescanned,
    scanned,
    version_of,
)
from tests.inference.versions import bright_probability, make_version
from tests.tampering import tampered
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError

pytestmark = pytest.mark.django_db


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", team=team)


def warnings(run):
    return " ".join(run.evaluation.report["warnings"])


def confusion(run):
    return np.array(run.evaluation.report["confusion_matrix"])


# -- Which images


def test_the_test_part_of_the_own_division_is_measured_from_the_decoded_pixels(chest, alice, monkeypatch):
    dataset = scanned(condition=chest)
    preparation = prepared(dataset)
    version = version_of(preparation)
    decoded = spy_on_decoding(monkeypatch)
    run = evaluated(version, dataset, alice, preparation=preparation, part="test")
    assert (run.state, run.error, decoded) == ("succeeded", "", [])
    evaluation = run.evaluation
    rows = {row.row: row for row in preparation.manifest.filter(split="test")}
    images = evaluation.images
    assert (evaluation.kind, evaluation.preparation, evaluation.version) == ("test", preparation.pk, version)
    assert set(images.rows.tolist()) == set(rows)
    for row, digest, label in zip(images.rows.tolist(), images.digests, images.labels, strict=True):
        assert (rows[row].digest, rows[row].class_name) == (digest, version.classes[label])
    assert evaluation.split_digest == preparation.split_digest
    assert confusion(run).sum() == len(rows)


def test_the_answers_are_those_of_the_network_about_each_image(chest):
    dataset = scanned(condition=chest)
    run = evaluated(version_of(prepared(dataset)), dataset, preparation=dataset.preparation, part="test")
    paths = dict(dataset.preparation.manifest.values_list("row", "path"))
    answers = run.evaluation.images
    for row, answer in zip(answers.rows.tolist(), answers.probabilities, strict=True):
        with Image.open(dataset.folder / paths[row]) as picture:
            brightness = np.asarray(picture).mean() / 255
        assert answer[1] == pytest.approx(bright_probability(brightness), abs=0.02)


def test_the_validation_part_is_measured_where_it_is_that_of_the_version(chest):
    dataset = scanned(condition=chest)
    own, other = prepared(dataset), prepared(dataset, seed=5)
    version = version_of(own)
    run = evaluated(version, dataset, preparation=own, part="validation")
    assert (run.evaluation.kind, run.evaluation.images_count) == ("validation", own.split_total("validation"))
    with pytest.raises(JobError, match="trained with another division"):
        EvaluationRun.create(version, dataset, None, preparation=other, part="validation")


def test_another_division_is_measured_without_what_the_version_knows(chest):
    dataset = scanned(condition=chest, times=2)
    own, other = prepared(dataset), prepared(dataset, seed=5)
    run = evaluated(version_of(own), dataset, preparation=other, part="test")
    known = set(own.manifest.exclude(split="test").values_list("digest", flat=True))
    new = set(other.manifest.filter(split="test").values_list("digest", flat=True)) - known
    assert run.evaluation.kind == "external"
    assert set(run.evaluation.images.digests) == new
    assert 0 < len(new) < other.split_total("test")
    assert f"{other.split_total('test') - len(new)} of {other.split_total('test')} images were left out" in warnings(
        run
    )


def test_a_dataset_that_was_only_scanned_is_measured_whole(chest, monkeypatch):
    own = prepared(scanned(condition=chest))
    dataset = scanned("CHEST/other", chest, first=500)
    decoded = spy_on_decoding(monkeypatch)
    run = evaluated(version_of(own), dataset)
    assert (run.state, run.evaluation.images_count, len(decoded)) == ("succeeded", 24, 24)
    assert confusion(run).tolist() == [[11, 1], [2, 10]]
    assert (run.evaluation.dataset_name, run.evaluation.preparation) == ("CHEST/other", None)
    assert run.evaluation.dataset_digest == dataset.digest
    assert (run.problems, run.evaluation.patients_count) == ([], 24)
    assert not list(Preparation.cache_root().glob("evaluation-*"))


def test_images_that_were_not_prepared_are_told_apart_by_source_too(chest):
    root = Path(settings.DATASET_ROOT) / "CHEST/two places"
    for seed, place in enumerate(["North"] * 6 + ["South"] * 6):
        for offset, (label, brightness) in enumerate((("NORMAL", DARK), ("PNEUMONIA", BRIGHT))):
            save(root / label / place / f"{seed}.png", encode(film(1000 * offset + seed, brightness), "PNG"))
    patient_film(root / "NORMAL/South/20.dcm", 7000, DARK, "P1")
    asked = rescanned("CHEST/two places", chest)
    with pytest.raises(JobError, match="can be read in more than one way"):
        EvaluationRun.create(make_version(chest), asked, None)
    asked.choose_answer(asked.question["suggested"], by=None)
    run = evaluated(make_version(chest), rescanned("CHEST/two places", chest))
    groups = run.evaluation.images.subgroups
    assert Counter(groups["folder"].tolist()) == {"North": 12, "South": 13}
    assert Counter(groups["format"].tolist()) == {"PNG": 24, "DICOM": 1}


def test_images_that_somebody_left_out_do_not_count(chest, alice):
    dataset = scanned(condition=chest)
    dataset.images.get(path="NORMAL/03.png").decide("by-hand", "exclude", "blurred", by=alice)
    run = evaluated(make_version(chest), dataset)
    assert run.evaluation.images_count == 23
    assert dataset.images.get(path="NORMAL/03.png").digest not in run.evaluation.images.digests


def test_all_images_of_the_dataset_a_version_was_trained_with_are_those_of_its_test_part(chest):
    dataset = scanned(condition=chest)
    own = prepared(dataset)
    run = evaluated(version_of(own), dataset)
    assert set(run.evaluation.images.digests) == set(own.manifest.filter(split="test").values_list("digest", flat=True))
    assert run.evaluation.kind == "external"


def test_a_version_is_not_measured_on_nothing_but_what_it_learned_from(chest):
    dataset = scanned(condition=chest)
    own = prepared(dataset)
    own.manifest.update(split="train")
    run = evaluated(version_of(own), dataset)
    assert (run.state, run.evaluation) == ("failed", None)
    assert "learned from all of these images" in run.error and "test part" in run.hint


def test_copies_in_another_dataset_of_what_the_version_learned_from_are_left_out(chest):
    own = prepared(scanned(condition=chest))
    version = version_of(own)
    learned = own.manifest.filter(split="train", path__startswith="NORMAL").first()
    copy = Path(settings.DATASET_ROOT) / "CHEST/other/NORMAL/copy.png"
    save(copy, (own.dataset.folder / learned.path).read_bytes())
    dataset = scanned("CHEST/other", chest, first=500)
    run = evaluated(version, dataset)
    assert run.evaluation.images_count == 24
    assert learned.digest not in run.evaluation.images.digests
    assert "1 of 25 image was left out" in warnings(run)


def test_other_images_of_patients_that_the_version_learned_from_are_left_out(chest):
    root = Path(settings.DATASET_ROOT)
    for number in range(10):
        for offset, (label, brightness) in enumerate((("NORMAL", DARK), ("PNEUMONIA", BRIGHT))):
            patient_film(root / NAME / label / f"{number}.dcm", 1000 * offset + number, brightness, f"P{label}{number}")
    own = prepared(rescanned(condition=chest))
    learned = own.manifest.filter(split="train", path__startswith="NORMAL").first()
    patient = "PNORMAL" + Path(learned.path).stem
    patient_film(root / "CHEST/other/NORMAL/again.dcm", 7777, DARK, patient)
    patient_film(root / "CHEST/other/NORMAL/new.dcm", 7778, DARK, "new")
    patient_film(root / "CHEST/other/PNEUMONIA/new.dcm", 7779, BRIGHT, "newer")
    dataset = rescanned("CHEST/other", chest)
    run = evaluated(version_of(own), dataset)
    assert run.evaluation.images_count == 2
    assert dataset.images.get(path="NORMAL/again.dcm").digest not in run.evaluation.images.digests


def test_what_the_version_before_it_learned_from_is_known_to_a_version_too(chest):
    dataset = scanned(condition=chest, times=2)
    own, earlier = prepared(dataset), prepared(dataset, seed=5)
    version = version_of(own)
    tampered(version, parent=version_of(earlier))
    version.refresh_from_db()
    run = evaluated(version, dataset, preparation=own, part="test")
    known = set(earlier.manifest.exclude(split="test").values_list("digest", flat=True))
    assert set(run.evaluation.images.digests).isdisjoint(known)
    assert 0 < run.evaluation.images_count < own.split_total("test")


def test_where_nobody_knows_what_a_version_learned_from_the_report_says_so(chest):
    run = evaluated(make_version(chest), scanned(condition=chest))
    assert "not known here which images chest v1 learned from" in warnings(run)


# -- Near-duplicates of what the version learned from


def learned_film(own, split="train"):
    """Path and pixels of an image in that part of the preparation."""
    path = own.manifest.filter(split=split, path__startswith="NORMAL").first().path
    with Image.open(own.dataset.folder / path) as picture:
        return path, np.asarray(picture)


def beside(chest, **pictures):
    """Another dataset with these NORMAL pictures and eleven that nobody has seen."""
    root = Path(settings.DATASET_ROOT) / "CHEST/other"
    for name, pixels in pictures.items():
        save(root / f"NORMAL/{name}.png", encode(pixels, "PNG"))
    for seed in range(8):
        save(root / f"PNEUMONIA/{seed}.png", encode(film(9000 + seed, BRIGHT), "PNG"))
    for seed in range(3):
        save(root / f"NORMAL/new {seed}.png", encode(film(9500 + seed, DARK), "PNG"))
    return rescanned("CHEST/other", chest)


COPIES = {
    "resized": lambda pixels: np.asarray(Image.fromarray(pixels).resize((97, 97))),
    "squeezed": lambda pixels: np.asarray(Image.fromarray(pixels).resize((80, 60))),
    "turned": lambda pixels: np.asarray(Image.fromarray(pixels).rotate(25, Image.Resampling.BICUBIC)),
    "mirrored": lambda pixels: pixels[:, ::-1],
    "brightened": lambda pixels: pixels + 20,
}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_same_radiographs_with_other_pixels_are_left_out(chest, split):
    own = prepared(scanned(condition=chest, side=80))
    _, pixels = learned_film(own, split)
    dataset = beside(chest, **{name: change(pixels) for name, change in COPIES.items()})
    run = evaluated(version_of(own), dataset)
    assert run.state == "succeeded", run.error
    assert run.evaluation.images_count == 11
    new = dataset.images.exclude(path__in=[f"NORMAL/{name}.png" for name in COPIES])
    assert set(run.evaluation.images.digests) == set(new.values_list("digest", flat=True))
    assert "5 of 16 images were left out" in warnings(run)
    assert "Recognised: 5 as near-duplicates (the same radiographs resized" in warnings(run)


def test_how_images_were_recognised_is_told_apart(chest):
    own = prepared(scanned(condition=chest, side=80))
    first, second = own.manifest.filter(split="train", path__startswith="PNEUMONIA")[:2]
    with Image.open(own.dataset.folder / second.path) as picture:
        dataset = beside(chest, small=np.asarray(picture.resize((50, 50))))
    shutil.copy(own.dataset.folder / first.path, dataset.folder / "PNEUMONIA/same pixels.png")
    run = evaluated(version_of(own), rescanned("CHEST/other", chest))
    assert run.evaluation.images_count == 11
    assert "Recognised: 1 by equal pixels, patient or group; 1 as near-duplicates" in warnings(run)


def test_copies_of_the_test_part_stay_because_the_version_never_saw_it(chest):
    own = prepared(scanned(condition=chest, side=80))
    _, pixels = learned_film(own, "test")
    run = evaluated(version_of(own), beside(chest, resized=COPIES["resized"](pixels)))
    assert run.evaluation.images_count == 12
    assert "left out" not in warnings(run)


def test_a_part_that_was_cut_out_of_a_radiograph_is_not_recognised(chest):
    """A limit that `datasets.duplicates` names: these have to be found by the patient."""
    own = prepared(scanned(condition=chest, side=80))
    _, pixels = learned_film(own)
    run = evaluated(version_of(own), beside(chest, cut=pixels[16:-16, 16:-16]))
    assert run.evaluation.images_count == 12


def test_the_other_images_of_a_near_duplicates_patient_are_left_out_with_it(chest):
    own = prepared(scanned(condition=chest, side=80))
    _, pixels = learned_film(own)
    root = Path(settings.DATASET_ROOT) / "CHEST/other/NORMAL"
    copy = np.asarray(Image.fromarray(pixels).resize((64, 64))).astype(np.uint16) * 16
    save(root / "copy.dcm", dicom(copy, PatientID="Q", BitsStored=12, HighBit=11))
    patient_film(root / "another day.dcm", 7000, DARK, "Q")
    patient_film(root / "another patient.dcm", 7001, DARK, "R")
    run = evaluated(version_of(own), beside(chest))
    assert run.evaluation.images_count == 12
    assert "2 as near-duplicates" in warnings(run)


def test_copies_of_what_an_earlier_version_learned_from_are_left_out_of_the_own_test_part(chest):
    earlier = prepared(scanned(condition=chest, side=80))
    _, pixels = learned_film(earlier)
    own = prepared(scanned("CHEST/own", chest, first=500, side=80))
    tested = own.manifest.filter(split="test", path__startswith="NORMAL").first()
    save(own.dataset.folder / tested.path, encode(COPIES["turned"](pixels), "PNG"))
    own = prepared(rescanned("CHEST/own", chest))
    version = version_of(own)
    assert own.manifest.get(path=tested.path).split == "test"
    alone = evaluated(version, own.dataset, preparation=own, part="test")
    assert alone.evaluation.images_count == own.split_total("test")
    tampered(version, parent=version_of(earlier))
    run = evaluated(ModelVersion.objects.get(pk=version.pk), own.dataset, preparation=own, part="test")
    assert run.evaluation.images_count == own.split_total("test") - 1


def test_copies_that_came_later_into_the_dataset_of_a_version_are_known_from_its_scan(chest):
    own = prepared(scanned(condition=chest, side=80))
    path, pixels = learned_film(own)
    save(own.dataset.folder / "NORMAL/later.png", encode(COPIES["mirrored"](pixels), "PNG"))
    dataset = rescanned(condition=chest)
    dataset.images.get(path=path).decide("by-hand", "exclude", "blurred", by=None)
    run = evaluated(version_of(own), dataset)
    assert dataset.images.get(path="NORMAL/later.png").digest not in run.evaluation.images.digests
    assert "1 as near-duplicates" in warnings(run)


def test_with_nothing_but_copies_the_job_fails_and_says_how_they_were_recognised(chest):
    own = prepared(scanned(condition=chest, side=80))
    folder = Path(settings.DATASET_ROOT) / "CHEST/other"
    learned = own.manifest.exclude(split="test").values_list("path", flat=True)
    for path in learned:
        with Image.open(own.dataset.folder / path) as picture:
            save(folder / path, encode(np.asarray(picture.resize((60, 60))), "PNG"))
    run = evaluated(version_of(own), rescanned("CHEST/other", chest))
    assert run.state == "failed"
    assert "learned from all of these images" in run.error
    assert f"Recognised: {len(learned)} as near-duplicates" in run.error


def test_images_that_the_version_learned_from_and_that_are_gone_are_told_as_not_compared(chest):
    own = prepared(scanned(condition=chest, side=80))
    path, pixels = learned_film(own)
    own.dataset.images.get(path=path).delete()
    dataset = beside(chest, resized=COPIES["resized"](pixels))
    run = evaluated(version_of(own), dataset)
    assert run.evaluation.images_count == 12
    assert "Of 1 image that the version learned from or was tuned on, only copies with equal pixels" in warnings(run)


def test_fingerprints_that_were_made_in_another_way_are_not_compared(chest):
    own = prepared(scanned(condition=chest, side=80))
    _, pixels = learned_film(own)
    dataset = beside(chest, resized=COPIES["resized"](pixels))
    type(dataset).objects.filter(pk=own.dataset_id).update(read_with="an earlier release")
    run = evaluated(version_of(own), dataset)
    assert run.evaluation.images_count == 12
    learned = own.split_total("train") + own.split_total("validation")
    assert f"Of {learned} images that the version learned from" in warnings(run)


def test_images_without_a_fingerprint_are_told_as_not_compared(chest):
    own = prepared(scanned(condition=chest, side=80))
    dataset = beside(chest)
    dataset.images.filter(path__startswith="NORMAL").update(fingerprint=b"")
    run = evaluated(version_of(own), dataset)
    assert "3 of the images here could be compared" in warnings(run) and "Scan it again" in warnings(run)


def test_the_lease_is_renewed_while_copies_are_looked_for_and_cancel_ends_it(chest, alice, monkeypatch):
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0.0)
    own = prepared(scanned(condition=chest, side=80))
    dataset = beside(chest)
    run = EvaluationRun.create(version_of(own), dataset, alice)
    leases = []

    def asked(fingerprints, *, progress, **options):
        leases.append(EvaluationRun.objects.get().lease_until)
        progress(0.4)
        seen = EvaluationRun.objects.get()
        leases.append(seen.lease_until)
        assert seen.message == "Looking for copies of what the version learned from, 40 %"
        seen.request_cancel(alice)
        progress(0.5)

    monkeypatch.setattr(duplicates, "clusters", asked)
    run_evaluation(run, 1)
    run.refresh_from_db()
    assert leases[0] < leases[1]
    assert (run.state, run.evaluation) == ("cancelled", None)


def test_only_pairs_with_a_new_image_are_compared(chest, monkeypatch):
    own = prepared(scanned(condition=chest, side=80))
    dataset = beside(chest)
    real, fresh = duplicates.clusters, []

    def spy(fingerprints, **options):
        fresh.append((len(fingerprints), int(options["fresh"].sum())))
        return real(fingerprints, **options)

    monkeypatch.setattr(duplicates, "clusters", spy)
    evaluated(version_of(own), dataset)
    learned = own.split_total("train") + own.split_total("validation")
    assert fresh == [(11 + learned, 11)]


# -- Classes


def test_class_names_may_differ_in_case_only(chest):
    dataset = scanned(condition=chest)
    dataset.choose_classes({"NORMAL": "Normal", "PNEUMONIA": "pneumonia"}, by=None)
    run = evaluated(make_version(chest), dataset)
    assert confusion(run).tolist() == [[11, 1], [2, 10]]


def test_classes_that_the_version_does_not_know_are_refused_before_the_start(chest):
    dataset = scanned(condition=chest)
    dataset.choose_classes({"PNEUMONIA": "COVID"}, by=None)
    with pytest.raises(JobError, match="class COVID, which this version does not know") as refused:
        EvaluationRun.create(make_version(chest), dataset, None)
    assert "rename such a class" in refused.value.hint
    assert not EvaluationRun.objects.exists()


def test_classes_that_were_renamed_while_the_job_waited_end_it_with_the_reason(chest):
    dataset = scanned(condition=chest)
    run = EvaluationRun.create(make_version(chest), dataset, None)
    dataset.choose_classes({"PNEUMONIA": "COVID"}, by=None)
    run_evaluation(EvaluationRun.objects.get(), 1)
    run.refresh_from_db()
    assert run.state == "failed" and "class COVID" in run.error


def test_a_dataset_without_one_of_the_classes_is_measured_and_figures_say_what_is_missing(chest):
    dataset = scanned(condition=chest)
    shutil.rmtree(dataset.folder / "PNEUMONIA")
    dataset = rescanned(condition=chest)
    run = evaluated(make_version(chest), dataset)
    assert run.state == "succeeded", run.error
    assert run.evaluation.metrics["sensitivity"]["undefined"]
    assert run.evaluation.metrics["specificity"]["value"] == pytest.approx(11 / 12)


# -- Pixels


def test_files_that_cannot_be_read_any_more_are_listed_and_the_others_are_measured(chest):
    dataset = scanned(condition=chest)
    save(dataset.folder / "NORMAL/04.png", b"this is only text")
    save(dataset.folder / "NORMAL/05.png", encode(film(9999, DARK), "PNG"))
    (dataset.folder / "PNEUMONIA/06.png").unlink()
    run = evaluated(make_version(chest), dataset)
    assert run.evaluation.images_count == 21
    told = {problem["path"]: problem["reason"] for problem in run.problems}
    assert set(told) == {"NORMAL/04.png", "NORMAL/05.png", "PNEUMONIA/06.png"}
    assert "text file" in told["NORMAL/04.png"] and "Other pixels" in told["NORMAL/05.png"]
    assert "3 images could not be read and were left out" in warnings(run)
    (selection,) = run.evaluation.report["selection"]
    assert "not known here which images chest v1 learned from" in selection


def test_with_no_file_left_the_job_fails_and_says_why(chest):
    dataset = scanned(condition=chest)
    run = EvaluationRun.create(make_version(chest), dataset, None)
    shutil.rmtree(dataset.folder)
    run_evaluation(run, 1)
    assert run.state == "failed" and "Not one of the images could be read" in run.error
    assert not list(Preparation.cache_root().glob("evaluation-*"))


@pytest.mark.parametrize("changed", [{"image_size": 32}, {"pipeline": {"id": "grey", "version": 1, "fit": "pad"}}])
def test_pixels_of_another_size_or_shape_are_decoded_anew(chest, monkeypatch, changed):
    dataset = scanned(condition=chest)
    own = prepared(dataset)
    version = version_of(own)
    Preparation.objects.filter(pk=own.pk).update(**changed)
    own.refresh_from_db()
    decoded = spy_on_decoding(monkeypatch)
    run = evaluated(version, dataset, preparation=own, part="test")
    assert run.state == "succeeded", run.error
    assert len(decoded) == run.evaluation.images_count == own.split_total("test")


def test_a_preparation_is_measured_without_its_folder_while_its_pixels_are_there(chest):
    dataset = scanned(condition=chest)
    own = prepared(dataset)
    version = version_of(own)
    shutil.move(dataset.folder, dataset.folder.with_name("away"))
    type(dataset).objects.update(state="offline")
    dataset.refresh_from_db()
    assert evaluated(version, dataset, preparation=own, part="test").state == "succeeded"
    own.remove_pixels(by=None)
    own.refresh_from_db()
    with pytest.raises(JobError, match="was not there at the last scan"):
        EvaluationRun.create(version, dataset, None, preparation=own, part="test")


def test_pixels_that_a_waiting_evaluation_needs_are_not_removed(chest):
    dataset = scanned(condition=chest)
    own = prepared(dataset)
    EvaluationRun.create(version_of(own), dataset, None, preparation=own, part="test")
    with pytest.raises(JobError, match="in use by a job"):
        own.remove_pixels(by=None)


# -- The job


def test_a_running_evaluation_stops_on_request_and_leaves_nothing(chest, alice, monkeypatch):
    dataset = scanned(condition=chest)
    run = EvaluationRun.create(make_version(chest), dataset, alice)
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0.0)
    real = decoding.Decoders.run

    def cancelled(self, requests):
        EvaluationRun.objects.get().request_cancel(alice)
        yield from real(self, requests)

    monkeypatch.setattr(decoding.Decoders, "run", cancelled)
    run_evaluation(run, 1)
    run.refresh_from_db()
    assert (run.state, run.evaluation) == ("cancelled", None)
    assert not Evaluation.objects.exists()
    assert not list(Preparation.cache_root().glob("evaluation-*"))


def test_a_version_whose_files_were_changed_is_not_measured(chest):
    version = make_version(chest)
    (version.folder / "openvino" / "model.bin").write_bytes(b"other weights")
    run = evaluated(version, scanned(condition=chest))
    assert run.state == "failed" and "whole" in run.hint


def test_a_network_that_answers_with_no_number_is_told_and_nothing_is_stored(chest, monkeypatch):
    class Broken:
        def predict(self, images):
            return np.full((len(images), 2), np.nan)

    monkeypatch.setattr("inference.evaluating.load", lambda folder, sha256: Broken())
    run = evaluated(make_version(chest), scanned(condition=chest))
    assert run.state == "failed" and "not a number" in run.error and "Do not use this version" in run.hint
    assert not Evaluation.objects.exists()


def test_progress_is_told_while_images_are_decoded_and_read(chest, monkeypatch):
    monkeypatch.setattr("xrayplatform.jobs.REPORT_EVERY_SECONDS", 0.0)
    run = EvaluationRun.create(make_version(chest), scanned(condition=chest, times=2), None)
    told = []
    run.listener = lambda job: told.append((job.progress, job.message))
    run_evaluation(run, 1)
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert any("of 48 images decoded" in message for _, message in told)
    assert any(f"{BATCH} of 48 images read by the model" in message for _, message in told)


def test_what_happened_is_in_the_audit_log(chest, alice):
    run = evaluated(make_version(chest), scanned(condition=chest), alice)
    entries = {entry.action: entry for entry in AuditEntry.objects.filter(action__contains="evalua")}
    assert set(entries) == {"evaluation.create", "version.evaluate", "evaluation.succeeded"}
    assert {entry.actor for entry in entries.values()} == {alice}
    assert entries["evaluation.create"].after == {"run": run.pk, "dataset": NAME, "part": "all"}
    assert entries["version.evaluate"].after["images"] == 24
    assert entries["evaluation.succeeded"].after == {"evaluation": run.evaluation.pk}


def test_the_same_evaluation_is_not_started_twice_at_a_time(chest):
    dataset, version = scanned(condition=chest), make_version(chest)
    EvaluationRun.create(version, dataset, None)
    with pytest.raises(JobError, match="already being measured"):
        EvaluationRun.create(version, dataset, None)
    EvaluationRun.create(make_version(chest), dataset, None)


def test_figures_of_a_teams_dataset_do_not_reach_who_may_not_see_it(chest, alice):
    other = TeamFactory(name="Another team")
    other.members.add(alice)
    dataset = DatasetFactory(condition=ConditionFactory(team=other))
    with pytest.raises(JobError, match=r"belongs to Another team.*would be seen by Chest clinic"):
        EvaluationRun.create(make_version(chest), dataset, alice)
    with pytest.raises(JobError, match="would be seen by every team"):
        EvaluationRun.create(make_version(ConditionFactory()), dataset, alice)


def test_what_killed_evaluations_have_decoded_is_swept_away(chest):
    waiting = EvaluationRun.create(make_version(chest), scanned(condition=chest), None)
    folders = [
        waiting.scratch,
        waiting.scratch.with_name("evaluation-999"),
        waiting.scratch.with_name("evaluation-998.part"),
    ]
    for folder in folders:
        folder.mkdir(parents=True)
    EvaluationRun.sweep()
    assert [folder.exists() for folder in folders] == [True, False, False]
