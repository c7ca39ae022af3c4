"""What a weight file belongs to: enough to rebuild the network and feed it correctly."""

import dataclasses
import json

from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization, Preprocessing, usual_resize
from keras_resnet.models.config import MODELS, ResNetConfig, get_config


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A network of the zoo with everything its weights imply.

    Attributes:
        model: a name of `list_models()`.
        overrides: fields of `ResNetConfig` that differ from the zoo's row.
        classes: width of the last layer.
        input_shape: (height, width, channels), channels last, whatever the image data format.
        normalization: applied to pixels 0-255 before the network.
        labels: class names in the order of the logits, or empty.
        resize: pixels to which the evaluation resizes an image's shorter side before it cuts out the
            centre; None: it resizes the whole image to the input's size.
        interpolation: of that resizing; see `Preprocessing`.
    """

    model: str
    overrides: dict
    classes: int
    input_shape: tuple[int, int, int]
    normalization: Normalization
    labels: tuple[str, ...] = ()
    resize: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self):
        # JSON knows no tuples; a spec must equal itself after a round trip.
        overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in self.overrides.items()}
        object.__setattr__(self, "overrides", overrides)

    @classmethod
    def default(cls, model: str, classes: int | None = None) -> "ModelSpec":
        """The spec of a zoo row whose file says nothing: its paper's input, ImageNet's statistics."""
        config = get_config(model)
        return cls(
            model=model,
            overrides={},
            classes=classes or config.classes,
            input_shape=(config.input_size, config.input_size, 3),
            normalization=Normalization.imagenet(),
            resize=_usual_resize(config, config.input_size),
        )

    def build(self, **kwargs):
        """Builds the network with logits as its output; `kwargs` go to `build_model`."""
        import keras

        from keras_resnet.models.resnet import build_model

        shape = self.input_shape
        if keras.config.image_data_format() == "channels_first":
            shape = (shape[2], shape[0], shape[1])
        arguments = {"classifier_activation": None, "input_shape": shape, "classes": self.classes}
        return build_model(self.model, **{**arguments, **self.overrides, **kwargs})

    @property
    def preprocessing(self) -> Preprocessing:
        """From decoded images to the network's input, as the evaluation prepares them."""
        return Preprocessing(self.input_shape[0], self.resize, self.interpolation, self.normalization)

    @property
    def is_in_proportion(self) -> bool:
        """Whether the network may be built: what a file says must not decide about the memory."""
        sizes = (*self.config.stage_filters, *self.config.stage_depths, self.config.width_per_group)
        return 1 <= self.classes <= 2**20 and max(sizes) <= 2**12 and self.config.groups <= 2**10

    @property
    def config(self) -> ResNetConfig:
        """The network's config."""
        return get_config(self.model, **self.overrides)

    def check_architecture(self, config: ResNetConfig, source: object) -> None:
        """Refuses weights whose tensors would fit a network that computes something else.

        v1 and v1.5, or a plain net and its residual twin with option A, have the same tensors.

        Args:
            config: of the network that is to take the weights this spec came with.
            source: their file, for the message.

        Raises:
            InputError: the networks differ; it says in what.
        """
        ours = config.architecture
        for field, theirs in self.config.architecture.items():
            if theirs != ours[field]:
                raise InputError(
                    f"{source} holds {self.model}, another network: "
                    f"{field} is {theirs!r} there, {ours[field]!r} here"
                )

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Reads what `to_json` wrote; `InputError` for anything else."""
        try:
            fields = json.loads(text)
            spec = cls(
                model=fields["model"],
                overrides=dict(fields["overrides"]),
                classes=int(fields["classes"]),
                input_shape=tuple(int(size) for size in fields["input_shape"]),
                normalization=Normalization(**fields["normalization"]),
                labels=tuple(str(label) for label in fields["labels"]),
                interpolation=fields.get("interpolation", "bilinear"),
            )
            known = spec.model in MODELS
            if known and not spec.is_in_proportion:
                raise ValueError("it asks for a network out of all proportion")
            if known and len(spec.input_shape) == 3:
                # Older files do not say it.
                usual = _usual_resize(spec.config, spec.input_shape[0])
                spec = dataclasses.replace(spec, resize=fields.get("resize", usual))
                _ = spec.preprocessing  # refuses what is out of range
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"the description inside the weight file is broken: {error}") from None
        if not known or len(spec.input_shape) != 3:
            raise InputError(f"the weight file describes an unknown network {spec.model!r}")
        return spec


def _usual_resize(config: ResNetConfig, size: int) -> int | None:
    """As in the paper for networks of ImageNet's kind at their size; others see whole images."""
    return usual_resize(size) if config.stem != "cifar" and size == config.input_size else None
