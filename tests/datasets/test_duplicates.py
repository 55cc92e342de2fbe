"""Near-duplicates are found whatever was done to them; different pictures, however alike, stay apart."""

from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from datasets import duplicates, findings, phantoms
from datasets.duplicates import FINGERPRINT_BYTES, clusters, fingerprint
from datasets.imaging import ImageError, read
from datasets.models import Dataset, Scan
from tests.datasets.files import encode, save
from tests.datasets.test_scan import scan, spy_on_reads
from xrayplatform import jobs

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
    monkeypatch.setattr(duplicates, "HELD", 7)
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


def test_fingerprints_may_lie_in_a_file(tmp_path: Path):
    rows = matrix(clouds(0), clouds(1), turned(clouds(0), 40))
    rows.tofile(tmp_path / "rows")

    assert clusters(np.memmap(tmp_path / "rows", np.uint8, "r", shape=rows.shape)).tolist() == [0, 1, 0]


def test_thresholds_do_not_depend_on_the_order_of_the_rows(real_or_drawn: NDArray[np.uint8]):
    found = duplicates.thresholds(real_or_drawn)
    order = np.random.default_rng(4).permutation(len(real_or_drawn))

    assert duplicates.thresholds(real_or_drawn[order]) == found
    assert min(found) > duplicates.THRESHOLD


@pytest.fixture
def real_or_drawn(tmp_path: Path) -> NDArray[np.uint8]:
    """More pairs of pictures drawn after one plan than are sampled."""
    root = phantoms.make_samples(tmp_path, per_class=48)[0]
    return matrix(*(read(path).pixels for path in sorted(root.rglob("*.jpeg"))))


# --- Progress --------------------------------------------------------------------------------------------------------


def test_progress_rises_to_one_in_small_steps(monkeypatch: pytest.MonkeyPatch):
    rows = matrix(*(turned(clouds(seed, 300, 200), angle) for seed in range(10) for angle in (0, 40, 80)))
    monkeypatch.setattr(duplicates, "ROWS", 4)
    told: list[float] = []

    clusters(rows, progress=told.append)

    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] == pytest.approx(1)
    assert max(np.diff(told)) < 0.1


@pytest.mark.parametrize("at", [0, 2, 4])
def test_what_progress_raises_ends_the_search(at: int):
    told: list[float] = []

    def cancel(share: float) -> None:
        told.append(share)
        if len(told) > at:
            raise jobs.JobCancelled

    with pytest.raises(jobs.JobCancelled):
        clusters(matrix(*(turned(clouds(seed, 300, 200), 10 * seed) for seed in (0, 0, 1, 1, 2))), progress=cancel)

    assert len(told) == at + 1


# --- Adding to an earlier run ----------------------------------------------------------------------------------------

LIMITS = (duplicates.THRESHOLD, duplicates.THRESHOLD)


@cache
def pool() -> NDArray[np.uint8]:
    """Rows of eight pictures, each as it is, cropped, turned, padded and changed twice over."""
    changes: list[Callable[[Picture], Picture]] = [
        lambda picture: picture,
        lambda picture: picture[4:-4, 4:-4],
        lambda picture: turned(picture, 77),
        lambda picture: np.pad(picture, ((0, 0), (30, 30))),
        lambda picture: turned(np.pad(picture, ((0, 0), (30, 30))), 50),
    ]
    return matrix(*(change(clouds(seed)) for seed in range(8) for change in changes))


@given(st.lists(st.tuples(st.integers(0, 39), st.booleans()), max_size=40))
def test_adding_rows_gives_the_clusters_of_a_run_over_everything(chosen: list[tuple[int, bool]]):
    rows = pool()[[number for number, _ in chosen]]
    fresh = np.array([is_fresh for _, is_fresh in chosen], bool)
    known = np.full(len(rows), 5)  # A number that a changed row may still bear says nothing of it.
    known[~fresh] = 10 + clusters(rows[~fresh], limits=LIMITS)

    assert np.array_equal(clusters(rows, known=known, fresh=fresh, limits=LIMITS), clusters(rows, limits=LIMITS))


def test_what_is_known_is_neither_compared_again_nor_doubted():
    rows = matrix(clouds(0), turned(clouds(0), 20), clouds(1), turned(clouds(1), 20), clouds(2))
    known = np.array([-1, -1, 7, 7, 7])

    found = clusters(rows, known=known, fresh=np.zeros(5, bool))

    assert found.tolist() == [0, 1, 2, 2, 2]


# --- In a dataset ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(settings) -> Path:
    """Twelve pictures of a dataset; of 0 there are two copies, of 1 there is one."""
    root = settings.DATASET_ROOT / "CHEST" / "lungs"
    for number in range(12):
        add(root, str(number), clouds(number, 96, 96))
    add(root, "0a", np.rot90(clouds(0, 96, 96)))
    add(root, "0b", clouds(0, 96, 96)[:, ::-1])
    add(root, "1a", np.rot90(clouds(1, 96, 96)))
    return root


