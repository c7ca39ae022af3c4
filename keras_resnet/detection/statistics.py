"""Recomputes the statistics of the backbone's batch normalization before they are frozen (appendix A)."""

from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from keras_resnet.detection.detector import Detector
from keras_resnet.errors import InputError
from keras_resnet.models.layers import BatchNormalization
from keras_resnet.models.resnet import build_network


def reestimate_statistics(detector: Detector, images: Iterable[tf.Tensor]) -> None:
    """Sets the backbone's moving statistics to the mean and the variance over whole images.

    Every stage sees whole images, including the last one, as in a classifier. Each image counts the same,
    whatever its size.

    Args:
        images: normalized, float32 (1, height, width, 3).

    Raises:
        InputError: there are no images.
    """
    network = build_network(detector.config.network, include_top=False, input_shape=(None, None, 3))
    pairs = []
    for layer in network.layers:
        if layer.weights:
            own = detector.model.get_layer(layer.name)
            layer.set_weights(own.get_weights())
            if isinstance(layer, BatchNormalization):
                layer.momentum = 0.0  # the statistics are those of the last image
                pairs.append((layer, own))

    @tf.function(reduce_retracing=True)
    def observe(image):
        network(image, training=True)
        return [(layer.moving_mean.value, layer.moving_variance.value) for layer, _ in pairs]

    sums, count = [(np.zeros(()), np.zeros(()))] * len(pairs), 0
    for image in images:
        found = [[np.asarray(value, "float64") for value in pair] for pair in observe(image)]
        sums = [
            (total + mean, squares + variance + mean**2)
            for (total, squares), (mean, variance) in zip(sums, found, strict=True)
        ]
        count += 1
    if not count:
        raise InputError("no image can be decoded, so batch normalization's statistics cannot be computed")
    for (_, own), (total, squares) in zip(pairs, sums, strict=True):
        mean = total / count
        # The variance between images is part of it.
        own.moving_mean.assign(mean.astype("float32"))
        own.moving_variance.assign(np.maximum(squares / count - mean**2, 0).astype("float32"))
