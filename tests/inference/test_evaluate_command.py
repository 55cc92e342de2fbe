"""`manage.py evaluate`: files are read in parallel but keep their labels, and grades are measured as grades."""

import json
import threading
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from django.core.management import call_command

from datasets import imaging, scanning
from tests.datasets.files import encode, save
from tests.factories import ConditionFactory
from tests.inference.versions import make_version, manifest

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


def test_kappa_is_told_for_a_version_that_was_measured_by_it(films):
    figures = manifest()["metrics"]["test"] | {"quadratic_kappa": 0.8}
    make_version(ConditionFactory(slug="chest"), metrics={"test": figures, "validation": figures})
    assert json.loads(evaluate(films, json=True))["quadratic_kappa"] == 1.0
    assert "quadratic_kappa  1.000" in evaluate(films)


def test_kappa_is_not_told_for_classes_without_an_order(films):
    make_version(ConditionFactory(slug="chest"))
    assert "quadratic_kappa" not in json.loads(evaluate(films, json=True))
    assert "kappa" not in evaluate(films)
