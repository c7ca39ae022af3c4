"""Converting tensors of other libraries: where each of our variables comes from, and assigning them."""

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import keras
import numpy as np

from keras_resnet.errors import InputError, one_line
from keras_resnet.models.config import ResNetConfig
from keras_resnet.weights.transfer import (
    HEAD,
    adapt_stem,
    differs_in_channels,
    differs_in_classes,
    own_layers,
    stem_of,
)

MAX_ELEMENTS = 2**31
"""The most elements that all tensors of a file may have; the widest ResNets have a tenth of it."""

BN_ATTRIBUTES = ("gamma", "beta", "moving_mean", "moving_variance")

Variable = tuple[str, str]
"""A variable of ours: the names of its layer and of its attribute."""


class Source(NamedTuple):
    """Where one of our variables comes from.

    Attributes:
        names: of their tensors, which are added with the signs below.
        axes: their axes in the order of ours.
        signs: +1 or -1 for each tensor.
        offset: added at the end.
        reversed_axis: of ours, along which theirs has the opposite order.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...] = (0,)
    signs: tuple[int, ...] = (1,)
    offset: float = 0.0
    reversed_axis: int | None = None

    def compute(self, tensors: dict[str, np.ndarray]) -> object:
        """Our variable's value, as an array or a tensor."""
        if self.signs == (1,) and not self.offset:
            value = tensors[self.names[0]].astype("float32", copy=False)
            if self.reversed_axis is not None:
                value = np.flip(value, self.axes[self.reversed_axis])
            # NumPy takes four times as long to transpose, on one core.
            in_order = self.axes == tuple(range(len(self.axes)))
            return value if in_order else keras.ops.transpose(value, self.axes)
        # In 64 bits: the offset would be lost beside a variance of 1.
        terms = [tensors[name].astype("float64") for name in self.names]
        signed = (sign * term for sign, term in zip(self.signs, terms, strict=True))
        return (sum(signed) + self.offset).astype("float32")


def convolutions(config: ResNetConfig) -> Iterator[tuple[str, int | None, int, int]]:
    """(our prefix, stage from 1, block from 0, number in the block); the stem's stage is None."""
    if config.stem == "deep":
        for number in (1, 2, 3):
            yield f"conv1_{number}", None, 0, number
    else:
        yield "conv1", None, 0, 0
    width = config.stage_filters[0] if config.stem == "cifar" else 64
    for stage, (depth, filters) in enumerate(zip(config.stage_depths, config.stage_filters, strict=True)):
        for index in range(depth):
            prefix = f"conv{stage + 2}_block{index + 1}"
            strides = stage > 0 and index == 0 and config.block != "preactivation"
            changes = strides or width != filters * config.expansion
            projected = config.shortcut == "C" or (config.shortcut in ("B", "D") and changes)
            for number in range(0 if projected else 1, 3 if config.block == "basic" else 4):
                yield f"{prefix}_{number}", stage + 1, index, number
            width = filters * config.expansion


class Budget:
    """Counts the elements of a file's tensors before they are read."""

    def __init__(self, path: str | os.PathLike):
        self.path, self.left = path, MAX_ELEMENTS

    def take(self, name: str, shape: Iterable[int]) -> None:
        """Subtracts a tensor; `InputError` if the file has too many elements."""
        count = 1
        for size in shape:  # Python's integers do not overflow
            count *= int(size)
        self.left -= count
        if self.left < 0:
            raise InputError(f"{self.path} is too large: over {MAX_ELEMENTS} elements at {one_line(name)}")


def count_classes(tensors: dict[str, np.ndarray]) -> int | None:
    """The number of classes of a file's tensors, or None without a classifier."""
    for name in ("fc.bias", f"{HEAD}/bias"):
        if name in tensors and tensors[name].ndim == 1 and tensors[name].size:
            return tensors[name].size
    return None


