"""Matching by hand, and random samples."""

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.detection.boxes import encode, iou
from keras_resnet.detection.matching import IGNORED, NEGATIVE, POSITIVE, ignore_crowds, match, sample
from keras_resnet.errors import InputError

OVERLAPS = tf.constant(
    [
        #  high, between, low, tie of two boxes, low quality, high threshold exactly, low threshold exactly
        [0.80, 0.40, 0.10, 0.75, 0.00, 0.70, 0.10],
        [0.10, 0.50, 0.20, 0.75, 0.00, 0.10, 0.30],
        [0.10, 0.00, 0.25, 0.00, 0.28, 0.10, 0.20],
    ]
)
VALID = tf.constant([True, True, True])


def test_labels_and_boxes():
    indices, labels = match(OVERLAPS, VALID, 0.7, 0.3)
    assert labels.numpy().tolist() == [1, -1, 0, 1, 0, 1, -1]
    assert indices.numpy().tolist() == [0, 1, 2, 0, 2, 0, 1]  # the first box of a tie
    assert labels.dtype == indices.dtype == tf.int32


def test_low_quality_matches():
    """The third box has its best anchor, the fifth, at 0.28; those of the others are positive already."""
    indices, labels = match(OVERLAPS, VALID, 0.7, 0.3, low_quality=True)
    assert labels.numpy().tolist() == [1, -1, 0, 1, 1, 1, -1]
    assert indices.numpy().tolist() == [0, 1, 2, 0, 2, 0, 1]


def test_low_quality_matches_include_ties_and_keep_their_own_best_box():
    """Both anchors are the second box's best; the second anchor overlaps the first box more (torchvision)."""
    overlaps = tf.constant([[0.10, 0.25, 0.60], [0.20, 0.20, 0.05]])
    indices, labels = match(overlaps, VALID[:2], 0.7, 0.3, low_quality=True)
    assert labels.numpy().tolist() == [1, 1, 1]
    assert indices.numpy().tolist() == [1, 0, 0]


def test_padding_matches_nothing():
    valid = tf.constant([[True, False, True], [False, False, False]])
    indices, labels = match(tf.stack([OVERLAPS, OVERLAPS]), valid, 0.7, 0.3, low_quality=True)
    assert labels.numpy().tolist() == [[1, -1, 0, 1, 1, 1, 0], [0] * 7]
    assert indices[0].numpy().tolist() == [0, 0, 2, 0, 2, 0, 2]


