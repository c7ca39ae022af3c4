"""Detection with the improvements of the paper's appendix B: box refinement, multi-scale testing, ensembles.

The fourth improvement, global context, is a part of the detector: `DetectorConfig.global_context`.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.detection import boxes as box_ops
from keras_resnet.detection.detections import Detections
from keras_resnet.detection.detector import Detector, Outputs, are_finite, check_finite, check_images
from keras_resnet.detection.proposals import (
    Predictions,
    RawDetections,
    decode_regions,
    select_detections,
)
from keras_resnet.detection.sizes import rescale_boxes
from keras_resnet.errors import InputError, require
from keras_resnet.images.ops import static_shape

_REFINED_NMS = 0.3  # IoU threshold for the union of the first and the refined predictions
_LARGEST_SIDE = 2**13


class ImprovedDetector:
    """One or several two-stage detectors with the improvements of the paper's appendix B.

    Box refinement pools the features of the regressed boxes again and predicts new scores and boxes.
    Non-maximum suppression at IoU 0.3 selects among the first and the new predictions, and the selected
    boxes are averaged by box voting.

    Multi-scale testing computes the features of each region at the two scales that are closest to the
    optimal one, and takes their elementwise maximum. Proposals are computed at the config's single scale.

    An ensemble classifies the proposals of all detectors with each of them, and averages the scores and the
    boxes. The thresholds are those of the first detector.

    Args:
        detectors: with the same class names.
        refine: whether to refine the boxes.
        scales: shorter sides of the resized images, pixels, for multi-scale testing; empty for the shorter
            side of each detector's config. The limit of the longer side is changed by the same factor.

    Attributes:
        name: the detectors' names.
        class_names: in the order of the detections' labels.

    Raises:
        InputError: there are no detectors, one is a RetinaNet, their class names differ, or the scales are
            not different positive integers.
    """

    def __init__(self, detectors: Sequence[Detector], *, refine: bool = False, scales: Sequence[int] = ()):
        _check(detectors, scales)
        self._detectors, self._refine = tuple(detectors), refine
        self._sides = [
            tuple(dict.fromkeys((each.config.shorter_side, *sorted(scales)))) for each in detectors
        ]
        self._scales = [
            [sides.index(side) for side in sorted(scales)] or [0] for sides in self._sides
        ]  # indices of `_sides`
        counts = collections.Counter(each.name for each in detectors)
        self.name = " + ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())
        self.class_names = detectors[0].class_names
        signature = [
            [[tf.TensorSpec([1, None, None, 3]) for _ in sides] for sides in self._sides],
            [[tf.TensorSpec([None, 4]) for _ in each.config.strides] for each in detectors],
            [tf.TensorSpec([len(sides), 2], tf.int32) for sides in self._sides],
        ]
        self._raw = tf.function(self._raw_detections, input_signature=signature)

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detects objects in images of any sizes; see `Detector.detect`.

        Raises:
            InputError: an image has another dtype or shape, or the outputs of a detector are not finite.
        """
        check_images(images)
        return [self._detect_in(image) for image in images]

    def _detect_in(self, image: np.ndarray) -> Detections:
        prepared = [
            [detector.prepare(image, side) for side in sides]
            for detector, sides in zip(self._detectors, self._sides, strict=True)
        ]
        pixels = [[pixels[None] for pixels, _ in own] for own in prepared]
        anchors = [
            detector.anchors(*static_shape(own[0])[1:3])
            for detector, own in zip(self._detectors, pixels, strict=True)
        ]
        sizes = [tf.constant([size for _, size in own]) for own in prepared]
        results: Any = self._raw(pixels, anchors, sizes)
        found, finite = results
        for detector, own in zip(self._detectors, finite, strict=True):
            check_finite(detector.name, own)
        boxes, scores, labels, valid = (each[0].numpy() for each in found)
        boxes = rescale_boxes(boxes[valid], prepared[0][0][1], image.shape[:2])
        return Detections(boxes, scores[valid], labels[valid])

    def _raw_detections(
        self,
        pixels: Sequence[Sequence[tf.Tensor]],
        anchors: Sequence[Sequence[tf.Tensor]],
        sizes: Sequence[tf.Tensor],
    ) -> tuple[RawDetections, list[tf.Tensor]]:
        """Detects objects in one image, and checks whether the outputs of each detector are finite.

        Boxes are in pixels of the first detector's resized image.
        """
        size = sizes[0][:1]
        boxes, valid, views, finite = [], [], [], []
        for index, detector in enumerate(self._detectors):
            outputs = [detector.features(each) for each in pixels[index]]
            finite.append(are_finite([*outputs[0].logits, *outputs[0].deltas]))
            proposals = detector.propose(outputs[0], anchors[index], sizes[index][:1])
            # 1 for images of the same size, so that their boxes are not rounded.
            factors = tf.cast(sizes[index], tf.float32) / tf.cast(size, tf.float32)
            factors = tf.gather(factors, [1, 0, 1, 0], axis=1)
            boxes.append(proposals.boxes / factors[0])
            valid.append(proposals.valid)
            scales = self._scales[index]
            views.append(_View(detector, [outputs[each] for each in scales], tf.gather(factors, scales)))
        boxes, valid = tf.concat(boxes, 1), tf.concat(valid, 1)

        def predict(boxes):
            results = [view.predict(boxes, size) for view in views]
            finite[:] = [before & own for before, (_, own) in zip(finite, results, strict=True)]
            return _mean([predictions for predictions, _ in results])

        config, predictions = self._detectors[0].config, predict(boxes)
        if self._refine:
            predictions, valid = refine(predict, predictions, valid, size, config.proposal_side)
            config = config.replace(box_nms=_REFINED_NMS)
        return select_detections(predictions, valid, size, config, vote=self._refine), finite


