"""The gate says of each image whether it is fit for the model, why, and what to do."""

import math
from dataclasses import replace

import numpy as np
import pytest

from datasets import imaging, phantoms
from datasets.names import BODY_PARTS
from datasets.radiograph import Radiograph
from inference import gate
from inference.gate import CHECKS, Look, Verdict, judge, look, wants_negative, worst
from inference.measures import Distribution, Distributions
from inference.reference import Reference

SIZE = 96


def body(height: int = 200, width: int = 200) -> np.ndarray:
    """Something like a limb: a soft, bright ellipse with a bright line in it, on black."""
    rows, columns = np.mgrid[:height, :width]
    across, along = (columns - width / 2) / (width / 4), (rows - height / 2) / (height / 2.5)
    soft = 110 * np.clip(1.2 - across**2 - along**2, 0, 1)
    bone = 120 * np.exp(-((across / 0.2) ** 2)) * (np.abs(along) < 0.9)
    grain = np.random.default_rng(1).normal(0, 3, (height, width))
    return np.clip(soft + bone + grain + 4, 0, 255).astype(np.uint8)


def radiograph(grey: np.ndarray | None = None, **changes: object) -> Radiograph:
    return replace(Radiograph(grey=body() if grey is None else grey, format="PNG"), **changes)


def looked(found: Radiograph, fit: str = "pad", **options: object) -> Look:
    return look(found, imaging.model_input(found, SIZE, fit), fit=fit, **options)


def verdict(check: str, seen: Look) -> Verdict:
    found = {one.check: one for one in judge(seen, None, None)}
    assert list(found) == list(CHECKS)
    return found[check]


def outcome(check: str, found: Radiograph, **options: object) -> str:
    return verdict(check, looked(found, **options)).outcome


def test_a_radiograph_passes_every_check_that_can_be_made():
    seen = looked(radiograph(modality="CR", body_part="FOREARM"), body_part="arm")
    outcomes = {one.check: one.outcome for one in judge(seen, None, None)}
    assert outcomes == dict.fromkeys(CHECKS, "pass") | {"unlike": "unknown"}


# -- Size


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(96, 40, "pass"), (95, 95, "warn"), (40, 90, "warn"), (47, 47, "fail"), (100, 24, "warn"), (900, 100, "fail")],
)
def test_small_pictures_and_strips_are_noticed(height, width, expected):
    assert outcome("size", radiograph(body(height, width))) == expected


def test_what_is_as_small_as_the_versions_own_images_is_not_called_small():
    sizes = {name: Distribution.of(np.linspace(60, 90, 300)) for name in ("width", "height")}
    usual = Distributions(sizes, {})
    assert outcome("size", radiograph(body(64, 64))) == "warn"
    assert outcome("size", radiograph(body(64, 64)), usual=usual) == "pass"
    assert outcome("size", radiograph(body(50, 50)), usual=usual) == "warn"
    assert outcome("size", radiograph(body(64, 64)), usual=Distributions({}, {})) == "warn"


# -- Contrast, drawings, colours


@pytest.mark.parametrize(("spread", "expected"), [(0, "fail"), (2, "fail"), (12, "warn"), (60, "pass")])
def test_empty_and_faint_pictures_are_noticed(spread, expected):
    grey = np.full((120, 120), 100, np.uint8)
    grey[:60] += np.uint8(spread)
    assert outcome("contrast", radiograph(grey)) == expected


def test_the_bars_that_make_a_picture_square_are_no_contrast():
    grey = np.full((200, 60), 200, np.uint8)
    assert outcome("contrast", radiograph(grey), fit="pad") == "fail"


def test_of_an_empty_picture_its_kind_is_not_judged():
    assert outcome("picture", radiograph(np.full((120, 120), 100, np.uint8))) == "unknown"


def test_noise_is_no_radiograph():
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    assert outcome("picture", radiograph(noise)) == "fail"
    assert outcome("picture", radiograph()) == "pass"


@pytest.mark.parametrize(("tint", "expected"), [(0, "pass"), (10, "pass"), (40, "warn"), (90, "fail")])
def test_colours_beyond_the_tint_of_a_film_are_noticed(tint, expected):
    colours = np.full((8, 8, 3), 100, np.uint8)
    colours[..., 0] += np.uint8(tint)
    assert outcome("colour", radiograph(colours=colours)) == expected


# -- What the file says


@pytest.mark.parametrize(
    ("modality", "expected"),
    [("CR", "pass"), ("dx ", "pass"), ("CT", "fail"), ("MR", "fail"), ("OT", "unknown"), ("", "unknown")],
)
def test_examinations_that_are_no_radiographs_are_noticed(modality, expected):
    assert outcome("modality", radiograph(modality=modality)) == expected


