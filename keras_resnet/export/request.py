"""The arguments of an export, checked before anything is written."""

import dataclasses
import functools
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np

from keras_resnet.errors import InputError, require
from keras_resnet.export.artifacts import (
    ARTIFACTS,
    FORMATS,
    Options,
    check_calibration,
    check_formats,
    check_options_apply,
)
from keras_resnet.export.images import Images, dataset_images, photo_images, sample_photos
from keras_resnet.export.keras_models import KerasModelSpec, to_logits
from keras_resnet.export.serving import Activation, network_for_export
from keras_resnet.export.writers.tflite_metadata import check_labels
from keras_resnet.files import local_path
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.models.graph import is_functional
from keras_resnet.models.layers import load_model
from keras_resnet.run_folder import RunFolder
from keras_resnet.weights import ModelSpec, WeightFile, open_weights

CALIBRATION_IMAGES = 256
MAX_TOP1_DROP = 1.0  # percentage points


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """The arguments of `python -m keras_resnet export`.

    Attributes:
        workdir: folder of a run with `model.weights.h5` and `recipe.json`, instead of `model` and `weights`;
            also in object storage.
        weights: a weight file, of this package or another zoo; the name of pretrained weights; or "none"
            for random weights, to measure size and speed.
        classes: number of classes. Default: the file's, or the network's own.
        keras: a `.keras` file with a classifier of any origin, instead of `model` and `weights`.
        mean: what its training subtracted from pixels 0-255: one number, or one per channel with commas.
        std: by what its training divided them afterwards.
        resize: length in pixels to which the shorter side of its images is resized before the center crop;
            None resizes whole images.
        labels: a text file with the names of its classes, one per line.
        dataset: dataset to verify on. Default: the recipe's; without a run, scikit-learn's two photos.
        output_dir: where to write. Default: `WORKDIR/export`, `exported/MODEL` or `exported/NAME_OF_FILE`.
        calibration_images: number of images for int8, from the dataset's training split or of the photos.
        max_top1_drop: percentage points by which the top-1 of a less precise file may fall; a file that loses
            more is called "worse".
        strict: whether a worse file fails the export, as a different one does.
        formats: names from `FORMATS`, as a list or separated by commas.
        precision: names from `PRECISIONS`, as a list or separated by commas.
        artifacts: keys of `ARTIFACTS`, from `formats` and `precision`.
    """

    workdir: str | os.PathLike | None = None
    model: str | None = None
    weights: str | Path | None = None
    classes: int | None = None
    keras: str | Path | None = None
    mean: str = "0"
    std: str = "1"
    resize: int | None = None
    labels: str | Path | None = None
    dataset: str | None = None
    data_dir: str | None = None
    output_dir: str | Path | None = None
    calibration_images: int = CALIBRATION_IMAGES
    max_top1_drop: float = MAX_TOP1_DROP
    strict: bool = False
    formats: str | Iterable[str] = FORMATS
    precision: str | Iterable[str] = "float32"
    options: Options = dataclasses.field(default_factory=Options)
    artifacts: tuple[str, ...] = dataclasses.field(init=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "artifacts", check_formats(self.formats, self.precision))
        local_path(self.output_dir or "")
        changed = list(self.options.changed)
        if self.calibration_images != CALIBRATION_IMAGES:
            changed.append("calibration_images")
        check_options_apply(changed, self.artifacts)
        require(
            self.calibration_images >= 1, "calibration_images must be at least 1", self.calibration_images
        )
        require(0 <= self.max_top1_drop <= 100, "max_top1_drop must be 0 to 100", self.max_top1_drop)

    @property
    def command(self) -> str:
        """The command line that repeats this request."""
        return export_command(self, {"options": None, **self.options.changed})

    def source(self, folder: RunFolder | None = None) -> "Source":
        """Opens the run, the weights or the Keras model.

        Args:
            folder: the opened `workdir`. Default: it is opened as a local folder.

        Raises:
            InputError: they are missing or damaged, or contradict the request or each other.
        """
        if self.workdir is not None:
            return self._run(folder or RunFolder(self.workdir))
        if self.keras is not None:
            return self._keras_file(Path(self.keras))
        if self.model is None or self.weights is None:
            raise InputError("an export needs a workdir, a model and weights, or a Keras model")
        # An unknown name is reported before any file is read.
        default = ModelSpec.default(self.model, self.classes)
        output_dir = Path(self.output_dir or Path("exported") / self.model)
        if str(self.weights) == "none":
            load = functools.partial(network_with_random_weights, default)
            return Source(default, load, output_dir, self.images(default, self.dataset))
        file = open_weights(self.weights, self.model)
        is_native = file.kind == "native"
        # A native file without a description does not contain the number of classes.
        spec = default if is_native and file.described is None else file.spec
        for option, given, found in (
            ("model", self.model, spec.model),
            ("classes", self.classes, spec.classes),
        ):
            if given is not None and given != found:
                raise InputError(f"--{option}={given}, but {self.weights} has weights of {option} {found}")
        load = functools.partial(network_for_export, spec, file)
        origin = None if is_native else file
        return Source(spec, load, output_dir, self.images(spec, self.dataset), origin=origin)

    def _run(self, folder: RunFolder) -> "Source":
        if not folder.path.is_dir():
            raise InputError(f"there is no workdir {folder.path}")
        if not folder.weights.is_file():
            name = folder.weights.name
            raise InputError(f"{folder.path} holds no {name}; train first, or give another --workdir")
        recipe, file = folder.read_recipe(), open_weights(folder.weights)
        trained_on = recipe.pop("data", {})
        spec = file.described
        if spec is None:
            path = folder.weights
            raise InputError(f"{path} does not name its network; use --model=NAME --weights={path}")
        if recipe["model"] != spec.model:
            raise InputError(
                f"{folder.path}: the recipe is for {recipe['model']}, but the weights are for {spec.model}"
            )
        # Only a dataset that is not named must be the one of the training.
        unchanged = trained_on if self.dataset is None else None
        images = self.images(spec, self.dataset or recipe["dataset"], unchanged)
        output_dir = Path(self.output_dir or folder.path / "export")
        load = functools.partial(network_for_export, spec, file)
        return Source(spec, load, output_dir, images, recipe)

    def _keras_file(self, path: Path) -> "Source":
        model = load_model(path, compile=False)
        shape = model.inputs[0].shape[1:] if is_functional(model) else ()
        if len(shape) != 3 or None in shape:
            raise InputError(f"{path} takes images of the shape {shape}; the command needs three fixed sizes")
        height, _, channels = shape
        normalization = Normalization(
            *(_numbers(name, getattr(self, name), channels) for name in ("mean", "std"))
        )
        preprocessing = Preprocessing(height, self.resize, "bilinear", normalization)
        request = dataclasses.replace(self, output_dir=self.output_dir or Path("exported") / path.stem)
        return keras_source(request, model, preprocessing, _read_labels(self.labels))

    def images(self, spec: ModelSpec, dataset: str | None, trained_on: Any = None) -> Images:
        """Returns the images to verify and to calibrate on."""
        if dataset:
            return dataset_images(spec, dataset, self.data_dir, self.calibration_images, trained_on)
        return photo_images(spec, self.calibration_images)


