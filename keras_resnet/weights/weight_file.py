"""Opens weights of any origin: published ones by name, files and folders by path."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization, Preprocessing, usual_resize
from keras_resnet.models.config import ResNetConfig, get_config, zoo_name
from keras_resnet.weights import huggingface, keras_applications, registry, torch_files
from keras_resnet.weights.conversion import Tensors, assign_tensors, count_classes, own_layers
from keras_resnet.weights.download import fetch
from keras_resnet.weights.hdf5 import check_is_file, open_hdf5, refuse_damage
from keras_resnet.weights.labels import labels
from keras_resnet.weights.native import LOAD_DETECTOR, assign_layers, described
from keras_resnet.weights.registry import PretrainedWeights
from keras_resnet.weights.spec import ModelSpec, check_architecture

HDF5 = (".h5", ".hdf5")
SUFFIXES = torch_files.SUFFIXES + HDF5

Weights = str | os.PathLike | PretrainedWeights
"""A name of published weights, an entry of the registry, or the path of a file or of timm's folder."""


class WeightFile:
    """An open weight file, made by `open_weights`.

    The first `load` reads the tensors and closes the file; loading again opens it again. `kind` is "native"
    for this package's files, "torch" for torchvision's and timm's, "applications" for keras.applications'.
    `described` is the description in the file or in the config.json of its folder; None if there is none.
    """

    def __init__(
        self, path: Path, entry: PretrainedWeights | None, model: str | None, config: ResNetConfig | None
    ):
        in_folder = None
        if path.is_dir():
            path, in_folder = huggingface.read_folder(path)
        self.path, self.entry = check_is_file(path), entry
        self.kind: Literal["native", "torch", "applications"] = "torch"
        self.described: ModelSpec | None = None
        self._model = model
        self._config = get_config(model) if config is None and model is not None else config
        self._file: h5py.File | None = None
        self._tensors: Tensors | None = None
        if path.suffix in HDF5:
            try:
                self._identify(config)
            except BaseException:
                self.close()
                raise
        elif in_folder is None and path.suffix not in torch_files.SUFFIXES:
            raise InputError(f"{path} is not a .safetensors, .pth, .pt or .h5 file")
        else:
            spec = torch_files.read_description(path)
            self._describe(
                spec if in_folder is None else huggingface.with_all_digits(in_folder, spec), config
            )

    def _identify(self, config: ResNetConfig | None) -> None:
        with self._hdf5() as file:
            spec = described(file)
            if spec is None:
                is_theirs = keras_applications.is_applications(file, self.path, self._config)
            else:  # ours, but maybe in their layout
                is_theirs = "layers" not in file
        self.kind = "applications" if is_theirs else "native"
        self._describe(spec, config)

    def _describe(self, spec: ModelSpec | None, config: ResNetConfig | None) -> None:
        """Stores the description; raises `InputError` if it is not of the architecture of `config`."""
        self.described = spec
        if spec is not None:
            if config is not None:
                check_architecture(self.path, spec.model, spec.config, config)
            self._model, self._config = spec.model, spec.config

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
        """The number of classes; None without a classifier, or for a native file without a description."""
        if self.kind == "native":
            return None if self.described is None else self.described.classes
        return count_classes(self.tensors())

    @functools.cached_property
    def spec(self) -> ModelSpec:
        """The network with its classes, labels and preprocessing, as described, else by default."""
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
        """As described or published, else the default of a converted file's library; None if unknown."""
        if self.described is not None:
            return self.described.preprocessing
        if self.entry is not None:
            return self.entry.preprocessing
        if self.kind == "native" or self._config is None:
            return None
        normalization, size = Normalization.imagenet(), self._config.input_size
        if self.kind == "applications":
            is_v2 = self._config.block == "preactivation"
            normalization = registry.MINUS_ONE_TO_ONE if is_v2 else registry.CAFFE
        return Preprocessing(size, usual_resize(size), "bilinear", normalization)

    def preprocessing_for(self, model: keras.Model) -> Preprocessing | None:
        """Returns `preprocessing` for a model's input; None if unknown or if the input is not square."""
        source: Any = own_layers(model)[0].input
        height, width, channels = source.shape[1:]
        if keras.config.image_data_format() == "channels_first":
            channels, height, width = source.shape[1:]
        preprocessing = self.preprocessing
        if preprocessing is None or height != width:
            return None
        if len(preprocessing.normalization.shape) == 3:
            return preprocessing
        if height not in (None, preprocessing.size):
            preprocessing = preprocessing.for_size(height)
        return preprocessing.for_channels(channels)

    def tensors(self) -> Tensors:
        """Returns the tensors of a converted file by their names there, read once; `load` removes them."""
        if self.kind == "native":
            raise InputError(f"{self.path} is a native file already; it needs no conversion")
        if self._tensors is None and self.kind == "torch":
            self._tensors = torch_files.read_torch_file(self.path)
            if any(name.startswith("backbone.") for name in self._tensors):
                raise InputError(f"{self.path} holds a detector, not a classifier; {LOAD_DETECTOR}")
        elif self._tensors is None:
            with self._hdf5() as file:
                self._tensors = keras_applications.read_applications(file, self.path)
        return self._tensors

    def load(self, model: keras.Model, transfer: bool = False) -> None:
        """Loads the weights into a model of `build_resnet` and closes the file; see `load_weights`.

        The model's input is always RGB. After an `InputError` the model is unchanged.
        """
        with self:
            if self.kind == "native":
                with self._hdf5() as file:
                    return assign_layers(model, file, self.path, transfer=transfer)
            tensors = self.tensors()
            if self._config is None:
                raise InputError(f"{self.path} does not say which network it is for")
            is_torch = self.kind == "torch"
            names = torch_files.torch_names if is_torch else keras_applications.applications_names
            assign_tensors(model, names(self._config), tensors, self.path, transfer=transfer)

    def build(self, **kwargs: Any) -> keras.Model:
        """Builds the network of `spec` with weights and `preprocess`; `kwargs` go to `ModelSpec.build`."""
        model = self.spec.build(**kwargs)
        self.load(model)
        if preprocessing := self.preprocessing_for(model):
            model.preprocess = preprocessing
        return model

    @contextlib.contextmanager
    def _hdf5(self) -> Iterator[h5py.File]:
        with refuse_damage(self.path):
            if self._file is None:
                self._file = open_hdf5(self.path)
            yield self._file