@pytest.mark.parametrize(
    ("told", "made_for", "expected"),
    [
        ("CHEST", "chest", "pass"),
        ("THORAX", "chest", "pass"),
        ("CHEST PA", "thorax", "pass"),
        ("KNEE", "chest", "fail"),
        ("HAND", "arm", "pass"),
        ("UP_EXM", "forearm", "pass"),
        ("ELBOW", "humerus", "fail"),
        ("TIB FIB", "knee", "fail"),
        ("LEG", "knee", "pass"),
        ("CHEST ABDOMEN", "abdomen", "pass"),
        ("TSPINE", "chest", "fail"),
        ("HIP", "pelvis", "pass"),
        ("", "chest", "unknown"),
        ("WHOLEBODY", "chest", "unknown"),
        ("CHEST", "", "unknown"),
        ("CHEST", "ward 3", "unknown"),
    ],
)
def test_the_body_part_of_the_file_is_compared_with_that_of_the_condition(told, made_for, expected):
    assert outcome("body-part", radiograph(body_part=told), body_part=made_for) == expected


def test_of_the_body_part_only_known_words_are_repeated():
    told = verdict("body-part", looked(radiograph(body_part="KNEE MUELLER"), body_part="chest"))
    assert "knee" in told.text and "chest" in told.text and "mueller" not in told.text.casefold()


def test_every_body_part_that_folders_name_is_known():
    assert set(gate.REGIONS) >= BODY_PARTS


# -- Features

# Distances of this reference are the lengths of descriptions: mean 0, variance 1 in each of two directions.
REFERENCE = Reference(
    mean=np.zeros(2, np.float32),
    factor=np.ones(2, np.float32),
    directions=np.eye(2, dtype=np.float32),
    variances=np.ones(2, np.float32),
    rest=1.0,
    limit=3.0,
    far=5.0,
    false_alarm_rate=0.01,
    fitted=100,
    held_out=99,
)


def judged(distance: float, negative: float | None = None, grey: np.ndarray | None = None) -> dict[str, Verdict]:
    return {one.check: one for one in judge(looked(radiograph(grey)), REFERENCE, distance, negative)}


@pytest.mark.parametrize(
    ("distance", "expected"), [(0.0, "pass"), (3.0, "pass"), (3.1, "warn"), (5.0, "warn"), (5.1, "fail")]
)
def test_what_lies_beyond_the_limit_is_told_and_what_lies_far_beyond_fails(distance, expected):
    found = judged(distance)["unlike"]
    assert (found.outcome, found.value, found.limit) == (expected, distance, 3.0)


def test_what_the_network_makes_no_numbers_of_fails():
    found = judged(math.inf)["unlike"]
    assert (found.outcome, found.value) == ("fail", None)


def test_without_a_reference_likeness_is_unknown():
    assert verdict("unlike", looked(radiograph())).outcome == "unknown"


@pytest.mark.parametrize(
    ("negative_film", "distance", "negative_distance", "expected"),
    [
        # Both say so, or the features alone: the negative is usual and the picture is not.
        (True, 6, 2, "fail"),
        (False, 6, 2, "fail"),
        # It looks like a negative, and the negative is nearer, but not usual either.
        (True, 6, 4, "warn"),
        # The version learned from such pictures, or the negative is no better.
        (True, 2, 4, "pass"),
        (True, 6, 7, "pass"),
        # Nothing suspicious about its look.
        (False, 6, 4, "pass"),
        (False, 2, None, "pass"),
    ],
)
def test_a_negative_is_one_whose_own_negative_is_like_the_training_images(
    negative_film, distance, negative_distance, expected
):
    grey = 255 - body() if negative_film else body()
    assert judged(distance, negative_distance, grey)["inverted"].outcome == expected


def test_without_a_reference_a_negative_is_only_suspected():
    assert outcome("inverted", radiograph(255 - body())) == "warn"


def test_the_second_pass_is_asked_for_only_where_something_is_suspicious():
    usual, negative = looked(radiograph()), looked(radiograph(255 - body()))
    assert not wants_negative(usual, REFERENCE, 2.0) and wants_negative(usual, REFERENCE, 3.1)
    assert wants_negative(negative, REFERENCE, 2.0)
    assert not wants_negative(negative, None, None)


# -- Words


def test_verdicts_are_sentences_and_fit_into_json():
    seen = [looked(radiograph(255 - body(40, 30), modality="CT", body_part="KNEE"), body_part="chest")]
    seen.append(looked(radiograph(np.zeros((120, 120), np.uint8))))
    for one in (
        verdict for found in seen for distance in (1, 4, 6) for verdict in judge(found, REFERENCE, distance, 1)
    ):
        assert one.text[0].isupper() and one.text.endswith(".") and "  " not in one.text
        assert set(one.to_json()) == {"check", "outcome", "value", "limit", "text"}
        assert one.value is None or math.isfinite(one.value)
        # What is wrong says what to do.
        assert one.outcome in ("pass", "unknown") or one.text.count(". ") >= 1


def test_the_most_serious_outcome():
    passed, unknown, warned = (Verdict("size", outcome, None, None, "") for outcome in ("pass", "unknown", "warn"))
    assert worst([passed, warned, unknown]) == "warn"
    assert worst([passed, unknown]) == "unknown" and worst([]) == "pass"


def test_synthetic_radiographs_of_every_kind_pass(tmp_path):
    phantoms.make_samples(tmp_path, per_class=1)
    paths = [path for path in sorted(tmp_path.rglob("*")) if path.suffix in (".jpg", ".jpeg", ".png", ".dcm")]
    assert len(paths) >= 6
    for path in paths:
        seen = looked(imaging.read(path))
        assert {one.outcome for one in judge(seen, None, None)} <= {"pass", "unknown"}, path