def export_command(request: Any, texts: Mapping[str, Any]) -> str:
    """Returns the command line that repeats a request, with the flags that differ from their defaults.

    Args:
        request: a dataclass with the fields `formats`, `precision` and `artifacts`.
        texts: values of flags that differ from the fields; None leaves a field out.
    """
    kinds = [ARTIFACTS[name] for name in request.artifacts]
    fields = [field for field in dataclasses.fields(request) if field.init]
    values = {field.name: getattr(request, field.name) for field in fields}
    values["formats"] = ",".join(dict.fromkeys(kind.format for kind in kinds))
    values["precision"] = ",".join(dict.fromkeys(kind.precision for kind in kinds))
    defaults = {field.name: field.default for field in fields} | {"formats": ",".join(FORMATS)}
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    changed.update(texts)
    flags = [f"--{name}={value}" for name, value in changed.items() if value is not None]
    return shlex.join(["python", "-m", "keras_resnet", "export", *flags])


@dataclasses.dataclass(frozen=True)
class Source:
    """The network that a request exports.

    Attributes:
        load: builds the network with its weights.
        recipe: the training's recipe, for the model card.
        origin: the weight file, if another zoo trained it.
        activation: the function from the network's logits to probabilities.
    """

    spec: ModelSpec
    load: Callable[[], keras.Model]
    output_dir: Path
    images: Images
    recipe: Mapping[str, Any] | None = None
    origin: WeightFile | None = None
    activation: Activation = "softmax"


