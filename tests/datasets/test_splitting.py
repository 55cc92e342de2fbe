"""No patient on two sides: which images belong together, and how whole groups are dealt out."""

import random
from collections import Counter, defaultdict

import pytest

from datasets.layouts import find_datasets
from datasets.patterns import PatternError
from datasets.splitting import (
    SPLITS,
    FractionError,
    GroupKeys,
    Row,
    SplitError,
    check_fractions,
    class_weights,
    group_keys,
    shared_groups,
    split,
)
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
        ("N/NORMAL-28501-0001.jpeg", "P/BACTERIA-28501-0002.jpeg"),
        ("A/0001_1297860395_01_WRI-L1_M014.png", "A/0001_1297860435_01_WRI-L2_M014.png"),
        ("A/person1_virus_2.png", "A/person1_virus_2-rotated1.png", "A/person1_virus_3.png"),
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
        ("A/normal (1).png", "A/normal (2).png", "A/normal (3).png"),
        ("A/1.2.840.10008.dcm", "A/1.2.840.10009.dcm"),
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


def grouped(*rows: tuple[str, str | None, int | None]) -> GroupKeys:
    """Keys of images given as (name, patient, cluster), all of different pixels."""
    found = [Row(name, name, patient, "csv" if patient else "", cluster) for name, patient, cluster in rows]
    return group_keys(found)


def test_near_duplicates_of_unknown_patients_are_a_group():
    found = grouped(("a.png", None, 7), ("b.png", None, 7), ("c.png", None, 8), ("d.png", None, None))

    one, other, third, fourth = found.keys
    assert one == other
    assert len({one, third, fourth}) == 3
    assert found.description == "near-duplicates: 2 images; the image itself: 2 images"
    assert not any("joined" in warning for warning in found.warnings)


def test_near_duplicates_join_what_the_file_names_keep_apart():
    found = grouped(("person1_virus_1.png", None, 1), ("x.png", None, 1), ("person1_virus_2.png", None, None))

    assert len(set(found.keys)) == 1
    assert "Near-duplicates joined 1 group to others." in found.warnings


def test_near_duplicates_of_different_known_patients_are_joined_and_reported():
    found = grouped(("a.png", "k1", 1), ("b.png", "k2", 1), ("c.png", "k3", 2), ("d.png", "k3", 2), ("e.png", "k2", 3))

    assert len(set(found.keys)) == 2
    assert found.keys[0] == found.keys[1] == found.keys[4]
    (suspicious,) = (warning for warning in found.warnings if "different known patients" in warning)
    assert suspicious.startswith("1 cluster of near-duplicates")


