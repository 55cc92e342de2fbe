"""Which datasets are found below a folder, what their names are taken to mean, and what is said of the rest."""

import os
from collections import Counter
from pathlib import Path

import pytest

from datasets.layouts import (
    FoundDataset,
    Option,
    Problem,
    find_datasets,
    find_in,
    folder_problems,
    natural_key,
    patient_folder,
    printable,
    problems_in,
    survey,
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


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "holdout"), ["train", "test"]),
        (("train", "dev", "Hold_Out"), ["train", "validation", "test"]),
        (("train", "val", "eval"), ["train", "validation", "test"]),
        (("train", "evaluation", "test"), ["train", "validation", "test"]),
        (("train", "eval", "held-out"), ["train", "validation", "test"]),
    ],
)
def test_what_lies_beside_a_train_folder_for_an_evaluation_is_a_split_and_that_is_explained(root: Path, names, splits):
    fill(root, *(f"x/{split}/{name}/{split}.jpg" for split in names for name in ("ILL", "WELL")))

    found = only(root)

    assert (found.name, found.layout, found.question, found.classes) == ("x", "split-folders", None, ("ILL", "WELL"))
    assert {file.relative.split("/")[0]: file.source_split for file in found.files()} == dict(
        zip(names, splits, strict=True)
    )
    assert "/ counts as " in found.because


@pytest.mark.parametrize("names", [("train", "eval"), ("train", "val", "test", "Evaluation")])
def test_a_folder_for_validation_or_for_the_test_is_a_question(root: Path, names):
    fill(root, *(f"x/{split}/{name}/{split}.jpg" for split in names for name in ("ILL", "WELL")))

    found = only(root)

    assert found.question and found.question.code == "evaluation"
    assert f"whether {names[-1]}/ is for validation or for the test" in found.question.text
    assert [option.value for option in options(found)] == ["evaluation-test", "evaluation-validation"]
    for answer, split in (("evaluation-test", "test"), ("evaluation-validation", "validation")):
        (answered,) = find_datasets(root, {"x": answer})
        assert f"({names[-1]}/ counts as {split})" in answered.because
        assert {file.source_split for file in answered.files() if names[-1] in file.relative} == {split}


def test_images_of_an_evaluation_that_are_not_sorted_are_never_a_class(root: Path):
    fill(root, *(f"x/{split}/{name}/1.jpg" for split in ("train", "test") for name in ("ILL", "WELL")))
    fill(root, "x/eval/1.jpg", "x/holdout/1.jpg", "y/ILL/1.jpg", "y/WELL/1.jpg", "y/hold_out/1.jpg")

    split, plain = find_datasets(root)

    assert (split.classes, split.question, len(listed(split))) == (("ILL", "WELL"), None, 4)
    assert (plain.classes, plain.question, len(listed(plain))) == (("ILL", "WELL"), None, 2)
    assert codes(split) == {"outside-classes": 2} and codes(plain) == {"outside-classes": 1}


def test_a_folder_that_is_called_evaluation_without_a_split_beside_it_is_a_dataset(root: Path):
    found = only(fill(root, "CHEST/evaluation/ILL/1.jpg", "CHEST/evaluation/WELL/2.jpg"))

    assert (found.name, found.layout, {file.source_split for file in found.files()}) == (
        "CHEST/evaluation", "class-folders", {""},
    )  # fmt: skip


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

    assert {found.name: found.file_count for found in find_datasets(root)} == {"d": 3, "e": 4, "f": 3}


def test_a_huge_number_of_bad_rows_is_counted_and_not_listed(root: Path):
    found = csv_dataset(root, GOOD + "".join(f"x{number}.jpg,P,0,1\n" for number in range(2000)))

    assert len(found.problems) < 600
    assert "1500 more of these" in reasons(found)


