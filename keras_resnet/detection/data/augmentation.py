"""Augmentation of images with their boxes: horizontal flip, and scale jitter by cropping or shrinking.

As in classification, it depends only on (seed, epoch, example), not on the worker, and is implemented with
TensorFlow operations for use in `tf.data`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.data.augmentation import draws
from keras_resnet.data.pipeline import augmentation_seed
from keras_resnet.detection import boxes as box_ops
from keras_resnet.detection.data.annotations import Objects
from keras_resnet.errors import require
from keras_resnet.images.ops import resize_and_crop
from keras_resnet.images.preprocessing import Normalization

_SMALLEST_SIDE = 1.0  # pixels of a box after cropping


@dataclasses.dataclass(frozen=True)
class DetectionAugmentation:
    """The augmentation of training images and their boxes.

    Attributes:
        flip: whether images are mirrored left and right with probability 1/2.
        scale: range from which the factor that enlarges objects is drawn uniformly; (1, 1) for no scaling.
            Above 1, a random crop, whose sides are 1 / factor of the image's, replaces the image; the
            detector resizes it to its usual input size. Below 1, the image is reduced and placed in the upper
            left of a canvas of the original size. This corresponds to torchvision's ScaleJitter and
            FixedSizeCrop with a canvas of the image's aspect ratio; (0.1, 2) is large-scale jitter.
        least_visible: an object is dropped if less than this fraction of its area is in the crop, or if a
            side of its clipped box is below one pixel. Crowd regions are kept if any part is in the crop.
        fill: color of the canvas, (red, green, blue) from 0 to 255, rounded; training uses the mean of the
            detector's normalization.

    Raises:
        InputError: the range of the scale, `least_visible` or `fill` is invalid.
    """

    flip: bool = True
    scale: tuple[float, float] = (1.0, 1.0)
    least_visible: float = 0.25
    fill: Sequence[float] = Normalization.imagenet().mean

    def __post_init__(self):
        low, high = self.scale
        require(0.05 <= low <= high <= 20, "the range of the scale must lie between 0.05 and 20", self.scale)
        require(0 <= self.least_visible <= 1, "least_visible must be from 0 to 1", self.least_visible)
        in_range = len(self.fill) == 3 and all(0 <= value <= 255 for value in self.fill)
        require(in_range, "fill must be three numbers from 0 to 255", self.fill)


def augment(
    image: tf.Tensor, boxes: tf.Tensor, seed: tf.Tensor, policy: DetectionAugmentation
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Augments an image with its boxes.

    Args:
        image: uint8 (height, width, 3).
        boxes: float32 (n, 4), x1, y1, x2, y2 in pixels.
        seed: int64 (2,): the `augmentation_seed` of the epoch, and the index of the example.

    Returns:
        The image, uint8 (height, width, 3), whose size may differ; the boxes, float32 (n, 4), clipped to it;
        and the fraction of each box's area that is still visible, float32 (n,).
    """
    flip, scale, top, left = tf.unstack(draws.uniforms(seed, draws.OBJECTS))
    if policy.flip:
        mirrored = flip < 0.5
        image = tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)
        boxes = tf.cond(mirrored, lambda: box_ops.mirror(boxes, tf.shape(image)[1]), lambda: boxes)
    low, high = policy.scale
    if (low, high) == (1.0, 1.0):
        return image, boxes, tf.ones_like(boxes[:, 0])
    factor = low + scale * (high - low)
    image, boxes = tf.cond(
        factor < 1.0,
        lambda: _shrink(image, boxes, factor, policy.fill),
        lambda: _crop(image, boxes, factor, tf.stack([top, left])),
    )
    image = tf.ensure_shape(image, (None, None, 3))
    visible = box_ops.clip(boxes, tf.shape(image)[:2])
    return image, visible, tf.math.divide_no_nan(box_ops.areas(visible), box_ops.areas(boxes))


def kept(boxes: tf.Tensor, visible: tf.Tensor, crowd: tf.Tensor, policy: DetectionAugmentation) -> tf.Tensor:
    """Returns which objects are kept, bool (n,), given `boxes` and `visible` from `augment`."""
    sides = tf.reduce_min(boxes[:, 2:] - boxes[:, :2], -1)
    enough = (visible >= policy.least_visible) & (sides >= _SMALLEST_SIDE)
    return tf.where(crowd, sides > 0.0, enough)


def augment_example(
    image: np.ndarray, objects: Objects, policy: DetectionAugmentation, seed: int, epoch: int, example: int
) -> tuple[np.ndarray, Objects]:
    """Augments an image, uint8 (height, width, 3), and its objects as training does in the given epoch."""
    pair = tf.constant([augmentation_seed(seed, epoch), example], tf.int64)
    pixels, boxes, visible = augment(tf.constant(image), tf.constant(objects.boxes), pair, policy)
    keep = kept(boxes, visible, tf.constant(objects.crowd), policy).numpy()
    after, before = boxes.numpy(), objects.boxes
    # The area of a segmentation is scaled like that of its box.
    areas = (
        objects.areas * np.prod(after[:, 2:] - after[:, :2], 1) / np.prod(before[:, 2:] - before[:, :2], 1)
    )
    changed = dataclasses.replace(objects, boxes=after, areas=areas.astype("float32"))
    return pixels.numpy(), changed.select(keep)


def _shrink(image, boxes, factor, fill):
    """Reduces the image and places it in the upper left of a canvas of the original size and color `fill`."""
    shape = tf.shape(image)[:2]
    small = tf.maximum(tf.cast(tf.cast(shape, tf.float32) * factor, tf.int32), 1)
    resized = resize_and_crop(image, tf.unstack(small), (0, 0), tf.unstack(small))
    resized = tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)
    color = tf.constant(np.rint(fill).astype("uint8"))
    below = tf.broadcast_to(color, [shape[0] - small[0], small[1], 3])
    right = tf.broadcast_to(color, [shape[0], shape[1] - small[1], 3])
    canvas = tf.concat([tf.concat([resized, below], 0), right], 1)
    ratio = tf.cast(small, tf.float32) / tf.cast(shape, tf.float32)
    return canvas, boxes * tf.gather(ratio, [1, 0, 1, 0])


def _crop(image, boxes, factor, corner):
    """Crops a random part of the image, whose sides are 1 / factor of the image's."""
    shape = tf.shape(image)[:2]
    sides = tf.maximum(tf.cast(tf.round(tf.cast(shape, tf.float32) / factor), tf.int32), 1)
    corner = draws.choose(corner, shape - sides + 1)
    part = tf.slice(image, tf.concat([corner, [0]], 0), tf.concat([sides, [3]], 0))
    return part, boxes - tf.gather(tf.cast(corner, tf.float32), [1, 0, 1, 0])
