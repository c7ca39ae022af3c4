"""Parameters, multiply-adds and activations of a model: the numbers of the paper's tables."""

import dataclasses
import math
from typing import Any, cast

import keras

from keras_resnet.errors import InputError
from keras_resnet.models.config import Shape
from keras_resnet.models.graph import layer_calls, recursion_limit


@dataclasses.dataclass(frozen=True)
class Complexity:
    """The cost of a network per image.

    Attributes:
        parameters: without batch normalization's moving statistics, as in PyTorch.
        multiply_adds: of convolutions and fully connected layers only (Table 1's "FLOPs").
        activations: output elements of the convolutions.
        weighted_layers: convolutions and fully connected layers without projections.
    """

    parameters: int
    multiply_adds: int
    activations: int
    weighted_layers: int


def complexity(model: keras.Model, input_shape: Shape | None = None) -> Complexity:
    """Counts the cost of a functional model for one image of `input_shape`, by default the model's own.

    A layer that is called several times, such as the head of a feature pyramid, counts at each call, and its
    parameters once.

    Raises `InputError` if neither fixes the image size, or if the model has several inputs.
    """
    if len(model.inputs) != 1:
        raise InputError(f"{model.name} has {len(model.inputs)} inputs; for a detector, use its `complexity`")
    if input_shape is not None:
        with recursion_limit():
            model = keras.models.clone_model(model, input_tensors=keras.Input(input_shape))
    if any(size is None for size in model.inputs[0].shape[1:]):
        raise InputError(f"{model.name} takes images of any size; give complexity() an input_shape")
    parameters = weighted = 0
    for layer in model.layers:
        parameters += layer.count_params()
        if isinstance(layer, keras.layers.BatchNormalization):
            parameters -= _size(layer.moving_mean) + _size(layer.moving_variance)
        is_projection = layer.name.endswith("_0_conv")
        weighted += isinstance(layer, keras.layers.Conv2D | keras.layers.Dense) and not is_projection
    multiply_adds = activations = 0
    for call in layer_calls(model.outputs):
        if isinstance(call.layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            # Every kernel element is used once at every output pixel.
            kernel, outputs = cast(Any, call.layer).kernel, _size(call.outputs[0])
            is_depthwise = isinstance(call.layer, keras.layers.DepthwiseConv2D)
            channels = math.prod(kernel.shape[2:]) if is_depthwise else kernel.shape[-1]
            activations += outputs
            multiply_adds += outputs // channels * _size(kernel)
        elif isinstance(call.layer, keras.layers.Dense):
            multiply_adds += _size(call.layer.kernel)
    return Complexity(parameters, multiply_adds, activations, weighted)


def _size(tensor: Any) -> int:
    """The number of elements of a variable, or of a symbolic tensor per image."""
    return math.prod(tensor.shape[1:] if isinstance(tensor, keras.KerasTensor) else tensor.shape)
