"""No patient on two sides: which images belong together, and how whole groups are dealt out."""

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datasets.layouts import find_datasets
from datasets.splitting import SPLITS, Row, SplitError, class_weights, group_keys, shared_groups, split
from tests.datasets.files import NO_SHARED, SHARED


def keys_of(*names: str) -> list[str]:
    return group_keys([Row(name, str(number)) for number, name in enumerate(names)]).keys


def together(*names: str) -> bool:
    return len(set(keys_of(*names))) == 1


def shares(labels: list[str], splits: list[str]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for label, name in zip(labels, splits, strict=True):
        counted[name][label] += 1
    return {name: dict(counts) for name, counts in counted.items()}


# --- Which images belong together


@pytest.mark.parametrize(
    "names",
    [
        ("P/person123_bacteria_4.jpeg", "P/person123_bacteria_9.jpeg", "P/person123_virus_1.jpeg"),
        ("N/IM-0115-0001.jpeg", "N/IM-0115-0002.jpeg", "N/IM-0115-0001-0002.jpeg"),
        ("N/NORMAL2-IM-1427-0001.jpeg", "N/NORMAL2-IM-1427-0001-0002.jpeg"),
        ("0/9001695L.jpg", "3/9001695R.jpg"),
        ("A/97-rotated2-rotated1.jpg", "A/97-rotated1_-_Copy.jpg", "A/97.jpg", "A/97-rotated1-rotated3.jpg"),
        ("A/scan.png", "A/scan - Copy.png", "A/scan (1).png", "A/scan copy.png"),
        ("A/patient12_view1.png", "B/patient12-2.png", "B/Patient12.png"),
        ("A/P0012_left.png", "A/P0012_right.png"),
        ("A/00000013_005.png", "A/00000013_006.png"),
    ],
)
def test_these_files_are_of_one_patient(names):
    assert together(*names)


@pytest.mark.parametrize(
    "names",
    [
        ("P/person12_bacteria_4.jpeg", "P/person123_bacteria_4.jpeg"),
        ("N/IM-0115-0001.jpeg", "N/IM-0116-0001.jpeg"),
        ("N/IM-0115-0001.jpeg", "N/NORMAL2-IM-0115-0001.jpeg"),
        ("0/9001695L.jpg", "0/9001696L.jpg"),
        ("A/9-rotated1.jpg", "A/97-rotated1.jpg"),
        ("A/IMG0000013.jpg", "A/IMG0000014.jpg"),
        ("A/1.jpg", "B/1.jpg"),
        ("A/P1.png", "A/P2.png"),
        ("A/photo_1.png", "A/photo_2.png"),
    ],
)
def test_these_files_are_not(names):
    assert len(set(keys_of(*names))) == len(names)


def test_images_in_folders_of_one_patient_are_together():
    one, other, third = keys_of("A/patient7/study1/1.png", "B/study1/Patient7/9.png", "B/patient8/study1/1.png")

    assert one == other != third


def test_a_patient_folder_is_named_as_such():
    found = group_keys([Row("A/case1/a.png", "a"), Row("A/case2/b.png", "b")])

    assert (found.name, found.description) == ("folder", "patient folder: 2 images")


def test_a_folder_that_all_images_share_is_not_believed():
    rows = [Row(f"A/series1/{number}.png", str(number), "the same", "folder") for number in range(5)]

    found = group_keys(rows)

    assert found.name == "image"
    assert len(set(found.keys)) == 5


def test_where_every_dicom_file_has_the_same_number_the_patient_folders_count():
    rows = [Row(f"A/patient{number // 2}/{number}.dcm", str(number), "anonymous", "dicom") for number in range(6)]

    found = group_keys(rows)

    assert found.name == "folder"
    assert len(set(found.keys)) == 3


def test_the_patient_number_comes_before_the_file_name():
    rows = [Row("person1_virus_1.jpg", "a", "k1", "dicom"), Row("person1_virus_2.jpg", "b", "k2", "dicom")]

    found = group_keys(rows)

    assert len(set(found.keys)) == 2
    assert found.name == "dicom"
    assert found.description == "patient number of the DICOM file: 2 images"


def test_where_the_patient_is_unknown_the_next_best_key_is_used_and_said_so():
    rows = [Row("a.dcm", "1", "k1", "csv"), Row("b.dcm", "2", "k1", "csv"), Row("c.dcm", "3")]
    rows.append(Row("d.dcm", "4", "k2", "csv"))

    found = group_keys(rows)

    assert found.name == "csv"
    assert len(set(found.keys)) == 3
    assert "1 of 4 images no patient is known" in found.warnings[0]


def test_a_patient_number_that_all_images_share_is_not_believed():
    found = group_keys([Row(f"{number}.dcm", str(number), "anonymous", "dicom") for number in range(5)])

    assert found.name == "image"
    assert len(set(found.keys)) == 5
    assert "are the same" in found.warnings[0]


def test_the_description_counts_each_pattern():
    found = group_keys([Row("person1_virus_1.jpg", "a"), Row("IM-0001-0001.jpg", "b"), Row("IM-0002-0001.jpg", "c")])

    assert found.name == "file-name"
    assert found.description == "file name like IM-0115-0001: 2 images; file name like person123_bacteria_4: 1 image"


def test_equal_pixels_join_groups_even_over_several_steps():
    rows = [Row("person1_virus_1.jpg", "x"), Row("person2_virus_1.jpg", "x"), Row("person2_virus_2.jpg", "y")]
    rows += [Row("person3_virus_1.jpg", "y"), Row("person4_virus_1.jpg", "z")]

    found = group_keys(rows)

    assert len(set(found.keys[:4])) == 1
    assert found.keys[4] != found.keys[0]
    assert any("equal pixels" in warning for warning in found.warnings)


def test_the_keys_do_not_depend_on_the_order_of_the_rows():
    rows = [Row(f"person{number % 7}_virus_{number}.jpg", str(number % 11)) for number in range(40)]
    shuffled = random.Random(1).sample(rows, len(rows))

    assert dict(zip(rows, group_keys(rows).keys, strict=True)) == dict(
        zip(shuffled, group_keys(shuffled).keys, strict=True)
    )


# --- Dealing the groups out


def singles(**counts: int) -> tuple[list[str], list[str], list[str]]:
    """Labels, groups and source splits of images that are each their own group."""
    labels = [name for name, count in counts.items() for _ in range(count)]
    return labels, [f"g{number}" for number in range(len(labels))], [""] * len(labels)


def test_single_images_are_divided_70_15_15_in_every_class():
    labels, groups, sources = singles(A=200, B=40)

    result = split(labels, groups, sources, seed=1)

    assert shares(labels, result.splits) == {
        "train": {"A": 140, "B": 28},
        "validation": {"A": 30, "B": 6},
        "test": {"A": 30, "B": 6},
    }
    assert result.warnings == []


def test_the_smallest_allowed_dataset_has_every_class_in_every_part():
    labels, groups, sources = singles(A=10, B=10, C=10)

    found = shares(labels, split(labels, groups, sources, seed=1).splits)

    assert {name: set(counts) for name, counts in found.items()} == {name: {"A", "B", "C"} for name in SPLITS}


def test_other_fractions_are_possible():
    labels, groups, sources = singles(A=100, B=100)

    result = split(labels, groups, sources, seed=1, fractions=(0.5, 0.25, 0.25))

    assert Counter(result.splits) == {"train": 100, "validation": 50, "test": 50}


def test_another_seed_gives_another_division():
    labels, groups, sources = singles(A=60, B=60)

    assert split(labels, groups, sources, seed=1).splits != split(labels, groups, sources, seed=2).splits


def test_patients_with_many_images_are_not_all_put_into_train():
    labels = ["A", "B"] * 300
    groups = [f"big{number // 20}" for number in range(400)] + [f"single{number}" for number in range(200)]

    result = split(labels, groups, [""] * 600, seed=3)

    big = {name for name, group in zip(result.splits, groups, strict=True) if group.startswith("big")}
    assert big == set(SPLITS)


@st.composite
def collections(draw):
    """Datasets of two to four classes, with patients of one to eight images, some with images of several classes."""
    classes = draw(st.integers(2, 4))
    patients = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 9)), min_size=20, max_size=120))
    rows = []
    for patient, (images, label) in enumerate(patients):
        for image in range(images):
            mixed = label == 9 and image % 2
            rows.append((f"class {(label + mixed) % classes}", f"patient {patient}"))
    labels, groups = [row[0] for row in rows], [row[1] for row in rows]
    members = {name: {group for label, group in rows if label == name} for name in set(labels)}
    assume(len(members) > 1 and all(len(found) >= 6 for found in members.values()))
    assume(all(count >= 10 for count in Counter(labels).values()))
    return labels, groups


