"""What a package claims, in the only form in which the platform stores and shows it.

A package was written by somebody else. What is read here has the types and lengths that pages, the API and the engine
expect; what is not known is left out, and what is known but of another form ends the import. Nothing here is proved:
the network is, by rebuilding it, and that the rest is true only the origin can tell.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from registry.packages import PackageError

IMAGE_SIZES: Final = (32, 1024)
MOST_CLASSES: Final = 100
MOST_EPOCHS: Final = 10_000
MOST_ROWS: Final = 1000
MOST_GOLDEN: Final = 64
# Line breaks and tabs among them; where a text may have several lines, these two are allowed.
_UNSHOWABLE: Final = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_DIGEST: Final = re.compile(r"[0-9a-f]{0,64}")
_FIGURES: Final = (
    "n",
    "accuracy",
    "auc",
    "precision",
    "recall",
    "f1",
    "sensitivity",
    "specificity",
    "balanced_accuracy",
    "average_precision",
    "quadratic_kappa",
    "mcc",
    "threshold",
)
_OF_CLASS: Final = ("n", "precision", "recall", "sensitivity", "specificity", "f1", "auc", "average_precision")


def manifest(told: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a version, of known fields alone. Raises PackageError (malformed)."""
    classes = _classes(told.get("classes"))
    positive = told.get("positive_class")
    if positive is not None and (positive not in classes or len(classes) != 2):
        raise _malformed("a positive class that it does not have")
    metrics = _object(told, "metrics")
    return {
        "architecture": _matching(told, "architecture", _ID),
        "image_size": _whole(told, "image_size", *IMAGE_SIZES),
        "classes": classes,
        "positive_class": positive,
        "preprocessing": _preprocessing(_object(told, "preprocessing")),
        "threshold": _threshold(told.get("threshold"), positive),
        "temperature": _temperature(told.get("temperature")),
        "metrics": {part: _metrics(_object(metrics, part), classes) for part in ("test", "validation")},
        "configuration": _options(_object(told, "configuration")),
        "initial_weights": _text(told.get("initial_weights"), 100, "initial weights"),
        "history": _rows(told.get("history", []), MOST_EPOCHS, _epoch),
        "data": _data(told.get("data")),
        "environment": {key: str(value) for key, value in _options(_object(told, "environment")).items()},
        "golden": _golden(_object(told, "golden"), len(classes)),
    }


