"""Weights in files: our own `.weights.h5`, what they belong to, and reading them safely."""

from keras_resnet.weights.files import load_weights, read_spec, save_weights
from keras_resnet.weights.spec import ModelSpec

__all__ = ["ModelSpec", "load_weights", "read_spec", "save_weights"]
