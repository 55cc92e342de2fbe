"""The way from a radiograph's file to a stored answer: read, checked, answered by the right version, written down.

Whatever ends without an answer is written down too, with what its user was told.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.db import transaction
from numpy.typing import NDArray

from datasets import imaging
from datasets.enhancement import STEPS
from datasets.models import patient_key
from registry.models import ModelVersion
from registry.statistics import decide
from xrayplatform import audit
from xrayplatform.conditions import Condition

from . import experiments, gate, likeness, radiographs, shadowing
from .engine import EngineError, LoadedModel, Reading
from .models import Analysis, Batch, Experiment, NoActiveModel, Prediction, ServingPolicy, Unanswered
from .models.prediction import TURNS, WRITING, InService, model_in_service, model_of
from .reference import Reference, describe
from .turns import Busy

logger = logging.getLogger(__name__)


class GateRefused(Exception):
    """The radiograph is not fit for the model, and the condition's policy refuses such.

    verdicts: all of them. version: the one that would have answered; of an experiment the side that was drawn.
    """

    def __init__(
        self,
        refusals: Sequence[gate.Verdict],
        verdicts: Sequence[gate.Verdict],
        version: ModelVersion | None = None,
    ) -> None:
        super().__init__(" ".join(verdict.text for verdict in refusals))
        self.code = refusals[0].check
        self.verdicts = list(verdicts)
        self.version = version


@dataclass(frozen=True)
class Asked:
    """One request: who asks for what, on which way."""

    condition: Condition
    by: Any
    channel: str
    batch: Batch | None
    file_digest: str

    def unanswered(self, kind: str, error: Exception, code: str = "", **fields: Any) -> None:
        """Write down that there was no answer, with the audit entry."""
        with WRITING.take(), transaction.atomic():
            row = Unanswered.objects.create(
                condition=self.condition,
                # A challenger's failure leaves nobody of the batch without an answer.
                batch=None if fields.get("variant") else self.batch,
                kind=kind,
                code=code,
                text=str(error)[:500],
                channel=self.channel,
                file_digest=self.file_digest,
                created_by=self.by,
                request_id=audit.current_context().request_id,
                **fields,
            )
            outcome = audit.AuditEntry.Outcome.FAILED
            after = {"condition": self.condition.slug, "kind": kind, "code": code}
            audit.record("prediction.create", row, actor=self.by, outcome=outcome, after=after)


@dataclass(frozen=True)
class Answering:
    """The version that answers, its compiled model, and from which probability on it calls its positive class.

    routed: the experiment that it answers in; None without any.
    """

    version: ModelVersion
    model: LoadedModel
    threshold: float | None
    routed: "experiments.Routed | None" = None
    variant: str = ""


@dataclass(frozen=True)
class Seen:
    """What a version saw and said of one radiograph. pixels: uint8 (S, S). reading: of one image."""

    pixels: NDArray[np.uint8]
    reading: Reading
    verdicts: list[gate.Verdict]
    measures: dict[str, float]


def analyse(
    condition: Condition, source: bytes, *, by: Any, channel: str = Prediction.Channel.WEB, batch: Batch | None = None
) -> Analysis:
    """See `Prediction.objects.analyse`."""
    asked = Asked(condition, by, channel, batch, hashlib.sha256(source).hexdigest())
    try:
        return _analyse(asked, source)
    except imaging.ImageError as error:
        asked.unanswered(Unanswered.Kind.UNREADABLE, error, error.code)
        raise
    except GateRefused as error:
        asked.unanswered(Unanswered.Kind.REFUSED, error, error.code, version=error.version)
        raise
    except NoActiveModel as error:
        asked.unanswered(Unanswered.Kind.NO_MODEL, error)
        raise
    except EngineError as error:
        asked.unanswered(Unanswered.Kind.BUSY if isinstance(error, Busy) else Unanswered.Kind.FAILED, error)
        raise


def _analyse(asked: Asked, source: bytes) -> Analysis:
    start = time.perf_counter()
    in_service = model_in_service(asked.condition)
    policy = ServingPolicy.objects.of(asked.condition)
    experiment = experiments.running(asked.condition, in_service.deployment)
    _load_challenger(experiment)
    # Only now: a model that is loading must not keep those waiting whose model is there.
    with TURNS.take():
        radiograph = imaging.read(source)
        routed = experiments.route(experiment, _subject(radiograph))
        before = time.perf_counter() - start
        answering, seen = _seen_by(asked, in_service, routed, radiograph)
        refusals = policy.refusals(seen.verdicts)
        if refusals:
            raise GateRefused(refusals, seen.verdicts, answering.version)
    prediction = _prediction(asked, answering, seen, radiograph, start)
    radiographs.keep(source, radiograph)
    with WRITING.take(), transaction.atomic():
        prediction.save()
        audit.record("prediction.create", prediction, actor=asked.by, after={"version": str(answering.version)})
    if routed is not None:
        shadowing.after(routed, asked, prediction, radiograph, before)
    return Analysis(prediction, seen.pixels, _notice(in_service))


def _load_challenger(experiment: Experiment | None) -> None:
    """Have the challenger ready, whichever side will answer; a failure is told once it is the challenger's turn."""
    if experiment is None or experiment.kind != Experiment.Kind.AB:
        return
    with contextlib.suppress(Exception):
        model_of(experiment.challenger)


