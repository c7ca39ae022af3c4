"""Non-maximum suppression against ONNX Runtime's."""

import numpy as np
import onnx
import pytest
import tensorflow as tf
from helpers.onnx_operators import run_operator

from keras_resnet.detection.nms import non_max_suppression


def reference(boxes, scores, iou_threshold, count, score_threshold=None):
    """ONNX Runtime's rows (class, index), class by class, for scores (n,) or (classes, n)."""
    inputs = {
        "boxes": boxes[None].astype("float32"),
        "scores": np.atleast_2d(scores)[None].astype("float32"),
        "count": np.array([count], "int64"),
        "iou": np.array([iou_threshold], "float32"),
    }
    if score_threshold is not None:
        inputs["score"] = np.array([score_threshold], "float32")
    return run_operator("NonMaxSuppression", inputs, onnx.TensorProto.INT64)[:, 1:]


def selected(boxes, scores, *arguments, **more):
    indices, valid = non_max_suppression(tf.constant(boxes), tf.constant(scores), *arguments, **more)
    assert (indices.dtype, valid.dtype) == (tf.int32, tf.bool)
    assert not indices[~valid].numpy().any()
    return indices[valid].numpy().tolist()


def random_boxes(count, seed):
    """Whole pixels and ten different scores: many ties, many equal overlaps, some boxes without area."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, 40, (count, 2))
    boxes = np.concatenate([corners, corners + random.integers(0, 30, (count, 2))], 1).astype("float32")
    boxes[count // 2 :: 7] = boxes[: len(boxes[count // 2 :: 7])]  # copies
    return boxes, random.integers(1, 11, count).astype("float32") / 10


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_ties_in_the_order_of_onnx_runtime(seed, threshold):
    boxes, scores = random_boxes(150, seed)
    expected = reference(boxes, scores, threshold, 150)[:, 1].tolist()
    assert selected(boxes, scores, threshold, 150) == expected
    assert selected(boxes, scores, threshold, 5) == expected[:5]
    assert 5 < len(expected) < 150


def test_an_overlap_of_exactly_the_threshold_is_kept():
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 2, 1.25]], "float32")  # 0.5 and 0.8 of the first
    scores = np.array([0.9, 0.8, 0.7], "float32")
    for threshold, expected in [(0.5, [0, 1]), (0.49, [0]), (0.8, [0, 1, 2]), (0.79, [0, 1])]:
        assert selected(boxes, scores, threshold, 3) == expected
        assert reference(boxes, scores, threshold, 3)[:, 1].tolist() == expected


def test_boxes_without_area_are_all_kept():
    boxes, scores = np.tile(np.array([[5, 5, 5, 9]], "float32"), [3, 1]), np.array([0.5, 0.7, 0.5], "float32")
    assert selected(boxes, scores, 0.5, 3) == [1, 0, 2]
    assert reference(boxes, scores, 0.5, 3)[:, 1].tolist() == [1, 0, 2]


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_none_and_one_box(count, graph):
    run = tf.function(non_max_suppression) if graph else non_max_suppression
    indices, valid = run(tf.ones([2, count, 4]), tf.ones([2, count]), 0.5, 3, tf.zeros([2, count]))
    assert indices.shape == valid.shape == (2, 3)
    assert valid.numpy().tolist() == [[bool(count), False, False]] * 2


def test_padding_and_low_scores_are_never_selected():
    boxes = np.array([[0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49], [60, 60, 69, 69]], "float32")
    scores = np.array([0.05, -np.inf, 0.06, np.nan], "float32")
    assert selected(boxes, scores, 0.5, 4) == [2, 0]
    assert selected(boxes, scores, 0.5, 4, score_threshold=0.05) == [2]  # above, not equal
    assert reference(boxes[:3], scores[:3], 0.5, 4, 0.05)[:, 1].tolist() == [2]


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_independent(seed):
    """Each class's boxes as those of a class there, where all others have the lowest score."""
    boxes, scores = random_boxes(150, seed)
    boxes -= 20  # negative coordinates, too
    classes = np.random.default_rng(seed).integers(0, 4, 150)
    by_class = np.where(classes == np.arange(4)[:, None], scores, -np.inf)
    rows = reference(boxes, by_class, 0.5, 150, -1.0)
    found = selected(boxes, scores, 0.5, 150, groups=tf.constant(classes))
    assert (np.diff(scores[found]) <= 0).all()
    for group in range(4):
        assert [index for index in found if classes[index] == group] == rows[rows[:, 0] == group, 1].tolist()


def test_a_batch_is_its_images():
    images = [random_boxes(60, seed) for seed in (4, 5)]
    boxes, scores = (tf.constant(np.stack(part)) for part in zip(*images, strict=True))
    groups = tf.constant(np.random.default_rng(0).integers(0, 3, (2, 60)))
    graph = tf.function(lambda *image: non_max_suppression(*image[:2], 0.5, 40, image[2]))
    indices, valid = graph(boxes, scores, groups)
    assert indices.shape == valid.shape == (2, 40)
    for image in range(2):
        alone = selected(boxes[image].numpy(), scores[image].numpy(), 0.5, 40, groups=groups[image])
        assert indices[image][valid[image]].numpy().tolist() == alone


def test_half_precision_scores():
    boxes, scores = random_boxes(50, 1)
    expected = selected(boxes, scores.astype("float16").astype("float32"), 0.5, 50)
    assert selected(boxes, scores.astype("float16"), 0.5, 50) == expected


def test_a_threshold_that_is_no_overlap():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"iou_threshold must be in \[0, 1\]"):
        selected(*random_boxes(3, 0), 1.5, 3)
