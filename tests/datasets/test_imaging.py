"""JPEG and PNG files to grey pixels, whatever is in them, and grey pixels to a network's input."""

import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import imaging
from datasets.imaging import ImageError, model_input, read, to_model_input, to_png
from tests.datasets.files import HALVES, NO_SHARED, SHARED, encode, gradient

ORIENTATION = 0x0112


def refusal(data: bytes | Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read(data)
    assert str(caught.value)
    return caught.value


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


# --- What is read, and how -------------------------------------------------------------------------------------------


def test_a_grey_png_is_read_exactly():
    picture = gradient()

    found = read(encode(picture, "PNG"))

    assert found.format == "PNG"
    assert (found.width, found.height) == (32, 24)
    assert found.pixels.dtype == np.float32
    np.testing.assert_array_equal(found.pixels, picture.astype(np.float32) / np.float32(255))
    assert found.steps == ("PNG, 8 bit grey",)
    assert found.patient is None


def test_a_jpeg_is_read_closely():
    found = read(encode(gradient(), "JPEG", quality=95))

    assert found.format == "JPEG"
    assert np.abs(found.pixels * 255 - gradient()).max() < 8


def test_a_path_and_the_bytes_of_its_file_give_the_same(tmp_path: Path):
    path = tmp_path / "image.png"
    path.write_bytes(encode(gradient(), "PNG"))

    assert read(path).digest == read(path.read_bytes()).digest


def test_the_content_decides_and_not_the_name(tmp_path: Path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encode(gradient(), "PNG"))

    assert read(path).format == "PNG"


def test_equal_pixels_have_equal_digests_in_every_lossless_file():
    grey = Image.fromarray(gradient())
    digests = {read(encode(grey.convert(mode), "PNG")).digest for mode in ("L", "RGB", "RGBA", "P", "LA")}

    assert digests == {read(encode(grey, "PNG", compress_level=1)).digest}


def test_the_digest_tells_shapes_apart():
    flat = np.full((4, 6), 90, np.uint8)

    assert read(encode(flat, "PNG")).digest != read(encode(flat.reshape(6, 4), "PNG")).digest


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda image: image),
        (2, np.fliplr),
        (3, lambda image: np.rot90(image, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda image: np.rot90(image, -1)),
        (7, lambda image: np.rot90(image, 2).T),
        (8, lambda image: np.rot90(image, 1)),
    ],
)
def test_exif_orientation_is_applied_once(orientation, turned):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = gradient()

    found = read(encode(picture, "PNG", exif=exif))

    np.testing.assert_array_equal(np.rint(found.pixels * 255), turned(picture))
    assert (found.height, found.width) == found.pixels.shape
    assert ("turned upright by EXIF" in found.steps) == (orientation > 1)


def test_unreadable_exif_leaves_the_picture_as_stored():
    found = read(encode(gradient(), "JPEG", exif=b"Exif\0\0garbage that is no TIFF header"))

    assert found.pixels.shape == (24, 32)


@pytest.mark.parametrize(("maximum", "bits"), [(65535, 16), (16383, 14), (4095, 12), (1023, 10), (255, 8)])
def test_a_16_bit_png_is_scaled_by_the_bits_it_uses(maximum, bits):
    values = np.linspace(0, maximum, 24 * 32).reshape(24, 32).astype(np.uint16)

    found = read(encode(values, "PNG"))

    np.testing.assert_allclose(found.pixels, values / maximum, atol=1e-6)
    assert found.steps == ("PNG, 16 bit grey", f"{bits} of its 16 bits used")


def test_transparency_is_laid_over_black():
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[:, 4:, 3] = 0
    rgba[:, 2:4, 3] = 128

    found = read(encode(rgba, "PNG"))

    np.testing.assert_allclose(found.pixels[0], [1, 1, 128 / 255, 128 / 255, 0, 0, 0, 0], atol=1 / 255)
    assert "transparency laid over black" in found.steps


def test_a_palette_is_looked_up_not_shown_as_numbers():
    picture = Image.fromarray(np.repeat(np.array([[0, 1]], np.uint8), 8, axis=0), "P")
    picture.putpalette([250, 250, 250, 10, 10, 10] + [0] * 762)

    found = read(encode(picture, "PNG"))

    np.testing.assert_allclose(found.pixels[0] * 255, [250, 10])


