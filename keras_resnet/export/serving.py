"""The model that artifacts are made from: raw pixels in, logits and probabilities out."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal, cast

import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization
from keras_resnet.models.graph import layer_calls, recursion_limit
from keras_resnet.weights import ModelSpec, WeightFile, open_weights

INPUT = "images"
LOGITS = "logits"
PROBABILITIES = "probabilities"
OUTPUTS = (LOGITS, PROBABILITIES)
SIGNATURE = "serving_default"
UINT8_SIGNATURE = "serving_uint8"
BATCH = "batch"  # name of the batch axis, where a format can name axes

Activation = Literal["softmax", "sigmoid"]  # from logits to probabilities


def network_for_export(spec: ModelSpec, weights: str | os.PathLike | WeightFile | None = None) -> keras.Model:
    """Builds the network that artifacts are made from: channels last, float32, logits out.

    Variables have the same shapes under every image data format and dtype policy, so weights that
    were trained channels first, or in mixed precision, load into it; None keeps the initial values.

    Raises:
        InputError: the file is missing, broken, or of another network.
    """
    with channels_last_float32():
        network = spec.build()
    if weights is not None:
        file = weights if isinstance(weights, WeightFile) else open_weights(weights, spec.config)
        file.load(network)
    return network


def serving_model(
    model: keras.Model, normalization: Normalization, activation: Activation = "softmax"
) -> keras.Model:
    """Adds the normalization before a network and the softmax or sigmoid after it.

    Args:
        model: a functional model that gives logits (`classifier_activation=None`), channels last, float32;
            `network_for_export` builds one. `export_model` takes other models, too.
        normalization: for pixels 0-255, with statistics per channel or per pixel.
        activation: of the probabilities: "softmax", or "sigmoid" for classes that do not exclude each other.

    Returns:
        A model from `images`, float32 (batch, height, width, channels) of raw pixels 0-255, to a
        dictionary of `logits` and `probabilities`, float32 (batch, classes).

    Raises:
        InputError: the model does not return logits, is channels first or not float32, or
            the normalization does not fit its input.
    """
    if keras.backend.backend() != "tensorflow":
        raise InputError(f"export needs KERAS_BACKEND=tensorflow; it is {keras.backend.backend()!r}")
    _check_network(model)
    _check_normalization(normalization, model.input_shape[1:])
    scale, offset = normalization.as_scale_and_offset()
    with channels_last_float32(), recursion_limit():
        images = keras.Input(model.input_shape[1:], name=INPUT, dtype="float32")
        # Keras annotates numbers, and takes lists.
        normalize = keras.layers.Rescaling(scale, cast(Any, offset), name="normalization")
        logits = model(normalize(images))
        probabilities = keras.layers.Activation(activation, name=PROBABILITIES)(logits)
        return keras.Model(images, {LOGITS: logits, PROBABILITIES: probabilities}, name=model.name)


def activation_of(model: keras.Model) -> Activation:
    """The function from logits to probabilities of a model made by `serving_model`."""
    layer = cast(keras.layers.Activation, model.get_layer(PROBABILITIES))
    return "sigmoid" if layer.activation is keras.activations.sigmoid else "softmax"


def serving_function(model: keras.Model):
    """The serving model as a `tf.function` with the artifacts' input signature."""
    import tensorflow as tf

    signature = [tf.TensorSpec(model.input_shape, tf.float32, name=INPUT)]

    @tf.function(input_signature=signature, autograph=False)
    def serve(images):
        with recursion_limit():
            return model(images, training=False)

    return serve


@contextlib.contextmanager
def channels_last_float32() -> Iterator[None]:
    """Builds the layers inside the block channels last and in float32, unless they say otherwise."""
    data_format, policy = keras.config.image_data_format(), keras.config.dtype_policy()
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_image_data_format(data_format)
        keras.config.set_dtype_policy(policy)


def _check_network(model: keras.Model) -> None:
    needs = f"export needs a network from images to logits; {model.name!r}"
    if isinstance(model.output, dict):
        names = ", ".join(model.output)
        raise InputError(f"{needs} gives the features {names}; build it without features_only")
    if len(model.input_shape) != 4 or len(model.output_shape) != 2:
        raise InputError(f"{needs} goes from {model.input_shape} to {model.output_shape}")
    last = layer_calls(model.outputs)[-1].layer
    activation = getattr(last, "activation", None)
    if activation not in (None, keras.activations.linear):
        name = getattr(activation, "__name__", repr(activation))
        hint = "give that layer no activation, or a softmax or sigmoid of Keras"
        if name in ("softmax", "sigmoid"):
            hint = "build with classifier_activation=None, or use export_model"
        raise InputError(
            f"export needs logits, but layer {last.name!r} of {model.name!r} ends in {name!r}; {hint}"
        )
    for layer in model.layers:
        # Only convolutions tell: option A pads channels with a "channels first" padding layer.
        if isinstance(layer, keras.layers.Conv2D) and layer.data_format == "channels_first":
            raise InputError(f"layer {layer.name!r} is channels first; export needs channels last")
        if layer.compute_dtype != "float32":
            raise InputError(f"layer {layer.name!r} computes in {layer.compute_dtype}; export needs float32")


def _check_normalization(normalization: Normalization, image_shape: tuple) -> None:
    # `Normalization` has checked that they are finite, and that the std is positive.
    for name in ("mean", "std"):
        shape = np.shape(getattr(normalization, name))
        sizes = zip(shape[::-1], image_shape[::-1], strict=False)
        if len(shape) > 3 or any(size not in (1, expected) for size, expected in sizes):
            raise InputError(f"the normalization's {name} of shape {shape} does not fit images {image_shape}")
