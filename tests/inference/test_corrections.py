"""A dataset made of what readers said: what is taken, what is left out and why, and that patients stay together."""

import csv
import json
import os
from io import StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command

from datasets import imaging
from datasets.models import Dataset, Scan, patient_key
from datasets.tasks import run_scan
from inference import corrections, radiographs
from registry.models import Deployment
from tests.datasets.files import encode
from tests.factories import (
    ConditionFactory,
    DatasetFactory,
    DatasetImageFactory,
    ModelVersionFactory,
    PredictionFactory,
    TeamFactory,
)
from tests.inference.lungs import film
from tests.inference.use import judged
from xrayplatform.audit import AuditEntry
from xrayplatform.jobs import JobError


@pytest.fixture
def version(team):
    version = ModelVersionFactory(condition=ConditionFactory(slug="chest", team=team), dataset_name="CHEST/first")
    Deployment.objects.create(condition=version.condition, active=version)
    return version


def analysed(version, seed, patient="", kept=True, picture="PNG", **fields):
    """An answer about a picture like no other, whose pixels are kept."""
    source = encode(film(seed, (20 + seed % 7, 200)), picture)
    radiograph = imaging.read(source)
    if kept:
        radiographs.keep(source, radiograph)
    key = patient_key(patient) if patient else ""
    return PredictionFactory(version=version, image_digest=radiograph.digest, patient_key=key, **fields)


def scanned(made):
    run_scan(made.scan, made.scan.attempt)
    made.scan.refresh_from_db()
    assert made.scan.state == "succeeded", made.scan.error
    made.dataset.refresh_from_db()
    return made.dataset


def test_judged_images_become_a_dataset_of_the_same_condition_sorted_by_the_readers_labels(version, alice):
    for seed in range(6):
        judged(analysed(version, seed), "PNEUMONIA" if seed % 2 else "NORMAL", alice)
    made = corrections.make(version.condition, version, by=alice)
    assert made.plan.by_class == {"NORMAL": 3, "PNEUMONIA": 3} and made.plan.corrected == 3
    dataset = scanned(made)
    assert dataset.name.startswith("chest-corrections-") and dataset.condition == version.condition
    assert dataset.counts == {"NORMAL": 3, "PNEUMONIA": 3}
    assert (dataset.positive_class, dataset.layout) == ("PNEUMONIA", "class-folders")
    assert dataset.problems_count == 0 and not dataset.is_asking
    assert set(dataset.images.values_list("digest", flat=True)) == {one.digest for one in made.plan.taken}
    entry = AuditEntry.objects.get(action="dataset.make_of_corrections")
    assert entry.actor == alice and entry.after["by_class"] == {"NORMAL": 3, "PNEUMONIA": 3}


def test_images_of_one_patient_stay_together_and_no_number_of_a_patient_is_written(version, alice):
    for seed in range(12):
        prediction = analysed(version, seed, patient=f"P{seed % 3}" if seed < 9 else "")
        judged(prediction, "PNEUMONIA" if seed % 2 else "NORMAL", alice)
    made = corrections.make(version.condition, version, by=alice)
    assert made.plan.patients == 3
    dataset = scanned(made)
    assert dataset.images_count == 12 and not dataset.is_asking and dataset.listed_problems == []
    patients = list(dataset.images.values_list("patient_key", "patient_source"))
    assert {source for _, source in patients} == {"csv"}
    sizes = sorted(sum(key == one for key, _ in patients) for one in {key for key, _ in patients})
    assert sizes == [1, 1, 1, 3, 3, 3]
    written = (dataset.folder / corrections.TABLE).read_text()
    rows = list(csv.DictReader(StringIO(written)))
    assert all((dataset.folder / row["image"]).is_file() for row in rows)
    assert patient_key("P1") in written and "P1" not in written.replace(patient_key("P1"), "")


def test_jpegs_are_kept_as_they_are(version, alice):
    judged(analysed(version, 1, picture="JPEG"), "NORMAL", alice)
    judged(analysed(version, 2), "PNEUMONIA", alice)
    made = corrections.make(version.condition, version, by=alice)
    endings = sorted(path.suffix for path in made.dataset.folder.glob("*/*"))
    assert endings == [".jpg", ".png"]
    assert scanned(made).images_count == 2


