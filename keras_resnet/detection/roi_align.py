"""RoIAlign (Mask R-CNN, section 3) on one feature map or on the levels of a feature pyramid.

Regions are treated as in torchvision's detectors (`aligned=False`): they are scaled by 1 / stride without a
shift by half a cell, and their sides are at least one cell. A bin is the mean of 2 x 2 bilinear samples;
samples outside of [-1, height] x [-1, width] cells are 0.

The forward pass uses `tf.image.crop_and_resize`, the fastest implementation on a CPU. Its gradient sums the
regions in an order that depends on the threads, so the gradient here is computed with two matrix products per
image instead, which is deterministic. No gradient is propagated through the coordinates of the regions.
"""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

SAMPLES = 2  # along each axis of a bin
_CHUNK = 2**22  # elements of the gradient's largest intermediate tensor: 16 MiB


def roi_align(features: tf.Tensor, rois: tf.Tensor, output_size: int, stride: int) -> tf.Tensor:
    """Pools the features of each region to `output_size` x `output_size` bins.

    Args:
        features: (batch, height, width, channels), of any floating-point dtype.
        rois: (batch, n, 4), pixels of the image (x1, y1, x2, y2); computed in float32.
        stride: pixels per cell of `features`.

    Returns:
        (batch, n, output_size, output_size, channels), of the features' dtype.
    """
    rois = tf.stop_gradient(tf.cast(rois, tf.float32))
    pooled = _align(features, tf.reshape(rois, [-1, 4]), _images(rois), output_size, stride)
    return _with_images(pooled, rois)


def roi_levels(rois: tf.Tensor, finest: int = 2, coarsest: int = 5) -> tf.Tensor:
    """Returns the pyramid level of each region, P2 to P5 by default (FPN, equation 1).

    Args:
        rois: (..., 4), pixels of the image.
        finest: the lowest level, to which regions without area belong.
        coarsest: the highest level.

    Returns:
        int32 (...).
    """
    corner, end = tf.split(tf.cast(rois, tf.float32), 2, axis=-1)
    side = tf.sqrt(tf.reduce_prod(tf.maximum(end - corner, 0.0), -1))
    # The tolerance for rounding errors of the logarithm is torchvision's.
    level = tf.floor(4.0 + tf.math.log(side / 224.0) / math.log(2.0) + 1e-6)
    return tf.cast(tf.clip_by_value(level, finest, coarsest), tf.int32)


def multilevel_roi_align(
    pyramid: Sequence[tf.Tensor], rois: tf.Tensor, output_size: int, strides: Sequence[int], finest: int = 2
) -> tf.Tensor:
    """Applies `roi_align` to each region on its pyramid level (FPN, section 4.2).

    Args:
        pyramid: a feature map per level, from the finest on, with equal channels and dtypes.
        rois: (batch, n, 4), pixels of the image.
        strides: pixels per cell of each feature map.
        finest: the level of the first feature map, 2 for P2.

    Returns:
        (batch, n, output_size, output_size, channels), of the features' dtype.

    Raises:
        ValueError: the numbers of strides and feature maps differ.
    """
    rois = tf.stop_gradient(tf.cast(rois, tf.float32))
    flat, images = tf.reshape(rois, [-1, 4]), _images(rois)
    levels = roi_levels(flat, finest, finest + len(pyramid) - 1)
    places, parts = [], []
    for level, (features, stride) in enumerate(zip(pyramid, strides, strict=True), finest):
        places.append(tf.where(levels == level))
        own = places[-1][:, 0]
        parts.append(_align(features, tf.gather(flat, own), tf.gather(images, own), output_size, stride))
    pooled = tf.concat(parts, 0)
    shape = tf.concat([tf.shape(flat, tf.int64)[:1], tf.shape(pooled, tf.int64)[1:]], 0)
    return _with_images(tf.scatter_nd(tf.concat(places, 0), pooled, shape), rois)


