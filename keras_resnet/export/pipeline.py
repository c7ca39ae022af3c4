"""From weights to verified artifacts: what `python -m export` and `train_main.py --export` call."""

import dataclasses
import functools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import keras
import numpy as np

from keras_resnet import files
from keras_resnet.errors import InputError
from keras_resnet.export import images as photos
from keras_resnet.export.artifacts import FORMATS, PRECISIONS, TABLE, Options, check_formats
from keras_resnet.export.calibration import calibration_batches
from keras_resnet.export.predictions import draw_predictions
from keras_resnet.export.report import Origin, model_card
from keras_resnet.export.serving import network_for_export, serving_model
from keras_resnet.export.verification import parity_table, verify
from keras_resnet.models.complexity import complexity
from keras_resnet.run_folder import RunFolder
from keras_resnet.weights import ModelSpec, open_weights

PARITY = "parity.json"
CARD = "MODEL_CARD.md"
PICTURE = "predictions.png"
CALIBRATION_IMAGES = 256

Batches = Iterable[tuple[np.ndarray, np.ndarray | None]]


@dataclasses.dataclass(frozen=True)
class Images:
    """Real images for a network.

    Attributes:
        batches: to compare on: float32 (batch, height, width, channels), raw pixels 0-255, and int
            labels (batch,) or None.
        source: where they come from, as the report says it.
        calibration: gives float32 batches of other images, for int8.
    """

    batches: Batches
    source: str
    calibration: Callable[[], list[np.ndarray]]

    @classmethod
    def photos(cls, spec: ModelSpec, calibration_images: int) -> "Images":
        """Of scikit-learn's two sample photos, where there is no dataset."""
        return cls(
            [(photos.sample_photos(*spec.input_shape), None)],
            photos.SOURCE,
            lambda: [photos.random_crops(*spec.input_shape, calibration_images)],
        )


def export_and_verify(
    spec: ModelSpec,
    model: keras.Model,
    output_dir: str | Path,
    artifacts: Iterable[str] = FORMATS,
    images: Images | None = None,
    options: Options | None = None,
    recipe: Mapping | None = None,
    command: str | None = None,
    origin: Origin | None = None,
    tell: Callable[[str], None] = print,
) -> dict:
    """Writes artifacts, compares them with the Keras model, and writes what was found beside them.

    Args:
        spec: what the network is.
        model: of `serving_model`.
        output_dir: folder for the artifacts, `parity.json`, `MODEL_CARD.md` and `predictions.png`; made
            if need be.
        artifacts: keys of `formats.TABLE`.
        images: to compare on and to calibrate with. Default: scikit-learn's photos.
        options: of the artifacts; labels, metadata and images' geometry are filled in.
        recipe: of the training, for the model card.
        command: that exports and measures again, for the model card.
        origin: of weights that others trained, for the model card; its license goes into the artifacts.
        tell: gets lines about the progress, and the table at the end.

    Returns:
        The report, as `parity.json` holds it: that of `verify`, and for each format `latency`
        (milliseconds of a batch, by batch size) and `peak_memory` (bytes) of a process of its own.

    Raises:
        InputError: a folder that cannot be written or whose entries are not ours to replace, or too few
            calibration images.
    """
    artifacts, output_dir = tuple(artifacts), Path(output_dir)
    images = images or Images.photos(spec, CALIBRATION_IMAGES)
    options = dataclasses.replace(
        options or Options(),
        metadata=_metadata(spec, origin),
        labels=spec.labels,
        evaluation_side=spec.preprocessing.resize,
        interpolation=spec.preprocessing.interpolation,
    )
    if any(TABLE[name].precision == "int8" for name in artifacts):
        # Before anything is written: the exporters would say so after other files.
        options = dataclasses.replace(
            options, calibration=calibration_batches(images.calibration(), spec.input_shape)
        )

    _check_old_report(output_dir)
    written = {}
    for name in artifacts:
        began = time.perf_counter()
        try:
            written[name] = TABLE[name].write(model, output_dir / TABLE[name].file_name, options)
        except ModuleNotFoundError as error:
            raise InputError(f"to write {name}, install the extra 'export': {error}") from error
        _forget_old_report(output_dir)
        size = files.size(written[name]) / 1e6
        tell(f"wrote {written[name]} ({size:.2f} MB, {time.perf_counter() - began:.1f} s)")
    tell(f"comparing with the Keras model on {images.source}")
    report = verify(model, written, images.batches, options)
    for name, path in written.items():
        report["formats"][name] |= measured(name, path, spec.input_shape)
    cost = complexity(model.get_layer(model.name))
    report = {
        "model": spec.model,
        "overrides": spec.overrides,
        "classes": spec.classes,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "images_from": images.source,
        "evaluation_side": spec.preprocessing.resize,
        "interpolation": spec.preprocessing.interpolation,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "options": {name: getattr(options, name) for name in ("io_dtype", "opset", "layout", "dynamic_size")},
        "files": {name: path.relative_to(output_dir).as_posix() for name, path in written.items()},
        **{key: value for key, value in report.items() if key != "model"},
    }
    files.write_json(output_dir / PARITY, report)
    with files.replacing(output_dir / PICTURE, files.starts_with(b"PNG")) as temporary:
        draw_predictions(model, next(iter(images.batches)), spec.labels, temporary)
    files.write_text(output_dir / CARD, model_card(spec, report, recipe, command, PICTURE, origin))
    tell(parity_table(report, output_dir))
    return report


