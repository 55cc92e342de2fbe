"""The batches a network is fed with: augmented as asked, repeatable by seed, every image equally often."""

import numpy as np
import pytest

from datasets.cache import PreparedData
from training.configurations import Configuration
from training.ml import augmentation, pipeline
from training.ml.stages import steps_per_epoch

STILL = Configuration(shift=0, zoom=0, rotation=0, contrast=0, brightness=0, balance="none")
SIZE = 32


@pytest.fixture
def data():
    """Ten images; image i is grey value 20 * i everywhere, so that it can be recognised in a batch."""
    images = np.repeat(np.arange(10, dtype=np.uint8) * 20, SIZE * SIZE).reshape(10, SIZE, SIZE)
    return PreparedData(
        images=images,
        labels=np.array([0] * 8 + [1] * 2),
        splits=np.zeros(10, np.uint8),
        groups=np.arange(10),
        classes=("a", "b"),
        positive_class="b",
        pipeline={},
        digest="",
    )


def batches(data, configuration, count, batch_size=4, **options):
    rows = data.indices("train")
    feed = pipeline.training_batches(data, rows, configuration, batch_size=batch_size, **options)
    return [tuple(np.asarray(part) for part in batch) for batch in feed.take(count)]


def which(images: np.ndarray) -> list[int]:
    return (images[:, 0, 0, 0] * 255 / 20).round().astype(int).tolist()


def test_a_batch_is_network_input_with_one_hot_labels(data):
    images, labels, weights = batches(data, STILL, 1)[0]
    assert images.shape == (4, SIZE, SIZE, 1) and images.dtype == np.float32
    assert labels.tolist() == [[1, 0] if i < 8 else [0, 1] for i in which(images)]
    assert weights.tolist() == [1, 1, 1, 1]


def test_without_augmentation_the_pixels_come_as_they_are_stored(data):
    images, _, _ = batches(data, STILL, 1)[0]
    expected = np.array(which(images), np.float32)[:, None, None, None] * 20 / 255
    np.testing.assert_allclose(images, np.broadcast_to(expected, images.shape), atol=1e-6)


def test_every_image_comes_equally_often_in_batches_of_one_size(data):
    seen = np.concatenate([which(images) for images, _, _ in batches(data, STILL, 5)])
    assert np.bincount(seen, minlength=10).tolist() == [2] * 10


