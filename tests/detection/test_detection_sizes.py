"""The size of a detector's input, and its pixels."""

import numpy as np
import tensorflow as tf

from keras_resnet.detection.sizes import (
    normalize_then_resize,
    padded_shape,
    rescale_boxes,
    resized_shape,
    resized_shape_within,
)
from keras_resnet.images.preprocessing import Normalization


def test_the_resized_sides_are_torchvisions():
    """39 of the shorter sides 200 to 1199 give 799 (measured with torchvision 0.28)."""
    shorter = {side: resized_shape(side, side, 800, 1333)[0] for side in range(200, 1200)}
    fewer = [side for side, resized in shorter.items() if resized == 799]
    assert set(shorter.values()) == {799, 800}
    assert len(fewer) == 39
    assert fewer[:3] == [289, 305, 322]


def test_the_longer_side_is_limited():
    assert resized_shape(480, 640, 800, 1333) == (800, 1066)
    assert resized_shape(640, 480, 800, 1333) == (1066, 800)
    assert resized_shape(100, 1000, 800, 1333) == (133, 1333)
    assert resized_shape(1, 5000, 800, 1333) == (1, 1333)


def test_the_rule_in_tensorflow_is_the_same():
    function = tf.function(
        lambda shape, canvas: resized_shape_within(shape, 800, 1333, canvas),
        input_signature=[tf.TensorSpec([2], tf.int32)] * 2,
    )
    sides = np.random.default_rng(0).integers(1, 3000, (300, 2)).tolist()
    for shape in ([289, 289], [305, 700], [1, 5000], *sides):
        assert tuple(function(shape, [1333, 1333])) == resized_shape(*shape, 800, 1333)
    assert function([1000, 1000], [640, 960]).numpy().tolist() == [640, 640]


def test_boxes_in_an_image_of_another_size():
    boxes = rescale_boxes(np.float32([[0, 10, 20, 30]]), (100, 50), (200, 25))
    assert boxes.tolist() == [[0, 20, 10, 60]]


def test_padding():
    assert padded_shape(800, 1066, 32) == (800, 1088)
    assert padded_shape(1, 32, 32) == (32, 32)


def test_images_are_normalized_resized_and_padded_with_zeros():
    """Twice as large: half-pixel centers give weights of 1/4 and 3/4."""
    image = np.array([[[0, 0, 0], [200, 100, 40]]], "uint8")
    normalization = Normalization((100.0, 50.0, 20.0), (50.0, 25.0, 10.0))
    result = normalize_then_resize(image, normalization, (2, 4), (3, 6))
    row = np.array([-2, -1, 1, 2])
    expected = np.zeros((3, 6, 3), "float32")
    expected[:2, :4] = row[:, None]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_shrinking_is_not_antialiased():
    """Every third pixel is taken as it is."""
    image = np.zeros((9, 9, 3), "uint8")
    image[1::3, 1::3] = 90
    result = normalize_then_resize(image, Normalization.identity(3), (3, 3), (3, 3))
    np.testing.assert_array_equal(result, np.full((3, 3, 3), 90, "float32"))