def lineage(description: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the version there, its parent, its dataset and its split; empty where nothing is told."""
    told = _object_or_empty(description.get("lineage"))
    return {name: _digest(told.get(name)) for name in ("version", "parent", "dataset", "split")}


def label(description: Mapping[str, Any]) -> dict[str, Any]:
    """What `package.json` says about the version, to be shown before it is unpacked; unknown facts are None."""
    told = description["version"]
    figures = _object_or_empty(told.get("figures"))
    classes = told.get("classes")
    return {
        "number": told["number"],
        "architecture": _shown(told.get("architecture")),
        "image_size": told.get("image_size") if _is_number(told.get("image_size")) else None,
        "classes": [_shown(name) or "?" for name in classes[:MOST_CLASSES]] if isinstance(classes, list) else [],
        "images": told.get("images") if _is_number(told.get("images")) else None,
        "figures": {name: figures.get(name) for name in ("accuracy", "auc", "f1") if _is_number(figures.get(name))},
        "synthetic": told.get("synthetic") is True,
        "created_at": _shown(told.get("created_at")),
    }


def card(told: Any) -> dict[str, Any]:
    """A model card of texts alone, as templates/registry/_card.html shows it. Raises PackageError (malformed)."""
    if not isinstance(told, dict):
        raise _malformed("a model card that is none")
    return {
        "title": _text(told.get("title"), 300, "title of the card"),
        "sections": _rows(told.get("sections"), 100, _section),
    }


def evaluations(told: Any) -> list[dict[str, Any]]:
    """Each evaluation with its figures and their intervals. Raises PackageError (malformed)."""
    return _rows(told, MOST_ROWS, _evaluation)


def _evaluation(told: Any) -> dict[str, Any]:
    metrics = _object_or_empty(_object_or_empty(told.get("report")).get("metrics"))
    return {
        "kind": _shown(told.get("kind")),
        "measured_at": _shown(told.get("measured_at")),
        "images": told.get("images") if _is_number(told.get("images")) else None,
        "patients": told.get("patients") if _is_number(told.get("patients")) else None,
        "metrics": {
            _text(name, 60, "name of a figure"): {end: _figure(figure.get(end)) for end in ("value", "low", "high")}
            for name, figure in list(metrics.items())[:100]
            if isinstance(figure, dict)
        },
    }


# -- Parts of a card


def _section(told: Any) -> dict[str, Any]:
    return {
        "title": _text(told.get("title"), 300, "title of a section"),
        "paragraphs": _texts(told.get("paragraphs", [])),
        "facts": [_pair(fact) for fact in _list(told.get("facts", []), MOST_ROWS)],
        "tables": _rows(told.get("tables", []), 100, _table),
    }


def _table(told: Any) -> dict[str, Any]:
    return {
        "caption": _text(told.get("caption"), 500, "caption"),
        "header": _texts(told.get("header", [])),
        "rows": [_texts(row) for row in _list(told.get("rows", []), MOST_ROWS)],
    }


def _pair(told: Any) -> list[str]:
    fact = _texts(told)
    if len(fact) != 2:
        raise _malformed("a fact of the card that is none")
    return fact


# -- Parts of a manifest


def _classes(told: Any) -> list[str]:
    names = _texts(_list(told, MOST_CLASSES), longest=200)
    if len(names) < 2 or len(set(names)) != len(names) or not all(names):
        raise _malformed("classes that are not at least two different names")
    return names


def _preprocessing(told: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": _matching(told, "id", _ID),
        "version": _whole(told, "version", 1, 10_000),
        "fit": _matching(told, "fit", _ID),
    }
    if "steps" in told:
        fields["steps"] = _texts(told["steps"], longest=60)
    return fields


def _threshold(told: Any, positive: Any) -> float | None:
    if told is None and positive is None:
        return None
    if positive is None or not _is_number(told) or not 0 < told < 1:
        raise _malformed("a threshold that is none")
    return float(told)


def _temperature(told: Any) -> float:
    if not _is_number(told) or not 1e-3 <= told <= 1e3:
        raise _malformed("a temperature that is none")
    return float(told)


def _metrics(told: Mapping[str, Any], classes: list[str]) -> dict[str, Any]:
    figures = {name: _figure(told[name]) for name in _FIGURES if name in told}
    matrix = _list(told.get("confusion_matrix", []), MOST_CLASSES)
    if matrix and not _is_square(matrix, len(classes)):
        raise _malformed("a confusion matrix that does not fit its classes")
    return {
        **figures,
        "classes": classes,
        "confusion_matrix": matrix,
        "per_class": _rows(told.get("per_class", []), MOST_CLASSES, _of_class),
        "warnings": _texts(told.get("warnings", [])),
    }


def _is_square(matrix: list[Any], size: int) -> bool:
    rows = [row for row in matrix if isinstance(row, list) and len(row) == size]
    counts = [count for row in rows for count in row]
    return len(rows) == len(matrix) == size and all(type(count) is int and count >= 0 for count in counts)


def _of_class(told: Any) -> dict[str, Any]:
    name = _text(told.get("class"), 200, "class")
    return {"class": name, **{figure: _figure(told.get(figure)) for figure in _OF_CLASS}}


def _options(told: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name; each a text, a number, yes or no, nothing, or a list of such."""
    return {
        _text(name, 100, "name of an option"): [_scalar(item) for item in value[:100]]
        if isinstance(value, list)
        else _scalar(value)
        for name, value in list(told.items())[:200]
    }


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool) or _is_number(value):
        return value
    return _text(value, 500, "value of an option")


