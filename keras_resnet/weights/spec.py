"""`ModelSpec`, the description of a network in its weight file."""

import dataclasses
import json
import math
from typing import Any

import keras

from keras_resnet.errors import InputError, one_line
from keras_resnet.images.preprocessing import Normalization, Preprocessing, usual_resize
from keras_resnet.models.config import ResNetConfig, get_config
from keras_resnet.models.resnet import build_network
from keras_resnet.weights.conversion import MAX_ELEMENTS

SPEC_KEY = "keras_resnet"
"""The name of a description in the attributes or the metadata of a file."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A network of the zoo with its input and its classes.

    `overrides` are fields of `ResNetConfig` that differ from the zoo's. `input_shape` is (height, width,
    channels) under any image data format; its height is the size of `preprocessing`. `labels` are the class
    names in the order of the logits, or empty.
    """

    model: str
    overrides: dict
    classes: int
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()

    def __post_init__(self):
        # JSON has no tuples; a spec must be equal after a round trip.
        overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in self.overrides.items()}
        object.__setattr__(self, "overrides", overrides)
        size, height = self.preprocessing.size, self.input_shape[0]
        if size != height:
            raise InputError(f"the preprocessing is for {size} pixels, the input has {height}")

    @classmethod
    def default(
        cls,
        model: str,
        classes: int | None = None,
        overrides: dict | None = None,
        input_shape: tuple[int, int, int] | None = None,
    ) -> "ModelSpec":
        """Returns the usual spec of a network: its paper's input size and ImageNet's statistics."""
        config = get_config(model, **(overrides or {}))
        shape = input_shape or (config.input_size, config.input_size, 3)
        resize = _usual_resize(config, shape[0])
        preprocessing = Preprocessing(shape[0], resize, "bilinear", Normalization.imagenet())
        return cls(model, overrides or {}, classes or config.classes, shape, preprocessing)

    def build(self, **options: Any) -> keras.Model:
        """Builds the randomly initialized network, returning logits; `options` go to `build_network`."""
        height, width, channels = shape = self.input_shape
        if keras.config.image_data_format() == "channels_first":
            shape = (channels, height, width)
        defaults = {"classes": self.classes, "classifier_activation": None, "input_shape": shape}
        return build_network(self.config, **{**defaults, "name": self.model, **options})

    @property
    def normalization(self) -> Normalization:
        """The normalization of `preprocessing`."""
        return self.preprocessing.normalization

    @property
    def config(self) -> ResNetConfig:
        """The config of the network."""
        return get_config(self.model, **self.overrides)

    def to_json(self) -> str:
        """Serializes to one line of JSON with sorted keys."""
        fields = dataclasses.asdict(self)
        preprocessing = fields.pop("preprocessing")
        del preprocessing["size"]  # the input's height
        return json.dumps({**fields, **preprocessing}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, file_size: float = math.inf) -> "ModelSpec":
        """Parses the output of `to_json`; raises `InputError` for anything else.

        A network whose weights would take more than the `file_size` bytes of its file is refused, too.
        """
        try:
            fields = json.loads(text)
            model, overrides, classes = fields["model"], dict(fields["overrides"]), int(fields["classes"])
            height, width, channels = (int(size) for size in fields["input_shape"])
            config = get_config(model, **overrides)
            _check_proportions(config, (height, width, channels), classes, file_size)
            # Older files have no resize and no interpolation.
            resize = fields.get("resize", _usual_resize(config, height))
            interpolation = fields.get("interpolation", "bilinear")
            normalization = Normalization(**fields["normalization"])
            preprocessing = Preprocessing(height, resize, interpolation, normalization)
            labels = tuple(map(str, fields["labels"]))
            if labels and len(labels) != classes:
                raise ValueError(f"{len(labels)} labels for {classes} classes")
            return cls(model, overrides, classes, (height, width, channels), preprocessing, labels)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"the description in the weight file is invalid: {one_line(error)}") from None


def check_architecture(source: object, model: str, theirs: ResNetConfig, ours: ResNetConfig) -> None:
    """Refuses weights of another architecture, even with equal tensors, such as those of v1 in v1.5."""
    for field, value in theirs.architecture.items():
        if value != ours.architecture[field]:
            raise InputError(
                f"{source} holds weights of {model}, another network: "
                f"{field} is {value!r} there, {ours.architecture[field]!r} here"
            )


def _check_proportions(
    config: ResNetConfig, input_shape: tuple[int, int, int], classes: int, file_size: float
) -> None:
    """Limits the memory and the time that the description in a file can request."""
    limits = (2**12, 2**12, 2**10, 2**20)
    if any(not 1 <= size <= limit for size, limit in zip((*input_shape, classes), limits, strict=True)):
        raise ValueError(f"an input of {input_shape} or {classes} classes is unreasonably large")
    # A weight takes at least 2 bytes in a file, and the groups and tables of a layer more than 1,000.
    needed = 2 * main_weights(config, classes) + 1000 * config.weighted_layers
    if needed > min(file_size, 2 * MAX_ELEMENTS):
        raise ValueError("the network is unreasonably large for the file")


def main_weights(config: ResNetConfig, classes: int) -> int:
    """Returns the number of weights in the kernels after the stem."""
    total, width = 0, config.stage_filters[0] if config.stem == "cifar" else 64
    for depth, filters in zip(config.stage_depths, config.stage_filters, strict=True):
        inner, out = config.inner_filters(filters), filters * config.expansion
        inputs = width + (depth - 1) * out  # of all blocks of the stage
        if config.block == "basic":
            total += 9 * filters * (inputs + depth * filters)
        else:
            total += inputs * inner + depth * (9 * inner * inner // config.groups + inner * out)
        if config.shortcut == "C":
            total += inputs * out
        elif config.shortcut in ("B", "D") and width != out:
            total += width * out
        width = out
    return total + width * classes


def _usual_resize(config: ResNetConfig, size: int) -> int | None:
    """Returns the paper's for ImageNet networks at their own size; None, for whole images, otherwise."""
    return usual_resize(size) if config.stem != "cifar" and size == config.input_size else None
