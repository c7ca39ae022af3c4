"""Measures our Faster R-CNN: its layers, and the whole detector."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.workers import seconds_of, speed_of
from keras_resnet.detection.detector import Detector, build_detector
from keras_resnet.processes import serve

_DETECTOR = "faster_rcnn_resnet50_v1_5_fpn"
_SPREAD = 20.0  # of the scores: so that a few classes of each region exceed the score threshold


def _with_statistics(detector: Detector, images: tf.Tensor) -> None:
    """Gives a new detector activations and scores of the size that trained ones have."""
    layers: Any = detector.model.layers
    normalizations = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normalizations:
        layer.momentum = 0.0
    detector.features(images, training=True)
    kernel = detector.model.get_layer("roi_logits").kernel
    kernel.assign(_SPREAD * kernel)


def _prepare(spec: dict[str, Any]):
    keras.utils.set_random_seed(0)
    detector = build_detector(_DETECTOR)
    height, width = spec["height"], spec["width"]
    random = np.random.default_rng(0)
    images = tf.constant(random.standard_normal((1, height, width, 3), dtype="float32"))
    _with_statistics(detector, images)
    head: Any = detector.head
    regions = (detector.config.proposals, *head.inputs[0].shape[1:])
    rois = tf.constant(random.random(regions, dtype="float32"))
    anchors = [tf.constant(level) for level in detector.anchors(height, width)]
    sizes = tf.constant([[height, width]])
    # One result of each layer's kind, so that nothing is left out.
    networks = tf.function(lambda images: (vars(detector.features(images)), head(rois, training=False)))
    whole = tf.function(lambda images: detector.raw_detections(images, anchors, sizes))

    def take_steps(function, steps: int) -> None:
        for _ in range(steps):
            for result in tf.nest.flatten(function(images)):
                result.numpy()

    def seconds(steps: int) -> tuple[float, float]:
        """Seconds per image of the whole detector and of its layers."""
        whole_seconds, layer_seconds = (
            seconds_of(lambda function=function: take_steps(function, steps)) / steps
            for function in (whole, networks)
        )
        return whole_seconds, layer_seconds

    seconds(spec["warm_up"])
    measure = speed_of(lambda steps: take_steps(networks, steps), spec["batch_size"])
    parameters = sum(math.prod(weight.shape) for weight in detector.model.trainable_weights)
    return {"parameters": parameters}, {"measure": measure, "seconds": seconds}


if __name__ == "__main__":
    serve(_prepare)
