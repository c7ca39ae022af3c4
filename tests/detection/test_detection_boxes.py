"""Coordinates relative to anchors, clipping and overlaps, against values computed by hand from the papers."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.detection.boxes import clip, decode, encode, intersection_over_area, iou

HEAD = (10.0, 10.0, 5.0, 5.0)


def random_boxes(*shape, seed=0):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 500, (*shape, 2))
    return np.concatenate([corner, corner + random.uniform(10, 300, (*shape, 2))], -1).astype("float32")


def test_encode_by_hand():
    """Faster R-CNN, equation 2: centers (30, 45) and (25, 40), sides (20, 30) and (10, 60)."""
    box, anchor = tf.constant([20.0, 30.0, 40.0, 60.0]), tf.constant([20.0, 10.0, 30.0, 70.0])
    expected = np.array([5 / 10, 5 / 60, math.log(2), math.log(0.5)])
    np.testing.assert_allclose(encode(box, anchor), expected, rtol=1e-6)
    np.testing.assert_allclose(encode(box, anchor, HEAD), expected * HEAD, rtol=1e-6)


def test_decode_by_hand():
    anchor = tf.constant([20.0, 10.0, 30.0, 70.0])
    deltas = tf.constant([5 / 10, 5 / 60, math.log(2), math.log(0.5)])
    np.testing.assert_allclose(decode(deltas, anchor), [20, 30, 40, 60], rtol=1e-6)
    np.testing.assert_allclose(decode(deltas * HEAD, anchor, HEAD), [20, 30, 40, 60], rtol=1e-6)


def test_sides_grow_at_most_62_5_times_and_shrink_without_limit():
    decoded = decode(tf.constant([0.0, 0.0, 50.0, -50.0]), tf.constant([0.0, 0.0, 16.0, 16.0]))
    np.testing.assert_allclose(decoded, [8 - 500, 8, 8 + 500, 8], rtol=1e-6)


def test_round_trip_of_a_batch_with_classes():
    boxes, anchors = random_boxes(2, 50, 3), random_boxes(2, 50, 1, seed=1)
    found = decode(encode(boxes, anchors, HEAD), anchors, HEAD)
    assert found.shape == (2, 50, 3, 4)
    np.testing.assert_allclose(found, boxes, atol=2e-3)


def test_empty_boxes_and_anchors_have_finite_deltas():
    boxes = tf.constant([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 600.0, 600.0]])
    for first, second in [(boxes, boxes[:1]), (boxes[:1], boxes)]:
        assert np.isfinite(encode(first, second, HEAD)).all()
    anchor = tf.constant([0.0, 0.0, 16.0, 16.0])
    np.testing.assert_allclose(decode(encode(boxes, anchor), anchor), boxes, atol=1e-3)


def test_no_boxes():
    none = tf.zeros([2, 0, 4])
    assert encode(none, none).shape == decode(none, none).shape == (2, 0, 4)
    assert clip(none, [[5, 6], [7, 8]]).shape == (2, 0, 4)
    assert iou(none, random_boxes(2, 3)).shape == (2, 0, 3)


def test_each_image_clips_to_its_own_size():
    boxes = tf.constant([[-5.0, -6.0, 700.0, 800.0], [10.0, 20.0, 30.0, 40.0]])
    clipped = clip(tf.stack([boxes, boxes]), tf.constant([[100, 200], [35, 25]]))
    expected = [[[0, 0, 200, 100], [10, 20, 30, 40]], [[0, 0, 25, 35], [10, 20, 25, 35]]]
    np.testing.assert_array_equal(clipped, expected)


OVERLAPS = {  # of (0, 0, 10, 10)
    (0, 0, 10, 10): 1.0,
    (5, 5, 15, 15): 25 / 175,
    (0, 0, 10, 5): 0.5,
    (10, 0, 20, 10): 0.0,  # a common edge
    (5, 5, 5, 5): 0.0,
    (5, 5, 5, 9): 0.0,
    (30, 40, 50, 60): 0.0,
}


def test_iou_by_hand():
    boxes = tf.constant([list(box) for box in OVERLAPS], tf.float32)
    reference = tf.constant([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 5.0]])
    found = iou(reference, boxes)
    np.testing.assert_allclose(found[0], list(OVERLAPS.values()), rtol=1e-6)
    np.testing.assert_array_equal(found[1], np.zeros(len(OVERLAPS)))  # an empty box: no NaN
    np.testing.assert_array_equal(iou(boxes, reference), tf.transpose(found))


def test_covered_share_of_a_region():
    region = tf.constant([[0.0, 0.0, 100.0, 10.0]])
    boxes = tf.constant([[0.0, 0.0, 10.0, 10.0], [0.0, 5.0, 10.0, 15.0], [3.0, 3.0, 3.0, 3.0]])
    np.testing.assert_allclose(intersection_over_area(region, boxes), [[1.0, 0.5, 0.0]])


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_float32_under_any_policy(policy):
    """A float16 coordinate above 1,024 is rounded to whole pixels, and a bfloat16 one above 256."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        network = keras.Sequential([keras.Input((4,)), keras.layers.Activation("linear")])
        deltas = network(tf.constant([[0.125, 0.0, 0.0, 0.0]]))
        assert deltas.dtype != tf.float32
        found = decode(deltas, tf.constant([[1300.25, 700.25, 1310.25, 702.25]]))
    finally:
        keras.config.set_dtype_policy(before)
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, [[1301.5, 700.25, 1311.5, 702.25]])
