"""The model card tells all that is known about a version, names no patient, and stays text whatever it is given."""

import json
import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from registry import reports
from registry.cautions import Caution
from registry.model_card import (
    CardEvaluation,
    CardEvent,
    CardFacts,
    CardThreshold,
    card,
    to_json,
    to_markdown,
)
from registry.operating_points import choose

HOSTILE = (
    "`rm -rf` | <script>alert(1)</script> [x](javascript:alert(1)) ![i](http://evil.example/a.png) **b** _i_\n# H\n- l"
)
SECTIONS = [
    "Intended use",
    "Model",
    "Data",
    "Splits",
    "Training",
    "Metrics",
    "Operating point",
    "Limits",
    "Subgroup results",
    "Software",
    "Approval and activation",
]


def images(classes: int) -> reports.EvaluatedImages:
    random = np.random.default_rng(0)
    labels = np.arange(60) % classes
    powers = np.exp(random.normal(size=(60, classes)) + 1.5 * np.eye(classes)[labels])
    return reports.EvaluatedImages(
        labels=labels,
        probabilities=powers / powers.sum(axis=1, keepdims=True),
        groups=np.arange(60) // 2,
        digests=np.array([f"{index:064x}" for index in range(60)]),
        rows=np.arange(60),
        subgroups={"sex": np.array(["F", "M", "F"] * 20)},
    )


def full(text: str = "", classes: tuple[str, ...] = ("NORMAL", "PNEUMONIA")) -> CardFacts:
    """Everything filled in. text: added to whatever a person or a file could have named."""
    measured = images(len(classes))
    positive = classes[1] if len(classes) == 2 else ""
    report, _ = reports.make(measured, reports.Question(classes, positive))
    point = choose(measured.labels == 1, measured.probabilities[:, 1], "sensitivity", 0.9).to_json()
    return CardFacts(
        condition=f"Chest pneumonia{text}",
        version=3,
        classes=classes,
        positive_class=positive,
        body_part="chest",
        state="approved",
        created_by=f"alice{text}",
        architecture="DenseNet121",
        image_size=224,
        dataset=f"chest_xray{text}",
        images={"training": dict.fromkeys(classes, 1000), "test": {classes[0]: 30}},
        patients={"test": 30},
        split={"Seed": "7"},
        training={"Learning rate": "0.001"},
        epochs=12,
        evaluations=[CardEvaluation(f"Test part{text}", report)],
        operating_point=CardThreshold(
            0.41, "sensitivity", 0.9, 0.05, f"screening{text}", "bob", "2026-01-02", validation=point, test=point
        ),
        cautions=[Caution("few-patients", f"Too few patients{text}.", "Add more.")],
        environment={"tensorflow": "2.21.0"},
        history=[CardEvent("2026-01-03", "Put in service", f"bob{text}", f"better{text}")],
    )


def section(made: dict[str, Any], title: str) -> dict[str, Any]:
    return next(found for found in made["sections"] if found["title"] == title)


# --- What it tells ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return card(full())


def test_every_section_is_there_in_order(made):
    assert made["title"] == "Model card: Chest pneumonia, version 3"
    assert [found["title"] for found in made["sections"]] == SECTIONS


def test_data_are_counts_of_images_and_patients(made):
    (table,) = section(made, "Data")["tables"]
    assert table["header"] == ["Part", "NORMAL", "PNEUMONIA", "All images", "Patients"]
    assert table["rows"] == [["Training", "1,000", "1,000", "2,000", "not known"], ["Test", "30", "0", "30", "30"]]


def test_metrics_come_with_their_intervals(made):
    metrics, confusion = section(made, "Metrics")["tables"]
    assert metrics["caption"].startswith("Test part: 60 images of 30 patients")
    auc = next(row for row in metrics["rows"] if row[0] == "AUC")
    assert re.fullmatch(r"0\.\d{3}", auc[1]) and re.fullmatch(r"0\.\d{3} to [01]\.\d{3}", auc[2])
    assert sum(int(count) for row in confusion["rows"] for count in row[1:]) == 60


def test_the_operating_point_says_why_and_what_it_does(made):
    found = section(made, "Operating point")
    assert ["Chosen for", "A sensitivity to reach, with the best specificity"] in found["facts"]
    assert ["Prevalence assumed", "5.00%"] in found["facts"] and ["Threshold", "0.41"] in found["facts"]
    assert [row[0] for row in found["tables"][0]["rows"]] == ["Validation", "Test"]


def test_limits_subgroups_software_and_decisions_are_told(made):
    assert "Too few patients. Add more." in section(made, "Limits")["paragraphs"]
    groups = section(made, "Subgroup results")["tables"][0]
    assert groups["caption"] == "Test part, by sex" and [row[0] for row in groups["rows"]] == ["F", "M"]
    assert section(made, "Software")["facts"] == [["tensorflow", "2.21.0"]]
    assert section(made, "Approval and activation")["tables"][0]["rows"][0][1:3] == ["Put in service", "bob"]


def test_several_classes_are_shown_one_by_one():
    tables = section(card(full(classes=("A", "B", "C"))), "Metrics")["tables"]
    assert [row[0] for row in tables[1]["rows"]] == ["A", "B", "C"]
    assert len(tables[1]["header"]) == len(tables[1]["rows"][0])


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        (True, "All images of a patient are in one part"),
        (False, "Some patients have images in more than one part"),
        (None, "is not known"),
    ],
)
def test_patients_are_only_called_apart_where_this_is_known(apart, said):
    told = section(card(replace(full(), patients_apart=apart)), "Splits")["paragraphs"]
    assert said in told[1] and (("All images" in " ".join(told)) is (apart is True))