@settings(max_examples=120, deadline=None)
@given(
    data=collections(), seed=st.integers(0, 1000), sourced=st.booleans(), random_state=st.randoms(use_true_random=False)
)
def test_whatever_the_dataset_no_group_is_shared_and_every_part_has_every_class(data, seed, sourced, random_state):
    labels, groups = data
    sources = [random_state.choice([*SPLITS, ""]) if sourced else "" for _ in labels]

    result = split(labels, groups, sources, seed=seed)

    assert shared_groups(result.splits, groups) == 0
    found = shares(labels, result.splits)
    assert {name: set(counts) for name, counts in found.items()} == {name: set(labels) for name in SPLITS}


@settings(max_examples=60, deadline=None)
@given(data=collections(), seed=st.integers(0, 1000), random_state=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(data, seed, random_state):
    labels, groups = data
    order = list(range(len(labels)))
    random_state.shuffle(order)

    straight = split(labels, groups, [""] * len(labels), seed=seed).splits
    mixed = split([labels[i] for i in order], [groups[i] for i in order], [""] * len(labels), seed=seed).splits

    assert mixed == [straight[i] for i in order]


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(40, 300), min_size=2, max_size=5), size=st.integers(1, 3), seed=st.integers(0, 99))
def test_with_small_groups_the_shares_are_right_to_a_few_images(counts, size, seed):
    labels = [f"c{number}" for number, count in enumerate(counts) for _ in range(count)]
    groups = [f"{label}/{index // size}" for index, label in enumerate(labels)]

    found = shares(labels, split(labels, groups, [""] * len(labels), seed=seed).splits)

    for number, count in enumerate(counts):
        for name, share in zip(SPLITS, (0.70, 0.15, 0.15), strict=True):
            assert abs(found[name][f"c{number}"] - share * count) <= 2 * size


