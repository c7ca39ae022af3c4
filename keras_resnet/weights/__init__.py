"""Weights in files: our own `.weights.h5`, what they belong to, and reading other zoos' files safely."""

from keras_resnet.weights.files import load_weights, read_spec, save_weights
from keras_resnet.weights.foreign import load_foreign, read_tensors
from keras_resnet.weights.spec import ModelSpec

__all__ = ["ModelSpec", "load_foreign", "load_weights", "read_spec", "read_tensors", "save_weights"]
