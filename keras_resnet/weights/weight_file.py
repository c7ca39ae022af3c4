"""Weights for users' code: an entry's name or a file, into a network, with its preprocessing."""

import os
from pathlib import Path

import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Preprocessing
from keras_resnet.models.config import MODELS, ResNetConfig, get_config
from keras_resnet.weights.converters import (
    HDF5,
    SUFFIXES,
    count_classes,
    is_applications,
    load_foreign,
    read_tensors,
    usual_preprocessing,
)
from keras_resnet.weights.download import fetch
from keras_resnet.weights.labels import labels
from keras_resnet.weights.native import load_weights, read_spec
from keras_resnet.weights.registry import PretrainedWeights, find_entries, get_entry, list_weights
from keras_resnet.weights.spec import ModelSpec, check_architecture
from keras_resnet.weights.transfer import own_layers


def load_pretrained(
    model: keras.Model, config: ResNetConfig, weights: str | os.PathLike | PretrainedWeights
) -> Preprocessing | None:
    """Loads published or own weights into a network that was built here.

    A file with another number of classes or input channels fits, too: see `load_weights`' `transfer`.

    Args:
        model: of `build_resnet`, not cut to its features.
        config: of the model.
        weights: an `PretrainedWeights`, the name of one, or a file's path.

    Returns:
        How images are prepared for these weights and this model's input, or None where nobody says.

    Raises:
        InputError: there is no such entry or file, it cannot be fetched, or it does not fit.
    """
    check_kind(weights)
    path, entry = locate(weights, config)
    if path.suffix in HDF5 and not is_applications(path, config):
        spec = read_spec(path)
        if spec is not None:
            check_architecture(path, spec.model, spec.config, config)
        load_weights(model, path, transfer=True)
        preprocessing = None if spec is None else spec.preprocessing
    else:
        kind = load_foreign(model, path, config, transfer=True)
        preprocessing = entry.preprocessing if entry else usual_preprocessing(kind, config)
    return None if preprocessing is None else _for_input(preprocessing, model)


def locate(
    weights: str | os.PathLike | PretrainedWeights, config: ResNetConfig
) -> tuple[Path, PretrainedWeights | None]:
    """The file of weights, fetched if it must be, and the entry that it belongs to, if any.

    Args:
        weights: an `PretrainedWeights`, the name of one, or a file's path.
        config: of the network that is to take them.

    Raises:
        InputError: there is no such entry, it is of another network, or it cannot be fetched.
    """
    if isinstance(weights, PretrainedWeights):
        entry = weights
    elif weights in list_weights():
        entry = _entry_of_full_name(weights)
    elif _is_name(weights):
        entry = get_entry(weights, _zoo_name(config, weights))
    else:
        return Path(weights), None
    check_architecture(f"{entry.name!r}", entry.model, get_config(entry.model), config)
    return fetch(entry.url, entry.digest), entry


def classes_of(weights: str | os.PathLike, config: ResNetConfig) -> int | None:
    """The number of classes of a file; None if there is no such file, or it does not say."""
    path = Path(weights)
    if not path.is_file():
        return None
    if path.suffix in HDF5 and not is_applications(path, config):
        spec = read_spec(path)
        return None if spec is None else spec.classes
    return count_classes(read_tensors(path)[1])


def spec_of(weights: str | os.PathLike | PretrainedWeights, model: str) -> ModelSpec:
    """What weights say about themselves: their network, classes, labels and preprocessing.

    Args:
        weights: an `PretrainedWeights`, the name of one, or a file's path.
        model: the zoo's name of their network; a file of our own may say another.

    Raises:
        InputError: there is no such network, entry or file, or it cannot be fetched or read.
    """
    config = get_config(model)
    path, entry = locate(weights, config)
    if path.suffix in HDF5 and not is_applications(path, config):
        return read_spec(path) or ModelSpec.default(model)
    kind, tensors = read_tensors(path)
    return foreign_spec(model, kind, count_classes(tensors), entry)


