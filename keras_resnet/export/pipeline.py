"""Exports a network and verifies the artifacts."""

import dataclasses
import json
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_resnet import files
from keras_resnet.export.artifacts import ARTIFACTS, FORMATS, Options
from keras_resnet.export.formats import FILE_FORMATS
from keras_resnet.export.graph import Graph, fold
from keras_resnet.export.images import Batch, Images, photo_images, save_strip
from keras_resnet.export.model_card import draw_predictions, model_card
from keras_resnet.export.publishing import (
    CARD,
    check_output_folder,
    is_png,
    missing_packages_as_input_errors,
    publish,
    tell_rejected,
    write_all,
)
from keras_resnet.export.report import PARITY, SAMPLES, ExportReport, parity_table
from keras_resnet.export.request import (
    CALIBRATION_IMAGES,
    MAX_TOP1_DROP,
    ExportRequest,
    Source,
    complete_options,
    keras_source,
)
from keras_resnet.export.runtimes import time_artifact
from keras_resnet.export.serving import serving_model
from keras_resnet.export.verification import verify
from keras_resnet.images.preprocessing import Preprocessing
from keras_resnet.models.complexity import complexity
from keras_resnet.processes import cores
from keras_resnet.progress import ProgressBar
from keras_resnet.run_folder import open_run_folder
from keras_resnet.weights import ModelSpec, WeightFile

_PICTURE = "predictions.png"
_PICTURES = (_PICTURE, SAMPLES)


def export_workdir(
    workdir: str | os.PathLike,
    formats: str | Iterable[str] = FORMATS,
    output_dir: str | Path | None = None,
    data_dir: str | None = None,
    dataset: str | None = None,
    precision: str | Iterable[str] = "float32",
    calibration_images: int = CALIBRATION_IMAGES,
    max_top1_drop: float = MAX_TOP1_DROP,
    strict: bool = False,
    options: Options | None = None,
) -> bool:
    """Exports the model of a run folder and verifies it on the test split of its dataset.

    See `ExportRequest` for the arguments.

    Returns:
        Whether all artifacts equal the model and, if `strict`, none is worse.

    Raises:
        InputError: the folder is missing or holds no trained model; see also `export_and_verify`.
    """
    request = ExportRequest(
        workdir=workdir,
        formats=formats,
        output_dir=output_dir,
        data_dir=data_dir,
        dataset=dataset,
        precision=precision,
        calibration_images=calibration_images,
        max_top1_drop=max_top1_drop,
        strict=strict,
        options=options or Options(),
    )
    return export(request).passes(strict)


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
    max_top1_drop: float = MAX_TOP1_DROP,
    strict: bool = False,
    options: Options | None = None,
) -> bool:
    """Exports a network with weights from a file or from the registry.

    See `ExportRequest` for the arguments.

    Returns:
        Whether all artifacts equal the model and, if `strict`, none is worse.

    Raises:
        InputError: an unknown model or name of weights, or a file that is missing, cannot be downloaded or
            contradicts the request; see also `export_and_verify`.
    """
    request = ExportRequest(
        model=model,
        weights=weights,
        classes=classes,
        formats=formats,
        output_dir=output_dir,
        dataset=dataset,
        data_dir=data_dir,
        precision=precision,
        calibration_images=calibration_images,
        max_top1_drop=max_top1_drop,
        strict=strict,
        options=options or Options(),
    )
    return export(request).passes(strict)


def export_model(
    model: keras.Model,
    preprocessing: Preprocessing,
    path: str | Path,
    formats: str | Iterable[str] = FORMATS,
    *,
    labels: Sequence[str] = (),
    precision: str | Iterable[str] = "float32",
    dataset: str | None = None,
    data_dir: str | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    max_top1_drop: float = MAX_TOP1_DROP,
    options: Options | None = None,
) -> ExportReport:
    """Exports a Keras classifier of any origin, and verifies the artifacts.

    The artifacts take raw pixels 0-255 and return `logits` and `probabilities`, float32 (batch, classes),
    like those of the networks of the zoo, whatever the model's dtype policy. A softmax or sigmoid at the
    model's end computes the probabilities. A model that ends in logits gets a softmax or, if it has a single
    class, a sigmoid. For several classes that do not exclude each other, add a sigmoid to the model first.

    Layers that the exporter does not fold are computed by Keras' own code, and then tf2onnx converts the ONNX
    file; `ExportReport.keras_layers` names them.

    Args:
        model: functional or Sequential, with any layers and nested models: one input, images (batch, height,
            width, channels), float or integer; one output (batch, classes). It is not changed.
        preprocessing: how its images are resized and normalized; size and channels are those of the model's
            input. For a model that takes raw pixels, the normalization is `Normalization.identity(channels)`.
        path: folder for the artifacts, `parity.json`, `MODEL_CARD.md` and `predictions.png`.
        labels: class names in the order of the outputs, or empty.

    See `ExportRequest` for the other arguments.

    Returns:
        The report; `report.equal` is False if an artifact differs from the model.

    Raises:
        InputError: the model has other inputs or outputs, a layer that is channels first or cannot be rebuilt
            from its config, or an operator that a format lacks; the preprocessing or the labels do not fit;
            see also `export_and_verify`.
    """
    request = ExportRequest(
        output_dir=path,
        formats=formats,
        precision=precision,
        dataset=dataset,
        data_dir=data_dir,
        calibration_images=calibration_images,
        max_top1_drop=max_top1_drop,
        options=options or Options(),
    )
    return _export(request, keras_source(request, model, preprocessing, labels), None)


def export(request: ExportRequest) -> ExportReport:
    """Carries out a request; see `export_workdir`, `export_weights` and `export_model` for the errors."""
    if request.workdir is None:
        return _export(request, request.source(), request.command)
    with open_run_folder(request.workdir, ("export",)) as folder:
        source = request.source(folder)
        return _export(request, source, request.command, lambda line: print(folder.shown(line)))


