"""How far an image lies from what a version learned: known distances, honest limits, bytes that can be trusted."""

from dataclasses import replace
from io import BytesIO
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage

from inference import reference as module
from inference.reference import MAXIMUM_BYTES, Reference, ReferenceUnusable, describe


def correlated(count: int, size: int, seed: int) -> np.ndarray:
    """Normal rows of features that depend on each other, with means and units of their own; one law for all seeds."""
    law = np.random.default_rng(0)
    mixing = law.normal(size=(size, size)) * np.geomspace(1, 0.05, size)
    middle, units = law.normal(0, 5, size), np.geomspace(0.01, 100, size)
    return (np.random.default_rng(seed).normal(size=(count, size)) @ mixing.T + middle) * units


def fitted(count: int = 300, size: int = 24, held_out: int = 200) -> Reference:
    reference = Reference.fit(correlated(count, size, 1), correlated(held_out, size, 2), fields_count=0)
    assert reference is not None
    return reference


# -- Distances


def test_distances_are_those_of_mahalanobis_with_the_covariance_of_ledoit_and_wolf():
    usual, others = correlated(300, 24, 1), correlated(20, 24, 3) * 1.3
    standard = (usual - usual.mean(axis=0)) / usual.std(axis=0)
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(standard).covariance_)
    rows = (others - usual.mean(axis=0)) / usual.std(axis=0)
    expected = [mahalanobis(row, np.zeros(24), precision) for row in rows]
    np.testing.assert_allclose(fitted().distances(others), expected, rtol=1e-4)


@pytest.mark.parametrize(("count", "size"), [(60, 200), (60, 24), (2000, 24)])
def test_the_shrinkage_is_that_of_ledoit_and_wolf(count, size):
    rows = correlated(count, size, 1)
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    expected = ledoit_wolf_shrinkage(standard, assume_centered=True)
    shrinkage = module._shrinkage(standard, standard.T @ standard / count)
    assert shrinkage == pytest.approx(expected, abs=1e-9)


def test_with_many_features_what_lies_outside_of_the_widest_directions_counts_alike():
    usual, others = correlated(500, 100, 1), correlated(10, 100, 3)
    standard = (usual - usual.mean(axis=0)) / usual.std(axis=0)
    variances, columns = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(standard).covariance_)
    variances[:36] = variances[:36].mean()
    precision = (columns / variances) @ columns.T
    rows = (others - usual.mean(axis=0)) / usual.std(axis=0)
    expected = np.sqrt(np.einsum("ij,jk,ik->i", rows, precision, rows))
    np.testing.assert_allclose(fitted(500, 100).distances(others), expected, rtol=1e-4)


def test_the_unit_of_a_feature_does_not_matter():
    units = np.geomspace(1e-3, 1e3, 24)
    usual, held_out, others = correlated(300, 24, 1), correlated(200, 24, 2), correlated(9, 24, 3)
    scaled = Reference.fit(usual * units, held_out * units, fields_count=0)
    assert scaled is not None
    np.testing.assert_allclose(scaled.distances(others * units), fitted().distances(others), rtol=1e-3)