def test_the_same_seed_gives_the_same_batches(data):
    configuration = Configuration(seed=3)
    first, again = batches(data, configuration, 3), batches(data, configuration, 3)
    assert all(
        np.array_equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("change", [{"position": 8}, {"configuration": STILL.with_options(seed=1)}])
def test_another_seed_or_position_gives_another_order(data, change):
    configuration = change.pop("configuration", STILL)
    order = [which(images) for images, _, _ in batches(data, configuration, 5, **change)]
    assert order != [which(images) for images, _, _ in batches(data, STILL, 5)]


def test_class_weights_make_both_classes_count_the_same(data):
    _, labels, weights = batches(data, STILL.with_options(balance="weights"), 1, batch_size=10)[0]
    assert (labels * weights[:, None]).sum(axis=0) == pytest.approx([5, 5])


def test_a_batch_can_be_computed_without_those_before_it(data):
    configuration = Configuration(seed=3, noise=0.1)
    whole = batches(data, configuration, 6)
    later = batches(data, configuration, 3, position=3 * 4)
    for ours, theirs in zip(later, whole[3:], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("balance", ["none", "sampling"])
def test_the_order_is_the_same_in_batches_of_any_size(data, balance):
    order = pipeline.Order(data.labels, seed=5, balanced=balance == "sampling")
    whole = order.numbers(0, 60)
    pieces = [order.numbers(position, size) for position, size in [(0, 16), (16, 16), (32, 7), (39, 1), (40, 20)]]
    assert np.concatenate(pieces).tolist() == whole.tolist()


def test_sampling_shows_every_class_equally_often_and_every_image_of_a_class_too(data):
    order = pipeline.Order(data.labels, seed=5, balanced=True)
    seen = np.bincount(order.numbers(0, 32), minlength=10)
    # 16 of each class: 8 images twice, 2 images eight times.
    assert seen.tolist() == [2] * 8 + [8] * 2


def test_with_sampling_no_image_counts_more_than_another(data):
    _, labels, weights = batches(data, STILL.with_options(balance="sampling"), 1, batch_size=10)[0]
    assert weights.tolist() == [1] * 10
    assert labels.sum(axis=0).tolist() == [5, 5]


def test_no_order_is_drawn_twice_however_many_classes_there_are(monkeypatch):
    drawn = []
    draw = pipeline._permutation

    def counting(count, *seed):
        drawn.append(seed)
        return draw(count, *seed)

    monkeypatch.setattr(pipeline, "_permutation", counting)
    order = pipeline.Order(np.arange(40 * 5) % 40, seed=5, balanced=True)
    for position in range(0, 400, 40):
        order.numbers(position, 40)
    # In 400 images each of the 40 classes goes through its five images twice.
    assert len(drawn) == len(set(drawn)) == 40 * 2


def test_features_come_in_the_order_of_their_images(data):
    features = np.arange(20, dtype=np.float32).reshape(10, 2)
    configuration = STILL.with_options(balance="weights")
    feed = pipeline.feature_batches(features, data.labels, 2, configuration, batch_size=4, position=8)
    for (one, one_labels, one_weights), (two, two_labels, two_weights) in zip(
        feed.take(3), batches(data, configuration, 3, position=8), strict=True
    ):
        assert (np.asarray(one)[:, 0] / 2).tolist() == which(two)
        assert np.array_equal(one_labels, two_labels) and np.array_equal(one_weights, two_weights)


def test_an_epoch_is_one_pass_but_never_fewer_steps_than_the_minimum():
    assert steps_per_epoch(1850, 32, 40) == 58
    assert steps_per_epoch(84, 32, 40) == 40


def test_input_batches_keep_the_order_and_end_with_a_short_batch(data):
    parts = list(pipeline.input_batches(data, np.array([3, 1, 9]), 2))
    assert [which(part) for part in parts] == [[3, 1], [9]]


def square(row: int, column: int, size: int = 5) -> np.ndarray:
    image = np.zeros((1, SIZE + 1, SIZE + 1), np.uint8)
    image[0, row : row + size, column : column + size] = 255
    return image


def changed(image: np.ndarray, **fixed) -> np.ndarray:
    """One image under changes of a known size: a random source that always draws the upper bound."""

    class Upper:
        def uniform(self, low, high, size):
            return np.full(size, high)

    strengths = STILL.with_options(**fixed)
    changes = augmentation.draw(Upper(), 1, image.shape[1], strengths)
    return np.asarray(augmentation.apply(image, changes))[0, :, :, 0]


def test_a_shift_moves_by_that_part_of_the_side():
    moved = changed(square(14, 14), shift=4 / (SIZE + 1))
    np.testing.assert_allclose(moved, square(10, 10)[0] / 255, atol=1e-4)


def test_zooming_in_enlarges_about_the_centre():
    larger = changed(square(14, 14), zoom=0.4)
    assert larger.sum() == pytest.approx(25 * 1.4**2, rel=0.1)
    rows, columns = np.indices(larger.shape)
    assert (rows * larger).sum() / larger.sum() == pytest.approx(16, abs=0.01)
    assert (columns * larger).sum() / larger.sum() == pytest.approx(16, abs=0.01)


def test_a_rotation_turns_about_the_centre():
    turned = changed(square(14, 24), rotation=45.0)
    rows, columns = np.indices(turned.shape)
    down = (rows * turned).sum() / turned.sum() - 16
    across = (columns * turned).sum() / turned.sum() - 16
    assert np.hypot(down, across) == pytest.approx(10, abs=0.2)
    assert abs(down) == pytest.approx(abs(across), abs=0.2)


def test_contrast_is_changed_about_the_mean_and_brightness_is_added():
    image = np.full((1, SIZE, SIZE), 100, np.uint8)
    image[0, : SIZE // 2] = 60
    values = np.unique(changed(image, contrast=0.5, brightness=0.1).round(4))
    mean = 80 / 255
    assert values == pytest.approx([mean - 30 / 255 + 0.1, mean + 30 / 255 + 0.1], abs=1e-3)


def test_beyond_the_edge_the_image_goes_on_without_a_black_border():
    grey = np.full((1, SIZE, SIZE), 200, np.uint8)
    assert changed(grey, shift=0.3, zoom=0.5, rotation=30.0).min() == pytest.approx(200 / 255, abs=1e-3)


def test_images_are_never_mirrored():
    draws = augmentation.draw(np.random.default_rng(0), 1000, SIZE, Configuration(rotation=45, zoom=0.5, shift=0.3))
    a, b, _, c, d = draws.transforms[:, :5].T
    assert (a * d - b * c > 0).all()


def test_changed_images_stay_within_black_and_white():
    bright = changed(np.full((1, SIZE, SIZE), 250, np.uint8), brightness=0.5)
    assert bright.max() == 1.0
