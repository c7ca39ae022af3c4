"""Other zoos' weight files, read into our networks: torchvision, timm and keras.applications.

Nothing in a file is executed, no link out of it is followed, and every tensor has exactly one place.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization, Preprocessing, usual_resize
from keras_resnet.models.config import ResNetConfig
from keras_resnet.weights.native import (
    _hard,
    _is_weight,
    _layer_groups,
    _read,
    one_line,
    open_hdf5,
    read_attribute,
)
from keras_resnet.weights.transfer import (
    HEAD,
    adapt_stem,
    differs_in_channels,
    differs_in_classes,
    own_layers,
    stem_of,
)

TORCH = (".safetensors", ".pth", ".pt")
HDF5 = (".h5", ".hdf5")
SUFFIXES = TORCH + HDF5

# Over all tensors of a file; the widest ResNets have a tenth of it.
MAX_ELEMENTS = 2**31

_BN_ATTRIBUTES = ("gamma", "beta", "moving_mean", "moving_variance")
# What keras.applications subtracts, as the paper's released models do; here as red, green, blue.
_CAFFE_MEAN = (123.68, 116.779, 103.939)
_TOP_ALIASES = ("probs", "fc1000")  # the classifier in older files of keras.applications
_EPSILON_EXCESS = 1e-8  # keras.applications' epsilon, 1.001e-5, over ours, 1e-5


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

    def compute(self, tensors: dict[str, np.ndarray]):
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


def torch_names(config: ResNetConfig) -> dict[tuple[str, str], Source]:
    """Where the variables of a network come from in a torchvision or timm state dict.

    Args:
        config: the network.

    Returns:
        From (layer's name, variable's name) of ours to the source.

    Raises:
        InputError: neither zoo has such a network.
    """
    if config.block == "preactivation":
        raise InputError(
            "torchvision's and timm's ResNets normalize behind their convolutions; "
            "block is 'preactivation' here"
        )
    if config.shortcut not in ("B", "C", "D"):
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
            # A deep stem is a sequence of convolution, normalization and ReLU, but for its end.
            conv = "conv1" if number == 0 else f"conv1.{3 * (number - 1)}"
            bn = f"conv1.{3 * number - 2}" if number in (1, 2) else "bn1"
        elif number == 0:
            first = 1 if config.shortcut == "D" else 0  # behind the pooling
            conv, bn = (f"layer{stage}.{index}.downsample.{part}" for part in (first, first + 1))
        else:
            conv, bn = (f"layer{stage}.{index}.{part}{number}" for part in ("conv", "bn"))
        table[f"{layer}_conv", "kernel"] = Source((f"{conv}.weight",), (2, 3, 1, 0))  # OIHW
        theirs = ("weight", "bias", "running_mean", "running_var")
        for ours, name in zip(_BN_ATTRIBUTES, theirs, strict=True):
            table[f"{layer}_bn", ours] = Source((f"{bn}.{name}",))
    table[HEAD, "kernel"] = Source(("fc.weight",), (1, 0))
    table[HEAD, "bias"] = Source(("fc.bias",))
    return table


def applications_names(config: ResNetConfig) -> dict[tuple[str, str], Source]:
    """Where the variables of a network come from in keras.applications' ResNet50 ... ResNet152V2.

    Their normalized convolutions have biases and their batch normalization has another epsilon; both
    move into the moving statistics without changing the network. Networks that are not pre-activated
    take blue, green, red there: the first kernel is reversed, for red, green, blue.

    Args:
        config: the network.

    Returns:
        From (layer's name, variable's name) of ours to the source; theirs are "layer/variable".

    Raises:
        InputError: keras.applications has no such network.
    """
    preactivated = config.block == "preactivation"
    wanted = {
        "block": "preactivation" if preactivated else "bottleneck",
        "stem": "imagenet",
        "shortcut": "B",
        "bottleneck_stride": "3x3" if preactivated else "1x1",
        "groups": 1,
        "width_per_group": 64,
    }
    for field, theirs in wanted.items():
        if (ours := getattr(config, field)) != theirs:
            raise InputError(
                "keras.applications' ResNets are resnet50, resnet101, resnet152 and their _v2: "
                f"{field} is {theirs!r} there, {ours!r} here"
            )
    table = {}

    def normalization(bn, bias=None):
        for attribute in _BN_ATTRIBUTES:
            table[bn, attribute] = Source((f"{bn}/{attribute}",))
        if bias is not None:
            table[bn, "moving_mean"] = Source((f"{bn}/moving_mean", bias), signs=(1, -1))
        table[bn, "moving_variance"] = Source((f"{bn}/moving_variance",), offset=_EPSILON_EXCESS)

    for layer, stage, _, number in _convolutions(config):
        conv = f"{layer}_conv"
        reverse = 2 if stage is None and not preactivated else None
        table[conv, "kernel"] = Source((f"{conv}/kernel",), (0, 1, 2, 3), reversed_axis=reverse)
        if not preactivated:
            normalization(f"{layer}_bn", f"{conv}/bias")
        elif stage is None or number in (0, 3):
            table[conv, "bias"] = Source((f"{conv}/bias",))
        else:
            normalization(f"{layer}_bn")
        if preactivated and number == 1:
            normalization(f"{layer.removesuffix('_1')}_preact_bn")
    if preactivated:
        normalization("post_bn")
    table[HEAD, "kernel"] = Source((f"{HEAD}/kernel",), (0, 1))
    table[HEAD, "bias"] = Source((f"{HEAD}/bias",))
    return table


def usual_preprocessing(kind: str, config: ResNetConfig) -> Preprocessing:
    """What the networks of a kind of file were published with; single files may have had another.

    Args:
        kind: "torch" or "applications".
        config: of the network.
    """
    normalization = Normalization.imagenet()
    if kind == "applications":
        # Their preprocess_input's modes "tf" and "caffe", the latter as red, green, blue.
        in_tf_mode = config.block == "preactivation"
        normalization = Normalization(*(((127.5,) * 3,) * 2 if in_tf_mode else (_CAFFE_MEAN, (1.0,) * 3)))
    return Preprocessing(config.input_size, usual_resize(config.input_size), "bilinear", normalization)


def _convolutions(config: ResNetConfig) -> Iterator[tuple[str, int | None, int, int]]:
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


def is_applications(path: str | os.PathLike, config: ResNetConfig) -> bool:
    """Whether an HDF5 file is keras.applications' rather than our own.

    Of a pre-activation network's file in Keras 3's layout that says nothing about itself nobody can
    tell; it is taken for ours, which differs by 1e-8 in the variances.

    Raises:
        InputError: the file is missing, not HDF5, or damaged.
    """
    with open_hdf5(path) as file:
        if "layers" not in file:
            return True
        # Theirs are normalized throughout.
        if read_attribute(file) is not None or config.block == "preactivation" or not config.batch_norm:
            return False
        return len(_layer_groups(file, Path(path)).get("conv1_conv", ())) == 2  # with a bias


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
    if path.suffix in HDF5:
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
            raise InputError(f"{self.path} is too large: over {MAX_ELEMENTS} elements at {one_line(name)}")


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
        raise InputError(f"{path} is truncated or damaged ({one_line(error)})") from None
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
        # Its advice is to switch the safe reader off; what it names is what somebody has to leave out.
        named = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        reason = named[1] if named else str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        reason = one_line(reason)
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
            raise InputError(f"{path} holds something that is no weight at {one_line(name)}")
        budget.take(name, tensor.shape)
        try:
            if tensor.dtype == torch.bfloat16:
                tensor = tensor.float()  # NumPy knows no such type
            tensors[name] = tensor.detach().numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantized, without storage, ...
            raise InputError(f"{path}: {one_line(name)} is no plain tensor ({one_line(error)})") from None
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
        if read_attribute(file) is not None:
            raise InputError(f"{path} is a file of ours already, which networks take as it is")
        pairs = _new_layout(file, path) if "layers" in file else _old_layout(file, path)
        for name, dataset in pairs:
            if name in tensors:
                raise InputError(f"{path} has {one_line(name)} twice")
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
                raise InputError(f"{path} holds something that is no weight at {one_line(layer)}")
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


def load_foreign(
    model: keras.Model, path: str | os.PathLike, config: ResNetConfig, *, transfer: bool = False
) -> str:
    """Loads another zoo's file into a network that was built here; all of it or nothing.

    Every tensor of the file must have its place in the network, and every variable of the network
    its tensor, with equal shapes. Images go in as red, green, blue, whatever the file's own network
    takes.

    Args:
        model: of `build_resnet`.
        path: see `read_tensors`.
        config: of the model.
        transfer: as `load_weights` has it.

    Returns:
        The kind of file, "torch" or "applications".

    Raises:
        InputError: the file cannot be read or does not fit; it lists what is missing, left over or
            misshapen.
    """
    kind, tensors = read_tensors(path)
    assign_tensors(model, kind, tensors, config, path, transfer=transfer)
    return kind


def assign_tensors(
    model: keras.Model,
    kind: str,
    tensors: dict[str, np.ndarray],
    config: ResNetConfig,
    source: object,
    *,
    transfer: bool = False,
) -> None:
    """The second half of `load_foreign`: puts what `read_tensors` read into a network.

    Args:
        model: of `build_resnet`.
        kind: "torch" or "applications".
        tensors: by their names; emptied as they are assigned, because together with the network
            they are twice the file.
        config: of the model.
        source: the file, for messages.
        transfer: as `load_weights` has it.

    Raises:
        InputError: the tensors do not fit; the model is as it was.
    """
    if kind == "torch":
        table = torch_names(config)
        # Counts training steps, for a momentum that no ResNet uses.
        for name in [name for name in tensors if name.split(".")[-1] == "num_batches_tracked"]:
            del tensors[name]
    else:
        table = applications_names(config)
        _rename_top(tensors)

    layers = own_layers(model) if transfer else model.layers
    variables = {(layer.name, v.name): v for layer in layers for v in layer.weights}
    stem = (stem_of(model), "kernel")
    unused, missing, misshapen = dict.fromkeys(tensors), [], []
    if transfer and _head_differs(table, tensors, variables):
        for attribute in ("kernel", "bias"):
            variables.pop((HEAD, attribute), None)
            unused.pop(table[HEAD, attribute].names[0], None)
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
            theirs = tuple(tensor.shape[axis] for axis in wanted.axes) if tensor.ndim == len(shape) else ()
            adapts = transfer and key == stem and differs_in_channels(theirs, tuple(variable.shape))
            if tensor.shape != tuple(shape) and not adapts:
                misshapen.append(f"{name} is {_spell(tensor.shape)}, not {_spell(shape)}")
            elif tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
                misshapen.append(f"{name} is of type {tensor.dtype}")

    problems = {"missing": missing, "left over": list(unused), "misshapen": misshapen}
    if any(problems.values()):
        told = "; ".join(f"{word}: {_few(items)}" for word, items in problems.items() if items)
        raise InputError(f"{source} does not fit {model.name}: {told}{_told_classes(tensors, variables)}")
    for key, variable in variables.items():
        value = table[key].compute(tensors)
        for name in table[key].names:
            del tensors[name]
        if key == stem:
            value = adapt_stem(keras.ops.convert_to_numpy(value), variable.shape[2])
        variable.assign(value)


def _head_differs(table, tensors, variables) -> bool:
    """Whether the network lacks the file's classifier, or has one of other classes alone."""
    if (HEAD, "kernel") not in variables:
        return True
    source, variable = table[HEAD, "kernel"], variables[HEAD, "kernel"]
    tensor = tensors.get(source.names[0])
    if tensor is None or tensor.ndim != 2:
        return False
    return differs_in_classes(tuple(tensor.shape[axis] for axis in source.axes), tuple(variable.shape))


def _rename_top(tensors: dict[str, np.ndarray]) -> None:
    if f"{HEAD}/kernel" in tensors or f"{HEAD}/bias" in tensors:
        return
    # One alias only: a second classifier must be left over.
    alias = next((layer for layer in _TOP_ALIASES if f"{layer}/kernel" in tensors), None)
    for attribute in ("kernel", "bias"):
        if f"{alias}/{attribute}" in tensors:
            tensors[f"{HEAD}/{attribute}"] = tensors.pop(f"{alias}/{attribute}")


def _told_classes(tensors, variables) -> str:
    theirs, bias = count_classes(tensors), variables.get(("predictions", "bias"))
    if bias is None or theirs in (None, bias.shape[0]):
        return ""
    return f" (the file has {theirs} classes, the network {bias.shape[0]})"


def _few(items: list[str], count: int = 3) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(one_line(item) for item in items[:count]) + more


def _spell(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
