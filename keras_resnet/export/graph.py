"""A Keras network as a list of typed nodes, with batch normalization folded into the convolutions.

All exporters write this list, so they agree on what the network computes. A layer that has no type of node
becomes a `KerasLayer`, which is computed by Keras' own code.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import keras
import numpy as np

from keras_resnet.export.serving import LOGITS, PROBABILITIES, Activation
from keras_resnet.models.graph import LayerCall, is_functional, layer_calls, tensor_key

Padding = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right))
NO_PADDING: Padding = ((0, 0), (0, 0))

# Layers that return their inputs at inference.
_IDENTITIES = (
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.RandomBrightness,
    keras.layers.RandomContrast,
    keras.layers.RandomFlip,
    keras.layers.RandomRotation,
    keras.layers.RandomTranslation,
    keras.layers.RandomZoom,
    keras.layers.SpatialDropout2D,
)


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation on tensors (batch, height, width, channels); (batch, n) after `Mean`, `Max` or `Flatten`.

    `name` is unique in the graph; `inputs` names the nodes whose tensors it takes.
    """

    name: str
    inputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Input(Node):
    """The images; `shape` is (height, width, channels), None where any size fits."""

    shape: tuple[int | None, int | None, int]


@dataclasses.dataclass(frozen=True)
class Affine(Node):
    """`x * scale + offset`; float32 arrays that broadcast against the tensor."""

    scale: np.ndarray
    offset: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dense(Node):
    """A matrix product; `kernel` float32 (in, out), `bias` float32 (out,)."""

    kernel: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class Conv(Dense):
    """A convolution with zero padding; `kernel` (rows, columns, channels in / groups, channels out)."""

    strides: tuple[int, int]
    dilations: tuple[int, int]
    padding: Padding
    groups: int
    fixed_size: bool = False  # whether the padding depends on the size of the images

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel is computed from one input channel."""
        return self.groups > 1 and self.kernel.shape[2] == 1


@dataclasses.dataclass(frozen=True)
class Relu(Node):
    """The maximum of 0 and a tensor, or `limit` where that is less."""

    limit: float | None = None


class Softmax(Node):
    """The softmax over the last axis."""


class Sigmoid(Node):
    """The logistic function."""


class Add(Node):
    """The sum of two tensors."""


class Concat(Node):
    """Several tensors joined along the channels."""


class Mean(Node):
    """The mean over height and width."""


class Max(Node):
    """The maximum over height and width."""


class Flatten(Node):
    """Height, width and channels in one axis, in this order."""


@dataclasses.dataclass(frozen=True)
class GroupNorm(Node):
    """Normalizes groups of channels over height, width and group, then `x * scale + offset`.

    `scale` and `offset` are float32 (channels,).
    """

    groups: int
    epsilon: float
    scale: np.ndarray
    offset: np.ndarray


@dataclasses.dataclass(frozen=True)
class Upsample(Node):
    """Each pixel several times; `size` are the repetitions of rows and columns."""

    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class MaxPool(Node):
    """The maximum of windows; only non-negative tensors are padded, with zeros."""

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: Padding
    fixed_size: bool = False  # whether the padding depends on the size of the images


@dataclasses.dataclass(frozen=True)
class AveragePool(Node):
    """The mean of windows; with `same` they extend over the edges and average what is inside."""

    size: tuple[int, int]
    strides: tuple[int, int]
    same: bool


@dataclasses.dataclass(frozen=True)
class Pad(Node):
    """Zeros around height and width, or for more channels (before, after)."""

    padding: Padding = NO_PADDING
    channels: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class KerasLayer(Node):
    """A call that Keras' own code computes; `output` is the index of its output that the node stands for."""

    call: LayerCall
    output: int


@dataclasses.dataclass(frozen=True)
class Graph:
    """A folded network.

    Attributes:
        name: name of the Keras model.
        nodes: each after those that it takes its inputs from; the first is the only `Input`.
        outputs: the artifacts' output names to the nodes that compute them.
        features: name of the node whose tensor (batch, n) the last dense layer takes; without such a layer,
            of the node that computes the logits.
        classes: width of the logits.
    """

    name: str
    nodes: tuple[Node, ...]
    outputs: dict[str, str]
    features: str
    classes: int

    @property
    def input_shape(self) -> tuple[int | None, int | None, int]:
        """(height, width, channels)."""
        (images,) = (node for node in self.nodes if isinstance(node, Input))
        return images.shape

    @property
    def activation(self) -> Activation:
        """The function from logits to probabilities."""
        (node,) = (node for node in self.nodes if node.name == self.outputs[PROBABILITIES])
        return "sigmoid" if isinstance(node, Sigmoid) else "softmax"

    @property
    def keras_layers(self) -> tuple[str, ...]:
        """The layers that Keras' own code computes, such as "norm (LayerNormalization)"."""
        layers = [node.call.layer for node in self.nodes if isinstance(node, KerasLayer)]
        return tuple(dict.fromkeys(f"{layer.name} ({type(layer).__name__})" for layer in layers))


