"""Small networks of every kind for the zoo's tests, with statistics that no error can hide behind."""

import contextlib
import itertools
from unittest import mock

import keras
import numpy as np
import pytest

from keras_resnet.models.config import ResNetConfig
from keras_resnet.weights import load_weights, read_spec

KINDS = [("basic", "1x1"), ("bottleneck", "1x1"), ("bottleneck", "3x3")]
SHORTCUTS = ["A", "B", "C", None]
STEMS = ["imagenet", "cifar"]
# Overrides that make a network of the cifar family train in seconds.
TINY = {"stage_depths": (1, 1), "stage_filters": (4, 8)}


def small_config(block="basic", shortcut="B", stem="cifar", stride="1x1", depths=(2, 1), classes=5):
    """Two stages: one that keeps the resolution and one that halves it."""
    filters = (8, 12) if stem == "cifar" else (64, 72)
    return ResNetConfig(block, depths, filters, stem, shortcut, stride, input_size=32, classes=classes)


ALL_SMALL = {
    f"{block} {stride} {shortcut} {stem}": small_config(block, shortcut, stem, stride)
    for (block, stride), shortcut, stem in itertools.product(KINDS, SHORTCUTS, STEMS)
}
# The later families, and what only they have.
FAMILIES = {
    "resnext": small_config("bottleneck", "B", "imagenet", "3x3").replace(groups=8, width_per_group=16),
    "wide": small_config("bottleneck", "B", "imagenet", "3x3").replace(width_per_group=128),
    "d basic": small_config("basic", "D", "deep"),
    "d bottleneck": small_config("bottleneck", "D", "deep", "3x3"),
    "d cifar": small_config("basic", "D", "cifar"),
    "v2": small_config("preactivation", "B", "imagenet", "3x3"),
    "v2 1x1 A": small_config("preactivation", "A", "cifar"),
    "v2 C": small_config("preactivation", "C", "deep", "3x3"),
    "v2 plain": small_config("preactivation", None, "cifar", "3x3"),
}
ALL_SMALL |= FAMILIES
# Among these each value of each option meets most of the others; the rest are for the slow tests.
FAST = {
    "basic 1x1 A cifar",
    "basic 1x1 B imagenet",
    "basic 1x1 None imagenet",
    "bottleneck 1x1 A imagenet",
    "bottleneck 1x1 B cifar",
    "bottleneck 1x1 C imagenet",
    "bottleneck 3x3 B imagenet",
    "bottleneck 3x3 C cifar",
    "bottleneck 3x3 None cifar",
    "resnext",
    "d basic",
    "d bottleneck",
    "v2",
    "v2 1x1 A",
    "v2 C",
}
EVERY_KIND = [
    pytest.param(kind, marks=[] if kind in FAST else [pytest.mark.slow], id=kind) for kind in ALL_SMALL
]


@contextlib.contextmanager
def zeros_for_weights():
    """Builds without drawing random weights, which takes most of the time of the wide networks."""

    def zeros(self, shape, dtype=None):
        return keras.ops.zeros(shape, dtype=dtype)

    with mock.patch.object(keras.initializers.VarianceScaling, "__call__", zeros):
        yield


def randomize(model, seed=0):
    """Draws batch normalization's variables and all biases anew."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.gamma.assign(random.uniform(0.5, 1.5, size))
            layer.beta.assign(random.normal(0, 0.3, size))
            layer.moving_mean.assign(random.normal(0, 0.3, size))
            layer.moving_variance.assign(random.uniform(0.5, 1.5, size))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(random.normal(0, 0.3, layer.bias.shape))
    return model


def images(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def relative_difference(ours, theirs):
    """The largest difference over the largest magnitude."""
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def load_network(path, **options):
    """The network that a weight file of our own describes, with the file's weights."""
    model = read_spec(path).build(**options)
    load_weights(model, path)
    return model
