"""Which datasets are found below a folder, what their names are taken to mean, and what is said of the rest."""

import os
from collections import Counter
from pathlib import Path

import pytest

from datasets.layouts import (
    FoundDataset,
    Problem,
    find_datasets,
    folder_problems,
    natural_key,
    patient_folder,
    printable,
)
from tests.datasets.files import NO_SHARED, SHARED, encode, gradient, save

JPEG = encode(gradient(4, 4), "JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def fill(root: Path, *names: str) -> Path:
    for name in names:
        save(root / name, JPEG)
    return root


def only(root: Path) -> FoundDataset:
    (found,) = find_datasets(root)
    return found


def listed(found: FoundDataset) -> dict[str, str]:
    return {candidate.relative: candidate.class_name for candidate in found.files()}


def codes(found: FoundDataset) -> Counter[str]:
    return Counter(problem.code for problem in found.problems)


def reasons(found: FoundDataset) -> str:
    return "\n".join(f"{problem.path}: {problem.reason}" for problem in found.problems)


def unused(root: Path) -> dict[str, str]:
    return {problem.path: problem.code for problem in folder_problems(root, find_datasets(root))}


# --- Class folders


def test_class_folders_are_a_dataset(root: Path):
    found = only(fill(root, "CHEST/mine/NORMAL/a.jpg", "CHEST/mine/PNEUMONIA/b.png", "CHEST/mine/PNEUMONIA/c.DCM"))

    assert (found.name, found.layout, found.label) == ("CHEST/mine", "class-folders", "Class folders")
    assert found.path == root / "CHEST" / "mine"
    assert found.classes == ("NORMAL", "PNEUMONIA")
    assert found.positive_class == "PNEUMONIA"
    assert found.body_part == "chest"
    assert "NORMAL, PNEUMONIA" in found.because
    assert listed(found) == {"NORMAL/a.jpg": "NORMAL", "PNEUMONIA/b.png": "PNEUMONIA", "PNEUMONIA/c.DCM": "PNEUMONIA"}
    assert {candidate.source_split for candidate in found.files()} == {""}
    assert found.problems == ()


def test_the_files_can_be_walked_again_and_lie_where_they_say(root: Path):
    found = only(fill(root, "d/a/1.jpg", "d/b/2.jpg"))

    assert listed(found) == listed(found)
    assert all(candidate.path == found.path / candidate.relative for candidate in found.files())


def test_the_root_itself_can_be_a_dataset(root: Path):
    found = only(fill(root, "NORMAL/a.jpg", "PNEUMONIA/b.jpg"))

    assert found.name == "."


def test_several_datasets_are_listed_by_name(root: Path):
    fill(root, *(f"KNEE/part {number}/{grade}/a.jpg" for number in (10, 2) for grade in "01"))

    assert [found.name for found in find_datasets(root)] == ["KNEE/part 2", "KNEE/part 10"]


def test_a_dataset_beside_class_folders_is_one_of_its_own(root: Path):
    fill(root, "d/NORMAL/a.jpg", "d/SICK/a.jpg", "d/older/NORMAL/a.jpg", "d/older/SICK/a.jpg")

    assert {found.name: found.classes for found in find_datasets(root)} == {
        "d": ("NORMAL", "SICK"),
        "d/older": ("NORMAL", "SICK"),
    }


def test_numbered_grades_are_ordinal_and_in_order(root: Path):
    found = only(fill(root, *(f"d/{grade}/a.jpg" for grade in range(11))))

    assert found.classes == tuple(str(grade) for grade in range(11))
    assert found.ordinal
    assert found.positive_class == ""


@pytest.mark.parametrize(
    ("names", "ordinal"),
    [
        (("Grade 1", "Grade 2", "Grade 3"), True),
        (("KL0", "KL1", "KL2"), True),
        (("0", "1"), False),
        (("0", "1", "3"), False),
        (("2", "3", "4"), False),
        (("0", "1", "unknown"), False),
        (("COVID", "NORMAL", "PNEUMONIA"), False),
    ],
)
def test_only_consecutive_numbers_are_grades(root: Path, names, ordinal):
    assert only(fill(root, *(f"d/{name}/a.jpg" for name in names))).ordinal == ordinal


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ("PNEUMONIA", "NORMAL"),
        ("Fractured", "Non_fractured"),
        ("Fractured", "nonfractured"),
        ("Fractured", "not fractured"),
        ("fractured", "Unfractured"),
        ("ABNORMAL", "NORMAL"),
        ("nodule", "No Finding"),
        ("1", "0"),
        ("positive", "negative"),
        ("malignant", "benign"),
        ("Arthritis", "HealthyKnee"),
        ("with effusion", "without effusion"),
        ("patient", "control"),
    ],
)
def test_the_class_that_denies_nothing_is_suggested_as_positive(root: Path, positive, negative):
    assert only(fill(root, f"d/{positive}/a.jpg", f"d/{negative}/b.jpg")).positive_class == positive


