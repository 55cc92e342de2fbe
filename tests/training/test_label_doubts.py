"""Labels to be checked: what a trained network contradicts most becomes findings of the dataset until it is over."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from django.db import IntegrityError
from django.db.models import QuerySet
from django.urls import reverse

from datasets import findings
from datasets.cache import SPLITS, PreparedData, open_cache
from datasets.models import Dataset, Finding
from registry.models import ModelVersion
from tests.datasets.files import encode, save
from tests.datasets.test_duplicates import clouds
from tests.datasets.test_prepare import fill, prepare_again
from tests.datasets.test_scan import scan
from tests.factories import PreparationFactory, TrainingRunFactory
from training.configurations import Configuration
from training.management.commands import train_run
from training.ml import evaluation
from training.models import TrainingRun

# -- Which images a network doubts


def six_images(labels: list[int], splits: list[str]) -> PreparedData:
    """The brightness of an image is the class that it looks like: 0 0 0 1 1 1."""
    looks = np.array([0, 0, 0, 1, 1, 1])
    return PreparedData(
        images=np.full((6, 4, 4), looks[:, None, None], np.uint8),
        labels=np.array(labels),
        splits=np.array([SPLITS.index(split) for split in splits], np.uint8),
        groups=np.arange(6),
        classes=("NORMAL", "PNEUMONIA"),
        positive_class="PNEUMONIA",
        pipeline={"id": "test", "version": 1},
        digest="0" * 64,
    )


def reader(confidence: float = 0.9) -> SimpleNamespace:
    """A network that is as sure as it is told to be of what an image looks like."""

    def predict_on_batch(images: np.ndarray) -> np.ndarray:
        sick = np.rint(images.mean(axis=(1, 2, 3)) * 255) == 1
        chance = np.where(sick, confidence, 1 - confidence)
        return np.stack([1 - chance, chance], axis=1)

    return SimpleNamespace(predict_on_batch=predict_on_batch, output_shape=(None, 2))


def doubts_of(data: PreparedData, model: SimpleNamespace | None = None) -> list[evaluation.Doubt]:
    model = model or reader()
    found = evaluation.evaluate(model, data, 2, lambda done: None)
    return evaluation.doubts(model, data, found, 2, lambda done: None)


MIXED = ["train", "validation", "test"] * 2


def test_an_image_that_is_read_as_its_label_says_is_not_doubted():
    assert doubts_of(six_images([0, 0, 0, 1, 1, 1], MIXED)) == []


def test_a_contradicted_label_is_told_with_what_the_network_reads_and_how_surely():
    (doubt,) = doubts_of(six_images([0, 1, 0, 1, 1, 1], MIXED))
    assert (doubt.row, doubt.split, doubt.label, doubt.predicted) == (1, "validation", "PNEUMONIA", "NORMAL")
    assert doubt.probability == pytest.approx(0.9)
    assert doubt.loss == pytest.approx(-np.log(0.1))


def test_all_three_parts_are_looked_at():
    found = doubts_of(six_images([1, 1, 1, 1, 1, 1], MIXED))
    assert [doubt.split for doubt in found] == ["train", "validation", "test"]


def test_a_network_that_did_not_learn_has_no_opinion():
    assert doubts_of(six_images([1, 1, 1, 0, 0, 0], MIXED)) == []


def test_the_highest_loss_comes_first_and_only_so_many_are_told(monkeypatch):
    data = replace(
        six_images([1] * 6, MIXED), images=np.full((6, 4, 4), np.array([3, 1, 5, 0, 4, 2])[:, None, None], np.uint8)
    )

    def surer_the_brighter(images):
        chance = 0.6 + 0.06 * np.rint(images.mean(axis=(1, 2, 3)) * 255)
        return np.stack([chance, 1 - chance], axis=1)

    monkeypatch.setattr(evaluation, "MOST_DOUBTED", 4)
    found = doubts_of(data, SimpleNamespace(predict_on_batch=surer_the_brighter, output_shape=(None, 2)))
    assert [doubt.row for doubt in found] == [2, 4, 0, 5]


def test_a_network_that_is_wrong_beyond_all_doubt_gives_a_finite_loss():
    (doubt,) = doubts_of(six_images([0, 1, 0, 1, 1, 1], MIXED), reader(1.0))
    assert np.isfinite(doubt.loss)


def test_an_empty_part_is_no_error():
    assert len(doubts_of(six_images([0, 1, 0, 1, 1, 1], ["validation", "test", *["validation", "test"] * 2]))) == 1


# -- What becomes of them


@pytest.fixture
def run(settings, db):
    """A run on a real preparation of 24 images."""
    fill(settings.DATASET_ROOT / "CHEST/lungs", 12)
    scan()
    preparation = prepare_again()
    assert preparation.state == "succeeded", preparation.error
    return TrainingRunFactory(preparation=preparation)


def doubt(run: TrainingRun, *paths: str) -> None:
    """What the end of a training does with the images that it doubts."""
    rows = dict(run.preparation.manifest.values_list("path", "row"))
    doubted = [evaluation.Doubt(rows[path], "test", "NORMAL", "PNEUMONIA", 0.987, 4.5) for path in paths]
    run.preparation.dataset.write_doubts(train_run._doubts(run, SimpleNamespace(doubts=doubted)))


def doubted() -> list[str]:
    return list(
        Finding.objects.filter(code="check-label").order_by("image__path").values_list("image__path", flat=True)
    )


def test_a_doubt_is_a_finding_in_words(run):
    doubt(run, "NORMAL/3.png")
    finding = Finding.objects.get(code="check-label")
    assert (finding.image.path, finding.value) == ("NORMAL/3.png", 4.5)
    assert finding.detail == (
        f"Labelled NORMAL; Custom_CNN of run {run.pk} reads PNEUMONIA (98.7%). The image was in the test part. "
        "Correct what is wrong, but do not tidy up the test part until its figures please."
    )


def test_doubts_outlive_scans_and_other_findings_do_not_disturb_them(run):
    doubt(run, "NORMAL/3.png", "NORMAL/4.png")
    scan()
    save(run.preparation.dataset.folder / "NORMAL/new.png", seed=777)
    scan()
    assert doubted() == ["NORMAL/3.png", "NORMAL/4.png"]


def test_the_next_training_replaces_them(run):
    doubt(run, "NORMAL/3.png", "NORMAL/4.png")
    doubt(run, "NORMAL/4.png", "PNEUMONIA/5.png")
    assert doubted() == ["NORMAL/4.png", "PNEUMONIA/5.png"]
    doubt(run)
    assert doubted() == []


def test_they_vanish_with_the_pixels_they_were_about(run):
    folder = run.preparation.dataset.folder
    doubt(run, "NORMAL/3.png", "NORMAL/4.png", "NORMAL/5.png")
    save(folder / "NORMAL/3.png", seed=778)
    (folder / "NORMAL/4.png").unlink()
    scan()
    assert doubted() == ["NORMAL/5.png"]


def test_what_changed_during_the_training_is_not_doubted(run):
    """The network saw other pixels than those that lie there now."""
    folder = run.preparation.dataset.folder
    save(folder / "NORMAL/3.png", seed=779)
    (folder / "NORMAL/4.png").unlink()
    scan()
    doubt(run, "NORMAL/3.png", "NORMAL/4.png", "NORMAL/5.png")
    assert doubted() == ["NORMAL/5.png"]


def test_other_datasets_keep_theirs(run, settings):
    shutil.copytree(settings.DATASET_ROOT / "CHEST/lungs", settings.DATASET_ROOT / "ARM/bones")
    scan()
    other = Dataset.objects.get(name="ARM/bones")
    Finding.objects.create(dataset=other, image=other.images.first(), code="check-label")
    doubt(run, "NORMAL/3.png")
    assert Finding.objects.filter(dataset=other, code="check-label").exists()


def test_the_quality_report_shows_them_and_they_can_be_settled(run, alice, client):
    doubt(run, "NORMAL/3.png", "NORMAL/4.png")
    dataset = run.preparation.dataset
    dataset.images.get(path="NORMAL/3.png").decide("check-label", "keep", "the reader agrees with the label", by=alice)
    told = findings.report(dataset).to_json()["findings"]["check-label"]
    assert (told["images"], told["open"], told["kept"]) == (2, 1, 1)
    client.force_login(alice)
    content = client.get(reverse("datasets:quality-report", args=[dataset.pk])).content.decode()
    assert "Label to be checked" in content and "reads PNEUMONIA (98.7%)" in content


def test_a_decision_about_a_doubt_holds_when_the_next_training_doubts_again(run, alice):
    doubt(run, "NORMAL/3.png")
    dataset = run.preparation.dataset
    dataset.images.get(path="NORMAL/3.png").decide("check-label", "exclude", "it is pneumonia", by=alice)
    doubt(run)
    assert dataset.images.with_exclusion().get(path="NORMAL/3.png").excluded
    doubt(run, "NORMAL/3.png")
    assert findings.report(dataset).to_json()["findings"]["check-label"]["excluded"] == 1


def test_a_doubt_that_another_training_wrote_first_is_no_error(run, monkeypatch):
    """Two trainings that end at once: what the other has written since the delete stays."""
    image = run.preparation.dataset.images.get(path="NORMAL/3.png")
    real = Dataset.lock

    def lock(self, *fields):
        real(self, *fields)
        monkeypatch.setattr(QuerySet, "delete", lambda rows: (0, {}))

    Finding.objects.create(dataset=image.dataset, image=image, code="check-label", detail="the other's")
    monkeypatch.setattr(Dataset, "lock", lock)
    doubt(run, "NORMAL/3.png", "NORMAL/4.png")
    assert doubted() == ["NORMAL/3.png", "NORMAL/4.png"]


def registering(run, monkeypatch):
    """Everything before the database works."""
    run.state = "queued"
    run.save()
    run.claim(run.attempt)
    artifact = SimpleNamespace(manifest={})
    version = SimpleNamespace(number=1, condition="x", pk=None)
    monkeypatch.setattr("training.ml.export.save_version", lambda *given: "0" * 64)
    monkeypatch.setattr(train_run, "load", lambda *given: artifact)
    monkeypatch.setattr(ModelVersion.objects, "register", lambda *given, **named: version, raising=False)
    monkeypatch.setattr(train_run.TrainingRun, "write", lambda self, **fields: None)


def trained_anyhow():
    figures = SimpleNamespace(metrics={"test": {"warnings": []}})
    return SimpleNamespace(doubts=[], initial_weights="scratch", evaluation=figures)


def test_doubts_that_cannot_be_stored_do_not_undo_the_version(run, monkeypatch, caplog):
    registering(run, monkeypatch)
    ended = []
    monkeypatch.setattr(train_run.TrainingRun, "succeed", lambda self, *given, **named: ended.append(self))

    def fail(*given):
        raise IntegrityError("the image is gone")

    monkeypatch.setattr(Dataset, "write_doubts", fail)
    train_run._register(run, trained_anyhow(), None, train_run.StopCheck(run))
    assert ended == [run]
    assert "could not be stored" in caplog.text and "the image is gone" in caplog.text


def test_a_run_that_cannot_be_ended_leaves_the_doubts_of_the_last_one(run, monkeypatch):
    registering(run, monkeypatch)

    def fail(*given, **named):
        raise RuntimeError("the disk is full")

    doubt(run, "NORMAL/3.png")
    monkeypatch.setattr(train_run.TrainingRun, "succeed", fail)
    trained = trained_anyhow()
    with pytest.raises(RuntimeError):
        train_run._register(run, trained, None, train_run.StopCheck(run))
    assert doubted() == ["NORMAL/3.png"]


# -- A whole training


@pytest.mark.slow
def test_a_training_finds_the_images_that_lie_in_the_wrong_folder(settings, db, alice):
    """Bright and dark pictures; two of them were put into the other folder."""
    root = settings.DATASET_ROOT / "CHEST/lungs"
    for number in range(30):
        dark, bright = clouds(number) // 3, 120 + clouds(1000 + number) // 2
        save(root / "NORMAL" / f"{number}.png", encode(dark, "PNG"))
        save(root / "PNEUMONIA" / f"{number}.png", encode(bright, "PNG"))
    wrong = {"NORMAL/odd.png": 120 + clouds(2000) // 2, "PNEUMONIA/odd.png": clouds(2001) // 3}
    for path, picture in wrong.items():
        save(root / path, encode(picture, "PNG"))
    scan()
    preparation = prepare_again(alice)
    configuration = Configuration(epochs=6, batch_size=8, minimum_steps=12, brightness=0, contrast=0)
    run = TrainingRun.create(preparation.dataset, "Custom_CNN", configuration, alice, preset="quick")
    run.claim(run.attempt)
    train_run._train(run, lambda text: None, train_run.StopCheck(run))
    run.refresh_from_db()
    assert run.state == "succeeded", f"{run.error} {run.hint}"
    assert set(doubted()) >= set(wrong)
    assert len(doubted()) < 10
    data = open_cache(preparation.cache_folder)
    assert run.version.image_size == data.image_size
    assert PreparationFactory._meta.model.objects.count() == 1