def foreign_spec(
    model: str, kind: str, classes: int | None, entry: PretrainedWeights | None = None
) -> ModelSpec:
    """The description of another zoo's weights, whose file has none.

    Args:
        model: the zoo's name of the network.
        kind: of the file, as `read_tensors` gives it.
        classes: of the file.
        entry: that the file belongs to.
    """
    config = get_config(model)
    preprocessing = entry.preprocessing if entry else usual_preprocessing(kind, config)
    names = [name for _, name in labels(entry.labels)] if entry else []
    return ModelSpec(
        model=model,
        overrides={},
        classes=classes or config.classes,
        input_shape=(preprocessing.size, preprocessing.size, 3),
        preprocessing=preprocessing,
        labels=tuple(names) if len(names) == classes else (),
    )


def preprocessing_of(
    weights: str | os.PathLike | PretrainedWeights, model: str | None = None
) -> Preprocessing:
    """How images are prepared for weights.

    Args:
        weights: an `PretrainedWeights`, the name of one, or a file of our own.
        model: a name of `list_models()`, for an entry's name that several networks have.

    Raises:
        InputError: there is no such entry or file, the file does not say it, or networks differ in it.
    """
    if isinstance(weights, PretrainedWeights):
        return weights.preprocessing
    check_kind(weights)
    if weights in list_weights():
        return _entry_of_full_name(weights).preprocessing
    if not _is_name(weights):
        if Path(weights).suffix not in HDF5:
            raise InputError(f"{weights} does not say how images are prepared; use the model's `preprocess`")
        spec = read_spec(weights)
        if spec is None:
            raise InputError(f"{weights} does not say how images are prepared")
        return spec.preprocessing
    if model is not None:
        return get_entry(weights, model).preprocessing
    entries = find_entries(weights)
    if len({entry.preprocessing for entry in entries}) > 1:
        names = ", ".join(entry.model for entry in entries[:3])
        raise InputError(f"the networks that have weights {weights!r} ({names}, ...) differ; give model=")
    return entries[0].preprocessing


def preprocess_input(
    x, weights: str | os.PathLike | PretrainedWeights, model: str | None = None, crop: bool = True
) -> np.ndarray:
    """Prepares images as the evaluation of published weights did.

    Args:
        x: images as `Preprocessing` takes them: (height, width, channels) or (n, height, width, channels),
            uint8 or float, 0-255, red, green, blue.
        weights: an `PretrainedWeights`, the name of one, or a file of our own.
        model: a name of `list_models()`, where the entry's name is that of several which differ.
        crop: whether images are resized and cut out, as torchvision's `transforms()` do; without it
            they are only normalized, as keras.applications' function of this name does.

    Returns:
        float32 array (size, size, channels) or (n, size, size, channels).

    Raises:
        InputError: as `preprocessing_of`, and as `Preprocessing`.
    """
    return preprocessing_of(weights, model)(x, crop=crop)


def check_kind(weights: object) -> None:
    """Raises `InputError` for what can be neither an entry, nor a name, nor a path."""
    if not isinstance(weights, str | os.PathLike | PretrainedWeights):
        raise InputError(
            f"weights is a name of list_weights(), a path or an PretrainedWeights; got {weights!r}"
        )


def _entry_of_full_name(name: str) -> PretrainedWeights:
    """Of "resnet50_v1_5/torchvision_v2", as `list_weights()` has it."""
    model, name = name.split("/")
    return get_entry(name, model)


def _is_name(weights: object) -> bool:
    """Whether it can only be an entry's name: a word without a file's ending, and no file."""
    return (
        isinstance(weights, str)
        and not os.path.isfile(weights)  # a folder of images may well be called imagenet
        and os.sep not in weights
        and Path(weights).suffix not in SUFFIXES
    )


def _zoo_name(config: ResNetConfig, weights: str) -> str:
    for name, row in MODELS.items():
        if row.architecture == config.architecture:
            return name
    raise InputError(f"no zoo's network has these options, so there are no weights {weights!r} for it")


def _for_input(preprocessing: Preprocessing, model: keras.Model) -> Preprocessing | None:
    """The same for the network's own input: another size, other channels. None if it is not square."""
    shape = tuple(own_layers(model)[0].input.shape[1:])
    if keras.config.image_data_format() == "channels_first":
        shape = (*shape[1:], shape[0])
    height, width, channels = shape
    if height != width:
        return None
    if len(preprocessing.normalization.shape) == 3:
        return preprocessing
    if height not in (None, preprocessing.size):
        preprocessing = preprocessing.for_size(height)
    return preprocessing.for_channels(channels)
