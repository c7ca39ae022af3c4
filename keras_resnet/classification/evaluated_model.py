"""The networks that are evaluated: what their weights say about themselves, and building them."""

import dataclasses
import functools
import hashlib

import keras

from keras_resnet.data import Dataset
from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Preprocessing
from keras_resnet.weights import ModelSpec, WeightFile, open_weights
from keras_resnet.weights.labels import labels
from keras_resnet.weights.weight_file import HDF5


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """One network of an evaluation.

    Attributes:
        weights: the file's path or the entry's name, as it was given.
        file: with its weights.
        spec: the network, its classes and its preprocessing.
    """

    weights: str
    file: WeightFile
    spec: ModelSpec

    @property
    def preprocessing(self) -> Preprocessing:
        """From decoded images to the network's input, for as many channels as it has."""
        return self.spec.preprocessing.for_channels(self.spec.input_shape[2])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        with open(self.file.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def network(self, any_size: bool = False) -> keras.Model:
        """The network with its weights, and logits as its output.

        Args:
            any_size: whether it takes images of any height and width, not of its own only.

        Raises:
            InputError: the file does not fit the network that it says to be of.
        """
        changes = {}
        if any_size:
            channels = self.spec.input_shape[2]
            first = keras.config.image_data_format() == "channels_first"
            changes["input_shape"] = (channels, None, None) if first else (None, None, channels)
        network = self.spec.build(**changes)
        self.file.load(network)
        return network


def load_evaluated_model(weights: str, model: str | None = None) -> EvaluatedModel:
    """The network that weights belong to.

    Args:
        weights: a file, our own or another zoo's, or the name of published weights, which are fetched.
        model: the zoo's name of the network; not needed for files of our own.

    Raises:
        InputError: there are no such weights, they do not say enough, or are of another network.
    """
    file = open_weights(weights, model) if model or weights.endswith(HDF5) else None
    if file is None or (model is None and file.described is None):
        raise InputError(f"{weights} does not say of which network it is; give --model=NAME")
    spec = file.spec
    if model not in (None, spec.model):
        raise InputError(f"--model={model}, but {weights} has weights of {spec.model}")
    height, width, _ = spec.input_shape
    if height != width:
        raise InputError(f"images are cut square; the network of {weights} takes {height}x{width}")
    return EvaluatedModel(weights, file, spec)


def check_classes(model: EvaluatedModel, dataset: Dataset) -> None:
    """Refuses weights whose classes are others than the dataset's, or stand in another order.

    Raises:
        InputError: it says what differs.
    """
    theirs, ours = model.spec.labels, dataset.class_names
    if model.spec.classes != dataset.classes:
        raise InputError(
            f"{model.weights} has {model.spec.classes} classes, dataset {dataset.name} has {dataset.classes}"
        )
    identifiers, names = zip(*labels("imagenet"), strict=True)
    if not theirs or theirs == ours or {theirs, ours} == {identifiers, names}:
        return
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if their != our:
            raise InputError(
                f"{model.weights} takes class {index} for {their!r}, in dataset {dataset.name} it is {our!r}"
            )