def sample_positions(
    rois: tf.Tensor, output_size: int, stride: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the columns and the rows of the samples of regions, each (n, output_size * SAMPLES), cells.

    Args:
        rois: float32 (n, 4), pixels of the image.
        stride: pixels per cell, a number or (n, 1).
    """
    corner, end = tf.split(rois / stride, 2, axis=-1)
    sides = tf.maximum(end - corner, 1.0)
    # The operations are in the order of torchvision's and ONNX Runtime's kernels, to round in the same way.
    bins = tf.range(output_size, dtype=tf.float32)[:, None]
    inside = (tf.range(SAMPLES, dtype=tf.float32) + 0.5) / SAMPLES
    side = tf.reshape(sides / output_size, [-1, 2, 1, 1])
    samples = tf.reshape(corner, [-1, 2, 1, 1]) + bins * side + inside * side  # (n, 2, bins, SAMPLES)
    columns, rows = tf.unstack(tf.reshape(samples, [-1, 2, output_size * SAMPLES]), axis=1)
    return columns, rows


def _images(rois):
    """The image index of each region, for the regions of all images in one axis: int32 (batch * n,)."""
    batch, count = tf.unstack(tf.shape(rois)[:2])
    return tf.repeat(tf.range(batch), count)


def _with_images(pooled, rois):
    """Splits the first axis of `pooled`, (batch * n, ...), into (batch, n), the shape of `rois`."""
    shape = tf.concat([tf.shape(rois)[:2], tf.shape(pooled)[1:]], 0)
    return tf.ensure_shape(tf.reshape(pooled, shape), [*rois.shape[:2], *pooled.shape[1:]])


def _align(features, rois, images, output_size, stride):
    """RoIAlign of regions, (n, 4), of the images with the indices `images`, (n,)."""
    columns, rows = sample_positions(rois, output_size, stride)

    @tf.custom_gradient
    def align(features):
        def gradient(pooled):
            return _gradient(pooled, tf.shape(features), rows, columns, images)

        return _crop(features, rows, columns, images), gradient

    pooled: Any = align(tf.cast(features, tf.float32))
    return tf.cast(pooled, features.dtype)


def _crop(features, rows, columns, images):
    """The mean of each bin's samples at `rows` and `columns`, both (n, bins * SAMPLES), cells."""
    # Padded with its edges, a map is interpolated, and 0 outside, exactly as RoIAlign requires.
    padded = tf.pad(features, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    last = tf.cast(tf.shape(features)[1:3] + 1, tf.float32)
    ends = tf.stack([rows[:, 0], columns[:, 0], rows[:, -1], columns[:, -1]], 1)
    boxes = (ends + 1.0) / tf.tile(last, [2])
    crops = tf.image.crop_and_resize(padded, boxes, images, [rows.shape[1], columns.shape[1]])
    return tf.nn.avg_pool2d(crops, SAMPLES, SAMPLES, "VALID")


def _weights(samples, size):
    """The weight of each of `size` cells in each bin along one axis: (n, bins, size)."""
    last = tf.cast(size, tf.float32) - 1.0
    inside = (samples >= -1.0) & (samples <= last + 1.0)
    clamped = tf.expand_dims(tf.clip_by_value(samples, 0.0, last), -1)
    distance = tf.abs(clamped - tf.range(last + 1.0))
    weights = tf.where(tf.expand_dims(inside, -1), tf.maximum(1.0 - distance, 0.0), 0.0)
    return tf.reduce_mean(tf.reshape(weights, [-1, samples.shape[1] // SAMPLES, SAMPLES, size]), 2)


def _gradient(pooled, shape, rows, columns, images):
    """The gradient of `_crop` for `features` of `shape`, computed image by image from that of its result."""
    batch, height, width, channels = tf.unstack(shape)
    bins = pooled.shape[1]
    chunk = tf.maximum(_CHUNK // (bins * width * channels), 1)

    def of_image(image):
        own = tf.where(images == image)[:, 0]

        def add(start, total):
            some = own[start : start + chunk]
            across = _weights(tf.gather(columns, some), width)[:, None]
            spread = tf.matmul(
                across, tf.gather(pooled, some), transpose_a=True
            )  # (n, bins, width, channels)
            down = tf.reshape(_weights(tf.gather(rows, some), height), [-1, height])
            spread = tf.reshape(spread, [-1, width * channels])
            return start + chunk, total + tf.matmul(down, spread, transpose_a=True)

        start = tf.zeros([], tf.int32), tf.zeros([height, width * channels])
        _, total = tf.while_loop(lambda start, _: start < tf.size(own), add, start, parallel_iterations=1)
        return total

    total = tf.map_fn(of_image, tf.range(batch), parallel_iterations=1, fn_output_signature=tf.float32)
    return tf.reshape(total, shape)
