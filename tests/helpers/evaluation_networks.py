"""Tiny networks with weights in files."""

import keras
import numpy as np

from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.weights import ModelSpec, save_weights


def tiny_spec(classes=10, size=16, channels=3, labels=(), resize=None, normalization=None, **changes):
    """A network of a few hundred weights; the statistics are those of nobody."""
    normalization = normalization or Normalization(
        (30.0, 40.0, 50.0)[:channels], (60.0, 50.0, 40.0)[:channels]
    )
    fields = {
        "model": "cifar_resnet20",
        "overrides": {"stage_depths": (1, 1, 1), "stage_filters": (4, 8, 8)},
        "classes": classes,
        "input_shape": (size, size, channels),
        "preprocessing": Preprocessing(size, resize, "bilinear", normalization),
        "labels": tuple(labels),
    }
    return ModelSpec(**{**fields, **changes})


def write_weights(folder, spec=None, seed=0, name="tiny", scale=1.0):
    """Writes a network with random weights, in the classifier too; gives the file's path."""
    spec = spec or tiny_spec(labels=map(str, range(10)))
    keras.utils.set_random_seed(seed)
    network = spec.build()
    random = np.random.default_rng(seed)
    classifier = network.get_layer("predictions")
    classifier.set_weights([scale * random.normal(0, 1, weight.shape) for weight in classifier.weights])
    return str(save_weights(network, folder / f"{name}.weights.h5", spec))