def test_colour_becomes_luma():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)

    found = read(encode(colours, "PNG"))

    np.testing.assert_allclose(found.pixels[0], [0.299, 0.587, 0.114], atol=1 / 255)
    assert found.steps == ("PNG, 8 bit colour", "colour turned to grey")


def test_cmyk_is_not_read_as_a_negative():
    found = read(encode(Image.fromarray(HALVES).convert("RGB").convert("CMYK"), "JPEG", quality=95))

    np.testing.assert_allclose(found.pixels[:, [4, 27]] * 255, [[40, 200]] * 32, atol=6)


@pytest.mark.parametrize("with_adobe_marker", [True, False])
def test_the_inks_of_a_cmyk_jpeg_are_stored_upside_down_as_adobe_does(with_adobe_marker):
    """Full ink is 0 in such files; whoever reads 255 as full ink shows a negative."""
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:, 3] = 255  # black ink on the right half only
    data = encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    marker = data.index(b"\xff\xee\x00\x0eAdobe")
    if not with_adobe_marker:
        data = data[:marker] + data[marker + 16 :]

    found = read(data)

    assert found.steps[0] == "JPEG, 8 bit colour for print (CMYK)"
    np.testing.assert_allclose(found.pixels[:, [4, 27]], [[1, 0]] * 16, atol=0.03)


def test_a_16_bit_picture_is_finer_than_its_grey_copy():
    values = np.array([[0, 1, 2, 65535]], np.uint16)

    found = read(encode(values, "PNG"))

    assert len(np.unique(found.pixels)) == 4
    np.testing.assert_array_equal(found.grey, [[0, 0, 0, 255]])


def test_colourfulness_tells_a_photograph_from_a_radiograph():
    grey = Image.fromarray(gradient())
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 255

    assert read(encode(grey, "PNG")).colour == 0
    assert read(encode(grey.convert("RGB"), "PNG")).colour == 0
    assert read(encode(grey.convert("RGB"), "JPEG")).colour < 0.02
    assert read(encode(red, "PNG")).colour == 1
    red[20:] = 90
    assert read(encode(red, "PNG")).colour == pytest.approx(0.5, abs=0.05)


def test_the_colours_of_a_palette_count_as_colour():
    picture = Image.fromarray(np.zeros((8, 8), np.uint8), "P")
    picture.putpalette([200, 0, 100] + [0] * 765)

    assert read(encode(picture, "PNG")).colour == pytest.approx(200 / 255)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("1", "PNG, black and white"),
        ("L", "PNG, 8 bit grey"),
        ("LA", "PNG, 8 bit grey with transparency"),
        ("P", "PNG, a palette of colours"),
        ("RGB", "PNG, 8 bit colour"),
        ("RGBA", "PNG, 8 bit colour with transparency"),
    ],
)
def test_the_first_step_says_in_words_what_the_file_is(mode, words):
    assert read(encode(Image.fromarray(gradient()).convert(mode), "PNG")).steps[0] == words


def test_exif_is_applied_to_a_jpeg_and_the_turned_picture_is_not_turned_again():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode(gradient(), "JPEG", quality=95, exif=exif)

    found = read(data)

    assert (found.width, found.height) == (24, 32)
    assert np.abs(found.grey - np.rot90(gradient(), -1).astype(float)).max() < 8
    assert found.steps == ("JPEG, 8 bit grey", "turned upright by EXIF")
    assert read(encode(found.grey, "PNG")).digest == found.digest


def test_one_bit_pictures_are_black_and_white():
    found = read(encode(Image.fromarray(HALVES).point(lambda value: 255 * (value > 100), "1"), "PNG"))

    assert found.pixels[0, 0] == 0
    assert found.pixels[0, -1] == 1


def test_of_an_animation_the_first_frame_is_read_and_said_so():
    frames = [Image.fromarray(gradient(seed=seed)) for seed in (1, 2)]

    found = read(encode(frames[0], "PNG", save_all=True, append_images=frames[1:]))

    np.testing.assert_array_equal(np.rint(found.pixels * 255), gradient(seed=1))
    assert "first frame only" in found.steps


# --- What is refused, and with which words ---------------------------------------------------------------------------


