"""A prediction as FHIR R4: a preliminary DiagnosticReport that contains its Observation and the Device that made it.

https://hl7.org/fhir/R4/diagnosticreport.html. The report stands alone: it refers to the study by its UID, and to a
patient only where the caller names one.
"""

from typing import Any, Final

from . import results
from .results import Concept, Result

MEDIA_TYPE: Final = "application/fhir+json"
_SYSTEMS: Final = {"SCT": "http://snomed.info/sct", "UCUM": "http://unitsofmeasure.org"}
_INTERPRETATIONS: Final = {True: ("POS", "Positive"), False: ("NEG", "Negative")}
# Uniform numbers, so that float32 does not look like seven digits of knowledge.
_DIGITS: Final = 6


def fhir_report(result: Result, *, subject: tuple[str, str] | None = None, url: str = "") -> dict[str, Any]:
    """The result as a FHIR R4 DiagnosticReport, to be written as JSON.

    subject: system and value of the patient's identifier, for a logical reference; None leaves the patient out. url:
    the address of the result's page.
    """
    about = _about(result, subject)
    report = {
        "resourceType": "DiagnosticReport",
        "id": str(result.prediction_id),
        "contained": [_observation(result, about), _device(result)],
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{result.prediction_id}"}],
        "status": "preliminary",
        "category": [_coding("http://terminology.hl7.org/CodeSystem/v2-0074", "RAD", "Radiology")],
        "code": _coding("http://loinc.org", "18748-4", "Diagnostic imaging study"),
        **about,
        "issued": result.time.isoformat(timespec="milliseconds"),
        "result": [{"reference": "#observation"}],
        "conclusion": f"{result.sentence()} {result.intended_use}",
    }
    if result.site:
        report["performer"] = [{"type": "Organization", "display": result.site}]
    if result.study_uid:
        report["imagingStudy"] = [_study(result)]
    if url:
        report["presentedForm"] = [{"contentType": "text/html", "url": url, "title": "Result page"}]
    return report


def _about(result: Result, subject: tuple[str, str] | None) -> dict[str, Any]:
    """What report and observation share: whom it is about, and when it was true."""
    about: dict[str, Any] = {}
    if subject is not None:
        system, value = subject
        about["subject"] = {"type": "Patient", "identifier": {"system": system, "value": value}}
    return about | {"effectiveDateTime": result.time.isoformat(timespec="seconds")}


def _observation(result: Result, about: dict[str, Any]) -> dict[str, Any]:
    observation = {
        "resourceType": "Observation",
        "id": "observation",
        "status": "preliminary",
        "category": [_coding("http://terminology.hl7.org/CodeSystem/observation-category", "imaging", "Imaging")],
        "code": _concept(results.decision_name(result)),
        **about,
        "valueCodeableConcept": _concept(results.class_concept(result, result.decision)),
        "note": [{"text": text} for text in (f"{results.RESEARCH_USE}. {result.intended_use}", *result.cautions)],
        "method": {"text": f"{result.version}, sha256 {result.sha256}{_threshold(result)}"},
        "device": {"reference": "#device"},
        "component": [_component(result, name, chance) for name, chance in result.probabilities.items()],
    }
    if result.is_positive is not None:
        system = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
        observation["interpretation"] = [_coding(system, *_INTERPRETATIONS[result.is_positive])]
    if result.study_uid:
        observation["derivedFrom"] = [_study(result)]
    return observation


def _threshold(result: Result) -> str:
    if result.threshold is None:
        return ""
    return f", {result.positive_class} from a probability of {result.threshold:.6g} on"


def _component(result: Result, name: str, chance: float) -> dict[str, Any]:
    quantity = {"value": round(float(chance), _DIGITS), "system": _SYSTEMS["UCUM"], "code": "1"}
    return {"code": _concept(results.probability_name(result, name)), "valueQuantity": quantity}


def _device(result: Result) -> dict[str, Any]:
    return {
        "resourceType": "Device",
        "id": "device",
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:oid:{results.device_uid(result)}"}],
        "manufacturer": results.PLATFORM,
        "deviceName": [{"name": result.version, "type": "user-friendly-name"}],
        "version": [
            {"type": {"text": "model"}, "value": f"{result.version} {result.sha256}"},
            {"type": {"text": "software"}, "value": result.software},
        ],
    }


def _study(result: Result) -> dict[str, Any]:
    # DICOM PS3.20 and FHIR R4 ImagingStudy.identifier: UIDs are named as URNs in the system urn:dicom:uid.
    identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{result.study_uid}"}
    return {"type": "ImagingStudy", "identifier": identifier}


def _concept(concept: Concept) -> dict[str, Any]:
    system = _SYSTEMS.get(concept.scheme, f"urn:oid:{results.uid('scheme', concept.scheme)}")
    return _coding(system, concept.value, concept.meaning)


def _coding(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}], "text": display}
