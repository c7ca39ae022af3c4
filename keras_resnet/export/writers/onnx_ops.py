"""Converts a folded network to an ONNX model, channels first inside.

Written without the intermediate lists and copies of `onnx.helper.make_graph` and `make_model`: the
weights of ResNet-152 are 240 MB.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.export import graph as nodes
from keras_resnet.export.artifacts import Options
from keras_resnet.export.graph import NO_PADDING, Graph, Node, Padding
from keras_resnet.export.serving import BATCH, INPUT

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor of the graph: (batch, channels, height, width), or (batch, channels) if not `spatial`."""

    name: str
    dtype: str = "float32"
    spatial: bool = True


def write_graph(graph: Graph, options: Options, precision: str = "float32") -> "onnx.ModelProto":
    """Converts a folded network and its weights to an ONNX model without metadata.

    Args:
        graph: the folded network.
        options: its `opset`, `layout`, `io_dtype` and `dynamic_size` are used.
        precision: of the convolutions and what lies between them: "float32" or "float16". The
            normalization, the mean, the classifier, the softmax and the outputs are float32.

    Raises:
        InputError: a weight is too large for float16.
    """
    import onnx

    writer = OnnxWriter(onnx, options, precision, _tensor_names(graph))
    for node in graph.nodes:
        writer.write(node)

    model = writer.model
    model.graph.name = graph.name
    height, width, channels = graph.input_shape
    if options.dynamic_size:
        height = width = None
    sides = height or "height", width or "width"
    shape = (*sides, channels) if options.layout == "nhwc" else (channels, *sides)
    model.graph.input.append(writer.value_info(INPUT, options.io_dtype, (BATCH, *shape)))
    for output, name in graph.outputs.items():
        writer.give_output(output, writer.tensors[name])
        model.graph.output.append(writer.value_info(output, "float32", (BATCH, graph.classes)))
    return model


# What float16 is not precise enough for.
_IN_FLOAT32 = nodes.Dense | nodes.Mean | nodes.Max | nodes.GroupNorm | nodes.Softmax | nodes.Sigmoid


