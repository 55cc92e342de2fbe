"""Measure a version on labelled images of a dataset: the work of an EvaluationRun."""

import shutil
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from django.db import transaction
from numpy.typing import NDArray

from datasets import copies, decoding, subgroups
from datasets.cache import CacheError, PixelStore, open_cache
from datasets.models import Preparation
from registry.models import Evaluation, Measured, ModelVersion
from registry.reports import EvaluatedImages
from xrayplatform.jobs import JobError
from xrayplatform.system import NotEnoughDisk, require_disk

from . import choosing
from .choosing import Chosen
from .engine import EngineError, LoadedModel, load

BATCH = 32
LISTED_PROBLEMS = 100
# Of the time, until images that must be decoded are, and until the model has read all.
_DECODED, _READ = 0.7, 0.97


class Report(Protocol):
    def __call__(self, done: int, total: int, message: str) -> None: ...


def evaluate(job: Any) -> None:
    """Do the work of an EvaluationRun; ends the job. Raises JobError, JobCancelled, LeaseLost."""
    version: ModelVersion = job.version
    job.renew(message="Loading the model")
    model = _loaded(version)
    job.renew(message="Choosing the images")
    report = job.reporter()
    chosen = _chosen(job, report)
    selection = chosen.notes
    with _Pixels(job, chosen, report) as pixels:
        chosen = chosen.only(pixels.readable, *pixels.notes)
        if not len(chosen):
            raise JobError(
                f"Not one of the images could be read: {pixels.problems[0]['reason']}",
                "Scan the dataset again and look at its problems.",
            )
        probabilities = _predict(model, pixels, report)
    job.renew(message="Computing the figures", progress=0.98)
    measured = _measured(job, chosen, probabilities)
    # For the model card, which leaves the hospital: words of the platform alone, without what decoders say of files.
    measured.report["selection"] = list(selection)
    with transaction.atomic():
        evaluation = Evaluation.objects.store(version, measured, by=job.created_by)
        job.write(evaluation=evaluation, problems=pixels.problems[:LISTED_PROBLEMS])
        job.succeed(f"Measured on {len(chosen):,} images", after={"evaluation": evaluation.pk})


def _chosen(job: Any, report: Report) -> Chosen:
    """Raises JobError where the classes are not those of the version, or nothing is left."""
    version = job.version
    if job.preparation is not None:
        chosen = choosing.of_preparation(job.preparation, job.part, version.classes)
    else:
        chosen = choosing.of_dataset(job.dataset, version.classes)
    if not len(chosen):
        raise JobError("There are no images to measure on.", "Choose another part, or another dataset.")
    return choosing.without_known(
        version,
        chosen,
        job.kind,
        copies.Pictures.of(job.dataset),
        # Little of the whole time; the share of the work begins with the pixels.
        lambda share: report(0, 1, f"Looking for copies of what the version learned from, {100 * share:.0f} %"),
    )


def _loaded(version: ModelVersion) -> LoadedModel:
    try:
        return load(version.folder, version.sha256)
    except EngineError as error:
        raise JobError(str(error), "A version is only measured when its files are whole.") from error


def _predict(model: LoadedModel, pixels: "_Pixels", report: Report) -> NDArray[np.float64]:
    """What the network says of the readable images, before the temperature: float64 (N, C). Raises JobError."""
    rows = pixels.readable
    parts = []
    for start in range(0, len(rows), BATCH):
        parts.append(model.predict(pixels.read(rows[start : start + BATCH])))
        done = pixels.share + (_READ - pixels.share) * start / len(rows)
        report(int(1000 * done), 1000, f"{start:,} of {len(rows):,} images read by the model")
    probabilities = np.concatenate(parts)
    unusable = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if unusable:
        raise JobError(
            f"The network answered {unusable:,} of {len(rows):,} images with something that is not a number, so that "
            "no figure can be computed.",
            "Do not use this version. Train it again with a smaller learning rate.",
        )
    return probabilities


