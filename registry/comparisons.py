"""Versions compared on a set of images. Evaluations never change, so that what was computed of them stays true and is
kept in the cache.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from django.core.cache import cache

from . import report_tables
from .common_images import on_shared_images
from .comparing import LEAST, METRICS, Comparison, Contender, compare
from .image_sets import ComparisonError, ImageSet
from .models import Evaluation, EvaluationUnusable, ModelVersion

FORMAT = 2
KEEP_SECONDS = 7 * 24 * 3600
# Evaluations whose answers a process keeps: about 4 MB each for 10,000 images.
ANSWERS_KEPT = 12
MEAN = ""
Document = dict[str, Any]


def compared(versions: Sequence[ModelVersion], images: ImageSet, name: str | None = None) -> tuple[Document, Document]:
    """The comparison on a set of images, and the curves of a class; from the cache, or computed now and put there.

    name: of the class, "" for the mean of several, None for what a chart begins with. A comparison is {"measured",
    "same_images", "obstacles", "notes", "pairs", "classes", "metrics": {name: [a figure of a report and the label of
    its version]}, "rankings": {name: [placing]}, "best": {name: label of the version that alone is first}}. Curves are
    {"class", "roc", "pr", "roc_table", "pr_table"}. Some tenths of a second the first time, and some seconds on shared
    images. Raises ComparisonError for a class without curves.
    """
    document, drawn = cache.get(_key(versions, images)), None
    if document is None:
        document, drawn = _computed(versions, images)
    name = _class_to_draw(document["classes"], name)
    curves = cache.get(_key(versions, images, name)) if drawn is None else drawn.get(name)
    if curves is None and document["classes"]:
        curves = _computed(versions, images)[1][name]
    return document, _with_tables(curves or {"class": name, "roc": [], "pr": []})


def _with_tables(curves: Document) -> Document:
    """Not kept in the cache with the curves: only those of one class are ever shown at a time."""
    return {
        **curves,
        "roc_table": [asdict(line) for line in report_tables.roc_lines(curves["roc"])],
        "pr_table": [asdict(line) for line in report_tables.pr_lines(curves["pr"])],
    }


def _class_to_draw(classes: Sequence[str], name: str | None) -> str:
    if not classes:
        return MEAN
    if name is None:
        return MEAN if MEAN in classes else classes[0]
    if name not in classes:
        known = ", ".join(each or "the mean of the classes" for each in classes)
        raise ComparisonError(f"There are no curves of class {name!r}. Choose one of {known}.")
    return name


def _key(versions: Sequence[ModelVersion], images: ImageSet, name: str | None = None) -> str:
    """Evaluations and versions never change; their digests say that these are the ones."""
    content = [f"{FORMAT} {images.shared}", *(label_of(version) for version in versions)]
    content += [f"{row.pk} {row.sha256} {row.version.number}" for row in images.evaluations]
    content += [] if name is None else [f"class {name}"]
    return f"comparison-{hashlib.sha256(chr(10).join(content).encode()).hexdigest()}"


def _computed(versions: Sequence[ModelVersion], images: ImageSet) -> tuple[Document, dict[str, Document]]:
    """Document and curves by class; kept in the cache unless a file could not be read, which may be there again."""
    contenders, unusable = _contenders(images)
    obstacles = [*_unmeasured(versions, images), *unusable]
    if images.shared:
        contenders, problems = _cut_down(contenders)
        obstacles += problems
    comparison = compare(contenders) if len(contenders) >= LEAST else None
    document = _document(contenders, comparison, obstacles)
    document["notes"] = [*_tuned_on(images), *document["notes"]]
    drawn = _curves(contenders)
    document["classes"] = list(drawn)
    if not unusable:
        kept = {_key(versions, images): document, **{_key(versions, images, name): drawn[name] for name in drawn}}
        cache.set_many(kept, KEEP_SECONDS)
    return document, drawn


def _contenders(images: ImageSet) -> tuple[list[Contender], list[str]]:
    """What can be read, and what cannot in sentences."""
    reports = dict(Evaluation.objects.filter(pk__in=[row.pk for row in images.evaluations]).values_list("pk", "report"))
    contenders, unusable = [], []
    for row in images.evaluations:
        row.report = reports[row.pk]
        try:
            contenders.append(_contender(row))
        except EvaluationUnusable as error:
            unusable.append(str(error))
    return contenders, unusable


def _contender(row: Evaluation) -> Contender:
    images, replicates = ANSWERS.of(row)
    return Contender(label_of(row.version), row.report, images, row.question, replicates)


def _unmeasured(versions: Sequence[ModelVersion], images: ImageSet) -> list[str]:
    measured = {row.version_id for row in images.evaluations}
    names = [label_of(version) for version in versions if version.pk not in measured]
    if not names:
        return []
    have = "it has" if len(names) == 1 else "they have"
    return [
        f"The answers of {' and '.join(names)} on the test part were not kept, so that {have} no figures here. "
        "Evaluate again on the test part to compare."
    ]


def _tuned_on(images: ImageSet) -> list[str]:
    """Which versions were chosen on these very images, and are therefore favoured by them."""
    names = [label_of(row.version) for row in images.evaluations if row.kind == Evaluation.Kind.VALIDATION]
    if not names:
        return []
    others = "" if len(names) == len(images.evaluations) else " The others have no such advantage here."
    return [
        f"These are the validation images of {' and '.join(names)}: epochs, temperatures and thresholds were chosen on "
        f"them, so that the figures look better than new images will show.{others}"
    ]


def _cut_down(contenders: list[Contender]) -> tuple[list[Contender], list[str]]:
    if len(contenders) < LEAST:
        return contenders, []
    try:
        shared = on_shared_images(contenders)
    except ValueError as error:
        return [], [f"{error} They cannot be compared on the same images."]
    problems = []
    if shared.relabelled:
        were = "image was" if shared.relabelled == 1 else "images were"
        problems.append(
            f"{shared.relabelled:,} {were} left out, because labels were corrected between the evaluations."
        )
    if not shared.contenders:
        problems.append("There is no image that all of them were measured on with the same label.")
    return list(shared.contenders), problems


def _document(contenders: Sequence[Contender], comparison: Comparison | None, obstacles: Sequence[str]) -> Document:
    found = comparison.to_json() if comparison else {"obstacles": [], "notes": [], "pairs": [], "same_images": False}
    names = [name for name in METRICS if any(name in contender.report["metrics"] for contender in contenders)]
    rankings = {name: [asdict(place) for place in comparison.ranking(name)] for name in names} if comparison else {}
    return {
        "measured": [
            {
                "label": contender.label,
                "images": contender.report["n"],
                "patients": contender.report["patients"],
                "threshold": contender.report["threshold"],
                "temperature": contender.report["temperature"],
            }
            for contender in contenders
        ],
        "same_images": found["same_images"],
        "obstacles": [*obstacles, *found["obstacles"]],
        "notes": found["notes"],
        "pairs": found["pairs"],
        "metrics": {name: _figures(contenders, name) for name in names},
        "rankings": rankings,
        "best": {name: best for name, ranking in rankings.items() if (best := _best(ranking))},
    }


def _figures(contenders: Sequence[Contender], name: str) -> list[dict[str, Any]]:
    missing = {"value": None, "low": None, "high": None, "undefined": "It was not measured by this figure."}
    return [
        {"label": contender.label, **(contender.report["metrics"].get(name) or missing)} for contender in contenders
    ]


def _best(ranking: Sequence[dict[str, Any]]) -> str:
    """The one version that the data tell from each of the others; "" where there is none."""
    return next((row["label"] for row in ranking if row["best"]), "")


def _curves(contenders: Sequence[Contender]) -> dict[str, Document]:
    """By class, the mean of several under MEAN; in the order in which reports have them."""
    names = dict.fromkeys(
        curve["class"] for contender in contenders for part in ("roc", "pr") for curve in contender.report[part]
    )
    found = {}
    for name in names:
        roc, pr = ([*_of_class(contenders, part, name)] for part in ("roc", "pr"))
        found[name] = {"class": name, "roc": roc, "pr": pr}
    return found


def _of_class(contenders: Sequence[Contender], part: str, name: str) -> Iterator[dict[str, Any]]:
    for contender in contenders:
        for curve in contender.report[part]:
            if curve["class"] == name:
                yield {"label": contender.label, **curve}


class _Answers:
    """The answers of the evaluations that were compared last, verified when they were read; for all threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, row: Evaluation) -> Any:
        """Images, without their subgroups, and replicates. Raises EvaluationUnusable."""
        with self._lock:
            if row.sha256 in self._kept:
                self._kept.move_to_end(row.sha256)
                return self._kept[row.sha256]
        answers = replace(row.images, subgroups={}), row.replicates
        with self._lock:
            self._kept[row.sha256] = answers
            while len(self._kept) > ANSWERS_KEPT:
                self._kept.popitem(last=False)
        return answers

    def forget(self) -> None:
        with self._lock:
            self._kept.clear()


ANSWERS = _Answers()


def label_of(version: ModelVersion) -> str:
    return f"v{version.number}"
