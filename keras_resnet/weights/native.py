"""Reads and writes native weight files: Keras' `.weights.h5` with a `ModelSpec`."""

import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import keras

from keras_resnet.errors import InputError, one_line
from keras_resnet.files import atomic_path
from keras_resnet.weights.conversion import HEAD, adapt_stem, differs_only, own_layers, spell_shape, stem_of
from keras_resnet.weights.hdf5 import layer_groups, open_hdf5, read_dataset, read_text, refuse_damage
from keras_resnet.weights.spec import SPEC_KEY, ModelSpec

DETECTOR = "keras_resnet_detector"
"""The attribute of a file with the description of a detector."""

LOAD_DETECTOR = "pass it to keras_resnet.detection.build_detector, or to `python -m keras_resnet detect`"


class _Memory(io.BytesIO):
    """A file in memory with a name that Keras accepts."""

    def __str__(self) -> str:
        return "memory.weights.h5"


def save_weights(model: keras.Model, path: str | os.PathLike, spec: ModelSpec | None = None) -> Path:
    """Saves any Keras model's weights atomically; `model.load_weights` can read the file, too.

    `path` must end with `.weights.h5`. `spec` is stored as an attribute of the file. Equal weights give equal
    bytes. Raises `OSError` if the file cannot be written; an existing one is unchanged.
    """
    return save_described(model, path, {} if spec is None else {SPEC_KEY: spec.to_json()})


def save_described(model: keras.Model, path: str | os.PathLike, attributes: Mapping[str, str]) -> Path:
    """`save_weights` with any attributes of the file."""
    # On a full disk the HDF5 library crashes, while Python's files raise OSError.
    content: Any = _Memory()
    model.save_weights(content)
    if attributes:
        with h5py.File(content, "r+") as file:
            file.attrs.update(attributes)
    with atomic_path(path, suffix=".weights.h5") as temporary:
        temporary.write_bytes(content.getbuffer())
    return Path(path)


def read_spec(path: str | os.PathLike) -> ModelSpec | None:
    """Returns the description in a weight file, or None if it has none."""
    with refuse_damage(path), open_hdf5(path) as file:
        return described(file)


def described(file: h5py.File) -> ModelSpec | None:
    """Returns the description in an open weight file, or None if it has none.

    Raises `InputError` if it is that of a detector.
    """
    if DETECTOR in file.attrs:
        raise InputError(f"{file.filename} holds a detector, not a classifier; {LOAD_DETECTOR}")
    text = read_text(file, SPEC_KEY)
    return None if text is None else ModelSpec.from_json(text, file.id.get_filesize())


def load_weights(model: keras.Model, path: str | os.PathLike, *, transfer: bool = False) -> None:
    """Loads a `.weights.h5` file into a model of `build_resnet`, whose tensors must match one to one.

    `transfer` allows a model with another number of classes or without a classifier (its own classifier is
    kept), with other input channels (the first convolution is adapted), or with other layers before the
    network. Raises `InputError` if the file is missing, damaged, not HDF5, has links to other files, or is of
    another network; the message names the first layer that differs. The model is unchanged then.
    """
    with refuse_damage(path), open_hdf5(path) as file:
        assign_layers(model, file, Path(path), transfer=transfer)


def assign_layers(
    model: keras.Model,
    file: h5py.File,
    path: Path,
    *,
    transfer: bool = False,
    kept: Collection[str] = (),
) -> None:
    """Assigns the weights in an open `.weights.h5` file; see `load_weights`.

    Layers with names in `kept` keep their weights, and need not match.
    """
    groups = layer_groups(file, path)
    for name in kept:
        groups[name] = []
    values = []
    for layer in own_layers(model) if transfer else model.layers:
        if layer.name not in kept:
            values += _layer_values(model, layer, groups.pop(layer.name, []), path, transfer)
    if transfer:
        groups.pop(HEAD, None)
    if left := [name for name, stored in groups.items() if stored]:
        raise InputError(
            f"{path} is of another network: its layer {one_line(left[0])} "
            f"({len(left)} in all) is not in {model.name}"
        )
    for weight, value in values:
        weight.assign(value)


def _layer_values(
    model: keras.Model, layer: keras.layers.Layer, stored: list[h5py.Dataset], path: Path, transfer: bool
) -> list[tuple]:
    """Pairs a layer's variables with their new values; a classifier that is kept has no pairs."""
    if layer.weights and not stored:
        raise InputError(f"{path} has no weights for layer {layer.name} of {model.name}")
    theirs = [dataset.shape for dataset in stored]
    shapes = [tuple(weight.shape) for weight in layer.weights]
    if transfer and layer.name == HEAD and differs_only(theirs[0], shapes[0], axis=1):
        return []
    adapts = transfer and layer.name == stem_of(model) and differs_only(theirs[0], shapes[0], axis=2)
    if theirs[adapts:] != shapes[adapts:]:
        in_file, in_model = (" ".join(map(spell_shape, each)) or "none" for each in (theirs, shapes))
        raise InputError(
            f"{path} is of another network: layer {layer.name} has shapes "
            f"{in_file} in the file, {in_model} in {model.name}"
        )
    arrays = [read_dataset(dataset) for dataset in stored]
    if adapts:
        arrays[0] = adapt_stem(arrays[0], shapes[0][2])
    return list(zip(layer.weights, arrays, strict=True))