@pytest.mark.parametrize("text", ["", "image_id,fractured\n", "\x00\x00\x00", "image_id\n" + "a" * 200_000])
def test_an_unusable_csv_file_does_not_hide_the_dataset(root: Path, text):
    found = csv_dataset(root, text)

    assert len(listed(found)) == 4
    assert found.problems


def test_a_csv_file_beside_class_folders_confirms_them_and_brings_the_patients(root: Path):
    fill(root, "d/NORMAL/1.png", "d/NORMAL/2.png", "d/SICK/3.png", "d/SICK/4.png")
    (root / "d/list.csv").write_text("file;class;patient\n1;normal;P1\n2;normal;P1\n3;sick;P2\n4;sick;P3\n")

    found = only(root)

    assert (found.layout, found.classes, found.question, found.problems) == (
        "class-folders", ("NORMAL", "SICK"), None, (),
    )  # fmt: skip
    assert [file.patient for file in sorted(found.files(), key=lambda file: file.relative)] == ["P1", "P1", "P2", "P3"]
    assert "list.csv describes them (labels from the column class, patients from the column patient)" in found.because


def test_a_csv_file_that_names_other_images_is_told_and_not_used(root: Path):
    fill(root, "d/NORMAL/1.png", "d/SICK/3.png")
    (root / "d/predictions.csv").write_text("file,label\nx.png,sick\ny.png,normal\n")

    found = only(root)

    assert len(listed(found)) == 2
    assert "predictions.csv: No row names an image of this dataset; the file is not used." in reasons(found)


def test_images_in_split_folders_take_their_class_from_the_csv_file_and_keep_their_split(root: Path):
    fill(root, "CHEST/d/train/1.png", "CHEST/d/train/2.png", "CHEST/d/test/3.png")
    (root / "CHEST/d/labels.csv").write_text("filename,label\ntrain/1.png,sick\ntrain/2.png,well\ntest/3.png,sick\n")

    found = only(root)

    assert (found.name, found.layout, found.question) == ("CHEST/d", "images-csv", None)
    assert {(file.relative, file.class_name, file.source_split) for file in found.files()} == {
        ("train/1.png", "sick", "train"),
        ("train/2.png", "well", "train"),
        ("test/3.png", "sick", "test"),
    }


def split_tables(root: Path, **texts: str) -> FoundDataset:
    fill(root, *(f"d/images/{number}.png" for number in range(1, 5)))
    for name, text in texts.items():
        (root / f"d/{name}.csv").write_text(text)
    return only(root)


@pytest.mark.parametrize("name", ["{}", "labels_{}", "{}-Labels"])
def test_a_csv_file_for_each_split_is_one_table_and_its_name_tells_the_split(root: Path, name):
    found = split_tables(
        root,
        **{
            name.format("train"): "file,label\n1.png,ill\n2.png,well\n",
            name.format("val"): "file,label\n3.png,ill\n",
            name.format("test"): "file,label\n4.png,well\n",
        },
    )

    assert (found.layout, found.question, found.classes, found.problems) == ("images-csv", None, ("ill", "well"), ())
    assert {(file.relative, file.class_name, file.source_split) for file in found.files()} == {
        ("images/1.png", "ill", "train"),
        ("images/2.png", "well", "train"),
        ("images/3.png", "ill", "validation"),
        ("images/4.png", "well", "test"),
    }
    assert "describe them (labels from the column label, split of each row from the name of its file)" in found.because


def test_a_csv_file_for_each_split_beside_class_folders_brings_the_split(root: Path):
    fill(root, "d/ILL/1.png", "d/ILL/2.png", "d/WELL/3.png", "d/WELL/4.png")
    (root / "d/train.csv").write_text("file,label\n1,ill\n3,well\n")
    (root / "d/test.csv").write_text("file,label\n2,ill\n4,ill\n")

    found = only(root)

    assert {(file.relative, file.source_split) for file in found.files()} == {
        ("ILL/1.png", "train"), ("ILL/2.png", "test"), ("WELL/3.png", "train"),
    }  # fmt: skip
    assert reasons(found) == "WELL/4.png: The folder says WELL, row 3 of test.csv says ILL; left out."


