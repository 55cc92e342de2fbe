"""`manage.py evaluate`: files are read in parallel but keep their labels, and grades are measured as grades."""

import json
import shutil
import threading
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from PIL import Image

from datasets import imaging, scanning
from inference.models import EvaluationRun
from registry.models import Evaluation
from tests.datasets.files import encode, save
from tests.factories import ConditionFactory
from tests.inference.lungs import DARK, patient_film, prepared, scanned, version_of
from tests.inference.versions import make_version, manifest
from xrayplatform.audit import AuditEntry

pytestmark = pytest.mark.django_db


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Twenty dark and twenty bright pictures in the folder each belongs to, and one that cannot be read."""
    for number in range(20):
        for label, grey in (("NORMAL", 20 + number), ("PNEUMONIA", 200 + number)):
            save(tmp_path / label / f"{number:02d}.png", encode(np.full((8, 8), grey, np.uint8), "PNG"))
    save(tmp_path / "NORMAL" / "10b.png", b"this is only text")
    return tmp_path


def evaluate(folder: Path, **options: object) -> str:
    out = StringIO()
    call_command("evaluate", "chest", "1", str(folder), stdout=out, **options)
    return out.getvalue()


def cancel(number: object, **options: object) -> str:
    out = StringIO()
    call_command("evaluate", cancel=str(number), stdout=out, **options)
    return out.getvalue()


def test_a_waiting_evaluation_is_cancelled_by_its_number(team, alice, bob, charlie):
    own = prepared(scanned(condition=ConditionFactory(slug="chest", team=team)))
    run = EvaluationRun.create(version_of(own), own.dataset, alice, preparation=own, part="test")
    with pytest.raises(CommandError, match="no role that allows this"):
        cancel(run.pk, user="bob")
    for number in (run.pk + 1, "first", "9" * 30):
        with pytest.raises(CommandError, match="There is no evaluation run"):
            cancel(number)
    charlie.groups.set(alice.groups.all())
    with pytest.raises(CommandError, match="There is no evaluation run"):
        cancel(run.pk, user="charlie")
    assert cancel(run.pk, user="alice") == f"Evaluation run {run.pk}: cancelled.\n"
    assert AuditEntry.objects.filter(action__endswith=".cancel", actor=alice, object_id=str(run.pk)).count() == 1
    answer = json.loads(cancel(run.pk, json=True))
    assert answer == {"run": run.pk, "asked": False, "state": "cancelled"}
    assert "had ended already (cancelled)" in cancel(run.pk)


def test_without_a_version_the_command_says_what_to_name():
    with pytest.raises(CommandError, match="Name a condition and the number of a version"):
        call_command("evaluate", "chest")
    with pytest.raises(CommandError, match="Name only the run to cancel"):
        call_command("evaluate", "chest", "1", cancel="1")


def test_several_files_are_read_at_once_and_each_keeps_its_label(films, monkeypatch):
    make_version(ConditionFactory(slug="chest"))
    monkeypatch.setattr(scanning.map_ahead, "__defaults__", (2,))
    meeting = threading.Barrier(2, timeout=10)
    real, reads = imaging.read, []

    def read(path: Path) -> imaging.Radiograph:
        reads.append(path)
        if len(reads) <= 2:
            meeting.wait()
        return real(path)

    monkeypatch.setattr(imaging, "read", read)
    answer = json.loads(evaluate(films, json=True))
    assert (answer["n"], answer["confusion_matrix"]) == (40, [[20, 0], [0, 20]])
    assert [error["path"] for error in answer["errors"]] == ["NORMAL/10b.png"]


def test_the_report_is_kept_under_the_name_of_the_folder_alone(films):
    version = make_version(ConditionFactory(slug="chest"))
    answer = json.loads(evaluate(films, json=True))
    evaluation = Evaluation.objects.get(pk=answer["evaluation"])
    assert (evaluation.version, evaluation.kind, evaluation.dataset_name) == (version, "external", films.name)
    assert evaluation.images_count == 40 and evaluation.preparation is None
    assert evaluation.report["confusion_matrix"] == answer["confusion_matrix"]
    low, high = answer["intervals"]["accuracy"]
    assert (low, answer["accuracy"], high) == (1.0, 1.0, 1.0)
    assert "accuracy         1.000 (95 % 1.000 to 1.000)" in evaluate(films)


def test_files_that_the_version_learned_from_do_not_count_wherever_they_lie_now(films):
    dataset = scanned()
    own = prepared(dataset)
    version_of(own)
    learned = own.manifest.filter(split="train", path__startswith="NORMAL").first()
    shutil.copy(dataset.folder / learned.path, films / "NORMAL" / "copy.png")
    out = StringIO()
    call_command("evaluate", dataset.condition.slug, "1", str(films), json=True, stdout=out)
    answer = json.loads(out.getvalue())
    assert answer["n"] == 40
    assert any("left out, because the version learned from them" in warning for warning in answer["warnings"])


def test_near_duplicates_of_what_the_version_learned_from_do_not_count(films):
    dataset = scanned(side=80)
    own = prepared(dataset)
    version_of(own)
    learned = own.manifest.filter(split="train", path__startswith="NORMAL").first()
    with Image.open(dataset.folder / learned.path) as picture:
        save(films / "NORMAL" / "small.png", encode(np.asarray(picture.resize((60, 60)).rotate(90)), "PNG"))
    out = StringIO()
    call_command("evaluate", dataset.condition.slug, "1", str(films), json=True, stdout=out)
    answer = json.loads(out.getvalue())
    assert answer["n"] == 40
    assert any("1 as near-duplicates" in warning for warning in answer["warnings"])


def test_patients_of_dicom_files_are_told_apart(tmp_path):
    make_version(ConditionFactory(slug="chest"))
    for number, patient in enumerate(["A", "A", "B"]):
        patient_film(tmp_path / "films" / "NORMAL" / f"{number}.dcm", number, DARK, patient)
    answer = json.loads(evaluate(tmp_path / "films", json=True))
    assert Evaluation.objects.get(pk=answer["evaluation"]).patients_count == 2


def on_dataset(*options: str, slug: str = "chest") -> dict:
    out = StringIO()
    call_command("evaluate", slug, "1", *options, json=True, stdout=out, stderr=StringIO())
    return json.loads(out.getvalue())


def test_a_dataset_is_measured_here_and_now():
    own = prepared(scanned(condition=ConditionFactory(slug="chest")))
    version_of(own)
    other = scanned("CHEST/other", own.dataset.condition, first=500)
    answer = on_dataset("--dataset", "CHEST/other")
    assert (answer["n"], answer["confusion_matrix"]) == (24, [[11, 1], [2, 10]])
    run = EvaluationRun.objects.get(dataset=other)
    assert (run.state, run.evaluation.pk) == ("succeeded", answer["evaluation"])
    test = on_dataset("--dataset", "CHEST/lungs", "--preparation", str(own.pk))
    assert test["n"] == own.split_total("test") and Evaluation.objects.first().kind == "test"
    assert on_dataset("--dataset", "CHEST/lungs", "--part", "validation")["n"] == own.split_total("validation")
    with pytest.raises(SystemExit):
        on_dataset("--dataset", "CHEST/lungs", "--preparation", "999")


def test_what_cannot_be_measured_is_said(films):
    make_version(ConditionFactory(slug="chest"))
    for arguments, reason in (
        ([], "either a folder or"),
        ([str(films), "--dataset", "CHEST/lungs"], "either a folder or"),
        ([str(films), "--part", "test"], "has no preparations"),
        (["--dataset", "CHEST/none"], "no dataset 'CHEST/none'"),
    ):
        with pytest.raises(CommandError, match=reason):
            call_command("evaluate", "chest", "1", *arguments)


def test_a_user_evaluates_what_the_own_team_sees_with_the_right_role(films, team, alice, bob, charlie):
    make_version(ConditionFactory(slug="chest", team=team))
    evaluate(films, user="alice")
    assert Evaluation.objects.get().created_by == alice
    with pytest.raises(CommandError, match="no role that allows this"):
        evaluate(films, user="bob")
    with pytest.raises(CommandError, match="no version 1"):
        evaluate(films, user="charlie")


def test_kappa_is_told_for_a_version_that_was_measured_by_it(films):
    figures = manifest()["metrics"]["test"] | {"quadratic_kappa": 0.8}
    make_version(ConditionFactory(slug="chest"), metrics={"test": figures, "validation": figures})
    assert json.loads(evaluate(films, json=True))["quadratic_kappa"] == 1.0
    assert "quadratic_kappa  1.000" in evaluate(films)


def test_kappa_is_not_told_for_classes_without_an_order(films):
    make_version(ConditionFactory(slug="chest"))
    assert "quadratic_kappa" not in json.loads(evaluate(films, json=True))
    assert "kappa" not in evaluate(films)