# What begins each file of a report, so that nobody else's is taken for it.
_MARKS = {PARITY: b'"model"', CARD: b"Python package `keras_resnet`", PICTURE: b"PNG"}


def _check_old_report(output_dir: Path) -> None:
    """Refuses a folder in which somebody else's files have the names of ours."""
    for name, mark in _MARKS.items():
        path = output_dir / name
        with files.os_errors_as_input_errors(path):
            if os.path.lexists(path) and not files.starts_with(mark)(path):
                raise InputError(
                    f"{path} exists and was not written by an export; move it or choose another --output_dir"
                )


def _forget_old_report(output_dir: Path) -> None:
    """Removes a report that describes an artifact which has just been replaced."""
    for name in _MARKS:
        with files.os_errors_as_input_errors(output_dir / name):
            (output_dir / name).unlink(missing_ok=True)


def measured(name: str, path: Path, input_shape: tuple[int, int, int]) -> dict:
    """`latency` and `peak_memory` of an artifact, in a process of its own: see `measure.py`.

    Returns:
        Nothing if the process failed, as for an artifact that does not run: `verify` says why.
    """
    script = Path(__file__).with_name("measure.py")
    # -P: the script's folder, this package, must not be where the process looks for modules.
    command = [sys.executable, "-P", str(script), TABLE[name].name, str(path), *map(str, input_shape)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}  # the figures are a CPU's
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def _metadata(spec: ModelSpec, origin: Origin | None) -> dict[str, str]:
    """Strings that travel inside the artifact."""
    scale, offset = spec.normalization.as_scale_and_offset()
    license = {} if origin is None else {"license": origin.license or "NOASSERTION"}  # SPDX's word
    return {
        **license,
        "model": spec.model,
        "classes": str(spec.classes),
        "normalization": json.dumps({"inside": True, "scale": scale, "offset": offset}),
    }


