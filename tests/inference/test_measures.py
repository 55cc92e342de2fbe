"""The numbers that monitoring compares: what they mean, and how the ones of validation are kept."""

import json
import math

import numpy as np
import pytest
from scipy.stats import entropy, ks_2samp

from datasets.imaging import to_model_input
from inference.measures import (
    KEPT_VALUES,
    LABELS,
    Distribution,
    Distributions,
    measures,
    without_bars,
    without_black_edges,
)


def noise(height: int = 96, width: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 200, (height, width), dtype=np.uint8)


def test_every_measure_that_has_a_name_is_there_and_finite():
    found = measures(noise(), 900, 700, 12.5)
    assert set(LABELS) <= set(found) and all(math.isfinite(value) for value in found.values())
    assert (found["width"], found["height"], found["distance"]) == (900, 700, 12.5)


def test_mean_deviation_and_entropy_are_those_of_the_grey_values():
    pixels = noise()
    found = measures(pixels, 96, 96)
    assert found["mean"] == pytest.approx(pixels.mean() / 255, abs=1e-5)
    assert found["deviation"] == pytest.approx(pixels.std() / 255, abs=1e-5)
    shares = np.bincount(pixels.ravel()) / pixels.size
    assert found["entropy"] == pytest.approx(entropy(shares, base=2), abs=1e-4)


@pytest.mark.parametrize("value", [0, 255])
def test_an_empty_picture_has_no_entropy_and_no_deviation(value):
    found = measures(np.full((96, 96), value, np.uint8), 96, 96)
    assert (found["entropy"], found["deviation"], found["mean"]) == (0, 0, value / 255)


@pytest.mark.parametrize("distance", [None, math.inf])
def test_without_a_distance_there_is_none(distance):
    assert "distance" not in measures(noise(), 96, 96, distance)


@pytest.mark.parametrize(("height", "width"), [(300, 120), (120, 300), (200, 200), (1000, 3), (41, 40)])
def test_bars_are_taken_away_and_nothing_else(height, width):
    white = np.full((height, width), 255, np.uint8)
    square = to_model_input(white, 96, "pad")
    seen = without_bars(square, width, height, "pad")
    assert seen.min() == 255 and seen.size == np.count_nonzero(square)


def test_a_stretched_picture_has_no_bars():
    square = to_model_input(noise(300, 120), 96, "stretch")
    assert without_bars(square, 120, 300, "stretch") is square


# -- Distributions


def test_few_values_are_kept_as_they_are_in_order():
    found = Distribution.of(np.array([3.0, math.nan, 1.0, 2.0]))
    assert found == Distribution(3, (1.0, 2.0, 3.0)) and found.quantile(0.5) == 2


def test_of_many_values_as_many_quantiles_stand_for_all():
    values = np.random.default_rng(0).gamma(2, size=7321)
    found = Distribution.of(values)
    assert (found.count, len(found.values)) == (7321, KEPT_VALUES)
    assert ks_2samp(found.values, values).statistic <= 1 / KEPT_VALUES
    # So that the distance from other images is known as exactly.
    others = np.random.default_rng(1).gamma(2.2, size=400)
    exact = ks_2samp(others, values).statistic
    assert ks_2samp(others, found.values).statistic == pytest.approx(exact, abs=1 / KEPT_VALUES)


def test_without_images_there_is_no_quantile():
    assert Distribution.of(np.zeros(0)).quantile(0.5) is None


def test_distributions_come_back_from_json():
    found = [measures(noise(seed=seed), 96, 96, float(seed) if seed else None) for seed in range(5)]
    kept = Distributions.of(found, {"NORMAL": np.linspace(0, 1, 5), "PNEUMONIA": np.linspace(1, 0, 5)})
    assert Distributions.from_json(json.loads(json.dumps(kept.to_json()))) == kept
    assert kept.measures["distance"].values == (1, 2, 3, 4) and kept.measures["mean"].count == 5
    assert kept.probabilities["PNEUMONIA"].values == (0, 0.25, 0.5, 0.75, 1)
    assert set(kept.measures) == set(found[1])


def test_bars_beside_a_picture_whose_borders_were_cropped_are_told_by_their_blackness():
    square = np.zeros((64, 64), np.uint8)
    square[:, 12:52] = 90
    square[30, 30] = 0
    assert without_black_edges(square).shape == (64, 40)
    assert without_black_edges(np.zeros((64, 64), np.uint8)).shape == (64, 64)
