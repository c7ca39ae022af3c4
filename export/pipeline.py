"""From weights to verified artifacts: what `python -m export` and `train_main.py --export` call."""

import json
import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from export import files, photos
from export.formats import FORMATS, TABLE, check_formats
from export.model_card import model_card
from export.signature import network_for_export, serving_model
from export.verify import TOLERANCE, parity_table, verify
from keras_resnet.config import get_config
from keras_resnet.errors import InputError
from keras_resnet.weights import ModelSpec, read_spec

PARITY = "parity.json"
CARD = "MODEL_CARD.md"
WEIGHTS = "model.weights.h5"
RECIPE = "recipe.json"

Batches = Iterable[tuple[np.ndarray, np.ndarray | None]]


def export_and_verify(
    spec: ModelSpec,
    weights: str | Path,
    output_dir: str | Path,
    formats: str | Iterable[str] = FORMATS,
    batches: Batches | None = None,
    images_from: str | None = None,
    evaluation_side: int | None = None,
    recipe: Mapping | None = None,
    command: str | None = None,
    tolerance: float = TOLERANCE,
    tell: Callable[[str], None] = print,
) -> dict:
    """Writes artifacts, compares them with the Keras model, and writes what was found beside them.

    Args:
        spec: the network that the weights belong to.
        weights: path of the weight file.
        output_dir: folder for the artifacts, `parity.json` and `MODEL_CARD.md`; made if need be.
        formats: names of `FORMATS`.
        batches: images and labels to compare on (see `verify`). Default: scikit-learn's photos.
        images_from: where the images come from, as the report says it.
        evaluation_side: pixels to which the shorter side of those images was resized before their
            centre was cut out; None if they were resized as a whole. For the model card.
        recipe: of the training, for the model card.
        command: that exports and measures again, for the model card.
        tolerance: see `verify`.
        tell: gets lines about the progress, and the table at the end.

    Returns:
        The report, as `parity.json` holds it.

    Raises:
        InputError: bad weights, an unknown format, or a folder that cannot be written or whose entries
            are not ours to replace.
    """
    formats = check_formats(formats)
    output_dir = Path(output_dir)
    model = serving_model(network_for_export(spec, str(weights)), spec.normalization)
    if batches is None:
        batches, images_from = [(photos.sample_photos(*spec.input_shape), None)], photos.SOURCE

    artifacts = {}
    for name in formats:
        began = time.perf_counter()
        path = output_dir / TABLE[name].file_name
        try:
            artifacts[name] = TABLE[name].write(model, path, _metadata(spec))
        except ModuleNotFoundError as error:
            raise InputError(f"to write {name}, install the extra 'export': {error}") from error
        _forget_old_report(output_dir)
        tell(f"wrote {path} ({files.size(path) / 1e6:.2f} MB, {time.perf_counter() - began:.1f} s)")
    tell(f"comparing with the Keras model on {images_from or 'the given images'}")
    report = verify(model, artifacts, batches, tolerance)
    report = {
        "model": spec.model,
        "overrides": spec.overrides,
        "classes": spec.classes,
        "parameters": sum(math.prod(weight.shape) for weight in model.trainable_weights),
        "images_from": images_from or "images handed in",
        "evaluation_side": evaluation_side,
        "files": {name: TABLE[name].file_name for name in formats},
        **{key: value for key, value in report.items() if key != "model"},
    }
    files.write_json(output_dir / PARITY, report)
    files.write_text(output_dir / CARD, model_card(spec, report, recipe, command))
    tell(parity_table(report, output_dir))
    return report


def _forget_old_report(output_dir: Path) -> None:
    """Removes a report that describes an artifact which has just been replaced."""
    for name in (PARITY, CARD):
        with files.os_errors_as_input_errors(output_dir / name):
            (output_dir / name).unlink(missing_ok=True)


def _metadata(spec: ModelSpec) -> dict[str, str]:
    """Strings that travel inside the artifact, where its format has a place for them."""
    scale, offset = spec.normalization.as_scale_and_offset()
    return {
        "model": spec.model,
        "classes": str(spec.classes),
        "labels": json.dumps(list(spec.labels)),
        "normalization": json.dumps({"inside": True, "scale": scale, "offset": offset}),
    }