def test_an_image_in_the_folder_of_another_split_than_its_csv_file_is_told(root: Path):
    fill(root, "d/train/1.png", "d/train/2.png", "d/test/3.png")
    (root / "d/train.csv").write_text("file,label\n1,ill\n")
    (root / "d/test.csv").write_text("file,label\n2,well\n3,ill\n")

    found = only(root)

    assert {file.relative: file.source_split for file in found.files()}["train/2.png"] == "train"
    assert reasons(found) == (
        "train/2.png: The folder says train, row 2 of test.csv says test; the folder's split is used."
    )


def test_csv_files_of_splits_with_different_columns_are_read_apart_and_that_is_told(root: Path):
    found = split_tables(root, train="file,label\n1,ill\n2,well\n", test="file\n3\n4\n")

    assert listed(found) == {"images/1.png": "ill", "images/2.png": "well"}
    assert "test.csv and train.csv are not read as one table with the split of each row. The columns" in reasons(found)


def test_two_csv_files_for_the_same_split_are_not_put_together(root: Path):
    found = split_tables(root, train="file,label\n1,ill\n2,well\n", training="file,label\n3,ill\n4,well\n")

    assert [option.value for option in options(found)] == ["train.csv:label", "training.csv:label"]


def test_images_in_a_folder_of_any_name_take_their_class_from_the_csv_file_beside_it(root: Path):
    fill(root, "HAND/d/boneage-set/1.png", "HAND/d/boneage-set/2.png")
    (root / "HAND/d/boneage.csv").write_text("id,grade\n1,2\n2,3\n")

    assert listed(only(root)) == {"boneage-set/1.png": "2", "boneage-set/2.png": "3"}


def test_a_row_that_fits_two_images_labels_neither(root: Path):
    fill(root, "d/images/patient1/1.png", "d/images/patient2/1.png", "d/images/2.png", "d/images/3.png")
    (root / "d/labels.csv").write_text("filename,label\n1.png,sick\n2.png,sick\n3.png,well\n")

    found = only(root)

    assert listed(found) == {"images/2.png": "sick", "images/3.png": "well"}
    assert codes(found) == {"ambiguous-row": 2}


# --- Deeper folders


def test_a_dataset_in_a_folder_of_its_own_name_is_found_there(root: Path):
    found = only(fill(root, *(f"CHEST/dataset/dataset/train/{name}/1.jpg" for name in ("NORMAL", "SICK"))))

    assert (found.name, found.layout, found.body_part) == ("CHEST/dataset/dataset", "split-folders", "chest")


def test_class_folders_with_images_and_masks_ask_and_leave_the_masks_out(root: Path):
    for name in ("COVID", "Normal"):
        fill(root, f"CHEST/radiography/{name}/images/1.png", f"CHEST/radiography/{name}/masks/1.png")

    found = only(root)

    assert (found.name, found.classes) == ("CHEST/radiography", ("COVID", "Normal"))
    assert listed(found) == {"COVID/images/1.png": "COVID", "Normal/images/1.png": "Normal"}
    assert found.question and found.question.code == "subfolders"
    assert [(option.value, option.label, option.counts) for option in found.question.options] == [
        ("images", "images/ without masks/", {"COVID": 1, "Normal": 1}),
        ("images,masks", "images/ and masks/", {"COVID": 2, "Normal": 2}),
    ]
    assert "COVID/masks: 1 image by the answer to the question, left out." in reasons(found)


def test_an_images_folder_in_each_class_folder_is_nothing_to_ask(root: Path):
    found = only(fill(root, "d/COVID/images/1.png", "d/Normal/images/1.png"))

    assert (found.classes, found.question) == (("COVID", "Normal"), None)