def _measured(job: Any, chosen: Chosen, probabilities: NDArray[np.float64]) -> Measured:
    images = EvaluatedImages(
        labels=np.asarray(chosen.labels, np.int64),
        probabilities=probabilities,
        groups=np.asarray(chosen.groups, np.int64),
        digests=np.asarray(chosen.digests),
        rows=np.asarray(chosen.rows, np.int64),
        subgroups=_subgroups(job, chosen),
    )
    preparation: Preparation | None = job.preparation
    measured = Measured.of(
        job.kind,
        images,
        job.version.question,
        dataset_name=job.dataset.name,
        preparation=preparation and preparation.pk,
        dataset_digest=preparation.dataset_digest if preparation else job.dataset.digest,
        split_digest=preparation.split_digest if preparation else "",
    )
    measured.report["warnings"] += chosen.notes
    return measured


def _subgroups(job: Any, chosen: Chosen) -> dict[str, NDArray[np.str_]]:
    if job.preparation is not None:
        return subgroups.of_preparation(job.preparation, chosen.rows)
    return subgroups.of_dataset(job.dataset, chosen.paths, chosen.digests, chosen.groups)


# -- Pixels


class _Pixels:
    """The images as the version sees them: from the preparation where that has the same pixels, else decoded anew.

    readable: int64, positions of the images that could be read. problems: those that could not, for people. share: of
    the whole work, that which is done when they can be read.
    """

    def __init__(self, job: Any, chosen: Chosen, report: Report) -> None:
        self.job, self.chosen, self.report = job, chosen, report
        self.problems: list[dict[str, str]] = []
        self.scratch: Path = job.scratch
        self.share = 0.0
        self.readable = self.places = np.arange(len(chosen))
        self.images: NDArray[np.uint8]

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 (N, S, S) of the images at these positions."""
        return np.ascontiguousarray(self.images[self.places[positions]])

    def __enter__(self) -> "_Pixels":
        prepared = self._prepared()
        if prepared is not None:
            self.images, self.places = prepared, np.asarray(self.chosen.rows, np.int64)
            return self
        try:
            self.images = self._decoded()
        except NotEnoughDisk as error:
            self._remove()
            raise JobError(str(error), "Free some disk space, then evaluate again.") from error
        except decoding.DecoderError as error:
            self._remove()
            raise JobError(str(error), "Look at System Status for memory, then evaluate again.") from error
        except (CacheError, OSError) as error:
            self._remove()
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            raise JobError(f"The images could not be decoded: {reason}", "Check the disk, then try again.") from error
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for folder in (self.scratch, self.scratch.with_name(self.scratch.name + ".part")):
            shutil.rmtree(folder, ignore_errors=True)

    @cached_property
    def notes(self) -> list[str]:
        """What could not be read, in words."""
        if not self.problems:
            return []
        counts = Counter(problem["reason"] for problem in self.problems)
        reasons = "; ".join(f"{reason} ({count:,})" for reason, count in counts.most_common(3))
        told = (
            "1 image could not be read and was left out"
            if len(self.problems) == 1
            else f"{len(self.problems):,} images could not be read and were left out"
        )
        return [f"{told}: {reasons}"]

    def _prepared(self) -> NDArray[np.uint8] | None:
        preparation = self.job.preparation
        if preparation is None or not choosing.has_pixels_for(preparation, self.job.version):
            return None
        try:
            return open_cache(preparation.cache_folder).images
        except CacheError:
            return None

    def _decoded(self) -> NDArray[np.uint8]:
        self._remove()
        self.share = _DECODED
        store = PixelStore(self.scratch, len(self.chosen), self.job.version.image_size)
        missing = store.open(require=require_disk)
        failed = set()
        for done, (row, answer) in enumerate(decoding.shared().run(self._requests(store, missing))):
            if "error" in answer:
                failed.add(row)
                self._note_problem(row, answer)
            self.report(int(_DECODED * done), len(self.chosen), f"{done:,} of {len(self.chosen):,} images decoded")
        self.readable = np.array([row for row in self.readable.tolist() if row not in failed], np.int64)
        return np.load(store.images, mmap_mode="r", allow_pickle=False)

    def _requests(self, store: PixelStore, rows: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, Any]]]:
        chosen, folder, treatment = self.chosen, self.job.dataset.folder, self.job.version.preprocessing
        for row in rows.tolist():
            yield row, store.request(row, folder / chosen.paths[row], chosen.digests[row], treatment)

    def _note_problem(self, row: int, answer: dict[str, Any]) -> None:
        if answer["error"] == "not-written":
            raise OSError(answer["message"])
        reason = "Other pixels than at the last scan." if answer["error"] == "changed" else answer["message"]
        self.problems.append({"path": self.chosen.paths[row], "reason": reason})