def export_workdir(
    workdir: str | Path,
    formats: str | Iterable[str] = FORMATS,
    output_dir: str | Path | None = None,
    data_dir: str | None = None,
    dataset: str | None = None,
    precision: str | Iterable[str] = "float32",
    calibration_images: int = CALIBRATION_IMAGES,
    options: Options | None = None,
) -> bool:
    """Exports the model of a training's folder and verifies it on the test split of its dataset.

    Args:
        workdir: holds `model.weights.h5` and `recipe.json`.
        formats: names of `FORMATS`.
        output_dir: default `workdir/export`.
        data_dir: where the dataset lies.
        dataset: instead of the recipe's.
        precision: names of `formats.PRECISIONS`.
        calibration_images: of the dataset's training split, for int8.
        options: of the artifacts.

    Returns:
        Whether all artifacts equal the model.

    Raises:
        InputError: the folder is missing or holds no trained model; and as `export_and_verify`.
    """
    artifacts = check_formats(formats, precision)
    _check_calibration_images(calibration_images)
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"there is no workdir {workdir}")
    weights = RunFolder(workdir).weights
    if not weights.is_file():
        raise InputError(f"{workdir} holds no {weights.name}; train first, or give another --workdir")
    recipe = RunFolder(workdir).read_recipe()
    file = open_weights(weights)
    spec = file.described
    if spec is None:
        raise InputError(f"{weights} does not say what it belongs to; use --model=NAME --weights={weights}")
    if recipe["model"] != spec.model:
        raise InputError(f"{workdir}: the recipe is of {recipe['model']}, the weights are of {spec.model}")
    images = _dataset_images(spec, dataset or recipe["dataset"], data_dir, calibration_images)
    given = {"workdir": workdir, "dataset": dataset, "data_dir": data_dir, "output_dir": output_dir}
    command = _command(artifacts, options, calibration_images, **given)
    output_dir = Path(output_dir or workdir / "export")
    model = serving_model(network_for_export(spec, file), spec.normalization)
    report = export_and_verify(spec, model, output_dir, artifacts, images, options, recipe, command)
    return report["equal"]


def export_weights(
    model: str,
    weights: str | Path,
    classes: int | None = None,
    formats: str | Iterable[str] = FORMATS,
    output_dir: str | Path | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    precision: str | Iterable[str] = "float32",
    calibration_images: int = CALIBRATION_IMAGES,
    options: Options | None = None,
) -> bool:
    """Exports a network of the zoo with weights from a file.

    Args:
        model: a name of `keras_resnet.list_models()`.
        weights: the file, our own or another zoo's, or the name of published weights (`list_weights`).
            What they say about themselves must agree with `model` and `classes`. "none" takes random
            weights, whose size and speed are those of any others.
        classes: width of the last layer. Default: the file's, or the network's own.
        formats: names of `FORMATS`.
        output_dir: default `exported/MODEL`.
        dataset: to verify on. Default: scikit-learn's two photos, without a top-1.
        data_dir: where the dataset lies.
        precision: names of `formats.PRECISIONS`.
        calibration_images: of the dataset's training split, or crops of the photos, for int8.
        options: of the artifacts.

    Returns:
        Whether all artifacts equal the model.

    Raises:
        InputError: an unknown model or name of weights, a missing or disagreeing file, one that cannot
            be fetched; and as `export_and_verify`.
    """
    artifacts = check_formats(formats, precision)
    _check_calibration_images(calibration_images)
    spec, network, origin = _network(model, weights, classes)
    images = Images.photos(spec, calibration_images)
    if dataset:
        images = _dataset_images(spec, dataset, data_dir, calibration_images)
    given = {"model": model, "weights": weights, "classes": classes, "dataset": dataset}
    given |= {"data_dir": data_dir, "output_dir": output_dir}
    command = _command(artifacts, options, calibration_images, **given)
    serving = serving_model(network(), spec.normalization)
    output_dir = output_dir or Path("exported") / model
    report = export_and_verify(
        spec, serving, output_dir, artifacts, images, options, command=command, origin=origin
    )
    return report["equal"]


