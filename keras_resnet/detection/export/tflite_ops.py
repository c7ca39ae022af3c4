"""RoIAlign and non-maximum suppression of one image in operations that TFLite has."""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.detection.nms import group_offsets
from keras_resnet.detection.roi_align import SAMPLES, roi_levels, sample_positions
from keras_resnet.images.ops import static_shape


def gather_roi_align(
    maps: Sequence[tf.Tensor], rois: tf.Tensor, output_size: int, strides: Sequence[int]
) -> tf.Tensor:
    """`multilevel_roi_align`, or `roi_align` if there is one feature map, by gathering the cells.

    Args:
        maps: (1, height, width, channels) of each level, from the finest on, of static shapes.
        rois: float32 (n, 4), pixels.
        strides: pixels per cell of each feature map.

    Returns:
        (n, output_size, output_size, channels).
    """
    heights, widths = zip(*(static_shape(each)[1:3] for each in maps), strict=True)
    areas = [height * width for height, width in zip(heights, widths, strict=True)]
    cells = tf.concat([tf.reshape(each, [-1, each.shape[-1]]) for each in maps], 0)
    if len(maps) == 1:
        level = tf.zeros(static_shape(rois)[:1], tf.int32)
    else:
        finest = round(math.log2(strides[0]))
        level = roi_levels(rois, finest, finest + len(maps) - 1) - finest
    first, width = (
        tf.gather(tf.constant(values), level)[:, None, None]
        for values in (np.cumsum([0, *areas[:-1]], dtype="int32"), np.array(widths, "int32"))
    )
    stride, last_row, last_column = (
        tf.gather(tf.constant(values, tf.float32), level)[:, None]
        for values in (strides, np.subtract(heights, 1), np.subtract(widths, 1))
    )
    columns, rows = sample_positions(rois, output_size, stride)
    columns, rows = _corners(columns, last_column), _corners(rows, last_row)
    total = tf.zeros([])
    for row, row_weight in rows:
        for column, column_weight in columns:
            place = first + row[:, :, None] * width + column[:, None]
            weight = row_weight[:, :, None] * column_weight[:, None]
            total += tf.gather(cells, place) * weight[..., None]
    return total


def non_max_suppression(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    iou_threshold: float,
    count: int,
    groups: tf.Tensor,
    score_threshold: float = float("-inf"),
    most: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """`nms.non_max_suppression` of one image, (1, n, 4) and (1, n), in operations that TFLite has.

    TFLite's kernel differs from TensorFlow's: it selects boxes with the same score in any order, and a box
    suppresses others from the threshold on, itself included; a box without area, which does not overlap
    itself, would be selected again and again. So the boxes are sorted, each gets its rank as score, the
    threshold is the next larger number, at most 1, and boxes without area are replaced by boxes elsewhere.

    Args:
        boxes: as in `nms.non_max_suppression`, but without negative coordinates.
        most: largest number of boxes with scores above the threshold; None for any.
    """
    valid = scores > score_threshold
    moved = boxes + group_offsets(boxes, valid, tf.cast(groups, tf.float32))
    known = static_shape(scores)[1]
    most = known if most is None else min(most, known)
    values, order = tf.math.top_k(scores[0], most)
    ranks, candidates = tf.range(most, 0, -1, dtype=tf.float32), tf.gather(moved[0], order)
    left, zero = -2.0 * ranks, tf.zeros([most])
    elsewhere = tf.stack([left, zero, left + 1.0, zero + 1.0], -1)
    sides = candidates[:, 2:] - candidates[:, :2]
    has_area = tf.reduce_prod(sides, -1, keepdims=True) > 0.0
    above = np.nextafter(np.float32(iou_threshold), np.float32(2.0))
    found = tf.raw_ops.NonMaxSuppressionV5(
        boxes=tf.where(has_area, candidates, elsewhere),
        scores=tf.where(values > score_threshold, ranks, 0.0),
        max_output_size=count,
        iou_threshold=min(above, np.float32(1.0)),
        score_threshold=0.0,
        soft_nms_sigma=0.0,
        pad_to_max_output_size=True,
    )
    kept = tf.range(count) < found.valid_outputs
    selected = tf.where(kept, tf.gather(order, tf.reshape(found.selected_indices, [count])), 0)
    return selected[None], kept[None]


def _corners(samples, last):
    """The cells of bilinear interpolation along one axis, and their weights, for the mean of each bin.

    Args:
        samples: (n, bins * SAMPLES), cells.
        last: index of the last cell, (n, 1).

    Returns:
        Pairs of indices, int32 (n, bins), and weights, float32 (n, bins).
    """
    inside = tf.cast((samples >= -1.0) & (samples <= last + 1.0), tf.float32) / SAMPLES
    clamped = tf.minimum(tf.maximum(samples, 0.0), last)
    low = tf.floor(clamped)
    fraction = clamped - low
    corners = (low, (1.0 - fraction) * inside), (tf.minimum(low + 1.0, last), fraction * inside)
    shape = [-1, static_shape(samples)[1] // SAMPLES, SAMPLES]
    pairs = []
    for place, weight in corners:
        places, weights = (tf.unstack(tf.reshape(each, shape), axis=-1) for each in (place, weight))
        pairs += [(tf.cast(place, tf.int32), weight) for place, weight in zip(places, weights, strict=True)]
    return pairs
