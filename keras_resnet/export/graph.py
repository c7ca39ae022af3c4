"""A Keras network as a list of typed nodes, with batch normalization folded into the convolutions.

All exporters write this list, so they agree on what the network computes, and no artifact contains Keras'
own graph.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import cast

import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.models.graph import layer_calls, tensor_key

Padding = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right))
NO_PADDING: Padding = ((0, 0), (0, 0))


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation on tensors (batch, height, width, channels); (batch, n) after `Mean` or `Flatten`.

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


class Relu(Node):
    """The maximum of 0 and a tensor."""


class Softmax(Node):
    """The softmax over the last axis."""


class Add(Node):
    """The sum of two tensors."""


class Mean(Node):
    """The mean over height and width."""


class Flatten(Node):
    """Height, width and channels in one axis, in this order; only detectors have it."""


@dataclasses.dataclass(frozen=True)
class GroupNorm(Node):
    """Normalizes groups of channels over height, width and group, then `x * scale + offset`.

    `scale` and `offset` are float32 (channels,). Only detectors have it.
    """

    groups: int
    epsilon: float
    scale: np.ndarray
    offset: np.ndarray


@dataclasses.dataclass(frozen=True)
class Upsample(Node):
    """Each pixel several times; `size` are the repetitions of rows and columns. Only detectors have it."""

    size: tuple[int, int]


_OF_DETECTORS: dict[type[Node], str] = {
    Flatten: "Flatten",
    GroupNorm: "GroupNormalization",
    Upsample: "UpSampling2D",
}
"""The nodes that only detectors have, and the Keras layers they are read from."""


@dataclasses.dataclass(frozen=True)
class MaxPool(Node):
    """The maximum of windows; only non-negative tensors are padded, with zeros."""

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: Padding


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
class Graph:
    """A folded network.

    Attributes:
        name: name of the Keras model.
        nodes: each after those that it takes its inputs from; the first is the only `Input`.
        outputs: the artifacts' output names to the nodes that compute them.
        features: name of the node that pools the last feature map for the classifier.
    """

    name: str
    nodes: tuple[Node, ...]
    outputs: dict[str, str]
    features: str

    @property
    def input_shape(self) -> tuple[int | None, int | None, int]:
        """(height, width, channels)."""
        (images,) = (node for node in self.nodes if isinstance(node, Input))
        return images.shape

    @property
    def classes(self) -> int:
        """Width of the logits."""
        return next(node for node in reversed(self.nodes) if type(node) is Dense).bias.size


def fold(model: keras.Model | Graph) -> Graph:
    """Reads a model made by `serving_model`; returns a graph as it is.

    Raises:
        InputError: a layer that the exporters do not support.
    """
    if isinstance(model, Graph):
        return model
    tensors = cast(dict[str, keras.KerasTensor], model.output)
    nodes, outputs = fold_layers(model.inputs[0], tensors)
    for node in nodes:
        if type(node) in _OF_DETECTORS:
            raise _unknown(node.name, _OF_DETECTORS[type(node)])
    means = [node.name for node in nodes if isinstance(node, Mean)]
    if len(means) != 1:
        raise InputError(f"export needs one global average pooling; {model.name!r} has {len(means)}")
    return Graph(model.name, nodes, outputs, means[0])


def fold_layers(
    images: keras.KerasTensor, tensors: Mapping[str, keras.KerasTensor]
) -> tuple[tuple[Node, ...], dict[str, str]]:
    """Reads the layers between an input and named tensors.

    Returns:
        The nodes, each after its inputs, and for each name the node that computes its tensor.

    Raises:
        InputError: a layer that the exporters do not support.
    """
    reader = _Reader()
    shape = tuple(images.shape[1:])
    reader.names[tensor_key(images)] = reader.add(Input, images.name, (), shape=shape)
    reader.read(tensors.values())
    outputs = {name: reader.names[tensor_key(tensor)] for name, tensor in tensors.items()}
    return _without_unused(reader.nodes, outputs.values()), outputs


def _unknown(name: str, kind: str) -> InputError:
    return InputError(f"export does not know layers like {name!r}, a {kind}")


class _Reader:
    """Turns layer calls into nodes.

    Attributes:
        nodes: the nodes so far, by name.
        names: of the nodes that compute Keras' tensors.
        uses: how many calls use a tensor.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.names: dict[tuple, str] = {}
        self.uses: collections.Counter[tuple] = collections.Counter()
        self._weights: dict[int, dict[str, np.ndarray]] = {}

    def add(self, kind: type[Node], name: str, inputs: tuple[str, ...], **fields) -> str:
        while name in self.nodes:
            name += "_"
        self.nodes[name] = kind(name, inputs, **fields)
        return name

    def read(self, outputs: Iterable[keras.KerasTensor]) -> None:
        """Adds the nodes that `outputs` depend on."""
        calls = layer_calls(outputs)
        self.uses.update(tensor_key(tensor) for call in calls for tensor in call.inputs)
        for call in calls:
            if isinstance(call.layer, keras.layers.InputLayer):
                continue
            inputs = tuple(self.names[tensor_key(tensor)] for tensor in call.inputs)
            (output,) = call.outputs
            if isinstance(call.layer, keras.Model):
                for inner, name in zip(call.layer.inputs, inputs, strict=True):
                    self.names[tensor_key(inner)] = name
                (result,) = call.layer.outputs
                self.read([result])
                self.names[tensor_key(output)] = self.names[tensor_key(result)]
            else:
                shared = self.uses[tensor_key(call.inputs[0])] > 1
                self.names[tensor_key(output)] = self._layer(call.layer, inputs, shared)

    def _layer(self, layer, inputs: tuple[str, ...], shared: bool) -> str:
        """Adds the nodes of a layer; `shared` tells whether other layers use its first input, too."""
        name, x = layer.name, inputs[0]
        layers = keras.layers
        match layer:
            case layers.Rescaling():
                return self._affine(name, x, layer.scale, layer.offset)
            case layers.BatchNormalization():
                return self._batch_normalization(layer, x, shared)
            case layers.GroupNormalization() if layer.scale and layer.center:
                sizes = {"groups": layer.groups, "epsilon": layer.epsilon}
                return self.add(GroupNorm, name, inputs, **sizes, **self._weights_of(layer))
            case layers.Conv2D():
                return self._activation(layer, self._convolution(layer, x))
            case layers.Dense():
                return self._activation(layer, self.add(Dense, name, inputs, **self._weights_of(layer)))
            case layers.Activation():
                return self._activation(layer, x)
            case layers.ZeroPadding2D():
                return self._zero_padding(layer, x)
            case layers.MaxPooling2D():
                return self._max_pool(layer, x)
            case layers.AveragePooling2D():
                size, strides, same = tuple(layer.pool_size), tuple(layer.strides), layer.padding == "same"
                return self.add(AveragePool, name, inputs, size=size, strides=strides, same=same)
            case layers.Add():
                if len(inputs) != 2:
                    raise InputError(f"layer {name!r} adds {len(inputs)} tensors; export adds two")
                return self.add(Add, name, inputs)
            case layers.GlobalAveragePooling2D():
                return self.add(Mean, name, inputs)
            case layers.Softmax():
                return self.add(Softmax, name, inputs)
            case layers.Flatten():
                return self.add(Flatten, name, inputs)
            case layers.UpSampling2D() if layer.interpolation == "nearest":
                return self.add(Upsample, name, inputs, size=tuple(layer.size))
            case layers.Dropout():
                return x
        raise _unknown(name, type(layer).__name__)

    def _weights_of(self, layer) -> dict[str, np.ndarray]:
        """The same arrays at each call of a layer."""
        if id(layer) not in self._weights:
            self._weights[id(layer)] = _weights(layer)
        return self._weights[id(layer)]

    def _affine(self, name: str, x: str, scale, offset) -> str:
        scale, offset = (np.asarray(value, "float32") for value in (scale, offset))
        return self.add(Affine, name, (x,), scale=scale, offset=offset)

    def _batch_normalization(self, layer, x: str, shared: bool) -> str:
        mean, variance = (v.numpy().astype("float64") for v in (layer.moving_mean, layer.moving_variance))
        scale = 1 / np.sqrt(variance + layer.epsilon)
        if layer.scale:
            scale *= layer.gamma.numpy()
        offset = -mean * scale
        if layer.center:
            offset += layer.beta.numpy()
        before = self.nodes[x]
        if shared or not isinstance(before, Conv):
            return self._affine(layer.name, x, scale, offset)
        kernel, bias = (
            (before.kernel * scale).astype("float32"),
            (before.bias * scale + offset).astype("float32"),
        )
        self.nodes[x] = dataclasses.replace(before, kernel=kernel, bias=bias)
        return x

    def _convolution(self, layer, x: str) -> str:
        if layer.data_format != "channels_last":
            raise InputError(f"layer {layer.name!r} is channels first; export needs channels last")
        x, padding = self._unpadded(x)
        if layer.padding == "same":
            spans = [(n - 1) * rate for n, rate in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
            if any(span and stride > 1 for span, stride in zip(spans, layer.strides, strict=True)):
                raise InputError(f"layer {layer.name!r} pads unevenly; use ZeroPadding2D before a stride")
            sides = zip(padding, spans, strict=True)
            padding = tuple((a + span // 2, b + span - span // 2) for (a, b), span in sides)
        return self.add(
            Conv,
            layer.name,
            (x,),
            **self._weights_of(layer),
            strides=tuple(layer.strides),
            dilations=tuple(layer.dilation_rate),
            padding=padding,
            groups=layer.groups,
        )

    def _unpadded(self, x: str) -> tuple[str, Padding]:
        """Returns the input and the padding of a `Pad` of height and width, or `x` and none."""
        before = self.nodes[x]
        if isinstance(before, Pad) and before.channels == (0, 0):
            return before.inputs[0], before.padding
        return x, NO_PADDING

    def _activation(self, layer, x: str) -> str:
        activation = keras.activations.serialize(layer.activation)
        if activation == "linear":
            return x
        kinds = {"relu": Relu, "softmax": Softmax}
        if activation not in kinds:
            raise InputError(f"export does not know the activation {activation!r} of layer {layer.name!r}")
        name = layer.name if isinstance(layer, keras.layers.Activation) else f"{layer.name}_{activation}"
        return self.add(kinds[activation], name, (x,))

    def _zero_padding(self, layer, x: str) -> str:
        if layer.data_format == "channels_last":
            return self.add(Pad, layer.name, (x,), padding=tuple(map(tuple, layer.padding)))
        # Read with the other data format, "width" is the channel axis: option A, see blocks.shortcut.
        (top, bottom), channels = layer.padding
        if top or bottom:
            raise InputError(f"layer {layer.name!r} pads another axis than height, width or channels")
        return self.add(Pad, layer.name, (x,), channels=tuple(channels))

    def _max_pool(self, layer, x: str) -> str:
        if layer.padding != "valid":
            raise InputError(f"layer {layer.name!r} pads; use ZeroPadding2D before it")
        inner, padding = self._unpadded(x)
        # After a ReLU, zeros pad a maximum as well as minus infinity does.
        if not isinstance(self.nodes[inner], Relu):
            inner, padding = x, NO_PADDING
        size, strides = tuple(layer.pool_size), tuple(layer.strides)
        return self.add(MaxPool, layer.name, (inner,), size=size, strides=strides, padding=padding)


def _weights(layer) -> dict[str, np.ndarray]:
    if isinstance(layer, keras.layers.GroupNormalization):
        return {"scale": layer.gamma.numpy(), "offset": layer.beta.numpy()}
    kernel = layer.kernel.numpy().astype("float32")
    bias = layer.bias.numpy().astype("float32") if layer.use_bias else np.zeros(kernel.shape[-1], "float32")
    return {"kernel": kernel, "bias": bias}


def _without_unused(nodes: dict[str, Node], outputs: Iterable[str]) -> tuple[Node, ...]:
    needed = set(outputs)
    for name in reversed(nodes):
        if name in needed:
            needed.update(nodes[name].inputs)
    return tuple(node for name, node in nodes.items() if name in needed)
