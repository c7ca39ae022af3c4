"""Loads the networks to evaluate."""

import dataclasses
import functools
from pathlib import Path

import keras

from keras_resnet.errors import InputError
from keras_resnet.files import sha256
from keras_resnet.images.preprocessing import Preprocessing
from keras_resnet.weights import ModelSpec, WeightFile, open_weights
from keras_resnet.weights.huggingface import CONFIG
from keras_resnet.weights.weight_file import HDF5


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """One network of an evaluation; `weights` is the file or the published name, as the user gave it."""

    weights: str
    file: WeightFile
    spec: ModelSpec

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing, adapted to the network's number of channels."""
        return self.spec.preprocessing.for_channels(self.spec.input_shape[2])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return sha256(self.file.path)

    def network(self, any_size: bool = False) -> keras.Model:
        """Builds the network with its weights, returning logits of images of its own size, or of any size.

        Raises:
            InputError: the file does not match its network.
        """
        if not any_size:
            return self.file.build()
        shape = (None, None, self.spec.input_shape[2])
        first = keras.config.image_data_format() == "channels_first"
        return self.file.build(input_shape=shape[::-1] if first else shape)


def load_evaluated_model(weights: str, model: str | None = None) -> EvaluatedModel:
    """Opens a file or folder, or downloads published weights; those with a description need no `model`.

    Raises:
        InputError: the weights do not exist, do not name their network, or are for another network.
    """
    may_be_described = weights.endswith((*HDF5, ".safetensors")) or Path(weights, CONFIG).is_file()
    file = open_weights(weights, model) if model or may_be_described else None
    if file is None or (model is None and file.described is None):
        raise InputError(f"{weights} does not name its network; pass --model=NAME")
    spec = file.spec
    if model not in (None, spec.model):
        raise InputError(f"--model={model}, but {weights} has weights of {spec.model}")
    height, width, _ = spec.input_shape
    if height != width:
        raise InputError(f"images are cropped to squares; the network of {weights} takes {height}x{width}")
    return EvaluatedModel(weights, file, spec)