# --- Folders that bring their own division


def sourced(*parts: tuple[str, int]) -> tuple[list[str], list[str], list[str]]:
    """Two classes, each with so many single images in each part of the folders."""
    rows = [
        (label, f"{label}-{part}-{number}", part) for part, count in parts for label in "AB" for number in range(count)
    ]
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def test_a_division_by_folders_is_kept():
    labels, groups, sources = sourced(("train", 70), ("validation", 20), ("test", 10))

    result = split(labels, groups, sources, seed=1)

    assert result.splits == sources
    assert (result.warnings, result.moved) == ([], 0)


def test_a_patient_on_two_sides_moves_into_train_and_is_counted():
    labels, groups, sources = sourced(("train", 70), ("validation", 20), ("test", 20))
    groups[sources.index("test")] = groups[0]
    groups[sources.index("validation")] = groups[0]

    result = split(labels, groups, sources, seed=1)

    assert shared_groups(result.splits, groups) == 0
    assert result.moved == 2
    assert "1 patient" in result.warnings[0]
    assert Counter(result.splits) == {"train": 142, "validation": 39, "test": 39}


def test_a_tiny_validation_part_is_drawn_anew_and_test_is_kept():
    """The chest set of Kermany et al. comes with 16 validation images, too few to steer a training by."""
    labels, groups, sources = sourced(("train", 200), ("validation", 4), ("test", 40))

    result = split(labels, groups, sources, seed=1)

    assert [name == "test" for name in result.splits] == [name == "test" for name in sources]
    assert Counter(result.splits)["validation"] == round(408 * 0.15 / 0.85)
    assert "validation part of the folders has only 8 of 488 images" in result.warnings[0]


def test_without_a_validation_part_it_is_drawn_from_train():
    labels, groups, sources = sourced(("train", 170), ("test", 30))

    result = split(labels, groups, sources, seed=1)

    assert Counter(result.splits) == {"train": 280, "validation": 60, "test": 60}
    assert [name for name, source in zip(result.splits, sources, strict=True) if source == "test"] == ["test"] * 60


def test_with_train_only_everything_is_drawn_from_it_without_a_word():
    labels, groups, sources = sourced(("train", 100))

    result = split(labels, groups, sources, seed=1)

    assert Counter(result.splits) == {"train": 140, "validation": 30, "test": 30}
    assert result.warnings == []


