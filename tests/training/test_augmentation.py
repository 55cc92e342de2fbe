"""Each step of the augmentation: what it does to a picture, the same in both implementations, and free when unused."""

import numpy as np
import pytest

from tests.training.test_augmentation_preview import images
from training.configurations import Configuration
from training.ml import augmentation
from training.ml.runtime import tf

STILL = Configuration(shift=0, zoom=0, rotation=0, contrast=0, brightness=0)
STEPS = {
    "flip": True, "shift": 0.3, "zoom": 0.5, "rotation": 45.0, "contrast": 0.9, "brightness": 0.5, "gamma": 0.9,
    "blur": 3.0, "erase": 0.5,
}  # fmt: skip
WITHIN = 1 / 255


def drawn(count=6, size=48, seed=3, **strengths):
    return augmentation.draw(np.random.default_rng(seed), count, size, STILL.with_options(**strengths))


def in_graph(pictures, changes):
    return np.asarray(augmentation.apply(pictures, changes))[..., 0]


# -- The same in both


@pytest.mark.parametrize("size", [33, 64])
@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("step", STEPS)
def test_the_preview_of_every_step_is_what_the_training_does(step, kind, size):
    pictures = images(kind, size)
    changes = drawn(size=size, **{step: STEPS[step]})
    here, there = augmentation.apply_here(pictures, changes), in_graph(pictures, changes)
    assert here.dtype == there.dtype == np.float32
    # Of a noisy picture the pixel's position itself, rounded in another order, makes another grey level.
    within = 2 * WITHIN if kind == "noise" else WITHIN
    np.testing.assert_allclose(here, there, atol=within, rtol=0)


def test_all_steps_together_are_the_same_too():
    pictures = images("smooth", 64)
    changes = drawn(size=64, **STEPS)
    np.testing.assert_allclose(augmentation.apply_here(pictures, changes), in_graph(pictures, changes), atol=WITHIN)


def test_noise_is_as_strong_in_the_preview():
    grey = np.full((8, 64, 64), 128, np.uint8)
    changes = drawn(count=8, size=64, noise=0.1)
    here, there = augmentation.apply_here(grey, changes), in_graph(grey, changes)
    expected = changes.noises[:, 0]
    np.testing.assert_allclose(there.std(axis=(1, 2)), expected, rtol=0.1)
    np.testing.assert_allclose(here.std(axis=(1, 2)), expected, rtol=0.1)
    assert there.mean() == pytest.approx(128 / 255, abs=0.01)


# -- Free when unused


@pytest.mark.parametrize("step", [*STEPS, "noise"])
def test_a_step_is_drawn_only_when_it_has_a_strength(step):
    unused, used = drawn(), drawn(**{step: STEPS.get(step, 0.1)})
    assert all(array.shape == (6, 0) for array in unused)
    assert any(array.shape[1] for array in used)


def test_the_graph_holds_the_used_steps_only():
    def operations(**strengths):
        changes = augmentation.signature(4, STILL.with_options(**strengths))
        graph = tf.function(augmentation.apply).get_concrete_function(tf.TensorSpec((4, 32, 32), tf.uint8), changes)
        return {operation.type for operation in graph.graph.get_operations()}

    costly = {"ImageProjectiveTransformV3", "BatchMatMulV2", "Exp", "StatelessWhile", "Mean", "GatherV2", "Pow"}
    assert operations() & costly == set()
    assert operations(rotation=5.0) & costly == {"ImageProjectiveTransformV3"}
    assert operations(contrast=0.2) & costly == {"Mean"}
    assert operations(shift=0.1) & costly == {"GatherV2"}


def test_without_rotation_the_resampling_is_the_same_in_its_cheaper_form():
    pictures = images("noise", 48)
    upright = drawn(shift=0.2, zoom=0.4, flip=True)
    a, tx, d, ty = upright.transforms.T
    nothing = np.zeros_like(a)
    general = upright._replace(transforms=np.stack([a, nothing, tx, nothing, d, ty, nothing, nothing], axis=1))
    np.testing.assert_allclose(in_graph(pictures, upright), in_graph(pictures, general), atol=WITHIN)


def test_the_signature_is_that_of_what_is_drawn():
    strengths = STILL.with_options(blur=1.0, noise=0.1, flip=True)
    changes = augmentation.draw(np.random.default_rng(0), 5, 32, strengths)
    for array, spec in zip(changes, augmentation.signature(5, strengths), strict=True):
        assert (array.shape, array.dtype) == (tuple(spec.shape), spec.dtype.as_numpy_dtype)


