"""Converts a folded network to an ONNX model, channels first inside.

Written without the intermediate lists and copies of `onnx.helper.make_graph` and `make_model`: the
weights of ResNet-152 are 240 MB.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.export.graph import (
    NO_PADDING,
    Add,
    Affine,
    AveragePool,
    Conv,
    Dense,
    Graph,
    Input,
    MaxPool,
    Mean,
    Node,
    Pad,
    PadChannels,
    Padding,
    Relu,
    Softmax,
)
from keras_resnet.export.serving import BATCH, INPUT

if TYPE_CHECKING:
    import onnx

# Names of the other axes, where they are of any size.
_HEIGHT, _WIDTH = "height", "width"


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor of the graph: (batch, channels, height, width), or (batch, channels) if not `spatial`."""

    name: str
    dtype: str = "float32"
    spatial: bool = True


def write_graph(
    graph: Graph,
    opset: int,
    layout: str = "nhwc",
    io_dtype: str = "float32",
    precision: str = "float32",
    dynamic_size: bool = False,
) -> "onnx.ModelProto":
    """Converts a folded network and its weights to an ONNX model.

    Args:
        graph: the folded network.
        opset: version of the operator set, 13 or later.
        layout: of the input: "nhwc" (batch, height, width, channels) or "nchw".
        io_dtype: of the input: "float32" or "uint8".
        precision: of the convolutions and what lies between them: "float32" or "float16". The
            normalization, the mean, the classifier and the softmax are float32.
        dynamic_size: whether images of any height and width are taken.

    Returns:
        The model, without metadata: input `images`, outputs those of the network, float32.

    Raises:
        InputError: a weight is too large for float16.
    """
    import onnx

    writer = _Writer(onnx, graph, layout, io_dtype, precision)
    for node in graph.nodes:
        tensors = [writer.tensors[name] for name in node.inputs]
        writer.tensors[node.name] = writer.write(node, *tensors)

    opsets = [onnx.helper.make_opsetid("", opset)]
    model = writer.model
    # The oldest that knows the operators, so that older runtimes read the file.
    model.ir_version = onnx.helper.find_min_ir_version_for(opsets)
    model.opset_import.extend(opsets)
    model.graph.name = graph.name
    height, width, channels = graph.input_shape
    if dynamic_size:
        height = width = None
    height, width = height or _HEIGHT, width or _WIDTH
    shape = (height, width, channels) if layout == "nhwc" else (channels, height, width)
    model.graph.input.append(_value_info(onnx, INPUT, io_dtype, (BATCH, *shape)))
    for output, name in graph.outputs.items():
        writer.give_output(output, writer.tensors[name])
        model.graph.output.append(_value_info(onnx, output, "float32", (BATCH, graph.classes)))
    return model


def _value_info(onnx, name: str, dtype: str, shape: tuple):
    return onnx.helper.make_tensor_value_info(name, _type(onnx, dtype), shape)


