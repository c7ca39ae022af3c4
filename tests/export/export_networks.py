"""Networks for the export tests: small twins of the zoo, with statistics that nothing cancels."""

import dataclasses

import keras
import numpy as np

from export.photos import sample_photos
from export.signature import network_for_export, serving_model
from keras_resnet.preprocessing import Normalization
from keras_resnet.weights import ModelSpec

SMALL = {"stage_depths": (1, 1), "stage_filters": (64, 96)}
SMALL_CIFAR = {"stage_depths": (1, 1, 1)}
PIXEL_MEAN = np.random.default_rng(7).uniform(100, 150, (32, 32, 3)).astype("float32").tolist()
PER_PIXEL = Normalization(PIXEL_MEAN, (1.0, 1.0, 1.0))


def spec_of(model, overrides=None, size=None, normalization=None, labels=(), classes=None):
    spec = ModelSpec.default(model, classes)
    return dataclasses.replace(
        spec,
        overrides=dict(overrides or {}),
        input_shape=(size, size, 3) if size else spec.input_shape,
        normalization=normalization or spec.normalization,
        labels=tuple(labels),
    )


def randomize(network, seed=0, scale=1.0):
    """Batch normalization far from its initial values, so that a wrongly folded one shows."""
    random = np.random.default_rng(seed)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            layer.gamma.assign(scale * random.uniform(0.5, 1.5, size))
            layer.beta.assign(random.normal(0, 0.3, size))
            layer.moving_mean.assign(random.normal(0, 0.3, size))
            layer.moving_variance.assign(random.uniform(0.5, 1.5, size))
    return network


def serving(spec, seed=0, scale=1.0):
    keras.utils.set_random_seed(seed)
    return serving_model(randomize(network_for_export(spec), seed, scale), spec.normalization)


def photo_batches(spec):
    """The two photos in crops, in two batches of unequal size, with labels."""
    images = sample_photos(*spec.input_shape)
    return [(images[:5], np.arange(5)), (images[5:], np.arange(3))]