def test_a_feature_that_never_changed_counts_for_nothing():
    def with_constant(rows: np.ndarray, value: float = 3.0) -> np.ndarray:
        return np.insert(rows, 5, value, axis=1)

    reference = Reference.fit(
        with_constant(correlated(300, 24, 1)), with_constant(correlated(200, 24, 2)), fields_count=0
    )
    assert reference is not None
    others = correlated(9, 24, 3)
    np.testing.assert_allclose(reference.distances(with_constant(others, 7.0)), fitted().distances(others), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_infinitely_far(value):
    rows = correlated(2, 24, 3)
    rows[1, 4] = value
    distances = fitted().distances(rows)
    assert np.isfinite(distances[0]) and distances[1] == np.inf


# -- The limit


@pytest.mark.parametrize(("count", "size", "held_out"), [(300, 24, 400), (60, 100, 30), (60, 24, 49)])
def test_of_further_usual_images_no_more_lie_beyond_the_limit_than_it_says(count, size, held_out):
    # The promise is one about all sets of images together, not about each.
    beyond, promised = [], []
    for seed in range(40):
        rows = correlated(count + held_out + 200, size, 10 + seed)
        reference = Reference.fit(rows[:count], rows[count : count + held_out], fields_count=0)
        assert reference is not None
        beyond.append((reference.distances(rows[count + held_out :]) > reference.limit).mean())
        promised.append(reference.false_alarm_rate)
    assert set(promised) == {promised[0]} and promised[0] <= max(0.02, 1 / (held_out + 1))
    error = np.std(beyond) / np.sqrt(len(beyond))
    # Neither more nor, so that it finds what there is to find, much less.
    assert promised[0] - 4 * error <= np.mean(beyond) <= promised[0] + 4 * error


def test_a_limit_by_the_images_it_was_fitted_to_would_promise_too_much():
    """What holding images out is for."""
    rows = correlated(400, 200, 1)
    reference = Reference.fit(rows[:100], rows[:100], fields_count=0)
    assert reference is not None
    assert (reference.distances(rows[100:]) > reference.limit).mean() > 0.5


def test_what_comes_from_elsewhere_lies_beyond_the_limit():
    reference = fitted()
    others = correlated(200, 24, 3)
    moved = others + 4 * others.std(axis=0) * np.where(np.arange(24) % 2, 1, -1)
    assert (reference.distances(moved) > reference.limit).mean() > 0.99
    assert reference.limit < reference.far


@pytest.mark.parametrize(("count", "held_out"), [(49, 200), (300, 19), (0, 0)])
def test_of_too_few_images_nothing_is_said(count, held_out):
    assert Reference.fit(correlated(count, 24, 1), correlated(held_out, 24, 2), fields_count=0) is None


def test_of_images_that_are_all_described_alike_nothing_is_said():
    assert Reference.fit(np.ones((100, 24)), np.ones((50, 24)), fields_count=0) is None


# -- Descriptions


@pytest.mark.parametrize("size", [64, 224, 45])
def test_images_are_described_by_their_features_and_the_brightness_of_64_fields(size):
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size), dtype=np.uint8)
    features = np.arange(15, dtype=np.float32).reshape(3, 5)
    described = describe(features, pixels)
    assert described.shape == (3, 69) and described.dtype == np.float64
    np.testing.assert_array_equal(described[:, :5], features)
    last = round(7 / 8 * size)
    assert described[2, -1] == pytest.approx(pixels[2, last:, last:].mean() / 255)
    assert described[1, 5] == pytest.approx(pixels[1, : round(size / 8), : round(size / 8)].mean() / 255)


def test_fields_have_a_quarter_of_the_variance_of_the_features_however_many_there_are():
    for features in (10, 500):
        rows = np.random.default_rng(0).normal(size=(400, features + 64))
        reference = Reference.fit(rows[:300], rows[300:])
        assert reference is not None
        variances = (rows[:300] * reference.factor).var(axis=0)
        assert variances[-64:].sum() == pytest.approx(variances[:-64].sum() / 4, rel=1e-4)


# -- Bytes


@pytest.mark.parametrize("size", [24, 400, 2064])
def test_a_reference_comes_back_from_its_bytes_and_is_small(size):
    reference = fitted(60, size, 30)
    content = reference.to_bytes()
    assert len(content) <= MAXIMUM_BYTES and content == reference.to_bytes()
    again = Reference.from_bytes(content)
    rows = correlated(5, size, 3)
    np.testing.assert_array_equal(again.distances(rows), reference.distances(rows))
    assert (again.limit, again.far, again.fitted) == (reference.limit, reference.far, 60)
    assert isinstance(again.limit, float) and isinstance(again.held_out, int)
    # Databases give binary columns back as other kinds of bytes.
    assert Reference.from_bytes(memoryview(content)).limit == reference.limit  # type: ignore[arg-type]


def changed(**arrays: object) -> bytes:
    """The bytes of a reference with other parts."""
    reference = fitted()
    buffer = BytesIO()
    parts = {name: getattr(reference, name) for name in Reference.__dataclass_fields__}
    np.savez(buffer, **{name: value for name, value in (parts | arrays).items() if value is not None})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "arrays",
    [
        {"mean": None},
        {"more": np.zeros(3)},
        {"mean": np.zeros(23, np.float32)},
        {"mean": np.zeros(24)},
        {"mean": np.full(24, np.nan, np.float32)},
        {"directions": np.zeros(24, np.float32)},
        {"directions": np.zeros((0, 24), np.float32)},
        {"variances": np.zeros(24, np.float32)},
        {"variances": -np.ones(24, np.float32)},
        {"factor": -np.ones(24, np.float32)},
        {"limit": np.inf},
        {"limit": -1.0},
        {"far": 0.0},
        {"rest": 0.0},
        {"fitted": 0},
        {"limit": np.array(["far"])},
        {"limit": np.array([{}], dtype=object)},
    ],
)
def test_bytes_that_are_no_reference_are_refused(arrays):
    with pytest.raises(ReferenceUnusable):
        Reference.from_bytes(changed(**arrays))


def test_damaged_and_inflated_bytes_are_refused():
    content = fitted().to_bytes()
    inflated = BytesIO()
    with ZipFile(inflated, "w", ZIP_DEFLATED) as archive:
        archive.writestr("mean.npy", bytes(50_000_000))
    for bad in (b"", b"no archive", content[: len(content) // 2], inflated.getvalue()):
        with pytest.raises(ReferenceUnusable):
            Reference.from_bytes(bad)


def test_the_unchanged_parts_are_accepted():
    assert Reference.from_bytes(changed()).limit == replace(fitted()).limit