def _export(
    request: ExportRequest, source: Source, command: str | None, tell: Callable[[str], None] = print
) -> ExportReport:
    return export_and_verify(
        source.spec,
        serving_model(source.load(), source.spec.normalization, source.activation),
        source.output_dir,
        request.artifacts,
        source.images,
        request.options,
        source.recipe,
        command,
        source.origin,
        tell,
        request.max_top1_drop,
    )


def export_and_verify(
    spec: ModelSpec,
    model: keras.Model,
    output_dir: str | Path,
    artifacts: Iterable[str] = FORMATS,
    images: Images | None = None,
    options: Options | None = None,
    recipe: Mapping[str, Any] | None = None,
    command: str | None = None,
    origin: WeightFile | None = None,
    tell: Callable[[str], None] = print,
    max_top1_drop: float = MAX_TOP1_DROP,
) -> ExportReport:
    """Writes artifacts, compares them with the Keras model, and writes a report beside them.

    Only what equals the Keras model gets its final name, a SavedModel the next number. What differs is moved
    to the hidden folder `.rejected`, for a search of the cause, until the next export.

    Args:
        model: made by `serving_model`.
        output_dir: folder for the artifacts, `parity.json`, `MODEL_CARD.md`, `predictions.png` and
            `samples.png`; created if missing.
        artifacts: keys of `ARTIFACTS`.
        images: images to compare on and to calibrate with. Default: scikit-learn's photos.
        options: options of the artifacts. Labels, metadata, preprocessing and calibration images are
            filled in.
        recipe: the training's recipe, for the model card.
        command: the command that repeats the export, for the model card.
        origin: the weight file, if another zoo trained it, for the model card and the artifacts' license.
        tell: receives the progress, line by line, and the table at the end.
        max_top1_drop: percentage points by which the top-1 of a less precise artifact may fall before it is
            called "worse".

    Raises:
        InputError: the folder cannot be written, another program's file has the name of one of ours, or
            there are too few calibration images.
    """
    artifacts, output_dir = tuple(artifacts), Path(output_dir)
    images = images or photo_images(spec, CALIBRATION_IMAGES)
    options = complete_options(options or Options(), spec, artifacts, images, origin)
    check_output_folder(output_dir, artifacts, _PICTURES)
    with files.hidden_folder(output_dir / "export") as hidden:
        graph = fold(model)
        written = write_all(
            artifacts, hidden, lambda name, path: write_artifact(name, graph, path, options), tell
        )
        tell(f"comparing with the Keras model on {images.source}")
        report = verify(model, written, _tracked(images), options, max_top1_drop / 100)
        timed = {
            name: dataclasses.replace(found, **time_artifact(ARTIFACTS[name].format, path, spec.input_shape))
            for (name, found), path in zip(report.formats.items(), written.values(), strict=True)
        }
        equal = {name for name, found in timed.items() if found.equal}
        published = publish(written, equal, output_dir, _PICTURES)
    cost = complexity(model.get_layer(model.name))
    samples, labels = images.samples()
    report = dataclasses.replace(
        report,
        model=spec.model,
        overrides=spec.overrides,
        classes=spec.classes,
        parameters=cost.parameters,
        multiply_adds=cost.multiply_adds,
        input_shape=spec.input_shape,
        images_from=images.source,
        resize=spec.preprocessing.resize,
        interpolation=spec.preprocessing.interpolation,
        sample_labels=() if labels is None else tuple(map(int, labels)),
        cores=len(cores()),
        options=options.choices,
        files={name: path.relative_to(output_dir).as_posix() for name, path in published.items()},
        formats=timed,
        keras_layers=graph.keras_layers,
    )
    files.write_json(output_dir / PARITY, report.to_json())
    _write_pictures(model, (samples, labels), spec.labels, output_dir)
    files.write_text(output_dir / CARD, model_card(spec, report, recipe, command, _PICTURE, origin))
    tell(parity_table(report, output_dir))
    tell_rejected(report.files, equal, output_dir, tell)
    return report


def _write_pictures(model: keras.Model, samples: Batch, labels: tuple[str, ...], output_dir: Path) -> None:
    with files.replacing(output_dir / _PICTURE, is_png) as temporary:
        draw_predictions(model, samples, labels, temporary)
    if samples[0].shape[-1] in (1, 3):
        with files.replacing(output_dir / SAMPLES, is_png) as temporary:
            save_strip(samples[0], temporary)


def _tracked(images: Images) -> Iterator[Batch]:
    """The batches to compare on; shows the progress."""
    with ProgressBar(images.count, "images", "comparing") as bar:
        for batch in images.batches():
            yield batch
            bar.update(len(batch[0]))


def write_artifact(name: str, model: keras.Model | Graph, path: str | Path, options: Options) -> Path:
    """Writes an artifact and returns the path of the file, or of the SavedModel's version.

    Args:
        name: a key of `ARTIFACTS`.
        model: made by `serving_model`, or already folded.

    Raises:
        InputError: see the writers; or a package is not installed.
    """
    kind = ARTIFACTS[name]
    file_format, metadata = FILE_FORMATS[kind.format], dict(options.metadata)
    if "labels" not in file_format.options:
        metadata |= {"labels": json.dumps(list(options.labels)), "layout": options.layout}
    if kind.precision != "int8":
        options = dataclasses.replace(options, calibration=None)
    given = {option: getattr(options, option) for option in file_format.options}
    with missing_packages_as_input_errors(name):
        write = pkgutil.resolve_name(file_format.write)
        return write(model, path, metadata, precision=kind.precision, **given)
