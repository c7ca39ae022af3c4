"""The common part of all recipes: everything that affects the result of a run but seed and precision."""

import ast
import dataclasses
import json
import sys
import typing
from collections.abc import Iterable
from typing import Any, Literal, Self

from keras_resnet.errors import InputError, require, unknown_name
from keras_resnet.run_folder import RunFolder


def described(text: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with a help text in `metadata["help"]`."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training recipe without its task. Each field's `metadata["help"]` describes it."""

    model: str = described("A name of list_models(), or of list_detectors() for detection.")
    dataset: str = described(
        "digits, a TFDS name or folder:PATH; for detection scenes, coco:PATH, voc:PATH or a TFDS name."
    )
    model_overrides: dict = dataclasses.field(
        default_factory=dict,
        metadata={"help": "Fields of the network's config that differ from the zoo's row."},
    )
    train_split: str = described("The training split, in TFDS' slicing syntax.", "train")
    val_split: str | None = described(
        "The split evaluated after each epoch. Default: the dataset's test split.", None
    )
    weights: str | None = described(
        "Pretrained weights to start from: a name such as imagenet, or a file. "
        "The last layers are new if the classes differ.",
        None,
    )
    freeze: str | None = described("C1 ... C5: stages up to this feature map are not trained.", None)
    batch_size: int = described("Global batch size, over all replicas.", 128)
    epochs: float = described("Length of the run in epochs, unless steps is given.", 1)
    steps: int | None = described("Length of the run in optimizer steps.", None)
    learning_rate: float = described("Peak learning rate.", 0.1)
    schedule: Literal["constant", "steps", "cosine", "plateau"] = described(
        "constant, steps (times decay_factor at each of boundaries), cosine (to zero) or plateau (times "
        "decay_factor when the validation error has not improved for patience epochs).",
        "constant",
    )
    boundaries: tuple[float, ...] = described("Fractions of the run at which steps decays the rate.", ())
    decay_factor: float = described("Factor of the schedules steps and plateau.", 0.1)
    patience: int = described("Epochs without improvement before plateau decays the rate.", 5)
    warmup_epochs: float = described("Epochs of linear warm-up from zero, before any schedule.", 0)
    error_warmup_rate: float = described(
        "If positive, the rate until the training error, averaged over 100 steps, first falls below "
        "error_warmup_threshold (section 4.2, for 110 layers).",
        0,
    )
    error_warmup_threshold: float = described("Training error that ends the warm-up, a fraction.", 0.8)
    momentum: float = described("Momentum of SGD.", 0.9)
    nesterov: bool = described("Use Nesterov momentum.", False)
    weight_decay: float = described("Coupled weight decay, for kernels only.", 1e-4)
    ema_decay: float = described(
        "Decay of the moving average of the weights that is evaluated and saved; 0 disables it.", 0
    )
    clip_norm: float = described("Largest global gradient norm, before weight decay; 0 disables clipping.", 0)
    reestimate_batches: int = described(
        "Training batches over which batch normalization's statistics are averaged after training "
        "(precise BN), as for the paper's released models; 0 keeps the moving averages.",
        0,
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        for name in ("batch_size", "patience"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        require(self.epochs > 0, "epochs must be positive", self.epochs)
        require(self.steps is None or self.steps >= 1, "steps must be at least 1", self.steps)
        require(self.learning_rate > 0, "learning_rate must be positive", self.learning_rate)
        require(0 <= self.momentum < 1, "momentum must be in [0, 1)", self.momentum)
        require(0 <= self.ema_decay < 1, "ema_decay must be in [0, 1)", self.ema_decay)
        require(0 < self.decay_factor <= 1, "decay_factor must be in (0, 1]", self.decay_factor)
        for name in ("weight_decay", "clip_norm", "warmup_epochs", "error_warmup_rate", "reestimate_batches"):
            require(getattr(self, name) >= 0, f"{name} must not be negative", getattr(self, name))
        ordered = all(0 < a < 1 for a in self.boundaries) and list(self.boundaries) == sorted(self.boundaries)
        require(ordered, "boundaries must be rising fractions between 0 and 1", self.boundaries)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values; `InputError` for an unknown key or an invalid value."""
        self._check_keys(changes)
        return dataclasses.replace(self, **changes)

    def set(self, assignments: Iterable[str]) -> Self:
        """A copy with the values of `--set`: `key=value`, or `model.KEY=value` for the network's config."""
        changes, overrides = {}, dict(self.model_overrides)
        kinds = {field.name: field.type for field in dataclasses.fields(self)}
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                raise InputError(f"--set takes key=value; got {assignment!r}")
            if key.startswith("model."):
                overrides[key.removeprefix("model.")] = _parse(text)
            else:
                value = _parse(text)
                # "none" is also the name of an augmentation.
                changes[key] = text if value is None and kinds.get(key) is str else value
        if overrides != self.model_overrides:
            changes["model_overrides"] = overrides
        return self.replace(**changes)

    def to_dict(self) -> dict:
        """The recipe as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        """The inverse of `to_dict`; `InputError` for an unknown or missing key or an invalid value."""
        cls._check_keys(values)
        for name in ("model", "dataset"):
            if name not in values:
                raise InputError(f"the recipe lacks {name!r}")
        return cls(**values)

    @classmethod
    def _check_keys(cls, keys: Iterable[str]) -> None:
        names = {field.name for field in dataclasses.fields(cls)}
        for key in keys:
            if key not in names:
                raise unknown_name("recipe key", key, names)


def run_identity(recipe: Recipe, seed: int, precision: str) -> dict:
    """The content of recipe.json, without "data", which stays the same when a run is resumed."""
    return {**recipe.to_dict(), "seed": seed, "precision": precision}


def check_run_folder(folder: RunFolder, recipe: Recipe, seed: int, precision: str) -> None:
    """Raises `InputError` if the folder holds another run, saying what differs, or is a file."""
    if not folder.recipe.exists():
        if folder.path.exists() and not folder.path.is_dir():
            raise InputError(f"--workdir {folder.path} is a file")
        return
    held = folder.read_recipe()
    held.pop("data", None)
    others = {key: held.pop(key) for key in ("seed", "precision") if key in held}
    unknown = sorted(held.keys() - {field.name for field in dataclasses.fields(recipe)})
    if unknown:
        raise InputError(
            f"{folder.path} holds a run of another kind of recipe, of the model {held.get('model')!r} "
            f"(unknown recipe key {unknown[0]!r}); choose another --workdir"
        )
    # Files of older versions lack newer keys, which had their default values.
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


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """Returns the value in its field's type, or raises an `InputError` that names the field and the type."""
    kind: Any = field.type
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        if value not in arguments:
            raise unknown_name(field.name, value, arguments)
        return value
    if type(None) in arguments:
        if value is None:
            return None
        kind = arguments[0]
    if kind == tuple[float, ...]:
        items = value if isinstance(value, list | tuple) else (value,)
        if all(_is_number(item) for item in items):
            return tuple(float(item) for item in items)
    elif kind is float and _is_number(value):
        return float(value)
    elif kind is not float and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return dict(value) if kind is dict else value
    name = "numbers" if kind == tuple[float, ...] else kind.__name__
    raise InputError(f"recipe key {field.name!r} takes {name}; got {value!r}")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