class OnnxWriter:
    """Writes each type of `Node`.

    An ONNX node and its output have the name of the graph's node; weights and auxiliary nodes have that
    name with a slash, which Keras allows in no layer's name, and a suffix.

    Args:
        names: of the tensors whose names are not those of their nodes, by node.

    Attributes:
        model: the ONNX model so far.
        tensors: by node.
    """

    def __init__(
        self, onnx: Any, options: Options, precision: str = "float32", names: Mapping[str, str] | None = None
    ):
        self._helper, self._options, self._precision = onnx.helper, options, precision
        self._names = names or {}
        # With the arrays, whose ids are the keys: Python reuses the id of what is freed.
        self._constants: dict[tuple[int, str], tuple[str, np.ndarray]] = {}
        self.model = onnx.ModelProto()
        self.tensors: dict[str, _Tensor] = {}
        opsets = [onnx.helper.make_opsetid("", options.opset)]
        # The oldest that knows the operators, so that older runtimes read the file.
        self.model.ir_version = onnx.helper.find_min_ir_version_for(opsets)
        self.model.opset_import.extend(opsets)

    def feed(self, node: str, tensor: str) -> None:
        """Makes a float32 tensor (batch, channels, height, width) the value of an input node."""
        self.tensors[node] = _Tensor(tensor)

    def operator(
        self, kind: str, name: str, inputs: list[str], outputs: list[str], **attributes: Any
    ) -> None:
        """Adds an ONNX node."""
        self.model.graph.node.append(self._helper.make_node(kind, inputs, outputs, name, **attributes))

    def value_info(self, name: str, dtype: str, shape: tuple):
        """Describes an input or output of the model."""
        return self._helper.make_tensor_value_info(name, self.type_of(dtype), shape)

    def type_of(self, dtype: Any) -> int:
        """ONNX' number of a dtype."""
        return self._helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def _node(self, kind: str, name: str, inputs: list[str], output: str | None = None, **attributes) -> str:
        output = output or self._names.get(name, name)
        self.operator(kind, name, inputs, [output], **attributes)
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        """Adds a constant and returns its name."""
        tensor = self.model.graph.initializer.add(name=name, dims=array.shape)
        tensor.data_type = self.type_of(array.dtype)
        # In row-major order also where `array` is a transposed view, and little-endian, as ONNX requires.
        tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return name

    def _weights(self, node: Node, dtype: str, **arrays: np.ndarray) -> list[str]:
        names = []
        for suffix, array in arrays.items():
            name = f"{node.name}/{suffix}"
            # Nodes of the same layer share its arrays.
            original = getattr(node, suffix)
            key = id(original), dtype
            if key in self._constants:
                names.append(self._constants[key][0])
                continue
            self._constants[key] = name, original
            with np.errstate(over="ignore"):
                converted = array.astype(dtype, copy=False)
            if dtype == "float16" and not np.isfinite(converted).all():
                largest = np.abs(array).max()
                raise InputError(f"{name} holds numbers up to {largest:.3g}, too large for float16")
            names.append(self.constant(name, converted))
        return names

    def _cast(self, node: Node, x: _Tensor, dtype: str, suffix: str = "cast") -> _Tensor:
        if x.dtype == dtype:
            return x
        name = self._node("Cast", f"{node.name}/{suffix}", [x.name], to=self.type_of(dtype))
        return dataclasses.replace(x, name=name, dtype=dtype)

    def give_output(self, output: str, x: _Tensor) -> None:
        """Makes `x` the graph's output of this name, which it already is unless something shares it."""
        if x.dtype != "float32":
            self._node("Cast", f"{output}/output", [x.name], output, to=self.type_of("float32"))
        elif x.name != output:
            self._node("Identity", f"{output}/output", [x.name], output)

    def write(self, node: Node) -> None:
        """Adds a node of the graph, after its inputs."""
        if isinstance(node, nodes.Input):
            images = INPUT
            if self._options.layout == "nhwc":
                # Transposing the images is cheapest: they have the fewest channels, and may be bytes.
                images = self._node("Transpose", f"{INPUT}/nchw", [images], perm=[0, 3, 1, 2])
            images = _Tensor(images, self._options.io_dtype)
            self.tensors[node.name] = self._cast(node, images, "float32", "float32")
            return
        inputs = [self.tensors[name] for name in node.inputs]
        if isinstance(node, nodes.Conv):
            inputs = [self._cast(node, inputs[0], self._precision)]
        elif isinstance(node, _IN_FLOAT32):
            inputs = [self._cast(node, inputs[0], "float32")]
        elif len({x.dtype for x in inputs}) > 1:
            inputs = [self._cast(node, x, "float32", f"cast_{i}") for i, x in enumerate(inputs, 1)]
        self.tensors[node.name] = dataclasses.replace(
            inputs[0],
            name=self._operation(node, inputs[0], [x.name for x in inputs]),
            spatial=inputs[0].spatial and not isinstance(node, nodes.Mean | nodes.Max | nodes.Flatten),
        )

    def _operation(self, node: Node, x: _Tensor, inputs: list[str]) -> str:
        """Adds the ONNX nodes that compute a node from inputs of the right types."""
        match node:
            case nodes.Affine():
                scale, offset = (_broadcastable(array, x.spatial) for array in (node.scale, node.offset))
                scale, offset = self._weights(node, x.dtype, scale=scale, offset=offset)
                scaled = self._node("Mul", f"{node.name}/scaled", [*inputs, scale])
                return self._node("Add", node.name, [scaled, offset])
            case nodes.Conv():
                kernel = node.kernel.transpose(3, 2, 0, 1)
                return self._node(
                    "Conv",
                    node.name,
                    [*inputs, *self._weights(node, x.dtype, kernel=kernel, bias=node.bias)],
                    kernel_shape=node.kernel.shape[:2],
                    strides=node.strides,
                    dilations=node.dilations,
                    pads=_pads(node.padding),
                    group=node.groups,
                )
            case nodes.Dense():
                weights = self._weights(node, x.dtype, kernel=node.kernel, bias=node.bias)
                return self._node("Gemm", node.name, [*inputs, *weights])
            case nodes.Relu() if node.limit is not None:
                limits = [self.constant(f"{node.name}/{n}", np.array(n, x.dtype)) for n in (0, node.limit)]
                return self._node("Clip", node.name, [*inputs, *limits])
            case nodes.Relu() | nodes.Add() | nodes.Sigmoid():
                return self._node(type(node).__name__, node.name, inputs)
            case nodes.Concat():
                return self._node("Concat", node.name, inputs, axis=1)
            case nodes.Softmax():
                return self._node("Softmax", node.name, inputs, axis=1 if x.spatial else -1)
            case nodes.Mean() | nodes.Max():
                kind = "GlobalAveragePool" if isinstance(node, nodes.Mean) else "GlobalMaxPool"
                pooled = self._node(kind, f"{node.name}/pool", inputs)
                return self._node("Flatten", node.name, [pooled], axis=1)
            case nodes.Flatten():
                last = self._node("Transpose", f"{node.name}/nhwc", inputs, perm=[0, 2, 3, 1])
                return self._node("Flatten", node.name, [last], axis=1)
            case nodes.GroupNorm():
                return self._group_norm(node, inputs)
            case nodes.Upsample():
                return self._upsample(node, inputs)
            case nodes.Pad():
                return self._pad(node.name, inputs, node.padding, node.channels)
            case nodes.AveragePool() | nodes.MaxPool():
                return self._pool(node, inputs)
            case nodes.KerasLayer():
                raise InputError(f"layer {node.name!r} has no ONNX operator of the exporter's own")
        raise TypeError(f"{node!r} has no ONNX operator")

    def _pool(self, node: nodes.AveragePool | nodes.MaxPool, inputs: list[str]) -> str:
        attributes: dict = {"kernel_shape": node.size, "strides": node.strides}
        if isinstance(node, nodes.MaxPool):
            padding = node.padding
            if any(max(sides) >= size for sides, size in zip(padding, node.size, strict=True)):
                # ONNX Runtime refuses windows that see nothing but padding.
                inputs, padding = [self._pad(f"{node.name}/pad", inputs, padding)], NO_PADDING
            # A window of one pixel subsamples: the layout that ONNX Runtime blocks by channels has a
            # kernel for it, while a Slice would make it reorder the tensor twice.
            attributes["pads"] = _pads(padding)
        elif node.same:
            # Not as numbers: with images of any size they are not known yet.
            attributes |= {"auto_pad": "SAME_UPPER", "count_include_pad": 0}
        return self._node(type(node).__name__, node.name, inputs, **attributes)

    def _upsample(self, node: nodes.Upsample, inputs: list[str]) -> str:
        factors = self.constant(f"{node.name}/factors", np.array((1, 1, *node.size), "float32"))
        nearest = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self._node("Resize", node.name, [*inputs, "", factors], mode="nearest", **nearest)

    def _group_norm(self, node: nodes.GroupNorm, inputs: list[str]) -> str:
        """Normalizes each group as one channel: ONNX has group normalization since opset 18 only."""
        name, groups = node.name, node.groups
        ones, zeros = (
            self.constant(f"{name}/{value:g}", np.full(groups, value, "float32")) for value in (1.0, 0.0)
        )
        grouped_shape = self.constant(f"{name}/grouped_shape", np.array((0, groups, -1), "int64"))
        grouped = self._node("Reshape", f"{name}/grouped", [*inputs, grouped_shape])
        normalized = self._node(
            *("InstanceNormalization", f"{name}/normalized", [grouped, ones, zeros]), epsilon=node.epsilon
        )
        shape = self._node("Shape", f"{name}/shape", inputs)
        normalized = self._node("Reshape", f"{name}/ungrouped", [normalized, shape])
        arrays = {
            "scale": _broadcastable(node.scale, spatial=True),
            "offset": _broadcastable(node.offset, spatial=True),
        }
        scale, offset = self._weights(node, "float32", **arrays)
        scaled = self._node("Mul", f"{name}/scaled", [normalized, scale])
        return self._node("Add", name, [scaled, offset])

    def _pad(self, name: str, inputs: list[str], padding: Padding, channels: tuple[int, int] = (0, 0)) -> str:
        begins, ends = zip((0, 0), channels, *padding, strict=True)
        pads = self.constant(f"{name}/pads", np.array((*begins, *ends), "int64"))
        return self._node("Pad", name, [*inputs, pads])


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


def _pads(padding: Padding) -> list[int]:
    (top, bottom), (left, right) = padding
    return [top, left, bottom, right]