def test_folders_of_patients_in_a_class_folder_belong_to_the_class(root: Path):
    found = only(fill(root, "d/SICK/patient001/study1/a.jpg", "d/SICK/patient2/b.jpg", "d/WELL/patient3/c.jpg"))

    assert found.classes == ("SICK", "WELL")
    assert {(file.relative, file.class_name, file.patient, file.patient_source) for file in found.files()} == {
        ("SICK/patient001/study1/a.jpg", "SICK", "patient001", "folder"),
        ("SICK/patient2/b.jpg", "SICK", "patient2", "folder"),
        ("WELL/patient3/c.jpg", "WELL", "patient3", "folder"),
    }


def test_hundreds_of_folders_are_not_taken_for_classes(root: Path):
    fill(root, *(f"CHEST/archive/{number:05x}/a.jpg" for number in range(300)))

    assert find_datasets(root) == []
    assert unused(root) == {"CHEST": "no-dataset"}


# --- Train, validation and test folders


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "Validation", "TESTING"), ("TRAIN", "valid", "Test")]
)
def test_split_folders_keep_their_split(root: Path, names):
    for name in names:
        fill(root, f"CHEST/x/{name}/NORMAL/{name}.jpg", f"CHEST/x/{name}/PNEUMONIA/{name}.jpg")

    found = only(root)

    assert (found.name, found.layout) == ("CHEST/x", "split-folders")
    assert found.classes == ("NORMAL", "PNEUMONIA")
    assert Counter((file.source_split, file.class_name) for file in found.files()) == Counter(
        (split, name) for split in ("train", "validation", "test") for name in found.classes
    )
    assert found.problems == ()


def test_a_train_folder_alone_is_enough(root: Path):
    found = only(fill(root, "x/train/A/1.jpg", "x/train/B/2.jpg"))

    assert (found.name, found.layout) == ("x", "split-folders")
    assert {file.source_split for file in found.files()} == {"train"}


def test_a_class_missing_in_one_part_is_told(root: Path):
    found = only(fill(root, "x/train/A/1.jpg", "x/train/B/2.jpg", "x/test/A/3.jpg"))

    assert "There is no class folder B in test" in reasons(found)


def test_classes_spelt_differently_in_the_parts_are_one(root: Path):
    found = only(fill(root, "x/train/Normal/1.jpg", "x/train/Sick/2.jpg", "x/test/NORMAL/3.jpg", "x/test/SICK/4.jpg"))

    assert len(found.classes) == 2


# --- Images with a CSV file


def csv_dataset(root: Path, text: str | bytes) -> FoundDataset:
    fill(
        root,
        *(f"ARM/f/images/Fractured/{n}.jpg" for n in (1, 2)),
        *(f"ARM/f/images/Non_fractured/{n}.jpg" for n in (3, 4)),
    )
    (root / "ARM/f/dataset.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return only(root)


GOOD = "image_id,patient_id,hardware,fractured\n1.jpg,P1,0,1\n2.jpg,P1,1,1\n3.jpg,P2,0,0\n4.jpg,P3,0,0\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD.encode(),
        GOOD.encode("utf-8-sig"),
        GOOD.encode("utf-16"),
        GOOD.replace(",", ";").encode("latin-1"),
        GOOD.replace(",", "\t").replace("\n", "\r\n").encode(),
        GOOD.replace(".jpg", "").encode(),
        GOOD.replace("\n", "\nimages/Fractured/", 2).encode(),
        b"Patient ID,File Name,Label\nP1,1.jpg,fractured\nP1,2.jpg,Fractured\n"
        b"P2,3.jpg,non-fractured\nP3,4.jpg,NON_FRACTURED\n",
    ],
)
def test_a_csv_file_is_understood_in_every_usual_form(root: Path, text):
    found = csv_dataset(root, text)

    assert (found.name, found.layout) == ("ARM/f", "images-csv")
    assert found.classes == ("Fractured", "Non_fractured")
    assert found.problems == ()
    assert {(file.relative[-5:], file.class_name, file.patient) for file in found.files()} == {
        ("1.jpg", "Fractured", "P1"),
        ("2.jpg", "Fractured", "P1"),
        ("3.jpg", "Non_fractured", "P2"),
        ("4.jpg", "Non_fractured", "P3"),
    }