def test_a_box_without_area_matches_nothing():
    anchors = tf.constant([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    overlaps = iou(tf.constant([[5.0, 5.0, 5.0, 5.0]]), anchors)
    assert match(overlaps, VALID[:1], 0.7, 0.3, low_quality=True)[1].numpy().tolist() == [0, 0]


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one_proposal(count):
    for low_quality in (False, True):
        indices, labels = match(OVERLAPS[:, :count], VALID, 0.5, 0.5, low_quality)
        assert labels.numpy().tolist() == [1][:count]
        assert indices.numpy().tolist() == [0][:count]


def test_thresholds_in_the_wrong_order():
    with pytest.raises(InputError, match=r"lower threshold .* must not be above .* got \(0.7, 0.3\)"):
        match(OVERLAPS, VALID, 0.3, 0.7)


def test_only_crowd():
    """Inside the crowd region with 100, 80, 70 (not more than 0.7) and 0 % of their areas."""
    regions = tf.constant([[0.0, 0.0, 100.0, 10.0], [0.0, 0.0, 0.0, 0.0]])
    anchors = tf.constant([[0, 0, 10, 10], [0, 2, 10, 12], [0, 3, 10, 13], [0, 50, 10, 60]], tf.float32)
    nothing = tf.constant([False, False])
    _, labels = match(iou(regions, anchors), nothing, 0.7, 0.3, low_quality=True)
    assert labels.numpy().tolist() == [0, 0, 0, 0]
    crowd = tf.constant([True, False])
    assert ignore_crowds(labels, anchors, regions, crowd).numpy().tolist() == [-1, -1, 0, 0]
    assert ignore_crowds(labels, anchors, regions, nothing).numpy().tolist() == [0, 0, 0, 0]
    positive = tf.fill([4], POSITIVE)
    assert ignore_crowds(positive, anchors, regions, crowd).numpy().tolist() == [1, 1, 1, 1]


def labels_of(positives, negatives, ignored=7):
    labels = np.repeat([POSITIVE, NEGATIVE, IGNORED], [positives, negatives, ignored]).astype("int32")
    return np.random.default_rng(0).permutation(labels)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (40, 100, (8, 24)),  # a quarter of 32 at most
        (3, 100, (3, 29)),  # negatives take the places of missing positives
        (40, 10, (8, 10)),  # positives do not take those of missing negatives
        (0, 100, (0, 32)),
        (1, 0, (1, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_counts(positives, negatives, expected):
    labels = labels_of(positives, negatives)
    indices, valid = (value.numpy() for value in sample(tf.constant(labels), 32, 0.25, (1, 2)))
    assert indices.shape == valid.shape == (32,)
    found = labels[indices[valid]]
    assert ((found == POSITIVE).sum(), (found == NEGATIVE).sum()) == expected
    assert sum(expected) == valid.sum() == valid[: sum(expected)].sum()  # the valid ones come first
    assert len(set(indices[valid])) == valid.sum()
    assert (np.diff(found) <= 0).all()  # positives come first


def test_no_proposal_at_all():
    indices, valid = sample(tf.zeros([0], tf.int32), 4, 0.5, (1, 2))
    assert indices.numpy().tolist() == [0, 0, 0, 0]
    assert not valid.numpy().any()


def test_a_sample_is_a_function_of_the_image_and_its_seed():
    labels = tf.constant(np.stack([labels_of(40, 100)] * 3))
    seeds = tf.constant([[1, 5], [1, 6], [1, 5]], tf.int64)
    together = sample(labels, 32, 0.25, seeds)[0].numpy()
    np.testing.assert_array_equal(together[0], together[2])
    assert (together[0] != together[1]).any()
    np.testing.assert_array_equal(sample(labels[1], 32, 0.25, seeds[1])[0], together[1])
    graph = tf.function(lambda labels, seeds: sample(labels, 32, 0.25, seeds))
    np.testing.assert_array_equal(graph(labels, seeds)[0], together)


def test_all_are_drawn_equally_often():
    """3 of 12 positives in 400 images: 100 times each, with a standard deviation of 8.7."""
    labels = np.tile(labels_of(12, 30), [400, 1])
    seeds = tf.stack([tf.range(400), tf.zeros([400], tf.int32)], 1)
    indices = tf.function(sample)(tf.constant(labels), 12, 0.25, seeds)[0].numpy()
    counts = np.bincount(indices[:, :3].ravel(), minlength=labels.shape[1])
    assert counts[labels[0] != POSITIVE].sum() == 0
    assert np.abs(counts[labels[0] == POSITIVE] - 100).max() < 40


def test_with_xla():
    """Overlaps, matches, a sample and its targets, compiled: the same as one by one."""
    random = np.random.default_rng(3)
    corners = random.uniform(0, 50, (2, 60, 2))
    anchors = np.concatenate([corners, corners + random.uniform(5, 40, (2, 60, 2))], -1).astype("float32")
    boxes, valid = anchors[:, :4] + 2, tf.constant([[True, True, True, False], [False] * 4])

    def targets(boxes, anchors):
        indices, labels = match(iou(boxes, anchors), valid, 0.5, 0.3, low_quality=True)
        labels = ignore_crowds(labels, anchors, boxes, ~valid)
        chosen, found = sample(labels, 16, 0.5, tf.constant([[1, 2], [3, 4]]))
        matched = tf.gather(tf.gather(boxes, indices, batch_dims=1), chosen, batch_dims=1)
        return encode(matched, tf.gather(anchors, chosen, batch_dims=1)), chosen, found

    expected = targets(boxes, anchors)
    found = tf.function(targets, jit_compile=True)(boxes, anchors)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[2], expected[2])
    assert found[2].numpy().sum(1).tolist() != [0, 0]