def _epoch(told: Any) -> dict[str, Any]:
    return {
        _text(name, 60, "name of a figure"): _shown(value) if name == "stage" else _figure(value)
        for name, value in list(told.items())[:60]
    }


def _data(told: Any) -> dict[str, Any]:
    """Counts of images and patients, for the card; whatever has another form is left out."""
    told = _object_or_empty(told)
    counts = _object_or_empty(told.get("counts"))
    names = ("shared_patients", "left_out", "seed")
    return {
        "counts": {part: _counts(counts.get(part)) for part in ("train", "validation", "test")},
        "groups": _counts(told.get("groups")),
        "group_key": _shown(told.get("group_key")) or "",
        **{name: told[name] for name in names if type(told.get(name)) is int},
    }


def _counts(told: Any) -> dict[str, int]:
    items = list(told.items())[: MOST_CLASSES + 10] if isinstance(told, dict) else []
    return {_text(name, 200, "name"): count for name, count in items if type(count) is int and count >= 0}


def _golden(told: Mapping[str, Any], classes: int) -> dict[str, Any]:
    count = _whole(told, "count", 1, MOST_GOLDEN)
    outputs = _list(told.get("outputs"), MOST_GOLDEN)
    rows = [row for row in outputs if isinstance(row, list) and len(row) == classes and all(map(_is_number, row))]
    if len(outputs) != count or len(rows) != count:
        raise _malformed("golden outputs that do not fit its classes")
    return {"seed": _whole(told, "seed", 0, 2**62), "count": count, "outputs": rows}


# -- Values


def _malformed(what: str) -> PackageError:
    return PackageError("malformed", f"The package tells {what}. Ask for another export of the version.")


def _object(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = told.get(name)
    if not isinstance(value, dict):
        raise _malformed(f"no {name.replace('_', ' ')}")
    return value


def _object_or_empty(told: Any) -> dict[str, Any]:
    return told if isinstance(told, dict) else {}


def _list(told: Any, longest: int) -> list[Any]:
    if not isinstance(told, list) or len(told) > longest:
        raise _malformed("a list that is none, or that is too long")
    return told


def _rows(told: Any, longest: int, read: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    rows = _list(told, longest)
    if not all(isinstance(row, dict) for row in rows):
        raise _malformed("a list whose rows are none")
    return [read(row) for row in rows]


def _text(told: Any, longest: int, what: str, *, lines: bool = False) -> str:
    plain = re.sub(r"[\r\n\t]", " ", told) if lines and isinstance(told, str) else told
    if not isinstance(told, str) or len(told) > longest or _UNSHOWABLE.search(plain):
        raise _malformed(f"a {what} that cannot be shown")
    return told


def _texts(told: Any, longest: int = 10_000) -> list[str]:
    return [_text(value, longest, "text", lines=longest > 1000) for value in _list(told, MOST_ROWS)]


def _shown(told: Any) -> str | None:
    return told if isinstance(told, str) and len(told) <= 200 and not _UNSHOWABLE.search(told) else None


def _matching(told: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = told.get(name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _malformed(f"no usable {name.replace('_', ' ')}")
    return value


def _digest(told: Any) -> str:
    return told if isinstance(told, str) and _DIGEST.fullmatch(told) else ""


def _whole(told: Mapping[str, Any], name: str, lowest: int, highest: int) -> int:
    value = told.get(name)
    if type(value) is not int or not lowest <= value <= highest:
        raise _malformed(f"no usable {name.replace('_', ' ')}")
    return value


def _figure(told: Any) -> float | None:
    if told is not None and not _is_number(told):
        raise _malformed("a figure that is no number")
    figure: float | None = told
    return figure


def _is_number(told: Any) -> bool:
    return isinstance(told, int | float) and not isinstance(told, bool) and math.isfinite(told)
