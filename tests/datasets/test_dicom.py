"""DICOM files to what a reader would see: bone bright, once inverted where it must be, and every refusal by name."""

import re
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_presentation_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from datasets import imaging
from datasets.imaging import ImageError, Radiograph, read, to_model_input
from tests.datasets.files import NO_SHARED, SHARED, dataset, dicom, encode, gradient, write_dicom

VALUES = np.arange(0, 4000, 8, dtype=np.uint16).reshape(20, 25)
TWELVE_BITS = {"BitsStored": 12, "HighBit": 11}
real = pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED)


def refusal(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read(data)
    assert "Doe" not in str(caught.value)
    return caught.value


def table(entries: list[int], first: int = 0, bits: int = 16) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item.LUTData = struct.pack(f"<{len(entries)}H", *entries)
    item["LUTData"].VR = "OW"
    item["LUTDescriptor"].VR = "US"
    return Sequence([item])


# --- Window, tables, inversion


def test_a_linear_window_follows_the_standard_to_the_half_value():
    """PS3.3 C.11.2.1.2.1: c = 2048, w = 4096 maps 0 to black and 4095 to white."""
    values = np.array([[0, 1024, 2047, 2048, 3071, 4095]], np.uint16)

    found = read(dicom(values, WindowCenter=2048, WindowWidth=4096))

    np.testing.assert_allclose(found.pixels[0], values[0] / 4095, atol=1e-6)
    assert "window of the file (linear)" in found.steps


def test_a_window_one_wide_is_a_threshold():
    found = read(dicom(np.array([[99, 100, 101]], np.uint16), WindowCenter=100, WindowWidth=1))

    np.testing.assert_array_equal(found.pixels[0], [0, 1, 1])


def test_an_exact_linear_window_spans_its_width():
    values = np.array([[50, 100, 150, 200, 250]], np.uint16)

    found = read(dicom(values, WindowCenter=150, WindowWidth=100, VOILUTFunction="LINEAR_EXACT"))

    np.testing.assert_allclose(found.pixels[0], [0, 0, 0.5, 1, 1], atol=1e-6)


def test_a_sigmoid_window_bends():
    values = np.array([[0, 100, 150, 200, 1000]], np.uint16)

    found = read(dicom(values, WindowCenter=150, WindowWidth=100, VOILUTFunction="SIGMOID"))

    np.testing.assert_allclose(found.pixels[0], 1 / (1 + np.exp(-4 * (values[0] - 150.0) / 100)), atol=1e-6)


def test_of_several_windows_the_first_is_used():
    values = np.array([[0, 500, 1000]], np.uint16)

    found = read(dicom(values, WindowCenter=[500, 100], WindowWidth=[1001, 10]))

    np.testing.assert_allclose(found.pixels[0], [0, 0.5, 1], atol=1e-3)


def test_without_a_window_the_percentiles_of_the_values_are_used():
    values = VALUES.copy()
    values[0, 0] = 65535  # one hot pixel must not darken everything else

    found = read(dicom(values))

    assert found.pixels.mean() == pytest.approx(0.5, abs=0.02)
    assert "window from percentiles" in found.steps


def test_an_even_picture_without_a_window_is_black_and_not_an_error():
    assert (read(dicom(np.full((5, 5), 700, np.uint16))).pixels == 0).all()


def test_the_value_table_of_the_file_comes_before_its_window():
    values = np.array([[0, 1, 2, 3, 9]], np.uint16)

    found = read(dicom(values, VOILUTSequence=table([0, 65535, 32768, 0]), WindowCenter=1, WindowWidth=2))

    np.testing.assert_allclose(found.pixels[0], [0, 1, 0.5, 0, 0], atol=1e-4)
    assert "value table of the file" in found.steps


def test_the_modality_table_comes_before_the_window():
    values = np.array([[10, 11, 12, 13]], np.uint16)

    found = read(
        dicom(values, ModalityLUTSequence=table([0, 300, 100, 400], first=10), WindowCenter=200, WindowWidth=401)
    )

    np.testing.assert_allclose(found.pixels[0], [0, 0.75, 0.25, 1], atol=2e-3)


def test_a_rescale_comes_before_the_window():
    values = np.array([[0, 100, 200]], np.uint16)

    found = read(dicom(values, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=-800, WindowWidth=401))

    np.testing.assert_allclose(found.pixels[0], [0, 0.5, 1], atol=2e-3)


def test_a_negative_slope_does_not_flip_the_window():
    """pydicom 3.0.2's apply_voi_lut draws the ramp downwards when RescaleSlope is negative."""
    values = np.array([[0, 300]], np.uint16)  # modality values 3000 and 0
    tags = {"RescaleSlope": -10, "RescaleIntercept": 3000, "WindowCenter": 1500, "WindowWidth": 3001}

    found = read(dicom(values, **tags))

    np.testing.assert_allclose(found.pixels[0], [1, 0], atol=1e-3)
    theirs = apply_voi_lut(np.array([[3000.0, 0.0]]), pydicom.dcmread(BytesIO(dicom(values, **tags))))
    assert theirs[0, 0] < theirs[0, 1], "pydicom now agrees: its windowing may be used after all"


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME1", "INVERSE", True),
    ],
)
def test_monochrome1_and_inverse_invert_exactly_once(photometric, shape, inverted):
    """pydicom 3.0.2's apply_presentation_lut leaves MONOCHROME1 without a LUT shape as it is."""
    values = np.array([[0, 4095]], np.uint16)
    tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}

    found = read(dicom(values, WindowCenter=2048, WindowWidth=4096, **tags))

    np.testing.assert_allclose(found.pixels[0], [1, 0] if inverted else [0, 1], atol=1e-6)
    assert found.steps.count("inverted") == int(inverted)