def test_images_about_which_readers_disagree_are_left_out_and_listed(version, alice, bob):
    disputed = analysed(version, 1)
    judged(disputed, "NORMAL", alice)
    judged(disputed, "PNEUMONIA", bob)
    changed = analysed(version, 2)
    judged(changed, "NORMAL", bob)
    judged(changed, "PNEUMONIA", bob)
    plan = corrections.plan(version.condition, version)
    assert plan.left_out == {"conflict": 1}
    assert plan.conflicts == [corrections.Conflict(str(disputed.pk), ("NORMAL", "PNEUMONIA"))]
    # Who changed their mind is of their last word.
    assert [one.label for one in plan.taken] == ["PNEUMONIA"]


def test_an_image_that_was_analysed_twice_is_one_image(version, alice, bob):
    judged(analysed(version, 1), "NORMAL", alice)
    judged(analysed(version, 1), "NORMAL", bob)
    assert len(corrections.plan(version.condition, version).taken) == 1


def test_what_is_not_kept_or_no_class_of_the_version_is_left_out_in_words(version, alice):
    judged(analysed(version, 1, kept=False), "NORMAL", alice)
    judged(analysed(version, 2), "FRACTURE", alice)
    plan = corrections.plan(version.condition, version)
    assert plan.left_out == {"not kept": 1, "other class": 1}
    assert [words for words, _ in plan.reasons] == [corrections.REASONS["other class"], corrections.REASONS["not kept"]]
    assert "no image" in plan.obstacle


def test_images_that_the_version_or_its_ancestors_were_made_with_are_left_out(version, alice, team):
    first = DatasetFactory(name="CHEST/first", condition=version.condition)
    parent = ModelVersionFactory(condition=version.condition, dataset_name="CHEST/older")
    child = ModelVersionFactory(condition=version.condition, dataset_name="CHEST/first", parent=parent)
    older = DatasetFactory(name="CHEST/older", condition=version.condition)
    one, two, three = (analysed(child, seed, patient="P") for seed in range(3))
    DatasetImageFactory(dataset=first, digest=one.image_digest, patient_key=patient_key("P"))
    DatasetImageFactory(dataset=older, digest=two.image_digest)
    for prediction in (one, two, three):
        judged(prediction, "NORMAL", alice)
    plan = corrections.plan(version.condition, child)
    assert plan.left_out == {"known": 2}
    assert [one.digest for one in plan.taken] == [three.image_digest]
    assert plan.known_patients == 1 and plan.unchecked == []
    older.images.all().delete()
    older.delete()
    assert corrections.plan(version.condition, child).unchecked == [str(parent)]


def test_an_ancestor_of_another_team_is_not_named(version):
    foreign = ModelVersionFactory(condition=ConditionFactory(slug="secret", team=TeamFactory()), dataset_name="SECRET")
    child = ModelVersionFactory(condition=version.condition, dataset_name="CHEST/gone", parent=foreign)
    assert corrections.plan(version.condition, child).unchecked == [str(child), "a version of another team"]


def test_of_two_who_make_one_at_the_same_moment_the_second_is_told(version, alice, monkeypatch):
    for seed, label in ((1, "NORMAL"), (2, "PNEUMONIA")):
        judged(analysed(version, seed), label, alice)
    name = corrections._free_name(version.condition)
    DatasetFactory(name=name, condition=version.condition)
    monkeypatch.setattr(corrections, "_free_name", lambda condition: name)
    with pytest.raises(JobError, match="at the same moment"):
        corrections.make(version.condition, version, by=alice)
    assert not [path for path in settings.DATASET_ROOT.iterdir() if path.name != name]


def test_other_conditions_and_shadows_bring_nothing(version, alice):
    judged(analysed(ModelVersionFactory(), 1), "NORMAL", alice)
    judged(analysed(version, 2, shown=False), "NORMAL", alice)
    assert corrections.plan(version.condition, version).taken == []


def test_of_too_many_the_newest_are_taken(version, alice, monkeypatch):
    monkeypatch.setattr(corrections, "MOST", 2)
    digests = []
    for seed in range(3):
        prediction = analysed(version, seed)
        judged(prediction, "NORMAL", alice)
        digests.append(prediction.image_digest)
    plan = corrections.plan(version.condition, version)
    assert [one.digest for one in plan.taken] == digests[1:] and plan.left_out == {"too many": 1}


