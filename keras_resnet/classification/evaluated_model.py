"""Loads the networks to evaluate."""

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
        weights: the file or the name of published weights, as passed by the user.
        file: the weight file.
        spec: the network, its classes and its preprocessing.
    """

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
        with open(self.file.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def network(self, any_size: bool = False) -> keras.Model:
        """Builds the network with its weights and logits as output.

        Args:
            any_size: whether the network accepts images of any height and width.

        Raises:
            InputError: the file does not match its network.
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
    """Opens weights for evaluation.

    Args:
        weights: a file of this package or of another zoo, or the name of published weights, which are
            downloaded.
        model: name of the network; not needed for files of this package.

    Raises:
        InputError: the weights do not exist, do not name their network, or are for another network.
    """
    file = open_weights(weights, model) if model or weights.endswith(HDF5) else None
    if file is None or (model is None and file.described is None):
        raise InputError(f"{weights} does not name its network; pass --model=NAME")
    spec = file.spec
    if model not in (None, spec.model):
        raise InputError(f"--model={model}, but {weights} has weights of {spec.model}")
    height, width, _ = spec.input_shape
    if height != width:
        raise InputError(f"images are cropped to squares; the network of {weights} takes {height}x{width}")
    return EvaluatedModel(weights, file, spec)


def check_classes(model: EvaluatedModel, dataset: Dataset) -> None:
    """Checks that the classes of weights are those of the dataset, in the same order.

    Raises:
        InputError: the classes differ from the dataset's.
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
                f"class {index} is {their!r} in {model.weights}, but {our!r} in dataset {dataset.name}"
            )
