import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnet import InputError, build_model
from keras_resnet.classification import PROTOCOLS, fully_convolutional
from keras_resnet.classification.protocols import (
    get_protocol,
    mean_of_softmax,
    mean_over_places,
    scales,
    ten_crops,
)
from keras_resnet.images.preprocessing import Normalization, Preprocessing

IDENTITY = Normalization.identity(3)

BICUBIC = 1.5
"""Levels by which Pillow's pixels may differ where nothing is clipped: it rounds after each of two passes."""

# Where each crop begins, as (row, column, step of the columns) in the image, read from what
# `torchvision.transforms.TenCrop(size)` of torchvision 0.28.0 gives for an image of numbered pixels.
TORCHVISION = {
    (6, 6, 6): [(0, 0, 1)] * 5 + [(0, 5, -1)] * 5,
    (9, 12, 5): [
        *((0, 0, 1), (0, 7, 1), (4, 0, 1), (4, 7, 1), (2, 4, 1)),
        *((0, 11, -1), (0, 4, -1), (4, 11, -1), (4, 4, -1), (2, 7, -1)),
    ],
    (8, 11, 5): [
        *((0, 0, 1), (0, 6, 1), (3, 0, 1), (3, 6, 1), (2, 3, 1)),
        *((0, 10, -1), (0, 4, -1), (3, 10, -1), (3, 4, -1), (2, 7, -1)),
    ],
    (10, 7, 6): [
        *((0, 0, 1), (0, 1, 1), (4, 0, 1), (4, 1, 1), (2, 0, 1)),
        *((0, 6, -1), (0, 5, -1), (4, 6, -1), (4, 5, -1), (2, 6, -1)),
    ],
    (256, 341, 224): [
        *((0, 0, 1), (0, 117, 1), (32, 0, 1), (32, 117, 1), (16, 58, 1)),
        *((0, 340, -1), (0, 223, -1), (32, 340, -1), (32, 223, -1), (16, 282, -1)),
    ],
    (385, 256, 224): [
        *((0, 0, 1), (0, 32, 1), (161, 0, 1), (161, 32, 1), (80, 16, 1)),
        *((0, 255, -1), (0, 223, -1), (161, 255, -1), (161, 223, -1), (80, 239, -1)),
    ],
}


def picture(height, width, channels=3, seed=0):
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_pillow(image, height, width, filter=Image.Resampling.BILINEAR):
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), filter))
    return resized.reshape(height, width, image.shape[-1])


@pytest.mark.parametrize(("height", "width", "size"), TORCHVISION)
def test_ten_crops_are_torchvisions(height, width, size):
    pixels = np.arange(height * width).reshape(height, width, 1)
    found = ten_crops(tf.constant(pixels), size).numpy()
    assert found.shape == (10, size, size, 1)
    for crop, (row, column, step) in zip(found, TORCHVISION[height, width, size], strict=True):
        rows = row + np.arange(size)[:, None]
        columns = column + step * np.arange(size)
        np.testing.assert_array_equal(crop[..., 0], rows * width + columns)