def add(root: Path, name: str, picture: Picture) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        (root / label).mkdir(parents=True, exist_ok=True)
    label = "PNEUMONIA" if int(name[0]) % 2 else "NORMAL"
    save(root / label / f"{name}.png", encode(np.ascontiguousarray(picture), "PNG"))


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each search for near-duplicates took for new."""
    real, counts = duplicates.clusters, []

    def spy(fingerprints, *, fresh, **options):
        counts.append(int(fresh.sum()))
        return real(fingerprints, fresh=fresh, **options)

    monkeypatch.setattr(duplicates, "clusters", spy)
    return counts


def together(dataset: Dataset) -> set[frozenset[str]]:
    """Names of the images that share a cluster."""
    groups: dict[int, set[str]] = {}
    for path, cluster in dataset.images.values_list("path", "cluster"):
        groups.setdefault(cluster, set()).add(Path(path).stem)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


TRIPLE, PAIR = frozenset({"0", "0a", "0b"}), frozenset({"1", "1a"})


@pytest.mark.django_db
def test_every_image_bears_the_number_of_the_first_of_its_near_duplicates(folder: Path):
    scan()
    dataset = Dataset.objects.get()

    assert together(dataset) == {TRIPLE, PAIR}
    for cluster in dataset.images.values_list("cluster", flat=True):
        assert dataset.images.filter(cluster=cluster).order_by("pk").first().pk == cluster


@pytest.mark.django_db
def test_a_later_scan_compares_only_what_it_read(folder: Path, compared: list[int]):
    scan()
    add(folder, "2a", turned(clouds(2, 96, 96), 90))
    add(folder, "1", clouds(50, 96, 96))
    scan()

    assert compared == [15, 2]
    assert together(Dataset.objects.get()) == {TRIPLE, frozenset({"2", "2a"})}


@pytest.mark.django_db
@pytest.mark.parametrize(("name", "count"), [("5", 1), ("1a", 1), ("0b", 15)])
def test_all_are_compared_when_an_image_is_gone_that_may_have_joined_others(
    name: str, count: int, folder: Path, compared: list[int]
):
    scan()
    next(folder.rglob(f"{name}.png")).unlink()
    add(folder, "2a", turned(clouds(2, 96, 96), 90))
    scan()

    assert compared == [15, count]
    expected = {frozenset(group - {name}) for group in (TRIPLE, PAIR)} | {frozenset({"2", "2a"})}
    assert together(Dataset.objects.get()) == {group for group in expected if len(group) > 1}


@pytest.mark.django_db
@pytest.mark.parametrize("drift", [0.001, 0.02])
def test_all_are_compared_when_pictures_are_more_alike_than_they_were(
    drift: float, folder: Path, compared: list[int], monkeypatch: pytest.MonkeyPatch
):
    scan()
    whole, content = Dataset.objects.get().quality["near_duplicates"]["limits"]
    monkeypatch.setattr(duplicates, "thresholds", lambda rows: (whole, content + drift))
    add(folder, "2a", turned(clouds(2, 96, 96), 90))
    scan()

    assert compared == [15, 1 if drift < findings.THRESHOLD_DRIFT else 16]
    told = Dataset.objects.get().quality["near_duplicates"]["limits"]
    assert told == [whole, content if drift < findings.THRESHOLD_DRIFT else content + drift]


@pytest.mark.django_db
def test_clusters_that_were_half_stored_are_not_added_to(
    folder: Path, compared: list[int], monkeypatch: pytest.MonkeyPatch
):
    scan()
    dataset = Dataset.objects.get()
    dataset.images.update(cluster=None)
    monkeypatch.setattr(findings, "BATCH", 2)

    def cancel_between(message: str) -> None:
        if dataset.images.exclude(cluster=None).count() >= 4:
            raise jobs.JobCancelled

    with pytest.raises(jobs.JobCancelled):
        findings.refresh(dataset, cancel_between)
    left = Dataset.objects.get()
    assert 4 <= left.images.exclude(cluster=None).count() < 15
    assert "near_duplicates" not in left.quality
    findings.refresh(left)

    assert compared == [15, 15, 15]
    assert together(left) == {TRIPLE, PAIR}


@pytest.mark.django_db
def test_the_lease_is_renewed_while_near_duplicates_are_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "REPORT_EVERY_SECONDS", 0)
    real, seen = duplicates.clusters, []

    def slow(fingerprints, *, progress, **options):
        Scan.objects.update(lease_until=timezone.now())
        progress(0.4)
        job = Scan.objects.get()
        seen.append((job.lease_until > timezone.now() + jobs.LEASE / 2, job.message))
        return real(fingerprints, progress=progress, **options)

    monkeypatch.setattr(duplicates, "clusters", slow)

    assert scan().state == "succeeded"
    assert seen == [(True, "Looking for near-duplicates, 40 %")]


@pytest.mark.django_db
def test_a_scan_cancelled_while_judging_goes_on_with_the_next_one(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "REPORT_EVERY_SECONDS", 0)

        def cancelled(fingerprints, *, progress, **options):
            Scan.objects.get().request_cancel(None)
            progress(0.1)

        patched.setattr(duplicates, "clusters", cancelled)
        assert scan().state == "cancelled"
    assert Dataset.objects.get().digest == ""
    asked = spy_on_reads(monkeypatch)

    assert scan().state == "succeeded"
    assert asked == []
    assert len(Dataset.objects.get().digest) == 64
    assert together(Dataset.objects.get()) == {TRIPLE, PAIR}


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
