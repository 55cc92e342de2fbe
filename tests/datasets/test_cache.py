"""The pixel cache: resumed after whatever ended it, opened without reading it, named by its content."""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import cache
from datasets.cache import SPLITS, CacheError, PixelStore, is_usable, open_cache, pixels_key, write_rows

IMAGES = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
DIGESTS = ["aa" * 32, "bb" * 32, "cc" * 32, "dd" * 32]
PIPELINE = {"id": "grey-pad", "version": 1}


def write_row(store: PixelStore, row: int, image: np.ndarray) -> None:
    """As the decoders write it."""
    pixels = image.tobytes()
    for path, content in ((store.images, pixels), (store.hashes, sha256(pixels).digest())):
        with path.open("r+b") as file:
            file.seek(store.offset + row * len(content))
            file.write(content)


def store_of(folder: Path, images: np.ndarray = IMAGES, rows: Any = None) -> PixelStore:
    """A store with these rows (all) written."""
    store = PixelStore(folder / "pixels-1-a", len(images), 8)
    store.open()
    for row in range(len(images)) if rows is None else rows:
        write_row(store, row, images[row])
    return store


def write(root: Path, images: np.ndarray = IMAGES, **changes: Any) -> str:
    """A finished preparation in root/preparation-1, and its digest."""
    store = store_of(root, images)
    store.finish()
    options: dict[str, Any] = {
        "labels": [0, 1, 0, 1],
        "splits": ["train", "train", "validation", "test"],
        "groups": [0, 0, 1, 2],
        "digests": DIGESTS,
        "classes": ["NORMAL", "PNEUMONIA"],
        "positive_class": "PNEUMONIA",
        "pipeline": PIPELINE,
    }
    return write_rows(root / "preparation-1", store, **options | changes)


def test_what_was_written_is_read_back(tmp_path: Path):
    digest = write(tmp_path)

    data = open_cache(tmp_path / "preparation-1")

    np.testing.assert_array_equal(data.images, IMAGES)
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert [SPLITS[number] for number in data.splits] == ["train", "train", "validation", "test"]
    assert data.groups.tolist() == [0, 0, 1, 2]
    assert (data.classes, data.positive_class) == (("NORMAL", "PNEUMONIA"), "PNEUMONIA")
    assert (data.image_size, data.pipeline["id"], data.digest) == (8, "grey-pad", digest)


def test_the_rows_of_a_split_are_found(tmp_path: Path):
    write(tmp_path)

    assert open_cache(tmp_path / "preparation-1").indices("train").tolist() == [0, 1]


def test_the_pixels_are_mapped_and_cannot_be_written(tmp_path: Path):
    write(tmp_path)

    data = open_cache(tmp_path / "preparation-1")

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
        {"digests": ["ee" * 32] * 4},
        {"classes": ["A", "B"]},
        {"positive_class": "NORMAL"},
        {"ordinal": True},
        {"pipeline": {"id": "grey-pad", "version": 2}},
    ],
)
def test_every_change_of_content_changes_the_digest(tmp_path: Path, change):
    assert write(tmp_path / "one") != write(tmp_path / "two", **change)


def test_the_name_of_pixels_tells_images_order_size_and_pipeline_apart():
    key = pixels_key(DIGESTS, 224, PIPELINE)
    assert key == pixels_key(list(DIGESTS), 224, dict(PIPELINE))
    others = [
        pixels_key(DIGESTS[::-1], 224, PIPELINE),
        pixels_key(DIGESTS, 128, PIPELINE),
        pixels_key(DIGESTS, 224, PIPELINE | {"fit": "stretch"}),
    ]
    assert len({key, *others}) == 4


def test_whether_the_classes_are_grades_is_stored(tmp_path: Path):
    write(tmp_path / "grades", ordinal=True)
    write(tmp_path / "names")

    assert open_cache(tmp_path / "grades" / "preparation-1").ordinal
    assert not open_cache(tmp_path / "names" / "preparation-1").ordinal


# -- Going on after an interruption


def test_nothing_has_its_name_before_every_row_is_written(tmp_path: Path):
    store = store_of(tmp_path, rows=[0, 2])

    with pytest.raises(CacheError, match="2 of 4 images are missing"):
        store.finish()
    assert not store.folder.exists()


def test_the_next_attempt_asks_only_for_the_rows_that_are_missing(tmp_path: Path):
    store_of(tmp_path, rows=[0, 2])

    again = PixelStore(tmp_path / "pixels-1-a", 4, 8)

    assert again.open().tolist() == [1, 3]


def test_a_row_whose_pixels_a_power_cut_lost_is_written_again(tmp_path: Path):
    store = store_of(tmp_path)
    with store.images.open("r+b") as file:
        file.seek(store.offset + 2 * 64)
        file.write(bytes(64))

    again = PixelStore(tmp_path / "pixels-1-a", 4, 8)

    assert again.open().tolist() == [2]
    write_row(again, 2, IMAGES[2])
    again.finish()
    assert np.array_equal(np.load(again.images), IMAGES)