def test_the_number_of_a_cluster_does_not_matter():
    rows = [(f"{number}.png", None, number // 3) for number in range(12)]
    renumbered = [(name, patient, 100 - cluster) for name, patient, cluster in rows]

    assert grouped(*rows).keys == grouped(*renumbered).keys


def test_a_group_that_copies_made_very_large_is_reported():
    rows = [Row(f"person{number}_virus_1.png", str(max(number, 20))) for number in range(60)]

    assert any("The largest group has 21 of 60 images" in warning for warning in group_keys(rows).warnings)


def test_a_pattern_of_the_user_replaces_the_built_in_ones():
    rows = [Row("A/7_person1_virus_1.png", "a"), Row("B/7_person2_virus_1.png", "b"), Row("person3_virus_1.png", "c")]

    found = group_keys([*rows, Row("person3_virus_2.png", "d")], pattern=r"^(\d+)_")

    one, other, third, fourth = found.keys
    assert one == other
    assert third != fourth
    assert found.description == r"file name by ^(\d+)_: 2 images; the image itself: 2 images"


def test_the_patient_number_comes_before_the_pattern_of_the_user_too():
    rows = [Row("7_1.png", "a", "k1", "csv"), Row("7_2.png", "b", "k2", "csv")]

    found = group_keys(rows, pattern=r"^(\d+)_")

    assert len(set(found.keys)) == 2
    assert "pattern for file names was not used" in found.warnings[0]


def test_a_pattern_that_cannot_be_used_is_an_error():
    with pytest.raises(PatternError, match="not a valid regular expression"):
        group_keys([Row("a.png", "a")], pattern="(")


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


def test_a_few_patients_with_many_images_are_exchanged_until_the_shares_are_right():
    """Dealing them by size alone leaves 0.76 of the images in train."""
    sizes = [75, 71, 66, 64, 60, 57, 55, 52, 49, 44, 41, 40, 38, 33, 31, 30, 28, 26, 24, 23, 22, 21, 20, 20]
    rows = [("AB"[patient % 2], f"p{patient}") for patient, size in enumerate(sizes) for _ in range(size)]

    result = split([row[0] for row in rows], [row[1] for row in rows], [""] * len(rows), seed=1)

    assert result.deviation < 0.03
    assert not any("shares could not be kept" in warning for warning in result.warnings)


def test_with_many_classes_of_which_some_are_rare_each_keeps_its_share():
    counts = [600 // (number + 1) for number in range(20)]
    rows = [
        (f"c{number:02}", f"{number}/{image // 3}") for number, count in enumerate(counts) for image in range(count)
    ]

    result = split([row[0] for row in rows], [row[1] for row in rows], [""] * len(rows), seed=1)

    for number, count in enumerate(counts):
        shares = result.shares[f"c{number:02}"]
        assert abs(shares["test"] - 0.15) * count <= 3
        assert abs(shares["validation"] - 0.15) * count <= 3


def test_patients_with_images_of_several_classes_are_exchanged_until_all_shares_hold():
    """One by one alone, without exchanges, the mean of these deviations is 0.04."""
    generator = random.Random(0)
    sizes = [generator.randint(5, 40) for _ in range(40)]
    rows = [(generator.choice("ABCDEFGH"), f"p{patient}") for patient, size in enumerate(sizes) for _ in range(size)]
    labels, groups = [row[0] for row in rows], [row[1] for row in rows]

    deviations = [split(labels, groups, [""] * len(rows), seed=seed).deviation for seed in range(4)]

    assert sum(deviations) / 4 < 0.02


def test_the_smallest_patients_do_not_all_end_in_the_same_part():
    sizes = [1, 2, 4, 8] * 40
    rows = [("AB"[patient // 4 % 2], f"p{patient}-{size}") for patient, size in enumerate(sizes) for _ in range(size)]

    result = split([row[0] for row in rows], [row[1] for row in rows], [""] * len(rows), seed=1)

    test = {group for name, (_, group) in zip(result.splits, rows, strict=True) if name == "test"}
    assert Counter(group.rpartition("-")[2] for group in test) == {"1": 6, "2": 6, "4": 6, "8": 6}


def test_shares_that_cannot_be_kept_are_told_with_their_numbers():
    rows = [("A", "huge")] * 60 + [("A", f"a{n}") for n in range(20)] + [("B", f"b{n}") for n in range(80)]
    rows += [("A", "large")] * 40

    result = split([row[0] for row in rows], [row[1] for row in rows], [""] * len(rows), seed=1)

    assert result.deviation > 0.05
    assert result.deviation == pytest.approx(
        max(
            abs(result.shares[label][name] - share)
            for label in "AB"
            for name, share in zip(SPLITS, (0.70, 0.15, 0.15), strict=True)
        )
    )
    assert "The shares could not be kept" in result.warnings[0]
    assert "of A instead of" in result.warnings[0]


def test_a_part_with_very_few_patients_of_a_class_is_told():
    labels, groups, sources = singles(A=100, B=12)

    result = split(labels, groups, sources, seed=1)

    assert result.warnings[0].startswith(
        "Very few patients (or source pictures) in a part: validation has 2 of B; test has 2 of B."
    )


@pytest.mark.parametrize("sizes", [(30, 3, 2), (30, 30, 30), (4, 4, 4)])
def test_a_class_of_three_patients_has_one_in_each_part_whatever_their_sizes(sizes):
    rows = [("A", f"a{n}") for n in range(50)] + [("B", f"b{n}") for n, size in enumerate(sizes) for _ in range(size)]

    for seed in range(5):
        result = split([row[0] for row in rows], [row[1] for row in rows], [""] * len(rows), seed=seed)

        assert result.shares["B"]["train"] == pytest.approx(sizes[0] / sum(sizes))
        assert min(result.shares["B"].values()) > 0


def test_where_few_patients_share_all_classes_a_division_is_found_if_there_is_one():
    """Of the 59049 ways to deal these ten patients out, 84 leave no part without a class."""
    generator = random.Random(42)
    rows = []
    for label in "ABCDEFGH"[: generator.randint(3, 8)]:
        for patient in generator.sample(range(10), generator.randint(3, 6)):
            rows += [(label, f"p{patient}")] * generator.randint(3, 30)

    result = split([row[0] for row in rows], [row[1] for row in rows], [""] * len(rows), seed=42)

    assert min(share for shares in result.shares.values() for share in shares.values()) > 0


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


def test_a_test_part_that_shrank_is_told_with_its_numbers_and_every_straddling_group_with_a_row_of_each_part():
    labels, groups, sources = sourced(("train", 70), ("validation", 20), ("test", 20))
    train, validation, test = (sources.index(part) for part in SPLITS)
    groups[validation] = groups[test + 5] = groups[train]
    for number in range(3):
        groups[test + number] = groups[train + 1]

    result = split(labels, groups, sources, seed=1)

    assert result.moved == 5
    assert "Moved into train: 1 validation and 4 test images." in result.warnings[0]
    assert "shrank from 40 to 36 images, as 4 of them (10 %) were moved into train" in result.warnings[1]
    assert sorted(result.straddling) == [[train, validation, test + 5], [train + 1, test]]


def test_a_test_part_that_lost_next_to_nothing_is_not_said_to_have_shrunk():
    labels, groups, sources = sourced(("train", 70), ("validation", 20), ("test", 20))
    groups[sources.index("test")] = groups[0]

    result = split(labels, groups, sources, seed=1)

    assert result.moved == len(result.straddling) == 1
    assert not any("shrank" in warning for warning in result.warnings)


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


def test_folders_that_leave_a_part_without_a_class_are_divided_anew():
    """All patients of B but one are in test, so that validation cannot have any without emptying train."""
    rows = [("A", f"a{n}", "test" if n > 40 else "train") for n in range(60)]
    rows += [("B", f"b{n}", "test" if n else "train") for n in range(12)]

    result = split([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], seed=1)

    assert {label: min(shares.values()) > 0 for label, shares in result.shares.items()} == {"A": True, "B": True}
    assert "leave too few patients" in result.warnings[0]


def test_parts_that_came_with_the_folders_do_not_count_as_deviating():
    labels, groups, sources = sourced(("train", 50), ("validation", 25), ("test", 25))

    result = split(labels, groups, sources, seed=1)

    assert result.deviation == 0
    assert result.shares["A"] == {"train": 0.5, "validation": 0.25, "test": 0.25}


# --- What cannot be divided


@pytest.mark.parametrize(
    ("fractions", "field", "text"),
    [
        ((0.81, 0.04, 0.15), "validation", "The validation share is 4 %; it has to be between 5 % and 40 %"),
        ((0.44, 0.15, 0.41), "test", "The test share is 41 %; it has to be between 5 % and 40 %"),
        ((0.84, 0.15, float("nan")), "test", "The test share is nan %"),
        ((0.3, 0.35, 0.35), "train", "The train share is 30 %, what validation and test leave"),
        ((0.7, 0.2, 0.2), "train", "add up to 110 %"),
    ],
)
def test_fractions_out_of_bounds_are_an_error_that_names_the_field(fractions, field, text):
    with pytest.raises(FractionError, match=text) as error:
        split(*singles(A=50, B=50), seed=1, fractions=fractions)

    assert error.value.field == field


@pytest.mark.parametrize("fractions", [(0.4, 0.4, 0.2), (0.9, 0.05, 0.05), (1 - 0.4 - 0.2, 0.2, 0.4)])
def test_fractions_at_their_bounds_are_allowed(fractions):
    check_fractions(*fractions)

    found = split(*singles(A=100, B=100), seed=1, fractions=fractions)

    assert found.deviation < 0.01


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
