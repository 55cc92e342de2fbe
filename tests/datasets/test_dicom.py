"""DICOM files to what a reader would see: bone bright, once inverted where it must be, and every refusal by name."""

import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import imagecodecs
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
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from datasets import dicom as dicom_reader
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
    assert "window of the file (linear): 4096 wide at 2048" in found.steps


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
    assert "no window in the file: the middle 99 % of its values shown, 27.96 to 3980.04" in found.steps


def test_an_even_picture_without_a_window_is_black_and_not_an_error():
    assert (read(dicom(np.full((5, 5), 700, np.uint16))).pixels == 0).all()


def test_the_value_table_of_the_file_comes_before_its_window():
    values = np.array([[0, 1, 2, 3, 9]], np.uint16)

    found = read(dicom(values, VOILUTSequence=table([0, 65535, 32768, 0]), WindowCenter=1, WindowWidth=2))

    np.testing.assert_allclose(found.pixels[0], [0, 1, 0.5, 0, 0], atol=1e-4)
    assert "value table of the file applied" in found.steps


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
    words = {"MONOCHROME1": "inverted (MONOCHROME1)"}.get(photometric, "inverted (presentation shape INVERSE)")
    assert found.steps[2:] == ((words,) if inverted else ())


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
    assert found.steps[0] == f"DICOM, {syntax.name}, 12 bit grey"


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


def extended(values: np.ndarray, **tags) -> bytes:
    """A file in JPEG Extended with 12 bits of precision."""
    frame = imagecodecs.jpeg8_encode(values, level=98, bitspersample=12)
    return write_dicom(dataset(values, PixelData=encapsulate([frame]), **TWELVE_BITS, **tags), JPEGExtended12Bit)


def test_twelve_bits_in_jpeg_extended_are_decoded():
    values = (gradient(40, 50).astype(np.uint16) << 4) + 7
    window = {"WindowCenter": 2048, "WindowWidth": 4096}

    found = read(extended(values, **window))

    assert np.abs(found.pixels - read(dicom(values, **window)).pixels).max() < 0.01
    assert found.steps[0] == "DICOM, JPEG Extended (Process 2 and 4), 12 bit grey"


def test_what_a_lossy_picture_overshoots_is_white_and_does_not_wrap_to_black():
    """A step to the largest of 10 bits rings above it, which 12-bit JPEG can hold: 1024 masked to 10 bits is 0."""
    values = np.zeros((32, 32), np.uint16)
    values[:, 13:] = 1023
    frame = imagecodecs.jpeg8_encode(values, level=60, bitspersample=12)
    assert imagecodecs.jpeg8_decode(frame).max() > 1023
    made = dataset(values, PixelData=encapsulate([frame]), BitsStored=10, HighBit=9, WindowCenter=512, WindowWidth=1024)

    found = read(write_dicom(made, JPEGExtended12Bit))

    assert found.pixels[:, 16:].min() > 0.8


def test_signed_values_in_jpeg_extended_are_refused():
    assert refusal(extended(np.full((16, 16), 9, np.uint16), PixelRepresentation=1)).code == "unsupported-pixels"


def compressed(kind: str, picture: np.ndarray) -> tuple[bytes, str]:
    """A compressed frame of 8 bits and its transfer syntax."""
    if kind == "JPEG":
        return encode(picture, "JPEG", quality=95), JPEGBaseline8Bit
    if kind == "JPEG 2000":
        return encode(picture, "JPEG2000", no_jp2=True), JPEG2000Lossless
    if kind == "JPEG-LS":
        return imagecodecs.jpegls_encode(picture), JPEGLSLossless
    if kind == "JPEG Lossless":
        return imagecodecs.ljpeg_encode(picture), JPEGLosslessSV1
    return imagecodecs.jpeg8_encode(picture.astype(np.uint16) << 4, bitspersample=12), JPEGExtended12Bit


