"""Recomputes the statistics of a backbone's batch normalization before they are frozen (appendix A)."""

from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.detection.detector import Detector
from keras_resnet.models.layers import BatchNormalization
from keras_resnet.models.resnet import build_network


def reestimate_statistics(detector: Detector, batches: Iterable[tf.Tensor]) -> None:
    """Sets the backbone's moving statistics to the means of the batch statistics over `batches`.

    All stages, including the last one, are applied to whole images, as in a classifier.

    Args:
        batches: at least one batch of normalized images, float32 (batch, height, width, 3).
    """
    network = build_network(detector.config.network, include_top=False, input_shape=(None, None, 3))
    pairs = []
    for layer in network.layers:
        if layer.weights:
            own = detector.model.get_layer(layer.name)
            layer.set_weights(own.get_weights())
            if isinstance(layer, BatchNormalization):
                layer.momentum = 0.0  # the moving statistics are those of the last batch
                pairs.append((layer, own))

    @tf.function(reduce_retracing=True)
    def observe(images):
        network(images, training=True)
        return [[layer.moving_mean.value, layer.moving_variance.value] for layer, _ in pairs]

    totals, count = [], 0
    for images in batches:
        values = [np.asarray(value, "float64") for value in tf.nest.flatten(observe(images))]
        totals = [a + b for a, b in zip(totals, values, strict=True)] if count else values
        count += 1
    variables: list[keras.Variable] = [v for _, own in pairs for v in (own.moving_mean, own.moving_variance)]
    for variable, total in zip(variables, totals, strict=True):
        variable.assign((total / count).astype("float32"))
