"""The operations of detection against torchvision's."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.torch_zoo import torchvision

from keras_resnet.detection import boxes as ours
from keras_resnet.detection.anchors import cell_anchors, grid_anchors, grid_strides
from keras_resnet.detection.matching import match
from keras_resnet.detection.roi_align import roi_levels

pytestmark = pytest.mark.torch


def random_boxes(count, seed):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 400, (count, 2))
    return np.concatenate([corner, corner + random.uniform(10, 300, (count, 2))], 1).astype("float32")


def theirs(function, *arrays):
    import torch

    return function(*(torch.from_numpy(array) for array in arrays)).numpy()


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_box_coder(weights):
    coder = torchvision().models.detection._utils.BoxCoder(weights)
    boxes, anchors = random_boxes(500, 0), random_boxes(500, 1)
    found = ours.encode(boxes, anchors, weights)
    np.testing.assert_allclose(found, theirs(coder.encode_single, boxes, anchors), rtol=1e-5, atol=1e-5)
    deltas = np.random.default_rng(2).normal(0, 3, (500, 4)).astype("float32") * np.float32(weights)
    expected = theirs(coder.decode_single, deltas, anchors)
    assert (np.diff(expected[:, ::2]) > 60 * np.diff(anchors[:, ::2])).any()  # clipped
    np.testing.assert_allclose(ours.decode(deltas, anchors, weights), expected, rtol=1e-5, atol=1e-3)


def test_overlaps_and_clipping():
    operations = torchvision().ops.boxes
    first, second = random_boxes(60, 0), random_boxes(80, 1)
    np.testing.assert_allclose(ours.iou(first, second), theirs(operations.box_iou, first, second), rtol=1e-6)
    expected = theirs(lambda boxes: operations.clip_boxes_to_image(boxes, (250, 300)), first - 50)
    np.testing.assert_array_equal(ours.clip(first - 50, (250, 300)), expected)


@pytest.mark.parametrize("low_quality", [False, True])
def test_matcher(low_quality):
    """Anchors on a grid: many ties."""
    boxes, anchors = random_boxes(12, 0).round(), grid_anchors(cell_anchors([64, 128]), (25, 25), (16, 16))
    overlaps = ours.iou(boxes, anchors)
    matcher = torchvision().models.detection._utils.Matcher(0.7, 0.3, low_quality)
    expected = theirs(matcher, overlaps.numpy())
    indices, labels = (value.numpy() for value in match(overlaps, tf.fill([12], True), 0.7, 0.3, low_quality))
    np.testing.assert_array_equal(labels, np.select([expected >= 0, expected == -1], [1, 0], -1))
    np.testing.assert_array_equal(indices[labels == 1], expected[expected >= 0])
    assert (labels == 1).any()


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_anchors(name):
    import torch

    library = torchvision().models.detection
    generator = getattr(library, name)._default_anchorgen()
    image, first = (800, 1344), 2 if name == "faster_rcnn" else 3
    grids = [tuple(-(-side // 2**level) for side in image) for level in range(first, first + 5)]
    images = library.image_list.ImageList(torch.zeros(1, 3, *image), [image])
    expected = generator(images, [torch.zeros(1, 1, *grid) for grid in grids])[0].numpy()
    levels = zip(generator.sizes, grids, strict=True)
    found = [grid_anchors(cell_anchors(sizes), grid, grid_strides(image, grid)) for sizes, grid in levels]
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_levels():
    mapper = torchvision().ops.poolers.LevelMapper(2, 5)
    sides = np.concatenate([s * (1 + np.linspace(-1e-5, 1e-5, 21)) for s in (112, 224, 448)] + [[1, 3000]])
    rois = np.stack([0 * sides, 0 * sides, sides, sides], 1).astype("float32")
    np.testing.assert_array_equal(roi_levels(rois), theirs(lambda boxes: mapper([boxes]) + 2, rois))
