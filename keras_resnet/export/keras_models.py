"""Keras classifiers of any origin, rebuilt as networks that the exporters take."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import keras
import numpy as np

from keras_resnet.errors import InputError, one_line
from keras_resnet.export.graph import is_identity, is_keras_own
from keras_resnet.export.serving import (
    INPUT,
    LOGITS,
    PROBABILITIES,
    Activation,
    channels_last_float32,
)
from keras_resnet.models.graph import LayerCall, is_functional, layer_calls, recursion_limit, tensor_key
from keras_resnet.weights import ModelSpec

_SERVING_LAYERS = (INPUT, LOGITS, PROBABILITIES, "normalization")  # names that the network may not have
_COPY_TOLERANCE = 1e-3

_Path = tuple[tuple[int, int, int], ...]


class KerasModelSpec(ModelSpec):
    """A classifier that is not a network of the zoo: it has no `config`."""


def to_logits(model: keras.Model, sample: np.ndarray) -> tuple[keras.Model, Activation]:
    """Rebuilds a classifier as a flat functional model in float32 that returns logits.

    Nested models are dissolved, and a softmax or sigmoid at the end is left out. The weights are copied; the
    model itself is not changed.

    Args:
        model: one input, images channels last; one output (batch, classes).
        sample: images as the model takes them, float32 (n, height, width, channels). They determine the input
            shape, and a model in float32 must give the same outputs for them after the rebuild.

    Returns:
        The network, and the function from its logits to probabilities. A model without a softmax or sigmoid
        at its end returns logits, of a softmax or, if it has a single class, of a sigmoid.

    Raises:
        InputError: the model has other inputs or outputs, or a layer that cannot be rebuilt, or it returns
            probabilities that are not those of a softmax or sigmoid of Keras.
    """
    _check_ends(model, sample.shape[1:])
    path, activation = _ending(model)
    rebuilder = _Rebuilder()
    with channels_last_float32(), recursion_limit():
        images = keras.Input(sample.shape[1:], name=INPUT)
        tensors = {tensor_key(model.inputs[0]): images}
        (logits,) = rebuilder.call(model.outputs, tensors, path if activation else ())
        name = f"{model.name}_" if model.name in _SERVING_LAYERS else model.name
        network = keras.Model(images, logits, name=name)
    rebuilder.copy_weights()
    if rebuilder.is_float32:
        _check_same_outputs(model, network, activation, sample)
    if activation is None:
        _check_logits(network, sample)
    return network, activation or ("softmax" if network.output_shape[-1] > 1 else "sigmoid")


class _Rebuilder:
    """Calls copies of a model's layers, in float32, without the softmax or sigmoid at its end.

    Attributes:
        is_float32: whether all layers so far computed in float32 before.
    """

    def __init__(self) -> None:
        self.is_float32 = True
        # A layer that computes the end and is called elsewhere, too, has a copy for each.
        self._copies: dict[tuple[int, bool], tuple[keras.layers.Layer, keras.layers.Layer]] = {}
        self._names = {INPUT}

    def call(
        self, outputs: Iterable[keras.KerasTensor], tensors: Mapping[tuple, Any], path: _Path = ()
    ) -> list:
        """Repeats the calls that `outputs` depend on.

        Args:
            tensors: the new inputs, by the keys of the old ones.
            path: the call whose softmax or sigmoid is left out; see `_ending`.

        Returns:
            The tensors in place of `outputs`.
        """
        tensors, outputs = dict(tensors), list(outputs)
        for call in layer_calls(outputs):
            if isinstance(call.layer, keras.layers.InputLayer):
                continue
            inputs = [tensors[tensor_key(tensor)] for tensor in call.inputs]
            is_end = path[:1] == (tensor_key(call.outputs[0]),)
            if is_functional(call.layer):
                inner = cast(keras.Model, call.layer)
                given = dict(zip(map(tensor_key, inner.inputs), inputs, strict=True))
                results = self.call(inner.outputs, given, path[1:] if is_end else ())
            elif is_end and not _has_weights(call.layer):
                results = inputs
            else:
                results = call.repeat(inputs, self._copy(call.layer, is_end))
            tensors.update(zip(map(tensor_key, call.outputs), results, strict=True))
        return [tensors[tensor_key(tensor)] for tensor in outputs]

    def copy_weights(self) -> None:
        """Copies the weights of all layers that were called."""
        for layer, copy in self._copies.values():
            try:
                copy.set_weights(layer.get_weights())
            except ValueError as error:
                raise _cannot_rebuild(layer, error) from error
            if isinstance(copy, keras.layers.Normalization):
                copy.finalize_state()

    def _copy(self, operation: keras.Operation, is_end: bool) -> keras.Operation:
        if not isinstance(operation, keras.layers.Layer):
            self._names.add(operation.name)
            return operation  # a function of `keras.ops` has neither weights nor a precision
        key = id(operation), is_end
        if key not in self._copies:
            self.is_float32 &= operation.compute_dtype == "float32"
            self._copies[key] = operation, self._rebuild(operation, is_end)
        return self._copies[key][1]

    def _rebuild(self, layer: keras.layers.Layer, is_end: bool) -> keras.layers.Layer:
        name = layer.name
        # Option A pads channels with a "channels first" padding layer.
        is_padding = isinstance(layer, keras.layers.ZeroPadding2D)
        if getattr(layer, "data_format", None) == "channels_first" and not is_padding:
            raise InputError(f"layer {name!r} is channels first; export needs channels last")
        while name in self._names:
            name += "_"
        self._names.add(name)
        if isinstance(layer, keras.layers.Lambda):  # Keras refuses to make one from a config
            return keras.layers.Lambda(layer.function, arguments=layer.arguments, name=name, dtype="float32")
        try:
            config = cast(dict[str, Any], _in_float32(layer.get_config()))
            changes = {"name": name, "dtype": "float32"}
            if hasattr(layer, "activation"):  # as it is, because a function of the user's has no config
                changes["activation"] = None if is_end else cast(Any, layer).activation
            return type(layer).from_config(
                config | {key: value for key, value in changes.items() if key in config}
            )
        except (TypeError, ValueError, NotImplementedError) as error:
            raise _cannot_rebuild(layer, error) from error


def _cannot_rebuild(layer: keras.layers.Layer, error: Exception) -> InputError:
    kind = type(layer).__name__
    return InputError(f"layer {layer.name!r}, a {kind}, cannot be rebuilt from its config: {one_line(error)}")


def _in_float32(config: Any) -> Any:
    """Returns a layer's config with float32 in place of every dtype policy."""
    if isinstance(config, dict):
        if "DTypePolicy" in str(config.get("class_name")):
            return "float32"
        return {key: _in_float32(value) for key, value in config.items()}
    return [_in_float32(value) for value in config] if isinstance(config, list) else config