def _type(onnx, dtype: str) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class _Writer:
    """Writes each type of `Node`.

    An ONNX node and its output have the name of the graph's node; weights and auxiliary nodes have that
    name with a slash, which Keras allows in no layer's name, and a suffix.
    """

    def __init__(self, onnx, graph: Graph, layout: str, io_dtype: str, precision: str):
        self._onnx, self._layout, self._io_dtype, self._precision = onnx, layout, io_dtype, precision
        self._names = _tensor_names(graph)
        self.model = onnx.ModelProto()
        self.tensors: dict[str, _Tensor] = {}

    def _node(self, kind: str, name: str, inputs: list[str], output: str | None = None, **attributes) -> str:
        output = output or self._names.get(name, name)
        node = self._onnx.helper.make_node(kind, inputs, [output], name, **attributes)
        self.model.graph.node.append(node)
        return output

    def _constant(self, name: str, array: np.ndarray) -> str:
        tensor = self.model.graph.initializer.add(name=name, dims=array.shape)
        tensor.data_type = self._onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        # In row-major order also where `array` is a transposed view, and little-endian, as ONNX wants it.
        tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return name

    def _weight(self, name: str, array: np.ndarray, dtype: str) -> str:
        with np.errstate(over="ignore"):
            converted = array.astype(dtype, copy=False)
        if dtype == "float16" and not np.isfinite(converted).all():
            largest = np.abs(array).max()
            raise InputError(f"{name} holds numbers up to {largest:.3g}, too large for float16")
        return self._constant(name, converted)

    def _cast(self, node: Node, x: _Tensor, dtype: str, suffix: str = "cast") -> _Tensor:
        if x.dtype == dtype:
            return x
        name = self._node("Cast", f"{node.name}/{suffix}", [x.name], to=_type(self._onnx, dtype))
        return dataclasses.replace(x, name=name, dtype=dtype)

    def _unchanged_kind(self, kind: str, node: Node, x: _Tensor, **attributes) -> _Tensor:
        """A node whose output has the kind of its input."""
        return dataclasses.replace(x, name=self._node(kind, node.name, [x.name], **attributes))

    def give_output(self, output: str, x: _Tensor) -> None:
        """Makes `x` the graph's output of this name, which it already is unless something shares it."""
        if x.dtype != "float32":
            self._node("Cast", f"{output}/output", [x.name], output, to=_type(self._onnx, "float32"))
        elif x.name != output:
            self._node("Identity", f"{output}/output", [x.name], output)

    @functools.singledispatchmethod
    def write(self, node: Node, *tensors: _Tensor) -> _Tensor:
        """Adds a node of the graph, given its inputs; returns its output."""
        raise TypeError(f"{node!r} has no ONNX operator")

    @write.register
    def _(self, node: Input) -> _Tensor:
        x = INPUT
        if self._layout == "nhwc":
            # Transposing the images is cheapest: they have the fewest channels, and may be bytes.
            x = self._node("Transpose", f"{INPUT}/nchw", [x], perm=[0, 3, 1, 2])
        return self._cast(node, _Tensor(x, self._io_dtype), "float32", "float32")

    @write.register
    def _(self, node: Affine, x: _Tensor) -> _Tensor:
        scale, offset = (_broadcastable(value, x.spatial) for value in (node.scale, node.offset))
        scale = self._weight(f"{node.name}/scale", scale, x.dtype)
        offset = self._weight(f"{node.name}/offset", offset, x.dtype)
        scaled = self._node("Mul", f"{node.name}/scaled", [x.name, scale])
        return dataclasses.replace(x, name=self._node("Add", node.name, [scaled, offset]))

    @write.register
    def _(self, node: Conv, x: _Tensor) -> _Tensor:
        x = self._cast(node, x, self._precision)
        kernel = self._weight(f"{node.name}/kernel", node.kernel.transpose(3, 2, 0, 1), x.dtype)
        bias = self._weight(f"{node.name}/bias", node.bias, x.dtype)
        name = self._node(
            "Conv",
            node.name,
            [x.name, kernel, bias],
            kernel_shape=node.kernel.shape[:2],
            strides=node.strides,
            dilations=node.dilations,
            pads=_pads(node.padding),
            group=node.groups,
        )
        return dataclasses.replace(x, name=name)

    @write.register
    def _(self, node: Relu, x: _Tensor) -> _Tensor:
        return self._unchanged_kind("Relu", node, x)

    @write.register
    def _(self, node: Add, x: _Tensor, y: _Tensor) -> _Tensor:
        if x.dtype != y.dtype:
            x, y = self._cast(node, x, "float32", "cast_1"), self._cast(node, y, "float32", "cast_2")
        return dataclasses.replace(x, name=self._node("Add", node.name, [x.name, y.name]))

    @write.register
    def _(self, node: MaxPool, x: _Tensor) -> _Tensor:
        padding = node.padding
        if any(max(sides) >= size for sides, size in zip(padding, node.size, strict=True)):
            # ONNX Runtime refuses windows that see nothing but padding.
            x, padding = self._pad(f"{node.name}/pad", x, padding), NO_PADDING
        # A window of one pixel subsamples: the layout that ONNX Runtime blocks by channels has a
        # kernel for it, while a Slice would make it reorder the tensor twice.
        return self._unchanged_kind(
            "MaxPool", node, x, kernel_shape=node.size, strides=node.strides, pads=_pads(padding)
        )

    @write.register
    def _(self, node: AveragePool, x: _Tensor) -> _Tensor:
        # Not as numbers, because with images of any size nobody knows them yet.
        pads = {"auto_pad": "SAME_UPPER", "count_include_pad": 0} if node.same else {}
        return self._unchanged_kind(
            "AveragePool", node, x, kernel_shape=node.size, strides=node.strides, **pads
        )

    @write.register
    def _(self, node: Pad, x: _Tensor) -> _Tensor:
        return self._pad(node.name, x, node.padding)

    @write.register
    def _(self, node: PadChannels, x: _Tensor) -> _Tensor:
        return self._pad(node.name, x, NO_PADDING, (node.before, node.after))

    def _pad(self, name: str, x: _Tensor, padding: Padding, channels: tuple[int, int] = (0, 0)) -> _Tensor:
        begins, ends = zip((0, 0), channels, *padding, strict=True)
        pads = self._constant(f"{name}/pads", np.array((*begins, *ends), "int64"))
        return dataclasses.replace(x, name=self._node("Pad", name, [x.name, pads]))

    @write.register
    def _(self, node: Mean, x: _Tensor) -> _Tensor:
        x = self._cast(node, x, "float32")
        pooled = self._node("GlobalAveragePool", f"{node.name}/pool", [x.name])
        return _Tensor(self._node("Flatten", node.name, [pooled], axis=1), spatial=False)

    @write.register
    def _(self, node: Dense, x: _Tensor) -> _Tensor:
        x = self._cast(node, x, "float32")
        kernel = self._weight(f"{node.name}/kernel", node.kernel, "float32")
        bias = self._weight(f"{node.name}/bias", node.bias, "float32")
        return dataclasses.replace(x, name=self._node("Gemm", node.name, [x.name, kernel, bias]))

    @write.register
    def _(self, node: Softmax, x: _Tensor) -> _Tensor:
        x = self._cast(node, x, "float32")
        return self._unchanged_kind("Softmax", node, x, axis=1 if x.spatial else -1)


def _tensor_names(graph: Graph) -> dict[str, str]:
    """Returns the name of each node's output tensor: the node's own, unless the signature needs that one."""
    names = {name: output for output, name in graph.outputs.items()}
    taken = {INPUT, *graph.outputs}
    for node in graph.nodes:
        if node.name not in names:
            name = node.name
            while name in taken:
                name += "_"
            names[node.name] = name
            taken.add(name)
    return names


def _broadcastable(array: np.ndarray, spatial: bool) -> np.ndarray:
    """Turns what broadcasts against (height, width, channels) into what does so channels first."""
    if not spatial:
        return array.reshape(1, -1)
    return array.reshape((1,) * (3 - array.ndim) + array.shape).transpose(2, 0, 1)[None]


def _pads(padding) -> list[int]:
    (top, bottom), (left, right) = padding
    return [top, left, bottom, right]