def test_a_row_that_contradicts_its_folder_is_told_and_the_file_left_out(root: Path):
    found = csv_dataset(root, GOOD.replace("3.jpg,P2,0,0", "3.jpg,P2,0,1"))

    assert "images/Non_fractured/3.jpg: The folder says Non_fractured, row 4 says Fractured; left out." in reasons(
        found
    )
    assert "images/Non_fractured/3.jpg" not in listed(found)
    assert len(listed(found)) == 3


def test_files_without_a_row_and_rows_without_a_file_are_told(root: Path):
    found = csv_dataset(root, GOOD.replace("4.jpg", "9.jpg"))

    assert "images/Non_fractured/4.jpg: dataset.csv has no row for this file" in reasons(found)
    assert "dataset.csv: Row 5: there is no file 9.jpg" in reasons(found)
    assert len(listed(found)) == 4


def test_two_rows_that_disagree_on_a_file_are_told_and_the_file_left_out(root: Path):
    found = csv_dataset(root, GOOD + "1.jpg,P1,0,0\n")

    assert codes(found) == {"csv-conflict": 1}
    assert "images/Fractured/1.jpg" not in listed(found)


def test_a_csv_file_that_names_no_files_leaves_the_folders_in_charge(root: Path):
    found = csv_dataset(root, "colour,weight\nred,1\n")

    assert codes(found) == {"csv": 1}
    assert "No column names the image files" in reasons(found)
    assert len(listed(found)) == 4


def test_a_csv_file_without_labels_still_brings_the_patients(root: Path):
    found = csv_dataset(root, "image_id,patient\n1,A\n2,A\n3,B\n4,C\n")

    assert {file.patient for file in found.files()} == {"A", "B", "C"}
    assert codes(found) == {"no-label-column": 1}


def test_images_without_class_folders_take_their_class_from_the_csv_file(root: Path):
    fill(root, "d/images/1.png", "d/images/2.png", "d/images/3.png")
    (root / "d/labels.csv").write_text("filename,label\n1.png,sick\n2.png,normal\n")

    found = only(root)

    assert (found.name, found.classes, found.positive_class) == ("d", ("normal", "sick"), "sick")
    assert listed(found) == {"images/1.png": "sick", "images/2.png": "normal"}
    assert "images/3.png: labels.csv has no row for this file; left out." in reasons(found)


def test_class_names_in_a_csv_file_that_cannot_be_stored_are_told_and_their_rows_left_out(root: Path):
    fill(root, *(f"d/images/{number}.png" for number in range(4)))
    (root / "d/labels.csv").write_text(f"filename,label\n0.png,sick\n1.png,well\n2.png,{'x' * 201}\n3.png,a\x00b\n")

    found = only(root)

    assert found.classes == ("sick", "well")
    assert listed(found) == {"images/0.png": "sick", "images/1.png": "well"}
    assert codes(found)["class-name"] == 2
    assert "has 201 characters, at most 200 can be used" in reasons(found)
    assert "a\\u0000b has characters that cannot be shown" in reasons(found)


def test_a_patient_column_comes_before_the_patient_folder(root: Path):
    fill(root, "d/images/patient1/0.png", "d/images/patient2/1.png")
    (root / "d/labels.csv").write_text("filename,label,patient\n0.png,sick,P7\n1.png,well,\n")

    assert {(file.patient, file.patient_source) for file in only(root).files()} == {
        ("P7", "csv"),
        ("patient2", "folder"),
    }


@pytest.mark.parametrize(
    ("folders", "patient"),
    [
        (["Patient12"], "patient12"),
        (["study01"], "study01"),
        (["subject 3b"], "subject 3b"),
        (["study1", "patient7"], "patient7"),
        (["patient7", "study1"], "patient7"),
        (["pathology", "series", "casework2", "studies1"], None),
        ([], None),
    ],
)
def test_the_folder_of_a_patient_is_known_by_its_name(folders, patient):
    assert patient_folder(folders) == patient


