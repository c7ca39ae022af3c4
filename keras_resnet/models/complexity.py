"""Parameters, multiply-adds and activations of a model: the numbers of the paper's tables."""

import dataclasses
import math

import keras
from keras import layers

from keras_resnet.errors import InputError
from keras_resnet.models.graph import recursion_limit


@dataclasses.dataclass(frozen=True)
class Complexity:
    """The cost of one image through a network.

    Attributes:
        parameters: learned weights, batch normalization's scale and shift among them, its moving
            statistics not (as PyTorch counts).
        multiply_adds: of convolutions and fully connected layers (Table 1's "FLOPs"); biases,
            normalization, pooling and additions are not counted.
        activations: elements that convolutions put out.
        weighted_layers: convolutions and fully connected layers, projections not counted.
    """

    parameters: int
    multiply_adds: int
    activations: int
    weighted_layers: int


def complexity(model: keras.Model, input_shape: tuple | None = None) -> Complexity:
    """Counts what one image costs.

    Args:
        model: any functional model.
        input_shape: of one image, for a model whose own height and width are None.

    Raises:
        InputError: neither the model nor `input_shape` fixes the image size.
    """
    if input_shape is not None:
        with recursion_limit():
            model = keras.models.clone_model(model, input_tensors=keras.Input(input_shape))
    if any(size is None for size in model.input.shape[1:]):
        raise InputError(f"{model.name} takes images of any size; give complexity() an input_shape")
    multiply_adds = activations = parameters = weighted = 0
    for layer in model.layers:
        parameters += layer.count_params()
        if isinstance(layer, layers.BatchNormalization):
            parameters -= math.prod(layer.moving_mean.shape) + math.prod(layer.moving_variance.shape)
        if isinstance(layer, layers.Conv2D):
            # Every kernel element is used once at every output pixel.
            outputs = math.prod(layer.output.shape[1:])
            activations += outputs
            multiply_adds += outputs // layer.filters * math.prod(layer.kernel.shape)
            weighted += not layer.name.endswith("_0_conv")
        elif isinstance(layer, layers.Dense):
            multiply_adds += math.prod(layer.kernel.shape)
            weighted += 1
    return Complexity(parameters, multiply_adds, activations, weighted)