def open_weights(weights: Weights, network: str | ResNetConfig | None = None) -> WeightFile:
    """Opens weights, downloading published ones; use it in a `with` statement.

    A folder holds a config.json of timm's format and model.safetensors, as on the Hugging Face Hub. A
    `network` is the name of the network of a file without a description, or a config that must have the
    architecture of the weights. Raises `InputError` if there are no such weights, if they cannot be
    downloaded or opened, or if they are for another network.
    """
    model, config = (network, None) if isinstance(network, str) else (None, network)
    found = _find(weights)
    if isinstance(found, Path):
        return WeightFile(found, None, model, config)
    expected = config if model is None else get_config(model)
    if isinstance(found, str):
        if expected is None:
            raise InputError(f"weights {found!r} exist for several networks; specify one")
        name = zoo_name(expected)
        if name is None:
            raise InputError(f"no network of the zoo has these options, so it has no weights {found!r}")
        found = registry.get_entry(found, name)
    if expected is not None:
        check_architecture(repr(found.name), found.model, get_config(found.model), expected)
    return WeightFile(fetch(found.url, found.digest), found, found.model, config)


def preprocessing_of(weights: Weights, model: str | None = None) -> Preprocessing:
    """Returns the preprocessing for weights, without downloading published ones.

    `model` is required if networks with weights of this name differ. Raises `InputError` if there are no such
    weights, or if their preprocessing is unknown or ambiguous.
    """
    found = _find(weights)
    if isinstance(found, PretrainedWeights):
        return found.preprocessing
    if isinstance(found, Path):
        with open_weights(found) as file:
            if file.preprocessing is None:
                raise InputError(
                    f"{weights} does not describe its preprocessing; use the model's `preprocess`"
                )
            return file.preprocessing
    entries = registry.find_entries(found) if model is None else [registry.get_entry(found, model)]
    if len({entry.preprocessing for entry in entries}) > 1:
        names = ", ".join(entry.model for entry in entries[:3])
        raise InputError(f"the networks that have weights {found!r} ({names}, ...) differ; pass model=")
    return entries[0].preprocessing


def preprocess_input(x: Any, weights: Weights, model: str | None = None, crop: bool = True) -> np.ndarray:
    """Prepares images as in the evaluation of published weights; see `preprocessing_of`.

    Args:
        x: RGB images 0-255, uint8 or float, (height, width, channels) or (n, height, width, channels).
        weights: published weights, or the path of a native file.
        model: required if networks with weights of this name differ.
        crop: whether to resize and crop, like torchvision's `transforms()`; otherwise images are only
            normalized, like keras.applications' `preprocess_input`.

    Returns:
        float32 array (size, size, channels) or (n, size, size, channels).
    """
    return preprocessing_of(weights, model)(x, crop=crop)


def _find(weights: Weights) -> PretrainedWeights | Path | str:
    """Returns an entry of the registry, the path of a file, or a name that several networks may share."""
    if isinstance(weights, PretrainedWeights):
        return weights
    if not isinstance(weights, str | os.PathLike):
        raise InputError(
            f"weights must be a name of list_weights(), a path or a PretrainedWeights; got {weights!r}"
        )
    if isinstance(weights, os.PathLike):
        return Path(weights)
    if weights in registry.list_weights():
        model, name = weights.split("/")
        return registry.get_entry(name, model)
    # A folder named imagenet is fine.
    is_path = os.path.isfile(weights) or os.sep in weights or Path(weights).suffix in SUFFIXES
    is_path = is_path or Path(weights, huggingface.CONFIG).is_file()
    return Path(weights) if is_path else weights