def refine(
    predict: Callable[[tf.Tensor], Predictions],
    first: Predictions,
    valid: tf.Tensor,
    sizes: tf.Tensor,
    smallest_side: float,
) -> tuple[Predictions, tf.Tensor]:
    """Adds the predictions for the regressed boxes to the first predictions.

    The regressed box of a region is that of its most probable class.

    Args:
        predict: computes the predictions for boxes, (batch, n, 4), pixels.
        valid: bool (batch, n), which of the first predictions are not padding.
        sizes: (batch, 2), heights and widths of the images, pixels.
        smallest_side: regressed boxes with a smaller side are not valid.

    Returns:
        The first and the new predictions, (batch, 2 * n, ...), and which of them are valid.
    """
    best = tf.argmax(first.scores, -1)
    boxes = box_ops.clip(tf.gather(first.boxes, best, batch_dims=2), sizes)
    boxes = tf.where(tf.math.is_finite(boxes), boxes, 0.0)  # RoIAlign on a CPU refuses others
    corner, end = tf.split(boxes, 2, axis=-1)
    large = tf.reduce_all(end - corner >= smallest_side, -1)
    second = predict(boxes)
    joined = (tf.concat(pair, 1) for pair in zip(first, second, strict=True))
    return Predictions(*joined), tf.concat([valid, valid & large], 1)


def closest_scales(boxes: tf.Tensor, factors: tf.Tensor, side: float, count: int) -> tf.Tensor:
    """Returns the scales at which the areas of boxes are closest to that of a square.

    The closest two are adjacent, because areas increase with the scale.

    Args:
        boxes: (n, 4), pixels.
        factors: (scales, 4), by which the boxes are multiplied at each scale.
        side: of the square, pixels.
        count: number of scales per box.

    Returns:
        int32 (n, count), indices of `factors`, the closest first.
    """
    areas = box_ops.areas(boxes[:, None] * factors)
    return tf.math.top_k(-tf.abs(areas - side**2), count).indices


@dataclasses.dataclass(frozen=True)
class _View:
    """An image at the scales at which a detector computes its regions.

    Attributes:
        outputs: of the detector's shared layers at each scale.
        factors: float32 (scales, 4), by which boxes are multiplied at each scale.
    """

    detector: Detector
    outputs: Sequence[Outputs]
    factors: tf.Tensor

    def predict(self, boxes: tf.Tensor, size: tf.Tensor) -> tuple[Predictions, tf.Tensor]:
        """Computes the predictions for boxes, (1, n, 4), in an image of `size`, (1, 2).

        The second result is whether the outputs of the box head are finite, bool (1,).
        """
        detector = self.detector
        pools = [functools.partial(self._pool, rank) for rank in range(min(len(self.outputs), 2))]
        features = detector.region_features(pools, detector.with_context(boxes, size))
        logits, deltas = detector.predict(features)
        return decode_regions(logits, deltas, boxes, detector.config), are_finite([logits, deltas])

    def _pool(self, rank: int, boxes: tf.Tensor) -> tf.Tensor:
        """Pools the features of boxes, (1, n, 4), each at its closest (rank 0) or second closest scale."""
        if len(self.outputs) == 1:
            return self.detector.pool(self.outputs[0], boxes * self.factors[0])
        config = self.detector.config
        # The side of the input for which RoIAlign's bins are the cells of the last stage: the paper's 224.
        side = config.pooled_size * config.roi_strides[-1]
        scales = closest_scales(boxes[0], self.factors, side, rank + 1)[:, rank]
        places, parts = [], []
        for scale, outputs in enumerate(self.outputs):
            places.append(tf.where(scales == scale)[:, 0])
            own = tf.gather(boxes, places[-1], axis=1) * self.factors[scale]
            parts.append(self.detector.pool(outputs, own))
        order = tf.argsort(tf.concat(places, 0))
        return tf.ensure_shape(tf.gather(tf.concat(parts, 0), order), [boxes.shape[1], *parts[0].shape[1:]])


def _mean(predictions: Sequence[Predictions]) -> Predictions:
    return Predictions(*(tf.add_n(parts) / len(parts) for parts in zip(*predictions, strict=True)))


def _check(detectors: Sequence[Detector], scales: Sequence[int]) -> None:
    if not detectors:
        raise InputError("pass one or several detectors")
    for detector in detectors:
        if detector.head is None:
            raise InputError(
                f"the improvements of appendix B need two-stage detectors; {detector.name} has one stage"
            )
        if detector.class_names != detectors[0].class_names:
            raise InputError("the detectors of an ensemble must have the same classes in the same order")
    valid = all(type(side) is int and 0 < side <= _LARGEST_SIDE for side in scales)
    valid = valid and len(set(scales)) == len(scales)
    require(valid, f"scales must be different shorter sides from 1 to {_LARGEST_SIDE} pixels", list(scales))