def assign_tensors(
    model: keras.Model,
    table: dict[Variable, Source],
    tensors: dict[str, np.ndarray],
    path: object,
    *,
    transfer: bool = False,
) -> None:
    """Assigns another library's tensors to a network, completely or not at all.

    Every tensor must have its place in the network, and every variable of the network its tensor, with
    equal shapes.

    Args:
        model: of `build_resnet`.
        table: where the model's variables come from.
        tensors: by name; emptied as they are assigned, because together with the network they need twice
            the file's memory.
        path: of the file, for messages.
        transfer: as `load_weights` has it.

    Raises:
        InputError: the tensors do not fit, and the model is unchanged; the message lists what is missing,
            left over or misshapen.
    """
    # Counts training steps, for a kind of momentum that ResNets do not use.
    for name in [name for name in tensors if name.split(".")[-1] == "num_batches_tracked"]:
        del tensors[name]
    layers = own_layers(model) if transfer else model.layers
    variables = {(layer.name, v.name): v for layer in layers for v in layer.weights}
    stem = (stem_of(model), "kernel")
    ignored = set()
    if transfer and _head_differs(table, tensors, variables):
        for attribute in ("kernel", "bias"):
            variables.pop((HEAD, attribute), None)
            ignored.add(table[HEAD, attribute].names[0])
    problems = _problems(table, tensors, variables, ignored, stem if transfer else None)
    if any(problems.values()):
        listed = "; ".join(f"{word}: {_few(items)}" for word, items in problems.items() if items)
        raise InputError(f"{path} does not fit {model.name}: {listed}{_class_counts(tensors, variables)}")
    for key, variable in variables.items():
        value = table[key].compute(tensors)
        for name in table[key].names:
            del tensors[name]
        if key == stem:
            value = adapt_stem(keras.ops.convert_to_numpy(value), variable.shape[2])
        variable.assign(value)


def _problems(
    table: dict[Variable, Source],
    tensors: dict[str, np.ndarray],
    variables: dict[Variable, keras.Variable],
    ignored: set[str],
    adaptable: Variable | None,
) -> dict[str, list[str]]:
    """What is missing, left over and misshapen; the adaptable kernel may differ in its channels."""
    unused, missing, misshapen = dict.fromkeys(name for name in tensors if name not in ignored), [], []
    for key, variable in variables.items():
        if key not in table:
            missing.append("/".join(key))
            continue
        axes = table[key].axes
        shape = [0] * len(axes)
        for size, axis in zip(variable.shape, axes, strict=True):
            shape[axis] = size
        for name in table[key].names:
            if name not in tensors:
                missing.append(name)
                continue
            unused.pop(name)
            tensor = tensors[name]
            theirs = tuple(tensor.shape[axis] for axis in axes) if tensor.ndim == len(shape) else ()
            adapts = key == adaptable and differs_in_channels(theirs, tuple(variable.shape))
            if tensor.shape != tuple(shape) and not adapts:
                misshapen.append(f"{name} is {_spell(tensor.shape)}, not {_spell(shape)}")
            elif tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
                misshapen.append(f"{name} is of type {tensor.dtype}")
    return {"missing": missing, "left over": list(unused), "misshapen": misshapen}


def _head_differs(
    table: dict[Variable, Source],
    tensors: dict[str, np.ndarray],
    variables: dict[Variable, keras.Variable],
) -> bool:
    """Whether the network lacks the file's classifier, or has another number of classes."""
    if (HEAD, "kernel") not in variables:
        return True
    source, variable = table[HEAD, "kernel"], variables[HEAD, "kernel"]
    tensor = tensors.get(source.names[0])
    if tensor is None or tensor.ndim != 2:
        return False
    return differs_in_classes(tuple(tensor.shape[axis] for axis in source.axes), tuple(variable.shape))


def _class_counts(tensors: dict[str, np.ndarray], variables: dict[Variable, keras.Variable]) -> str:
    theirs, bias = count_classes(tensors), variables.get((HEAD, "bias"))
    if bias is None or theirs in (None, bias.shape[0]):
        return ""
    return f" (the file has {theirs} classes, the network {bias.shape[0]})"


def _few(items: list[str], count: int = 3) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(one_line(item) for item in items[:count]) + more


def _spell(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
