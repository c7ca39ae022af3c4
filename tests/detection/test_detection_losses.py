"""Faster R-CNN's losses and the samples they are computed on."""

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.detection import get_detector_config
from keras_resnet.detection.data.batches import ABSENT, CROWD, OBJECT
from keras_resnet.detection.losses import (
    Targets,
    anchor_targets,
    region_targets,
    roi_losses,
    rpn_losses,
)
from keras_resnet.detection.proposals import Proposals

ANCHORS = np.array(
    [[0, 0, 10, 10], [20, 20, 40, 40], [20, 21, 40, 41], [-5, 0, 15, 20], [50, 50, 60, 60]], "float32"
)


def config(**changes):
    values = {"classes": 3, "rpn_samples": 4, "roi_samples": 4, "roi_positive_fraction": 0.5, **changes}
    return get_detector_config("faster_rcnn_cifar_resnet20_c4", **values)


def batch(*images):
    """Of images with (box, label, kind), padded to two objects."""
    empty = ((0, 0, 0, 0), 0, ABSENT)
    rows = [[*image, *[empty] * (2 - len(image))] for image in images]
    columns = [np.array([[obj[i] for obj in row] for row in rows]) for i in range(3)]
    boxes, labels, kinds = columns
    return {
        "boxes": tf.constant(boxes, tf.float32),
        "labels": tf.constant(labels, tf.int32),
        "kinds": tf.constant(kinds, tf.int32),
        "sizes": tf.fill([len(images), 2], 64),
    }


def seeds(*numbers):
    return tf.stack([tf.constant(numbers, tf.int64), tf.zeros([len(numbers)], tf.int64)], 1)


def by_place(targets, image=0):
    rows = zip(targets.places[image].numpy(), targets.valid[image].numpy(), strict=True)
    chosen = {int(place): row for row, (place, valid) in enumerate(rows) if valid}
    return {place: bool(targets.positive[image, row]) for place, row in chosen.items()}


def test_anchors_that_learn():
    objects = batch([((20, 20, 40, 40), 2, OBJECT)], [], [((45, 45, 64, 64), 1, CROWD)])
    targets = anchor_targets(tf.constant(ANCHORS), objects, seeds(0, 1, 2), config())
    # Anchor 3 crosses the border; the second object overlaps 1 and 2.
    assert by_place(targets) == {0: False, 1: True, 2: True, 4: False}
    # An image without objects is background; anchors in a crowd region are ignored.
    assert by_place(targets, 1) == dict.fromkeys((0, 1, 2, 4), False)
    assert by_place(targets, 2) == dict.fromkeys((0, 1, 2), False)
    assert np.isfinite(targets.boxes).all()
    row = targets.places[0].numpy().tolist().index(2)
    np.testing.assert_allclose(targets.boxes[0, row], [0, -1 / 20, 0, 0], atol=1e-6)
    crossing = anchor_targets(tf.constant(ANCHORS), objects, seeds(0, 1, 2), config(anchors_inside=False))
    assert len(by_place(crossing, 1)) == 4


def test_a_sample_depends_on_the_image_and_its_seed_alone():
    anchors = tf.constant(np.tile(ANCHORS[:1], (300, 1)))
    image = [((30, 30, 40, 40), 0, OBJECT)]
    alone = anchor_targets(anchors, batch(image), seeds(7), config())
    among = anchor_targets(anchors, batch([], image), seeds(9, 7), config())
    np.testing.assert_array_equal(among.places[1], alone.places[0])
    other = anchor_targets(anchors, batch(image), seeds(8), config())
    assert (other.places.numpy() != alone.places.numpy()).any()


def test_regions_that_learn():
    proposals = Proposals(
        tf.constant([[[20, 20, 40, 38], [0, 0, 9, 9], [0, 0, 0, 0]]], tf.float32),
        tf.constant([[True, True, False]]),
    )
    objects = batch([((20, 20, 40, 40), 2, OBJECT)])
    regions, targets = region_targets(proposals, objects, seeds(0), config())
    # Two objects, one of them padding, and three proposals: the object itself and proposal 0 are positive.
    assert by_place(targets) == {0: True, 2: True, 3: False}
    assert targets.labels[0, :2].numpy().tolist() == [2, 2]
    row = targets.places[0].numpy().tolist().index(2)
    np.testing.assert_array_equal(regions[0, row], [20, 20, 40, 38])
    # Divided by (.1, .1, .2, .2).
    expected = [0, 10 * 1 / 18, 0, 5 * np.log(20 / 18)]
    np.testing.assert_allclose(targets.boxes[0, row], expected, rtol=1e-5, atol=1e-6)


def test_losses_by_hand():
    """Two of four places are used; sums are divided by 4, whatever is used."""
    targets = Targets(
        tf.constant([[1, 0, 0, 0]]),
        tf.constant([[True, True, False, False]]),
        tf.constant([[True, False, False, False]]),
        tf.constant([[2, 0, 0, 0]]),
        tf.constant([[[0.5, 0, 0, 2.0], [9, 9, 9, 9], [0, 0, 0, 0], [0, 0, 0, 0]]]),
    )
    logits = tf.constant([[1.0, 2.0, 50.0]])
    deltas = tf.zeros([1, 3, 4])
    classification, box = rpn_losses(logits, deltas, targets, config(rpn_beta=1.0))
    log = np.log1p
    assert classification.numpy() == pytest.approx([(log(np.exp(-2)) + log(np.exp(1))) / 4])
    assert box.numpy() == pytest.approx([(0.5 * 0.5**2 + 1.5) / 4])
    logits = np.zeros((4, 4), "float32")
    logits[0] = 0, 0, 0, 1  # label 2 is output 3
    logits[1] = 2, 0, 0, 0
    deltas = np.zeros((4, 16), "float32")
    deltas[0, 12:] = 0.5, 0, 0, 2.5  # of output 3
    deltas[0, :12] = 7
    classification, box = roi_losses(
        tf.constant(logits[None]), tf.constant(deltas[None]), targets, config(roi_beta=1.0)
    )
    expected = (log(3 * np.exp(-1)) + log(3 * np.exp(-2))) / 4
    assert classification.numpy() == pytest.approx([expected])
    assert box.numpy() == pytest.approx([0.5 * 0.5**2 / 4])
