"""A Keras network as a list of typed nodes, with batch normalization folded into the convolutions.

All exporters write this list, so they agree on what the network computes, and no artifact contains Keras'
own graph.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import cast

import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.models.graph import layer_calls, tensor_key

Padding = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right))
NO_PADDING: Padding = ((0, 0), (0, 0))


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation on tensors (batch, height, width, channels), or (batch, channels) after `Mean`.

    Attributes:
        name: unique in its graph.
        inputs: names of the nodes that it takes tensors from.
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
    """Zeros around height and width."""

    padding: Padding


@dataclasses.dataclass(frozen=True)
class PadChannels(Node):
    """Zeros for `before` and `after` more channels."""

    before: int
    after: int


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
    """Reads a serving model.

    Args:
        model: a model made by `serving_model`, with one input and a dictionary of outputs; a graph is
            returned as it is.

    Raises:
        InputError: a layer that the exporters do not know.
    """
    if isinstance(model, Graph):
        return model
    reader = _Reader()
    (images,) = model.inputs
    shape = tuple(model.input_shape[1:])
    reader.given[tensor_key(images)] = reader.add(Input, images.name, (), shape=shape)
    tensors = cast(dict[str, keras.KerasTensor], model.output)
    reader.read(tensors.values())
    outputs = {name: reader.given[tensor_key(tensor)] for name, tensor in tensors.items()}
    nodes = _without_unused(reader.nodes, outputs.values())
    means = [node.name for node in nodes if isinstance(node, Mean)]
    if len(means) != 1:
        raise InputError(f"export needs one global average pooling; {model.name!r} has {len(means)}")
    return Graph(model.name, nodes, outputs, means[0])


class _Reader:
    """Turns layer calls into nodes.

    Attributes:
        nodes: the nodes so far, by name.
        given: names of the nodes that compute Keras' tensors.
        uses: how many calls use a tensor.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.given: dict[tuple, str] = {}
        self.uses: collections.Counter[tuple] = collections.Counter()

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
            inputs = [self.given[tensor_key(tensor)] for tensor in call.inputs]
            (output,) = call.outputs
            if isinstance(call.layer, keras.Model):
                for inner, name in zip(call.layer.inputs, inputs, strict=True):
                    self.given[tensor_key(inner)] = name
                (result,) = call.layer.outputs
                self.read([result])
                self.given[tensor_key(output)] = self.given[tensor_key(result)]
            elif isinstance(call.layer, keras.layers.BatchNormalization):
                shared = self.uses[tensor_key(call.inputs[0])] > 1
                self.given[tensor_key(output)] = _batch_normalization(self, call.layer, inputs[0], shared)
            else:
                self.given[tensor_key(output)] = self._layer(call.layer, inputs)

    def _layer(self, layer, inputs: list[str]) -> str:
        for layer_class, convert in _LAYERS:
            if isinstance(layer, layer_class):
                return convert(self, layer, *inputs)
        raise InputError(f"export does not know layers like {layer.name!r}, a {type(layer).__name__}")


def _rescaling(reader, layer, x):
    scale, offset = (np.asarray(value, "float32") for value in (layer.scale, layer.offset))
    return reader.add(Affine, layer.name, (x,), scale=scale, offset=offset)