@pytest.mark.parametrize(
    ("height", "width", "resized"),
    [(45, 61, (32, 43)), (64, 40, (51, 32)), (32, 32, (32, 32)), (20, 25, (32, 40))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_ten_crop_cuts_the_resized_image(height, width, resized, channels):
    """32 is to 28 as 256 to 224; Pillow rounds after each pass, the evaluation does not."""
    image = picture(height, width, channels)
    (views,) = PROTOCOLS["ten_crop"].views(tf.constant(image), Preprocessing(28, None, "bilinear", IDENTITY))
    expected = np.broadcast_to(ten_crops(tf.constant(by_pillow(image, *resized)), 28), (10, 28, 28, 3))
    assert views.dtype == "float32"
    np.testing.assert_allclose(views, expected, atol=1.01)


def test_ten_crop_of_224_is_taken_from_256_whatever_the_weights_crop():
    image = picture(300, 400) // 2 + 64
    ours = Preprocessing(224, 232, "bicubic", IDENTITY)
    assert PROTOCOLS["ten_crop"].resizes(ours) == (256,)
    (views,) = PROTOCOLS["ten_crop"].views(tf.constant(image), ours)
    resized = by_pillow(image, 256, 341, Image.Resampling.BICUBIC)
    np.testing.assert_allclose(views[2], resized[32:, :224], atol=BICUBIC)
    np.testing.assert_allclose(views[6], resized[:224, :224][:, ::-1], atol=BICUBIC)


@pytest.mark.parametrize(("size", "resize"), [(24, 28), (24, None), (31, 31)])
def test_single_crop_is_the_weights_own_preprocessing(size, resize):
    ours = Preprocessing(size, resize, "bicubic", Normalization.imagenet())
    image = picture(37, 50) // 2 + 64
    (views,) = PROTOCOLS["single_crop"].views(tf.constant(image), ours)
    levels = np.abs(views - ours(image)[None]) * np.asarray(ours.normalization.std)
    assert levels.max() < BICUBIC


def test_the_papers_scales():
    assert scales(Preprocessing(224, 256, "bilinear", IDENTITY)) == (224, 256, 384, 480, 640)
    assert scales(Preprocessing(28, None, "bilinear", IDENTITY)) == (28, 32, 48, 60, 80)


@pytest.mark.parametrize(("height", "width"), [(45, 61), (64, 40)])
def test_multi_scale_shows_whole_images(height, width):
    image = picture(height, width)
    views = PROTOCOLS["multi_scale"].views(tf.constant(image), Preprocessing(28, None, "bilinear", IDENTITY))
    for view, side in zip(views, (28, 32, 48, 60, 80), strict=True):
        resized = int(side * height / min(height, width)), int(side * width / min(height, width))
        np.testing.assert_allclose(view, by_pillow(image, *resized)[None], atol=1.01)


def test_multi_scale_takes_the_mean_of_a_mean_image():
    mean = np.random.default_rng(0).uniform(0, 255, (28, 28, 3))
    image = picture(30, 40)
    per_pixel = Preprocessing(28, None, "bilinear", Normalization(mean.tolist(), (1.0, 2.0, 4.0)))
    flat = Preprocessing(28, None, "bilinear", Normalization(mean.mean((0, 1)).tolist(), (1.0, 2.0, 4.0)))
    views = PROTOCOLS["multi_scale"].views
    for ours, expected in zip(*(views(tf.constant(image), ours) for ours in (per_pixel, flat)), strict=True):
        np.testing.assert_array_equal(ours, expected)


def tiny_imagenet_network(shape, preactivation=False):
    filters = {"stage_depths": (1, 1, 1, 1), "stage_filters": (4, 4, 4, 8)}
    model = "resnet50_v2" if preactivation else "resnet18"
    return build_model(model, classes=7, classifier_activation=None, input_shape=shape, **filters)


@pytest.mark.parametrize("preactivation", [False, True])
def test_the_fully_convolutional_form_at_224_is_the_pooled_network(preactivation):
    pooled = tiny_imagenet_network((224, 224, 3), preactivation)
    free = tiny_imagenet_network((None, None, 3), preactivation)
    bias = np.random.default_rng(1).normal(size=7)
    pooled.get_layer("predictions").bias.assign(bias)
    free.set_weights(pooled.get_weights())
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype("float32")
    scores = fully_convolutional(free)(images)
    assert scores.shape == (2, 7, 7, 7)
    expected = pooled(images).numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(mean_over_places(scores), expected, rtol=1e-4, atol=1e-5)


def test_the_fully_convolutional_form_takes_any_size():
    network = tiny_imagenet_network((None, None, 3))
    images = np.random.default_rng(0).normal(size=(1, 70, 101, 3)).astype("float32")
    scores = fully_convolutional(network)(images)
    assert scores.shape == (1, 3, 4, 7)
    np.testing.assert_allclose(mean_over_places(scores), network(images), rtol=1e-4, atol=1e-5)


def test_the_mean_of_softmax_is_taken_over_all_views():
    random = np.random.default_rng(0)
    parts = [random.normal(size=(3, views, 5)).astype("float32") for views in (1, 4)]
    logits = np.concatenate(parts, 1).astype("float64")
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = mean_of_softmax([tf.constant(part) for part in parts])
    np.testing.assert_allclose(np.exp(found), softmax.mean(1), rtol=1e-5)


def test_the_mean_of_softmax_keeps_what_exp_would_lose():
    found = mean_of_softmax([tf.constant([[[0.0, -500.0]]])])
    np.testing.assert_allclose(found, [[0.0, -500.0]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tencrop", "unknown protocol 'tencrop'; did you mean ten_crop"),
        ("ensemble", "an ensemble is any protocol with several weights"),
    ],
)
def test_an_unknown_protocol(name, message):
    with pytest.raises(InputError, match=message):
        get_protocol(name)
