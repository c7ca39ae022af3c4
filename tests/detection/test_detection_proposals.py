"""Proposals and detections from hand-made outputs of networks."""

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.detection.config import get_detector_config
from keras_resnet.detection.proposals import (
    Proposals,
    detections_of_anchors,
    detections_of_regions,
    propose,
)

FPN, RETINANET = "faster_rcnn_resnet50_v1_5_fpn", "retinanet_resnet50_v1_5_fpn"
SIZES = tf.constant([[40, 60]])
# Two levels with one anchor per cell: cells of 10 pixels in a row of three, and one of 50.
FINE = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]], "float32")
COARSE = np.array([[-10, -10, 50, 50]], "float32")


def proposed(fine, coarse, **options):
    config = get_detector_config(FPN, **{"proposals": 5, **options})
    logits = [
        tf.reshape(tf.constant(fine, tf.float32), [1, 1, 3, 1]),
        tf.constant(coarse, tf.float32, [1, 1, 1, 1]),
    ]
    deltas = [tf.zeros([1, 1, 3, 4]), tf.zeros([1, 1, 1, 4])]
    result = propose(logits, deltas, [FINE, COARSE], SIZES, config)
    assert result.boxes.shape == (1, config.proposals, 4)
    return result.boxes[0].numpy(), result.valid[0].numpy()


def test_proposals_are_clipped_to_the_image_and_sorted():
    boxes, valid = proposed([1, 3, 2], 2.5)
    assert valid.tolist() == [True] * 4 + [False]
    np.testing.assert_array_equal(boxes[:4], [FINE[1], [0, 0, 50, 40], FINE[2], FINE[0]])
    np.testing.assert_array_equal(boxes[4], 0)


def test_candidates_are_counted_per_level():
    boxes, valid = proposed([1, 3, 2], 0, proposal_candidates=1)
    assert valid.sum() == 2
    np.testing.assert_array_equal(boxes[0], FINE[1])


def test_small_proposals_are_removed():
    _, valid = proposed([1, 3, 2], 0, proposal_side=20)
    assert valid.sum() == 1


def regions(logits, boxes=FINE, valid=(True, True, True), deltas=None, **options):
    config = get_detector_config(FPN, classes=2, **{"detections": 4, **options})
    proposals = Proposals(tf.constant(boxes[None]), tf.constant([valid]))
    deltas = np.zeros((1, len(boxes), 12), "float32") if deltas is None else deltas
    logits = tf.math.log(tf.constant([logits], tf.float32))
    found = detections_of_regions(logits, deltas, proposals, SIZES, config)
    assert {each.shape[:2] for each in found} == {(1, config.detections)}
    kept = found.valid[0].numpy()
    return [each[0].numpy()[kept] for each in (found.boxes, found.scores, found.labels)]


def test_detections_of_regions():
    boxes, scores, labels = regions([[0.5, 0.1, 0.4], [0.02, 0.97, 0.01], [1, 0, 0]])
    np.testing.assert_allclose(scores, [0.97, 0.4, 0.1], rtol=1e-6)
    assert labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(boxes, [FINE[1], FINE[0], FINE[0]])


def test_the_score_threshold_is_strict():
    _, scores, _ = regions([[0.5, 0.5, 0], [0.25, 0.75, 0], [1, 0, 0]], score_threshold=0.5)
    np.testing.assert_allclose(scores, [0.75], rtol=1e-6)


def test_padding_is_never_detected():
    _, scores, _ = regions([[0.4, 0.6, 0], [0, 1, 0], [0, 1, 0]], valid=(True, False, False))
    np.testing.assert_allclose(scores, [0.6], rtol=1e-6)


def test_boxes_suppress_those_of_their_class_only():
    boxes = np.array([[0, 0, 20, 20], [0, 0, 20, 19], [0, 0, 20, 18]], "float32")
    _, scores, labels = regions([[0.1, 0.9, 0], [0.2, 0.8, 0], [0.3, 0, 0.7]], boxes)
    np.testing.assert_allclose(scores, [0.9, 0.7], rtol=1e-6)
    assert labels.tolist() == [0, 1]


def test_small_detections_are_removed():
    boxes = FINE.copy()
    boxes[0, 2] = 0.005
    _, _, labels = regions([[0, 0.5, 0.5]] * 3, boxes)
    assert len(labels) == 4
    _, _, labels = regions([[0, 0.5, 0.5]] * 3, boxes, valid=(True, False, False))
    assert len(labels) == 0


def test_each_class_has_its_own_deltas():
    """The background's come first; a shift of 10 in units of a tenth of the side is one side."""
    deltas = np.zeros((1, 3, 12), "float32")
    deltas[0, 0, 8] = 10  # of the second class
    boxes, _, labels = regions([[0.1, 0.6, 0.3], [1, 0, 0], [1, 0, 0]], deltas=deltas)
    assert labels.tolist() == [0, 1]
    np.testing.assert_allclose(boxes, [FINE[0], FINE[1]])


def anchors(fine, coarse=None, **options):
    """Probabilities of (unused, first class, second class) for each anchor."""
    config = get_detector_config(RETINANET, classes=2, **{"detections": 6, **options})
    coarse = [[0.001] * 3] if coarse is None else coarse
    logits = [np.asarray(level, "float64") for level in (fine, coarse)]
    logits = [tf.constant(np.log(x / (1 - x)), tf.float32, [1, 1, *x.shape]) for x in logits]
    deltas = [np.zeros((1, 1, 3, 4), "float32"), np.zeros((1, 1, 1, 4), "float32")]
    found = detections_of_anchors(logits, deltas, [FINE, COARSE], SIZES, config)
    kept = found.valid[0].numpy()
    return [each[0].numpy()[kept] for each in (found.boxes, found.scores, found.labels)]


def test_detections_of_anchors():
    boxes, scores, labels = anchors(
        [[0.99, 0.5, 0.04], [0.99, 0.01, 0.8], [0.99, 0.06, 0.6]], [[0.99, 0.01, 0.7]]
    )
    np.testing.assert_allclose(scores, [0.8, 0.7, 0.6, 0.5, 0.06], rtol=1e-5)
    assert labels.tolist() == [1, 1, 1, 0, 0]
    np.testing.assert_array_equal(boxes, [FINE[1], [0, 0, 50, 40], FINE[2], FINE[0], FINE[2]])


@pytest.mark.parametrize(("count", "expected"), [(1, [0.8, 0.7]), (2, [0.8, 0.7, 0.6])])
def test_candidates_of_anchors_are_counted_per_level(count, expected):
    fine = [[0.99, 0.5, 0.04], [0.99, 0.01, 0.8], [0.99, 0.06, 0.6]]
    _, scores, _ = anchors(fine, [[0.99, 0.01, 0.7]], level_candidates=count)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