def _network(
    model: str, weights: str | Path, classes: int | None
) -> tuple[ModelSpec, Callable[[], keras.Model], Origin | None]:
    """What the weights belong to, what builds the network with them, and who else trained them."""
    default = ModelSpec.default(model, classes)  # also refuses an unknown name, before any file is read
    if str(weights) == "none":
        return default, functools.partial(network_with_random_weights, default), None
    file = open_weights(weights, model)
    # A native file without a description does not say its classes.
    spec = default if file.kind == "native" and file.described is None else file.spec
    for option, given, found in (("model", model, spec.model), ("classes", classes, spec.classes)):
        if given is not None and given != found:
            raise InputError(f"--{option}={given}, but {weights} has weights of {option} {found}")
    origin = None if file.kind == "native" else Origin.of(file.path, file.entry)
    return spec, functools.partial(network_for_export, spec, file), origin


def network_with_random_weights(spec: ModelSpec) -> keras.Model:
    """A network as any, for sizes and speeds: finite at every depth, and with no bias of zero.

    Residual branches are scaled down, else each block would double the variance; shifts are drawn,
    because exporters and runtimes leave out additions of zero, which no trained network has.
    """
    keras.utils.set_random_seed(0)
    random, network = np.random.default_rng(0), network_for_export(spec)
    last = {"basic": "_2_bn", "bottleneck": "_3_bn", "preactivation": "_3_conv"}[spec.config.block]
    for layer in network.layers:
        normalizes = isinstance(layer, keras.layers.BatchNormalization)
        if normalizes or (isinstance(layer, keras.layers.Conv2D) and layer.use_bias):
            shift = layer.beta if normalizes else layer.bias
            shift.assign(random.normal(0, 0.1, shift.shape))
        if spec.config.shortcut is not None and layer.name.endswith(last):
            gain = layer.gamma if normalizes else layer.kernel
            gain.assign(0.2 * gain)
    return network


def _check_calibration_images(count: int) -> None:
    if count < 1:
        raise InputError(f"calibration_images must be at least 1; got {count}")


def _command(artifacts, options: Options | None, calibration_images: int, **given) -> str:
    """The command that does all this again."""
    if calibration_images != CALIBRATION_IMAGES:
        given["calibration_images"] = calibration_images
    formats = [name for name in FORMATS if any(TABLE[artifact].name == name for artifact in artifacts)]
    precisions = [p for p in PRECISIONS if any(TABLE[artifact].precision == p for artifact in artifacts)]
    if formats != list(FORMATS):
        given["formats"] = ",".join(formats)
    if precisions != ["float32"]:
        given["precision"] = ",".join(precisions)
    defaults = Options()
    for name in ("io_dtype", "opset", "layout", "dynamic_size"):
        if options is not None and getattr(options, name) != getattr(defaults, name):
            given[name] = getattr(options, name)
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return shlex.join(["python", "-m", "export", *flags])


def _dataset_images(spec: ModelSpec, dataset: str, data_dir: str | None, calibration_images: int) -> Images:
    """The test split of a dataset as raw pixels at the network's input size."""
    from keras_resnet.data import open_dataset, raw_images

    height, width, channels = spec.input_shape
    if height != width:
        raise InputError(f"datasets give square images; the network takes {height}x{width}")
    opened = open_dataset(dataset, data_dir)
    if opened.classes != spec.classes:
        raise InputError(f"the network has {spec.classes} classes, dataset {dataset} has {opened.classes}")
    split = opened.test_split
    preprocessing = spec.preprocessing.for_channels(channels)

    def calibration():
        train = opened.split("train" if "train" in opened.split_names else split)
        return [batch for batch, _ in raw_images(train, preprocessing, limit=calibration_images)]

    return Images(
        _Again(lambda: raw_images(opened.split(split), preprocessing)),
        f"the {split} split of {dataset}",
        calibration,
    )


@dataclasses.dataclass(frozen=True)
class _Again:
    """An iterable that begins anew each time."""

    begin: Callable[[], Iterable]

    def __iter__(self):
        return iter(self.begin())