KINDS = ["JPEG", "JPEG 2000", "JPEG-LS", "JPEG Lossless", "JPEG Extended"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_compressed_picture_without_its_end_is_refused_and_never_half_a_picture(kind, share):
    """The file around it is whole. Decoders fill what is missing with grey."""
    picture = gradient(60, 60)
    frame, syntax = compressed(kind, picture)
    values = picture.astype(np.uint16) if kind == "JPEG Extended" else picture

    for cut, accepted in ((frame, True), (frame[: int(len(frame) * share)], False)):
        data = write_dicom(dataset(values, PixelData=encapsulate([cut])), syntax)
        if accepted:
            assert read(data).grey.shape == (60, 60)
        else:
            assert refusal(data).code == "truncated"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tags", [{"Rows": 30}, {"Columns": 61}, {"Rows": 6000, "Columns": 6000}])
def test_a_header_that_lies_about_its_compressed_picture_is_refused(kind, tags):
    picture = gradient(60, 60)
    frame, syntax = compressed(kind, picture)
    values = picture.astype(np.uint16) if kind == "JPEG Extended" else picture

    made = dataset(values, PixelData=encapsulate([frame]), **tags)

    assert refusal(write_dicom(made, syntax)).code == "wrong-length"


@pytest.mark.parametrize("kind", ["JPEG", "JPEG 2000"])
def test_a_colour_picture_in_a_monochrome_file_is_refused(kind):
    frame, syntax = compressed(kind, np.repeat(gradient(20, 20)[..., None], 3, axis=2))

    error = refusal(write_dicom(dataset(gradient(20, 20), PixelData=encapsulate([frame])), syntax))

    assert error.code == "unsupported-pixels"
    assert "3 x 8 bits" in str(error)


def test_a_deeper_compressed_picture_than_the_header_says_is_refused():
    frame = imagecodecs.jpegls_encode(gradient(20, 20).astype(np.uint16) * 200)
    made = dataset(gradient(20, 20), PixelData=encapsulate([frame]))

    assert refusal(write_dicom(made, JPEGLSLossless)).code == "unsupported-pixels"


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


@pytest.mark.parametrize(
    ("value", "sex"),
    [("F", "F"), ("M", "M"), ("O", "O"), ("m", "M"), ("F ", "F"), ("", ""), (None, ""), ("U", ""), ("FEMALE", "")],
)
def test_the_sex_is_one_of_three_codes_or_unknown(value, sex):
    assert read(dicom(VALUES, PatientSex=value)).sex == sex


@pytest.mark.parametrize(
    ("stated", "band"),
    [
        ("000Y", "0-17"),
        ("017Y", "0-17"),
        ("018Y", "18-39"),
        ("039Y", "18-39"),
        ("040Y", "40-59"),
        ("060Y", "60-79"),
        ("079Y", "60-79"),
        ("080Y", "80+"),
        ("103Y", "80+"),
        ("45Y", "40-59"),
        ("045y", "40-59"),
        ("215M", "0-17"),
        ("216M", "18-39"),
        ("939W", "0-17"),
        ("940W", "18-39"),
        ("999D", "0-17"),
    ],
)
def test_the_age_is_kept_as_a_band_of_years(stated, band):
    assert read(dicom(VALUES, PatientAge=stated)).age == band


@pytest.mark.parametrize(
    "stated", ["", None, "045", "Y", "-45Y", "4.5Y", "045Q", "999Y", "forty", "0450Y", ["045Y", "046Y"]]
)
def test_an_age_that_cannot_be_meant_is_unknown(stated):
    assert read(dicom(VALUES, PatientAge=stated)).age == ""


@pytest.mark.parametrize(
    ("born", "acquired", "study", "band"),
    [
        ("19800615", "20200614", None, "18-39"),
        ("19800615", "20200615", None, "40-59"),
        ("19800615", None, "20200615", "40-59"),
        ("19800615", "", "20200615", "40-59"),
        ("19800615", "19951231", "20200615", "0-17"),  # the study was registered anew, long after the picture
        ("19800229", "20200228", None, "18-39"),
        ("1980.06.15", "2020.06.15", None, "40-59"),
        ("19100101", "20150101", None, "80+"),
        ("19000101", "20200101", None, ""),  # stands for an unknown birthday
        ("20200101", "19800101", None, ""),
        ("19800231", "20200615", None, ""),
        ("00000000", "20200615", None, ""),
        ("1980.0615", "20200615", None, ""),
        ("1980", "20200615", None, ""),
        ("19800615", None, None, ""),
        (None, "20200615", "20200615", ""),
    ],
)
def test_without_a_stated_age_the_day_of_birth_and_that_of_the_picture_give_the_band(born, acquired, study, band):
    found = read(dicom(VALUES, PatientBirthDate=born, AcquisitionDate=acquired, StudyDate=study))

    assert found.age == band


def test_the_stated_age_comes_before_the_dates_and_a_malformed_one_behind_them():
    dates = {"PatientBirthDate": "19800615", "StudyDate": "20200615"}

    assert read(dicom(VALUES, PatientAge="065Y", **dates)).age == "60-79"
    assert read(dicom(VALUES, PatientAge="old", **dates)).age == "40-59"


def test_the_institution_is_its_name_without_the_spaces_around_and_in_it():
    assert read(dicom(VALUES, InstitutionName=" North  Clinic ")).institution == "North Clinic"
    assert read(dicom(VALUES, InstitutionName="  ")).institution is None
    assert read(dicom(VALUES)).institution is None


@pytest.mark.parametrize(
    "keyword", ["PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "AcquisitionDate", "InstitutionName"]
)
@pytest.mark.parametrize("kind", [b"FD", b"US", b"AT", b"SQ", b"ZZ"])
def test_what_only_groups_need_never_makes_a_file_unreadable(keyword, kind):
    """The element is written as another kind of value than it is, of a length that this kind cannot have."""
    tags = {"PatientBirthDate": "19800615", "StudyDate": "20200615", "AcquisitionDate": "20200615", "PatientSex": "F"}
    plain = dicom(VALUES, PatientAge="045Y", InstitutionName="Clinic", **tags)
    tag = pydicom.tag.Tag(keyword)
    head = struct.pack("<HH", tag.group, tag.element)
    at = plain.index(head)
    length = struct.unpack_from("<H", plain, at + 6)[0]
    value = plain[at + 8 : at + 8 + length]
    size = struct.pack("<HL", 0, length - 1) if kind == b"SQ" else struct.pack("<H", length - 1)
    damaged = plain[:at] + head + kind + size + value[:-1] + plain[at + 8 + length :]

    assert read(damaged).digest == read(plain).digest


def test_the_uids_and_the_body_part_are_kept():
    found = read(dicom(VALUES, BodyPartExamined="CHEST"))

    assert (found.study_uid, found.series_uid, found.sop_uid) == ("2.25.2", "2.25.3", "2.25.1")
    assert (found.body_part, found.modality) == ("CHEST", "DX")


def test_a_uid_that_could_be_a_path_is_dropped():
    data = dicom(VALUES, StudyInstanceUID="1.2.3.4.5.6.7").replace(b"1.2.3.4.5.6.7\0", b"../../../etc/x")

    assert read(data).study_uid == ""


@pytest.mark.parametrize(("value", "burned_in"), [("YES", True), ("NO", False), (None, False), ("", False)])
def test_text_burned_into_the_pixels_is_told(value, burned_in):
    assert read(dicom(VALUES, BurnedInAnnotation=value)).burned_in is burned_in


def test_a_dicom_file_is_grey():
    assert read(dicom(VALUES)).colour == 0


@pytest.mark.parametrize("keyword", ["VOILUTFunction", "PhotometricInterpretation", "PresentationLUTShape"])
def test_a_name_in_the_wrong_element_does_not_get_into_a_text(keyword):
    data = dicom(VALUES, WindowCenter=2000, WindowWidth=4000, **{keyword: "SECRET DOE"})
    try:
        said = " ".join(read(data).steps)
    except ImageError as error:
        said = str(error)

    assert not re.search("doe|secret", said, re.IGNORECASE)


def test_an_unknown_window_function_is_the_linear_one():
    window = {"WindowCenter": 2000, "WindowWidth": 4000}

    assert read(dicom(VALUES, VOILUTFunction="WAVY", **window)).digest == read(dicom(VALUES, **window)).digest


def test_neither_the_name_nor_the_number_of_the_patient_is_in_the_steps():
    found = read(dicom(VALUES, PatientID="4711"))

    assert not re.search("Doe|Secret|4711", " ".join(found.steps))


# --- What is refused


def test_a_file_without_pixels_is_refused():
    data = dicom(VALUES)

    assert refusal(data[: data.index(b"\xe0\x7f\x10\0")]).code == "no-pixels"


def test_an_unsupported_transfer_syntax_is_refused_by_name():
    made = dataset(gradient(), PixelData=encapsulate([b"\xff\xd8\xff\xd9"]))

    error = refusal(write_dicom(made, HTJ2KLossless))

    assert error.code == "unsupported-transfer-syntax"
    assert "High-Throughput JPEG 2000" in str(error)
    assert HTJ2KLossless in str(error)
    assert "Export" in str(error)


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


# A sequence (0008,1140) of one item that holds the next one, thousands of times, before the first element of the file.
NESTINGS = 5_000


def explicit_lengths(implicit: bool) -> bytes:
    content = b""
    for _ in range(NESTINGS):
        item = b"\xfe\xff\0\xe0" + struct.pack("<L", len(content)) + content
        head = b"\x08\0\x40\x11" if implicit else b"\x08\0\x40\x11SQ\0\0"
        content = head + struct.pack("<L", len(item)) + item
    return content


def undefined_lengths(implicit: bool, closed: bool, vr: bytes = b"SQ") -> bytes:
    head = b"\x08\0\x40\x11" if implicit else b"\x08\0\x40\x11" + vr + b"\0\0"
    opening = (head + b"\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff") * NESTINGS
    return opening + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * NESTINGS * closed


def before_the_first_element(inserted: bytes, data: bytes) -> bytes:
    place = data.index(b"\x08\0\x16\0")
    return data[:place] + inserted + data[place:]


@pytest.mark.parametrize(
    "nested",
    [
        explicit_lengths(False),
        undefined_lengths(False, closed=True),
        undefined_lengths(False, closed=False),
        undefined_lengths(False, closed=True, vr=b"UN"),
    ],
    ids=["explicit", "undefined", "unclosed", "unknown"],
)
def test_sequences_nested_without_end_are_refused(nested):
    assert refusal(before_the_first_element(nested, dicom(VALUES))).code == "nested-too-deeply"


@pytest.mark.parametrize("nested", [explicit_lengths(True), undefined_lengths(True, closed=True)])
def test_sequences_nested_without_end_are_refused_in_implicit_files(nested):
    data = before_the_first_element(nested, dicom(VALUES, ImplicitVRLittleEndian))

    assert refusal(data).code == "nested-too-deeply"


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_sequences_nested_without_end_are_refused_however_they_are_written(syntax):
    inner = Dataset()
    for _ in range(100):
        outer = Dataset()
        outer.ReferencedImageSequence = Sequence([inner])
        inner = outer
    made = dataset(VALUES, ReferencedImageSequence=Sequence([inner]))

    assert refusal(write_dicom(made, syntax)).code == "nested-too-deeply"


def test_sequences_in_the_file_header_are_no_way_around_that():
    data = dicom(VALUES)
    place = data.index(b"\x02\0\x10\0UI")
    nested = undefined_lengths(False, closed=True).replace(b"\x08\0\x40\x11", b"\x02\0\x40\x11")

    assert refusal(data[:place] + nested + data[place:]).code == "nested-too-deeply"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_sequences_as_deep_as_in_real_files_are_read(syntax):
    inner = Dataset()
    inner.CodeValue = "T-D3000"
    for _ in range(8):
        outer = Dataset()
        outer.ReferencedImageSequence = Sequence([inner, Dataset(), inner])
        inner = outer
    values = VALUES.astype(">u2") if syntax == ExplicitVRBigEndian else VALUES
    made = dataset(VALUES, PixelData=values.tobytes(), ReferencedImageSequence=Sequence([inner]))

    assert read(write_dicom(made, syntax)).digest == read(dicom(VALUES)).digest


def test_a_compressed_icon_is_not_taken_for_a_sequence():
    """Its fragments may hold anything, here bytes that read like elements of undefined length."""
    icon = Dataset()
    icon.PixelData = encapsulate([b"\xff" * 2000])
    icon["PixelData"].VR = "OB"
    icon["PixelData"].is_undefined_length = True
    picture = gradient(40, 50)
    made = dataset(picture, PixelData=encapsulate([encode(picture, "JPEG")]), IconImageSequence=Sequence([icon]))

    assert read(write_dicom(made, JPEGBaseline8Bit)).grey.shape == (40, 50)


def test_a_file_of_too_many_elements_is_refused_at_once():
    """pydicom takes minutes and gigabytes for the 30 million elements that fit into a file of 256 MB."""
    many = b"\x08\0\x50\0SH\0\0" * 5_000_000
    start = time.perf_counter()

    assert refusal(before_the_first_element(many, dicom(VALUES))).code == "too-many-elements"
    assert time.perf_counter() - start < 5


def test_a_file_header_of_too_many_elements_is_refused_at_once():
    data = dicom(VALUES)
    place = data.index(b"\x02\0\x10\0UI")
    start = time.perf_counter()

    assert refusal(data[:place] + b"\x02\0\x02\x01SH\0\0" * 5_000_000 + data[place:]).code
    assert time.perf_counter() - start < 5


def test_more_bytes_of_pixels_than_may_be_decoded_are_refused():
    wide = np.zeros((2, 2), np.uint32)

    assert refusal(dicom(wide, Rows=6000, Columns=6000)).code == "too-large"
    assert refusal(dicom(wide.astype(np.uint16), Rows=6000, Columns=6000)).code == "truncated"


def runs(*segments: bytes) -> bytes:
    """An RLE frame (DICOM PS3.5 annex G) of segments that are packed already."""
    places = [64 + sum(map(len, segments[:number])) for number in range(len(segments))]
    return struct.pack("<16L", len(segments), *places, *[0] * (15 - len(places))) + b"".join(segments)


def rle(frame: bytes, side: int = 8) -> bytes:
    return write_dicom(dataset(np.zeros((side, side), np.uint8), PixelData=encapsulate([frame])), RLELossless)


def test_run_lengths_that_unpack_to_less_or_more_than_the_picture_are_refused():
    row = b"\xf9\x05"  # the byte 5, 8 times

    assert read(rle(runs(row * 8))).grey.shape == (8, 8)
    literal = b"\x07" + bytes(8)
    assert read(rle(runs(row * 7 + literal + b"\0"))).grey.shape == (8, 8)  # padded to an even length
    assert refusal(rle(runs(row * 7))).code == "damaged"
    assert refusal(rle(runs(row * 9))).code == "damaged"
    assert refusal(rle(runs(row * 8, row * 8))).code == "damaged"
    assert refusal(rle(bytes(64))).code == "damaged"
    assert refusal(rle(runs(row * 8)[:40])).code == "damaged"


def test_run_lengths_that_unpack_without_end_take_no_memory():
    """2 MB that would unpack to 128 MB for a picture of 64 bytes."""
    data = rle(runs(b"\x81\x05" * 1024**2))
    tracemalloc.start()
    try:
        assert refusal(data).code == "damaged"
        assert tracemalloc.get_traced_memory()[1] < 32 * 1024**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_run_lengths_of_every_depth_give_the_stored_values(bits, signed):
    values = np.linspace(0, 2 ** (bits - 1) - 1, 500).reshape(20, 25).astype(f"{'i' if signed else 'u'}{bits // 8}")
    if signed:
        values = -values
    made = dataset(values)
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.compress(RLELossless)

    assert read(write_dicom(made, RLELossless)).digest == read(dicom(values)).digest


def test_a_deflated_file_that_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dicom_reader, "MAX_INFLATED_BYTES", 4 * 1024**2)
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
def test_all_real_files_are_decoded_but_the_one_without_pixels():
    refused = {}
    for path in sorted((SHARED / "dicom").iterdir()):
        try:
            found = read(path)
        except ImageError as error:
            refused[path.name] = str(error)
        else:
            assert found.steps.count("inverted (MONOCHROME1)") == 1, path.name  # all of them are
            assert found.modality == "CR"

    assert refused.keys() == {"CR_tiny_korean_name.dcm"}
    assert "no pixel data" in refused["CR_tiny_korean_name.dcm"]


@real
def test_the_same_radiograph_looks_the_same_in_every_compression():
    plain = shared("RG3_extremity_mono1_uncompressed.dcm")

    assert shared("RG3_extremity_mono1_RLE.dcm").digest == plain.digest
    assert shared("RG3_extremity_mono1_JPEGLossless.dcm").digest == plain.digest
    for lossy in ("JPEGLS_near", "J2K", "JPEGExtended12"):
        pixels = shared(f"RG3_extremity_mono1_{lossy}.dcm").pixels
        assert np.abs(pixels - plain.pixels).mean() < 0.002, lossy
        assert np.abs(pixels - plain.pixels).max() < 0.05, lossy
        assert np.corrcoef(pixels.ravel(), plain.pixels.ravel())[0, 1] > 0.9999, lossy


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
