"""What is kept of an analysed radiograph: its pixels, to the last bit of the digest, and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from datasets import imaging
from datasets.bare import bare
from tests.datasets.files import dicom

SECRET = b"MUELLER^ANNA"


def picture(size=(60, 80)):
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    return Image.fromarray(((rows * 3 + columns * 2) % 256).astype(np.uint8))


def jpeg(**options):
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG", comment=SECRET, **options)
    return buffer.getvalue()


def png(mode="L", **options):
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", SECRET.decode())
    buffer = io.BytesIO()
    picture().convert(mode).save(buffer, "PNG", pnginfo=text, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112], tags[0x013B] = orientation, SECRET.decode()
    return tags


CASES = {
    "JPEG with a comment": jpeg(),
    "progressive JPEG": jpeg(progressive=True),
    "JPEG that is turned": jpeg(exif=exif(6)),
    "JPEG with something appended": jpeg() + SECRET,
    "PNG with a text": png(),
    "PNG of a palette": png("P"),
    "PNG with transparency": png("LA"),
    "PNG that is turned": png(exif=exif(8)),
    "PNG with something appended": png() + SECRET,
    "DICOM of 12 bits": dicom(
        np.random.default_rng(0).integers(0, 4096, (70, 50)).astype(np.uint16),
        BitsStored=12,
        PatientName=SECRET.decode(),
    ),
}


@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
def test_the_pixels_stay_and_the_person_goes(data):
    assert SECRET in data
    radiograph = imaging.read(data)
    kept = bare(data, radiograph)
    assert SECRET not in kept
    again = imaging.read(kept)
    assert again.digest == radiograph.digest
    assert np.array_equal(imaging.model_input(again, 32), imaging.model_input(radiograph, 32))


def test_the_compressed_pixels_of_a_jpeg_are_copied_not_compressed_again():
    data = jpeg()
    kept = bare(data, imaging.read(data))
    assert kept.startswith(b"\xff\xd8\xff\xe0") and len(kept) == len(data) - len(SECRET) - 4


@pytest.mark.parametrize("brightest", [4095, 1100, 900, 60, 0])
def test_a_dicom_file_that_is_dark_all_over_comes_back_no_brighter(brightest):
    ramp = np.tile(np.linspace(0, brightest, 64).astype(np.uint16), (64, 1))
    data = dicom(ramp, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096)
    radiograph = imaging.read(data)
    again = imaging.read(bare(data, radiograph))
    assert again.digest == radiograph.digest
    np.testing.assert_allclose(again.pixels, radiograph.pixels, atol=0.5 / 255)


def test_every_real_radiograph_keeps_its_digest(real_images):
    paths = [
        *sorted(real_images.glob("Dataset/CHEST/*/train/*/*.jpeg"))[:40],
        *sorted(real_images.glob("Dataset/CHEST/full_size_originals/*/*"))[:6],
        *sorted(real_images.glob("Dataset/ARM/**/*.jpg"))[:30],
        *sorted(real_images.glob("dicom/*")),
    ]
    compared = 0
    for path in paths:
        data = path.read_bytes()
        try:
            radiograph = imaging.read(data)
        except imaging.ImageError:
            continue
        assert imaging.read(bare(data, radiograph)).digest == radiograph.digest, path.name
        compared += 1
    assert compared > 60
