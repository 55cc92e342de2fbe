"""What changed between two versions of a dataset."""

import json
import random

import pytest

from datasets.manifests import KINDS, Change, compare

OLD = [("N/a.png", "d1", "N"), ("N/b.png", "d2", "N"), ("P/c.png", "d3", "P"), ("P/d.png", "d4", "P")]


def kinds(old, new) -> dict[str, int]:
    return {kind: count for kind, count in compare(old, new).counts.items() if count}


def test_a_version_is_the_same_as_itself():
    found = compare(OLD, reversed(OLD))

    assert found.same
    assert found.counts == dict.fromkeys(KINDS, 0) | {"unchanged": 4}


def test_added_and_removed_images_are_listed():
    found = compare(OLD, [*OLD[1:], ("P/e.png", "d5", "P")])

    assert not found.same
    assert found.listed["added"] == [Change("", "P/e.png", "", "P")]
    assert found.listed["removed"] == [Change("N/a.png", "", "N", "")]
    assert found.counts["unchanged"] == 3


def test_other_pixels_at_the_same_path_are_a_change():
    assert kinds(OLD, [("N/a.png", "new", "N"), *OLD[1:]]) == {"changed": 1, "unchanged": 3}


def test_another_label_at_the_same_path_is_a_relabelling():
    found = compare(OLD, [("N/a.png", "d1", "P"), *OLD[1:]])

    assert found.listed["relabelled"] == [Change("N/a.png", "N/a.png", "N", "P")]
    assert found.classes["N"]["relabelled"] == found.classes["P"]["relabelled"] == 1


def test_an_image_moved_to_another_class_folder_is_a_relabelling():
    found = compare(OLD, [("P/a.png", "d1", "P"), *OLD[1:]])

    assert found.listed["relabelled"] == [Change("N/a.png", "P/a.png", "N", "P")]
    assert (found.counts["added"], found.counts["removed"]) == (0, 0)


def test_a_class_with_another_name_is_renamed_and_its_images_are_not_relabelled():
    new = [("N/a.png", "d1", "Healthy"), ("N/b.png", "d2", "Healthy"), *OLD[2:]]

    found = compare(OLD, new, renamed={"N": "Healthy", "P": "P"})

    assert not found.same
    assert found.renamed == {"N": "Healthy"}
    assert found.counts == dict.fromkeys(KINDS, 0) | {"renamed": 2, "unchanged": 2}
    assert not any(found.listed.values())


def test_beside_a_renamed_class_other_changes_are_told_as_ever_with_the_names_of_their_time():
    new = [("N/new/a.png", "d1", "Healthy"), ("N/c.png", "d3", "Healthy"), ("P/d.png", "other", "P")]

    found = compare(OLD, new, renamed={"N": "Healthy"})

    assert found.listed["moved"] == [Change("N/a.png", "N/new/a.png", "N", "Healthy")]
    assert found.listed["relabelled"] == [Change("P/c.png", "N/c.png", "P", "Healthy")]
    assert found.listed["removed"] == [Change("N/b.png", "", "N", "")]
    assert found.listed["changed"] == [Change("P/d.png", "P/d.png", "P", "P")]


def test_where_two_classes_change_their_names_an_image_that_keeps_its_label_is_relabelled():
    new = [("N/a.png", "d1", "P"), ("N/b.png", "d2", "N"), ("P/c.png", "d3", "N"), ("P/d.png", "d4", "N")]

    counts = compare(OLD, new, renamed={"N": "P", "P": "N"}).counts

    assert (counts["renamed"], counts["relabelled"]) == (3, 1)


def test_the_same_pixels_at_another_path_are_a_move():
    found = compare(OLD, [("N/old/renamed.png", "d1", "N"), *OLD[1:]])

    assert found.listed["moved"] == [Change("N/a.png", "N/old/renamed.png", "N", "N")]


def test_of_several_copies_each_is_paired_with_the_one_most_like_it():
    old = [("N/a.png", "d", "N"), ("N/b.png", "d", "N"), ("P/c.png", "d", "P")]
    new = [("new/c.png", "d", "P"), ("new/z.png", "d", "N"), ("new/b.png", "d", "N"), ("new/y.png", "d", "N")]

    found = compare(old, new)

    assert found.listed["moved"] == [
        Change("N/b.png", "new/b.png", "N", "N"),
        Change("P/c.png", "new/c.png", "P", "P"),
        Change("N/a.png", "new/y.png", "N", "N"),
    ]
    assert found.listed["added"] == [Change("", "new/z.png", "", "N")]


def test_a_copy_beside_its_picture_is_added_and_not_moved():
    assert kinds(OLD, [*OLD, ("N/a copy.png", "d1", "N")]) == {"added": 1, "unchanged": 4}


def test_counts_by_class_name_both_classes_of_a_relabelled_image_once():
    found = compare(OLD, [("N/a.png", "d1", "P"), ("N/b.png", "new", "N"), *OLD[2:]])

    assert found.classes == {
        "N": {"added": 0, "removed": 0, "relabelled": 1, "renamed": 0, "changed": 1, "moved": 0, "unchanged": 0},
        "P": {"added": 0, "removed": 0, "relabelled": 1, "renamed": 0, "changed": 0, "moved": 0, "unchanged": 2},
    }


def test_long_lists_are_cut_and_say_how_many_more_there_are():
    found = compare([], [(f"N/{number:03}.png", str(number), "N") for number in range(250)], limit=100)

    assert found.counts["added"] == 250
    assert [change.path for change in found.listed["added"]] == [f"N/{number:03}.png" for number in range(100)]
    assert found.more == {"added": 150, "removed": 0, "relabelled": 0, "changed": 0, "moved": 0}


def test_the_order_of_the_images_changes_nothing():
    generator = random.Random(3)

    def version() -> list[tuple[str, str, str]]:
        paths = generator.sample(range(80), 60)
        return [(f"{path % 3}/{path}", str(generator.randrange(30)), generator.choice("AB")) for path in paths]

    old, new = version(), version()
    found = compare(old, new)

    for _ in range(5):
        generator.shuffle(old)
        generator.shuffle(new)
        assert compare(old, new) == found


def test_every_image_of_both_versions_is_counted_once():
    generator = random.Random(4)
    old = [(f"{n}", str(generator.randrange(20)), "A") for n in generator.sample(range(60), 40)]
    new = [(f"{n}", str(generator.randrange(20)), generator.choice("AB")) for n in generator.sample(range(60), 45)]

    counts = compare(old, new).counts

    common = counts["relabelled"] + counts["changed"] + counts["moved"] + counts["unchanged"]
    assert (common + counts["removed"], common + counts["added"]) == (40, 45)
    assert min(counts["relabelled"], counts["changed"], counts["moved"]) > 0


def test_a_path_that_is_twice_in_a_version_is_an_error():
    with pytest.raises(ValueError, match="twice"):
        compare([OLD[0], OLD[0]], [])
    with pytest.raises(ValueError, match="twice"):
        compare(OLD, [OLD[0], OLD[0]])


def test_a_comparison_can_be_stored_as_json():
    found = compare(OLD, [("P/e.png", "d5", "P")])

    stored = json.loads(json.dumps(found.to_json()))

    assert stored == found.to_json()
    assert stored["listed"]["added"] == [{"old_path": "", "path": "P/e.png", "old_class": "", "class_name": "P"}]