def mura(root: Path, *parts: str) -> Path:
    return fill(
        root,
        *(
            f"ARM/MURA/{split}/{part}/patient{number:05}/study1_{label}/image1.png"
            for split in ("train", "valid")
            for part in parts
            for number, label in enumerate(("positive", "negative"), len(split))
        ),
    )


def test_studies_that_bear_their_label_are_sorted_by_it(root: Path):
    found = only(mura(root, "XR_WRIST"))

    assert (found.name, found.layout, found.question) == ("ARM/MURA", "study-folders", None)
    assert (found.classes, found.positive_class) == (("negative", "positive"), "positive")
    assert found.because == "found because the folders of the studies end in negative, positive"
    assert {(file.source_split, file.class_name, file.patient) for file in found.files()} == {
        ("train", "positive", "patient00005"),
        ("train", "negative", "patient00006"),
        ("validation", "positive", "patient00005"),
        ("validation", "negative", "patient00006"),
    }


def test_studies_in_the_folders_of_several_body_parts_are_a_question(root: Path):
    found = only(mura(root, "XR_WRIST", "XR_ELBOW"))

    assert (found.classes, found.answer) == (("negative", "positive"), "studies")
    assert {option.value: set(option.counts) for option in options(found)} == {
        "studies": {f"{split} / {name}" for split in ("train", "validation") for name in ("negative", "positive")},
        "folders": {f"{split} / {name}" for split in ("train", "validation") for name in ("XR_ELBOW", "XR_WRIST")},
    }
    (answered,) = find_datasets(root, {"ARM/MURA": "folders"})
    assert (answered.layout, answered.classes) == ("split-folders", ("XR_ELBOW", "XR_WRIST"))


# --- Questions


def options(found: FoundDataset) -> tuple[Option, ...]:
    assert found.question
    return found.question.options


def test_split_folders_beside_class_folders_are_a_question(root: Path):
    fill(root, *(f"d/{split}{name}/{split[:2]}1.png" for split in ("train/", "test/", "") for name in ("WELL", "ILL")))

    found = only(root)

    assert found.question and found.question.code == "splits-beside-classes"
    assert "Class folders (ILL, WELL) lie beside the split folders (test, train)" in found.question.text
    assert {option.value: option.counts for option in options(found)} == {
        "splits": {"test / ILL": 1, "test / WELL": 1, "train / ILL": 1, "train / WELL": 1},
        "classes": {"ILL": 1, "WELL": 1},
        "both": {
            "no split / ILL": 1, "no split / WELL": 1, "test / ILL": 1, "test / WELL": 1, "train / ILL": 1,
            "train / WELL": 1,
        },
    }  # fmt: skip
    assert (found.answer, len(listed(found))) == ("splits", 4)
    both, classes = (find_datasets(root, {"d": answer})[0] for answer in ("both", "classes"))
    assert Counter(file.source_split for file in both.files()) == {"train": 2, "test": 2, "": 2}
    assert (classes.name, classes.layout, len(listed(classes))) == ("d", "class-folders", 2)
    assert "train/WELL: 1 image" in reasons(classes)


def test_class_folders_that_hold_class_folders_are_a_question(root: Path):
    fill(root, "d/NORMAL/1.png", "d/PNEUMONIA/bacteria/2.png", "d/PNEUMONIA/virus/3.png")

    found = only(root)

    assert (found.name, found.answer, found.classes) == ("d", "one-level", ("NORMAL", "PNEUMONIA"))
    (two,) = find_datasets(root, {"d": "two-levels"})
    assert listed(two) == {
        "NORMAL/1.png": "NORMAL",
        "PNEUMONIA/bacteria/2.png": "PNEUMONIA bacteria",
        "PNEUMONIA/virus/3.png": "PNEUMONIA virus",
    }


FRACTURES = "image_id,hand,leg,fractured\n1.png,1,0,1\n2.png,0,1,0\n3.png,1,0,0\n4.png,1,1,1\n"