def test_a_dataset_knows_how_many_files_it_holds_before_one_is_opened(root: Path):
    fill(root, "d/NORMAL/1.png", "d/NORMAL/patient1/2.png", "d/SICK/3.png", "d/SICK/notes.txt", "d/outside.png")
    fill(root, "e/train/A/1.png", "e/train/B/2.png", "e/test/A/3.png", "e/test/B/4.png")
    fill(root, "f/1.png", "f/2.png", "f/patient1/3.png")
    (root / "f/labels.csv").write_text("filename,label\n1.png,sick\n2.png,well\n")

    assert {found.name: found.file_count for found in find_datasets(root)} == {"d": 3, "e": 4, "f": 2}


def test_a_huge_number_of_bad_rows_is_counted_and_not_listed(root: Path):
    found = csv_dataset(root, GOOD + "".join(f"x{number}.jpg,P,0,1\n" for number in range(2000)))

    assert len(found.problems) < 600
    assert "1500 more of these" in reasons(found)


@pytest.mark.parametrize("text", ["", "image_id,fractured\n", "\x00\x00\x00", "image_id\n" + "a" * 200_000])
def test_an_unusable_csv_file_does_not_hide_the_dataset(root: Path, text):
    found = csv_dataset(root, text)

    assert len(listed(found)) == 4
    assert found.problems


# --- What is told as a problem


def test_one_class_only_is_told(root: Path):
    found = only(fill(root, "CHEST/x/NORMAL/a.jpg"))

    assert "Only one class was found (NORMAL)" in reasons(found)


def test_a_class_folder_without_images_is_told(root: Path):
    fill(root, "x/A/1.jpg", "x/B/1.jpg")
    (root / "x" / "C").mkdir()

    found = only(root)

    assert found.classes == ("A", "B")
    assert found.problems == (Problem("C", "The class folder holds no images (.jpg, .jpeg, .png, .dcm).", "no-images"),)


def test_images_outside_the_class_folders_are_told_and_left_out(root: Path):
    found = only(fill(root, "x/A/1.jpg", "x/B/1.jpg", "x/loose.jpg", "x/stray.jpg"))

    assert "2 images outside the class folders" in reasons(found)
    assert set(listed(found)) == {"A/1.jpg", "B/1.jpg"}


def test_other_files_are_counted_by_kind(root: Path):
    found = only(fill(root, "x/A/1.jpg", "x/A/notes.txt", "x/A/2.gif", "x/A/3.gif", "x/A/IM0001", "x/B/1.jpg"))

    assert reasons(found) == "A: 4 files of other kinds left out (.gif 2, .txt 1, no extension 1)."


def test_hidden_files_and_those_of_macos_are_ignored_silently(root: Path):
    fill(root, "x/A/1.jpg", "x/A/.hidden.jpg", "x/A/._1.jpg", "x/B/1.jpg", "x/B/.DS_Store", "x/.git/A/1.jpg")
    fill(root, "x/__MACOSX/A/1.jpg")

    found = only(root)

    assert set(listed(found)) == {"A/1.jpg", "B/1.jpg"}
    assert found.problems == ()


def test_links_are_told_and_never_followed(root: Path):
    outside = fill(root.parent / "outside", "C/1.jpg")
    fill(root, "x/A/1.jpg", "x/B/1.jpg")
    (root / "x/A/link.jpg").symlink_to(outside / "C/1.jpg")
    (root / "x/C").symlink_to(outside / "C")
    (root / "x/B/loop").symlink_to(root)

    found = only(root)

    assert found.classes == ("A", "B")
    assert set(listed(found)) == {"A/1.jpg", "B/1.jpg"}
    assert sorted(problem.path for problem in found.problems if problem.code == "link") == ["A/link.jpg", "B/loop", "C"]


@pytest.mark.parametrize("name", ["two\nlines.jpg", "gpj.\u202eexe.jpg", os.fsdecode(b"caf\xe9.jpg"), "bell\x07.jpg"])
def test_hostile_names_are_left_out_and_shown_safely(root: Path, name):
    fill(root, "x/A/1.jpg", "x/B/1.jpg", f"x/A/{name}")

    found = only(root)

    assert set(listed(found)) == {"A/1.jpg", "B/1.jpg"}
    (problem,) = found.problems
    assert problem.code == "unsafe-name"
    assert problem.path.isprintable()
    problem.path.encode()