def both_classes(version, by):
    judged(analysed(version, 1), "NORMAL", by)
    judged(analysed(version, 2), "PNEUMONIA", by)


def test_one_class_alone_is_no_dataset(version, alice):
    judged(analysed(version, 1), "NORMAL", alice)
    with pytest.raises(JobError, match="needs images of two classes"):
        corrections.make(version.condition, version, by=alice)
    assert not list(Path(settings.DATASET_ROOT).iterdir())


def test_a_read_only_folder_is_respected(version, alice, settings):
    both_classes(version, alice)
    settings.DATASET_READ_ONLY = True
    with pytest.raises(JobError, match="cannot be written to"):
        corrections.make(version.condition, version, by=alice)
    assert not Dataset.objects.exists()


def test_a_second_one_of_the_day_gets_another_name(version, alice):
    both_classes(version, alice)
    first = corrections.make(version.condition, version, by=alice)
    scanned(first)
    second = corrections.make(version.condition, version, by=alice)
    assert second.dataset.name == f"{first.dataset.name}-2"
    assert list(corrections.made_before(version.condition)) == [second.dataset, first.dataset]


def test_when_the_disk_is_full_nothing_is_left(version, alice, monkeypatch):
    both_classes(version, alice)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corrections, "_write_patients", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(JobError, match="No space left on device"):
        corrections.make(version.condition, version, by=alice)
    assert not Dataset.objects.exists() and not list(Path(settings.DATASET_ROOT).iterdir())


def test_when_the_folder_cannot_get_its_name_no_row_is_left(version, alice, monkeypatch):
    both_classes(version, alice)
    monkeypatch.setattr(Path, "rename", lambda *names: (_ for _ in ()).throw(OSError(39, "Directory not empty")))
    with pytest.raises(JobError, match="Directory not empty"):
        corrections.make(version.condition, version, by=alice)
    assert AuditEntry.objects.get(action="dataset.make_of_corrections", outcome="failed").actor == alice
    assert not Dataset.objects.exists() and not list(Path(settings.DATASET_ROOT).iterdir())


def test_what_a_killed_process_left_is_taken_away_after_a_day(version, alice):
    both_classes(version, alice)
    old, young = (Path(settings.DATASET_ROOT) / f".corrections-{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    corrections.make(version.condition, version, by=alice)
    assert not old.exists() and young.exists()


def test_while_a_scan_runs_the_dataset_is_made_and_the_next_scan_finds_it(version, alice):
    both_classes(version, alice)
    Scan.create(alice)
    made = corrections.make(version.condition, version, by=alice)
    assert made.scan is None and "scan again" in made.text
    assert made.dataset.folder.is_dir()


def test_the_version_in_service_is_the_one_to_train_on_from(version, alice):
    newer = ModelVersionFactory(condition=version.condition)
    assert corrections.base_of(version.condition) == version
    Deployment.objects.all().delete()
    with pytest.raises(JobError, match="No reader has judged"):
        corrections.base_of(version.condition)
    judged(analysed(newer, 1), "NORMAL", alice)
    assert corrections.base_of(version.condition) == newer


def run(*arguments):
    out = StringIO()
    call_command("corrections", "chest", *arguments, "--json", stdout=out)
    return json.loads(out.getvalue())


def test_the_command_says_what_it_would_hold_and_makes_it(version, alice):
    both_classes(version, alice)
    preview = run("--preview", "--user", "alice")
    assert preview["by_class"] == {"NORMAL": 1, "PNEUMONIA": 1} and "no fair sample" in preview["note"]
    assert not Dataset.objects.exists()
    made = run("--from-version", str(version.number), "--user", "alice")
    assert Dataset.objects.get(pk=made["dataset"]["id"]).name == made["dataset"]["name"]
    out = StringIO()
    call_command("corrections", "chest", "--preview", stdout=out)
    assert "NORMAL" in out.getvalue()


def test_the_command_refuses_in_words(version, bob, charlie):
    for arguments in (["--user", "charlie"], ["--user", "bob"], ["--from-version", "77"]):
        with pytest.raises(SystemExit):
            run(*arguments)
    assert not Dataset.objects.exists()