def test_several_columns_that_could_be_the_label_are_a_question(root: Path):
    fill(root, *(f"ARM/f/images/{number}.png" for number in range(1, 5)))
    (root / "ARM/f/dataset.csv").write_text(FRACTURES)

    found = only(root)

    assert found.question and found.question.code == "label-column"
    assert found.answer == found.question.suggested == "dataset.csv:fractured"
    assert [(option.label, option.counts) for option in options(found)] == [
        ("The column fractured of dataset.csv", {"fractured": 2, "not fractured": 2}),
        ("The column hand of dataset.csv", {"hand": 3, "not hand": 1}),
        ("The column leg of dataset.csv", {"leg": 2, "not leg": 2}),
    ]
    assert set(options(found)[0].examples) == {f"images/{number}.png" for number in range(1, 5)}
    (hands,) = find_datasets(root, {"ARM/f": "dataset.csv:hand"})
    assert (hands.name, hands.classes, hands.positive_class) == ("ARM/f", ("hand", "not hand"), "hand")


def test_a_column_that_the_class_folders_name_leaves_nothing_to_ask(root: Path):
    fill(root, *(f"f/images/Fractured/{number}.png" for number in (1, 4)))
    fill(root, *(f"f/images/Non_fractured/{number}.png" for number in (2, 3)))
    (root / "f/dataset.csv").write_text(FRACTURES)

    found = only(root)

    assert (found.question, found.answer, found.problems) == (None, "", ())


def test_several_csv_files_that_sort_the_images_are_a_question(root: Path):
    fill(root, "d/images/1.png", "d/images/2.png")
    (root / "d/a.csv").write_text("file,label\n1,well\n2,ill\n")
    (root / "d/b.csv").write_text("file,grade\n1,0\n2,3\n")

    found = only(root)

    assert [option.value for option in options(found)] == ["a.csv:label", "b.csv:grade"]
    assert listed(find_datasets(root, {"d": "b.csv:grade"})[0]) == {"images/1.png": "0", "images/2.png": "3"}


def test_folders_and_a_csv_file_that_name_different_classes_are_a_question(root: Path):
    fill(root, *(f"d/{name}/{name}{number}.png" for name in ("A", "B") for number in range(5)))
    rows = "".join(f"{name}{number},{'well' if number else 'ill'}\n" for name in "AB" for number in range(5))
    (root / "d/labels.csv").write_text("file,diagnosis\n" + rows)

    found = only(root)

    assert found.question and "labels.csv name different classes for 100% of the images" in found.question.text
    assert [(option.value, option.counts) for option in options(found)] == [
        ("folder", {"A": 5, "B": 5}),
        ("csv", {"ill": 2, "well": 8}),
    ]
    assert Counter(listed(found).values()) == {"A": 5, "B": 5}
    assert Counter(listed(find_datasets(root, {"d": "csv"})[0]).values()) == {"ill": 2, "well": 8}


def half_disagree(root: Path, images: int) -> None:
    """Every second image of the folder A is one of B in the CSV file."""
    fill(root, *(f"d/{name}/{name}{number:04}.png" for name in "AB" for number in range(images)))
    rows = "".join(f"A{number:04},{'AB'[number % 2]}\nB{number:04},B\n" for number in range(images))
    (root / "d/labels.csv").write_text("file,label\n" + rows)


@pytest.mark.parametrize(
    ("answer", "outcome"), [("folder", "the folder's class is used"), ("csv", "the row's class is used")]
)
def test_when_folders_and_rows_often_disagree_each_answer_lists_row_by_row_where(root: Path, answer, outcome):
    half_disagree(root, 10)

    (found,) = find_datasets(root, {"d": answer})

    assert (found.answer, len(listed(found))) == (answer, 20)
    assert [(problem.path, problem.reason) for problem in found.problems] == [
        (f"A/A{number:04}.png", f"The folder says A, row {2 * number + 2} says B; {outcome}.")
        for number in range(1, 10, 2)
    ]


