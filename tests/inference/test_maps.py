"""Class activation maps become pictures that show the evidence where it is, in colours that all can order."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from inference import maps
from inference.activation import Grid


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png), formats=("PNG",)))


def one_cell(row: int, column: int, cells: int = 7) -> np.ndarray:
    activation = np.full((cells, cells), -1, np.float32)
    activation[row, column] = 4
    return activation


def peak(values: np.ndarray) -> tuple[float, float]:
    """The middle of the highest values, in pixels from the edge."""
    rows, columns = np.nonzero(values >= values.max() - 1e-9)
    return rows.mean() + 0.5, columns.mean() + 0.5


@pytest.mark.parametrize(("row", "column"), [(3, 3), (1, 5), (5, 2)])
def test_cells_that_tile_the_picture_light_up_at_the_middle_of_their_tile(row, column):
    assert peak(maps.evidence(one_cell(row, column), 224)) == (32 * row + 16, 32 * column + 16)


@pytest.mark.parametrize(("row", "column"), [(3, 3), (1, 5), (5, 2)])
def test_cells_that_lie_beside_their_tile_light_up_where_they_look(row, column):
    grid = Grid(first=31.0, step=32.0)
    assert peak(maps.evidence(one_cell(row, column), 224, grid)) == (32 * row + 31, 32 * column + 31)


def test_maps_that_are_not_square_and_sizes_that_are_no_multiple_of_them_work():
    activation = np.zeros((3, 5), np.float32)
    activation[1, 3] = 1
    row, column = peak(maps.evidence(activation, 101))
    assert row == pytest.approx(101 / 2, abs=0.5) and column == pytest.approx(101 * 3.5 / 5, abs=0.5)


def test_a_rising_map_rises_smoothly_from_edge_to_edge():
    values = maps.evidence(np.tile(np.arange(8, dtype=np.float32), (8, 1)), 64)
    np.testing.assert_allclose(values, np.tile(values[0], (64, 1)), atol=1e-12)
    steps = np.diff(values[0])
    assert steps.min() >= 0 and steps.max() < 1.5 / 56
    # Inside, splines of a straight line are the line.
    np.testing.assert_allclose(steps[16:-16], 1 / 56, rtol=0.1)


def test_only_evidence_for_the_class_is_shown():
    activation = np.array([[-5, -5, -5], [-5, -1, 2], [-5, -5, -5]], np.float32)
    values = maps.evidence(activation, 60)
    assert values.min() == 0 and values.max() == 1 and not values[:, :10].any()


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_flat_map_is_fully_transparent(value):
    activation = np.full((7, 7), value, np.float32)
    activation[2, 2] += np.float32(value) * np.finfo(np.float32).eps
    assert not decoded(maps.heat(activation, 96))[..., 3].any()
    assert not decoded(maps.heat(np.full((1, 1), value, np.float32), 96))[..., 3].any()


def test_nothing_that_speaks_for_the_class_leaves_the_radiograph_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8)
    activation = -np.random.default_rng(1).random((3, 3), np.float32) - 1
    np.testing.assert_array_equal(decoded(maps.overlay(pixels, activation)), np.repeat(pixels[..., None], 3, axis=-1))


def test_strength_of_a_picture_does_not_depend_on_the_scale_of_its_logits():
    activation = np.random.default_rng(2).normal(size=(7, 7)).astype(np.float32)
    assert maps.heat(activation, 96) == maps.heat(activation * np.float32(1024), 96)


def test_the_overlay_is_the_radiograph_under_the_transparent_heat():
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    activation = np.random.default_rng(3).normal(size=(7, 7)).astype(np.float32)
    grid = Grid(16.5, 32)
    heat = Image.open(BytesIO(maps.heat(activation, 224, grid)))
    assert heat.mode == "RGBA" and heat.size == (224, 224)
    expected = Image.alpha_composite(Image.fromarray(pixels).convert("RGBA"), heat).convert("RGB")
    actual = decoded(maps.overlay(pixels, activation, grid))
    assert actual.dtype == np.uint8 and actual.shape == (224, 224, 3)
    np.testing.assert_allclose(actual.astype(int), np.asarray(expected).astype(int), atol=1)


def test_the_radiograph_stays_visible_under_the_strongest_evidence():
    opacity = decoded(maps.heat(one_cell(3, 3), 224))[..., 3]
    assert opacity.max() == round(255 * maps.OPACITY) < 255 * 0.7 and opacity.min() == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_maps_with_values_that_are_not_numbers_are_refused(value):
    with pytest.raises(ValueError, match="not numbers"):
        maps.heat(np.full((2, 2), value, np.float32), 32)


# Linear RGB as seen by a dichromat (Viénot, Brettel and Mollon 1999).
SEEN_BY = {
    "all cones": np.eye(3),
    "no red cones": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "no green cones": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
    "no colours": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}


@pytest.mark.parametrize("eye", SEEN_BY)
def test_stronger_evidence_is_lighter_to_every_eye(eye):
    linear = (maps.colours(np.linspace(0, 1, 17)) / 255) ** 2.2
    seen = linear @ SEEN_BY[eye].T @ [0.2126, 0.7152, 0.0722]
    # In the CIE's lightness (0 to 100), where a step of 1 can just be seen.
    lightness = 116 * np.cbrt(seen) - 16
    assert np.diff(lightness).min() > 1.5 and np.ptp(lightness) > 45
