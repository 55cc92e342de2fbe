"""Near-duplicates are found whatever was done to them; different pictures, however alike, stay apart."""

from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from datasets import duplicates, phantoms
from datasets.duplicates import FINGERPRINT_BYTES, clusters, fingerprint
from datasets.imaging import ImageError, read

Picture = NDArray[np.uint8]
FOREARMS = Path("Dataset/ARM/forearm_fracture")
CHESTS = Path("Dataset/CHEST/chest_xray Pneumonia/train")


@cache
def clouds(seed: int, height: int = 224, width: int = 224) -> Picture:
    """A picture with structure of all sizes, bright in the middle, as a radiograph is; different for every seed."""
    noise = np.random.default_rng(seed).standard_normal((height, width))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * width) + 3
    picture = np.fft.ifft2(np.fft.fft2(noise) / frequency**1.5).real
    hill = np.hanning(height)[:, None] * np.hanning(width)
    return np.uint8(np.clip(60 + 80 * hill + 30 * picture / picture.std(), 20, 235))


def jpeg(picture: Picture, quality: int) -> Picture:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(picture: Picture, width: int, height: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((width, height)))


def turned(picture: Picture, degrees: float) -> Picture:
    """About the centre in a frame that stays, with black corners."""
    return np.asarray(Image.fromarray(picture).rotate(degrees, Image.Resampling.BICUBIC))


def matrix(*pictures: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(map(fingerprint, pictures)), np.uint8).reshape(-1, FINGERPRINT_BYTES)


def cluster_list(*pictures: NDArray[np.uint8] | NDArray[np.float32]) -> list[int]:
    return clusters(matrix(*pictures)).tolist()


# --- Copies ----------------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Picture], Picture]] = {
    "saved as a poor JPEG": lambda picture: jpeg(picture, 30),
    "made small": lambda picture: resized(picture, picture.shape[1] // 2, picture.shape[0] // 2),
    "squeezed to a square": lambda picture: resized(picture, 224, 224),
    "squeezed to a square and saved as JPEG": lambda picture: jpeg(resized(picture, 160, 160), 60),
    "darkened": lambda picture: np.uint8(picture * 0.6),
    "brightened": lambda picture: np.uint8(picture * 0.7 + 70),
    "given another gamma": lambda picture: np.uint8(255 * (picture / 255) ** 1.4),
    "padded on both sides": lambda picture: np.pad(picture, ((0, 0), (40, 40))),
    "padded on one side": lambda picture: np.pad(picture, ((0, 0), (0, 60))),
    "padded all round and made small": lambda picture: resized(np.pad(picture, 50), 256, 256),
    "cropped by 1 % on each side": lambda picture: picture[3:-3, 3:-3],
    "mirrored": lambda picture: picture[:, ::-1],
    "turned a little": lambda picture: turned(picture, 7),
    "turned much": lambda picture: turned(picture, -146.5),
    "turned three times": lambda picture: turned(turned(turned(picture, 20), -31), 77),
    "turned by a right angle": np.rot90,
    "turned and mirrored": lambda picture: turned(picture, 33)[:, ::-1],
    "turned and saved as JPEG": lambda picture: jpeg(turned(picture, 50), 50),
}


@pytest.mark.parametrize("shape", [(224, 224), (300, 400)], ids=["square", "oblong"])
@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_copy_is_found(change: Callable[[Picture], Picture], shape: tuple[int, int]):
    pictures = [clouds(seed, *shape) for seed in range(12)]

    found = cluster_list(*pictures, change(pictures[3]))

    assert found == [*range(12), 3]


def test_copies_of_copies_are_in_one_cluster():
    picture, other = clouds(0), clouds(1)

    assert cluster_list(picture, other, turned(picture, 30), turned(turned(picture, 30), 30)[:, ::-1]) == [0, 1, 0, 0]


def test_a_float_picture_and_its_eight_bit_twin_are_near_duplicates():
    picture = clouds(0)

    assert cluster_list(picture, clouds(1), picture.astype(np.float32) / np.float32(255)) == [0, 1, 0]


def test_most_pictures_may_be_copies():
    originals = [clouds(seed) for seed in range(4)]
    pictures = [turned(picture, angle) for angle in range(0, 100, 5) for picture in originals]

    assert cluster_list(*pictures) == [0, 1, 2, 3] * 20


# --- Pictures that only look alike -----------------------------------------------------------------------------------


def test_different_pictures_stay_apart():
    assert cluster_list(*(clouds(seed) for seed in range(40))) == list(range(40))


def test_noise_of_equal_strength_is_no_likeness():
    random = np.random.default_rng(0)

    pictures = [random.integers(0, 256, (64, 64), dtype=np.uint8) for _ in range(20)]

    assert cluster_list(*pictures) == list(range(20))


def test_pictures_drawn_after_one_plan_stay_apart(tmp_path: Path):
    """Their similarity reaches that of cropped copies, so the threshold has to rise with what is usual."""
    for root in phantoms.make_samples(tmp_path, per_class=12):
        files = [path for path in sorted(root.rglob("*")) if path.suffix in (".jpeg", ".png", ".dcm")]
        pictures = [read(path).pixels for path in files]

        assert len(files) >= 24
        assert cluster_list(*pictures) == list(range(len(pictures)))


def test_a_copy_is_found_among_pictures_drawn_after_one_plan(tmp_path: Path):
    root = phantoms.make_samples(tmp_path, per_class=12)[0]
    pictures = [read(path).pixels for path in sorted(root.rglob("*.jpeg"))]
    again = jpeg(np.uint8(pictures[5] * 255), 70)

    assert cluster_list(*pictures, again) == [*range(len(pictures)), 5]


