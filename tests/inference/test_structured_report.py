"""A prediction as a DICOM report and as a picture: what archives and viewers read, in the right patient's study."""

import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from shutil import which
from typing import Any
from uuid import UUID

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from inference.dicom_context import NotDicom, WrongSource, source_header
from inference.results import class_concept, long_string, probability_name
from inference.secondary_capture import annotated, caption, secondary_capture
from inference.structured_report import structured_report
from tests.inference.dicom_standard import problems
from tests.inference.results import image, result, source

PICTURE = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)


def capture(header: Dataset, **changes: Any) -> Dataset:
    return secondary_capture(result(header, **changes), header, PICTURE, "PNEUMONIA")


def report(header: Dataset, **changes: Any) -> Dataset:
    return structured_report(result(header, **changes), header)


BOTH = pytest.mark.parametrize("make", [report, capture])
Maker = Callable[..., Dataset]


def file_bytes(made: Dataset) -> bytes:
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def as_received(made: Dataset) -> Dataset:
    return pydicom.dcmread(BytesIO(file_bytes(made)))


def written(made: Dataset) -> str:
    return file_bytes(made).decode(errors="replace")


def content(made: Dataset) -> Any:
    """The report as the parser of the library that wrote it reads it from a file."""
    return hd.sr.srread(BytesIO(file_bytes(made))).content


# --- Validators -------------------------------------------------------------------------------------------------------

# Grades and two classes, with much and with nothing known about the image.
ANSWERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"decision": "NORMAL", "cautions": ()}),
    (
        {
            "Modality": "CR",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
            "ImageLaterality": "L",
            "BodyPartExamined": "KNEE",
        },
        {
            "probabilities": {str(grade): 0.2 for grade in range(5)},
            "decision": "3",
            "positive_class": "",
            "threshold": None,
        },
    ),
    (
        dict.fromkeys(
            ["PatientName", "PatientID", "PatientSex", "StudyDate", "StudyID", "PatientOrientation", "Modality"]
        ),
        {},
    ),
]


def dciodvfy(path: Path) -> list[str]:
    """What David Clunie's validator finds wrong.

    No faults are: our private coding scheme, which it cannot know, and what the image did not tell either.
    """
    program = Path(sys.executable).with_name("dciodvfy")
    found = subprocess.run([program, "-new", path], capture_output=True, text=True, timeout=60)
    assert found.returncode in (0, 1), found.stderr
    lines = [line for line in found.stderr.splitlines() if line.startswith(("Error", "Warning"))]
    return [line for line in lines if not any(text in line for text in ("99XRP", "DICOMDIR"))]


