"""The graph of a functional Keras model: the only module that reads Keras' private nodes."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import keras


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer; a model called inside another model is one call, with the outer tensors."""

    layer: keras.Operation  # a `keras.layers.Layer`, or a function of `keras.ops`
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]
    arguments: Any  # Keras' record of all arguments of the call

    def repeat(self, values: Sequence[Any], layer: keras.Operation | None = None) -> list:
        """Calls the layer, or another one in its place, in inference mode; returns the outputs as a list.

        Args:
            values: tensors, or symbolic tensors, in place of `inputs`; the other arguments are as recorded.
        """
        layer = layer or self.layer
        given = {id(tensor): value for tensor, value in zip(self.inputs, values, strict=True)}
        arguments, options = self.arguments.fill_in(given)
        if isinstance(layer, keras.layers.Layer):
            options = {**options, "training": False}  # as a model passes it on to all of its layers
        return keras.tree.flatten(layer(*arguments, **options))


def layer_calls(outputs: Iterable[keras.KerasTensor]) -> list[LayerCall]:
    """Returns the calls that `outputs` depend on, including input layers, in topological order."""
    order, seen = [], set()
    stack = [(_node(tensor), False) for tensor in outputs]
    while stack:  # not recursive: cifar_resnet1202 is deeper than Python's stack
        node, is_ready = stack.pop()
        if is_ready:
            given, results = tuple(node.input_tensors), tuple(node.outputs)
            order.append(LayerCall(node.operation, given, results, node.arguments))
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((_node(tensor), False) for tensor in node.input_tensors)
    return order


def is_functional(layer: keras.Operation) -> bool:
    """Whether a layer is itself a model with a graph: a functional one, or a Sequential one that is built."""
    return isinstance(layer, keras.Model) and bool(getattr(layer, "inputs", None))


def tensor_key(tensor: keras.KerasTensor) -> tuple[int, int, int]:
    """Returns a key for a symbolic tensor: the layer's id, and the indices of the call and of the output."""
    layer, call_index, output_index = cast(Any, tensor)._keras_history
    return id(layer), call_index, output_index


def producer(tensor: Any) -> keras.Layer:
    """Returns the layer that computes a symbolic tensor."""
    return tensor._keras_history[0]


def _node(tensor: Any) -> Any:
    layer, call_index, _ = tensor._keras_history
    return layer._inbound_nodes[call_index]


@contextlib.contextmanager
def recursion_limit(limit: int = 20_000) -> Iterator[None]:
    """Raises Python's recursion limit inside the block, as `cifar_resnet1202` needs: Keras is recursive."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, limit))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
