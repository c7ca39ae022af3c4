"""Reads HDF5 files of keras.applications' ResNets in the layouts of Keras 1 to 3; writes that of Keras 2."""

import io
import math
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras

from keras_resnet.errors import InputError, one_line
from keras_resnet.files import atomic_path
from keras_resnet.models.config import MODELS, ResNetConfig, zoo_name
from keras_resnet.weights.conversion import BN_ATTRIBUTES, HEAD, Budget, Source, Table, Tensors, convolutions
from keras_resnet.weights.hdf5 import (
    check_weight,
    checked_attribute,
    hard_member,
    layer_groups,
    read_dataset,
    read_strings,
)
from keras_resnet.weights.spec import SPEC_KEY, ModelSpec

_TOP_ALIASES = ("probs", "fc1000")  # the classifier in older files
_EPSILON_EXCESS = 1e-8  # their epsilon, 1.001e-5, minus ours, 1e-5
_DEEPEST_NAME = 16  # groups between a layer and its variable


def applications_model(config: ResNetConfig) -> str:
    """Returns the name of a network in keras.applications; raises `InputError` if it is not there."""
    _check_architecture(config)
    name = zoo_name(config)
    if name is None:
        raise InputError(
            f"keras.applications has no network with these options: stage_depths is {config.stage_depths}, "
            f"stage_filters is {config.stage_filters}, batch_norm is {config.batch_norm}"
        )
    return name.replace("resnet", "ResNet").replace("_v2", "V2")


def _check_architecture(config: ResNetConfig) -> None:
    preactivated = config.block == "preactivation"
    wanted = MODELS["resnet50_v2" if preactivated else "resnet50"]
    for field in ("block", "stem", "shortcut", "bottleneck_stride", "groups", "width_per_group"):
        theirs, ours = getattr(wanted, field), getattr(config, field)
        if theirs != ours:
            raise InputError(
                "keras.applications' ResNets are resnet50, resnet101, resnet152 and their _v2: "
                f"{field} is {theirs!r} there, {ours!r} here"
            )


def applications_names(config: ResNetConfig) -> Table:
    """Maps a network's variables to those of ResNet50 ... ResNet152V2 of keras.applications.

    Convolutions have biases and batch normalization has another epsilon there; both are absorbed into the
    moving statistics. The first kernel is reversed for networks without pre-activation, which take BGR.
    """
    _check_architecture(config)
    preactivated = config.block == "preactivation"
    table = {}

    def normalization(bn: str, bias: str | None = None) -> None:
        for attribute in BN_ATTRIBUTES:
            table[bn, attribute] = Source((f"{bn}/{attribute}",))
        if bias is not None:
            table[bn, "moving_mean"] = Source((f"{bn}/moving_mean", bias), signs=(1, -1))
        table[bn, "moving_variance"] = Source((f"{bn}/moving_variance",), offset=_EPSILON_EXCESS)

    for layer, stage, _, number in convolutions(config):
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


def write_applications(tensors: Tensors, path: Path, spec: ModelSpec) -> None:
    """Writes tensors atomically in the layout of keras.applications' published files, with `spec`.

    `weights=path` of its functions reads the layers in their order there. Raises `OSError` if the file cannot
    be written.
    """
    name = applications_model(spec.config)
    network = getattr(keras.applications, name)(weights=None, classes=spec.classes)
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in network.layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", keras.__version__.encode()
        file.attrs[SPEC_KEY] = spec.to_json()
        for layer in network.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{variable.name}" for variable in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                group[name] = tensors[name]
    with atomic_path(path, suffix=".h5") as temporary:
        temporary.write_bytes(content.getbuffer())


def is_applications(file: h5py.File, path: Path, config: ResNetConfig | None) -> bool:
    """Returns whether an open HDF5 file without a description is from keras.applications."""
    if "layers" not in file:
        return True
    # In Keras 3's layout, biases before batch normalization distinguish their files. Pre-activation networks
    # have them in ours, too; reading their files as native changes the variances by 1e-8.
    if config is None or config.block == "preactivation" or not config.batch_norm:
        return False
    return len(layer_groups(file, path).get("conv1_conv", ())) == 2


def read_applications(file: h5py.File, path: Path) -> Tensors:
    """Reads all tensors of an open file by "layer/variable"; the classifier is "predictions"."""
    tensors, budget = {}, Budget(path)
    pairs = _new_layout(file, path) if "layers" in file else _old_layout(file, path, budget)
    for name, dataset in pairs:
        if name in tensors:
            raise InputError(f"{path} has {one_line(name)} twice")
        budget.take(name, dataset.shape)
        tensors[name] = read_dataset(dataset)
    if not tensors:
        raise InputError(f"{path} holds no weights of a Keras model")
    _rename_top(tensors)
    return tensors


def _new_layout(file: h5py.File, path: Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """Keras 3: variables are numbered in the order of their creation."""
    for layer, datasets in layer_groups(file, path).items():
        attributes = BN_ATTRIBUTES if len(datasets) == 4 else ("kernel", "bias")
        for index, dataset in enumerate(datasets):
            attribute = attributes[index] if index < len(attributes) else str(index)
            yield f"{layer}/{attribute}", dataset


def _old_layout(file: h5py.File, path: Path, budget: Budget) -> Iterator[tuple[str, h5py.Dataset]]:
    """Keras 1 and 2: one group per layer, whose attribute lists the variables' names."""
    root = hard_member(file, "model_weights", path) if "model_weights" in file else file
    for layer in map(str, root) if isinstance(root, h5py.Group) else ():
        group = hard_member(root, layer, path)
        if not isinstance(group, h5py.Group):
            continue
        budget.take(layer, (len(group.attrs),))  # all layers may be links to one group
        for name in _names(group, budget):
            dataset, parts = group, [part for part in name.split("/") if part]
            for part in parts if len(parts) <= _DEEPEST_NAME else ():  # each link on the way is checked
                dataset = hard_member(dataset, part, path)
            yield f"{layer}/{name.split('/')[-1].removesuffix(':0')}", check_weight(dataset, layer, path)


def _names(group: h5py.Group, budget: Budget) -> list[str]:
    """Returns the attribute `weight_names`, which Keras splits if it exceeds 64 KiB."""
    keys = ["weight_names"]
    if keys[0] not in group.attrs:
        keys = [key for key in group.attrs if key.startswith("weight_names") and key[12:].isdigit()]
        keys.sort(key=lambda key: int(key[12:]))
    names = []
    for key in keys:
        attribute = checked_attribute(group, key)
        if not math.prod(attribute.shape or (0,)):
            continue  # Keras writes an empty list as numbers
        budget.take(key, attribute.shape)
        names += [name.decode() for name in read_strings(group, key)]
    return names


def _rename_top(tensors: Tensors) -> None:
    if f"{HEAD}/kernel" in tensors or f"{HEAD}/bias" in tensors:
        return
    # A second classifier is not renamed, so that it is reported as left over.
    alias = next((layer for layer in _TOP_ALIASES if f"{layer}/kernel" in tensors), None)
    for attribute in ("kernel", "bias"):
        if f"{alias}/{attribute}" in tensors:
            tensors[f"{HEAD}/{attribute}"] = tensors.pop(f"{alias}/{attribute}")
