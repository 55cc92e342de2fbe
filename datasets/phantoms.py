"""Synthetic sample radiographs: drawn, not taken, so that the platform can be tried without any patient's image.

Three datasets in the three documented layouts and file formats. Every picture has the word SYNTHETIC burned into a
corner, in all classes alike, and says so in its metadata; every dataset folder holds SYNTHETIC.txt. The classes
differ in ways that a network has to learn (an opacity in a lung, a break in a bone, a narrow joint space), while
pose, build, exposure and noise vary for all of them.
"""

import csv
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from datasets.layouts import MARKER

Floats = NDArray[np.float32]
Point = tuple[float, float]
Painter = Callable[[np.random.Generator, np.random.Generator, int], Floats]

SIZE: Final = 256
OVERSAMPLING: Final = 2
NOTICE: Final = "SYNTHETIC phantom image, drawn by a program. Not a patient, not for diagnosis."
UID_PREFIX: Final = "2.25."
GRADES: Final = 5


def make_samples(root: Path, *, per_class: int = 80, seed: int = 0) -> list[Path]:
    """Write the three synthetic datasets below `root` and return their folders. The same seed gives the same pixels."""
    folders = [
        root / "CHEST" / "synthetic_chest_pneumonia",
        root / "ARM" / "synthetic_fracture",
        root / "KNEE" / "synthetic_osteoarthritis",
    ]
    for number, (folder, write) in enumerate(zip(folders, (_write_chest, _write_arm, _write_knee), strict=True)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(f"{NOTICE}\n", encoding="utf-8")
        write(folder, per_class, seed * len(folders) + number)
    return folders


# --- Datasets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shot:
    """One image of one invented patient. turn: the patient's place in its class, from 0."""

    patient: int
    turn: int
    view: int
    grade: int
    pixels: Floats


def _shots(paint: Painter, classes: int, per_class: int, seed: int) -> Iterator[_Shot]:
    """Images of all classes; each patient has one to four, with the same anatomy and another pose and exposure."""
    deal = np.random.default_rng(seed)
    patient = 0
    for grade in range(classes):
        left, turn = per_class, -1
        while left:
            patient, turn = patient + 1, turn + 1
            views = min(left, int(deal.integers(1, 5)))
            left -= views
            for view in range(1, views + 1):
                anatomy = np.random.default_rng([seed, patient])
                exposure = np.random.default_rng([seed, patient, view])
                yield _Shot(patient, turn, view, grade, _expose(paint(anatomy, exposure, grade), exposure))


def _write_chest(folder: Path, per_class: int, seed: int) -> None:
    for shot in _shots(_chest, 2, per_class, seed):
        # By patient, as a careful collection has it: about 70, 15 and 15 %.
        part = ("train", "val", "test", "train", "train", "train", "train")[shot.turn % 7]
        target = folder / part / ("NORMAL", "PNEUMONIA")[shot.grade]
        target.mkdir(parents=True, exist_ok=True)
        path = target / f"patient{shot.patient:04d}_{shot.view}.jpeg"
        _picture(shot.pixels).save(path, quality=90, comment=NOTICE.encode())


def _write_arm(folder: Path, per_class: int, seed: int) -> None:
    notice = PngInfo()
    notice.add_text("Comment", NOTICE)
    rows = [["image_id", "patient_id", "fractured"]]
    for number, shot in enumerate(_shots(_forearm, 2, per_class, seed), 1):
        target = folder / "images" / ("Non_fractured", "Fractured")[shot.grade]
        target.mkdir(parents=True, exist_ok=True)
        path = target / f"SYN{number:05d}.png"
        _picture(shot.pixels).save(path, pnginfo=notice)
        rows.append([path.name, f"SYN-ARM-{shot.patient:04d}", str(shot.grade)])
    with (folder / "dataset.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _write_knee(folder: Path, per_class: int, seed: int) -> None:
    for number, shot in enumerate(_shots(_knee, GRADES, per_class, seed), 1):
        target = folder / str(shot.grade)
        target.mkdir(parents=True, exist_ok=True)
        (target / f"SYN{number:05d}.dcm").write_bytes(_dicom(shot, seed))


def _picture(pixels: Floats) -> Image.Image:
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


def _dicom(shot: _Shot, seed: int) -> bytes:
    """A 12-bit digital radiograph with a window; every third patient is stored with bone dark (MONOCHROME1)."""
    inverted = shot.patient % 3 == 0
    # The window 200..3800 leaves room on both sides, as detectors do.
    stored = np.rint(200 + (1 - shot.pixels if inverted else shot.pixels) * 3600).astype("<u2")
    dataset = Dataset()
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = _uid(seed, shot.patient, shot.view)
    dataset.SeriesInstanceUID = _uid(seed, shot.patient, 0, 1)
    dataset.StudyInstanceUID = _uid(seed, shot.patient, 0)
    dataset.PatientName = "SYNTHETIC^PHANTOM"
    dataset.PatientID = f"SYN-KNEE-{shot.patient:04d}"
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.ImageComments = NOTICE
    dataset.ImageType = ["DERIVED", "PRIMARY", "SYNTHETIC"]
    dataset.Modality, dataset.BodyPartExamined = "DX", "KNEE"
    dataset.Rows = dataset.Columns = SIZE
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 2000, 3600, "LINEAR_EXACT"
    dataset.PixelData = stored.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uid(*numbers: int) -> str:
    return str(generate_uid(UID_PREFIX, entropy_srcs=["synthetic phantom", *map(str, numbers)]))


# --- Drawing ---------------------------------------------------------------------------------------------------------


class _Pen:
    """Draws layers of attenuation in coordinates 0..1 (x to the right, y down), turned and moved by a pose."""

    def __init__(self, rng: np.random.Generator, turn: float, mirror: bool = False) -> None:
        angle = np.deg2rad(rng.uniform(-turn, turn))
        scale = rng.uniform(0.92, 1.08)
        flip = np.diag([-1.0 if mirror else 1.0, 1.0])
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self.matrix = scale * rotation @ flip
        self.shift = rng.uniform(-0.03, 0.03, 2) + 0.5
        self._blank()

    def _blank(self) -> None:
        self.canvas = Image.new("L", (SIZE * OVERSAMPLING, SIZE * OVERSAMPLING))
        self.draw = ImageDraw.Draw(self.canvas)

    def _place(self, points: Sequence[Point] | NDArray[np.float64]) -> list[Point]:
        placed = (np.asarray(points) - 0.5) @ self.matrix.T + self.shift
        return [(float(x), float(y)) for x, y in placed * SIZE * OVERSAMPLING]

    def fill(self, points: Sequence[Point] | NDArray[np.float64], value: int = 255) -> None:
        self.draw.polygon(self._place(points), fill=value)

    def oval(self, center: Point, radii: Point, lean: float = 0.0, value: int = 255) -> None:
        self.fill(_oval(center, radii, lean), value)

    def line(self, points: Sequence[Point] | NDArray[np.float64], width: float, value: int = 255) -> None:
        pixels = max(1, round(width * SIZE * OVERSAMPLING))
        self.draw.line(self._place(points), fill=value, width=pixels, joint="curve")

    def layer(self, blur: float) -> Floats:
        """What was drawn since the last call, float32 0..1 (SIZE, SIZE); blur is a radius in pixels of the result."""
        shrink = OVERSAMPLING * (4 if blur >= 4 else 1)  # what is very soft needs few pixels
        soft = self.canvas.reduce(shrink).filter(ImageFilter.GaussianBlur(blur * OVERSAMPLING / shrink))
        soft = soft.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        self._blank()
        return np.asarray(soft, np.float32) / np.float32(255)


def _oval(center: Point, radii: Point, lean: float = 0.0) -> NDArray[np.float64]:
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    lean = np.deg2rad(lean)
    return np.stack(
        [center[0] + x * np.cos(lean) - y * np.sin(lean), center[1] + x * np.sin(lean) + y * np.cos(lean)], axis=1
    )


def _both_sides(half: Sequence[Point]) -> list[Point]:
    """A polygon symmetrical about the middle, from (distance to the middle, y) downwards."""
    return [(0.5 - x, y) for x, y in half] + [(0.5 + x, y) for x, y in reversed(half)]


def _clouds(rng: np.random.Generator, cells: int) -> Floats:
    """Smooth noise, float32 0..1 (SIZE, SIZE)."""
    coarse = Image.fromarray(rng.random((cells, cells), np.float32))
    return _unit(np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))


def _expose(density: Floats, rng: np.random.Generator) -> Floats:
    """Density to grey 0..1: exposure, contrast, detector noise, fall-off to the side, and the mark in the corner."""
    slope = np.linspace(-1, 1, SIZE, dtype=np.float32) * np.float32(rng.uniform(-0.05, 0.05))
    lit = density * np.float32(rng.uniform(0.85, 1.1)) + slope[None, :] + np.float32(rng.uniform(-0.03, 0.05))
    grey = np.clip(lit, 0, 1) ** np.float32(rng.uniform(0.85, 1.25))
    grain = rng.standard_normal((SIZE, SIZE), np.float32) * np.float32(rng.uniform(0.01, 0.03))
    return _unit(_stamp(grey + grain))


def _unit(values: NDArray[Any]) -> Floats:
    clipped: NDArray[Any] = np.clip(values, 0, 1)
    return clipped.astype(np.float32, copy=False)


def _stamp(grey: Floats) -> Floats:
    """The word SYNTHETIC in the lower left corner, a little lighter or darker than what is there."""
    ground = float(grey[SIZE - 18 : SIZE - 6, 6:70].mean())
    return grey + _ink() * np.float32(0.25 if ground < 0.5 else -0.25)


@functools.cache
def _ink() -> Floats:
    canvas = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(canvas).text((6, SIZE - 18), "SYNTHETIC", fill=255)
    return np.asarray(canvas, np.float32) / np.float32(255)


# --- Chest -----------------------------------------------------------------------------------------------------------


def _chest(anatomy: np.random.Generator, exposure: np.random.Generator, grade: int) -> Floats:
    """A frontal chest; grade 1 has one to three opacities in the lungs."""
    breadth, length = anatomy.uniform(0.92, 1.08), anatomy.uniform(0.92, 1.08)
    heart = anatomy.uniform(0.85, 1.2)
    ribs = anatomy.uniform(0.7, 1.2)
    pen = _Pen(exposure, turn=5)

    pen.fill(_both_sides([(0.08, -0.3), (0.14, 0.1), (0.48, 0.24), (0.52, 0.5), (0.5, 1.4)]))
    body = pen.layer(5)
    lungs = _lungs(pen, breadth, length)
    pen.oval((0.545, 0.66), (0.125 * heart, 0.15 * heart), lean=-35)
    pen.oval((0.5, 0.5), (0.055, 0.25))
    mediastinum = pen.layer(4)
    pen.oval((0.31, 0.98), (0.2, 0.14))
    pen.oval((0.7, 1.01), (0.2, 0.14))
    diaphragm = pen.layer(2.5)

    air = lungs * (1 - np.float32(0.85) * np.maximum(mediastinum, diaphragm))
    density = np.float32(0.55) * body - np.float32(0.42) * air
    density += np.float32(0.1) * mediastinum + np.float32(0.12) * diaphragm
    density += _rib_cage(pen, breadth, length) * np.float32(0.11 * ribs)
    density += _vessels(pen, anatomy) * lungs * np.float32(0.13)
    density += _clouds(anatomy, 6) * np.float32(0.05)
    if grade:
        density += _opacities(anatomy, lungs) * (1 - mediastinum)
    return density


def _lungs(pen: _Pen, breadth: float, length: float) -> Floats:
    for side in (-1, 1):
        outline = [
            (0.06, 0.14),
            (0.14, 0.13),
            (0.24, 0.28),
            (0.3, 0.5),
            (0.32, 0.76),
            (0.29, 0.86),
            (0.12, 0.8),
            (0.06, 0.74),
        ]
        pen.fill([(0.5 + side * x * breadth, 0.5 + (y - 0.48) * length) for x, y in outline])
    return pen.layer(5)


def _rib_cage(pen: _Pen, breadth: float, length: float) -> Floats:
    for side in (-1, 1):
        for number in range(9):
            top = 0.5 + (0.12 + 0.078 * number - 0.48) * length
            reach = (0.2 + 0.15 * np.sin(np.pi * (number + 2) / 13)) * breadth
            turn = np.linspace(-0.5 * np.pi, 0.45 * np.pi, 20)
            arc = np.stack([0.5 + side * reach * np.cos(turn), top + 0.1 + 0.1 * np.sin(turn) + 0.03 * np.cos(turn)], 1)
            pen.line(arc[:15], 0.022, 200)
            pen.line(arc[14:], 0.016, 90)
        pen.line([(0.5 + side * 0.04, 0.19), (0.5 + side * 0.18, 0.15), (0.5 + side * 0.34, 0.15)], 0.026, 200)
    for level in np.arange(0.0, 1.05, 0.06):
        pen.fill([(0.465, level), (0.535, level), (0.53, level + 0.045), (0.47, level + 0.045)], 150)
    return pen.layer(1.0)


def _vessels(pen: _Pen, rng: np.random.Generator) -> Floats:
    for side in (-1, 1):
        for _ in range(14):
            direction, bend = rng.uniform(-1.3, 1.4), rng.uniform(-1.5, 1.5)
            along = np.linspace(0.03, rng.uniform(0.12, 0.26), 6)
            x = 0.5 + side * (0.05 + along * np.cos(direction + bend * along))
            y = 0.47 + rng.uniform(-0.05, 0.05) + along * np.sin(direction + bend * along)
            for index in range(5):
                pen.line([(x[index], y[index]), (x[index + 1], y[index + 1])], 0.012 - 0.002 * index, 200 - 30 * index)
    return pen.layer(0.8)


def _opacities(rng: np.random.Generator, lungs: Floats) -> Floats:
    """Patchy consolidations: soft spots with clouds in them, inside the lungs only."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / np.float32(SIZE)
    total = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        x = 0.5 + rng.choice([-1, 1]) * rng.uniform(0.14, 0.24)
        y, width, height = rng.uniform(0.35, 0.72), rng.uniform(0.06, 0.13), rng.uniform(0.06, 0.13)
        distance = ((columns - np.float32(x)) / np.float32(width)) ** 2 + (
            (rows - np.float32(y)) / np.float32(height)
        ) ** 2
        total += np.exp(-distance) * np.float32(rng.uniform(0.18, 0.34))
    return total * (np.float32(0.55) + np.float32(0.6) * _clouds(rng, 14)) * lungs


# --- Forearm ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bone:
    """A long bone from top to bottom: its middle line, its half width along it, and where it is broken, if at all."""

    x: float
    bow: float
    half: float
    top: float
    bottom: float

    def outline(self, start: float, end: float, inner: float, shift: float, tilt: float) -> NDArray[np.float64]:
        """Polygon from start to end (0..1 along the bone), displaced by shift and tilt behind a break."""
        along = np.linspace(start, end, 30)
        y = self.top + (self.bottom - self.top) * along
        middle = self.x + self.bow * np.sin(np.pi * along) + shift + tilt * (along - start)
        half = inner * self.half * (1 + 1.1 * (2 * np.abs(along - 0.5)) ** 5)
        return np.concatenate([np.stack([middle - half, y], 1), np.stack([middle + half, y], 1)[::-1]])


def _forearm(anatomy: np.random.Generator, exposure: np.random.Generator, grade: int) -> Floats:
    """Radius and ulna; grade 1 has a break in one of them or in both."""
    thickness = anatomy.uniform(0.85, 1.15)
    radius = _Bone(0.41, -anatomy.uniform(0.0, 0.03), 0.034 * thickness, 0.06, 0.84)
    ulna = _Bone(0.57, anatomy.uniform(0.0, 0.02), 0.03 * thickness, 0.0, 0.8)
    flesh = anatomy.uniform(0.85, 1.15)
    pen = _Pen(exposure, turn=22, mirror=bool(anatomy.integers(2)))

    half = np.array([0.25, 0.27, 0.24, 0.19, 0.16, 0.15, 0.17]) * flesh
    y = np.linspace(-0.3, 1.3, len(half))
    pen.fill(np.concatenate([np.stack([0.49 - half, y], 1), np.stack([0.49 + half, y], 1)[::-1]]))
    density = pen.layer(4) * np.float32(0.3)
    breaks = _breaks(anatomy) if grade else (None, None)
    for bone, fracture in zip((radius, ulna), breaks, strict=True):
        density += _draw_bone(pen, bone, fracture)
    density += _wrist(pen, anatomy)
    density += _clouds(anatomy, 40) * density * np.float32(0.2)
    return density + np.float32(0.03)


def _breaks(rng: np.random.Generator) -> tuple["_Break | None", "_Break | None"]:
    which = rng.choice(3, p=[0.55, 0.25, 0.2])
    first, second = _Break.draw(rng), _Break.draw(rng)
    return (first if which != 1 else None), (second if which != 0 else None)


@dataclass(frozen=True)
class _Break:
    at: float
    shift: float
    tilt: float
    slant: float
    gap: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Break":
        sign = rng.choice([-1, 1])
        shift, tilt = sign * rng.uniform(0.008, 0.035), sign * rng.uniform(0.0, 0.2)
        return cls(rng.uniform(0.35, 0.85), shift, tilt, rng.uniform(-0.02, 0.02), rng.uniform(0.008, 0.02))


def _draw_bone(pen: _Pen, bone: _Bone, fracture: _Break | None) -> Floats:
    """Dense cortex around a lighter marrow, less a dark line where the bone is broken."""
    pieces = [(0.0, 1.0, 0.0, 0.0)]
    if fracture:
        pieces = [(0.0, fracture.at, 0.0, 0.0), (fracture.at, 1.0, fracture.shift, fracture.tilt)]
    for inner, value in ((1.0, 255), (0.55, 165)):
        for start, end, shift, tilt in pieces:
            pen.fill(bone.outline(start, end, inner, shift, tilt), value)
    if fracture:
        outline = bone.outline(fracture.at, fracture.at + 0.001, 1.25, 0, 0)
        left, right = outline[0], outline[-1]
        pen.line([(left[0], left[1] - fracture.slant), (right[0], right[1] + fracture.slant)], fracture.gap, 60)
    return pen.layer(0.9) * np.float32(0.42)


def _wrist(pen: _Pen, rng: np.random.Generator) -> Floats:
    for x in (0.37, 0.44, 0.51, 0.58):
        pen.oval((x + rng.uniform(-0.01, 0.01), 0.9), (0.034, 0.038), value=190)
        pen.oval((x + rng.uniform(-0.01, 0.01), 0.975), (0.033, 0.034), value=190)
    return pen.layer(1.2) * np.float32(0.36)


# --- Knee ------------------------------------------------------------------------------------------------------------


def _knee(anatomy: np.random.Generator, exposure: np.random.Generator, grade: int) -> Floats:
    """A frontal knee: with the grade (0..4) the joint space narrows, rims grow spurs and the bone ends whiten."""
    build = anatomy.uniform(0.92, 1.1)
    worn = np.clip(grade + anatomy.normal(0, 0.3), 0, 4.3) / 4
    space = 0.05 * (1 - 0.85 * worn)
    medial = space * (1 - 0.35 * worn)
    pen = _Pen(exposure, turn=7, mirror=bool(exposure.integers(2)))

    pen.fill([(0.2, -0.3), (0.17, 0.5), (0.24, 1.3), (0.78, 1.3), (0.83, 0.5), (0.8, -0.3)])
    density = pen.layer(5) * np.float32(0.3)
    density += _femur(pen, build, medial - space) + _tibia(pen, build, space)
    density += _rims(pen, anatomy, build, space, worn)
    density += _clouds(anatomy, 70) * density * np.float32(0.16)
    return density


def _femur(pen: _Pen, build: float, drop: float) -> Floats:
    for inner, value in ((1.0, 235), (0.86, 190)):
        half = 0.085 * build * inner
        pen.fill(
            _both_sides([(half, -0.3), (half, 0.1), (1.25 * half, 0.22), (1.8 * half, 0.3), (2.3 * half, 0.37)]), value
        )
        pen.oval((0.385, 0.395 - drop), (0.125 * build * inner, 0.1 * inner), value=value)
        pen.oval((0.615, 0.395), (0.125 * build * inner, 0.1 * inner), value=value)
    pen.oval((0.5, 0.5), (0.035, 0.045), value=90)
    pen.oval((0.5, 0.3), (0.1 * build, 0.12), value=225)  # the kneecap, seen through the femur
    return pen.layer(1.2) * np.float32(0.5)


def _tibia(pen: _Pen, build: float, space: float) -> Floats:
    top = 0.495 + space
    pen.line([(0.72, top + 0.09), (0.73, 0.8), (0.74, 1.3)], 0.055, 120)
    for inner, value in ((1.0, 235), (0.88, 190)):
        wide, slim = 0.245 * build * inner, 0.085 * build * inner
        flare = [
            (wide, 0.015),
            (wide, 0.05),
            (0.86 * wide, 0.09),
            (0.62 * wide, 0.16),
            (1.25 * slim, 0.26),
            (slim, 0.38),
        ]
        pen.fill(_both_sides([(0.03, 0.006 + top), *((x, y + top) for x, y in flare), (slim, 1.4)]), value)
    pen.fill([(0.47, top + 0.02), (0.485, top - 0.022), (0.515, top - 0.022), (0.53, top + 0.02)], 200)
    return pen.layer(1.2) * np.float32(0.5)


def _rims(pen: _Pen, rng: np.random.Generator, build: float, space: float, worn: float) -> Floats:
    """Spurs at the joint's edges and a whiter edge along it, both growing with the wear."""
    top = 0.495 + space
    for side in (-1, 1):
        edge = 0.5 + side * 0.245 * build
        for y in (top + 0.02, 0.44):
            length = 0.055 * worn * rng.uniform(0.4, 1.2)
            pen.fill([(edge - side * 0.03, y - 0.015), (edge + side * length, y), (edge - side * 0.03, y + 0.02)], 220)
        pen.line([(0.5 + side * 0.05, top + 0.02), (edge, top + 0.025)], 0.02, round(200 * worn))
    return pen.layer(1.0) * np.float32(0.3)