def test_pydicom_still_leaves_monochrome1_alone():
    made = dataset(np.array([[10, 200]], np.uint16), PhotometricInterpretation="MONOCHROME1")

    np.testing.assert_array_equal(apply_presentation_lut(np.array([[10, 200]]), made), [[10, 200]])


def test_inversion_does_not_depend_on_the_brightest_pixel_of_the_image():
    """pydicom 3.0.2 inverts by the image's own maximum, so that a dim image would come out too dark."""
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "PresentationLUTShape": "INVERSE"}

    dim = read(dicom(np.array([[10, 200]], np.uint16), **window))

    np.testing.assert_allclose(dim.pixels[0], [1 - 10 / 4095, 1 - 200 / 4095], atol=1e-6)


def test_padding_is_black_and_does_not_count_for_the_window():
    values = VALUES.copy()
    values[:, :10] = 65535

    found = read(dicom(values, PixelPaddingValue=65535))

    assert (found.pixels[:, :10] == 0).all()
    assert found.pixels[:, 10:].max() == 1
    assert "padding blackened" in found.steps


def test_padding_stays_black_when_the_picture_is_inverted():
    values = np.array([[0, 0, 100, 200]], np.uint16)

    found = read(
        dicom(values, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1", WindowCenter=100, WindowWidth=201)
    )

    np.testing.assert_allclose(found.pixels[0], [0, 0, 0.5, 0], atol=3e-3)


def test_a_padding_range_is_masked_whole():
    values = np.array([[1, 2, 3, 100, 200]], np.uint16)

    found = read(dicom(values, PixelPaddingValue=1, PixelPaddingRangeLimit=3, WindowCenter=1, WindowWidth=2))

    np.testing.assert_array_equal(found.pixels[0], [0, 0, 0, 1, 1])


def test_a_negative_padding_value_matches_signed_pixels():
    values = np.array([[-2000, -2000, 0, 100]], np.int16)

    found = read(dicom(values, PixelPaddingValue=-2000, WindowCenter=0, WindowWidth=201))

    np.testing.assert_allclose(found.pixels[0], [0, 0, 0.5, 1], atol=3e-3)
    assert "padding blackened" in found.steps


# --- How the pixels are stored


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_the_transfer_syntax_does_not_change_the_picture(syntax):
    made = dataset(VALUES, **TWELVE_BITS)
    if syntax == RLELossless:
        made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        made.compress(RLELossless)

    found = read(write_dicom(made, syntax))

    assert found.digest == read(dicom(VALUES, **TWELVE_BITS)).digest
    assert found.steps[0] == syntax.name


def test_big_endian_pixels_are_swapped():
    made = dataset(VALUES, PixelData=VALUES.astype(">u2").tobytes())

    assert read(write_dicom(made, ExplicitVRBigEndian)).digest == read(dicom(VALUES)).digest


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000Lossless)])
def test_compressed_pixels_are_decoded(kind, syntax):
    picture = gradient(40, 50)
    data = encode(picture, kind, **({"quality": 95} if kind == "JPEG" else {"no_jp2": True}))
    made = dataset(picture, PixelData=encapsulate([data]), WindowCenter=128, WindowWidth=256)

    found = read(write_dicom(made, syntax))

    assert np.abs(found.pixels * 255 - picture).max() < 8


def test_bits_above_those_stored_are_not_pixels():
    """Old files keep overlays there."""
    assert read(dicom(VALUES | 0x8000, **TWELVE_BITS)).digest == read(dicom(VALUES, **TWELVE_BITS)).digest


def test_signed_twelve_bit_values_keep_their_sign():
    values = np.array([[-2000, 0, 2000]], np.int16)
    tags = {"WindowCenter": 0, "WindowWidth": 4001}

    stored = dicom((values & 0xFFF).astype(np.uint16), PixelRepresentation=1, **TWELVE_BITS, **tags)

    np.testing.assert_allclose(read(stored).pixels[0], [0, 0.5, 1], atol=1e-3)