def test_figures_say_at_which_threshold_they_were_decided(made):
    figures, _ = section(made, "Metrics")["tables"]
    assert figures["caption"].endswith("60 images of 30 patients, decided at the threshold 0.5")
    several = section(card(full(classes=("A", "B", "C"))), "Metrics")["tables"][0]
    assert "threshold" not in several["caption"]


def test_what_is_doubtful_about_the_choice_of_images_stands_with_the_figures():
    facts = full()
    note = "It is not known here which images it learned from."
    other = CardEvaluation("Other images", {**facts.evaluations[0].report, "selection": [note]}, external=True)
    told = section(card(replace(facts, evaluations=[*facts.evaluations, other])), "Metrics")["paragraphs"]
    assert told[1:] == [f"Other images: {note}"]


def test_a_version_that_was_never_measured_is_not_said_to_be_without_objections():
    told = section(card(replace(full(), evaluations=[], cautions=[])), "Limits")["paragraphs"]
    assert told[0] == "Nothing is known about the quality of its answers."


def test_what_is_not_known_is_said():
    made = card(CardFacts("Knee", 1, ("0", "1", "2")))
    assert [found["title"] for found in made["sections"]] == SECTIONS
    told = to_markdown(made)
    for words in (
        "How many images it was made from is not known.",
        "It has not been evaluated",
        "there is no threshold",
        "neither been approved nor put in service",
    ):
        assert words in told


def test_synthetic_images_are_said_first():
    made = card(replace(full(), synthetic=True))
    assert "knows nothing about patients" in section(made, "Data")["paragraphs"][0]


def test_an_undefined_figure_is_told_with_its_reason():
    measured = images(2)
    report, _ = reports.make(
        measured.where(measured.labels == 1), reports.Question(("NORMAL", "PNEUMONIA"), "PNEUMONIA")
    )
    facts = replace(full(), evaluations=[CardEvaluation("Test part", report)])
    rows = section(card(facts), "Metrics")["tables"][0]["rows"]
    assert next(row for row in rows if row[0] == "AUC")[1] == "undefined"
    assert "nan" not in to_markdown(card(facts)).lower().replace("finan", "")


def test_no_fact_asks_for_patients_or_files():
    names = {each.name for each in fields(CardFacts)}
    assert not names & {"patient", "patient_ids", "files", "paths", "digests", "rows"}
    assert full().evaluations[0].report["n"] == 60
    assert f"{5:064x}" not in to_json(card(full()))


# --- Its forms -------------------------------------------------------------------------------------------------------


def test_a_card_is_plain_json_and_every_leaf_is_text(made):
    assert json.loads(to_json(made)) == made

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for each in value.values() for leaf in leaves(each)]
        return [leaf for each in value for leaf in leaves(each)] if isinstance(value, list) else [value]

    assert all(isinstance(leaf, str) for leaf in leaves(made["sections"]))
    tables = [table for found in made["sections"] for table in found["tables"]]
    assert all(len(row) == len(table["header"]) for table in tables for row in table["rows"])


def rendered(markdown: str) -> str:
    """As a page that allows HTML, tables and links would show it: the most dangerous one."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


def shape(html: str) -> list[str]:
    """The tags without their text."""
    return re.findall(r"</?[a-z0-9]+", html)


def test_hostile_text_is_shown_and_changes_nothing_in_markdown():
    calm, hostile = to_markdown(card(full(" x"))), to_markdown(card(full(f" {HOSTILE}")))
    html = rendered(hostile)
    assert shape(html) == shape(rendered(calm))
    for tag in ("<script", "<a ", "<img", "<code", "<em"):
        assert tag not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [x](javascript:alert(1))" in html
    assert "http://" not in hostile


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30))
def test_any_text_stays_one_paragraph_one_fact_and_one_cell(text):
    told = f"a{text}z"
    part = {
        "title": told,
        "paragraphs": [told, f"{text}z"],
        "facts": [[told, told]],
        "tables": [{"caption": told, "header": [told, "b"], "rows": [[told, told], [text, "c"]]}],
    }
    html = rendered(to_markdown({"format": 1, "title": told, "sections": [part]}))
    plain = {**part, "title": "x", "paragraphs": ["x", "x"], "facts": [["x", "x"]]}
    plain["tables"] = [{"caption": "x", "header": ["x", "b"], "rows": [["x", "x"], ["x", "c"]]}]
    assert shape(html) == shape(rendered(to_markdown({"format": 1, "title": "x", "sections": [plain]})))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1. first", "<p>1. first</p>"),
        ("12) twelfth", "<p>12) twelfth</p>"),
        ("- item", "<p>- item</p>"),
        ("===", "<p>===</p>"),
        ("> quote", "<p>&gt; quote</p>"),
        ("    code", "<p>code</p>"),
        ("a\u202eb", "<p>a b</p>"),
        ("&lt;", "<p>&amp;lt;</p>"),
        ("Non_fractured", "<p>Non_fractured</p>"),
        ("www.evil.example a@b.example", "<p>www.evil.example a@b.example</p>"),
    ],
)
def test_a_paragraph_shows_exactly_its_text(text, shown):
    part = {"title": "T", "paragraphs": [text], "facts": [], "tables": []}
    markdown = to_markdown({"format": 1, "title": "T", "sections": [part]})
    assert rendered(markdown).endswith(f"{shown}\n")
    assert "www.evil" not in markdown and "a@b" not in markdown
