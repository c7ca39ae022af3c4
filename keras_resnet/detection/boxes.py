"""Operations on boxes: encoding relative to anchors, intersection over union, areas, clipping, mirroring.

A box is (x1, y1, x2, y2) in pixels, and its sides are x2 - x1 and y2 - y1, without the "+ 1" of older code.
All functions compute in float32 regardless of the dtypes of their arguments, and broadcast leading axes.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

LARGEST_LOG_SCALE = math.log(1000 / 16)
_SMALLEST_SIDE = 1e-3  # pixels
_ONES = (1.0, 1.0, 1.0, 1.0)


def encode(boxes: tf.Tensor, anchors: tf.Tensor, weights: Sequence[float] = _ONES) -> tf.Tensor:
    """Encodes boxes relative to anchors (Faster R-CNN, equation 2).

    Sides below 0.001 pixels count as 0.001 pixels, so that the result is finite for empty boxes.

    Args:
        boxes: (..., 4), pixels.
        anchors: (..., 4), pixels: anchors or proposals.
        weights: factors of the result; (10, 10, 5, 5) for the box head of Fast R-CNN.

    Returns:
        float32 (..., 4): the shift of the center in x and y in units of the anchor's sides, and the
        logarithms of the ratios of the widths and of the heights.
    """
    center, sides = _center_and_sides(boxes)
    anchor_center, anchor_sides = _center_and_sides(anchors)
    sides, anchor_sides = tf.maximum(sides, _SMALLEST_SIDE), tf.maximum(anchor_sides, _SMALLEST_SIDE)
    shift = tf.constant(weights[:2], tf.float32) * (center - anchor_center) / anchor_sides
    scale = tf.constant(weights[2:], tf.float32) * tf.math.log(sides / anchor_sides)
    return tf.concat([shift, scale], -1)


def decode(deltas: tf.Tensor, anchors: tf.Tensor, weights: Sequence[float] = _ONES) -> tf.Tensor:
    """Decodes boxes, the inverse of `encode`: float32 (..., 4), pixels.

    A side grows at most by the factor 1000 / 16, as in torchvision. With `deltas` (..., n, classes, 4),
    `anchors` are (..., n, 1, 4).
    """
    shift, scale = tf.split(tf.cast(deltas, tf.float32) / tf.constant(weights, tf.float32), 2, axis=-1)
    center, sides = _center_and_sides(anchors)
    center = shift * sides + center
    half = 0.5 * (tf.exp(tf.minimum(scale, LARGEST_LOG_SCALE)) * sides)
    return tf.concat([center - half, center + half], -1)


def clip(boxes: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Clips boxes, (..., n, 4), to images of `sizes`, (..., 2), height and width in pixels."""
    limits = tf.gather(tf.cast(sizes, tf.float32), [1, 0, 1, 0], axis=-1)[..., None, :]
    return tf.minimum(tf.maximum(tf.cast(boxes, tf.float32), 0.0), limits)


def whole_images(sizes: tf.Tensor) -> tf.Tensor:
    """Returns the boxes of whole images of `sizes`, (..., 2), height and width in pixels: (..., 4)."""
    ends = tf.reverse(tf.cast(sizes, tf.float32), [-1])
    return tf.concat([tf.zeros_like(ends), ends], -1)


def iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Returns the intersection over union of each pair of boxes, (..., n, 4) and (..., m, 4): (..., n, m).

    It is 0 for two boxes without area.
    """
    intersection = _intersections(first, second)
    total = tf.expand_dims(areas(first), -1) + tf.expand_dims(areas(second), -2)
    return tf.math.divide_no_nan(intersection, total - intersection)


def areas(boxes: tf.Tensor) -> tf.Tensor:
    """Returns the areas of boxes, (..., 4), in square pixels; 0 for boxes with swapped corners."""
    x1, y1, x2, y2 = tf.unstack(tf.cast(boxes, tf.float32), axis=-1)
    return tf.maximum(x2 - x1, 0.0) * tf.maximum(y2 - y1, 0.0)


def mirror(boxes: tf.Tensor, width: tf.Tensor | int) -> tf.Tensor:
    """Mirrors boxes, (..., 4), left and right in an image of `width` pixels."""
    x1, y1, x2, y2 = tf.unstack(tf.cast(boxes, tf.float32), axis=-1)
    width = tf.cast(width, tf.float32)
    return tf.stack([width - x2, y1, width - x1, y2], -1)


def intersection_over_area(regions: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Returns the fraction of the area of boxes, (..., n, 4), inside regions, (..., m, 4): (..., m, n).

    This is COCO's definition of overlap for crowd regions. It is 0 for a box without area.
    """
    return tf.math.divide_no_nan(_intersections(regions, boxes), tf.expand_dims(areas(boxes), -2))


def _center_and_sides(boxes):
    corners = tf.cast(boxes, tf.float32)
    sides = corners[..., 2:] - corners[..., :2]
    return corners[..., :2] + 0.5 * sides, sides


def _intersections(first, second):
    # Separate coordinates are several times faster than a last axis of size 2.
    x1, y1, x2, y2 = tf.unstack(tf.cast(first, tf.float32)[..., :, None, :], axis=-1)
    left, top, right, bottom = tf.unstack(tf.cast(second, tf.float32)[..., None, :, :], axis=-1)
    width = tf.maximum(tf.minimum(x2, right) - tf.maximum(x1, left), 0.0)
    height = tf.maximum(tf.minimum(y2, bottom) - tf.maximum(y1, top), 0.0)
    return width * height
