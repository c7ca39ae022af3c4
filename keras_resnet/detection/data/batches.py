"""Reproducible batches of images with their objects, padded to the same size."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.data.examples import PADDING, BadImages, Shard, parallel_map, prefetched, shard_examples
from keras_resnet.data.pipeline import augmentation_seed, epoch_order
from keras_resnet.detection.config import DetectorConfig
from keras_resnet.detection.data.annotations import DetectionSplit
from keras_resnet.detection.data.augmentation import DetectionAugmentation, augment, kept
from keras_resnet.detection.sizes import (
    normalize_then_resize,
    padded_shape,
    resized_shape,
    resized_shape_within,
)
from keras_resnet.errors import InputError

ABSENT, OBJECT, CROWD = range(3)
"""Kinds of a batch's objects: padding, objects, and crowd regions, which are ignored in training."""

_PORTRAIT_PADDING = PADDING - 1  # index of padding in batches of portrait images
_REPEATED = _PORTRAIT_PADDING - 1  # minus an image's index: the image again, with weight 0
_ATTEMPTS = 2  # file system errors may be temporary


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionBatches:
    """Batches of a split for a detector.

    The images of a batch have the same orientation. They are padded to the canvas of the split, the smallest
    one that fits all images as the detector resizes them; for portrait images it is rotated by 90 degrees.

    Training drops incomplete batches, so each epoch leaves out a few images, different ones each time. If one
    orientation has fewer images than a batch, they form one batch, in which they are repeated with weight 0:
    zeros would distort the statistics of batch normalization that is trained.
    """

    split: DetectionSplit
    config: DetectorConfig
    global_batch: int

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of padded landscape images, pixels; width and height of padded portrait images."""
        config = self.config
        sizes = {
            resized_shape(int(height), int(width), config.shorter_side, config.longer_side)
            for height, width in np.unique(self.split.sizes, axis=0)
        }
        shorter, longer = max(min(size) for size in sizes), max(max(size) for size in sizes)
        return padded_shape(shorter, longer, config.size_multiple)

    @property
    def most_objects(self) -> int:
        """The largest number of objects in an image, at least 1."""
        return max(1, *(len(objects) for objects in self.split.objects))

    @property
    def epoch_steps(self) -> int:
        """The number of training steps per epoch.

        Raises:
            InputError: the split has no complete batch.
        """
        counts = [len(group) for group in self._orientations()]
        if max(counts) < self.global_batch:
            raise InputError(
                f"the split {self.split.name!r} has no {self.global_batch} images of one orientation"
                f" for a batch: {counts[0]} landscape or square, {counts[1]} portrait"
            )
        return sum(_training_steps(count, self.global_batch) for count in counts)

    @property
    def evaluation_steps(self) -> int:
        """The number of evaluation steps, with incomplete batches of either orientation."""
        return sum(-(-len(group) // self.global_batch) for group in self._orientations())

    def training(
        self,
        shard: Shard,
        policy: DetectionAugmentation,
        *,
        seed: int,
        epoch: int,
        first_step: int = 0,
        bad: BadImages | None = None,
    ) -> tf.data.Dataset:
        """Returns one epoch of shuffled, augmented batches from step `first_step` on; see `training_batches`.

        Images without objects are included. Crowd regions are kept, and difficult objects are left out, as in
        py-faster-rcnn.

        Returns:
            A dataset whose elements are batches of one replica: "images", float32 (batch, height, width, 3),
            normalized; "sizes", int32 (batch, 2), height and width without padding; "boxes", float32
            (batch, n, 4), pixels of the padded images; "labels", int32 (batch, n); "kinds", int32 (batch, n),
            `ABSENT`, `OBJECT` or `CROWD`; "weights", float32 (batch,), 0 for repeated images and for images
            that cannot be decoded; and "indices", int32 (batch,), of the images in the split.
        """
        order = np.random.Generator(epoch_order(seed, epoch))
        groups = []
        for group in self._orientations():
            size = _training_steps(len(group), self.global_batch) * self.global_batch
            shuffled = order.permutation(group)[:size]
            groups.append(np.append(shuffled, _REPEATED - np.resize(shuffled, size - len(shuffled))))
        steps = order.permutation(np.concatenate(groups).reshape(-1, self.global_batch))
        return self._batches(steps, shard, first_step, bad, policy, augmentation_seed(seed, epoch))

    def evaluation(self, shard: Shard, bad: BadImages | None = None) -> tf.data.Dataset:
        """Returns each image once, padded with zeros of weight 0 and index -1; elements as in `training`."""
        groups = []
        for group, padding in zip(self._orientations(), (PADDING, _PORTRAIT_PADDING), strict=True):
            missing = -len(group) % self.global_batch
            groups.append(np.append(group, np.full(missing, padding)))
        return self._batches(np.concatenate(groups), shard, 0, bad)

    def _orientations(self) -> Sequence[np.ndarray]:
        """The indices of landscape and square images, and those of portrait images."""
        is_portrait = self.split.sizes[:, 0] > self.split.sizes[:, 1]
        return [np.flatnonzero(is_portrait == value) for value in (False, True)]

    def _batches(self, steps, shard, first_step, bad, policy=None, seed=0) -> tf.data.Dataset:
        split, config, most = self.split, self.config, self.most_objects
        canvas = self.canvas
        turned = any(len(group) for group in self._orientations()[1:])
        static = (None, None) if turned and canvas[0] != canvas[1] else canvas

        def read(index):
            return _read(split, int(index), most, bad)

        def load(place):
            index = tf.where(place <= _REPEATED, _REPEATED - place, place)
            image, boxes, labels, kinds, ok = tf.numpy_function(
                read, [index], [tf.uint8, tf.float32, tf.int32, tf.int32, tf.bool]
            )
            image, ok = tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(ok, ())
            boxes = tf.ensure_shape(boxes, (most, 4))
            labels, kinds = (tf.ensure_shape(values, (most,)) for values in (labels, kinds))
            shape = tf.shape(image)[:2]
            room = tf.where(shape[0] > shape[1], canvas[::-1], canvas)
            if policy is not None:
                pair = tf.stack([tf.constant(seed, tf.int64), tf.maximum(index, 0)])
                image, boxes, visible = augment(image, boxes, pair, policy)
                keep = kept(boxes, visible, kinds == CROWD, policy)
                kinds, shape = tf.where(keep, kinds, ABSENT), tf.shape(image)[:2]
            size = resized_shape_within(shape, config.shorter_side, config.longer_side, room)
            pixels = normalize_then_resize(image, config.normalization, size, room)
            ratio = tf.cast(size, tf.float32) / tf.cast(shape, tf.float32)
            return {
                "images": tf.ensure_shape(tf.where(ok, pixels, 0.0), (*static, 3)),
                "sizes": size,
                "boxes": tf.where(kinds[:, None] == ABSENT, 0.0, boxes * tf.gather(ratio, [1, 0, 1, 0])),
                "labels": tf.where(kinds == OBJECT, labels, 0),
                "kinds": kinds,
                "weights": tf.cast(ok & (place >= 0), tf.float32),
                "indices": tf.cast(tf.maximum(index, PADDING), tf.int32),
            }

        examples = parallel_map(shard_examples(steps.reshape(-1), shard, first_step), load)
        return prefetched(examples.batch(shard.replica_batch, drop_remainder=True))


def _training_steps(count: int, batch: int) -> int:
    """The number of batches per epoch for `count` images of one orientation."""
    return count // batch or min(count, 1)


def _read(split: DetectionSplit, index: int, most: int, bad: BadImages | None) -> tuple:
    """The pixels and the padded objects of an image; padding and undecodable images are black."""
    boxes, labels = np.zeros((most, 4), "float32"), np.zeros(most, "int32")
    kinds = np.full(most, ABSENT, "int32")
    if index < 0:
        shape = (2, 1, 3) if index == _PORTRAIT_PADDING else (1, 2, 3)
        return np.zeros(shape, "uint8"), boxes, labels, kinds, np.bool_(False)
    for attempt in range(_ATTEMPTS):
        try:
            pixels = split.read_image(index)
        except InputError as error:
            if attempt < _ATTEMPTS - 1:
                continue
            if bad is None:
                raise
            bad.add(split.image_names[index], split.name, str(error))
            return np.zeros((*split.sizes[index], 3), "uint8"), boxes, labels, kinds, np.bool_(False)
        break
    objects = split.objects[index]
    own = objects.select(~objects.difficult)
    count = len(own)
    boxes[:count], labels[:count] = own.boxes, own.labels
    kinds[:count] = np.where(own.crowd, CROWD, OBJECT)
    return np.ascontiguousarray(pixels), boxes, labels, kinds, np.bool_(True)
