"""Recomputes the statistics of the backbone's batch normalization before they are frozen (appendix A)."""

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from keras_resnet.detection.detector import Detector
from keras_resnet.errors import InputError
from keras_resnet.models.layers import BatchNormalization
from keras_resnet.models.resnet import build_network


def reestimate_statistics(
    detector: Detector,
    images: Iterable[tf.Tensor],
    gather: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> None:
    """Sets the backbone's moving statistics to the mean and the variance over whole images.

    Every stage sees whole images, including the last one, as in a classifier. Each image counts the same,
    whatever its size.

    Args:
        images: normalized, float32 (1, height, width, 3); with several workers, this worker's share.
        gather: `Distribution.gather`, from which all workers compute the same statistics.

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
    if not pairs:
        return

    @tf.function(reduce_retracing=True)
    def observe(image):
        network(image, training=True)
        means, variances = zip(
            *((layer.moving_mean.value, layer.moving_variance.value) for layer, _ in pairs), strict=True
        )
        return tf.concat(means, 0), tf.concat(variances, 0)

    channels = [own.moving_mean.shape[0] for _, own in pairs]
    total, squares, count = np.zeros(sum(channels)), np.zeros(sum(channels)), 0
    for image in images:
        mean, variance = (np.asarray(values, "float64") for values in observe(image))
        total, squares, count = total + mean, squares + variance + mean**2, count + 1
    row = np.concatenate([total, squares, [count]])
    *sums, count = gather(row[None]).sum(0)
    if not count:
        raise InputError("no image can be decoded, so batch normalization's statistics cannot be computed")
    mean, squares = np.split(np.array(sums) / count, 2)
    variance = np.maximum(squares - mean**2, 0)  # the variance between images is part of it
    places = np.cumsum(channels)[:-1]
    parts = (np.split(values.astype("float32"), places) for values in (mean, variance))
    for (_, own), own_mean, own_variance in zip(pairs, *parts, strict=True):
        own.moving_mean.assign(own_mean)
        own.moving_variance.assign(own_variance)
