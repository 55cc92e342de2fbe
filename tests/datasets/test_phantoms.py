"""The synthetic samples: three layouts, three formats, always recognisable as synthetic."""

from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from datasets import decoding, duplicates, imaging, scanning
from datasets.layouts import FoundDataset, find_datasets, folder_problems
from datasets.phantoms import SIZE, make_samples
from datasets.scanning import Record
from datasets.splitting import Row, group_keys, shared_groups, split

CHEST = "CHEST/synthetic_chest_pneumonia"
ARM = "ARM/synthetic_fracture"
KNEE = "KNEE/synthetic_osteoarthritis"
PER_CLASS = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    make_samples(folder, per_class=PER_CLASS, seed=1)
    return folder


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, FoundDataset]:
    return {dataset.name: dataset for dataset in find_datasets(root)}


def records(dataset: FoundDataset) -> list[Record]:
    asked = ((file, scanning.request(file)) for file in dataset.files())
    outcomes = [scanning.outcome(file, answer) for file, answer in decoding.shared().run(asked)]
    assert all(isinstance(outcome, Record) for outcome in outcomes), outcomes
    return sorted((outcome for outcome in outcomes if isinstance(outcome, Record)), key=lambda record: record.path)


def test_the_three_layouts_are_found_without_a_problem(root: Path, found: dict[str, FoundDataset]):
    assert {name: (dataset.layout, dataset.classes, dataset.positive_class) for name, dataset in found.items()} == {
        CHEST: ("split-folders", ("NORMAL", "PNEUMONIA"), "PNEUMONIA"),
        ARM: ("images-csv", ("Fractured", "Non_fractured"), "Fractured"),
        KNEE: ("class-folders", ("0", "1", "2", "3", "4"), ""),
    }
    assert found[KNEE].ordinal
    assert all(dataset.synthetic and dataset.problems == () for dataset in found.values())
    assert folder_problems(root, list(found.values())) == []


def test_make_samples_returns_the_folders(tmp_path: Path):
    folders = make_samples(tmp_path, per_class=1)

    assert [folder.relative_to(tmp_path).as_posix() for folder in folders] == [CHEST, ARM, KNEE]


@pytest.mark.parametrize(("name", "kind"), [(CHEST, "JPEG"), (ARM, "PNG"), (KNEE, "DICOM")])
def test_every_image_is_readable_and_every_class_has_as_many(found: dict[str, FoundDataset], name, kind):
    read = records(found[name])

    assert {(record.format, record.width, record.height) for record in read} == {(kind, SIZE, SIZE)}
    assert set(Counter(record.class_name for record in read).values()) == {PER_CLASS}
    assert len({record.digest for record in read}) == len(read)


@pytest.mark.parametrize("name", [CHEST, ARM, KNEE])
def test_no_picture_is_taken_for_a_copy_of_another(found: dict[str, FoundDataset], name):
    """Drawn pictures are alike; near-duplicates would tie their invented patients together."""
    prints = np.stack([np.frombuffer(record.fingerprint, np.uint8) for record in records(found[name])])

    assert len(set(duplicates.clusters(prints).tolist())) == len(prints)


@pytest.mark.parametrize(("name", "key"), [(CHEST, "file-name"), (ARM, "csv"), (KNEE, "dicom")])
def test_each_dataset_is_divided_by_its_invented_patients(found: dict[str, FoundDataset], name, key):
    read = records(found[name])
    keys = group_keys([Row(record.path, record.digest, record.patient, record.patient_source) for record in read])
    labels, sources = [record.class_name for record in read], [record.source_split for record in read]

    result = split(labels, keys.keys, sources, seed=1)

    assert keys.name == key
    assert len(set(keys.keys)) < len(read)
    assert shared_groups(result.splits, keys.keys) == 0
    assert result.moved == 0


def test_the_chest_comes_in_three_parts_with_both_classes(found: dict[str, FoundDataset]):
    parts = {(file.source_split, file.class_name) for file in found[CHEST].files()}

    assert len(parts) == 6


def test_knees_are_stored_with_bone_dark_and_with_bone_bright_and_read_alike(found: dict[str, FoundDataset]):
    stored, middle, edge = Counter(), [], []
    for file in found[KNEE].files():
        stored[pydicom.dcmread(file.path).PhotometricInterpretation] += 1
        pixels = imaging.read(file.path).pixels
        middle.append(float(pixels[175:190, 118:138].mean()))
        edge.append(float(pixels[20:60, :12].mean()))

    assert stored.keys() == {"MONOCHROME1", "MONOCHROME2"}
    assert min(np.subtract(middle, edge)) > 0.2


def test_every_file_says_in_its_metadata_that_it_is_synthetic(found: dict[str, FoundDataset]):
    notes = []
    for name in (CHEST, ARM):
        for file in found[name].files():
            with Image.open(file.path) as picture:
                note = picture.info.get("comment") or picture.info.get("Comment")
                notes.append(note.decode() if isinstance(note, bytes) else note)
    for file in found[KNEE].files():
        tags = pydicom.dcmread(file.path, stop_before_pixels=True)
        assert tags.PatientName == "SYNTHETIC^PHANTOM"
        notes.append(tags.ImageComments)

    assert all("SYNTHETIC" in note for note in notes)
    assert all((dataset.path / "SYNTHETIC.txt").read_text().startswith("SYNTHETIC") for dataset in found.values())


def test_the_word_in_the_corner_is_in_every_class_alike(found: dict[str, FoundDataset]):
    """Otherwise a network could read the label off the corner."""
    for dataset in found.values():
        contrast = {name: [] for name in dataset.classes}
        for file in dataset.files():
            corner = imaging.read(file.path).pixels[SIZE - 18 : SIZE - 6, 6:70]
            contrast[file.class_name].append(float(corner.std()))
        means = [np.mean(values) for values in contrast.values()]
        assert min(means) > 0.05
        assert max(means) - min(means) < 0.02


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path):
    made = {}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_samples(tmp_path / name, per_class=2, seed=seed)
        files = sorted((tmp_path / name).rglob("*.*"))
        made[name] = [path.read_bytes() for path in files if path.suffix in (".jpeg", ".png", ".dcm")]

    assert made["a"] == made["b"]
    assert made["a"] != made["c"]


def test_a_second_run_over_the_same_folder_adds_nothing(tmp_path: Path):
    make_samples(tmp_path, per_class=2)
    first = sorted(tmp_path.rglob("*"))
    make_samples(tmp_path, per_class=2)

    assert sorted(tmp_path.rglob("*")) == first


def test_the_dicom_files_keep_to_the_standard_where_readers_look(found: dict[str, FoundDataset]):
    file = next(iter(found[KNEE].files()))
    tags = pydicom.dcmread(BytesIO(file.path.read_bytes()))

    assert tags.file_meta.MediaStorageSOPInstanceUID == tags.SOPInstanceUID
    assert len(tags.SOPInstanceUID) <= 64
    assert (tags.PhotometricInterpretation == "MONOCHROME1") == (tags.PresentationLUTShape == "INVERSE")
    assert {"WindowCenter", "WindowWidth", "PatientID", "BodyPartExamined"} <= set(tags.dir())