# --- What else is in the file


def test_the_patient_is_the_issuer_and_the_number():
    assert read(dicom(VALUES, PatientID="12", IssuerOfPatientID="North")).patient == "North|12"
    assert read(dicom(VALUES, PatientID="12")).patient == "|12"
    assert read(dicom(VALUES, PatientID="")).patient is None


def test_the_uids_and_the_body_part_are_kept():
    found = read(dicom(VALUES, BodyPartExamined="CHEST"))

    assert (found.study_uid, found.series_uid, found.sop_uid) == ("2.25.2", "2.25.3", "2.25.1")
    assert (found.body_part, found.modality) == ("CHEST", "DX")


def test_a_uid_that_could_be_a_path_is_dropped():
    data = dicom(VALUES, StudyInstanceUID="1.2.3.4.5.6.7").replace(b"1.2.3.4.5.6.7\0", b"../../../etc/x")

    assert read(data).study_uid == ""


def test_neither_the_name_nor_the_number_of_the_patient_is_in_the_steps():
    found = read(dicom(VALUES, PatientID="4711"))

    assert not re.search("Doe|Secret|4711", " ".join(found.steps))


# --- What is refused


def test_a_file_without_pixels_is_refused():
    data = dicom(VALUES)

    assert refusal(data[: data.index(b"\xe0\x7f\x10\0")]).code == "no-pixels"


def test_an_unsupported_transfer_syntax_is_refused_by_name():
    made = dataset(gradient(), PixelData=encapsulate([b"\xff\xd8\xff\xd9"]))

    error = refusal(write_dicom(made, JPEGExtended12Bit))

    assert error.code == "unsupported-transfer-syntax"
    assert "JPEG Extended" in str(error)
    assert JPEGExtended12Bit in str(error)


def test_a_private_transfer_syntax_is_refused_by_its_number():
    data = dicom(VALUES).replace(b"1.2.840.10008.1.2.1\0", b"1.2.3.4.5.6.7.8.9.10")

    assert "1.2.3.4.5.6.7.8.9.10 is not supported" in str(refusal(data))


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"NumberOfFrames": 3}, "multi-frame"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour-dicom"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour-dicom"),
        ({"Rows": 60000, "Columns": 60000}, "too-large"),
        ({"Rows": 0}, "no-pixels"),
        ({"Rows": None}, "no-pixels"),
        ({"Rows": 2000, "Columns": 2000}, "truncated"),
        ({"Rows": 10}, "wrong-length"),
        ({"BitsAllocated": 12}, "unsupported-pixels"),
        ({"BitsStored": 17}, "unsupported-pixels"),
        ({"RescaleSlope": 0}, "bad-rescale"),
        ({"WindowCenter": 100, "WindowWidth": 0}, "bad-window"),
        ({"WindowCenter": 100, "WindowWidth": -5}, "bad-window"),
        ({"ModalityLUTSequence": Sequence([Dataset()])}, "damaged"),
    ],
)
def test_impossible_headers_are_refused(tags, code):
    assert refusal(dicom(VALUES, **tags)).code == code


@pytest.mark.parametrize(("number", "code"), [(b"nan ", "bad-rescale"), (b"inf ", "bad-rescale"), (b"abcd", "damaged")])
def test_a_rescale_that_is_no_number_is_refused(number, code):
    data = dicom(VALUES, RescaleSlope="1.25", RescaleIntercept=0)

    assert refusal(data.replace(b"1.25", number)).code == code


def test_a_rescale_beyond_all_numbers_is_refused():
    assert refusal(dicom(VALUES, RescaleSlope=1e37, RescaleIntercept=0)).code == "bad-rescale"


def test_a_table_shorter_than_it_says_is_refused():
    short = table([1, 2, 3])
    short[0].LUTDescriptor = [300, 0, 16]

    assert refusal(dicom(VALUES, ModalityLUTSequence=short)).code == "damaged"


@pytest.mark.parametrize("beginning", [b"MZ", b"\x7fELF", b"#!/bin/sh", b"<html>", b"\xff\xd8\xff"])
def test_a_dicom_file_that_is_also_something_else_is_refused(beginning):
    data = dicom(VALUES)

    assert refusal(beginning + data[len(beginning) :]).code == "executable-preamble"


def test_a_data_set_without_the_file_header_is_not_guessed_at():
    error = refusal(dicom(VALUES)[132:])

    assert error.code == "no-preamble"
    assert "Part 10" in str(error)


@pytest.mark.parametrize("keep", [130, 140, 200, 300, 500, -1, -400])
def test_a_dicom_file_cut_anywhere_is_refused(keep):
    assert refusal(dicom(VALUES)[:keep]).code


