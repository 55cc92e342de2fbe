"""By what versions are listed and filtered in the database: their columns, and the figures in their `metrics`."""

from dataclasses import dataclass
from typing import Any, Final

from django.db.models import Case, F, FloatField, Func, IntegerField, QuerySet, Value, When
from django.db.models.functions import Coalesce, Lower

from .models import ModelVersion
from .report_tables import FIGURES

# Every number in `metrics` by which versions are found, with its words; see `statistics.classification_metrics`.
METRICS: Final = {
    name: FIGURES[name].name
    for name in (
        "accuracy",
        "balanced_accuracy",
        "precision",
        "sensitivity",
        "specificity",
        "f1",
        "auc",
        "average_precision",
        "mcc",
        "quadratic_kappa",
    )
} | {"recall": "Recall", "threshold": "Threshold", "n": "Number of test images"}
# Farther out than any figure; a version without the figure stands there, and so at the end, in both databases.
_BEYOND: Final = 1e300


class Metric(Func):
    """A number in `metrics`; NULL where there is none, or something that is no number (also from another hospital)."""

    output_field = FloatField(null=True)

    def __init__(self, name: str) -> None:
        if name not in METRICS:
            raise ValueError(f"There is no figure {name!r}.")
        # The name becomes a part of the statement, and not a parameter, so that an index can hold the expression.
        super().__init__(F("metrics"), metric=name)

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = (
            """CASE WHEN JSON_TYPE(%(expressions)s, '$."%(metric)s"') IN ('integer', 'real') """
            """THEN JSON_EXTRACT(%(expressions)s, '$."%(metric)s"') END"""
        )
        return self.as_sql(compiler, connection, template=template, **context)

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        # One path instead of a look at the type and one at the value: each look unpacks the whole of `metrics`.
        template = (
            "JSONB_PATH_QUERY_FIRST(%(expressions)s, "
            """'strict $."%(metric)s" ? (@.type() == "number")', '{}', true)::double precision"""
        )
        return self.as_sql(compiler, connection, template=template, **context)


@dataclass(frozen=True)
class Sort:
    """words: what comes first, rising and falling. starts_falling: what a first click is for."""

    label: str
    expression: Any
    words: tuple[str, str]
    starts_falling: bool = True
    may_be_missing: bool = False

    def key(self, *, falling: bool) -> Any:
        if not self.may_be_missing:
            return self.expression
        return Coalesce(self.expression, Value(-_BEYOND if falling else _BEYOND), output_field=FloatField())


_LETTERS = ("A to Z", "Z to A")
_FIGURE = ("lowest first", "highest first")
_STATE = Case(
    *(When(state=state, then=place) for place, state in enumerate(ModelVersion.State)), output_field=IntegerField()
)

SORTS: Final = {
    "condition": Sort("condition", Lower("condition__name"), _LETTERS, starts_falling=False),
    "number": Sort("number", F("number"), _FIGURE),
    "architecture": Sort("architecture", Lower("architecture"), _LETTERS, starts_falling=False),
    "accuracy": Sort("accuracy", F("accuracy"), _FIGURE, may_be_missing=True),
    "auc": Sort("AUC", F("auc"), _FIGURE, may_be_missing=True),
    "precision": Sort("precision", Metric("precision"), _FIGURE, may_be_missing=True),
    "recall": Sort("recall", Metric("recall"), _FIGURE, may_be_missing=True),
    "f1": Sort("F1", Metric("f1"), _FIGURE, may_be_missing=True),
    "state": Sort("state", _STATE, ("candidates first", "archived ones first"), starts_falling=False),
    "made": Sort("when they were made", F("created_at"), ("oldest first", "newest first")),
    "size": Sort("size", F("size"), ("smallest first", "largest first")),
}
ORDERINGS: Final = [sign + name for name in SORTS for sign in ("", "-")]
NEWEST_FIRST: Final = "-made"


def in_order(versions: QuerySet, ordering: str) -> QuerySet:
    """ordering: one of `ORDERINGS`. Equal versions newest first; those without the figure last, either way."""
    name, falling = ordering.removeprefix("-"), ordering.startswith("-")
    key = f"sorted_by_{name}"
    versions = versions.annotate(**{key: SORTS[name].key(falling=falling)})
    return versions.order_by(f"-{key}" if falling else key, "-pk")


@dataclass(frozen=True)
class SortLink:
    """A link in the head of the table. now: "ascending" or "descending" where the table is sorted by it."""

    name: str
    label: str
    ordering: str
    now: str


# The heads of the table, each with what it sorts by.
_HEADS: Final = [
    ("Version", ["condition", "number", "architecture"]),
    ("Accuracy", ["accuracy"]),
    ("AUC", ["auc"]),
    ("Precision", ["precision"]),
    ("Recall", ["recall"]),
    ("F1", ["f1"]),
    ("State", ["state"]),
    ("Made", ["made"]),
    ("Size", ["size"]),
]


def heads(ordering: str) -> list[dict[str, Any]]:
    """Each head with its links and how its column is sorted now."""
    links = {name: _link(name, ordering) for name in SORTS}
    return [
        {
            "title": title,
            "links": [links[name] for name in names],
            "now": next((links[name].now for name in names if links[name].now), ""),
        }
        for title, names in _HEADS
    ]


def in_words(ordering: str) -> str:
    """The order as the table's caption names it."""
    sort = SORTS[ordering.removeprefix("-")]
    first = sort.words[ordering.startswith("-")]
    return first if sort is SORTS["made"] else f"by {sort.label}, {first}"


def _link(name: str, ordering: str) -> SortLink:
    falling = f"-{name}"
    if ordering == falling:
        return SortLink(name, SORTS[name].label, name, "descending")
    if ordering == name:
        return SortLink(name, SORTS[name].label, falling, "ascending")
    return SortLink(name, SORTS[name].label, falling if SORTS[name].starts_falling else name, "")