@BOTH
@pytest.mark.parametrize(("tags", "changes"), ANSWERS)
def test_dciodvfy_finds_nothing_wrong(
    make: Maker, tags: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "made.dcm"
    path.write_bytes(file_bytes(make(source(**tags), **changes)))
    assert dciodvfy(path) == []


@BOTH
@pytest.mark.parametrize(("tags", "changes"), ANSWERS)
def test_dicom_validator_finds_nothing_wrong(make: Maker, tags: dict[str, Any], changes: dict[str, Any]) -> None:
    assert problems(as_received(make(source(**tags), **changes))) == []


def test_the_validators_would_find_a_fault(tmp_path: Path) -> None:
    made = report(source())
    del made.CompletionFlag
    made.PreliminaryFlag = "MAYBE"
    path = tmp_path / "made.dcm"
    path.write_bytes(file_bytes(made))
    assert any("CompletionFlag" in line for line in dciodvfy(path))
    assert any("(0040,A491)" in line for line in problems(as_received(made)))


@pytest.mark.skipif(which("dsrdump") is None, reason="dsrdump is not installed (Debian: dcmtk)")
def test_dcmtk_reads_the_report(tmp_path: Path) -> None:
    path = tmp_path / "made.dcm"
    path.write_bytes(file_bytes(report(source())))
    found = subprocess.run(["dsrdump", "+Pl", path], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert '"Decision on Chest pneumonia")=(233604007,SCT,"Pneumonia")' in found.stdout
    assert "UNVERIFIED" in found.stdout


@pytest.mark.slow
def test_results_about_real_radiographs_are_valid(real_images: Path, tmp_path: Path) -> None:
    paths = sorted((real_images / "dicom").glob("*.dcm"))
    assert paths
    for path in paths:
        header = source_header(path.read_bytes())
        for make in (report, capture):
            made = tmp_path / f"{path.stem}-{make.__name__}.dcm"
            made.write_bytes(file_bytes(make(header)))
            # What the images themselves have wrong stays so: names as before 1993, invented UIDs.
            theirs = ("Retired Person Name", "[UI]", "UID = <", "only permitted to be empty when actually unknown")
            assert [line for line in dciodvfy(made) if not any(text in line for text in theirs)] == [], path.name
            assert pydicom.dcmread(made).PatientName == header.PatientName


# --- In the right study -----------------------------------------------------------------------------------------------


@BOTH
def test_a_result_belongs_to_the_study_and_patient_of_the_image_in_a_series_of_its_own(make: Maker) -> None:
    header = source()
    made = as_received(make(header))
    for keyword in ("StudyInstanceUID", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyDate"):
        assert made[keyword].value == header[keyword].value
    assert str(made.PatientName) == "Müller^Änne"
    assert made.SeriesInstanceUID != header.SeriesInstanceUID
    assert made.SOPInstanceUID.startswith("2.25.")
    assert (made.ContentDate, made.ContentTime) == ("20260301", "100507")


@BOTH
def test_the_same_result_is_the_same_instance_and_another_one_is_not(make: Maker) -> None:
    header = source()
    made = make(header)
    assert file_bytes(make(header)) == file_bytes(made)
    other = make(header, prediction_id=UUID(int=1))
    assert other.SOPInstanceUID != made.SOPInstanceUID
    assert other.SeriesInstanceUID != made.SeriesInstanceUID


def test_report_and_picture_are_instances_and_series_of_their_own() -> None:
    written_report, picture = report(source()), capture(source())
    assert written_report.SOPInstanceUID != picture.SOPInstanceUID
    assert written_report.SeriesInstanceUID != picture.SeriesInstanceUID


@BOTH
@pytest.mark.parametrize("level", ["Study", "Series", "SOP"])
def test_the_header_of_another_image_is_refused(make: Maker, level: str) -> None:
    answer = {"Study": "study_uid", "Series": "series_uid", "SOP": "sop_uid"}[level]
    with pytest.raises(WrongSource, match="not the one that was analysed"):
        make(source(), **{answer: "1.2.3"})


@BOTH
def test_an_image_that_is_no_dicom_image_has_no_dicom_result(make: Maker) -> None:
    with pytest.raises(NotDicom, match="no DICOM image"):
        make(source(), study_uid="", series_uid="", sop_uid="")
    with pytest.raises(NotDicom, match="SOP class"):
        header = source()
        del header.SOPClassUID
        make(header)


def test_a_picture_file_has_no_header() -> None:
    with pytest.raises(NotDicom):
        source_header(b"\xff\xd8\xff" + bytes(500))


@BOTH
def test_values_that_no_standard_knows_are_left_empty_and_never_logged(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    header = source(PatientSex="secret", PatientBirthDate="1951", StudyTime="noon", PatientName="Secret=a=b=c=d")
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = as_received(make(header))
    assert made.PatientSex == made.PatientBirthDate == made.StudyTime == ""
    assert made.PatientID == "P1"
    assert "ecret" not in caplog.text
    assert not [warning for warning in caught if "ecret" in str(warning.message)]


# --- What the report says ---------------------------------------------------------------------------------------------


def test_the_report_is_preliminary_and_signed_by_nobody() -> None:
    made = as_received(report(source()))
    assert made.Modality == "SR"
    assert (made.CompletionFlag, made.VerificationFlag, made.PreliminaryFlag) == (
        "PARTIAL",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert made.ContentTemplateSequence[0].TemplateIdentifier == "1500"


def test_the_report_holds_the_decision_and_each_probability() -> None:
    answer = result()
    groups = content(report(source())).get_image_measurement_groups()
    assert len(groups) == 1
    numbers = {item.name.meaning: item.value for item in groups[0].get_measurements()}
    assert numbers == {"Probability of NORMAL": 0.07, "Probability of PNEUMONIA": 0.93}
    names = {item.name.value for item in groups[0].get_measurements()}
    assert names == {probability_name(answer, name).value for name in answer.probabilities}
    assert {item.unit for item in groups[0].get_measurements()} == {codes.UCUM.NoUnits}
    (decision,) = groups[0].get_qualitative_evaluations()
    assert (decision.value.value, decision.value.scheme_designator) == ("233604007", "SCT")


def test_the_report_refers_to_the_image_and_names_the_model() -> None:
    header = source()
    made = report(header)
    (group,) = content(made).get_image_measurement_groups()
    assert group.source_images[0].referenced_sop_instance_uid == header.SOPInstanceUID
    assert hd.sr.srread(BytesIO(file_bytes(made))).get_evidence()[0][2] == header.SOPInstanceUID
    text = written(made)
    for expected in ("sha256=" + "ab" * 32, "threshold=0.42", "positive class=PNEUMONIA", "Chest pneumonia v3"):
        assert expected in text
    (observer,) = content(made).get_observer_contexts()
    assert observer.observer_type == codes.DCM.Device


def test_an_image_of_a_private_class_has_no_report_but_a_picture() -> None:
    header = source(SOPClassUID="1.2.3.4.5")
    with pytest.raises(NotDicom, match="not in the standard"):
        report(header)
    assert capture(header).SourceImageSequence[0].ReferencedSOPClassUID == "1.2.3.4.5"


def test_the_report_says_that_it_is_for_research_and_what_the_gate_said() -> None:
    texts = [item.TextValue for item in as_received(report(source())).ContentSequence[-1].ContentSequence]
    assert texts == [
        "AI result, research use. For research only, not for diagnosis.",
        "The image is unlike those that the model learned from.",
    ]


def test_a_negative_decision_does_not_carry_the_code_of_the_disease() -> None:
    assert "233604007" not in written(report(source(), decision="NORMAL"))


@pytest.mark.parametrize(
    ("condition", "positive", "code"),
    [
        ("Arm", "Fractured", "125605004"),
        ("Knee", "Osteoarthritis", "239873007"),
        ("Hip", "Osteoarthritis", ""),
        ("Arm fracture", "Healthy", ""),
        ("Arm fracture", "Non_fractured", ""),
        ("Chest", "No pneumonia", ""),
    ],
)
def test_only_a_positive_class_that_names_the_disease_has_its_code(condition: str, positive: str, code: str) -> None:
    answer = result(
        condition=condition, probabilities={positive: 0.9, "rest": 0.1}, decision=positive, positive_class=positive
    )
    found = class_concept(answer, positive)
    assert (found.value if found.scheme == "SCT" else "") == code


def test_names_of_classes_may_hold_anything() -> None:
    names = ["a\\b^c=d\n" * 20, "폐렴", "<script>"]
    made = report(
        source(), probabilities=dict.fromkeys(names, 1 / 3), decision=names[0], positive_class="", condition=names[1]
    )
    back = as_received(made)
    (group,) = content(back).get_image_measurement_groups()
    assert [item.name.meaning for item in group.get_measurements()][1] == "Probability of 폐렴"
    assert "\\" not in long_string(names[0])


# --- What the picture says --------------------------------------------------------------------------------------------


def test_the_picture_is_kept_and_the_text_stands_below_it() -> None:
    picture = np.full((600, 512, 3), 40, np.uint8)
    drawn = annotated(picture, ["AI result, research use"])
    assert np.array_equal(drawn[:600], picture)
    assert drawn[600:].max() == 255
    assert drawn.shape[1] == 512


def test_a_small_picture_is_enlarged_so_that_the_text_can_be_read() -> None:
    made = as_received(capture(source()))
    assert made.Columns == 512
    assert made.Rows > 512
    assert made.pixel_array.shape == (made.Rows, made.Columns, 3)


def test_the_picture_says_what_it_is_and_where_it_comes_from() -> None:
    header = source(LossyImageCompression="01")
    made = as_received(capture(header))
    assert made.BurnedInAnnotation == "YES"
    assert made.ImageType[0] == "DERIVED"
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == header.SOPInstanceUID
    assert made.LossyImageCompression == "01"
    assert "research use" in made.DerivationDescription
    assert caption(result(header), "PNEUMONIA")[:3] == [
        "AI result, research use",
        "Chest pneumonia: PNEUMONIA",
        "Probabilities: PNEUMONIA 0.930, NORMAL 0.070",
    ]


@pytest.mark.parametrize(
    "picture",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)],
)
def test_what_is_no_picture_is_refused(picture: Any) -> None:
    with pytest.raises(ValueError, match="picture"):
        annotated(picture, ["text"])


def test_the_header_is_read_without_the_pixels() -> None:
    header = source_header(image())
    assert "PixelData" not in header
    assert header.Rows
