"""`ModelSpec`, the description of a network in its weight file."""

import dataclasses
import json
from typing import Any

import keras

from keras_resnet.errors import InputError, one_line
from keras_resnet.images.preprocessing import Normalization, Preprocessing, usual_resize
from keras_resnet.models.config import ResNetConfig, get_config
from keras_resnet.models.resnet import build_network


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
    def from_json(cls, text: str) -> "ModelSpec":
        """Parses the output of `to_json`; raises `InputError` for anything else."""
        try:
            fields = json.loads(text)
            model, overrides, classes = fields["model"], dict(fields["overrides"]), int(fields["classes"])
            height, width, channels = (int(size) for size in fields["input_shape"])
            config = get_config(model, **overrides)
            _check_proportions(config, classes)
            # Older files have no resize and no interpolation.
            resize = fields.get("resize", _usual_resize(config, height))
            interpolation = fields.get("interpolation", "bilinear")
            normalization = Normalization(**fields["normalization"])
            preprocessing = Preprocessing(height, resize, interpolation, normalization)
            labels = tuple(map(str, fields["labels"]))
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


def _check_proportions(config: ResNetConfig, classes: int) -> None:
    """Limits the memory that the description in a file can request."""
    sizes = (*config.stage_filters, *config.stage_depths, config.width_per_group)
    if not 1 <= classes <= 2**20 or max(sizes) > 2**12 or config.groups > 2**10:
        raise ValueError("the network is unreasonably large")


def _usual_resize(config: ResNetConfig, size: int) -> int | None:
    """Returns the paper's for ImageNet networks at their own size; None, for whole images, otherwise."""
    return usual_resize(size) if config.stem != "cifar" and size == config.input_size else None