def _seen_by(
    asked: Asked, in_service: InService, routed: "experiments.Routed | None", radiograph: imaging.Radiograph
) -> tuple[Answering, Seen]:
    """Who answered, and what. A challenger that fails does not cost anybody an answer: the champion gives it."""
    if routed is not None and routed.answers:
        try:
            answering = challenger(routed)
            return answering, see(answering, radiograph)
        except Exception as error:
            logger.exception("The challenger of experiment %s failed", routed.experiment.pk)
            shadowing.count_failure(asked, routed, Unanswered.Kind.FAILED, error)
            experiments.guard(routed.experiment)
            # Given to neither side: the champion's studies would no longer be drawn by lot.
            routed = None
    champion = Answering(
        in_service.version,
        in_service.served.model,
        in_service.threshold,
        routed,
        Prediction.Variant.CHAMPION if routed else "",
    )
    return champion, see(champion, radiograph)


def challenger(routed: "experiments.Routed") -> Answering:
    """The experiment's challenger, loaded aside. Raises EngineError."""
    version = routed.challenger
    return Answering(version, model_of(version), version.threshold, routed, Prediction.Variant.CHALLENGER)


def see(answering: Answering, radiograph: imaging.Radiograph) -> Seen:
    """Check the radiograph and read it in one pass through the network; in two where it looks inverted."""
    version, known = answering.version, likeness.of(answering.version)
    pixels = _model_input(radiograph, version)
    looked = gate.look(
        radiograph,
        pixels,
        fit=version.preprocessing["fit"],
        cropped="crop_borders" in version.preprocessing.get("steps", ()),
        body_part=version.condition.body_part,
        usual=known.distributions,
    )
    reading = answering.model.read(pixels[None])
    distance = _distance(known.reference, reading, pixels)
    negative = None
    if gate.wants_negative(looked, known.reference, distance):
        negative = _distance_of_negative(known.reference, answering.model, radiograph, version)
    measures = (
        looked.measures
        if distance is None or not np.isfinite(distance)
        else {
            **looked.measures,
            "distance": round(distance, 4),
        }
    )
    return Seen(pixels, reading, gate.judge(looked, known.reference, distance, negative), measures)


def _model_input(radiograph: imaging.Radiograph, version: ModelVersion) -> NDArray[np.uint8]:
    treatment = version.preprocessing
    return imaging.model_input(radiograph, version.image_size, treatment["fit"], treatment.get("steps", ()))


def _distance(reference: Reference | None, reading: Reading, pixels: NDArray[np.uint8]) -> float | None:
    if reference is None or reading.features is None:
        return None
    return float(reference.distances(describe(reading.features, pixels[None]))[0])


