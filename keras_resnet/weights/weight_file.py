"""Opens weights of any origin: published ones by name, and files by path."""

import functools
import os
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization, Preprocessing, usual_resize
from keras_resnet.models.config import MODELS, ResNetConfig, get_config
from keras_resnet.weights import torch_files
from keras_resnet.weights.conversion import assign_tensors, count_classes, own_layers
from keras_resnet.weights.download import fetch
from keras_resnet.weights.hdf5 import check_is_file, open_hdf5, refuse_damage
from keras_resnet.weights.keras_applications import (
    applications_names,
    is_applications,
    read_applications,
    usual_normalization,
)
from keras_resnet.weights.labels import labels
from keras_resnet.weights.native import assign_layers, described
from keras_resnet.weights.registry import PretrainedWeights, find_entries, get_entry, list_weights
from keras_resnet.weights.spec import ModelSpec, check_architecture

HDF5 = (".h5", ".hdf5")
SUFFIXES = torch_files.SUFFIXES + HDF5

Weights = str | os.PathLike | PretrainedWeights
"""A name of published weights, an entry of the registry, or the path of a file."""


class WeightFile:
    """An open weight file, made by `open_weights`.

    The first `load` reads the tensors and closes the file; loading again opens it again.

    Attributes:
        path: the file's path.
        kind: "native" for this package's files, "torch" for torchvision's and timm's, "applications"
            for keras.applications'.
        described: the description in a native file, if it has one.
        entry: the registry's entry of published weights.
    """

    def __init__(
        self, path: Path, entry: PretrainedWeights | None, model: str | None, config: ResNetConfig | None
    ):
        self.path, self.entry = check_is_file(path), entry
        self.kind: Literal["native", "torch", "applications"] = "torch"
        self.described: ModelSpec | None = None
        self._model = model
        self._config = get_config(model) if config is None and model is not None else config
        self._file: h5py.File | None = None
        self._tensors: dict[str, np.ndarray] | None = None
        if path.suffix in HDF5:
            try:
                self._identify(self._open(), config)
            except BaseException:
                self.close()
                raise
        elif path.suffix not in torch_files.SUFFIXES:
            raise InputError(f"{path} is not a .safetensors, .pth, .pt or .h5 file")

    def _identify(self, file: h5py.File, config: ResNetConfig | None) -> None:
        with refuse_damage(self.path):
            self.described = described(file)
            is_native = self.described is not None or not is_applications(file, self.path, self._config)
        self.kind = "native" if is_native else "applications"
        if self.described is not None:
            if config is not None:
                check_architecture(self.path, self.described.model, self.described.config, config)
            self._model, self._config = self.described.model, self.described.config

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and frees its tensors."""
        if self._file is not None:
            self._file.close()
        self._file = self._tensors = None

    @functools.cached_property
    def classes(self) -> int | None:
        """The number of classes; None without a classifier, or without a description in a native file."""
        if self.kind == "native":
            return None if self.described is None else self.described.classes
        return count_classes(self.tensors())

    @functools.cached_property
    def spec(self) -> ModelSpec:
        """The network with its classes, labels and preprocessing: as described, else the defaults."""
        if self.described is not None:
            return self.described
        if self._model is None:
            raise InputError(f"{self.path} does not say which network it is for")
        default = ModelSpec.default(self._model)
        if self.preprocessing is None:
            return default
        size, classes = self.preprocessing.size, self.classes or default.classes
        names = tuple(name for _, name in labels(self.entry.labels)) if self.entry else ()
        names = names if len(names) == classes else ()
        return ModelSpec(self._model, {}, classes, (size, size, 3), self.preprocessing, names)

    @functools.cached_property
    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing: as described or published, else the default of a converted file's library."""
        if self.described is not None:
            return self.described.preprocessing
        if self.entry is not None:
            return self.entry.preprocessing
        if self.kind == "native" or self._config is None:
            return None
        size = self._config.input_size
        is_torch = self.kind == "torch"
        normalization = Normalization.imagenet() if is_torch else usual_normalization(self._config)
        return Preprocessing(size, usual_resize(size), "bilinear", normalization)

    def preprocessing_for(self, model: keras.Model) -> Preprocessing | None:
        """Returns `preprocessing` for a model's input; None if unknown or if the input is not square."""
        source: Any = own_layers(model)[0].input
        shape = tuple(source.shape[1:])
        if keras.config.image_data_format() == "channels_first":
            shape = (*shape[1:], shape[0])
        height, width, channels = shape
        preprocessing = self.preprocessing
        if preprocessing is None or height != width:
            return None
        if len(preprocessing.normalization.shape) == 3:
            return preprocessing
        if height not in (None, preprocessing.size):
            preprocessing = preprocessing.for_size(height)
        return preprocessing.for_channels(channels)

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns all tensors of a converted file by their names there, read once; `load` empties it."""
        if self.kind == "native":
            raise InputError(f"{self.path} is a native file already; it needs no conversion")
        if self._tensors is None:
            if self.kind == "torch":
                self._tensors = torch_files.read_torch_file(self.path)
            else:
                with refuse_damage(self.path):
                    self._tensors = read_applications(self._open(), self.path)
        return self._tensors

    def load(self, model: keras.Model, transfer: bool = False) -> None:
        """Loads the weights into a model built by `build_resnet`, whose input is always RGB.

        See `load_weights` for `transfer`.

        Raises:
            InputError: the file cannot be read or does not fit the model, which is unchanged then.
        """
        with self:
            if self.kind == "native":
                with refuse_damage(self.path):
                    assign_layers(model, self._open(), self.path, transfer=transfer)
                return
            tensors = self.tensors()
            if self._config is None:
                raise InputError(f"{self.path} does not say which network it is for")
            names = torch_files.torch_names if self.kind == "torch" else applications_names
            assign_tensors(model, names(self._config), tensors, self.path, transfer=transfer)

    def build(self, **kwargs: Any) -> keras.Model:
        """Builds the network of `spec` with weights and `preprocess`; `kwargs` go to `ModelSpec.build`."""
        model = self.spec.build(**kwargs)
        self.load(model)
        if preprocessing := self.preprocessing_for(model):
            model.preprocess = preprocessing
        return model

    def _open(self) -> h5py.File:
        if self._file is None:
            self._file = open_hdf5(self.path)
        return self._file


def open_weights(weights: Weights, network: str | ResNetConfig | None = None) -> WeightFile:
    """Opens weights, downloading published ones; use it in a `with` statement.

    Args:
        weights: a `PretrainedWeights`, the name of one, or the path of a file.
        network: the network to load them into. A name of `list_models()` identifies the network of a
            file without a description; a config must have the architecture of the weights.

    Raises:
        InputError: there are no such weights, they cannot be downloaded or opened, or they are for another
            network.
    """
    model, config = (network, None) if isinstance(network, str) else (None, network)
    path, entry = _locate(weights, config if model is None else get_config(model))
    return WeightFile(path, entry, entry.model if entry else model, config)


def _locate(weights: Weights, config: ResNetConfig | None) -> tuple[Path, PretrainedWeights | None]:
    """Returns the file of weights and their entry of the registry, if any."""
    _check_kind(weights)
    if isinstance(weights, PretrainedWeights):
        entry = weights
    elif weights in list_weights():
        entry = _entry_of_full_name(str(weights))
    elif _is_name(weights):
        entry = get_entry(str(weights), _zoo_name(config, weights))
    else:
        return Path(weights), None
    if config is not None:
        check_architecture(f"{entry.name!r}", entry.model, get_config(entry.model), config)
    return fetch(entry.url, entry.digest), entry


def preprocessing_of(weights: Weights, model: str | None = None) -> Preprocessing:
    """Returns the preprocessing for weights, without downloading published ones.

    `model` is required if networks with weights of this name differ.

    Raises:
        InputError: there are no such weights, or their preprocessing is unknown or ambiguous.
    """
    if isinstance(weights, PretrainedWeights):
        return weights.preprocessing
    _check_kind(weights)
    if weights in list_weights():
        return _entry_of_full_name(str(weights)).preprocessing
    if not _is_name(weights):
        with open_weights(weights) as file:
            if file.preprocessing is None:
                raise InputError(
                    f"{weights} does not describe its preprocessing; use the model's `preprocess`"
                )
            return file.preprocessing
    if model is not None:
        return get_entry(str(weights), model).preprocessing
    entries = find_entries(str(weights))
    if len({entry.preprocessing for entry in entries}) > 1:
        names = ", ".join(entry.model for entry in entries[:3])
        raise InputError(f"the networks that have weights {weights!r} ({names}, ...) differ; pass model=")
    return entries[0].preprocessing


def preprocess_input(x: Any, weights: Weights, model: str | None = None, crop: bool = True) -> np.ndarray:
    """Prepares images as in the evaluation of published weights; see `preprocessing_of`.

    Args:
        x: RGB images 0-255, uint8 or float, (height, width, channels) or (n, height, width, channels).
        weights: a `PretrainedWeights`, the name of one, or the path of a native file.
        model: a name of `list_models()`, required if networks with weights of this name differ.
        crop: whether to resize and crop, like torchvision's `transforms()`; otherwise images are only
            normalized, like keras.applications' `preprocess_input`.

    Returns:
        float32 array (size, size, channels) or (n, size, size, channels).
    """
    return preprocessing_of(weights, model)(x, crop=crop)


def _check_kind(weights: object) -> None:
    if not isinstance(weights, str | os.PathLike | PretrainedWeights):
        raise InputError(
            f"weights must be a name of list_weights(), a path or a PretrainedWeights; got {weights!r}"
        )


def _entry_of_full_name(name: str) -> PretrainedWeights:
    """Returns the entry for a full name such as "resnet50_v1_5/torchvision_v2"."""
    model, name = name.split("/")
    return get_entry(name, model)


def _is_name(weights: object) -> bool:
    """Returns whether it can only be a name of the registry: neither a file nor with a file's suffix."""
    return (
        isinstance(weights, str)
        and not os.path.isfile(weights)  # a folder named imagenet is fine
        and os.sep not in weights
        and Path(weights).suffix not in SUFFIXES
    )


def _zoo_name(config: ResNetConfig | None, weights: object) -> str:
    if config is None:
        raise InputError(f"weights {weights!r} exist for several networks; specify one")
    for name, row in MODELS.items():
        if row.architecture == config.architecture:
            return name
    raise InputError(f"no network of the zoo has these options, so it has no weights {weights!r}")