def test_the_rows_that_disagree_are_listed_before_the_question_is_answered_too(root: Path):
    half_disagree(root, 10)

    assert codes(only(root)) == {"label-overruled": 5}


def test_of_thousands_of_rows_that_disagree_the_first_are_listed_and_all_are_counted(root: Path):
    half_disagree(root, 1400)

    (found,) = find_datasets(root, {"d": "folder"})

    assert codes(found) == {"label-overruled": 500, "more": 1}
    assert "200 more of these" in reasons(found)


def test_rows_that_contradict_each_other_leave_nothing_out_where_the_folders_count(root: Path):
    half_disagree(root, 10)
    with (root / "d/labels.csv").open("a") as file:
        file.write("A0000,B\n")

    (found,) = find_datasets(root, {"d": "folder"})

    assert listed(found)["A/A0000.png"] == "A"


# --- Drawings beside the images


def drawn(root: Path, *names: str) -> FoundDataset:
    return only(fill(root, "d/ILL/x 1.png", "d/ILL/y.jpg", "d/WELL/z.png", *names))


@pytest.mark.parametrize(
    "name",
    ["x 1_mask.png", "x 1_mask_2.png", "x 1-Segmentation.png", "x 1.label.png", "mask_x 1.png", "y_annotation.png"],
)
def test_a_drawing_that_lies_beside_its_image_is_asked_about_and_left_out_until_then(root: Path, name):
    found = drawn(root, f"d/ILL/{name}")

    assert found.question and found.question.code == "drawings"
    assert f"Some files, such as {name}, are named like drawings on the image beside them." in found.question.text
    assert [(option.value, option.counts) for option in options(found)] == [
        ("pictures", {"ILL": 2, "WELL": 1}),
        ("drawings", {"ILL": 3, "WELL": 1}),
    ]
    assert set(listed(found)) == {"ILL/x 1.png", "ILL/y.jpg", "WELL/z.png"}
    assert found.file_count == 3
    assert f"without files such as {name}, which are named like drawings" in found.because
    assert reasons(found) == (
        "ILL: 1 image named like drawings on the image beside them by the answer to the question, left out."
    )
    (answered,) = find_datasets(root, {"d": "drawings"})
    assert (len(listed(answered)), answered.problems) == (4, ())


def test_where_one_drawing_lies_beside_its_image_all_names_like_it_are_drawings(root: Path):
    found = drawn(root, "d/ILL/x 1_mask.png", "d/WELL/gone_mask.png", "d/MASKS ALONE/y_mask.png")

    assert set(listed(found)) == {"ILL/x 1.png", "ILL/y.jpg", "WELL/z.png"}
    assert codes(found) == {"drawings": 2, "outside-classes": 1}


def test_names_like_those_of_drawings_without_an_image_beside_them_are_images(root: Path):
    found = drawn(root, "d/ILL/left_label.png", "d/WELL/mask.png", "d/WELL/unmasked.png")

    assert (found.question, len(listed(found))) == (None, 6)


def test_drawings_that_no_row_of_a_csv_file_names_are_nothing_to_ask(root: Path):
    fill(root, "d/images/1.png", "d/images/1_mask.png", "d/images/2.png")
    (root / "d/labels.csv").write_text("file,label\n1.png,ill\n2.png,well\n")

    found = only(root)

    assert found.question is None
    assert listed(found) == {"images/1.png": "ill", "images/2.png": "well"}
    assert reasons(found) == "images: 1 image named like drawings on the image beside them, left out."


def test_an_answer_that_no_longer_fits_is_ignored_and_the_question_asked_again(root: Path):
    fill(root, "d/NORMAL/1.png", "d/SICK/mild/2.png", "d/SICK/severe/3.png")

    (found,) = find_datasets(root, {"d": "csv", "gone": "both"})

    assert found.question and found.answer == found.question.suggested == "one-level"