def keras_source(
    request: ExportRequest, model: keras.Model, preprocessing: Preprocessing, labels: Sequence[str]
) -> Source:
    """Returns the network that a Keras classifier of any origin becomes; see `export_model`."""
    _check_types(model, preprocessing)
    size, _, channels = preprocessing.input_shape
    given = model.inputs[0].shape if is_functional(model) else ()
    # A preprocessing is for squares; only `classify_bytes` needs one.
    shape = (size, given[2] if len(given) == 4 and given[2] else size, channels)
    sample = preprocessing.normalization(sample_photos(*shape)[:2])
    network, activation = to_logits(model, np.asarray(sample, "float32"))
    classes = int(network.output_shape[-1])
    check_labels(labels, classes)
    spec = KerasModelSpec(network.name, {}, classes, shape, preprocessing, tuple(map(str, labels)))
    output_dir = Path(request.output_dir or Path("exported") / spec.model)
    images = request.images(spec, request.dataset)
    return Source(spec, lambda: network, output_dir, images, activation=activation)


def _check_types(model: Any, preprocessing: Any) -> None:
    for value, kind in ((model, keras.Model), (preprocessing, Preprocessing)):
        if not isinstance(value, kind):
            raise InputError(f"export_model takes a {kind.__name__}, not {type(value).__name__}")


def _numbers(name: str, text: str, channels: int) -> list[float]:
    """Parses a number for all channels, or one per channel."""
    try:
        values = [float(number) for number in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, channels):
        raise InputError(f"--{name} must be one number, or {channels} separated by commas; got {text!r}")
    return values if len(values) == channels else values * channels


def _read_labels(path: str | Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the labels {path}: {error}") from error


def complete_options(
    options: Options, spec: ModelSpec, artifacts: Iterable[str], images: Images, origin: WeightFile | None
) -> Options:
    """Fills in the options that follow from the other arguments; checks the calibration images."""
    scale, offset = spec.normalization.as_scale_and_offset()
    metadata = {
        "model": spec.model,
        "classes": str(spec.classes),
        "normalization": json.dumps({"inside": True, "scale": scale, "offset": offset}),
    }
    if origin is not None or isinstance(spec, KerasModelSpec):
        entry = origin.entry if origin else None
        license = entry.license if entry else "NOASSERTION"  # SPDX for "unknown"
        metadata = {"license": license, **metadata}
    calibration = None
    if any(ARTIFACTS[name].precision == "int8" for name in artifacts):
        calibration = check_calibration(images.calibration(), spec.input_shape)
    return dataclasses.replace(
        options,
        metadata=metadata,
        labels=spec.labels,
        preprocessing=spec.preprocessing,
        calibration=calibration,
    )


def network_with_random_weights(spec: ModelSpec) -> keras.Model:
    """Builds a network with random weights, to measure size and speed.

    Residual branches are scaled down because each block would otherwise double the variance, and deep
    networks would overflow. Shifts are random because runtimes drop additions of zero.
    """
    keras.utils.set_random_seed(0)
    random, network = np.random.default_rng(0), network_for_export(spec)
    last = {"basic": "_2_bn", "bottleneck": "_3_bn", "preactivation": "_3_conv"}[spec.config.block]
    for layer in network.layers:
        normalizes = isinstance(layer, keras.layers.BatchNormalization)
        if normalizes or (isinstance(layer, keras.layers.Conv2D) and layer.use_bias):
            shift = cast(keras.Variable, layer.beta if normalizes else layer.bias)
            shift.assign(random.normal(0, 0.1, shift.shape))
        if spec.config.shortcut is not None and layer.name.endswith(last):
            gain = cast(keras.Variable, layer.gamma if normalizes else layer.kernel)
            gain.assign(0.2 * gain)
    return network
