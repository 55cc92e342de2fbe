"""Look inside an evaluation: the images behind each cell of its confusion matrix, and where the model saw what it said.

Decisions are made as in the report, so that the images of a cell are as many as the matrix says.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets import rendering
from datasets.models import FLAGGED_LABEL, Dataset, DatasetImage, Finding, Preparation
from datasets.quality import TEST_ADVICE
from registry.calibration import with_temperature
from registry.models import Evaluation, ModelVersion
from registry.statistics import decide_indices

from . import maps
from .engine import EngineError, LoadedModel, load
from .models import EvaluationRun

# Models are some hundred megabytes at most; those of the evaluations that are looked into now are kept.
MODELS_KEPT = 2
# Part of the names of maps: to be raised when they are drawn in another way.
MAP_STYLE = 1
NOT_THERE = "This image is not in the dataset any more, or has other pixels now."


class NoMap(Exception):
    """There is no map of this image. The message says why."""


@dataclass(frozen=True)
class Source:
    """Where the images of an evaluation can be seen. problem: why they cannot, in words; "" when they can."""

    dataset: Dataset | None = None
    preparation: Preparation | None = None
    problem: str = ""


@dataclass(frozen=True)
class Seen:
    """One image of an evaluation. position: among its images. split: of the preparation, "" where there is none.

    image: None where it cannot be shown, `problem` says why. flag: what somebody said who calls its label wrong.
    """

    position: int
    true: str
    predicted: str
    ranked: list[tuple[str, float]]
    digest: str
    image: DatasetImage | None
    split: str = ""
    flag: Finding | None = None
    problem: str = ""

    @property
    def is_misread(self) -> bool:
        return self.true != self.predicted

    @property
    def label_now(self) -> str:
        """The label that the image has now, where it is another one than it was measured with."""
        label = self.image.label if self.image else ""
        return label if label.casefold() != self.true.casefold() else ""

    @property
    def in_words(self) -> str:
        """What the version said, without its name, with what to think of when a label is called wrong for it."""
        advice = f" The image was in the test part.{TEST_ADVICE}" if self.split == "test" else ""
        return f"read {self.predicted} ({dict(self.ranked)[self.predicted]:.1%}).{advice}"


class Inside:
    """The answers of an evaluation with the images they are about, as far as `user` may see these; None sees all.

    Its properties raise EvaluationUnusable when the answers are gone.
    """

    def __init__(self, evaluation: Evaluation, user: Any) -> None:
        self.evaluation, self.user = evaluation, user
        self.classes: Sequence[str] = evaluation.question.classes

    @cached_property
    def answers(self) -> Any:
        return self.evaluation.images

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """float64 (N, C), after the temperature."""
        return with_temperature(self.answers.probabilities, self.evaluation.question.temperature)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        question = self.evaluation.question
        return decide_indices(self.probabilities, question.classes, question.positive_class, question.threshold)

    def positions(self, true: str = "", predicted: str = "") -> NDArray[np.int64]:
        """Images of a cell of the confusion matrix, or with an empty class all errors of a row, a column, or at all.

        Errors with the most confident first; of those that were read rightly the most doubtful first.
        """
        labels = self.answers.labels
        wanted = np.ones(len(labels), bool) if true and predicted else labels != self.predicted
        if true:
            wanted &= labels == self.classes.index(true)
        if predicted:
            wanted &= self.predicted == self.classes.index(predicted)
        found = np.flatnonzero(wanted)
        confidence = self.probabilities[found, self.predicted[found]]
        rightly = bool(true) and true == predicted
        return found[np.argsort(confidence if rightly else -confidence, kind="stable")]

    def seen(self, positions: NDArray[np.int64]) -> list[Seen]:
        """These images, a page of them: a few queries for all."""
        digests = self.answers.digests[positions].tolist()
        rows = self._manifest(self.answers.rows[positions].tolist())
        images = self._images(digests)
        flags = self._flags(images.values())
        return [self._one(int(position), rows, images, flags) for position in positions]

    def one(self, position: int) -> Seen:
        """Raises IndexError for a position that no image has."""
        if not 0 <= position < len(self.answers.labels):
            raise IndexError(position)
        return self.seen(np.array([position]))[0]

    def _one(
        self,
        position: int,
        rows: dict[int, tuple[str, str]],
        images: dict[tuple[str, str], DatasetImage],
        flags: dict[int, Finding],
    ) -> Seen:
        answers, digest = self.answers, str(self.answers.digests[position])
        path, split = rows.get(int(answers.rows[position]), ("", ""))
        true = self.classes[answers.labels[position]]
        image = images.get((digest, path)) or images.get((digest, true.casefold())) or images.get((digest, ""))
        probabilities = self.probabilities[position].tolist()
        return Seen(
            position=position,
            true=true,
            predicted=self.classes[self.predicted[position]],
            ranked=sorted(zip(self.classes, probabilities, strict=True), key=lambda item: -item[1]),
            digest=digest,
            image=image,
            split=split,
            flag=flags.get(image.pk) if image else None,
            problem="" if image else self.source.problem or NOT_THERE,
        )

    @cached_property
    def source(self) -> Source:
        evaluation = self.evaluation
        if evaluation.preparation is not None:
            return self._source_of_preparation()
        run = EvaluationRun.objects.filter(evaluation=evaluation).first()
        if run is None:
            return Source(problem="These images came from a folder outside of the datasets; the platform kept none.")
        return self._source(run.dataset_id, None)

    def _source_of_preparation(self) -> Source:
        evaluation = self.evaluation
        # Numbers are those of the place where it was measured.
        known = Preparation.objects.filter(pk=evaluation.preparation, split_digest=evaluation.split_digest).first()
        if known is None:
            return Source(
                problem=f"Preparation {evaluation.preparation}, which these images belong to, is not here any more, so "
                "that they cannot be shown."
            )
        return self._source(known.dataset_id, known)

    def _source(self, dataset: int, preparation: Preparation | None) -> Source:
        found = Dataset.objects.seen_by(self.user).filter(pk=dataset).first()
        if found is None:
            return Source(problem="These images are not in a dataset that you may see.")
        return Source(found, preparation)

    def _manifest(self, rows: list[int]) -> dict[int, tuple[str, str]]:
        """Path and split by row; empty where there is no preparation, or it may not be seen."""
        preparation = self.source.preparation
        if preparation is None:
            return {}
        columns = preparation.manifest.filter(row__in=rows).values_list("row", "path", "split")
        return {row: (path, split) for row, path, split in columns}

    def _images(self, digests: list[str]) -> dict[tuple[str, str], DatasetImage]:
        """By digest and path; also, of copies, by digest and label, and by the digest alone."""
        if self.source.dataset is None:
            return {}
        images = self.source.dataset.images.filter(digest__in=digests).select_related("dataset").defer("fingerprint")
        found: dict[tuple[str, str], DatasetImage] = {}
        for image in images:
            found[image.digest, image.path] = image
            found.setdefault((image.digest, image.label.casefold()), image)
            found.setdefault((image.digest, ""), image)
        return found

    def _flags(self, images: Any) -> dict[int, Finding]:
        flags = Finding.objects.filter(image__in={image.pk for image in images}, code=FLAGGED_LABEL)
        return {flag.image_id: flag for flag in flags.select_related("flagged_by")}


# -- Maps


class Shelf:
    """The models that were used last, compiled; a version's files are loaded once, however many ask at a time."""

    def __init__(self, kept: int = MODELS_KEPT) -> None:
        self._kept = kept
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, sha256: str, loader: Callable[[], LoadedModel]) -> LoadedModel:
        """Raises what `loader` raises."""
        with self._lock:
            if sha256 not in self._models:
                self._models[sha256] = loader()
            self._models.move_to_end(sha256)
            while len(self._models) > self._kept:
                self._models.popitem(last=False)
            return self._models[sha256]


SHELF = Shelf()


def map_name(evaluation: Evaluation, digest: str, class_index: int) -> str:
    """Names a map by all that it depends on; a strong ETag."""
    return f'"{evaluation.version.sha256}-{digest}-{class_index}-{MAP_STYLE}"'


def draw_map(version: ModelVersion, image: DatasetImage, class_index: int) -> bytes:
    """The network's input with what speaks for the class laid over it: a PNG. Raises NoMap."""
    try:
        model = SHELF.get(version.sha256, lambda: load(version.folder, version.sha256))
        if not model.has_maps:
            raise NoMap("This network has no class activation maps.")
        treatment = version.preprocessing
        pixels = rendering.model_input(image, version.image_size, treatment["fit"], treatment.get("steps", ()))
    except (EngineError, rendering.NotShown) as error:
        raise NoMap(str(error)) from error
    reading = model.read(pixels[None])
    activation = reading.maps(class_index)
    if activation is None:
        raise NoMap("This network has no class activation maps.")
    return maps.overlay(pixels, activation[0], reading.grid)
