"""The model card of a version (Mitchell et al. 2019): its purpose, what it was made from, how good it is, its limits.

A card is a plain dict for JSON, a list of sections that a page renders and `to_markdown` writes:

    {"format", "title", "sections": [{"title", "paragraphs": [text], "facts": [[label, value]],
                                      "tables": [{"caption", "header": [text], "rows": [[text]]}]}]}

Every leaf but the format is text. Data appears as counts; the card is made from facts that name no patient and no file.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from registry.cautions import Caution
from registry.comparing import METRICS
from registry.operating_points import CRITERIA

Card = dict[str, Any]
Section = dict[str, Any]
Table = dict[str, Any]

FORMAT = 1
OF_CLASSES = ("precision", "sensitivity", "specificity", "f1", "auc", "average_precision")
OF_SUBGROUPS = ("accuracy", "sensitivity", "specificity", "f1", "auc")
NONE = "none"


@dataclass(frozen=True)
class CardEvaluation:
    """One evaluation. title: which images, in words ("Test part", "External: clinic B"). report: of `reports.make`.

    external: on images that are not of the version's own dataset.
    """

    title: str
    report: Mapping[str, Any]
    external: bool = False


@dataclass(frozen=True)
class CardThreshold:
    """The operating point in use. criterion: one of operating_points.CRITERIA, or any words. target: of the criterion.

    validation, test: `OperatingPoint.to_json()` on those images; empty when not known.
    """

    threshold: float
    criterion: str = ""
    target: float | None = None
    prevalence: float | None = None
    reason: str = ""
    by: str = ""
    at: str = ""
    validation: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CardEvent:
    """Something that was decided about the version: approved, archived, put in service, taken out of service."""

    at: str
    what: str
    by: str
    reason: str = ""


@dataclass(frozen=True)
class CardFacts:
    """All that a card tells; what is empty is left out or said to be unknown.

    images: by part ("training", "validation", "test") the number of images of each class. patients: by part. split,
    training, environment: label and value in words. patients_apart: whether all images of each patient are in one part,
    None where it is not known. evaluations: the one of the test part first. created_at and other times: in words, as
    they are to be shown. state_given: by whom it got the state that it has, where it is not the first one.
    """

    condition: str
    version: int
    classes: tuple[str, ...]
    positive_class: str = ""
    body_part: str = ""
    intended_use: str = ""
    state: str = ""
    origin: str = ""
    created_by: str = ""
    created_at: str = ""
    sha256: str = ""
    architecture: str = ""
    image_size: int | None = None
    preprocessing: str = ""
    initial_weights: str = ""
    parent: str = ""
    dataset: str = ""
    dataset_digest: str = ""
    split_digest: str = ""
    synthetic: bool = False
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    patients: Mapping[str, int] = field(default_factory=dict)
    split: Mapping[str, str] = field(default_factory=dict)
    patients_apart: bool | None = None
    training: Mapping[str, str] = field(default_factory=dict)
    epochs: int | None = None
    evaluations: Sequence[CardEvaluation] = ()
    operating_point: CardThreshold | None = None
    cautions: Sequence[Caution] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[CardEvent] = ()
    state_given: CardEvent | None = None


def card(facts: CardFacts) -> Card:
    """The card of a version, with every section even where little is known, so that a gap is seen."""
    return {
        "format": FORMAT,
        "title": f"Model card: {facts.condition}, version {facts.version}",
        "sections": [
            _intended_use(facts),
            _model(facts),
            _data(facts),
            _splits(facts),
            _training(facts),
            _metrics(facts),
            _operating_point(facts),
            _limits(facts),
            _subgroups(facts),
            _software(facts),
            _history(facts),
        ],
    }


def to_json(made: Card) -> str:
    return json.dumps(made, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# --- Sections --------------------------------------------------------------------------------------------------------


def _section(
    title: str,
    paragraphs: Iterable[str] = (),
    facts: Iterable[tuple[str, Any]] = (),
    tables: Iterable[Table | None] = (),
) -> Section:
    """Facts without a value and tables without rows are left out."""
    return {
        "title": title,
        "paragraphs": [text for text in paragraphs if text],
        "facts": [[label, str(value)] for label, value in facts if value not in ("", None)],
        "tables": [table for table in tables if table and table["rows"]],
    }


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    return {
        "caption": caption,
        "header": list(header),
        "rows": [[str(cell) for cell in row] for row in rows],
    }


def _intended_use(facts: CardFacts) -> Section:
    of_part = f" of the {facts.body_part}" if facts.body_part else ""
    return _section(
        "Intended use",
        [
            facts.intended_use
            or f"Proposes for one radiograph{of_part} which class it belongs to: {', '.join(facts.classes)}.",
            "It supports a qualified reader, who sees the radiograph and decides. It is not made to decide alone, to "
            "rule out anything that is not among its classes, or to read other body parts, other kinds of images or "
            "radiographs that were taken very differently from those it was trained on.",
        ],
        [("Classes", ", ".join(facts.classes)), ("Positive class", facts.positive_class)],
    )


def _model(facts: CardFacts) -> Section:
    return _section(
        "Model",
        facts=[
            ("Condition", facts.condition),
            ("Version", facts.version),
            ("State", facts.state),
            ("Origin", facts.origin),
            ("Created by", facts.created_by),
            ("Created", facts.created_at),
            ("Architecture", facts.architecture),
            ("Image size", facts.image_size and f"{facts.image_size} x {facts.image_size} pixels"),
            ("Preparation of pixels", facts.preprocessing),
            ("SHA-256", facts.sha256),
        ],
    )


def _data(facts: CardFacts) -> Section:
    classes = list(facts.classes)
    rows = []
    for part, counts in facts.images.items():
        numbers = [counts.get(name, 0) for name in classes]
        patients = f"{facts.patients[part]:,}" if part in facts.patients else "not known"
        rows.append([part.capitalize(), *(f"{number:,}" for number in numbers), f"{sum(numbers):,}", patients])
    synthetic = (
        "The images are synthetic samples. The version shows that the platform works; it knows nothing about patients."
        if facts.synthetic
        else ""
    )
    return _section(
        "Data",
        [synthetic, "" if rows else "How many images it was made from is not known."],
        [("Dataset", facts.dataset), ("Digest of the dataset", facts.dataset_digest)],
        [_table("Images and patients of each part", ["Part", *classes, "All images", "Patients"], rows)],
    )


_PATIENTS_APART = {
    True: "All images of a patient are in one part, as far as patients are known.",
    False: "Some patients have images in more than one part, so that the figures of the test part are too good.",
    None: "Whether images of one patient are in more than one part is not known. If they are, the figures of the test "
    "part are too good.",
}


def _splits(facts: CardFacts) -> Section:
    return _section(
        "Splits",
        [
            "The model learned from the training part. The validation part chose the epoch, the temperature and the "
            "threshold. The test part was kept apart from both to measure the result.",
            _PATIENTS_APART[facts.patients_apart],
        ],
        [*facts.split.items(), ("Digest of the split", facts.split_digest)],
    )


def _training(facts: CardFacts) -> Section:
    return _section(
        "Training",
        ["" if facts.training or facts.epochs else "How it was trained is not known."],
        [
            ("Initial weights", facts.initial_weights),
            ("Trained further from", facts.parent),
            ("Epochs", facts.epochs),
            *facts.training.items(),
        ],
    )


def _metrics(facts: CardFacts) -> Section:
    tables: list[Table | None] = []
    for evaluation in facts.evaluations:
        report = evaluation.report
        caption = f"{evaluation.title}: {report['n']:,} images of {_patients(report['patients'])}"
        if report["threshold"] is not None:
            caption += f", decided at the threshold {report['threshold']:.4g}"
        rows = [
            [METRICS.get(name, name), _value(figure), _interval(figure)] for name, figure in report["metrics"].items()
        ]
        tables.append(_table(caption, ["Metric", "Value", "95 % interval"], rows))
        if len(report["classes"]) > 2:
            tables.append(_class_table(evaluation))
        tables.append(_confusion_table(evaluation))
    return _section(
        "Metrics",
        [
            "Intervals are 95 % percentile intervals of the bootstrap over patients, reflected for the calibration "
            "error. They tell how far the figures may "
            "move with other patients of the same kind, and nothing about patients of another kind."
            if tables
            else "It has not been evaluated, so nothing is known about how good it is.",
            *(f"{each.title}: {note}" for each in facts.evaluations for note in each.report.get("selection", ())),
        ],
        tables=tables,
    )


def _class_table(evaluation: CardEvaluation) -> Table:
    return _table(
        f"{evaluation.title}: each class against the others",
        ["Class", "Images", *(METRICS[name] for name in OF_CLASSES)],
        [
            [row["class"], f"{row['n']:,}", *(_with_interval(row[name]) for name in OF_CLASSES)]
            for row in evaluation.report["per_class"]
        ],
    )


def _confusion_table(evaluation: CardEvaluation) -> Table:
    report = evaluation.report
    return _table(
        f"{evaluation.title}: confusion matrix, rows are the true class and columns the answer",
        ["True class", *report["classes"]],
        [
            [name, *(f"{count:,}" for count in counts)]
            for name, counts in zip(report["classes"], report["confusion_matrix"], strict=True)
        ],
    )


def _operating_point(facts: CardFacts) -> Section:
    point = facts.operating_point
    if point is None:
        return _section("Operating point", ["The most probable class is the answer; there is no threshold."])
    rows = [
        [part, _rate(figures["sensitivity"]), _rate(figures["specificity"])]
        for part, figures in (("Validation", point.validation), ("Test", point.test))
        if figures
    ]
    return _section(
        "Operating point",
        [
            f"An image is called {facts.positive_class or 'positive'} when its probability is at least the threshold.",
            "Intervals are Wilson's and take each image as a case of its own. Where patients have several images they "
            "are too narrow."
            if rows
            else "",
        ],
        [
            ("Threshold", f"{point.threshold:.4g}"),
            ("Chosen for", CRITERIA.get(point.criterion, point.criterion)),
            ("Target", "" if point.target is None else f"{point.target:g}"),
            ("Prevalence assumed", "" if point.prevalence is None else f"{point.prevalence:.2%}"),
            ("Reason", point.reason),
            ("Chosen by", point.by),
            ("Chosen", point.at),
        ],
        [_table("At this threshold", ["Part", "Sensitivity", "Specificity"], rows)],
    )


_NO_CAUTIONS = "No rule of the platform found a reason to distrust the figures; that is no proof."


def _limits(facts: CardFacts) -> Section:
    found = [f"{caution.text} {caution.advice}" for caution in facts.cautions]
    return _section(
        "Limits",
        [
            *(found or [_NO_CAUTIONS if facts.evaluations else "Nothing is known about the quality of its answers."]),
            "A score says how the version did on the images named here. Other hospitals, devices, ages or stages of "
            "disease may give other results: evaluate it on local images before use, and watch it in use.",
            ""
            if any(evaluation.external for evaluation in facts.evaluations)
            else "It has not been evaluated on images from outside its dataset.",
        ],
    )


def _subgroups(facts: CardFacts) -> Section:
    tables = [
        _table(
            f"{evaluation.title}, by {found['attribute']}",
            ["Group", "Images", "Patients", *(METRICS[name] for name in OF_SUBGROUPS), "Remark"],
            [
                [
                    group["name"],
                    f"{group['n']:,}",
                    f"{group['patients']:,}",
                    *(_with_interval(group["metrics"].get(name)) for name in OF_SUBGROUPS),
                    "too few to tell" if group["few"] else "",
                ]
                for group in found["groups"]
            ],
        )
        for evaluation in facts.evaluations
        for found in evaluation.report["subgroups"]
    ]
    missing = "No groups of patients or images are known, so that differences between them cannot be shown."
    return _section("Subgroup results", ["" if tables else missing], tables=tables)


def _software(facts: CardFacts) -> Section:
    return _section(
        "Software", ["" if facts.environment else "The versions are not known."], list(facts.environment.items())
    )


def _state(facts: CardFacts) -> str:
    given = facts.state_given
    return f"{facts.state}, since {given.at}, by {given.by}: {given.reason}" if given else facts.state


def _history(facts: CardFacts) -> Section:
    return _section(
        "Approval and activation",
        ["" if facts.history else "It has neither been approved nor put in service."],
        [("State", _state(facts))],
        tables=[
            _table(
                "What was decided about it",
                ["When", "What", "By", "Reason"],
                [[event.at, event.what, event.by, event.reason] for event in facts.history],
            )
        ],
    )


# --- Figures ---------------------------------------------------------------------------------------------------------


def _value(figure: Mapping[str, Any]) -> str:
    return "undefined" if figure["value"] is None else f"{figure['value']:.3f}"


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return str(figure["undefined"])
    return f"{figure['low']:.3f} to {figure['high']:.3f}"


def _with_interval(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "undefined"
    return f"{_value(figure)} ({_interval(figure)})"


def _rate(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "undefined"
    return f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def _patients(count: int) -> str:
    return f"{count:,} patient{'' if count == 1 else 's'}"


# --- Markdown --------------------------------------------------------------------------------------------------------


def to_markdown(made: Card) -> str:
    """The card as GitHub-flavoured Markdown. Whatever a text contains is shown as it is and never becomes markup."""
    blocks = [f"# {_escaped(made['title'])}"]
    for section in made["sections"]:
        blocks.append(f"## {_escaped(section['title'])}")
        blocks += [_paragraph(text) for text in section["paragraphs"]]
        if section["facts"]:
            blocks.append("\n".join(f"- **{_escaped(label)}:** {_escaped(value)}" for label, value in section["facts"]))
        for table in section["tables"]:
            blocks += [f"**{_escaped(table['caption'])}**", "\n".join(_table_lines(table))]
    return "\n\n".join(blocks) + "\n"


def _table_lines(table: Table) -> Iterator[str]:
    yield _row(table["header"])
    yield "|" + " --- |" * len(table["header"])
    yield from map(_row, table["rows"])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


# As references where a backslash is read differently by different programs, in tables above all.
_REFERENCES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;"})
_MARKUP = re.compile(r"([\\*_\[\]#~!])")
_LINKS = re.compile(r"(?i)(?<=\w)(:)(?=//)|(?<=www)(\.)|(?<=\w)(@)(?=\w)")
_START_OF_BLOCK = re.compile(r"^([-+=]|\d(?=\d*[.)]))")
_UNSEEN = re.compile(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")


def _escaped(text: str) -> str:
    """One line of Markdown that shows the text. Control characters and those that turn the reading direction go."""
    line = _UNSEEN.sub(" ", text).strip()
    line = _MARKUP.sub(r"\\\1", line).translate(_REFERENCES)
    return _LINKS.sub(lambda found: f"&#{ord(found.group())};", line)


def _paragraph(text: str) -> str:
    """A text that stands at the beginning of a line, where it could be taken for an item of a list or an underline."""
    return _START_OF_BLOCK.sub(lambda found: f"&#{ord(found.group())};", _escaped(text))
