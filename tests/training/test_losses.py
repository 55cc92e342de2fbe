"""What a training minimises: grades are ordered, other classes are not."""

import numpy as np
import pytest

from training.configurations import Configuration
from training.ml import losses


def value(loss, truth, probabilities):
    return float(loss(np.asarray([truth], np.float32), np.asarray([probabilities], np.float32)))


def test_a_grade_reaches_its_neighbours_and_hardly_farther():
    row = losses.spread(5, 0.6)[2]
    assert row.sum() == pytest.approx(1, abs=1e-6)
    assert row.argmax() == 2
    assert row[1] == row[3] == pytest.approx(0.25 * row[2], rel=0.01)
    assert row[0] < 0.01


def test_a_grade_that_is_one_off_costs_less_than_one_that_is_three_off():
    loss = losses.create(Configuration(), 5, ordinal=True)
    near, far = [0.02, 0.9, 0.04, 0.02, 0.02], [0.02, 0.04, 0.02, 0.02, 0.9]
    truth = [1, 0, 0, 0, 0]
    assert value(loss, truth, near) < value(loss, truth, far)


def test_classes_without_an_order_are_all_equally_wrong():
    loss = losses.create(Configuration(), 3, ordinal=False)
    assert value(loss, [1, 0, 0], [0.2, 0.7, 0.1]) == pytest.approx(value(loss, [1, 0, 0], [0.2, 0.1, 0.7]))


def test_without_a_spread_grades_are_smoothed_as_other_classes():
    plain = losses.create(Configuration(grade_spread=0), 3, ordinal=True)
    other = losses.create(Configuration(), 3, ordinal=False)
    assert value(plain, [0, 1, 0], [0.2, 0.7, 0.1]) == pytest.approx(value(other, [0, 1, 0], [0.2, 0.7, 0.1]))
