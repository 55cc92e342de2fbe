"""The images that a version was made with, as its gate and its monitoring know them."""

from types import SimpleNamespace

import numpy as np
import pytest

from datasets.cache import open_cache
from inference import referencing
from inference.measures import LABELS
from inference.reference import Reference, describe
from tests.factories import ConditionFactory, ModelVersionFactory
from tests.inference.lungs import prepared, scanned, version_of
from tests.inference.versions import IMAGE_SIZE, bright_probability

pytestmark = pytest.mark.django_db


class Brightness:
    """Stands in for a loaded version whose features are mean and deviation of the image; says which images it read."""

    def __init__(self, features: bool = True) -> None:
        self.features = features
        self.seen: list[np.ndarray] = []

    def read(self, images: np.ndarray) -> SimpleNamespace:
        assert images.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE) and images.dtype == np.uint8
        self.seen.extend(images)
        values = images / 255
        features = np.stack([values.mean(axis=(1, 2)), values.std(axis=(1, 2))], axis=1).astype(np.float32)
        bright = bright_probability(values.mean(axis=(1, 2)))
        return SimpleNamespace(
            probabilities=np.stack([1 - bright, bright], axis=1), features=features if self.features else None
        )


@pytest.fixture
def preparation(team):
    return prepared(scanned(condition=ConditionFactory(slug="chest", team=team), times=6))


def test_training_images_are_fitted_and_validation_images_set_the_limit(preparation):
    version, model = version_of(preparation), Brightness()
    computed = referencing.compute(version, model=model)
    assert computed is not None and computed.reference is not None
    data = open_cache(preparation.cache_folder)
    train, validation = data.images[data.indices("train")], data.images[data.indices("validation")]
    np.testing.assert_array_equal(model.seen, np.concatenate([train, validation]))
    assert (computed.reference.fitted, computed.reference.held_out) == (len(train), len(validation))
    assert computed.images_count == len(validation) and computed.false_alarm_rate == 1 / (len(validation) + 1)
    described = [describe(Brightness().read(part).features, part) for part in (train, validation)]
    expected = Reference.fit(*described)
    assert expected is not None and computed.reference.limit == pytest.approx(expected.limit)


def test_measures_and_probabilities_of_validation_are_kept(preparation):
    version = version_of(preparation)
    computed = referencing.compute(version, model=Brightness())
    data = open_cache(preparation.cache_folder)
    validation = data.images[data.indices("validation")] / 255
    found = computed.distributions
    assert set(found.measures) >= set(LABELS) and set(found.probabilities) == {"NORMAL", "PNEUMONIA"}
    bright = np.sort(bright_probability(validation.mean(axis=(1, 2))))
    np.testing.assert_allclose(found.probabilities["PNEUMONIA"].values, bright, rtol=1e-4)
    means = np.sort(validation.mean(axis=(1, 2)))
    np.testing.assert_allclose(found.measures["mean"].values, means, rtol=1e-4)
    # Of the radiographs themselves, not of what the network sees.
    assert set(found.measures["width"].values) == {40}
    assert max(found.measures["distance"].values) == pytest.approx(computed.reference.limit, rel=1e-4)


def test_a_network_without_features_has_distributions_and_no_reference(preparation):
    computed = referencing.compute(version_of(preparation), model=Brightness(features=False))
    assert computed.reference is None and computed.false_alarm_rate is None
    assert "distance" not in computed.distributions.measures and computed.distributions.measures["mean"].count


def test_too_few_images_make_no_reference(team):
    few = prepared(scanned(condition=ConditionFactory(slug="chest", team=team)))
    computed = referencing.compute(version_of(few), model=Brightness())
    assert computed.reference is None and computed.images_count > 0


def test_of_many_images_an_even_choice_is_read(preparation, monkeypatch):
    monkeypatch.setattr(referencing, "MAXIMUM_FITTED", 60)
    monkeypatch.setattr(referencing, "MAXIMUM_HELD_OUT", 20)
    model, steps = Brightness(), []
    version = version_of(preparation)
    computed = referencing.compute(version, model=model, progress=lambda *step: steps.append(step))
    assert (computed.reference.fitted, computed.reference.held_out, len(model.seen)) == (60, 20, 80)
    assert steps[-1] == (80, 80) and [done for done, _ in steps] == sorted({done for done, _ in steps})
    # Both classes are among them, though the rows are in the order of the classes.
    labels = open_cache(preparation.cache_folder).labels
    assert set(labels[referencing._evenly(np.arange(len(labels)), 20)].tolist()) == {0, 1}


def test_a_version_whose_images_are_not_here_has_nothing(preparation, team):
    imported = ModelVersionFactory(condition=ConditionFactory(team=team), split_digest="a" * 64)
    assert referencing.compute(imported, model=Brightness()) is None
    nameless = ModelVersionFactory(condition=ConditionFactory(team=team), split_digest="")
    assert referencing.compute(nameless, model=Brightness()) is None


def test_pixels_that_the_version_does_not_see_so_are_not_taken_for_its_own(preparation):
    version = version_of(preparation)
    version.image_size = 2 * IMAGE_SIZE
    assert referencing.compute(version, model=Brightness()) is None


def test_without_its_pixels_there_is_nothing(preparation):
    version = version_of(preparation)
    preparation.remove_pixels(by=None)
    assert referencing.compute(version, model=Brightness()) is None
