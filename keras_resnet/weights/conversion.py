"""Converts tensors of other libraries to variables of our networks, and adapts weights to new ends."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_resnet.errors import InputError, one_line
from keras_resnet.models.config import ResNetConfig

HEAD = "predictions"
MAX_ELEMENTS = 2**31  # of all tensors of a file; ten times those of the widest ResNets

BN_ATTRIBUTES = ("gamma", "beta", "moving_mean", "moving_variance")

Variable = tuple[str, str]
"""One of our variables: (layer name, attribute)."""


class Source(NamedTuple):
    """Defines one of our variables by other libraries' tensors.

    Attributes:
        names: the tensors, which are added with `signs`.
        axes: their axes in our order.
        offset: added to the sum.
        reversed_axis: axis of ours that has the opposite order in their tensor.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...] = (0,)
    signs: tuple[int, ...] = (1,)
    offset: float = 0.0
    reversed_axis: int | None = None

    def compute(self, tensors: Mapping[str, np.ndarray]) -> Any:
        """Returns the value of our variable as an array or a tensor."""
        if self.signs == (1,) and not self.offset:
            value = tensors[self.names[0]].astype("float32", copy=False)
            if self.reversed_axis is not None:
                value = np.flip(value, self.axes[self.reversed_axis])
            # Four times as fast as NumPy, which transposes on one core.
            in_order = self.axes == tuple(range(len(self.axes)))
            return value if in_order else keras.ops.transpose(value, self.axes)
        # float32 would lose the offset next to a variance of 1.
        terms = [tensors[name].astype("float64") for name in self.names]
        signed = (sign * term for sign, term in zip(self.signs, terms, strict=True))
        return np.asarray(sum(signed) + self.offset).astype("float32")


def convolutions(config: ResNetConfig) -> Iterator[tuple[str, int | None, int, int]]:
    """Yields (our prefix, stage from 1, block from 0, number in the block); the stem's stage is None."""
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
    """Limits the elements of a file's tensors before they are read."""

    def __init__(self, path: str | os.PathLike):
        self.path, self.left = path, MAX_ELEMENTS

    def take(self, name: str, shape: Iterable[int]) -> None:
        """Subtracts a tensor; raises `InputError` if the file has too many elements."""
        count = 1
        for size in shape:  # Python integers do not overflow
            count *= int(size)
        self.left -= count
        if self.left < 0:
            raise InputError(f"{self.path} is too large: over {MAX_ELEMENTS} elements at {one_line(name)}")


def count_classes(tensors: dict[str, np.ndarray]) -> int | None:
    """Returns the number of classes of a file's tensors, or None without a classifier."""
    for name in ("fc.bias", f"{HEAD}/bias"):
        if name in tensors and tensors[name].ndim == 1 and tensors[name].size:
            return tensors[name].size
    return None


def assign_tensors(
    model: keras.Model,
    table: dict[Variable, Source],
    tensors: dict[str, np.ndarray],
    path: str | os.PathLike,
    *,
    transfer: bool = False,
) -> None:
    """Assigns another library's tensors to a model built by `build_resnet`.

    The tensors and the variables must match one to one, with equal shapes. Tensors are removed from
    `tensors` as they are assigned, because both together need twice the memory of the file.

    Raises:
        InputError: the tensors do not fit; the message lists which ones. The model is unchanged.
    """
    # PyTorch's step counters are only needed for a cumulative moving average.
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
            value = adapt_stem(np.asarray(keras.ops.convert_to_numpy(value)), variable.shape[2])
        variable.assign(value)


def _problems(
    table: dict[Variable, Source],
    tensors: dict[str, np.ndarray],
    variables: dict[Variable, keras.Variable],
    ignored: set[str],
    adaptable: Variable | None,
) -> dict[str, list[str]]:
    """Lists what is missing, left over and misshapen; `adaptable` may differ in its channels."""
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
                misshapen.append(f"{name} is {spell_shape(tensor.shape)}, not {spell_shape(shape)}")
            elif tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
                misshapen.append(f"{name} is of type {tensor.dtype}")
    return {"missing": missing, "left over": list(unused), "misshapen": misshapen}


def _head_differs(
    table: dict[Variable, Source],
    tensors: dict[str, np.ndarray],
    variables: dict[Variable, keras.Variable],
) -> bool:
    """Returns whether the network has no classifier or another number of classes than the file."""
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
    """Converts the kernel (height, width, in, filters) of a first convolution to other input channels.

    As in timm, the kernel is summed over its channels for one channel, otherwise repeated and scaled.
    """
    old = kernel.shape[2]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, -(-channels // old), 1))[:, :, :channels]
    return repeated * np.asarray(old / channels, kernel.dtype)


def differs_in_channels(kernel: tuple, other: tuple) -> bool:
    """Returns whether two kernels' shapes (height, width, in, out) differ only in their input channels."""
    same_besides = kernel[:2] + kernel[3:] == other[:2] + other[3:]
    return len(kernel) == len(other) == 4 and same_besides and kernel != other and kernel[2] > 0


def differs_in_classes(kernel: tuple, other: tuple) -> bool:
    """Returns whether two classifiers' shapes (in, classes) differ only in their classes."""
    return len(kernel) == len(other) == 2 and kernel != other and kernel[0] == other[0]