def test_a_hostile_folder_name_is_told_too(root: Path):
    fill(root, "x/A/1.jpg", "x/B/1.jpg", "x/C\n/1.jpg")

    assert [problem.path for problem in only(root).problems] == ["C\\u000a"]


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>.jpg", "Röntgen Müller.jpg", "胸部.jpg", "a'b\"c;d.jpg"])
def test_unusual_but_harmless_names_are_kept(root: Path, name):
    fill(root, "x/A/1.jpg", "x/B/1.jpg", f"x/A/{name}")

    assert f"A/{name}" in listed(only(root))


# --- Folders that are no dataset


def test_an_empty_folder_is_told(root: Path):
    fill(root, "CHEST/x/A/1.jpg", "CHEST/x/B/1.jpg")
    (root / "KNEE").mkdir()
    (root / "CHEST" / "empty").mkdir()

    assert unused(root) == {"CHEST/empty": "empty-folder", "KNEE": "empty-folder"}


def test_a_folder_of_unsorted_images_is_told(root: Path):
    fill(root, "CHEST/x/A/1.jpg", "CHEST/x/B/1.jpg", "ARM/1.jpg", "ARM/2.jpg")

    (problem,) = folder_problems(root, find_datasets(root))

    assert (problem.path, problem.code) == ("ARM", "no-classes")
    assert "2 images lie here without class folders" in problem.reason


def test_loose_images_beside_a_dataset_are_told(root: Path):
    fill(root, "CHEST/x/A/1.jpg", "CHEST/x/B/1.jpg", "CHEST/loose.jpg")

    assert [found.name for found in find_datasets(root)] == ["CHEST/x"]
    assert unused(root) == {"CHEST": "no-classes"}


def test_class_folders_that_are_all_empty_are_told(root: Path):
    for name in ("A", "B"):
        (root / "CHEST" / "x" / name).mkdir(parents=True)

    assert find_datasets(root) == []
    assert unused(root) == {"CHEST": "no-dataset"}


def test_an_empty_root_and_a_missing_one_are_told(root: Path):
    assert find_datasets(root) == []
    assert unused(root) == {".": "empty-folder"}
    assert find_datasets(root / "gone") == []
    assert unused(root / "gone") == {".": "missing-folder"}


def test_a_marker_file_makes_everything_below_synthetic(root: Path):
    fill(root, *(f"{name}/{label}/1.jpg" for name in ("real", "made/a", "made/b") for label in ("A", "B")))
    (root / "made" / "SYNTHETIC.txt").touch()

    assert {found.name: found.synthetic for found in find_datasets(root)} == {
        "made/a": True,
        "made/b": True,
        "real": False,
    }


def test_numbers_in_names_sort_as_numbers():
    assert sorted(["10", "9", "b", "A", "1a"], key=natural_key) == ["1a", "9", "10", "A", "b"]


def test_printable_text_is_left_alone():
    assert printable("Röntgen 胸部 <b>.png") == "Röntgen 胸部 <b>.png"


@pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED)
def test_the_real_datasets_are_found_as_they_are():
    root = SHARED / "Dataset"
    found = {dataset.name: dataset for dataset in find_datasets(root)}

    assert {name: (dataset.layout, dataset.ordinal, dataset.positive_class) for name, dataset in found.items()} == {
        "ARM/forearm_fracture": ("class-folders", False, "Fractured"),
        "ARM/FracAtlas": ("images-csv", False, "Fractured"),
        "CHEST/chest_xray Pneumonia": ("split-folders", False, "PNEUMONIA"),
        "CHEST/full_size_originals": ("class-folders", False, "PNEUMONIA"),
        "KNEE/Osteoarthritis Knee X-ray": ("class-folders", True, ""),
    }
    assert [dataset.body_part for dataset in found.values()] == ["arm", "arm", "chest", "chest", "knee"]
    assert [problem for dataset in found.values() for problem in dataset.problems] == []
    assert folder_problems(root, list(found.values())) == []
    assert Counter(file.class_name for file in found["CHEST/chest_xray Pneumonia"].files()) == {
        "NORMAL": 1341,
        "PNEUMONIA": 1300,
    }
