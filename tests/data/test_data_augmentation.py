import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.data import AUGMENTATIONS
from keras_resnet.data.augmentation import pad_crop_flip, random_scale_crop, scaled_sides
from keras_resnet.geometry import center_crop, resize_whole

COUNT = 400


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(COUNT, 6, 6, 3)).astype("float32")


def seeds(epoch):
    return tf.stack([tf.fill([COUNT], tf.constant(epoch, tf.int64)), tf.range(COUNT, dtype=tf.int64)], -1)


def find_crop(image, result, flips):
    """The one (top, left, flipped) that makes `result` out of `image`, by trying all."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    found = [
        (top, left, flip)
        for top in range(9)
        for left in range(9)
        for flip in flips
        if np.array_equal(padded[top : top + 6, left : left + 6][:, :: -1 if flip else 1], result)
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(("name", "flips"), [("pad_crop", [False]), ("pad_crop_flip", [False, True])])
def test_every_result_is_a_crop_of_the_padded_image(images, name, flips):
    results = pad_crop_flip(tf.constant(images), seeds(0), AUGMENTATIONS[name]).numpy()
    places = np.array([find_crop(*pair, flips) for pair in zip(images, results, strict=True)])
    for axis in (0, 1):
        counts = np.bincount(places[:, axis], minlength=9)
        assert len(counts) == 9
        assert counts.min() > COUNT / 9 / 2
    assert abs(places[:, 2].mean() - (0.5 if True in flips else 0)) < 0.1
    # Rows, columns and mirrors are drawn independently.
    assert len({tuple(place) for place in places[:, :2]}) > 70


def test_draws_follow_from_the_seed_pair_alone(images):
    policy = AUGMENTATIONS["pad_crop_flip"]
    images = tf.constant(images)
    whole = pad_crop_flip(images, seeds(3), policy).numpy()
    np.testing.assert_array_equal(pad_crop_flip(images, seeds(3), policy), whole)
    np.testing.assert_array_equal(pad_crop_flip(images[7:9], seeds(3)[7:9], policy), whole[7:9])
    assert (np.any(pad_crop_flip(images, seeds(4), policy) != whole, axis=(1, 2, 3))).mean() > 0.95


def test_none_leaves_images_alone(images):
    np.testing.assert_array_equal(pad_crop_flip(tf.constant(images), seeds(0), AUGMENTATIONS["none"]), images)


def test_resize_whole_agrees_with_keras_bilinear():
    image = np.random.default_rng(1).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    for size in (7, 31):
        expected = tf.image.resize(image, (size, size), antialias=True)
        np.testing.assert_allclose(resize_whole(tf.constant(image), size), expected, atol=1e-3)
    same = np.random.default_rng(1).integers(0, 256, (2, 9, 9, 1), dtype=np.uint8)
    np.testing.assert_array_equal(resize_whole(tf.constant(same), 9), same.astype("float32"))


@pytest.mark.parametrize("shape", [(40, 61, 3), (61, 40, 3)])
def test_center_crop_is_the_middle_of_the_resized_image(shape):
    image = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    resized = tf.image.resize(image, (32, 49) if shape[0] < shape[1] else (49, 32), antialias=True).numpy()
    top, left = (resized.shape[0] - 28) // 2, (resized.shape[1] - 28) // 2
    expected = resized[top : top + 28, left : left + 28]
    np.testing.assert_allclose(center_crop(tf.constant(image), 32, 28), expected, atol=1e-2)


def test_scaled_sides_are_the_papers_at_224():
    policy = AUGMENTATIONS["scale_crop_flip"]
    assert scaled_sides(policy, 224) == (256, 480)
    assert scaled_sides(policy, 112) == (128, 240)


def test_random_scale_crop_covers_the_range_of_scales_and_the_whole_image():
    # A ramp shows where a crop came from: its values are positions, its slope is the scale.
    height, width, size = 60, 90, 28
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = tf.constant(np.stack([rows, columns, rows * 0], -1).astype("uint8"))
    policy = AUGMENTATIONS["scale_crop_flip"]
    crop = tf.function(lambda seed: random_scale_crop(image, seed, policy, size))
    sides, tops, lefts = [], [], []
    for index in range(150):
        cut = crop(tf.constant([9, index], tf.int64)).numpy()[4:-4, 4:-4]
        slope = (cut[-1, 0, 0] - cut[0, 0, 0]) / (len(cut) - 1)
        np.testing.assert_allclose((cut[0, -1, 1] - cut[0, 0, 1]) / (len(cut) - 1), slope, rtol=0.06)
        sides.append(height / slope)
        tops.append(cut[0, 0, 0])
        lefts.append(cut[0, 0, 1])
    assert min(sides) > 30
    assert max(sides) < 63
    assert min(sides) < 35
    assert max(sides) > 57
    assert min(tops) < 12
    assert max(tops) > 32
    assert min(lefts) < 12
    assert max(lefts) > 60
