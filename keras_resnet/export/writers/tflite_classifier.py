"""Appends the classifier, in float, to a TFLite file in int8 that gives the pooled features."""

from typing import Any

import numpy as np

from keras_resnet.export import graph as nodes
from keras_resnet.export.graph import Graph


def append_classifier(model: Any, graph: Graph, batch_size: int | None = None) -> None:
    """Adds the operators behind the features, whose results become the outputs of a converted model.

    In int8, one scale for all logits of all images leaves so few values that the two largest are often
    equal, which costs accuracy. The kernel is stored in float16; everything is computed in float32.

    Args:
        model: a `ModelT` of TFLite's schema with one subgraph and one signature, whose only output is the
            node `graph.features` in float32.
        graph: the network that the model was converted from.
        batch_size: of the model; None for any.
    """
    (subgraph,), (signature,) = model.subgraphs, model.signatureDefs
    builder = _Builder(model, -1 if batch_size is None else batch_size)
    tensors = {graph.features: int(subgraph.outputs[0])}
    first = [node.name for node in graph.nodes].index(graph.features) + 1
    for node in graph.nodes[first:]:
        (x,) = (tensors[name] for name in node.inputs)
        match node:
            case nodes.Dense():
                tensors[node.name] = builder.dense(node, x)
            case nodes.Softmax() | nodes.Sigmoid():
                tensors[node.name] = builder.probabilities(node, x, graph.classes)
            case _:
                raise TypeError(f"{node!r} has no TFLite operator behind the features")
    subgraph.outputs = [tensors[name] for name in graph.outputs.values()]
    signature.outputs = builder.entries(dict(zip(graph.outputs, subgraph.outputs, strict=True)))


class _Builder:
    """Adds float32 operators to the subgraph of a model."""

    def __init__(self, model: Any, batch: int):
        from ai_edge_litert import schema_py_generated as schema

        # Untyped: the schema's annotations say str and list where it packs bytes and arrays.
        self._schema: Any = schema
        self._model, (self._subgraph,), self._batch = model, model.subgraphs, batch

    def dense(self, node: nodes.Dense, x: int) -> int:
        kernel, bias = node.kernel.T.astype("<f2"), node.bias.astype("<f4")
        small = self._tensor(f"{node.name}/kernel", kernel.shape, kernel)
        large = self._tensor(f"{node.name}/float32", kernel.shape)
        self._operator("DEQUANTIZE", 3, [small], large)  # version 3 is the first for float16
        result = self._tensor(node.name, (self._batch, len(bias)))
        inputs = [x, large, self._tensor(f"{node.name}/bias", bias.shape, bias)]
        self._operator("FULLY_CONNECTED", 1, inputs, result, self._schema.FullyConnectedOptionsT())
        return result

    def probabilities(self, node: nodes.Softmax | nodes.Sigmoid, x: int, classes: int) -> int:
        result = self._tensor(node.name, (self._batch, classes))
        if isinstance(node, nodes.Softmax):
            self._operator("SOFTMAX", 1, [x], result, self._schema.SoftmaxOptionsT(beta=1.0))
        else:
            self._operator("LOGISTIC", 1, [x], result)
        return result

    def entries(self, tensors: dict[str, int]) -> list:
        """Returns a signature's entries for tensors by name."""
        return [self._schema.TensorMapT(name.encode(), index) for name, index in tensors.items()]

    def _tensor(self, name: str, shape: tuple[int, ...], array: np.ndarray | None = None) -> int:
        """Adds a tensor with the values of an array, or of float32 results; an axis of -1 has any size."""
        known = [max(size, 1) for size in shape]
        tensor = self._schema.TensorT(
            name=name.encode(), shape=known, shapeSignature=list(shape), hasRank=True
        )
        if array is not None:
            types = self._schema.TensorType
            tensor.type = types.FLOAT16 if array.itemsize == 2 else types.FLOAT32
            tensor.buffer = len(self._model.buffers)
            self._model.buffers.append(self._schema.BufferT(np.frombuffer(array.tobytes(), np.uint8)))
        self._subgraph.tensors.append(tensor)
        return len(self._subgraph.tensors) - 1

    def _operator(self, kind: str, version: int, inputs: list[int], output: int, options: Any = None) -> None:
        schema, codes = self._schema, self._model.operatorCodes
        number = getattr(schema.BuiltinOperator, kind)
        code = next((code for code in codes if code.builtinCode == number), None)
        if code is None:
            code = schema.OperatorCodeT(deprecatedBuiltinCode=number, builtinCode=number)
            codes.append(code)
        code.version = max(code.version, version)
        operator = schema.OperatorT(codes.index(code), inputs, [output])
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = options
        self._subgraph.operators.append(operator)