def test_another_strength_leaves_the_other_steps_as_they_are():
    """So that a preview shows what the changed strength does, and nothing else."""
    one, other = drawn(shift=0.1, blur=1.0), drawn(shift=0.1, blur=2.0, gamma=0.5)
    assert np.array_equal(one.transforms, other.transforms)
    np.testing.assert_allclose(2 * one.blurs, other.blurs, rtol=1e-6)


def test_the_same_seed_draws_and_shows_the_same_noise():
    grey = np.full((3, 16, 16), 100, np.uint8)
    first, again, other = (in_graph(grey, drawn(3, 16, seed, noise=0.2)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


# -- What each does


def test_a_flip_mirrors_about_half_of_the_images_exactly():
    pictures = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    shown = np.rint(in_graph(pictures, drawn(40, 16, flip=True)) * 255)
    mirrored = [np.array_equal(after, before[:, ::-1]) for after, before in zip(shown, pictures, strict=True)]
    untouched = [np.array_equal(after, before) for after, before in zip(shown, pictures, strict=True)]
    assert all(one != other for one, other in zip(mirrored, untouched, strict=True))
    assert 10 <= sum(mirrored) <= 30


def test_without_flip_nothing_is_ever_mirrored():
    a, b, _, c, d, *_ = drawn(1000, rotation=45.0, zoom=0.5, shift=0.3).transforms.T
    assert (a * d - b * c > 0).all()


def test_the_grey_curve_keeps_black_and_white_and_bends_between_them():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (2, 256, 1))
    changes = drawn(2, 256, gamma=0.9)._replace(gammas=np.array([[np.exp(0.9)], [np.exp(-0.9)]], np.float32))
    darker, brighter = in_graph(ramp, changes)[:, 0]
    assert darker[0] == brighter[0] == 0 and darker[-1] == brighter[-1] == 1
    assert (darker[1:-1] < ramp[0, 0, 1:-1] / 255).all() and (brighter[1:-1] > ramp[0, 0, 1:-1] / 255).all()
    np.testing.assert_allclose(darker, (np.arange(256) / 255) ** np.exp(0.9), atol=1e-5)


def test_a_point_is_blurred_to_a_gaussian_of_that_width_and_loses_nothing():
    point = np.zeros((1, 65, 65), np.uint8)
    point[0, 32, 32] = 255
    changes = drawn(1, 65, blur=1.0)._replace(blurs=np.array([[2.0]], np.float32))
    blurred = in_graph(point, changes)[0]
    rows = np.arange(65) - 32
    assert blurred.sum() == pytest.approx(1, abs=1e-4)
    assert (blurred.sum(axis=1) * rows**2).sum() == pytest.approx(4, rel=0.02)


def test_a_flat_picture_stays_flat_up_to_its_edge_when_blurred():
    flat = np.full((2, 32, 32), 200, np.uint8)
    np.testing.assert_allclose(in_graph(flat, drawn(2, 32, blur=3.0)), 200 / 255, atol=1e-5)


def test_blur_means_the_same_at_every_size():
    small, large = drawn(5, 112, blur=1.0).blurs, drawn(5, 224, blur=1.0).blurs
    np.testing.assert_allclose(2 * small, large, rtol=1e-6)


def test_a_rectangle_is_wiped_out_with_the_mean_of_the_image():
    pictures = images("noise", 64)
    changes = drawn(6, 64, erase=0.5)
    shown = in_graph(pictures, changes)
    for picture, after, (top, left, height, width) in zip(pictures / 255, shown, changes.erasures, strict=True):
        inside = np.abs(after - picture.mean()) < 1e-5
        assert height <= 32 and width <= 32 and top >= 0 and top + height <= 64 and left + width <= 64
        assert inside.sum() == pytest.approx(height * width, abs=float(height + width + 40))
        np.testing.assert_allclose(after[~inside], picture[~inside], atol=1e-6)


def test_everything_at_its_strongest_stays_between_black_and_white():
    shown = in_graph(images("noise", 32), drawn(size=32, noise=0.2, **STEPS))
    assert shown.min() >= 0 and shown.max() <= 1 and np.isfinite(shown).all()