@pytest.mark.filterwarnings("ignore:End of file reached:UserWarning")
def test_a_cut_compressed_file_is_called_truncated():
    made = dataset(gradient(60, 60), PixelData=encapsulate([encode(gradient(60, 60), "JPEG")]))

    assert refusal(write_dicom(made, JPEGBaseline8Bit)[:-300]).code == "truncated"


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_a_compressed_picture_of_another_size_than_the_header_says_is_refused(kind):
    options = {"no_jp2": True} if kind == "JPEG2000" else {}
    syntax = JPEGBaseline8Bit if kind == "JPEG" else JPEG2000Lossless
    made = dataset(gradient(20, 20), PixelData=encapsulate([encode(gradient(80, 80), kind, **options)]))

    assert refusal(write_dicom(made, syntax)).code == "wrong-length"


def test_garbage_for_a_compressed_picture_is_refused_by_the_name_of_its_syntax():
    made = dataset(gradient(), PixelData=encapsulate([bytes(range(256))]))

    error = refusal(write_dicom(made, JPEGLosslessSV1))

    assert error.code == "damaged"
    assert "JPEG Lossless" in str(error)


@pytest.mark.parametrize("closed", [True, False])
def test_sequences_nested_without_end_are_refused(closed):
    opening = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 5000
    ending = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * 5000 if closed else b""
    data = dicom(VALUES)
    place = data.index(b"\x08\0\x16\0")

    error = refusal(data[:place] + opening + ending + data[place:])

    assert "too deeply" in str(error)


def test_a_deflated_file_that_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(imaging, "MAX_INFLATED_BYTES", 4 * 1024**2)
    data = dicom(VALUES, DeflatedExplicitVRLittleEndian)
    header = data[: 144 + struct.unpack("<L", data[140:144])[0]]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(1024**2)) for _ in range(5)) + packer.flush()

    assert refusal(header + bomb).code == "too-large"


def test_decoders_write_nothing_to_standard_output(tmp_path: Path):
    made = dataset(gradient(), PixelData=encapsulate([encode(gradient(), "JPEG")[:-60] + bytes(40)]))
    for name, syntax in (("a", JPEGBaseline8Bit), ("b", JPEGLosslessSV1), ("c", JPEG2000Lossless)):
        (tmp_path / name).write_bytes(write_dicom(made, syntax))
    code = "import sys; from pathlib import Path; from datasets.imaging import *\n" + (
        "for name in sys.argv[1:]:\n try: read(Path(name))\n except ImageError: pass"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, (tmp_path / name for name in "abc"))], capture_output=True, check=True
    )

    assert done.stdout == b""


# --- Real files


def shared(name: str) -> Radiograph:
    return read(SHARED / "dicom" / name)


@real
def test_seven_of_the_nine_real_files_are_decoded_and_two_are_refused_by_name():
    refused = {}
    for path in sorted((SHARED / "dicom").iterdir()):
        try:
            found = read(path)
        except ImageError as error:
            refused[path.name] = str(error)
        else:
            assert found.steps.count("inverted") == 1, path.name  # all of them are MONOCHROME1
            assert found.modality == "CR"

    assert refused.keys() == {"CR_tiny_korean_name.dcm", "RG3_extremity_mono1_JPEGExtended12.dcm"}
    assert "no pixel data" in refused["CR_tiny_korean_name.dcm"]
    assert "JPEG Extended" in refused["RG3_extremity_mono1_JPEGExtended12.dcm"]


@real
def test_the_same_radiograph_looks_the_same_in_every_compression():
    plain = shared("RG3_extremity_mono1_uncompressed.dcm")

    assert shared("RG3_extremity_mono1_RLE.dcm").digest == plain.digest
    assert shared("RG3_extremity_mono1_JPEGLossless.dcm").digest == plain.digest
    for lossy in ("RG3_extremity_mono1_JPEGLS_near.dcm", "RG3_extremity_mono1_J2K.dcm"):
        assert np.abs(shared(lossy).pixels - plain.pixels).mean() < 0.005, lossy


@real
def test_bone_is_brighter_than_air_in_the_real_extremity():
    """The shaft of the tibia runs down the middle of the upper half; the exposed air lies to its left and right."""
    picture = to_model_input(shared("RG3_extremity_mono1_uncompressed.dcm").pixels, 256)

    assert picture[60:100, 124:134].mean() > 130
    assert picture[60:100, 68:76].mean() < 40


@real
def test_lungs_are_darker_than_the_spine_in_the_real_chest():
    picture = to_model_input(shared("RG1_chest_mono1_J2K.dcm").pixels, 256)

    assert picture[80:110, 60:80].mean() < picture[80:110, 118:130].mean() - 30