def _has_weights(operation: keras.Operation) -> bool:
    return isinstance(operation, keras.layers.Layer) and bool(operation.weights)


def _check_ends(model: keras.Model, shape: tuple[int, ...]) -> None:
    if not is_functional(model):
        raise InputError(
            f"export needs a functional model or a Sequential one that is built; {model.name!r} is neither"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        counts = f"{len(model.inputs)} and {len(model.outputs)}"
        raise InputError(f"export needs one input and one output; {model.name!r} has {counts}")
    given, result = model.inputs[0].shape, model.outputs[0].shape
    if len(given) != 4 or len(result) != 2 or result[-1] is None:
        raise InputError(
            "export needs a model from images (batch, height, width, channels) to (batch, classes); "
            f"{model.name!r} goes from {given} to {result}"
        )
    if any(size not in (None, expected) for size, expected in zip(given[1:], shape, strict=True)):
        raise InputError(
            f"{model.name!r} takes images of the shape {given[1:]}; the preprocessing gives {shape}"
        )


def _ending(model: keras.Model) -> tuple[_Path, Activation | None]:
    """Returns the call that computes the output, and the activation that it ends in, if any.

    The call is the last one that changes the output, as a path: the keys of the first outputs of the calls of
    nested models, from the outermost, and of the call itself.
    """
    tensor, path = model.outputs[0], []
    around: list[LayerCall] = []  # the calls of the nested models
    while True:
        call = layer_calls([tensor])[-1]
        key = tensor_key(call.outputs[0])
        if is_functional(call.layer):
            path.append(key)
            around.append(call)
            tensor = cast(keras.Model, call.layer).outputs[tensor_key(tensor)[-1]]
        elif isinstance(call.layer, keras.layers.InputLayer) and around:
            path.pop()
            outer = around.pop()
            inner = [tensor_key(each) for each in cast(keras.Model, outer.layer).inputs]
            tensor = outer.inputs[inner.index(tensor_key(tensor))]
        elif is_identity(call.layer) or _keeps_the_classes(call):
            tensor = call.inputs[0]
        else:
            return (*path, key), _activation_of(call)


def _keeps_the_classes(call: LayerCall) -> bool:
    """Whether a call only removes axes of length 1."""
    is_reshape = isinstance(call.layer, keras.layers.Flatten | keras.layers.Reshape)
    return is_reshape and call.inputs[0].shape[-1] == call.outputs[0].shape[-1]


def _activation_of(call: LayerCall) -> Activation | None:
    layer = cast(Any, call.layer)
    if not is_keras_own(layer):
        return None
    function, kind = getattr(layer, "activation", None), type(layer).__name__
    # Layers and functions of `keras.ops` have the same class names.
    if function in (keras.activations.sigmoid, keras.ops.sigmoid) or kind == "Sigmoid":
        return "sigmoid"
    if isinstance(function, keras.layers.Softmax):
        layer, kind = function, "Softmax"
    last = (-1, len(call.outputs[0].shape) - 1)
    is_last_axis = kind == "Softmax" and layer.axis in last
    return "softmax" if function in (keras.activations.softmax, keras.ops.softmax) or is_last_axis else None


def _check_same_outputs(
    model: keras.Model, network: keras.Model, activation: Activation | None, sample: np.ndarray
) -> None:
    """Compares the rebuilt network with the model; raises `InputError` if they differ or it does not run."""
    images = keras.ops.cast(sample, model.inputs[0].dtype)
    with recursion_limit():
        try:
            (expected,) = keras.tree.flatten(model(images, training=False))
        except ValueError as error:  # of Keras, or of a layer of the user's
            raise InputError(f"{model.name!r} does not run on its own images: {one_line(error)}") from error
        found = network(sample, training=False)
    if activation:
        found = getattr(keras.activations, activation)(found)
    expected, found = (np.asarray(keras.ops.convert_to_numpy(values)) for values in (expected, found))
    if not np.isfinite(expected).all():
        return  # the verification reports it
    difference = np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo("float32").tiny)
    if not difference <= _COPY_TOLERANCE:
        raise InputError(
            f"{model.name!r} cannot be rebuilt from the configs and weights of its layers: the outputs "
            f"differ by {difference:.1e} relative; a layer's config is incomplete, or its results are random"
        )


def _check_logits(network: keras.Model, sample: np.ndarray) -> None:
    """Raises `InputError` if a network returns probabilities, of which a second softmax would be wrong."""
    with recursion_limit():
        outputs = np.asarray(keras.ops.convert_to_numpy(network(sample, training=False)))
    if outputs.shape[-1] > 1 and (outputs >= 0).all() and np.allclose(outputs.sum(-1), 1, atol=1e-3):
        raise InputError(
            f"{network.name!r} returns probabilities, but does not end in a softmax or sigmoid of Keras; its "
            "logits are not known"
        )
