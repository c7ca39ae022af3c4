"""A Keras network as a short list of operations, with batch normalization folded into the convolutions.

All exporters write from this list, so that they agree on what the network computes and none of them
carries Keras' own graph.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from keras_resnet.errors import InputError


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation on tensors (batch, height, width, channels), or (batch, channels) after "mean".

    Kinds, with their attributes:

    - "input": `shape` (height, width, channels).
    - "affine": `x * scale + offset`; float32 arrays that broadcast against the tensor.
    - "conv": `kernel` float32 (rows, columns, channels in / groups, channels out), `bias` float32,
      `strides`, `dilations` (rows, columns), `padding` ((top, bottom), (left, right)) with zeros,
      `groups`.
    - "relu", "softmax"; "add" of two inputs.
    - "max_pool": `size`, `strides`, `padding`. Only non-negative tensors are padded.
    - "average_pool": `size`, `strides`, `same`: whether windows may reach over the edges, as Keras'
      "same" places them, and take the mean of what is inside.
    - "pad": zeros around, `padding`; "pad_channels": zeros for `before` and `after` channels.
    - "mean": over height and width.
    - "dense": `kernel` float32 (in, out), `bias` float32 (out,).
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    attributes: dict

    def __getattr__(self, attribute):
        try:
            return self.__dict__["attributes"][attribute]
        except KeyError:
            raise AttributeError(attribute) from None


@dataclasses.dataclass(frozen=True)
class Network:
    """A folded network.

    Attributes:
        name: of the Keras model.
        operations: each after those that it takes its inputs from; the first is the only "input".
        outputs: the artifacts' output names to the operations that give them.
        features: the operation whose output is pooled for the classifier.
    """

    name: str
    operations: tuple[Operation, ...]
    outputs: dict[str, str]
    features: str

    @property
    def input_shape(self) -> tuple[int | None, int | None, int]:
        """(height, width, channels)."""
        return self.operations[0].shape

    @property
    def classes(self) -> int:
        """Width of the logits."""
        return next(op for op in reversed(self.operations) if op.kind == "dense").bias.size


def fold(model: keras.Model) -> Network:
    """Reads a serving model.

    Args:
        model: of `serving_model`: one input, a dictionary of outputs.

    Returns:
        The operations, in an order in which they can be computed.

    Raises:
        InputError: a layer that no exporter knows.
    """
    reader = _Reader()
    (images,) = model.inputs
    reader.given[_key(images)] = reader.add("input", images.name, (), shape=tuple(model.input_shape[1:]))
    outputs = {name: reader.read(tensor) for name, tensor in model.output.items()}
    operations = _without_the_unused(reader.operations, outputs.values())
    means = [op.name for op in operations if op.kind == "mean"]
    if len(means) != 1:
        raise InputError(f"export needs one global average pooling; {model.name!r} has {len(means)}")
    return Network(model.name, operations, outputs, means[0])


def _key(tensor) -> tuple:
    operation, node_index, tensor_index = tensor._keras_history
    return id(operation), node_index, tensor_index


class _Reader:
    """Walks from the outputs to the input, and puts down one operation after another."""

    def __init__(self):
        self.operations: dict[str, Operation] = {}
        self.given: dict[tuple, str] = {}

    def add(self, kind: str, name: str, inputs: tuple[str, ...], **attributes) -> str:
        while name in self.operations:
            name += "_"
        self.operations[name] = Operation(kind, name, inputs, attributes)
        return name

    def read(self, tensor) -> str:
        """The operation that gives `tensor`. A loop, not a recursion: networks are 1202 layers deep."""
        waiting = [tensor]
        while waiting:
            current = waiting[-1]
            if _key(current) in self.given:
                waiting.pop()
                continue
            layer, node_index, _ = current._keras_history
            sources = layer._inbound_nodes[node_index].input_tensors
            missing = [source for source in sources if _key(source) not in self.given]
            if missing:
                waiting += missing
                continue
            self.given[_key(current)] = self._layer(layer, [self.given[_key(source)] for source in sources])
        return self.given[_key(tensor)]

    def _layer(self, layer, inputs: list[str]) -> str:
        if isinstance(layer, keras.Model):
            for inner, name in zip(layer.inputs, inputs, strict=True):
                self.given[_key(inner)] = name
            (output,) = layer.outputs
            return self.read(output)
        for layer_class, put_down in _LAYERS:
            if isinstance(layer, layer_class):
                return put_down(self, layer, *inputs)
        raise InputError(f"export does not know layers like {layer.name!r}, a {type(layer).__name__}")


def _rescaling(reader, layer, x):
    scale, offset = (np.asarray(value, "float32") for value in (layer.scale, layer.offset))
    return reader.add("affine", layer.name, (x,), scale=scale, offset=offset)


def _convolution(reader, layer, x):
    if layer.data_format != "channels_last":
        raise InputError(f"layer {layer.name!r} is channels first; export needs channels last")
    kernel = layer.kernel.numpy().astype("float32")
    bias = layer.bias.numpy().astype("float32") if layer.use_bias else np.zeros(kernel.shape[-1], "float32")
    padding = ((0, 0), (0, 0))
    if layer.padding == "same":
        spans = [(size - 1) * rate for size, rate in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
        if any(span and stride > 1 for span, stride in zip(spans, layer.strides, strict=True)):
            raise InputError(f"layer {layer.name!r} pads unevenly; use ZeroPadding2D before a stride")
        padding = tuple((span // 2, span - span // 2) for span in spans)
    before = reader.operations[x]
    if before.kind == "pad":
        x, padding = before.inputs[0], _sum_of_paddings(before.padding, padding)
    name = reader.add(
        "conv",
        layer.name,
        (x,),
        kernel=kernel,
        bias=bias,
        strides=tuple(layer.strides),
        dilations=tuple(layer.dilation_rate),
        padding=padding,
        groups=layer.groups,
    )
    return _activation(reader, layer, name)


def _sum_of_paddings(one, other):
    return tuple(tuple(a + b for a, b in zip(*sides, strict=True)) for sides in zip(one, other, strict=True))


def _batch_normalization(reader, layer, x):
    mean, variance = (v.numpy().astype("float64") for v in (layer.moving_mean, layer.moving_variance))
    scale = 1 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        scale *= layer.gamma.numpy()
    offset = -mean * scale
    if layer.center:
        offset += layer.beta.numpy()
    before = reader.operations[x]
    (source,) = layer._inbound_nodes[0].input_tensors
    if before.kind != "conv" or len(source._keras_history[0]._outbound_nodes) > 1:
        return reader.add(
            "affine", layer.name, (x,), scale=scale.astype("float32"), offset=offset.astype("float32")
        )
    attributes = {
        **before.attributes,
        "kernel": (before.kernel * scale).astype("float32"),
        "bias": (before.bias * scale + offset).astype("float32"),
    }
    reader.operations[x] = dataclasses.replace(before, attributes=attributes)
    return x


def _activation(reader, layer, x):
    activation = keras.activations.serialize(layer.activation)
    if activation == "linear":
        return x
    if activation not in ("relu", "softmax"):
        raise InputError(f"export does not know the activation {activation!r} of layer {layer.name!r}")
    name = layer.name if isinstance(layer, keras.layers.Activation) else f"{layer.name}_{activation}"
    return reader.add(activation, name, (x,))


def _zero_padding(reader, layer, x):
    if layer.data_format == "channels_last":
        return reader.add("pad", layer.name, (x,), padding=tuple(map(tuple, layer.padding)))
    # Read with the other data format, "width" is the channel axis: option A, see blocks.shortcut.
    (top, bottom), (before, after) = layer.padding
    if top or bottom:
        raise InputError(f"layer {layer.name!r} pads another axis than height, width or channels")
    return reader.add("pad_channels", layer.name, (x,), before=before, after=after)


def _max_pool(reader, layer, x):
    if layer.padding != "valid":
        raise InputError(f"layer {layer.name!r} pads; use ZeroPadding2D before it")
    padding, before = ((0, 0), (0, 0)), reader.operations[x]
    if before.kind == "pad" and reader.operations[before.inputs[0]].kind == "relu":
        # After a ReLU, zeros pad a maximum as well as minus infinity does.
        x, padding = before.inputs[0], before.padding
    size, strides = tuple(layer.pool_size), tuple(layer.strides)
    return reader.add("max_pool", layer.name, (x,), size=size, strides=strides, padding=padding)


def _average_pool(reader, layer, x):
    size, strides, same = tuple(layer.pool_size), tuple(layer.strides), layer.padding == "same"
    return reader.add("average_pool", layer.name, (x,), size=size, strides=strides, same=same)


def _add(reader, layer, *inputs):
    if len(inputs) != 2:
        raise InputError(f"layer {layer.name!r} adds {len(inputs)} tensors; export adds two")
    return reader.add("add", layer.name, inputs)


def _mean(reader, layer, x):
    return reader.add("mean", layer.name, (x,))


def _dense(reader, layer, x):
    kernel = layer.kernel.numpy().astype("float32")
    bias = layer.bias.numpy().astype("float32") if layer.use_bias else np.zeros(kernel.shape[-1], "float32")
    return _activation(reader, layer, reader.add("dense", layer.name, (x,), kernel=kernel, bias=bias))


def _softmax(reader, layer, x):
    return reader.add("softmax", layer.name, (x,))


_LAYERS: tuple[tuple[type, Callable], ...] = (
    (keras.layers.Rescaling, _rescaling),
    (keras.layers.Conv2D, _convolution),
    (keras.layers.BatchNormalization, _batch_normalization),
    (keras.layers.Activation, _activation),
    (keras.layers.ZeroPadding2D, _zero_padding),
    (keras.layers.MaxPooling2D, _max_pool),
    (keras.layers.AveragePooling2D, _average_pool),
    (keras.layers.Add, _add),
    (keras.layers.GlobalAveragePooling2D, _mean),
    (keras.layers.Dense, _dense),
    (keras.layers.Softmax, _softmax),
    (keras.layers.Dropout, lambda reader, layer, x: x),
)


def _without_the_unused(operations: dict[str, Operation], outputs) -> tuple[Operation, ...]:
    needed, waiting = set(), list(outputs)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += operations[name].inputs
    return tuple(operation for name, operation in operations.items() if name in needed)
