"""Recipes: the science of a training run as frozen values. The machine comes in by flags."""

import ast
import dataclasses
import json
import typing
from typing import Literal

from keras_resnet.data import progressive_size
from keras_resnet.errors import InputError, unknown_name
from keras_resnet.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run learns, but for its seed and precision.

    Attributes:
        model: a name of `list_models()`.
        model_overrides: fields of `ResNetConfig` that differ from the zoo's row.
        dataset: "digits", a TFDS name or "folder:PATH".
        train_split: the split that is learned, in TFDS' slicing syntax.
        val_split: the split that is evaluated after each epoch; None: the dataset's test split.
        image_size: height and width of the network's input, pixels.
        channels: of the network's input; gray images are repeated.
        augmentation: a name of `keras_resnet.data.AUGMENTATIONS`.
        weights: the name of a weight entry, or a file, to start from; the classifier is fresh where
            the classes differ. None: fresh throughout.
        freeze: "C1" ... "C5": what is not trained; see `keras_resnet.freeze`. None: all is trained.
        normalization: "per_channel" (mean and deviation of the training split), "per_pixel" (its
            mean image; section 4.2), "imagenet" (ImageNet's published channel statistics), or
            "weights" (that of the weights which the run starts from).
        batch_size: the global batch, whatever the number of replicas.
        epochs: length of the run, unless `steps` is given.
        steps: length of the run in optimizer steps.
        learning_rate: the schedule's peak.
        schedule: "constant", "steps" (times `decay_factor` at each of `boundaries`), "cosine" (to
            zero), or "plateau" (times `decay_factor` when the validation error has not improved for
            `patience` epochs).
        boundaries: fractions of the run.
        decay_factor: of "steps" and "plateau".
        patience: of "plateau", epochs.
        warmup_epochs: linear from zero, before any schedule.
        error_warmup_rate: if positive, the rate until the training error, a mean over 100 steps,
            first falls below `error_warmup_threshold` (section 4.2, for 110 layers).
        error_warmup_threshold: a fraction.
        momentum: of SGD.
        nesterov: whether SGD looks ahead.
        weight_decay: coupled: `gradient += weight_decay * weight`, for kernels alone.
        label_smoothing: share of the target spread over all classes.
        mixup: alpha of the Beta distribution; 0 is off.
        cutmix: alpha of the Beta distribution; 0 is off. With both, each batch takes one of the two.
        ema_decay: of the averaged weights that are evaluated and saved; 0 is off.
        clip_norm: largest global norm of the gradient before weight decay; 0 is off.
        reestimate_batches: training batches over which batch normalization's statistics are averaged
            after the training, as for the paper's released models; 0 keeps the moving averages.
        progressive: shares of `image_size`, rising to 1, over equal parts of the run: an epoch's images
            are of that size; see `progressive_size`. Empty: always `image_size`.
    """

    model: str
    dataset: str
    model_overrides: dict = dataclasses.field(default_factory=dict)
    train_split: str = "train"
    val_split: str | None = None
    image_size: int = 32
    channels: int = 3
    augmentation: str = "none"
    weights: str | None = None
    freeze: str | None = None
    normalization: Literal["per_channel", "per_pixel", "imagenet", "weights"] = "per_channel"
    batch_size: int = 128
    epochs: float = 1
    steps: int | None = None
    learning_rate: float = 0.1
    schedule: Literal["constant", "steps", "cosine", "plateau"] = "constant"
    boundaries: tuple[float, ...] = ()
    decay_factor: float = 0.1
    patience: int = 5
    warmup_epochs: float = 0
    error_warmup_rate: float = 0
    error_warmup_threshold: float = 0.8
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    label_smoothing: float = 0
    mixup: float = 0
    cutmix: float = 0
    ema_decay: float = 0
    clip_norm: float = 0
    reestimate_batches: int = 0
    progressive: tuple[float, ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        _require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size)
        _require(self.epochs > 0, "epochs must be positive", self.epochs)
        _require(self.steps is None or self.steps >= 1, "steps must be at least 1", self.steps)
        _require(self.learning_rate > 0, "learning_rate must be positive", self.learning_rate)
        _require(self.image_size >= 1, "image_size must be at least 1", self.image_size)
        _require(self.channels >= 1, "channels must be at least 1", self.channels)
        _require(0 <= self.momentum < 1, "momentum must be in [0, 1)", self.momentum)
        _require(0 <= self.label_smoothing < 1, "label_smoothing must be in [0, 1)", self.label_smoothing)
        _require(0 <= self.ema_decay < 1, "ema_decay must be in [0, 1)", self.ema_decay)
        _require(0 < self.decay_factor <= 1, "decay_factor must be in (0, 1]", self.decay_factor)
        _require(self.patience >= 1, "patience must be at least 1", self.patience)
        not_negative = ("weight_decay", "mixup", "cutmix", "clip_norm", "warmup_epochs", "error_warmup_rate")
        for name in (*not_negative, "reestimate_batches"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative", getattr(self, name))
        progressive_size(self.progressive, 0, 1, self.image_size)  # refuses what does not rise
        if self.progressive and self.normalization == "per_pixel":
            raise InputError("a mean image has one size; progressive sizes need another normalization")
        ordered = all(0 < a < 1 for a in self.boundaries) and list(self.boundaries) == sorted(self.boundaries)
        if self.normalization == "weights" and self.weights is None:
            raise InputError("normalization 'weights' is that of the weights to start from; give weights")
        _require(ordered, "boundaries must be rising fractions between 0 and 1", self.boundaries)

    def replace(self, **changes) -> "Recipe":
        """A copy with other fields; `InputError` for a key that does not exist or a wrong type."""
        names = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in names:
                raise unknown_name("recipe key", name, names)
        return dataclasses.replace(self, **changes)

    def set(self, assignments: typing.Iterable[str]) -> "Recipe":
        """A copy changed by `key=value` texts, as `--set` takes them.

        `model.KEY=value` sets a field of the network's config.
        """
        changes, overrides = {}, dict(self.model_overrides)
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                raise InputError(f"--set takes key=value; got {assignment!r}")
            if key.startswith("model."):
                overrides[key.removeprefix("model.")] = _parse(text)
            else:
                changes[key] = _parse(text)
        if overrides != self.model_overrides:
            changes["model_overrides"] = overrides
        return self.replace(**changes)

    def to_dict(self) -> dict:
        """Plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict) -> "Recipe":
        """Reads what `to_dict` gave; `InputError` for an unknown or missing key or a wrong type."""
        names = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise unknown_name("recipe key", name, names)
        for name in ("model", "dataset"):
            if name not in values:
                raise InputError(f"the recipe lacks {name!r}")
        return cls(**values)


