"""Other zoos' weight files, read into our networks: torchvision, timm and keras.applications.

Nothing in a file is executed, no link out of it is followed, and every tensor has exactly one place.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import keras
import numpy as np

from keras_resnet.config import ResNetConfig
from keras_resnet.errors import InputError
from keras_resnet.weights.files import _hard, _is_weight, _layer_groups, _read, open_hdf5

# Over all tensors of a file; the widest ResNets have a tenth of it.
MAX_ELEMENTS = 2**31

_BN_ATTRIBUTES = ("gamma", "beta", "moving_mean", "moving_variance")
_TOP_ALIASES = ("probs", "fc1000")  # the classifier in older files of keras.applications
_EPSILON_EXCESS = 1e-8  # keras.applications' epsilon, 1.001e-5, over ours, 1e-5


class Source(NamedTuple):
    """Where one of our variables comes from.

    Attributes:
        names: of their tensors, which are added with the signs below.
        axes: their axes in the order of ours.
        signs: +1 or -1 for each tensor.
        offset: added at the end.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...] = (0,)
    signs: tuple[int, ...] = (1,)
    offset: float = 0.0

    def compute(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        """Our variable's value."""
        if self.signs == (1,) and not self.offset:
            return np.transpose(tensors[self.names[0]], self.axes).astype("float32", copy=False)
        # In 64 bits: the offset would be lost beside a variance of 1.
        terms = [tensors[name].astype("float64") for name in self.names]
        signed = (sign * term for sign, term in zip(self.signs, terms, strict=True))
        return (sum(signed) + self.offset).astype("float32")


def torch_names(config: ResNetConfig) -> dict[tuple[str, str], Source]:
    """Where the variables of a network come from in a torchvision or timm state dict.

    Args:
        config: the network.

    Returns:
        From (layer's name, variable's name) of ours to the source.

    Raises:
        InputError: neither zoo has such a network.
    """
    if config.shortcut not in ("B", "C"):
        raise InputError(
            "torchvision's and timm's networks have projection shortcuts; "
            f"shortcut is {config.shortcut!r} here"
        )
    if config.block == "bottleneck" and config.bottleneck_stride != "3x3":
        raise InputError(
            "torchvision's and timm's bottlenecks have their stride on the 3x3 convolution: "
            "load them into a network named ..._v1_5"
        )
    table = {}
    for layer, stage, index, number in _convolutions(config):
        if stage is None:
            conv, bn = "conv1", "bn1"
        elif number == 0:
            conv, bn = (f"layer{stage}.{index}.downsample.{part}" for part in (0, 1))
        else:
            conv, bn = (f"layer{stage}.{index}.{part}{number}" for part in ("conv", "bn"))
        table[f"{layer}_conv", "kernel"] = Source((f"{conv}.weight",), (2, 3, 1, 0))  # OIHW
        theirs = ("weight", "bias", "running_mean", "running_var")
        for ours, name in zip(_BN_ATTRIBUTES, theirs, strict=True):
            table[f"{layer}_bn", ours] = Source((f"{bn}.{name}",))
    table["predictions", "kernel"] = Source(("fc.weight",), (1, 0))
    table["predictions", "bias"] = Source(("fc.bias",))
    return table


def applications_names(config: ResNetConfig) -> dict[tuple[str, str], Source]:
    """Where the variables of a network come from in keras.applications' ResNet50, 101 or 152.

    Their convolutions have biases and their batch normalization another epsilon; both move into the
    moving statistics without changing the network.

    Args:
        config: the network.

    Returns:
        From (layer's name, variable's name) of ours to the source; theirs are "layer/variable".

    Raises:
        InputError: keras.applications has no such network.
    """
    wanted = {"block": "bottleneck", "stem": "imagenet", "shortcut": "B", "bottleneck_stride": "1x1"}
    for field, theirs in wanted.items():
        if (ours := getattr(config, field)) != theirs:
            raise InputError(
                f"keras.applications' ResNets are resnet50, resnet101 and resnet152: "
                f"{field} is {theirs!r} there, {ours!r} here"
            )
    table = {}
    for layer, *_ in _convolutions(config):
        conv, bn = f"{layer}_conv", f"{layer}_bn"
        table[conv, "kernel"] = Source((f"{conv}/kernel",), (0, 1, 2, 3))
        table[bn, "gamma"] = Source((f"{bn}/gamma",))
        table[bn, "beta"] = Source((f"{bn}/beta",))
        table[bn, "moving_mean"] = Source((f"{bn}/moving_mean", f"{conv}/bias"), signs=(1, -1))
        table[bn, "moving_variance"] = Source((f"{bn}/moving_variance",), offset=_EPSILON_EXCESS)
    table["predictions", "kernel"] = Source(("predictions/kernel",), (0, 1))
    table["predictions", "bias"] = Source(("predictions/bias",))
    return table


def _convolutions(config: ResNetConfig) -> Iterator[tuple[str, int | None, int, int]]:
    """(our prefix, stage from 1, block from 0, number in the block); the stem's stage is None."""
    yield "conv1", None, 0, 0
    width = 64 if config.stem == "imagenet" else config.stage_filters[0]
    for stage, (depth, filters) in enumerate(zip(config.stage_depths, config.stage_filters, strict=True)):
        for index in range(depth):
            prefix = f"conv{stage + 2}_block{index + 1}"
            changes = (stage > 0 and index == 0) or width != filters * config.expansion
            projected = config.shortcut == "C" or (config.shortcut == "B" and changes)
            for number in range(0 if projected else 1, 4 if config.block == "bottleneck" else 3):
                yield f"{prefix}_{number}", stage + 1, index, number
            width = filters * config.expansion


def read_tensors(path: str | os.PathLike) -> tuple[str, dict[str, np.ndarray]]:
    """Reads all tensors of another zoo's file, by its name's ending.

    Args:
        path: `.safetensors`, `.pth` or `.pt` of torchvision or timm; `.h5` of keras.applications in
            the old layout or in Keras 3's.

    Returns:
        The kind of names, "torch" or "applications", and the tensors by name. Names of
        keras.applications are "layer/variable".

    Raises:
        InputError: the file is missing, damaged, too large or of no known kind, or the package that
            reads it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weight file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    if path.suffix == ".safetensors":
        return "torch", _strip_prefix(_read_safetensors(path), path)
    if path.suffix in (".pth", ".pt"):
        return "torch", _strip_prefix(_read_torch(path), path)
    if path.suffix in (".h5", ".hdf5"):
        return "applications", _read_hdf5(path)
    raise InputError(f"{path} is no .safetensors, .pth, .pt or .h5 file")


class _Budget:
    """Counts elements before they are read."""

    def __init__(self, path):
        self.path, self.left = path, MAX_ELEMENTS

    def take(self, name, shape):
        count = 1
        for size in shape:  # Python's integers do not overflow
            count *= int(size)
        self.left -= count
        if self.left < 0:
            raise InputError(f"{self.path} is too large: over {MAX_ELEMENTS} elements at {_one_line(name)}")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
    except ImportError:
        raise InputError(f"{path} needs the package safetensors: pip install safetensors") from None
    tensors, budget = {}, _Budget(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                budget.take(name, file.get_slice(name).get_shape())
                tensors[name] = file.get_tensor(name)
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is truncated or damaged ({_one_line(error)})") from None
    return tensors


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} needs PyTorch: install torch, or convert the file to .safetensors"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        # CVE-2025-32434: its `weights_only` can be made to run code.
        raise InputError(f"{path} needs torch 2.6 or newer to be read safely; this is {torch.__version__}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch promises nothing about what a damaged file raises
        # The first sentence: the next ones advise to switch the safe reader off.
        reason = _one_line(str(error).split("\n")[0].split(". ")[0]) or type(error).__name__
        raise InputError(f"{path} is damaged, or holds more than tensors ({reason})") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict")
    tensors, budget = {}, _Budget(path)
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"{path} holds something that is no weight at {_one_line(name)}")
        budget.take(name, tensor.shape)
        try:
            if tensor.dtype == torch.bfloat16:
                tensor = tensor.float()  # NumPy knows no such type
            tensors[name] = tensor.detach().numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantized, without storage, ...
            raise InputError(f"{path}: {_one_line(name)} is no plain tensor ({_one_line(error)})") from None
    return tensors


def _strip_prefix(tensors: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Without the `module.` that DataParallel puts before every name."""
    stripped = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if len(stripped) != len(tensors):
        raise InputError(f"{path} has tensors twice, with and without the prefix 'module.'")
    return stripped


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    tensors, budget = {}, _Budget(path)
    with open_hdf5(path) as file:
        pairs = _new_layout(file, path) if "layers" in file else _old_layout(file, path)
        for name, dataset in pairs:
            if name in tensors:
                raise InputError(f"{path} has {_one_line(name)} twice")
            budget.take(name, dataset.shape)
            tensors[name] = _read(dataset)
    if not tensors:
        raise InputError(f"{path} holds no weights of a Keras model")
    return tensors


def _new_layout(file: h5py.File, path: Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """Keras 3's: numbered variables, in the order in which the layers make them."""
    for layer, datasets in _layer_groups(file, path).items():
        attributes = _BN_ATTRIBUTES if len(datasets) == 4 else ("kernel", "bias")
        for index, dataset in enumerate(datasets):
            attribute = attributes[index] if index < len(attributes) else str(index)
            yield f"{layer}/{attribute}", dataset


def _old_layout(file: h5py.File, path: Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """Keras 1's and 2's: a group a layer, with its variables' names as an attribute."""
    root = _hard(file, "model_weights", path) if "model_weights" in file else file
    for layer in root if isinstance(root, h5py.Group) else ():
        group = _hard(root, layer, path)
        if not isinstance(group, h5py.Group):
            continue
        for name in _names(group):
            dataset = group
            # Step by step: only the last link of a path can be asked for.
            for part in filter(None, name.split("/")):
                dataset = _hard(dataset, part, path) if isinstance(dataset, h5py.Group) else None
            if not _is_weight(dataset):
                raise InputError(f"{path} holds something that is no weight at {_one_line(layer)}")
            yield f"{layer}/{name.split('/')[-1].removesuffix(':0')}", dataset


def _names(group: h5py.Group) -> list[str]:
    """The attribute `weight_names`, which Keras splits where it exceeds HDF5's 64 KiB."""
    keys = ["weight_names"]
    if keys[0] not in group.attrs:
        keys = [key for key in group.attrs if key.startswith("weight_names") and key[12:].isdigit()]
        keys.sort(key=lambda key: int(key[12:]))
    values = [value for key in keys for value in group.attrs[key]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def count_classes(tensors: dict[str, np.ndarray]) -> int | None:
    """The number of classes of what `read_tensors` read, or None without a classifier."""
    for name in ("fc.bias", *(f"{layer}/bias" for layer in ("predictions", *_TOP_ALIASES))):
        if name in tensors and tensors[name].ndim == 1 and tensors[name].size:
            return tensors[name].size
    return None


def load_foreign(model: keras.Model, path: str | os.PathLike, config: ResNetConfig) -> None:
    """Loads another zoo's file into a network that was built here; all of it or nothing.

    Every tensor of the file must have its place in the network, and every variable of the network
    its tensor, with equal shapes. Images go in as the file's own network takes them: those of
    keras.applications have their channels in the order blue, green, red.

    Args:
        model: of `build_resnet`, with the classifier.
        path: see `read_tensors`.
        config: of the model.

    Raises:
        InputError: the file cannot be read or does not fit; it lists what is missing, left over or
            misshapen.
    """
    kind, tensors = read_tensors(path)
    assign_tensors(model, kind, tensors, config, path)


def assign_tensors(
    model: keras.Model, kind: str, tensors: dict[str, np.ndarray], config: ResNetConfig, source: object
) -> None:
    """The second half of `load_foreign`: puts what `read_tensors` read into a network.

    Args:
        model: of `build_resnet`.
        kind: "torch" or "applications".
        tensors: by their names.
        config: of the model.
        source: the file, for messages.

    Raises:
        InputError: the tensors do not fit; the model is as it was.
    """
    if kind == "torch":
        table = torch_names(config)
        # Counts training steps, for a momentum that no ResNet uses.
        tensors = {n: tensor for n, tensor in tensors.items() if n.split(".")[-1] != "num_batches_tracked"}
    else:
        table = applications_names(config)
        tensors = _rename_top(tensors)

    variables = {(layer.name, v.name): v for layer in model.layers for v in layer.weights}
    unused, missing, misshapen = dict.fromkeys(tensors), [], []
    for key, variable in variables.items():
        if key not in table:
            missing.append("/".join(key))
            continue
        wanted = table[key]
        shape = [0] * len(wanted.axes)
        for size, axis in zip(variable.shape, wanted.axes, strict=True):
            shape[axis] = size
        for name in wanted.names:
            if name not in tensors:
                missing.append(name)
                continue
            unused.pop(name)
            tensor = tensors[name]
            if tensor.shape != tuple(shape):
                misshapen.append(f"{name} is {_spell(tensor.shape)}, not {_spell(shape)}")
            elif tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
                misshapen.append(f"{name} is of type {tensor.dtype}")

    problems = {"missing": missing, "left over": list(unused), "misshapen": misshapen}
    if any(problems.values()):
        told = "; ".join(f"{word}: {_few(items)}" for word, items in problems.items() if items)
        raise InputError(f"{source} does not fit {model.name}: {told}{_told_classes(tensors, variables)}")
    for key, variable in variables.items():
        variable.assign(table[key].compute(tensors))


def _rename_top(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if "predictions/kernel" in tensors or "predictions/bias" in tensors:
        return tensors
    # One alias only: a second classifier must be left over.
    alias = next((layer for layer in _TOP_ALIASES if f"{layer}/kernel" in tensors), None)
    moved = {f"{alias}/{attribute}": f"predictions/{attribute}" for attribute in ("kernel", "bias")}
    return {moved.get(name, name): tensor for name, tensor in tensors.items()}


def _told_classes(tensors, variables) -> str:
    theirs, bias = count_classes(tensors), variables.get(("predictions", "bias"))
    if bias is None or theirs in (None, bias.shape[0]):
        return ""
    return f" (the file has {theirs} classes, the network {bias.shape[0]})"


def _few(items: list[str], count: int = 3) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(_one_line(item) for item in items[:count]) + more


def _one_line(text: object) -> str:
    """What a file says, fit for a message: printable, on one line, not endless."""
    return " ".join(str(text).encode("unicode_escape").decode("ascii")[:200].split())


def _spell(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