def test_an_empty_file_is_refused():
    assert refusal(b"").code == "empty"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"This file was removed.\r\n", "a text file"),
        ("Röntgenbild fehlt".encode(), "a text file"),
        (b"GIF89a" + bytes(20), "a GIF picture"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"PK\x03\x04" + bytes(40), "a zip archive"),
        (b"MZ\x90\0" + bytes(60), "a Windows program"),
        (bytes(range(256)), "unknown kind"),
    ],
)
def test_other_files_are_named_for_what_they_are(data, words):
    error = refusal(data)

    assert error.code == "not-an-image"
    assert words in str(error)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_picture_is_an_error_and_never_half_a_picture(kind, share):
    data = encode(gradient(200, 200), kind)

    assert refusal(data[: int(len(data) * share)]).code == "truncated"


def test_a_png_cut_behind_its_last_pixel_is_refused():
    assert refusal(encode(gradient(), "PNG")[:-12]).code in ("truncated", "damaged")


def test_a_png_with_a_flipped_bit_is_refused():
    data = bytearray(encode(gradient(), "PNG"))
    data[data.index(b"IDAT") + 40] ^= 1

    assert refusal(bytes(data)).code == "damaged"


@pytest.mark.parametrize("behind", [b"PK\x03\x04" + bytes(100), b"<script>alert(1)</script>", b"\0" * 5000])
def test_what_is_glued_behind_a_picture_is_never_looked_at(behind):
    """A picture that is also an archive or a page: only its pixels are ever used, and it is never served as it came."""
    for kind in ("JPEG", "PNG"):
        data = encode(gradient(), kind)

        assert read(data + behind).digest == read(data).digest


@pytest.mark.parametrize("before", [b"GIF89a", b"%PDF-1.4\n", b"PK\x03\x04", b"MZ", b"<html>", b"\0"])
def test_a_picture_hidden_behind_something_else_is_refused(before):
    for kind in ("JPEG", "PNG"):
        assert refusal(before + encode(gradient(), kind)).code == "not-an-image"


def test_a_colour_profile_that_unpacks_without_end_is_refused():
    bomb = png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(30 * 1024**2), 9))
    data = encode(gradient(), "PNG")

    assert refusal(data[:33] + bomb + data[33:]).code == "damaged"


def test_a_jpeg_that_says_it_is_huge_is_refused_before_it_is_decoded():
    data = bytearray(encode(gradient(), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 65_000, 65_000)

    assert refusal(bytes(data)).code == "too-large"


def test_a_huge_picture_is_refused_before_it_is_decoded():
    for side in (8_000, 20_000, 60_000):
        error = refusal(png_header(side, side) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""))

        assert error.code == "too-large"
        assert "40 million" in str(error)


def test_a_text_chunk_that_unpacks_without_end_is_refused():
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(30 * 1024**2), 9))
    data = encode(gradient(), "PNG")

    assert refusal(data[:33] + bomb + data[33:]).code == "damaged"


def test_a_file_beyond_the_byte_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(imaging, "MAX_FILE_BYTES", 100)
    path = tmp_path / "big.png"
    path.write_bytes(encode(gradient(), "PNG"))

    assert refusal(path).code == "too-large"
    assert refusal(path.read_bytes()).code == "too-large"


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path):
    assert refusal(tmp_path / "gone.png").code == "unreadable"
    assert refusal(tmp_path).code == "not-a-file"


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=400),
    start=st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", bytes(128) + b"DICM"]),
)
def test_no_bytes_whatever_raise_anything_but_an_image_error(data, start):
    try:
        found = read(start + data)
    except ImageError as error:
        assert error.code
    else:
        assert found.pixels.size == found.width * found.height


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG"]))
def test_a_damaged_byte_gives_pixels_or_an_image_error(place, value, kind):
    data = bytearray(encode(gradient(), kind))
    data[place % len(data)] = value
    try:
        found = read(bytes(data))
    except ImageError as error:
        assert error.code
    else:
        assert np.isfinite(found.pixels).all()


def test_an_image_error_survives_a_trip_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(refusal(b"")))  # noqa: S301

    assert (error.code, str(error)) == ("empty", "The file is empty (0 bytes).")


def test_reading_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(encode(gradient(), "JPEG"))
        read(encode(gradient().astype(np.uint16), "PNG"))


# --- From pixels to a network's input --------------------------------------------------------------------------------


def test_the_model_input_is_a_square_of_bytes():
    prepared = to_model_input(read(encode(gradient(60, 90), "PNG")).pixels, 32)

    assert prepared.shape == (32, 32)
    assert prepared.dtype == np.uint8


def test_a_picture_of_the_right_size_is_passed_on_exactly():
    square = gradient(32, 32)

    np.testing.assert_array_equal(to_model_input(square / np.float32(255), 32), square)
    np.testing.assert_array_equal(to_model_input(square, 32), square)