def run_identity(recipe: Recipe, seed: int, precision: str) -> dict:
    """The content of a run's recipe.json: what a run that is resumed must agree with."""
    return {**recipe.to_dict(), "seed": seed, "precision": precision}


def check_run_folder(folder: RunFolder, recipe: Recipe, seed: int, precision: str) -> None:
    """Refuses a folder that cannot hold this run; writes nothing.

    Raises:
        InputError: the folder holds another run, and the message says what differs; or it is a file.
    """
    if not folder.recipe.exists():
        if folder.path.exists() and not folder.path.is_dir():
            raise InputError(f"--workdir {folder.path} is a file")
        return
    held = folder.read_recipe()
    others = {key: held.pop(key) for key in ("seed", "precision") if key in held}
    # Files of older versions lack newer keys, which then had their defaults.
    held = {**type(recipe).from_dict(held).to_dict(), **others}
    wanted = run_identity(recipe, seed, precision)
    differing = [key for key in wanted if held.get(key) != wanted[key]]
    if differing:
        changes = ", ".join(f"{key} {held.get(key)!r} there, {wanted[key]!r} now" for key in differing[:4])
        raise InputError(f"{folder.path} holds another run ({changes}); choose another --workdir")


def _parse(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _require(condition: bool, sentence: str, value: object) -> None:
    if not condition:
        raise InputError(f"{sentence}; got {value!r}")


def _checked(field: dataclasses.Field, value):
    """The value in its field's type, or an `InputError` that names the field and the type."""
    kind = field.type
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    optional = type(None) in typing.get_args(kind)
    if optional and value is None:
        return None
    if typing.get_origin(kind) is Literal:
        if value not in options:
            raise unknown_name(field.name, value, options)
        return value
    if kind == tuple[float, ...]:
        items = value if isinstance(value, list | tuple) else (value,)
        if all(_is_number(item) for item in items):
            return tuple(float(item) for item in items)
    else:
        plain = options[0] if optional else kind
        if plain is float and _is_number(value):
            return float(value)
        if isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
            return dict(value) if plain is dict else value
    name = (
        "numbers"
        if kind == tuple[float, ...]
        else getattr(options[0] if optional else kind, "__name__", kind)
    )
    raise InputError(f"recipe key {field.name!r} takes {name}; got {value!r}")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


RECIPES: dict[str, Recipe] = {
    # Written figures are shifted, not mirrored.
    "digits": Recipe(
        model="cifar_resnet20",
        dataset="digits",
        augmentation="pad_crop",
        batch_size=64,
        epochs=20,
        schedule="cosine",
        warmup_epochs=1,
    ),
    "fashion_mnist": Recipe(
        model="cifar_resnet20",
        dataset="fashion_mnist",
        image_size=28,
        augmentation="pad_crop_flip",
        epochs=20,
        schedule="cosine",
        warmup_epochs=1,
        nesterov=True,
        weight_decay=5e-4,
    ),
    # Section 4.2.
    "cifar10_paper": Recipe(
        model="cifar_resnet20",
        dataset="cifar10",
        train_split="train[:45000]",
        val_split="train[45000:]",
        augmentation="pad_crop_flip",
        normalization="per_pixel",
        steps=64_000,
        schedule="steps",
        boundaries=(0.5, 0.75),
    ),
    # Section 3.4.
    "imagenet_paper": Recipe(
        model="resnet50",
        dataset="imagenet2012",
        val_split="validation",
        image_size=224,
        augmentation="scale_crop_flip_pca",
        normalization="imagenet",
        batch_size=256,
        steps=600_000,
        schedule="plateau",
        reestimate_batches=200,
    ),
    "imagenet_modern": Recipe(
        model="resnet50_v1_5",
        dataset="imagenet2012",
        val_split="validation",
        image_size=224,
        augmentation="inception",
        normalization="imagenet",
        batch_size=1024,
        epochs=100,
        learning_rate=0.4,
        schedule="cosine",
        warmup_epochs=5,
        nesterov=True,
        weight_decay=5e-5,
        label_smoothing=0.1,
        ema_decay=0.9999,
    ),
    "finetune": Recipe(
        model="resnet50",
        dataset="imagenette",
        weights="imagenet",
        image_size=224,
        augmentation="scale_crop_flip",
        normalization="weights",
        batch_size=64,
        epochs=10,
        learning_rate=0.01,
        schedule="cosine",
        warmup_epochs=1,
        nesterov=True,
        label_smoothing=0.1,
    ),
}


# "In this case, we find that the initial learning rate of 0.1 is slightly too large" (section 4.2).
_FOR_MODEL = {("cifar10_paper", "cifar_resnet110"): {"error_warmup_rate": 0.01}}


def get_recipe(name: str, model: str | None = None) -> Recipe:
    """The recipe `name`, for another network if `model` is given.

    `cifar10_paper` warms `cifar_resnet110` up as the paper does.

    Raises:
        InputError: there is no such recipe; it names the nearest.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    recipe = RECIPES[name]
    if model is not None:
        recipe = recipe.replace(model=model, **_FOR_MODEL.get((name, model), {}))
    return recipe
