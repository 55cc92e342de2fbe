"""The pixel cache: written whole or not at all, opened without reading it, named by its content."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.cache import SPLITS, CacheError, open_cache, write_cache

IMAGES = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)


def write(folder: Path, images: Any = IMAGES, **changes: Any) -> str:
    options: dict[str, Any] = {
        "labels": [0, 1, 0, 1],
        "splits": ["train", "train", "validation", "test"],
        "groups": [0, 0, 1, 2],
        "digests": ["a" * 64, "b" * 64, "c" * 64, "d" * 64],
        "image_size": 8,
        "classes": ["NORMAL", "PNEUMONIA"],
        "positive_class": "PNEUMONIA",
        "pipeline": {"id": "grey-pad", "version": 1},
    }
    return write_cache(folder, iter(images), **options | changes)


def test_what_was_written_is_read_back(tmp_path: Path):
    digest = write(tmp_path / "cache")

    data = open_cache(tmp_path / "cache")

    np.testing.assert_array_equal(data.images, IMAGES)
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert [SPLITS[number] for number in data.splits] == ["train", "train", "validation", "test"]
    assert data.groups.tolist() == [0, 0, 1, 2]
    assert (data.classes, data.positive_class) == (("NORMAL", "PNEUMONIA"), "PNEUMONIA")
    assert (data.image_size, data.pipeline["id"], data.digest) == (8, "grey-pad", digest)


def test_the_rows_of_a_split_are_found(tmp_path: Path):
    write(tmp_path / "cache")

    assert open_cache(tmp_path / "cache").indices("train").tolist() == [0, 1]


def test_the_pixels_are_mapped_and_cannot_be_written(tmp_path: Path):
    write(tmp_path / "cache")

    data = open_cache(tmp_path / "cache")

    assert isinstance(data.images, np.memmap)
    assert not data.images.flags.writeable


def test_equal_content_has_an_equal_digest_wherever_it_lies(tmp_path: Path):
    assert write(tmp_path / "one") == write(tmp_path / "two")


@pytest.mark.parametrize(
    "change",
    [
        {"images": IMAGES[::-1]},
        {"labels": [1, 1, 0, 1]},
        {"splits": ["test", "train", "validation", "test"]},
        {"groups": [0, 1, 1, 2]},
        {"digests": ["e" * 64] * 4},
        {"classes": ["A", "B"]},
        {"positive_class": "NORMAL"},
        {"ordinal": True},
        {"pipeline": {"id": "grey-pad", "version": 2}},
    ],
)
def test_every_change_of_content_changes_the_digest(tmp_path: Path, change):
    assert write(tmp_path / "one") != write(tmp_path / "two", **change)


def test_whether_the_classes_are_grades_is_stored(tmp_path: Path):
    write(tmp_path / "grades", ordinal=True)
    write(tmp_path / "names")

    assert open_cache(tmp_path / "grades").ordinal
    assert not open_cache(tmp_path / "names").ordinal


def test_a_cache_from_before_grades_were_stored_is_read_as_one_without(tmp_path: Path):
    write(tmp_path / "cache", ordinal=True)
    path = tmp_path / "cache" / "cache.json"
    meaning = json.loads(path.read_text())
    del meaning["ordinal"]
    path.write_text(json.dumps(meaning))

    assert not open_cache(tmp_path / "cache").ordinal


def test_too_few_images_leave_no_cache_behind(tmp_path: Path):
    with pytest.raises(CacheError, match="Expected 4 images for the cache, received 3"):
        write(tmp_path / "cache", IMAGES[:3])

    assert list(tmp_path.iterdir()) == []


def test_too_many_images_leave_no_cache_behind(tmp_path: Path):
    with pytest.raises(CacheError, match="received more"):
        write(tmp_path / "cache", np.concatenate([IMAGES, IMAGES]))

    assert list(tmp_path.iterdir()) == []


def test_a_leftover_cache_is_replaced(tmp_path: Path):
    write(tmp_path / "cache", IMAGES[::-1])
    write(tmp_path / "cache")

    np.testing.assert_array_equal(open_cache(tmp_path / "cache").images, IMAGES)


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failure_in_the_middle_leaves_nothing_and_the_next_try_succeeds(tmp_path: Path, failure):
    def failing() -> Iterator[np.ndarray]:
        yield IMAGES[0]
        raise failure("disk full")

    with pytest.raises(failure, match="disk full"):
        write(tmp_path / "cache", failing())
    assert list(tmp_path.iterdir()) == []

    write(tmp_path / "cache")
    np.testing.assert_array_equal(open_cache(tmp_path / "cache").images, IMAGES)


def test_a_missing_cache_says_what_to_do(tmp_path: Path):
    with pytest.raises(CacheError, match="prepare the dataset again") as refusal:
        open_cache(tmp_path / "gone")
    assert "No such file" in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize("name", ["images.npy", "rows.npz", "cache.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_a_damaged_cache_says_what_to_do(tmp_path: Path, name, damage):
    write(tmp_path / "cache")
    path = tmp_path / "cache" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20] if damage == "cut" else b"garbage")

    with pytest.raises(CacheError, match="prepare the dataset again"):
        open_cache(tmp_path / "cache")


def test_a_cache_of_a_newer_format_is_not_guessed_at(tmp_path: Path):
    write(tmp_path / "cache")
    path = tmp_path / "cache" / "cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))

    with pytest.raises(CacheError, match="unknown format"):
        open_cache(tmp_path / "cache")


def test_a_cache_with_rows_missing_is_refused(tmp_path: Path):
    write(tmp_path / "cache")
    write(tmp_path / "other", IMAGES[:2], labels=[0, 1], splits=["train"] * 2, groups=[0, 1], digests=["a", "b"])
    (tmp_path / "other" / "rows.npz").replace(tmp_path / "cache" / "rows.npz")

    with pytest.raises(CacheError, match="incomplete"):
        open_cache(tmp_path / "cache")


def test_nothing_in_the_cache_is_a_pickle(tmp_path: Path):
    write(tmp_path / "cache")

    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["cache.json", "images.npy", "rows.npz"]
    with np.load(tmp_path / "cache" / "rows.npz", allow_pickle=False) as rows:
        assert {rows[name].dtype.kind for name in rows.files} <= {"i", "u", "U"}
