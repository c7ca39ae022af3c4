"""Joins converted TFLite models to one model with a single subgraph."""

import copy
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_resnet.export.serving import SIGNATURE


class MergedModel:
    """A sequence of models joined to one: outputs of earlier models are inputs of later ones."""

    def __init__(self):
        from ai_edge_litert import schema_py_generated as schema

        # Untyped: the schema's annotations say str and list where it packs bytes and arrays.
        self._schema: Any = schema
        self._subgraph = self._schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[])
        self._codes: dict[tuple, int] = {}
        self._model = self._schema.ModelT(
            version=3, operatorCodes=[], subgraphs=[self._subgraph], buffers=[self._schema.BufferT()]
        )
        self._inputs: dict[str, int] = {}
        self._constants: dict[int, int] = {}  # tensors by the identities of the tensors they were made from
        self._parts: list[Any] = []  # keeps the identities valid

    def append(self, part: Any, given: Mapping[str, int] | None = None) -> dict[str, int]:
        """Adds the operators of a model.

        A model may be added several times; its weights are stored once.

        Args:
            part: a model from `read_model` with one subgraph and one signature.
            given: the tensors that become its inputs, by name; None if its inputs are those of the merged
                model.

        Returns:
            Its outputs, as indices of tensors, by name.
        """
        (subgraph,), (signature,) = part.subgraphs, part.signatureDefs
        names = {entry.tensorIndex: entry.name.decode() for entry in signature.inputs}
        places = {}
        for index, tensor in enumerate(subgraph.tensors):
            if index in names and given is not None:
                places[index] = given[names[index]]
            else:
                places[index] = self._tensor(tensor, part.buffers)
        codes = [self._code(code) for code in part.operatorCodes]
        for operator in subgraph.operators:
            added = copy.copy(operator)
            added.opcodeIndex = codes[operator.opcodeIndex]
            # An optional input that is missing has the index -1.
            added.inputs = [places.get(int(index), -1) for index in operator.inputs]
            added.outputs = [places[int(index)] for index in operator.outputs]
            self._subgraph.operators.append(added)
        if given is None:
            self._inputs |= {name: places[index] for index, name in names.items()}
        self._parts.append(part)
        return {entry.name.decode(): places[entry.tensorIndex] for entry in signature.outputs}

    def spec(self, name: str, index: int) -> tf.TensorSpec:
        """Returns the shape and dtype of a tensor, with the given name."""
        tensor = self._subgraph.tensors[index]
        dtypes = {self._schema.TensorType.FLOAT32: tf.float32, self._schema.TensorType.BOOL: tf.bool}
        return tf.TensorSpec([int(size) for size in tensor.shape], dtypes[tensor.type], name=name)

    def finish(self, outputs: Mapping[str, int]) -> Any:
        """Returns the `ModelT`, whose signature is `serving_default`."""
        self._subgraph.inputs, self._subgraph.outputs = [*self._inputs.values()], [*outputs.values()]
        signature = self._schema.SignatureDefT(signatureKey=SIGNATURE.encode(), subgraphIndex=0)
        signature.inputs, signature.outputs = self._entries(self._inputs), self._entries(outputs)
        self._model.signatureDefs = [signature]
        return self._model

    def _entries(self, tensors: Mapping[str, int]) -> list:
        return [self._schema.TensorMapT(name.encode(), index) for name, index in tensors.items()]

    def _tensor(self, tensor: Any, buffers: list) -> int:
        if id(tensor) in self._constants:
            return self._constants[id(tensor)]
        added, index = copy.copy(tensor), len(self._subgraph.tensors)
        buffer = buffers[tensor.buffer]
        added.buffer = 0  # the first buffer has no data
        if buffer.data is not None and len(buffer.data):
            added.buffer = len(self._model.buffers)
            self._model.buffers.append(buffer)
            self._constants[id(tensor)] = index
        self._subgraph.tensors.append(added)
        return index

    def _code(self, code: Any) -> int:
        key = code.builtinCode, code.version, code.customCode
        if key not in self._codes:
            self._codes[key] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[key]
