"""Parameters, multiply-adds and activations of a model: the numbers of the paper's tables."""

import dataclasses
import math
from typing import Any

import keras
from keras import layers

from keras_resnet.errors import InputError
from keras_resnet.models.config import Shape
from keras_resnet.models.graph import recursion_limit


@dataclasses.dataclass(frozen=True)
class Complexity:
    """The cost of a network per image.

    Attributes:
        parameters: trainable weights; batch normalization's moving statistics are not counted, as in
            PyTorch.
        multiply_adds: of convolutions and fully connected layers (Table 1's "FLOPs"); biases,
            normalization, pooling and additions are not counted.
        activations: output elements of the convolutions.
        weighted_layers: convolutions and fully connected layers without projections.
    """

    parameters: int
    multiply_adds: int
    activations: int
    weighted_layers: int


def complexity(model: keras.Model, input_shape: Shape | None = None) -> Complexity:
    """Counts the cost of one image.

    Args:
        model: any functional model.
        input_shape: of one image. Default: the model's own, where its height and width are not None.

    Raises:
        InputError: neither the model nor `input_shape` fixes the image size.
    """
    if input_shape is not None:
        with recursion_limit():
            model = keras.models.clone_model(model, input_tensors=keras.Input(input_shape))
    if any(size is None for size in model.inputs[0].shape[1:]):
        raise InputError(f"{model.name} takes images of any size; give complexity() an input_shape")
    multiply_adds = activations = parameters = weighted = 0
    for layer in model.layers:
        parameters += layer.count_params()
        if isinstance(layer, layers.BatchNormalization):
            parameters -= _size(layer.moving_mean) + _size(layer.moving_variance)
        if isinstance(layer, layers.Conv2D):
            # Every kernel element is used once at every output pixel.
            outputs = _size(layer.output)
            activations += outputs
            multiply_adds += outputs // layer.filters * _size(layer.kernel)
            weighted += not layer.name.endswith("_0_conv")
        elif isinstance(layer, layers.Dense):
            multiply_adds += _size(layer.kernel)
            weighted += 1
    return Complexity(parameters, multiply_adds, activations, weighted)


def _size(tensor: Any) -> int:
    """Elements of a variable, or of a symbolic tensor per image."""
    shape = tensor.shape[1:] if isinstance(tensor, keras.KerasTensor) else tensor.shape
    return math.prod(shape)