def test_two_things_that_are_not_clear_are_asked_together(root: Path):
    fill(root, *(f"d/{split}/{name}/{kind}/1.png" for split in ("train", "test") for name in "AB" for kind in KINDS))
    fill(root, *(f"d/{name}/{kind}/1.png" for name in "AB" for kind in KINDS))

    found = only(root)

    assert found.answer == "splits+images"
    assert {option.value for option in options(found)} == {
        f"{one}+{other}" for one in ("splits", "classes", "both") for other in ("images", "images,masks")
    }


KINDS = ("images", "masks")


@pytest.mark.parametrize(("names", "unnamed"), [("01234", True), ("01", True), (("KL0", "KL1", "KL2"), False)])
def test_classes_that_are_bare_numbers_want_display_names(root: Path, names, unnamed):
    assert only(fill(root, *(f"KNEE/d/{name}/1.png" for name in names))).unnamed_grades == unnamed


# --- One walk


def test_a_surveyed_tree_answers_everything_without_another_walk(root: Path, monkeypatch: pytest.MonkeyPatch):
    fill(root, "CHEST/d/A/1.png", "CHEST/d/B/2.png", "ARM/loose.png")
    tree = survey(root)
    monkeypatch.setattr(os, "scandir", lambda path: pytest.fail(f"{path} was listed again"))

    found = find_in(tree)

    assert [dataset.file_count for dataset in found] == [2]
    assert [problem.path for problem in problems_in(tree, found)] == ["ARM"]


def test_the_folders_of_a_dataset_come_in_natural_order_with_their_files(root: Path):
    found = only(fill(root, "d/ILL/patient10/1.png", "d/ILL/patient2/2.png", "d/ILL/3.png", "d/WELL/4.png"))

    assert [(folder.relative, folder.class_name, folder.patient, folder.count) for folder in found.folders()] == [
        ("ILL", "ILL", None, 1),
        ("ILL/patient2", "ILL", "patient2", 1),
        ("ILL/patient10", "ILL", "patient10", 1),
        ("WELL", "WELL", None, 1),
    ]
    assert [file.relative for folder in found.folders() for file in folder.entries()] == list(listed(found))


def test_a_candidate_brings_size_and_time_and_a_pipe_has_none(root: Path):
    path = fill(root, "d/A/1.png", "d/B/2.png") / "d/A/1.png"
    os.mkfifo(root / "d/A/pipe.png")

    files = {file.relative: (file.size, file.mtime_ns) for file in only(root).files()}

    assert files["A/1.png"] == (len(JPEG), path.stat().st_mtime_ns)
    assert files["A/pipe.png"] == (-1, -1)


def test_the_survey_tells_how_far_it_is_and_can_be_ended(root: Path):
    folder = root / "d/A"
    folder.mkdir(parents=True)
    for number in range(4100):
        (folder / f"{number}.png").touch()
    told: list[int] = []

    assert survey(root, told.append).total == 4100
    assert told == [2000, 4000]
    with pytest.raises(KeyboardInterrupt):
        survey(root, lambda files: (_ for _ in ()).throw(KeyboardInterrupt))


def test_other_labels_in_a_csv_file_are_another_signature(root: Path):
    fill(root, "d/images/1.png", "d/images/2.png")
    (root / "d/labels.csv").write_text("file,label\n1,well\n2,ill\n")
    before = only(root)
    (root / "d/labels.csv").write_text("file,label\n1,ill\n2,well\n")
    after = only(root)

    assert [folder.signature for folder in before.folders()] == [folder.signature for folder in after.folders()]
    assert before.signature != after.signature
    assert before.table_digest != after.table_digest


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
    assert [dataset.name for dataset in found.values() if dataset.question] == []
    assert [dataset.name for dataset in found.values() if dataset.unnamed_grades] == ["KNEE/Osteoarthritis Knee X-ray"]
    assert folder_problems(root, list(found.values())) == []
    assert Counter(file.class_name for file in found["CHEST/chest_xray Pneumonia"].files()) == {
        "NORMAL": 1341,
        "PNEUMONIA": 1300,
    }