@pytest.mark.parametrize("size", [8, 24, 31, 64])
@pytest.mark.parametrize("fit", imaging.FITS)
def test_bytes_and_floats_of_a_picture_give_the_same_input(size, fit):
    """Half the pixels of a picture halved in size lie exactly between two greys."""
    found = read(encode(gradient(48, 62), "PNG"))

    expected = to_model_input(found.pixels, size, fit)

    np.testing.assert_array_equal(to_model_input(found.grey, size, fit), expected)
    np.testing.assert_array_equal(model_input(found, size, fit), expected)


def test_a_deep_picture_is_rounded_after_it_was_resized_and_not_before():
    """Levels of 0.6, 0.6, 0.6 and 0 are 0.45 together, so black. Rounded first they would be 0.75, so not black."""
    values = np.tile(np.array([[154, 154, 154, 0]], np.uint16), (32, 8))
    values[0, 0] = 65535

    found = read(encode(values, "PNG"))

    assert (model_input(found, 8)[4:, 4:] == 0).all()
    assert (to_model_input(found.grey, 8)[4:, 4:] == 1).all()


@pytest.mark.parametrize(("shape", "bars"), [((20, 40), (0, slice(None))), ((40, 20), (slice(None), 0))])
def test_padding_keeps_the_proportions_with_black_bars(shape, bars):
    prepared = to_model_input(np.ones(shape, np.float32), 40)

    assert (prepared[bars] == 0).all()
    assert (prepared == 255).sum() == 20 * 40
    np.testing.assert_array_equal(prepared, np.rot90(prepared, 2))


def test_stretching_fills_the_square():
    assert (to_model_input(np.ones((20, 40), np.float32), 40, "stretch") == 255).all()


def test_an_unknown_fit_is_a_programming_error():
    with pytest.raises(ValueError, match="fit"):
        to_model_input(np.ones((4, 4), np.float32), 4, "crop")


def test_reducing_averages_instead_of_picking_pixels():
    """A checkerboard of single pixels must become even grey; picking every n-th pixel would make it black or white."""
    board = np.indices((256, 256)).sum(axis=0) % 2

    prepared = to_model_input(board.astype(np.float32), 32)

    assert np.abs(prepared[2:-2, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1)])
def test_extreme_proportions_still_give_a_square(shape):
    assert to_model_input(np.ones(shape, np.float32), 16).shape == (16, 16)


def test_the_pipeline_names_what_to_model_input_does_by_default():
    picture = gradient(20, 40) / np.float32(255)

    assert imaging.PIPELINE["fit"] == "pad"
    assert {"id", "version"} <= imaging.PIPELINE.keys()
    np.testing.assert_array_equal(to_model_input(picture, 16), to_model_input(picture, 16, imaging.PIPELINE["fit"]))


def test_a_preview_is_a_png_of_the_same_pixels():
    with Image.open(BytesIO(to_png(gradient()))) as preview:
        np.testing.assert_array_equal(np.asarray(preview), gradient())


# --- Real radiographs ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED)
def test_the_three_truncated_fracture_images_are_refused():
    refused = {}
    for path in sorted((SHARED / "Dataset" / "ARM" / "FracAtlas" / "images" / "Fractured").iterdir()):
        try:
            read(path)
        except ImageError as error:
            refused[path.name] = error.code

    assert refused == dict.fromkeys(["IMG0004134.jpg", "IMG0004143.jpg", "IMG0004148.jpg"], "truncated")


def test_the_bytes_of_a_regular_file_are_read_whatever_is_in_it(tmp_path: Path):
    path = tmp_path / "letter.txt"
    path.write_bytes(b"Dear colleague")

    assert imaging.read_bytes(path) == b"Dear colleague"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "gone"])
def test_the_bytes_of_anything_else_are_refused_at_once(tmp_path: Path, kind):
    path = tmp_path / "film.dcm"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")

    with pytest.raises(ImageError) as refusal:
        imaging.read_bytes(path)
    assert refusal.value.code == ("unreadable" if kind == "gone" else "not-a-file")


def test_the_bytes_of_a_file_that_is_too_large_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "film.dcm"
    path.write_bytes(bytes(101))
    monkeypatch.setattr(imaging, "MAX_FILE_BYTES", 100)

    with pytest.raises(ImageError, match="at most 0 MB are read"):
        imaging.read_bytes(path)
