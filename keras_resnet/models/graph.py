"""The graph of a functional Keras model: the only module that reads Keras' private nodes."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer.

    A model called inside another model is one call; its `inputs` and `outputs` are the outer tensors.
    """

    layer: keras.Operation  # a `keras.layers.Layer`, or a function of `keras.ops`
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]


def layer_calls(outputs: Iterable[keras.KerasTensor]) -> list[LayerCall]:
    """Returns the calls that `outputs` depend on, input layers among them, each after those it depends on."""
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
    """Returns what identifies a symbolic tensor: the layer, which of its calls, which of the outputs."""
    layer, call_index, output_index = _history(tensor)
    return id(layer), call_index, output_index


def _node(tensor: keras.KerasTensor) -> Any:
    layer, call_index, _ = _history(tensor)
    return layer._inbound_nodes[call_index]


def _history(tensor: Any) -> Any:
    return tensor._keras_history


@contextlib.contextmanager
def recursion_limit(limit: int = 20_000) -> Iterator[None]:
    """Raises Python's recursion limit inside the block: Keras walks graphs recursively.

    Building `cifar_resnet1202`, and loading its saved graph, need it.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, limit))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
