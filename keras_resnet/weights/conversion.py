"""Converts tensors of other libraries to variables of our networks and back; adapts weights to new ends."""

import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_resnet.errors import InputError, one_line
from keras_resnet.models.config import ResNetConfig

HEAD = "predictions"
MAX_ELEMENTS = 2**31  # of all tensors of a file; ten times those of the widest ResNets

BN_ATTRIBUTES = ("gamma", "beta", "moving_mean", "moving_variance")

Variable = tuple[str, str]  # of ours: (layer name, attribute)
Tensors = dict[str, np.ndarray]  # of a file, by name


class Source(NamedTuple):
    """Defines a variable of ours as the sum of another library's tensors, times `signs`, and `offset`.

    `axes` are the tensors' axes in our order. The order along `reversed_axis`, an axis of ours, is reversed.
    Of a dense layer after a map of shape `flattened`, (channels, height, width), the inputs are reordered to
    (height, width, channels).
    """

    names: tuple[str, ...]
    axes: tuple[int, ...] = (0,)
    signs: tuple[int, ...] = (1,)
    offset: float = 0.0
    reversed_axis: int | None = None
    flattened: tuple[int, int, int] | None = None

    def shape_of(self, tensor: np.ndarray | None) -> tuple[int, ...]:
        """Returns a tensor's shape in our order; () without a tensor or with another number of axes."""
        if tensor is None or tensor.ndim != len(self.axes):
            return ()
        return tuple(tensor.shape[axis] for axis in self.axes)

    def compute(self, tensors: Tensors) -> Any:
        """Returns the value of the variable as an array or a tensor."""
        if self.signs == (1,) and not self.offset:
            value = tensors[self.names[0]].astype("float32", copy=False)
            if self.reversed_axis is not None:
                value = np.flip(value, self.axes[self.reversed_axis])
            if self.flattened is not None:
                maps = keras.ops.transpose(value.reshape(-1, *self.flattened), (2, 3, 1, 0))
                return keras.ops.reshape(maps, (-1, len(value)))
            # Four times as fast as NumPy, which transposes on one core.
            in_order = self.axes == tuple(range(len(self.axes)))
            return value if in_order else keras.ops.transpose(value, self.axes)
        # float32 would lose the offset next to a variance of 1.
        terms = [tensors[name].astype("float64") for name in self.names]
        signed = (sign * term for sign, term in zip(self.signs, terms, strict=True))
        return np.asarray(sum(signed) + self.offset).astype("float32")

    def restore(self, value: np.ndarray) -> Tensors:
        """Returns tensors from which `compute` gives `value`; all but the first are zeros.

        With an `offset`, float32 rounds values that are smaller than it, such as variances of dead channels.
        """
        tensor = value.astype("float32", copy=False)
        if self.flattened is not None:
            channels, height, width = self.flattened
            maps = tensor.reshape(height, width, channels, -1)
            tensor = maps.transpose(3, 2, 0, 1).reshape(maps.shape[-1], -1)
        else:
            tensor = tensor.transpose(np.argsort(self.axes))
        if self.reversed_axis is not None:
            tensor = np.flip(tensor, self.axes[self.reversed_axis])
        if self.offset:
            tensor = (tensor.astype("float64") - self.offset).astype("float32")
        first, *others = self.names
        return {first: np.ascontiguousarray(tensor), **{name: np.zeros_like(tensor) for name in others}}


Table = dict[Variable, Source]


def convolutions(config: ResNetConfig) -> Iterator[tuple[str, int | None, int, int]]:
    """Yields (our prefix, stage from 1, block from 0, number in the block); the stem's stage is None."""
    for number in (1, 2, 3) if config.stem == "deep" else (0,):
        yield f"conv1_{number}" if number else "conv1", None, 0, number
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
    """Limits the number and the elements of a file's tensors, by its size, before they are read."""

    def __init__(self, path: str | os.PathLike):
        self.path, self.left = path, min(MAX_ELEMENTS, os.stat(path).st_size)

    def take(self, name: str, shape: Iterable[int]) -> None:
        """Subtracts a tensor; raises `InputError` if the file has too many elements."""
        # Python integers do not overflow. A name and a shape take more than 32 bytes in every format.
        self.left -= math.prod(map(int, shape)) + 32
        if self.left < 0:
            raise InputError(f"{self.path} holds tensors that are too large for it, at {one_line(name)}")


def count_classes(tensors: Tensors) -> int | None:
    """Returns the number of classes of a file's tensors, or None without a classifier."""
    for name in ("fc.bias", f"{HEAD}/bias"):
        if name in tensors and tensors[name].ndim == 1 and tensors[name].size:
            return tensors[name].size
    return None


