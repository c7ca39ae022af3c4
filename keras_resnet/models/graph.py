"""The graph of a functional Keras model: the only module that reads Keras' private nodes."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from typing import Any, cast

import keras


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer; a model called inside another model is one call, with the outer tensors."""

    layer: keras.Operation  # a `keras.layers.Layer`, or a function of `keras.ops`
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]


def layer_calls(outputs: Iterable[keras.KerasTensor]) -> list[LayerCall]:
    """Returns the calls that `outputs` depend on, including input layers, in topological order."""
    order, seen = [], set()
    stack = [(_node(tensor), False) for tensor in outputs]
    while stack:  # not recursive: cifar_resnet1202 is deeper than Python's stack
        node, is_ready = stack.pop()
        if is_ready:
            order.append(LayerCall(node.operation, tuple(node.input_tensors), tuple(node.outputs)))
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((_node(tensor), False) for tensor in node.input_tensors)
    return order


def tensor_key(tensor: keras.KerasTensor) -> tuple[int, int, int]:
    """Returns a key for a symbolic tensor: the layer's id, and the indices of the call and of the output."""
    layer, call_index, output_index = cast(Any, tensor)._keras_history
    return id(layer), call_index, output_index


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
