"""Measures our Faster R-CNN: its layers, its postprocessing, and exports its ONNX file."""

import math
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.workers import speed_of
from keras_resnet.detection.detector import Detector, Outputs, build_detector
from keras_resnet.detection.export.onnx import detector_to_onnx
from keras_resnet.detection.proposals import detections_of_regions
from keras_resnet.processes import serve

_DETECTOR = "faster_rcnn_resnet50_v1_5_fpn"
_SPREAD = 20.0  # scales the class logits, so that a few classes of each region exceed the score threshold


def _with_statistics(detector: Detector, images: tf.Tensor) -> None:
    """Gives an untrained detector activations and scores of the same scale as a trained one."""
    layers: Any = detector.model.layers
    normalizations = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normalizations:
        layer.momentum = 0.0
    detector.features(images, training=True)
    kernel = detector.model.get_layer("roi_logits").kernel
    kernel.assign(_SPREAD * kernel)


class _Stages:
    """The stages of a detector, each as a function: layers, and the postprocessing after them."""

    def __init__(self, detector: Detector, height: int, width: int):
        anchors = [tf.constant(level) for level in detector.anchors(height, width)]
        sizes = tf.constant([[height, width]])
        head: Any = detector.head

        def pool(outputs):
            proposals = detector.propose(Outputs(**outputs), anchors, sizes)
            return proposals, detector.pool(Outputs(**outputs), proposals.boxes)

        def select(proposals, logits, deltas):
            logits, deltas = logits[None], deltas[None]  # adds the batch axis
            return detections_of_regions(logits, deltas, proposals, sizes, detector.config)

        self._shared = tf.function(lambda images: vars(detector.features(images)))
        self._head = tf.function(lambda rois: head(rois, training=False))
        self._pool, self._select = tf.function(pool), tf.function(select)

    def run(self, images: tf.Tensor) -> list[float]:
        """Detects objects in one image; returns the seconds of each stage, in this order."""
        times = [time.perf_counter()]
        outputs = self._shared(images)
        times.append(time.perf_counter())
        proposals, rois = self._pool(outputs)
        times.append(time.perf_counter())
        results = self._head(rois)
        times.append(time.perf_counter())
        self._select(proposals, *results).scores.numpy()
        times.append(time.perf_counter())
        return np.diff(times).tolist()


def _prepare(spec: dict[str, Any]):
    keras.utils.set_random_seed(0)
    height, width = spec["height"], spec["width"]
    # Images of this size are not resized.
    sides = {"shorter_side": min(height, width), "longer_side": max(height, width)}
    detector = build_detector(_DETECTOR, **sides)
    random = np.random.default_rng(0)
    images = tf.constant(random.standard_normal((1, height, width, 3), dtype="float32"))
    _with_statistics(detector, images)
    head: Any = detector.head
    regions = (detector.config.proposals, *head.inputs[0].shape[1:])
    rois = tf.constant(random.random(regions, dtype="float32"))
    # All outputs are returned, so that TensorFlow prunes no layer.
    networks = tf.function(lambda images: (vars(detector.features(images)), head(rois, training=False)))
    stages = _Stages(detector, height, width)

    def run_networks(steps: int) -> None:
        for _ in range(steps):
            networks(images)

    def seconds(steps: int) -> tuple[float, float]:
        """The seconds per image of the postprocessing and of the whole detector."""
        parts = np.mean([stages.run(images) for _ in range(steps)], 0)
        return float(parts[1::2].sum()), float(parts.sum())

    def export(path: str) -> None:
        detector_to_onnx(detector, path)

    run_networks(spec["warm_up"])
    seconds(1)
    parameters = sum(math.prod(weight.shape) for weight in detector.model.trainable_weights)
    measure = speed_of(run_networks, 1)
    ready = {"parameters": parameters, "multiply_adds": detector.complexity(height, width).multiply_adds}
    return ready, {"measure": measure, "seconds": seconds, "export": export}


if __name__ == "__main__":
    serve(_prepare)