def assign_tensors(
    model: keras.Model, table: Table, tensors: Tensors, path: str | os.PathLike, *, transfer: bool = False
) -> None:
    """Assigns another library's tensors, which must match one to one, to a model built by `build_resnet`.

    Tensors are removed from `tensors` as they are assigned, to save memory. If they do not fit, `InputError`
    lists which ones, and the model is unchanged.
    """
    drop_step_counters(tensors)
    layers = own_layers(model) if transfer else model.layers
    variables = {(layer.name, v.name): v for layer in layers for v in layer.weights}
    stem = (stem_of(model), "kernel")
    source, head = table[HEAD, "kernel"], variables.get((HEAD, "kernel"))
    theirs = source.shape_of(tensors.get(source.names[0]))
    if transfer and (head is None or differs_only(theirs, tuple(head.shape), axis=1)):
        for attribute in ("kernel", "bias"):
            variables.pop((HEAD, attribute), None)
            tensors.pop(table[HEAD, attribute].names[0], None)
    classes, bias, hint = count_classes(tensors), variables.get((HEAD, "bias")), ""
    if bias is not None and classes not in (None, bias.shape[0]):
        hint = f" (the file has {classes} classes, the network {bias.shape[0]})"
    check_tensors(
        variables, table, tensors, f"{path} does not fit {model.name}", hint, stem if transfer else None
    )
    assign_variables(variables, table, tensors, stem)


def collect_tensors(model: keras.Model, table: Table) -> Tensors:
    """Returns the weights of a model built by `build_resnet` as another library's tensors."""
    tensors = {}
    for layer in own_layers(model):
        for variable in layer.weights:
            value = np.asarray(keras.ops.convert_to_numpy(variable))
            tensors.update(table[layer.name, variable.name].restore(value))
    return tensors


def drop_step_counters(tensors: Tensors) -> None:
    """Removes PyTorch's step counters, which are only needed for a cumulative moving average."""
    for name in [name for name in tensors if name.split(".")[-1] == "num_batches_tracked"]:
        del tensors[name]


def check_tensors(
    variables: dict[Variable, keras.Variable],
    table: Table,
    tensors: Tensors,
    sentence: str,
    hint: str = "",
    adaptable: Variable | None = None,
) -> None:
    """Raises `InputError` unless tensors and variables match one to one.

    Its message is `sentence`, the tensors that do not match, and `hint`. `adaptable`, a convolution, may
    differ in its input channels.
    """
    problems = _problems(table, tensors, variables, adaptable)
    if any(problems.values()):
        listed = "; ".join(f"{word}: {_few(items)}" for word, items in problems.items() if items)
        raise InputError(f"{sentence}: {listed}{hint}")


def assign_variables(
    variables: dict[Variable, keras.Variable], table: Table, tensors: Tensors, stem: Variable | None = None
) -> None:
    """Assigns checked tensors, and removes them from `tensors`; `stem` is adapted to its input channels."""
    for key, variable in variables.items():
        value = table[key].compute(tensors)
        for name in table[key].names:
            del tensors[name]
        if key == stem:
            value = adapt_stem(np.asarray(keras.ops.convert_to_numpy(value)), variable.shape[2])
        variable.assign(value)


def _problems(
    table: Table, tensors: Tensors, variables: dict[Variable, keras.Variable], adaptable: Variable | None
) -> dict[str, list[str]]:
    """Lists what is missing, left over and misshapen; `adaptable` may differ in its channels."""
    unused, missing, misshapen = dict.fromkeys(tensors), [], []
    for key, variable in variables.items():
        if key not in table:
            missing.append("/".join(key))
            continue
        source, ours = table[key], tuple(variable.shape)
        for name in source.names:
            if name not in tensors:
                missing.append(name)
                continue
            unused.pop(name)
            tensor = tensors[name]
            theirs = source.shape_of(tensor)
            if theirs != ours and not (key == adaptable and differs_only(theirs, ours, axis=2)):
                expected = (size for _, size in sorted(zip(source.axes, ours, strict=True)))
                misshapen.append(f"{name} is {spell_shape(tensor.shape)}, not {spell_shape(expected)}")
            elif tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
                misshapen.append(f"{name} is of type {tensor.dtype}")
    return {"missing": missing, "left over": list(unused), "misshapen": misshapen}


def _few(items: list[str], count: int = 3) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(one_line(item) for item in items[:count]) + more


def spell_shape(shape: Iterable[int]) -> str:
    """Formats a shape for messages, such as 3x3x64."""
    return "x".join(map(str, shape)) or "scalar"


def own_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers built by `build_resnet`, without those before an `input_tensor`."""
    return [layer for layer in model.layers if re.match(r"conv\d+_|post_|predictions$", layer.name)]


def stem_of(model: keras.Model) -> str:
    """Returns the name of the first convolution."""
    return next(layer.name for layer in own_layers(model) if isinstance(layer, keras.layers.Conv2D))


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts a kernel (height, width, in, filters) to other input channels, as timm does."""
    old = kernel.shape[2]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, -(-channels // old), 1))[:, :, :channels]
    return repeated * np.asarray(old / channels, kernel.dtype)


def differs_only(theirs: tuple, ours: tuple, axis: int) -> bool:
    """Returns whether the shapes of two kernels differ, and only in the size of one axis."""
    different = [i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b]
    return len(theirs) == len(ours) and different == [axis] and theirs[axis] > 0
