"""Versions that were measured on different images are compared on those that all share."""

from dataclasses import replace

import numpy as np
import pytest

from registry import reports
from registry.common_images import on_shared_images
from registry.comparing import Contender, compare
from tests.registry.evaluations import answered, make_images

QUESTION = reports.Question(classes=("NORMAL", "PNEUMONIA"), positive_class="PNEUMONIA", threshold=0.5)


def contender(label, images, quality, question=QUESTION):
    images = answered(images, 2, len(label), quality).in_order()
    report, replicates = reports.make(images, question)
    return Contender(label, report, images, question, replicates)


@pytest.fixture
def whole():
    return make_images(2, 60)


def test_only_images_that_all_have_count_and_every_figure_is_computed_on_them(whole):
    first = contender("v1", whole.where(whole.groups < 50), 2.0)
    second = contender("v02", whole.where(whole.groups >= 10), 1.0)
    shared = on_shared_images([first, second])
    assert shared.relabelled == 0
    assert [each.report["n"] for each in shared.contenders] == [80, 80]
    kept = np.isin(first.images.digests, second.images.digests)
    expected, _ = reports.make(first.images.where(kept), QUESTION)
    assert shared.contenders[0].report["metrics"] == expected["metrics"]
    comparison = compare(shared.contenders)
    assert comparison.same_images
    assert not comparison.obstacles
    assert len(comparison.pairs) == 1


def test_the_same_images_give_the_same_figures_as_before(whole):
    first, second = contender("v1", whole, 2.0), contender("v02", whole, 1.0)
    shared = on_shared_images([first, second]).contenders
    assert [each.report["metrics"] for each in shared] == [first.report["metrics"], second.report["metrics"]]


def test_images_whose_label_was_corrected_in_between_are_left_out_and_counted(whole):
    labels = whole.labels.copy()
    labels[:4] = 1 - labels[:4]
    shared = on_shared_images([contender("v1", whole, 2.0), contender("v02", replace(whole, labels=labels), 2.0)])
    assert shared.relabelled == 4
    assert shared.contenders[0].report["n"] == len(whole.labels) - 4


def test_nothing_in_common_is_said_by_no_versions(whole):
    other = make_images(2, 20, seed=1)
    assert on_shared_images([contender("v1", whole, 2.0), contender("v02", other, 2.0)]).contenders == ()


def test_a_picture_that_occurs_twice_counts_once(whole):
    twice = whole.where(np.append(np.arange(len(whole.labels)), 0))
    shared = on_shared_images([contender("v1", twice, 2.0), contender("v02", whole, 2.0)])
    assert shared.contenders[0].report["n"] == len(whole.labels)


def test_versions_with_other_classes_are_refused(whole):
    other = replace(QUESTION, classes=("PNEUMONIA", "NORMAL"))
    with pytest.raises(ValueError, match="different classes"):
        on_shared_images([contender("v1", whole, 2.0), contender("v02", whole, 2.0, other)])
