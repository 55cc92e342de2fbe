"""A prediction as a FHIR R4 report: what other systems read, and that it names no patient."""

import json
from typing import Any

from fhir.resources.R4B.diagnosticreport import DiagnosticReport
from pydicom.dataset import Dataset

from inference.fhir import fhir_report
from tests.inference.results import result, source


def contained(report: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(resource for resource in report["contained"] if resource["resourceType"] == kind)


def read_back(report: dict[str, Any]) -> dict[str, Any]:
    """What a FHIR library makes of the JSON: it refuses unknown elements, wrong types and missing references."""
    return json.loads(DiagnosticReport.model_validate_json(json.dumps(report)).model_dump_json())


def test_a_report_is_valid_fhir_and_comes_back_as_it_was_sent() -> None:
    for answer in (
        result(),
        result(decision="NORMAL"),
        result(threshold=None, positive_class="", cautions=()),
        result(study_uid="", series_uid="", sop_uid="", site=""),
    ):
        report = fhir_report(answer, subject=("urn:oid:1.2.3", "4711"), url="https://xray.example/predictions/1/")
        back = read_back(report)
        assert back["status"] == contained(back, "Observation")["status"] == "preliminary"
        assert contained(back, "Observation")["component"] == contained(report, "Observation")["component"]
        assert set(back) == set(report)


def test_the_observation_holds_the_decision_and_each_probability() -> None:
    observation = contained(fhir_report(result()), "Observation")
    decision = observation["valueCodeableConcept"]["coding"][0]
    assert decision == {"system": "http://snomed.info/sct", "code": "233604007", "display": "Pneumonia"}
    assert observation["interpretation"][0]["coding"][0]["code"] == "POS"
    numbers = {part["code"]["text"]: part["valueQuantity"]["value"] for part in observation["component"]}
    assert numbers == {"Probability of NORMAL": 0.07, "Probability of PNEUMONIA": 0.93}
    assert "0.42" in observation["method"]["text"]


def test_a_negative_decision_does_not_carry_the_code_of_the_disease() -> None:
    report = fhir_report(result(decision="NORMAL"))
    assert "233604007" not in json.dumps(report)
    assert contained(report, "Observation")["interpretation"][0]["coding"][0]["code"] == "NEG"


def test_grades_are_neither_positive_nor_negative() -> None:
    grades = {str(grade): 0.2 for grade in range(5)}
    answer = result(probabilities=grades, decision="3", positive_class="", threshold=None)
    assert "interpretation" not in contained(fhir_report(answer), "Observation")


def test_the_study_is_named_by_its_uid() -> None:
    header = source()
    report = fhir_report(result(header))
    expected = {"system": "urn:dicom:uid", "value": f"urn:oid:{header.StudyInstanceUID}"}
    assert report["imagingStudy"][0]["identifier"] == expected
    assert contained(report, "Observation")["derivedFrom"][0]["identifier"] == expected


def test_no_patient_is_named_unless_the_caller_does() -> None:
    header: Dataset = source()
    text = json.dumps(fhir_report(result(header)))
    assert "subject" not in text
    assert header.PatientID not in text
    assert "ller" not in text
    named = fhir_report(result(header), subject=("urn:oid:1.2.3", "4711"))
    assert named["subject"]["identifier"] == {"system": "urn:oid:1.2.3", "value": "4711"}


def test_every_report_says_that_it_is_for_research() -> None:
    report = fhir_report(result())
    for text in (report["conclusion"], contained(report, "Observation")["note"][0]["text"]):
        assert "research use" in text
        assert "For research only, not for diagnosis." in text
    assert contained(report, "Observation")["note"][1]["text"].startswith("The image is unlike")
