"""Networks for the export tests: small twins of the zoo, with statistics that nothing cancels."""

import dataclasses

import keras
import numpy as np

from keras_resnet.export.images import sample_photos
from keras_resnet.export.serving import network_for_export, serving_model
from keras_resnet.images.preprocessing import Normalization
from keras_resnet.weights import ModelSpec

SMALL = {"stage_depths": (1, 1), "stage_filters": (64, 96)}
SMALL_CIFAR = {"stage_depths": (1, 1, 1)}
NARROW = {"stage_depths": (2, 1), "stage_filters": (16, 24)}
GROUPED = {**NARROW, "groups": 4, "width_per_group": 64}
# The families after the paper's: (zoo's row, overrides, even input size, odd input size). At its odd size
# D's average pooling reaches over an edge.
LATER_FAMILIES = {
    "preactivation": ("resnet50_v2", NARROW, 48, 45),
    "D": ("resnet50d", NARROW, 48, 49),
    "grouped": ("resnext50_32x4d", GROUPED, 48, 45),
}
LATER_EVEN = {name: (row, overrides, even) for name, (row, overrides, even, _) in LATER_FAMILIES.items()}
LATER_ODD = {name: (row, overrides, odd) for name, (row, overrides, _, odd) in LATER_FAMILIES.items()}
PIXEL_MEAN = np.random.default_rng(7).uniform(100, 150, (32, 32, 3)).astype("float32").tolist()
PER_PIXEL = Normalization(PIXEL_MEAN, (1.0, 1.0, 1.0))


def spec_of(model, overrides=None, size=None, normalization=None, labels=(), classes=None):
    spec = ModelSpec.default(model, classes)
    return dataclasses.replace(
        spec,
        overrides=dict(overrides or {}),
        input_shape=(size, size, 3) if size else spec.input_shape,
        preprocessing=dataclasses.replace(
            spec.preprocessing,
            size=size or spec.preprocessing.size,
            normalization=normalization or spec.normalization,
        ),
        labels=tuple(labels),
    )


def randomize(network, seed=0, scale=1.0):
    """Batch normalization far from its initial values, so that a wrongly folded one shows.

    Biases, which only pre-activation networks have before the classifier, are mostly negative: then the
    zeros that pad the stem's maximum show in the result.
    """
    random = np.random.default_rng(seed)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            layer.gamma.assign(scale * random.uniform(0.5, 1.5, size))
            layer.beta.assign(random.normal(0, 0.3, size))
            layer.moving_mean.assign(random.normal(0, 0.3, size))
            layer.moving_variance.assign(random.uniform(0.5, 1.5, size))
        elif isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
            layer.bias.assign(random.normal(-1, 0.5, layer.bias.shape))
    return network


def serving(spec, seed=0, scale=1.0):
    keras.utils.set_random_seed(seed)
    return serving_model(randomize(network_for_export(spec), seed, scale), spec.normalization)


def photo_batches(spec):
    """The two photos in crops, in two batches of unequal size, with labels."""
    images = sample_photos(*spec.input_shape)
    return [(images[:5], np.arange(5)), (images[5:], np.arange(3))]