def export_workdir(
    workdir: str | Path,
    formats: str | Iterable[str] = FORMATS,
    output_dir: str | Path | None = None,
    data_dir: str | None = None,
    dataset: str | None = None,
) -> bool:
    """Exports the model of a training's folder and verifies it on the test split of its dataset.

    Args:
        workdir: holds `model.weights.h5` and `recipe.json`.
        formats: names of `FORMATS`.
        output_dir: default `workdir/export`.
        data_dir: where the dataset lies.
        dataset: instead of the recipe's.

    Returns:
        Whether all artifacts equal the model.

    Raises:
        InputError: the folder is missing or holds no trained model; and as `export_and_verify`.
    """
    formats = check_formats(formats)
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"there is no workdir {workdir}")
    weights = workdir / WEIGHTS
    if not weights.is_file():
        raise InputError(f"{workdir} holds no {WEIGHTS}; train first, or give another --workdir")
    recipe = _read_recipe(workdir / RECIPE)
    spec = read_spec(weights)
    if spec is None:
        raise InputError(f"{weights} does not say what it belongs to; use --model=NAME --weights={weights}")
    output_dir = Path(output_dir or workdir / "export")
    if recipe["model"] != spec.model:
        raise InputError(f"{workdir}: the recipe is of {recipe['model']}, the weights are of {spec.model}")
    batches, images_from, side = _dataset_images(
        spec, dataset or recipe["dataset"], data_dir, recipe.get("augmentation", "none")
    )
    command = _command(workdir=workdir, dataset=dataset, data_dir=data_dir)
    report = export_and_verify(
        spec, weights, output_dir, formats, batches, images_from, side, recipe=recipe, command=command
    )
    return report["equal"]


def export_weights(
    model: str,
    weights: str | Path,
    classes: int | None = None,
    formats: str | Iterable[str] = FORMATS,
    output_dir: str | Path | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
) -> bool:
    """Exports a network of the zoo with weights from a file.

    Args:
        model: a name of `keras_resnet.list_models()`.
        weights: the file. What it says about itself must agree with `model` and `classes`.
        classes: width of the last layer. Default: the file's, or the network's own.
        formats: names of `FORMATS`.
        output_dir: default `exported/MODEL`.
        dataset: to verify on. Default: scikit-learn's two photos, without a top-1.
        data_dir: where the dataset lies.

    Returns:
        Whether all artifacts equal the model.

    Raises:
        InputError: an unknown model, a missing or disagreeing file; and as `export_and_verify`.
    """
    formats = check_formats(formats)
    default = ModelSpec.default(model, classes)  # also refuses an unknown name, before any file is read
    if not Path(weights).is_file():
        raise InputError(f"there is no weight file {weights}")
    spec = read_spec(weights) or default
    for option, given, found in (("model", model, spec.model), ("classes", classes, spec.classes)):
        if given is not None and given != found:
            raise InputError(f"--{option}={given}, but {weights} has weights of {option} {found}")
    batches, images_from, side = None, None, None
    if dataset:
        augmentation = _usual_augmentation(spec)
        batches, images_from, side = _dataset_images(spec, dataset, data_dir, augmentation)
    command = _command(model=model, weights=weights, classes=classes, dataset=dataset, data_dir=data_dir)
    output_dir = output_dir or Path("exported") / model
    report = export_and_verify(
        spec, weights, output_dir, formats, batches, images_from, side, command=command
    )
    return report["equal"]


def _command(**options) -> str:
    flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return shlex.join(["python", "-m", "export", *flags])


def _read_recipe(path: Path) -> dict:
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} holds no {path.name}, which names the dataset to verify on; "
            "for weights alone use --model=NAME --weights=FILE"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    missing = [key for key in ("dataset", "model") if not isinstance(recipe, dict) or key not in recipe]
    if missing:
        raise InputError(f"{path} is not a recipe: it has no {' and no '.join(missing)}")
    return recipe


def _dataset_images(
    spec: ModelSpec, dataset: str, data_dir: str | None, augmentation: str
) -> tuple[Batches, str, int | None]:
    """The test split of a dataset as raw pixels at the network's input size, and what it is.

    Returns:
        Batches for `verify`, where they come from, and the side that a photo's shorter side is resized
        to before the centre is cut out, or None where whole images are resized.
    """
    from keras_resnet.data import Transform, open_dataset, raw_images

    height, width, channels = spec.input_shape
    if height != width:
        raise InputError(f"datasets give square images; the network takes {height}x{width}")
    opened = open_dataset(dataset, data_dir)
    if opened.classes != spec.classes:
        raise InputError(f"the network has {spec.classes} classes, dataset {dataset} has {opened.classes}")
    split = opened.test_split
    transform = Transform(
        height, channels=channels, normalization=spec.normalization, augmentation=augmentation
    )
    images = raw_images(opened.split(split), transform)
    return images, f"the {split} split of {dataset}", transform.evaluation_side


def _usual_augmentation(spec: ModelSpec) -> str:
    """Of weights without a recipe: it decides how images are cut out for the evaluation."""
    config = get_config(spec.model)
    as_in_the_paper = config.stem == "imagenet" and spec.input_shape[0] == config.input_size
    return "scale_crop_flip" if as_in_the_paper else "none"
