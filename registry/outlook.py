"""What a change of the version in service would mean, said before it is made: both versions figure by figure."""

from dataclasses import dataclass, field
from typing import Any

from .comparing import LOWER_IS_BETTER, METRICS
from .comparisons import compared
from .image_sets import ImageSet, image_sets
from .models import ModelVersion

SHOWN = ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1")
# The names under which a version keeps its own figures, where they differ.
_KEPT_AS = {"sensitivity": "recall"}
_SMALLEST = 0.0005
_IN_PERCENT = {"accuracy", "balanced_accuracy", "sensitivity", "specificity"}
OTHER_IMAGES = (
    "The two were not measured on the same images, so that a difference may come from the test parts alone. Evaluate "
    "both on one dataset to compare them."
)


@dataclass(frozen=True)
class Row:
    """One figure of both versions. difference: the paired one (chosen minus in service) with its interval, or None."""

    name: str
    in_percent: bool
    in_service: float | None
    chosen: float | None
    difference: dict[str, Any] | None = None
    is_worse: bool = False


@dataclass(frozen=True)
class Outlook:
    """The version in service against the chosen one. basis: on which images, in a sentence. warnings: where worse."""

    in_service: ModelVersion
    chosen: ModelVersion
    basis: str
    same_images: bool
    rows: list[Row] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        return [self._warning(row) for row in self.rows if row.is_worse]

    def to_json(self) -> dict[str, Any]:
        return {
            "in_service": self.in_service.pk,
            "chosen": self.chosen.pk,
            "basis": self.basis,
            "same_images": self.same_images,
            "figures": [
                {
                    "name": row.name,
                    "in_service": row.in_service,
                    "chosen": row.chosen,
                    "difference": row.difference,
                    "is_worse": row.is_worse,
                }
                for row in self.rows
            ],
            "warnings": self.warnings,
        }

    def _warning(self, row: Row) -> str:
        words = f"Its {row.name} is lower: {_shown(row, row.chosen)} instead of {_shown(row, row.in_service)}"
        if row.difference is None:
            return f"{words}, {'on the same images' if self.same_images else 'on other images'}."
        low, high = row.difference["low"], row.difference["high"]
        if high is not None and high < 0:
            return f"{words}, on the same images and by more than chance."
        # Without an interval nobody can tell.
        return f"{words}, on the same images{'; it may be chance' if low is not None else ''}."


def outlook(in_service: ModelVersion | None, chosen: ModelVersion) -> Outlook | None:
    """What putting `chosen` in service would change; None where nothing is, or it is in service itself.

    On the same images both have paired differences with intervals; otherwise the figures stand side by side.
    """
    if in_service is None or in_service == chosen:
        return None
    same = next((one for one in image_sets([in_service, chosen]) if _is_of_both(one)), None)
    if same is not None:
        found = _paired(in_service, chosen, same)
        if found is not None:
            return found
    figures = [(name, _own(in_service, name), _own(chosen, name)) for name in SHOWN]
    rows = [_row(name, before, after) for name, before, after in figures if None not in (before, after)]
    return Outlook(in_service, chosen, f"Each on its own test part. {OTHER_IMAGES}", False, rows)


def _is_of_both(images: ImageSet) -> bool:
    # Those that share some images are left out: to cut them down takes seconds, which a page of its own may take.
    digests = {row.images_digest for row in images.evaluations}
    return not images.shared and len(images.evaluations) == 2 and len(digests) == 1


def _paired(in_service: ModelVersion, chosen: ModelVersion, images: ImageSet) -> Outlook | None:
    document, _ = compared([in_service, chosen], images)
    if not document["pairs"]:
        return None
    pair = document["pairs"][0]
    differences = {"auc": pair["auc"], **pair["metrics"]}
    rows = []
    for name in SHOWN:
        values = [figure["value"] for figure in document["metrics"].get(name, [])]
        if len(values) == 2 and None not in values:
            rows.append(_row(name, *values, differences.get(name)))
    first = images.evaluations[0]
    basis = f"Both on the same {first.images_count:,} images of {first.dataset_name}."
    return Outlook(in_service, chosen, basis, True, rows)


def _own(version: ModelVersion, name: str) -> float | None:
    value = version.metrics.get(name, version.metrics.get(_KEPT_AS.get(name, name)))
    return float(value) if isinstance(value, int | float) else None


def _row(name: str, before: float, after: float, difference: dict[str, Any] | None = None) -> Row:
    known = difference if difference and difference["difference"] is not None else None
    change = before - after if name in LOWER_IS_BETTER else after - before
    return Row(METRICS[name], name in _IN_PERCENT, before, after, known, change < -_SMALLEST)


def _shown(row: Row, value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{100 * value:.1f} %" if row.in_percent else f"{value:.3f}"