def test_a_cut_or_foreign_file_is_started_anew(tmp_path: Path):
    store = store_of(tmp_path)
    os.truncate(store.images, 200)

    assert PixelStore(tmp_path / "pixels-1-a", 4, 8).open().tolist() == [0, 1, 2, 3]
    assert PixelStore(tmp_path / "pixels-1-a", 5, 8).open().tolist() == [0, 1, 2, 3, 4]


def test_finished_pixels_are_used_again(tmp_path: Path):
    store = store_of(tmp_path)
    store.finish()

    again = PixelStore(tmp_path / "pixels-1-a", 4, 8)

    assert again.is_complete and again.open().tolist() == [] and again.bytes_needed() == 0
    assert again.digest() == store.digest()


@pytest.mark.parametrize("damage", ["bits", "cut"])
def test_finished_pixels_that_the_disk_damaged_are_decoded_again(tmp_path: Path, damage):
    store = store_of(tmp_path)
    store.finish()
    if damage == "cut":
        os.truncate(store.images, 300)
    else:
        with store.images.open("r+b") as file:
            file.seek(store.offset + 64)
            file.write(bytes(64))

    again = PixelStore(tmp_path / "pixels-1-a", 4, 8)

    missing = again.open().tolist()
    assert missing == ([1] if damage == "bits" else [0, 1, 2, 3])
    for row in missing:
        write_row(again, row, IMAGES[row])
    again.finish()
    assert np.array_equal(np.load(again.images), IMAGES)


def damage(store: PixelStore, row: int) -> None:
    with store.images.open("r+b") as file:
        file.seek(store.offset + row * 64)
        file.write(bytes([255]) * 64)