# --- The fingerprint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (8, 3000), (3000, 8), (31, 57), (1024, 1024)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_fingerprint_has_a_fixed_length_and_is_the_same_again(shape: tuple[int, int], dtype: type):
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, shape, dtype=np.uint8) if dtype is np.uint8 else random.random(shape, np.float32)

    assert len(fingerprint(picture)) == FINGERPRINT_BYTES <= 1024
    assert fingerprint(picture) == fingerprint(picture.copy())


def test_a_transposed_view_gives_the_fingerprint_of_its_copy():
    view = clouds(0, 200, 300).T

    assert fingerprint(view) == fingerprint(np.ascontiguousarray(view))


@pytest.mark.parametrize("shape", [(0, 5), (20,), (20, 20, 3)])
def test_only_grey_pictures_have_fingerprints(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="grey picture"):
        fingerprint(np.zeros(shape, np.uint8))


def test_blank_pictures_are_like_each_other_and_like_nothing_else():
    blank = [np.full((40, 50), grey, np.uint8) for grey in (0, 90, 255)]

    assert cluster_list(blank[0], clouds(0), blank[1], blank[2], clouds(1)) == [0, 1, 0, 0, 2]


# --- The clusters ----------------------------------------------------------------------------------------------------


def test_no_rows_and_one_row():
    assert clusters(np.zeros((0, FINGERPRINT_BYTES), np.uint8)).tolist() == []
    assert cluster_list(clouds(0)) == [0]


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match=str(FINGERPRINT_BYTES)):
        clusters(np.zeros((3, 64), np.uint8))


def test_clusters_are_numbered_by_first_appearance():
    first, second, third = (clouds(seed) for seed in range(3))

    assert cluster_list(third, first, second, first, third) == [0, 1, 2, 1, 0]


def test_clusters_do_not_depend_on_the_order_of_the_rows():
    rows = matrix(*(turned(clouds(seed), angle) for seed in range(8) for angle in (0, 17, 60)))
    found = clusters(rows)
    order = np.random.default_rng(4).permutation(len(rows))

    shuffled = clusters(rows[order])

    together = found[order][:, None] == found[order]
    assert np.array_equal(shuffled[:, None] == shuffled, together)


def test_candidates_are_the_pairs_that_all_cosines_would_give(monkeypatch: pytest.MonkeyPatch):
    """Tiles and portions, here tiny, neither lose a pair nor change an answer."""
    rows = matrix(*(turned(clouds(seed), angle) for seed in range(6) for angle in (0, 17, 60, 200)))
    expected = clusters(rows)

    monkeypatch.setattr(duplicates, "ROWS", 5)
    monkeypatch.setattr(duplicates, "PAIRS", 3)

    assert np.array_equal(clusters(rows), expected)
    assert expected.tolist() == np.repeat(range(6), 4).tolist()


def test_thousands_of_copies_cost_no_comparison_of_all_with_all():
    """Twenty pictures in 3,000 files: 225,000 pairs of copies, but a cluster needs only one pair a file."""
    random = np.random.default_rng(0)
    rows = matrix(*(clouds(seed) for seed in range(20)))[np.arange(3000) % 20].copy()
    np.put_along_axis(rows, random.integers(0, FINGERPRINT_BYTES, (3000, 4)), np.uint8(0x77), axis=1)

    found = clusters(rows)

    assert np.array_equal(found, np.arange(3000) % 20)


# --- Real radiographs ------------------------------------------------------------------------------------------------


def real_matrix(files: list[Path]) -> NDArray[np.uint8]:
    assert files
    pictures = []
    for path in files:
        try:
            pictures.append(read(path).pixels)
        except ImageError:
            continue
    return matrix(*pictures)


@pytest.mark.slow
def test_turned_forearms_are_found_and_nothing_else(real_images: Path):
    """72 numbers in 564 files; the pictures 29 and 46 without fracture are one picture (their fingers and the plate
    RA95 show it), so there are 71 originals."""
    files = sorted((real_images / FOREARMS).rglob("*.jpg"))
    original = [f"{path.parent.name}/{path.name.split('-rotated')[0]}" for path in files]
    original = [name.replace("Non_fractured/46", "Non_fractured/29") for name in original]

    found = clusters(real_matrix(files)).tolist()

    assert len(set(original)) == 71
    assert len(set(found)) == 71
    assert len(set(zip(original, found, strict=True))) == 71


@pytest.mark.slow
def test_children_s_chests_are_merged_only_where_the_files_hold_equal_pictures(real_images: Path):
    files = sorted((real_images / CHESTS).rglob("*.jpeg"))

    found = clusters(real_matrix(files))

    pixels = [np.asarray(Image.open(path).convert("L")).tobytes() for path in files]
    assert len(set(found.tolist())) == len(set(pixels)) == len(set(zip(pixels, found.tolist(), strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "distinct"),
    [("Dataset/KNEE", 800), ("Dataset/CHEST/full_size_originals", 40), ("Dataset/ARM/FracAtlas", 91)],
)
def test_different_radiographs_stay_apart(real_images: Path, folder: str, distinct: int):
    files = [path for path in sorted((real_images / folder).rglob("*")) if path.suffix in (".jpg", ".jpeg")]

    found = clusters(real_matrix(files))

    assert len(found) == len(set(found.tolist())) == distinct