def test_a_test_part_that_lacks_a_class_is_drawn_anew():
    labels, groups, sources = sourced(("train", 100), ("test", 30))
    labels = ["A" if source == "test" else label for label, source in zip(labels, sources, strict=True)]

    result = split(labels, groups, sources, seed=1)

    assert set(shares(labels, result.splits)["test"]) == {"A", "B"}
    assert any("test part of the folders lacks a class" in warning for warning in result.warnings)


def test_without_a_train_part_everything_is_drawn_anew():
    labels, groups, sources = sourced(("test", 100))

    result = split(labels, groups, sources, seed=1)

    assert Counter(result.splits) == {"train": 140, "validation": 30, "test": 30}
    assert "no training part" in result.warnings[0]


def test_when_every_test_patient_is_also_in_train_the_test_part_is_drawn_anew():
    labels, groups, sources = sourced(("train", 60), ("test", 20))
    groups = [group.replace("test", "train") for group in groups]

    result = split(labels, groups, sources, seed=1)

    assert shared_groups(result.splits, groups) == 0
    assert result.moved == 40
    assert set(result.splits) == set(SPLITS)


# --- What cannot be divided


def test_one_class_cannot_be_divided():
    with pytest.raises(SplitError, match=r"at least two classes; the dataset has one \(A\)"):
        split(*singles(A=50), seed=1)


def test_no_images_cannot_be_divided():
    with pytest.raises(SplitError, match="at least two classes"):
        split([], [], [], seed=1)


def test_fewer_than_ten_images_are_named_with_their_class_and_number():
    with pytest.raises(SplitError, match=r"at least 10 usable images: B has 9, C has 2\. Add images"):
        split(*singles(A=50, B=9, C=2), seed=1)


def test_fewer_than_three_patients_are_named_with_their_class_and_number():
    labels, groups, sources = singles(A=30, B=30)
    groups[30:] = ["p1"] * 15 + ["p2"] * 15

    with pytest.raises(SplitError, match=r"at least 3 patients .* B has 2"):
        split(labels, groups, sources, seed=1)


def test_patients_that_cannot_cover_every_part_are_an_error_and_not_an_empty_part():
    """Each class has three patients, but they overlap so that one patient would have to be in two parts."""
    patients = {"A": "123", "B": "124", "C": "134", "D": "234"}
    rows = [(label, patient) for label, found in patients.items() for patient in found for _ in range(4)]

    with pytest.raises(SplitError, match="every part has every class"):
        split([row[0] for row in rows], [row[1] for row in rows], [""] * len(rows), seed=1)


def test_shared_groups_counts_what_leaks():
    assert shared_groups(["train", "test", "train", "validation"], ["a", "a", "b", "b"]) == 2
    assert shared_groups(["train", "train", "test"], ["a", "a", "b"]) == 0


def test_class_weights_make_every_class_weigh_the_same():
    labels = ["A"] * 30 + ["B"] * 10

    weights = class_weights(labels)

    assert weights == {"A": pytest.approx(40 / 60), "B": pytest.approx(2)}
    assert sum(weights[label] for label in labels) == pytest.approx(len(labels))


@pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED)
@pytest.mark.parametrize(
    ("name", "key", "groups"),
    [
        ("CHEST/chest_xray Pneumonia", "file-name", 1734),
        ("ARM/forearm_fracture", "file-name", 69),
        ("ARM/FracAtlas", "image", 94),
        ("KNEE/Osteoarthritis Knee X-ray", "file-name", 739),
    ],
)
def test_the_real_datasets_are_divided_by_patient(name, key, groups):
    (found,) = (dataset for dataset in find_datasets(SHARED / "Dataset") if dataset.name == name)
    files = list(found.files())
    labels, sources = [file.class_name for file in files], [file.source_split for file in files]

    keys = group_keys([Row(file.relative, file.relative) for file in files])
    result = split(labels, keys.keys, sources, seed=1)

    assert keys.name == key
    assert len(set(keys.keys)) == groups
    assert shared_groups(result.splits, keys.keys) == 0
    for label, count in Counter(labels).items():
        assert shares(labels, result.splits)["test"][label] == pytest.approx(0.15 * count, abs=max(2, 0.03 * count))
