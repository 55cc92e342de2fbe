"""A prediction as a DICOM Structured Report: TID 1500 Measurement Report, for archives and viewers.

One measurement group of the image holds the decision as a code and the probability of each class as a number; which
model made them is identified there too. The report is preliminary, partial and unverified: nobody has signed it.
"""

from typing import Final

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    ImageLibraryEntryDescriptors,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from . import results
from .dicom_context import NotDicom, check_source, equipment, evidence, put_context
from .results import Concept, Result

# Behind the series of every modality and apart from those that viewers number themselves.
SERIES_NUMBER: Final = 9501
# TID 1500, row 10: where sentences go.
_EVALUATIONS: Final = Concept("C0034375", "UMLS", "Qualitative Evaluations")
_INTENDED_USE: Final = Concept("INTENDED-USE", results.PRIVATE_SCHEME, "Intended use")
_CAUTION: Final = Concept("CAUTION", results.PRIVATE_SCHEME, "Caution about the image")
_NO_UNITS: Final = Concept("1", "UCUM", "no units")


def structured_report(result: Result, source: Dataset) -> Dataset:
    """The report of a result about the image whose header is `source`; the same result gives the same report.

    Comprehensive SR, Explicit VR Little Endian, ready to be written or sent. Raises NotDicom for an image without
    UIDs or of a private class, and WrongSource for the header of another image.
    """
    check_source(result, source)
    image = evidence(source)
    _check_class(image)
    scheme = CodingSchemeIdentificationItem(
        results.PRIVATE_SCHEME,
        name=results.PRIVATE_SCHEME_NAME,
        responsible_organization=results.long_string(result.site) or results.PLATFORM,
    )
    report = ComprehensiveSR(
        evidence=[image],
        content=_content(result, image)[0],
        series_instance_uid=results.uid("report-series", result.prediction_id),
        series_number=SERIES_NUMBER,
        sop_instance_uid=results.uid("report", result.prediction_id),
        instance_number=1,
        is_complete=False,
        is_final=False,
        is_verified=False,
        coding_schemes=[scheme],
        **equipment(result),
    )
    put_context(report, source, result)
    # Of the procedure steps that led to the image the platform knows nothing (type 2).
    report.ReferencedPerformedProcedureStepSequence = []
    return report


def _content(result: Result, image: Dataset) -> MeasurementReport:
    content = MeasurementReport(
        observation_context=_observer(result),
        procedure_reported=codes.SCT.PlainRadiography,
        imaging_measurements=[_group(result, image)],
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=[image],
    )
    content[0].ContentSequence.append(_sentences(result))
    return content


def _check_class(image: Dataset) -> None:
    """A report describes its images by their kind, which private classes do not tell."""
    try:
        ImageLibraryEntryDescriptors(image)
    except (ValueError, KeyError):
        raise NotDicom("The image is of a class that is not in the standard; no report can refer to it.") from None


def _observer(result: Result) -> ObservationContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=results.device_uid(result),
        name=results.PLATFORM,
        manufacturer_name=results.PLATFORM,
        model_name=results.long_string(result.version),
        serial_number=result.sha256,
        physical_location=results.long_string(result.site) or None,
    )
    return ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device))


def _group(result: Result, image: Dataset) -> MeasurementsAndQualitativeEvaluations:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=results.uid("tracking", result.prediction_id), identifier=str(result.prediction_id)
        ),
        algorithm_id=AlgorithmIdentification(
            name=results.plain_text(result.condition),
            version=results.plain_text(result.version),
            parameters=_parameters(result),
            manufacturer=results.plain_text(result.site) or None,
        ),
        measurements=[
            Measurement(_code(results.probability_name(result, name)), round(float(chance), 6), _code(_NO_UNITS))
            for name, chance in result.probabilities.items()
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(
                _code(results.decision_name(result)), _code(results.class_concept(result, result.decision))
            )
        ],
        source_images=[SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)],
    )


def _parameters(result: Result) -> list[str]:
    parameters = [f"sha256={result.sha256}"]
    if result.threshold is not None:
        parameters.append(f"threshold={result.threshold:.6g}")
    if result.positive_class:
        parameters.append(f"positive class={results.plain_text(result.positive_class)}")
    return parameters


def _sentences(result: Result) -> ContainerContentItem:
    container = ContainerContentItem(_code(_EVALUATIONS), relationship_type=RelationshipTypeValues.CONTAINS)
    use = f"{results.RESEARCH_USE}. {result.intended_use}"
    texts = [(_INTENDED_USE, use), *((_CAUTION, caution) for caution in result.cautions)]
    container.ContentSequence = ContentSequence(
        TextContentItem(_code(name), results.plain_text(text), RelationshipTypeValues.CONTAINS) for name, text in texts
    )
    return container


def _code(concept: Concept) -> CodedConcept:
    return CodedConcept(concept.value, concept.scheme, concept.meaning)