def fold(model: keras.Model | Graph) -> Graph:
    """Reads a model made by `serving_model`; returns a graph as it is."""
    if isinstance(model, Graph):
        return model
    tensors = cast(dict[str, keras.KerasTensor], model.output)
    nodes, outputs = fold_layers(model.inputs[0], tensors)
    (classifier,) = (node for node in nodes if node.name == outputs[LOGITS])
    features = classifier.inputs[0] if type(classifier) is Dense else classifier.name
    return Graph(model.name, nodes, outputs, features, int(tensors[LOGITS].shape[-1]))


def fold_layers(
    images: keras.KerasTensor, tensors: Mapping[str, keras.KerasTensor]
) -> tuple[tuple[Node, ...], dict[str, str]]:
    """Reads the layers between an input and named tensors.

    Returns:
        The nodes, each after its inputs, and for each name the node that computes its tensor.
    """
    reader = _Reader()
    shape = tuple(images.shape[1:])
    reader.names[tensor_key(images)] = reader.add(Input, images.name, (), shape=shape)
    reader.read(tensors.values())
    outputs = {name: reader.names[tensor_key(tensor)] for name, tensor in tensors.items()}
    return _without_unused(reader.nodes, outputs.values()), outputs


def is_identity(layer: keras.Operation) -> bool:
    """Whether a layer of Keras returns its inputs at inference."""
    is_linear = isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    return is_keras_own(layer) and (is_linear or isinstance(layer, _IDENTITIES))


def is_keras_own(layer: keras.Operation) -> bool:
    """Whether the class is Keras' or ours: a class that is derived from one may compute something else."""
    return type(layer).__module__.split(".")[0] in ("keras", "keras_resnet")


class _HasNoNode(Exception):
    """A layer cannot be expressed by nodes."""