def _distance_of_negative(
    reference: Reference | None, model: LoadedModel, radiograph: imaging.Radiograph, version: ModelVersion
) -> float | None:
    treatment = version.preprocessing
    negative = 255 - radiograph.grey
    pixels = imaging.to_model_input(negative, version.image_size, treatment["fit"], treatment.get("steps", ()))
    return _distance(reference, model.read(pixels[None]), pixels)


def _prediction(
    asked: Asked, answering: Answering, seen: Seen, radiograph: imaging.Radiograph, start: float
) -> Prediction:
    """The answer as it is stored; `start`: of time.perf_counter, when the request came."""
    version, probabilities = answering.version, seen.reading.probabilities
    positive = version.positive_class or None
    return Prediction(
        version=version,
        probabilities=dict(zip(version.classes, map(float, probabilities[0]), strict=True)),
        threshold=answering.threshold,
        decision=decide(probabilities, version.classes, positive, answering.threshold)[0],
        file_digest=asked.file_digest,
        image_digest=radiograph.digest,
        file_format=radiograph.format,
        study_uid=radiograph.study_uid[:64],
        series_uid=radiograph.series_uid[:64],
        sop_uid=radiograph.sop_uid[:64],
        modality=radiograph.modality[:16],
        body_part=radiograph.body_part[:40],
        patient_key=patient_key(radiograph.patient) if radiograph.patient else "",
        width=radiograph.width,
        height=radiograph.height,
        gate=[verdict.to_json() for verdict in seen.verdicts],
        measures=seen.measures,
        steps=[*radiograph.steps, *_treatment(version)],
        channel=asked.channel,
        batch=asked.batch,
        experiment=answering.routed.experiment if answering.routed else None,
        variant=answering.variant,
        latency_ms=1000 * (time.perf_counter() - start),
        created_by=asked.by,
        request_id=audit.current_context().request_id,
        **_activation(seen.reading),
    )


def _treatment(version: ModelVersion) -> list[str]:
    return [STEPS[step] for step in version.preprocessing.get("steps", ()) if step in STEPS]


def _activation(reading: Reading) -> dict[str, Any]:
    """The class activation maps of one image, small enough to stand in its row."""
    if reading.contributions is None or reading.grid is None:
        return {}
    _, _, rows, columns = reading.contributions.shape
    most = np.finfo(np.float16).max
    return {
        "activation": np.clip(reading.contributions[0], -most, most).astype("<f2").tobytes(),
        "activation_frame": {
            "rows": rows,
            "columns": columns,
            "first": reading.grid.first,
            "step": reading.grid.step,
        },
    }


def answer_unseen(
    asked: Asked, routed: "experiments.Routed", shown: Prediction, radiograph: imaging.Radiograph, before: float
) -> Prediction:
    """Let the challenger read what the champion answered, and store its answer, which nobody is shown.

    before: seconds from the request until the champion began to read; the latency counts them, so that those of both
    sides can be compared. Raises EngineError.
    """
    start = time.perf_counter() - before
    answering = challenger(routed)
    seen = see(answering, radiograph)
    prediction = _prediction(asked, answering, seen, radiograph, start)
    # The batch counts what is shown.
    prediction.shown, prediction.paired_with, prediction.batch = False, shown, None
    with WRITING.take(), transaction.atomic():
        prediction.save()
        after = {"version": str(answering.version), "shadow_of": str(shown.pk)}
        audit.record("prediction.create", prediction, actor=asked.by, after=after)
    return prediction


def _subject(radiograph: imaging.Radiograph) -> str:
    """What belongs together in an experiment: a study, else a patient, else copies of one image."""
    if radiograph.study_uid:
        return radiograph.study_uid
    return patient_key(radiograph.patient) if radiograph.patient else radiograph.digest


def _notice(in_service: InService) -> str:
    failure = in_service.served.failure
    if not failure:
        return ""
    return f"{in_service.version} answered: the version in service could not be loaded. {failure}"
