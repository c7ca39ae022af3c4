import hashlib
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from sklearn.datasets import load_sample_image

from keras_resnet.data import (
    AUGMENTATIONS,
    Augmentation,
    IndexedSplit,
    Transform,
    training_batches,
)
from keras_resnet.data.augmentation import color
from keras_resnet.data.augmentation.apply import adjust, pad_crop_erase
from keras_resnet.data.augmentation.crop import crop_box
from keras_resnet.data.augmentation.draws import uniforms
from keras_resnet.images.ops import evaluation_view
from keras_resnet.images.preprocessing import Normalization

COUNT = 400
DRAWS = 10_000
KEY = 2**61 + 12345  # as large as an epoch's key


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(COUNT, 6, 6, 3)).astype("float32")


@pytest.fixture(scope="module")
def photos():
    """Eight squares of 24 pixels, float32, whole numbers."""
    photo = load_sample_image("china.jpg")[::8, ::8].astype("float32")
    return np.stack([photo[row : row + 24, 4 * row : 4 * row + 24] for row in range(0, 16, 2)])


def seeds(epoch, count=COUNT):
    return tf.stack([tf.fill([count], tf.constant(epoch, tf.int64)), tf.range(count, dtype=tf.int64)], -1)


def both(images, pairs, policy):
    """The policy without a normalization between its two halves."""
    return pad_crop_erase(adjust(images, pairs, policy), pairs, policy)


GRAPHS = {function: tf.function(function) for function in (adjust, pad_crop_erase, uniforms)}


def windows(shape, policy, size, count, epoch=KEY):
    """float (count, 4)."""

    @tf.function
    def draw(shape):
        return tf.map_fn(
            lambda seed: crop_box(shape, seed, policy, size),
            seeds(epoch, count),
            fn_output_signature=tf.float32,
        )

    return draw(tf.constant(shape)).numpy().astype("float64")


# What the commit 1a9dd07 drew, before there were other policies.
DIGESTS = {
    "none": "a23675492b4151b0",
    "pad_crop": "153ef9ae3641aff9",
    "pad_crop_flip": "79f0bd7a96bcdbad",
    "scale_crop_flip": "af537aa3a382a806",
}
# height, width, example, height and width of the resized image, top and left of the crop of 224
CROPS = [
    (375, 500, 0, 439, 585, 40, 111),
    (375, 500, 1, 450, 600, 200, 181),
    (375, 500, 2, 350, 467, 69, 74),
    (375, 500, 3, 451, 601, 200, 0),
    (500, 333, 0, 659, 439, 81, 66),
    (500, 333, 1, 676, 450, 400, 109),
    (500, 333, 2, 526, 350, 165, 38),
    (500, 333, 3, 677, 451, 400, 0),
    (64, 64, 1, 450, 450, 200, 109),
]


@pytest.mark.parametrize("name", list(DIGESTS))
def test_older_policies_draw_what_they_always_did(name):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 6, 6, 3)).astype("float32")
    result = both(tf.constant(pixels), seeds(KEY, 32), AUGMENTATIONS[name]).numpy()
    assert hashlib.sha256(result.tobytes()).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", ["scale_crop_flip", "scale_crop_flip_pca"])
@pytest.mark.parametrize("crop", CROPS)
def test_the_papers_crops_are_drawn_as_ever(name, crop):
    *shape, example, height, width, top, left = crop
    found = crop_box(tf.constant(shape), tf.constant([KEY, example], tf.int64), AUGMENTATIONS[name], 224)
    scale = np.array([height, width]) / shape
    np.testing.assert_allclose(found[:2], [top, left] / scale, rtol=1e-6)
    np.testing.assert_allclose(found[2:], 224 / scale, rtol=1e-6)


def test_the_papers_crops_cover_the_range_of_scales_and_the_whole_image():
    found = windows((60, 90), AUGMENTATIONS["scale_crop_flip"], 28, 2000)
    sides = 28 / found[:, 2] * 60
    assert sorted(set(np.round(sides, 3))) == list(range(32, 61))
    np.testing.assert_allclose(np.bincount(np.round(sides).astype(int))[32:], 2000 / 29, rtol=0.5)
    bottom, right = (found[:, :2] + found[:, 2:]).T
    assert found[:, :2].min() == 0
    assert 59.5 < bottom.max() < 60.01
    assert 89.5 < right.max() < 90.5  # the resized width is rounded
    assert abs(np.corrcoef(found[:, :2] / (np.array([60, 90]) - found[:, 2:] + 1), rowvar=False)[0, 1]) < 0.06