class _Reader:
    """Turns layer calls into nodes.

    Attributes:
        nodes: the nodes so far, by name.
        names: of the nodes that compute Keras' tensors.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.names: dict[tuple, str] = {}
        self._uses: collections.Counter[tuple] = collections.Counter()  # how many calls use a tensor
        self._shared: set[str] = set()  # nodes whose tensor several calls use
        self._weights: dict[int, dict[str, np.ndarray]] = {}

    def add(self, kind: type[Node], name: str, inputs: tuple[str, ...], **fields) -> str:
        while name in self.nodes:
            name += "_"
        self.nodes[name] = kind(name, inputs, **fields)
        return name

    def read(self, outputs: Iterable[keras.KerasTensor]) -> None:
        """Adds the nodes that `outputs` depend on."""
        calls = layer_calls(outputs)
        self._uses.update(tensor_key(tensor) for call in calls for tensor in call.inputs)
        for call in calls:
            if isinstance(call.layer, keras.layers.InputLayer):
                continue
            keys = [tensor_key(tensor) for tensor in call.inputs]
            inputs = tuple(self.names[key] for key in keys)
            # By node: tensors before and after a layer that changes nothing are the same.
            self._shared.update(name for key, name in zip(keys, inputs, strict=True) if self._uses[key] > 1)
            for tensor, name in zip(call.outputs, self._call(call, inputs), strict=True):
                self.names[tensor_key(tensor)] = name

    def _call(self, call: LayerCall, inputs: tuple[str, ...]) -> list[str]:
        """Adds the nodes of a call; returns the names of those that compute its outputs."""
        if is_functional(call.layer):
            model = cast(keras.Model, call.layer)
            for inner, name in zip(model.inputs, inputs, strict=True):
                self.names[tensor_key(inner)] = name
            self.read(model.outputs)
            return [self.names[tensor_key(tensor)] for tensor in model.outputs]
        if is_identity(call.layer):
            return list(inputs)
        try:
            return [self._layer(call, inputs)]
        except _HasNoNode:
            name = call.layer.name
            return [
                self.add(KerasLayer, name, inputs, call=call, output=index)
                for index in range(len(call.outputs))
            ]

    def _layer(self, call: LayerCall, inputs: tuple[str, ...]) -> str:
        """Adds the nodes of a layer with one output."""
        layer, name, layers = cast(keras.layers.Layer, call.layer), call.layer.name, keras.layers
        if not is_keras_own(layer):
            raise _HasNoNode
        if isinstance(layer, layers.ZeroPadding2D):
            return self._zero_padding(layer, inputs[0])
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise _HasNoNode
        x, rank = inputs[0], len(call.inputs[0].shape)
        match layer:
            case layers.Rescaling():
                return self._affine(name, x, layer.scale, layer.offset)
            case layers.Normalization() if not layer.invert:
                return self._normalization(layer, x)
            case layers.BatchNormalization() if layer.axis in (-1, rank - 1):
                return self._batch_normalization(layer, x)
            case layers.GroupNormalization() if rank == 4 and _has_scale_and_offset(layer):
                sizes = {"groups": layer.groups, "epsilon": layer.epsilon}
                return self.add(GroupNorm, name, inputs, **sizes, **self._weights_of(layer))
            case layers.Conv2D() | layers.DepthwiseConv2D():
                return self._activation(layer, self._convolution(call, x))
            case layers.Dense() if rank == 2:
                return self._activation(layer, self.add(Dense, name, inputs, **self._weights_of(layer)))
            case layers.Activation():
                return self._activation(layer, x)
            case layers.ReLU() if layer.negative_slope == layer.threshold == 0:
                return self.add(Relu, name, inputs, limit=layer.max_value)
            case layers.MaxPooling2D():
                return self._max_pool(call, x)
            case layers.AveragePooling2D():
                size, strides, same = tuple(layer.pool_size), tuple(layer.strides), layer.padding == "same"
                return self.add(AveragePool, name, inputs, size=size, strides=strides, same=same)
            case layers.Add() if len(inputs) == 2:
                return self.add(Add, name, inputs)
            case layers.Concatenate() if layer.axis in (-1, rank - 1):
                return self.add(Concat, name, inputs)
            case layers.GlobalAveragePooling2D() | layers.GlobalMaxPooling2D() if not layer.keepdims:
                kind = Mean if isinstance(layer, layers.GlobalAveragePooling2D) else Max
                return self.add(kind, name, inputs)
            case layers.Softmax() if layer.axis in (-1, rank - 1):
                return self.add(Softmax, name, inputs)
            case layers.Flatten():
                return x if rank == 2 else self.add(Flatten, name, inputs)
            case layers.UpSampling2D() if layer.interpolation == "nearest":
                return self.add(Upsample, name, inputs, size=tuple(layer.size))
        raise _HasNoNode

    def _weights_of(self, layer) -> dict[str, np.ndarray]:
        """The same arrays at each call of a layer."""
        if id(layer) not in self._weights:
            self._weights[id(layer)] = _weights(layer)
        return self._weights[id(layer)]

    def _affine(self, name: str, x: str, scale, offset) -> str:
        scale, offset = (np.asarray(value, "float32") for value in (scale, offset))
        return self.add(Affine, name, (x,), scale=scale, offset=offset)

    def _normalization(self, layer, x: str) -> str:
        mean, variance = (np.asarray(value, "float64") for value in (layer.mean, layer.variance))
        scale = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
        # Their first axis is that of the batch.
        return self._affine(layer.name, x, *(array[0] for array in (scale, -mean * scale)))

    def _batch_normalization(self, layer, x: str) -> str:
        mean, variance = (v.numpy().astype("float64") for v in (layer.moving_mean, layer.moving_variance))
        scale = 1 / np.sqrt(variance + layer.epsilon)
        if layer.scale:
            scale *= layer.gamma.numpy()
        offset = -mean * scale
        if layer.center:
            offset += layer.beta.numpy()
        before = self.nodes[x]
        if x in self._shared or not isinstance(before, Conv):
            return self._affine(layer.name, x, scale, offset)
        kernel, bias = (
            (before.kernel * scale).astype("float32"),
            (before.bias * scale + offset).astype("float32"),
        )
        self.nodes[x] = dataclasses.replace(before, kernel=kernel, bias=bias)
        return x

    def _convolution(self, call: LayerCall, x: str) -> str:
        layer = cast(keras.layers.Conv2D, call.layer)
        x, padding = self._unpadded(x)
        fixed_size = False
        if layer.padding == "same":
            same, fixed_size = _same_padding(call, layer.kernel_size, layer.dilation_rate)
            padding = _sum(padding, same)
        elif layer.padding != "valid":
            raise _HasNoNode
        is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        return self.add(
            Conv,
            layer.name,
            (x,),
            **self._weights_of(layer),
            strides=tuple(layer.strides),
            dilations=tuple(layer.dilation_rate),
            padding=padding,
            groups=call.inputs[0].shape[-1] if is_depthwise else layer.groups,
            fixed_size=fixed_size,
        )

    def _unpadded(self, x: str) -> tuple[str, Padding]:
        """Returns the input and the padding of a `Pad` of height and width, or `x` and none."""
        before = self.nodes[x]
        if isinstance(before, Pad) and before.channels == (0, 0):
            return before.inputs[0], before.padding
        return x, NO_PADDING

    def _activation(self, layer, x: str) -> str:
        kinds = {
            keras.activations.relu: (Relu, "relu", {}),
            keras.activations.relu6: (Relu, "relu6", {"limit": 6.0}),
            keras.activations.softmax: (Softmax, "softmax", {}),
            keras.activations.sigmoid: (Sigmoid, "sigmoid", {}),
        }
        if layer.activation in (None, keras.activations.linear):
            return x
        if layer.activation not in kinds:
            raise _HasNoNode
        kind, suffix, fields = kinds[layer.activation]
        name = layer.name if isinstance(layer, keras.layers.Activation) else f"{layer.name}_{suffix}"
        return self.add(kind, name, (x,), **fields)

    def _zero_padding(self, layer, x: str) -> str:
        if layer.data_format == "channels_last":
            return self.add(Pad, layer.name, (x,), padding=tuple(map(tuple, layer.padding)))
        # Read with the other data format, "width" is the channel axis: option A, see blocks.shortcut.
        (top, bottom), channels = layer.padding
        if top or bottom:
            raise _HasNoNode
        return self.add(Pad, layer.name, (x,), channels=tuple(channels))

    def _max_pool(self, call: LayerCall, x: str) -> str:
        layer = cast(keras.layers.MaxPooling2D, call.layer)
        inner, padding = self._unpadded(x)
        # After a ReLU, zeros pad a maximum as well as minus infinity does.
        if not isinstance(self.nodes[inner], Relu):
            inner, padding = x, NO_PADDING
        fixed_size = False
        if layer.padding == "same":
            same, fixed_size = _same_padding(call, layer.pool_size, (1, 1))
            if same != NO_PADDING and not isinstance(self.nodes[inner], Relu):
                raise _HasNoNode
            padding = _sum(padding, same)
        size, strides = tuple(layer.pool_size), tuple(layer.strides)
        fields = {"size": size, "strides": strides, "padding": padding, "fixed_size": fixed_size}
        return self.add(MaxPool, layer.name, (inner,), **fields)


def _same_padding(call: LayerCall, window: Iterable[int], dilations: Iterable[int]) -> tuple[Padding, bool]:
    """Returns the padding of a layer with `padding="same"`, and whether it depends on the image size."""
    strides, sizes = cast(keras.layers.Conv2D, call.layer).strides, call.inputs[0].shape[1:3]
    sides, fixed_size = [], False
    for length, rate, stride, size in zip(window, dilations, strides, sizes, strict=True):
        total = span = (length - 1) * rate
        if span and stride > 1:
            if size is None:
                raise _HasNoNode
            fixed_size = True
            total = max((math.ceil(size / stride) - 1) * stride + span + 1 - size, 0)
        sides.append((total // 2, total - total // 2))
    return (sides[0], sides[1]), fixed_size


def _sum(first: Padding, second: Padding) -> Padding:
    rows, columns = ((a + c, b + d) for (a, b), (c, d) in zip(first, second, strict=True))
    return rows, columns


def _has_scale_and_offset(layer: keras.layers.GroupNormalization) -> bool:
    return layer.axis in (-1, 3) and layer.scale and layer.center


def _weights(layer: Any) -> dict[str, np.ndarray]:
    if isinstance(layer, keras.layers.GroupNormalization):
        weights = {"scale": layer.gamma, "offset": layer.beta}
        return {name: cast(Any, weight).numpy() for name, weight in weights.items()}
    kernel = layer.kernel.numpy().astype("float32")
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        kernel = kernel.reshape((*kernel.shape[:2], 1, -1))
    bias = np.zeros(kernel.shape[-1], "float32")
    if layer.use_bias:
        bias = cast(Any, layer).bias.numpy().astype("float32")
    return {"kernel": kernel, "bias": bias}


def _without_unused(nodes: dict[str, Node], outputs: Iterable[str]) -> tuple[Node, ...]:
    needed = set(outputs)
    for name in reversed(nodes):
        if name in needed:
            needed.update(nodes[name].inputs)
    return tuple(node for name, node in nodes.items() if name in needed)