def _convolution(reader, layer, x):
    if layer.data_format != "channels_last":
        raise InputError(f"layer {layer.name!r} is channels first; export needs channels last")
    padding = NO_PADDING
    if layer.padding == "same":
        spans = [(size - 1) * rate for size, rate in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
        if any(span and stride > 1 for span, stride in zip(spans, layer.strides, strict=True)):
            raise InputError(f"layer {layer.name!r} pads unevenly; use ZeroPadding2D before a stride")
        padding = tuple((span // 2, span - span // 2) for span in spans)
    before = reader.nodes[x]
    if isinstance(before, Pad):
        x, padding = before.inputs[0], _sum_of_paddings(before.padding, padding)
    name = reader.add(
        Conv,
        layer.name,
        (x,),
        **_weights(layer),
        strides=tuple(layer.strides),
        dilations=tuple(layer.dilation_rate),
        padding=padding,
        groups=layer.groups,
    )
    return _activation(reader, layer, name)


def _weights(layer) -> dict[str, np.ndarray]:
    kernel = layer.kernel.numpy().astype("float32")
    bias = layer.bias.numpy().astype("float32") if layer.use_bias else np.zeros(kernel.shape[-1], "float32")
    return {"kernel": kernel, "bias": bias}


def _sum_of_paddings(one, other):
    return tuple(tuple(a + b for a, b in zip(*sides, strict=True)) for sides in zip(one, other, strict=True))


def _batch_normalization(reader, layer, x, shared):
    mean, variance = (v.numpy().astype("float64") for v in (layer.moving_mean, layer.moving_variance))
    scale = 1 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        scale *= layer.gamma.numpy()
    offset = -mean * scale
    if layer.center:
        offset += layer.beta.numpy()
    before = reader.nodes[x]
    if shared or not isinstance(before, Conv):
        fields = {"scale": scale.astype("float32"), "offset": offset.astype("float32")}
        return reader.add(Affine, layer.name, (x,), **fields)
    kernel, bias = (before.kernel * scale).astype("float32"), (before.bias * scale + offset).astype("float32")
    reader.nodes[x] = dataclasses.replace(before, kernel=kernel, bias=bias)
    return x


def _activation(reader, layer, x):
    activation = keras.activations.serialize(layer.activation)
    if activation == "linear":
        return x
    kinds = {"relu": Relu, "softmax": Softmax}
    if activation not in kinds:
        raise InputError(f"export does not know the activation {activation!r} of layer {layer.name!r}")
    name = layer.name if isinstance(layer, keras.layers.Activation) else f"{layer.name}_{activation}"
    return reader.add(kinds[activation], name, (x,))


def _zero_padding(reader, layer, x):
    if layer.data_format == "channels_last":
        return reader.add(Pad, layer.name, (x,), padding=tuple(map(tuple, layer.padding)))
    # Read with the other data format, "width" is the channel axis: option A, see blocks.shortcut.
    (top, bottom), (before, after) = layer.padding
    if top or bottom:
        raise InputError(f"layer {layer.name!r} pads another axis than height, width or channels")
    return reader.add(PadChannels, layer.name, (x,), before=before, after=after)


def _max_pool(reader, layer, x):
    if layer.padding != "valid":
        raise InputError(f"layer {layer.name!r} pads; use ZeroPadding2D before it")
    padding, before = NO_PADDING, reader.nodes[x]
    if isinstance(before, Pad) and isinstance(reader.nodes[before.inputs[0]], Relu):
        # After a ReLU, zeros pad a maximum as well as minus infinity does.
        x, padding = before.inputs[0], before.padding
    size, strides = tuple(layer.pool_size), tuple(layer.strides)
    return reader.add(MaxPool, layer.name, (x,), size=size, strides=strides, padding=padding)


def _average_pool(reader, layer, x):
    size, strides, same = tuple(layer.pool_size), tuple(layer.strides), layer.padding == "same"
    return reader.add(AveragePool, layer.name, (x,), size=size, strides=strides, same=same)


def _add(reader, layer, *inputs):
    if len(inputs) != 2:
        raise InputError(f"layer {layer.name!r} adds {len(inputs)} tensors; export adds two")
    return reader.add(Add, layer.name, inputs)


def _dense(reader, layer, x):
    return _activation(reader, layer, reader.add(Dense, layer.name, (x,), **_weights(layer)))


_LAYERS: tuple[tuple[type, Callable[..., str]], ...] = (
    (keras.layers.Rescaling, _rescaling),
    (keras.layers.Conv2D, _convolution),
    (keras.layers.Activation, _activation),
    (keras.layers.ZeroPadding2D, _zero_padding),
    (keras.layers.MaxPooling2D, _max_pool),
    (keras.layers.AveragePooling2D, _average_pool),
    (keras.layers.Add, _add),
    (keras.layers.GlobalAveragePooling2D, lambda reader, layer, x: reader.add(Mean, layer.name, (x,))),
    (keras.layers.Dense, _dense),
    (keras.layers.Softmax, lambda reader, layer, x: reader.add(Softmax, layer.name, (x,))),
    (keras.layers.Dropout, lambda reader, layer, x: x),
)


def _without_unused(nodes: dict[str, Node], outputs: Iterable[str]) -> tuple[Node, ...]:
    needed, waiting = set(), list(outputs)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += nodes[name].inputs
    return tuple(node for name, node in nodes.items() if name in needed)