def resized_crop_params(random, height, width, scale, ratio):
    """torchvision.transforms.RandomResizedCrop.get_params, line by line, in NumPy."""
    area = height * width
    log_ratio = np.log(ratio)
    for _ in range(10):
        target_area = area * random.uniform(scale[0], scale[1])
        aspect_ratio = np.exp(random.uniform(log_ratio[0], log_ratio[1]))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.integers(0, height - h + 1), random.integers(0, width - w + 1), h, w
    in_ratio = width / height
    if in_ratio < min(ratio):
        w = width
        h = round(w / min(ratio))
    elif in_ratio > max(ratio):
        h = height
        w = round(h * max(ratio))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("shape", [(375, 500), (640, 360), (100, 400)])
def test_random_resized_crops_are_distributed_as_torchvisions(shape):
    random = np.random.default_rng(5)
    expected = np.array(
        [resized_crop_params(random, *shape, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(DRAWS)]
    )
    found = windows(shape, AUGMENTATIONS["inception"], 224, DRAWS)
    np.testing.assert_array_equal(found, np.round(found))
    assert found.min(0).tolist()[:2] == [0, 0]
    assert (found[:, :2] + found[:, 2:]).max(0).tolist() == list(shape)
    measures = {
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: box[:, 3] / box[:, 2],
        "vertical place": lambda box: box[:, 0] + box[:, 2] / 2,
        "horizontal place": lambda box: box[:, 1] + box[:, 3] / 2,
    }
    for name, measure in measures.items():
        test = stats.ks_2samp(measure(found), measure(expected))
        assert test.pvalue > 0.01, name


def test_the_box_in_the_middle_where_none_fits():
    policy = AUGMENTATIONS["inception"]
    # In a strip, even the smallest area has the wrong proportions.
    assert np.unique(windows((20, 4000), policy, 64, 50), axis=0).tolist() == [[0, 1986, 20, 27]]
    assert np.unique(windows((4000, 20), policy, 64, 50), axis=0).tolist() == [[1986, 0, 27, 20]]
    assert np.unique(windows((1, 1), policy, 64, 50), axis=0).tolist() == [[0, 0, 1, 1]]


def test_resize_ranges_are_the_papers_at_224():
    policy = AUGMENTATIONS["scale_crop_flip"]
    assert policy.resize_range(224) == (256, 480)
    assert policy.resize_range(112) == (128, 240)


def find_crop(image, result, flips):
    """The one (top, left, flipped) that makes `result` out of `image`, by trying all."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    crops = np.moveaxis(np.lib.stride_tricks.sliding_window_view(padded, (6, 6), (0, 1)), 2, -1)
    found = [
        (*place, flip)
        for flip in flips
        for place in np.argwhere((crops == result[:, :: -1 if flip else 1]).all((2, 3, 4))).tolist()
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(("name", "flips"), [("pad_crop", [False]), ("pad_crop_flip", [False, True])])
def test_every_result_is_a_crop_of_the_padded_image(images, name, flips):
    results = pad_crop_erase(tf.constant(images), seeds(0), AUGMENTATIONS[name]).numpy()
    places = np.array([find_crop(*pair, flips) for pair in zip(images, results, strict=True)])
    for axis in (0, 1):
        counts = np.bincount(places[:, axis], minlength=9)
        assert len(counts) == 9
        assert counts.min() > COUNT / 9 / 2
    assert abs(places[:, 2].mean() - (0.5 if True in flips else 0)) < 0.1
    # Rows, columns and mirrors are drawn independently.
    assert len({tuple(place) for place in places[:, :2]}) > 70


def test_half_of_the_images_are_mirrored_once(images):
    policy = AUGMENTATIONS["inception"]
    adjusted = GRAPHS[adjust](tf.constant(images), seeds(0), policy).numpy()
    mirrored = (adjusted == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (adjusted == images).all((1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 0.1
    np.testing.assert_array_equal(pad_crop_erase(tf.constant(adjusted), seeds(0), policy), adjusted)
    # A policy that pads does it afterwards.
    padding = AUGMENTATIONS["pad_crop_flip"]
    np.testing.assert_array_equal(adjust(tf.constant(images), seeds(0), padding), images)


# "randaugment" is a part of "randaugment_erasing".
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        *((name, 3) for name in AUGMENTATIONS if name != "randaugment"),
        ("inception_jitter", 1),
        pytest.param("randaugment_erasing", 1, marks=pytest.mark.slow),
    ],
)
def test_draws_follow_from_the_seed_pair_alone(photos, name, channels):
    policy = AUGMENTATIONS[name]
    pixels = tf.constant(photos[..., :channels])
    pairs = seeds(KEY, len(photos))
    graph = tf.function(both)
    whole = graph(pixels, pairs, policy).numpy()
    assert whole.shape == pixels.shape
    np.testing.assert_array_equal(both(pixels[2:5], pairs[2:5], policy), whole[2:5])
    if name != "none":
        again = graph(pixels, seeds(KEY + 1, len(photos)), policy).numpy()
        assert (again != whole).any((1, 2, 3)).mean() > (0.3 if policy == AUGMENTATIONS["inception"] else 0.5)
    if policy.crops:
        eager = [crop_box(tf.constant([375, 500]), pair, policy, 224).numpy() for pair in pairs]
        np.testing.assert_array_equal(windows((375, 500), policy, 224, len(photos)), eager)
        assert len({tuple(box) for box in eager}) == len(photos)


@pytest.mark.parametrize(
    "name", ["inception_jitter", pytest.param("randaugment_erasing", marks=pytest.mark.slow)]
)
def test_the_division_of_a_batch_does_not_change_a_bit_of_it(photos, name):
    split = IndexedSplit("train", photos.astype("uint8"), np.arange(8, dtype="int32"))
    transform = Transform.create(16, Normalization.imagenet(), name)

    def batches(**division):
        epoch = training_batches(split, transform, global_batch=8, seed=1, epoch=2, **division)
        return [batch["images"] for batch in epoch.as_numpy_iterator()]

    (whole,) = batches()
    np.testing.assert_array_equal(np.concatenate(batches(workers=2, worker=1, replicas=4)), whole[4:])


def test_none_leaves_images_alone(images):
    np.testing.assert_array_equal(both(tf.constant(images), seeds(0), AUGMENTATIONS["none"]), images)


def test_neighbors_and_streams_are_independent():
    streams = range(7)
    for key in (0, KEY):
        draws = [GRAPHS[uniforms](seeds(key, 2000), stream).numpy() for stream in streams]
        table = np.concatenate(draws, 1)
        assert table.min() >= 0
        assert table.max() < 1
        shifted = np.concatenate([table[1:], table[:-1]], 1)
        correlations = np.corrcoef(shifted, rowvar=False) - np.eye(2 * table.shape[1])
        assert np.abs(correlations).max() < 0.1
        for column in table.T:
            assert stats.kstest(column, "uniform").pvalue > 1e-4
    other = GRAPHS[uniforms](seeds(KEY + 1, 2000)).numpy()
    assert abs(np.corrcoef(other.ravel(), draws[0].ravel())[0, 1]) < 0.05


def test_the_color_shift_has_alexnets_covariance():
    """Over 10,000 draws: the sum of (0.1 * eigenvalue)^2 * eigenvector eigenvector^T, for pixels 0-1."""
    policy = Augmentation(pca=0.1)
    pixels = np.random.default_rng(0).uniform(0, 255, (DRAWS, 2, 3, 3)).astype("float32")
    shifts = GRAPHS[adjust](tf.constant(pixels), seeds(KEY, DRAWS), policy).numpy() - pixels
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[:, :1, :1], shifts.shape), atol=1e-4)
    shifts = shifts[:, 0, 0].astype("float64") / 255
    # fb.resnet.torch, datasets/imagenet.lua.
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = sum((0.1 * value) ** 2 * np.outer(v, v) for value, v in zip(values, vectors.T, strict=True))
    np.testing.assert_allclose(np.cov(shifts, rowvar=False), expected, rtol=0.05)
    alphas = shifts @ vectors / values
    np.testing.assert_allclose(alphas.std(0), 0.1, rtol=0.03)
    np.testing.assert_allclose(alphas.mean(0), 0, atol=0.005)
    for alpha in alphas.T:
        assert stats.kstest(alpha / 0.1, "norm").pvalue > 0.01
    gray = GRAPHS[adjust](tf.constant(pixels[..., :1]), seeds(KEY, DRAWS), policy).numpy() - pixels[..., :1]
    np.testing.assert_allclose(gray[:, 0, 0, 0] / 255, shifts @ [0.299, 0.587, 0.114], atol=1e-6)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_jitters_factors_are_uniform_around_one(kind):
    """Brightness scales all, contrast what differs from the mean, saturation what differs from gray."""
    random = np.random.default_rng(1)
    pixels = np.broadcast_to(random.uniform(90, 150, (3, 3, 3)), (2000, 3, 3, 3)).astype("float32")
    strengths = [0.0, 0.0, 0.0]
    strengths[kind] = 0.4
    result = GRAPHS[adjust](
        tf.constant(pixels), seeds(KEY, 2000), Augmentation(jitter=tuple(strengths))
    ).numpy()
    scaled = [
        lambda image: image,
        lambda image: image - image.mean((1, 2, 3), keepdims=True),
        lambda image: image - image.mean(-1, keepdims=True),
    ][kind]
    ones, others = (scaled(image).reshape(2000, -1).astype("float64") for image in (result, pixels))
    factors = (ones * others).sum(1) / (others * others).sum(1)
    assert 0.6 < factors.min() < 0.61
    assert 1.39 < factors.max() < 1.4
    assert stats.kstest((factors - 0.6) / 0.8, "uniform").pvalue > 0.01


def test_jitter_is_never_darker_than_black():
    policy = Augmentation(jitter=(3.0, 0.0, 0.0))
    result = GRAPHS[adjust](tf.fill([2000, 1, 1, 3], 10.0), seeds(KEY, 2000), policy).numpy()
    assert result.min() >= 0
    assert stats.kstest(result[:, 0, 0, 0] / 40, "uniform").pvalue > 0.01


def test_jitters_order_is_random(monkeypatch):
    for digit, name in enumerate(("brightness", "contrast", "saturation"), 1):
        monkeypatch.setattr(color, name, lambda image, factor, digit=digit: image * 10 + digit)
    policy = Augmentation(jitter=(0.4, 0.4, 0.4))
    result = tf.function(adjust)(tf.zeros([1200, 1, 1, 3]), seeds(KEY, 1200), policy).numpy()[:, 0, 0, 0]
    orders, counts = np.unique(result, return_counts=True)
    assert orders.tolist() == [123, 132, 213, 231, 312, 321]
    assert counts.min() > 150


def test_randaugment_draws_its_operations_alike_and_their_signs_too(photos):
    image = photos[0]
    operations = color.randaugment_operations(24, 30)
    made = {}
    for (name, operation), sign in itertools.product(operations.items(), (1.0, -1.0)):
        made.setdefault(np.floor(operation(tf.constant(image), sign)).tobytes(), set()).add((name, sign))
    policy = Augmentation(randaugment=(1, 30))
    # Not whole numbers, as a resized image.
    batch = tf.constant(np.broadcast_to(image + 0.3, (1400, 24, 24, 3)).astype("float32"))
    found = [made[result.tobytes()] for result in GRAPHS[adjust](batch, seeds(KEY, 1400), policy).numpy()]
    assert all(len({name for name, _ in names}) == 1 for names in found)
    counts = {name: sum((name, 1.0) in names for names in found) for name in operations}
    for name in ("ShearX", "TranslateY", "Rotate", "Color", "Sharpness"):
        positive, negative = (sum(names == {(name, sign)} for names in found) for sign in (1.0, -1.0))
        counts[name] = positive + negative
        assert min(positive, negative) > 25, name
    for name in ("Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"):
        assert 65 < counts[name] < 140, name


def test_randaugment_applies_two_operations_in_turn(photos):
    image = photos[1, :12, :12]
    operations = color.randaugment_operations(12, 9).values()
    once = [
        np.floor(operation(tf.constant(image), sign))
        for operation, sign in itertools.product(operations, (1.0, -1.0))
    ]
    twice = {
        np.floor(operation(tf.constant(first), sign)).tobytes()
        for first in {first.tobytes(): first for first in once}.values()
        for operation, sign in itertools.product(operations, (1.0, -1.0))
    }
    policy = Augmentation(randaugment=(2, 9))
    batch = tf.constant(np.broadcast_to(image, (300, 12, 12, 3)).copy())
    found = {result.tobytes() for result in GRAPHS[adjust](batch, seeds(KEY, 300), policy).numpy()}
    assert found <= twice
    assert len(found) > 120
    assert len(found - {first.tobytes() for first in once}) > 90


def erasing_params(random, height, width):
    """torchvision.transforms.RandomErasing.get_params with its defaults, line by line, in NumPy."""
    log_ratio = np.log((0.3, 3.3))
    for _ in range(10):
        erase_area = height * width * random.uniform(0.02, 0.33)
        aspect_ratio = np.exp(random.uniform(*log_ratio))
        h = round(math.sqrt(erase_area * aspect_ratio))
        w = round(math.sqrt(erase_area / aspect_ratio))
        if h < height and w < width:
            return random.integers(0, height - h + 1), random.integers(0, width - w + 1), h, w
    raise AssertionError("nothing fitted")


def test_erasing_is_torchvisions():
    size, count = 32, 8000
    erased = GRAPHS[pad_crop_erase](
        tf.ones([count, size, size, 2]), seeds(KEY, count), Augmentation(erasing=0.25)
    )
    erased = erased.numpy() == 0
    np.testing.assert_array_equal(erased[..., 0], erased[..., 1])
    erased = erased[..., 0]
    hit = erased.any((1, 2))
    assert abs(hit.mean() - 0.25) < 0.02
    rows, columns = erased[hit].any(2), erased[hit].any(1)
    np.testing.assert_array_equal(erased[hit], rows[:, :, None] & columns[:, None])
    found = np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], 1)
    np.testing.assert_array_equal(rows.sum(1), size - rows[:, ::-1].argmax(1) - rows.argmax(1))
    random = np.random.default_rng(6)
    expected = np.array([erasing_params(random, size, size) for _ in range(DRAWS)])
    for name, measure in {
        "area": lambda box: box[:, 2] * box[:, 3],
        "height / width": lambda box: box[:, 2] / box[:, 3],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
    }.items():
        assert stats.ks_2samp(measure(found), measure(expected)).pvalue > 0.01, name
    # Whether an image is erased says nothing about whether it is mirrored.
    mirrored = GRAPHS[uniforms](seeds(KEY, count)).numpy()[:, 2] >= 0.5
    assert abs(np.corrcoef(mirrored, hit)[0, 1]) < 0.04


def test_whole_images_are_resized_as_by_keras_bilinear():
    image = np.random.default_rng(1).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    for size in (7, 31):
        expected = tf.image.resize(image, (size, size), antialias=True)
        view = evaluation_view(tf.constant(image), None, size, 3)
        np.testing.assert_allclose(view, expected, atol=1e-3)
    same = np.random.default_rng(1).integers(0, 256, (2, 9, 9, 1), dtype=np.uint8)
    np.testing.assert_array_equal(evaluation_view(tf.constant(same), None, 9, 1), same.astype("float32"))


@pytest.mark.parametrize("shape", [(40, 61, 3), (61, 40, 3)])
def test_center_crop_is_the_middle_of_the_resized_image(shape):
    image = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    resized = tf.image.resize(image, (32, 48) if shape[0] < shape[1] else (48, 32), antialias=True).numpy()
    # 32 * 61 / 40 is 48.8, which torchvision truncates.
    top, left = (round((length - 28) / 2) for length in resized.shape[:2])
    expected = resized[top : top + 28, left : left + 28]
    np.testing.assert_allclose(evaluation_view(tf.constant(image), 32, 28, 3), expected, atol=1e-2)