def test_damaged_pixels_stay_for_those_who_use_them_until_others_are_whole(tmp_path: Path):
    write(tmp_path)
    damage(PixelStore(tmp_path / "pixels-1-a", 4, 8), 1)
    again = PixelStore(tmp_path / "pixels-1-a", 4, 8)

    assert again.open().tolist() == [1]
    assert is_usable(tmp_path / "preparation-1")
    assert np.array_equal(open_cache(tmp_path / "preparation-1").images[2], IMAGES[2])
    assert again.images == tmp_path / "pixels-1-a.part" / "images.npy"

    write_row(again, 1, IMAGES[1])
    again.finish()
    assert np.array_equal(open_cache(tmp_path / "preparation-1").images, IMAGES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pixels-1-a", "preparation-1"]


def test_the_repair_of_damaged_pixels_goes_on_where_it_was_interrupted(tmp_path: Path):
    store = store_of(tmp_path)
    store.finish()
    damage(store, 1)
    damage(store, 3)
    first = PixelStore(tmp_path / "pixels-1-a", 4, 8)
    assert first.open().tolist() == [1, 3]
    write_row(first, 3, IMAGES[3])

    assert PixelStore(tmp_path / "pixels-1-a", 4, 8).open().tolist() == [1]


def test_the_space_is_asked_for_before_anything_is_written(tmp_path: Path):
    def refuse(size: int) -> None:
        raise CacheError(f"{size} bytes")

    with pytest.raises(CacheError, match=f"^{4 * (64 + 32)} bytes"):
        PixelStore(tmp_path / "pixels-1-a", 4, 8).open(require=refuse)
    assert not list(tmp_path.iterdir())

    store = store_of(tmp_path)
    store.finish()
    PixelStore(tmp_path / "pixels-1-a", 4, 8).open(require=refuse)
    damage(store, 1)
    with pytest.raises(CacheError, match="bytes"):
        PixelStore(tmp_path / "pixels-1-a", 4, 8).open(require=refuse)
    assert store.is_complete


def test_what_is_written_becomes_permanent_a_part_at_a_time(tmp_path: Path, monkeypatch):
    synced = []
    monkeypatch.setattr(cache, "_sync", synced.append)
    monkeypatch.setattr(cache, "SYNC_BYTES", 2 * (64 + 32))
    store = store_of(tmp_path)

    for _ in range(5):
        store.wrote()

    assert synced == [store.part] * 2


def test_taking_over_rows_tells_how_far_it_is_and_a_full_disk_is_an_error(tmp_path: Path, monkeypatch):
    other = store_of(tmp_path / "other")
    other.finish()
    store = PixelStore(tmp_path / "pixels-1-b", 4, 8)
    store.open()
    monkeypatch.setattr(cache, "_CHUNK", 2)
    looked_at = []

    store.copy_from(other, [(row, row) for row in range(4)], looked_at.append)

    assert looked_at == [0, 2]
    assert store.unwritten().tolist() == []
    monkeypatch.setattr(os, "pwrite", lambda *args: 3)
    with pytest.raises(OSError, match="No space left"):
        store.copy_from(other, [(0, 0)])


def test_rows_decoded_for_another_preparation_are_taken_over_if_they_are_whole(tmp_path: Path):
    other = store_of(tmp_path / "other")
    other.finish()
    with other.images.open("r+b") as file:
        file.seek(other.offset + 64)
        file.write(bytes(64))
    store = PixelStore(tmp_path / "pixels-1-b", 3, 8)
    store.open()

    store.copy_from(other, [(0, 3), (2, 1)])

    assert store.open().tolist() == [1, 2], "row 1 of the other store is damaged"
    assert np.array_equal(np.load(store.images)[0], IMAGES[3])


def test_the_space_still_needed_shrinks_with_what_is_written(tmp_path: Path):
    big = PixelStore(tmp_path / "pixels-1-c", 100, 64)
    assert big.bytes_needed() == 100 * (64 * 64 + 32)
    big.open()
    random = np.random.default_rng(0)
    for row in range(50):
        write_row(big, row, random.integers(0, 256, (64, 64), np.uint8))
    os.sync()
    assert big.bytes_needed() < 60 * (64 * 64 + 32)


# -- Rows


def test_rows_of_another_number_than_the_pixels_are_refused(tmp_path: Path):
    with pytest.raises(CacheError, match="4 images but 3 labels"):
        write(tmp_path, labels=[0, 1, 0])
    assert not (tmp_path / "preparation-1").exists()


def test_a_leftover_cache_is_replaced(tmp_path: Path):
    (tmp_path / "preparation-1").mkdir()
    (tmp_path / "preparation-1" / "cache.json").write_text("old")
    write(tmp_path)

    np.testing.assert_array_equal(open_cache(tmp_path / "preparation-1").images, IMAGES)


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failure_in_the_middle_leaves_no_rows_and_the_next_try_succeeds(tmp_path: Path, failure, monkeypatch):
    def failing(*args: Any, **rows: Any) -> None:
        raise failure("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", failing)
        with pytest.raises(failure, match="disk full"):
            write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pixels-1-a"]

    write(tmp_path)
    np.testing.assert_array_equal(open_cache(tmp_path / "preparation-1").images, IMAGES)


def test_a_missing_cache_says_what_to_do(tmp_path: Path):
    with pytest.raises(CacheError, match="prepare the dataset again") as refusal:
        open_cache(tmp_path / "gone")
    assert "No such file" in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize("name", ["pixels-1-a/images.npy", "preparation-1/rows.npz", "preparation-1/cache.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_a_damaged_cache_says_what_to_do(tmp_path: Path, name, damage):
    write(tmp_path)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20] if damage == "cut" else b"garbage")

    with pytest.raises(CacheError, match="prepare the dataset again"):
        open_cache(tmp_path / "preparation-1")


@pytest.mark.parametrize("changed", [{"format": 1}, {"format": 3}, {"pixels": "../../etc"}, {"pixels": None}])
def test_a_cache_of_another_format_is_not_guessed_at(tmp_path: Path, changed):
    write(tmp_path)
    path = tmp_path / "preparation-1" / "cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    with pytest.raises(CacheError, match="unknown format"):
        open_cache(tmp_path / "preparation-1")


def test_whether_a_cache_can_be_used_is_seen_without_reading_its_pixels(tmp_path: Path):
    folder, pixels = tmp_path / "preparation-1", tmp_path / "pixels-1-a"
    assert not is_usable(folder)
    write(tmp_path)
    assert is_usable(folder)
    pixels.rename(tmp_path / "elsewhere")
    assert not is_usable(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "pixels": "../pixels-1-a"}'])
def test_a_cache_of_an_earlier_release_cannot_be_used(tmp_path: Path, content):
    write(tmp_path)
    (tmp_path / "preparation-1" / "cache.json").write_text(content)

    assert not is_usable(tmp_path / "preparation-1")


def test_a_cache_with_rows_missing_is_refused(tmp_path: Path):
    write(tmp_path / "whole")
    two = {"labels": [0, 1], "splits": ["train"] * 2, "groups": [0, 1], "digests": DIGESTS[:2]}
    write(tmp_path / "part", IMAGES[:2], **two)
    rows = "preparation-1/rows.npz"
    (tmp_path / "part" / rows).replace(tmp_path / "whole" / rows)

    with pytest.raises(CacheError, match="incomplete"):
        open_cache(tmp_path / "whole" / "preparation-1")


def test_nothing_in_the_cache_is_a_pickle(tmp_path: Path):
    write(tmp_path)

    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["cache.json", "hashes.npy", "images.npy", "rows.npz"]
    with np.load(tmp_path / "preparation-1" / "rows.npz", allow_pickle=False) as rows:
        assert {rows[name].dtype.kind for name in rows.files} <= {"i", "u"}
