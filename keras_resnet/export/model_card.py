"""Writes the model card, which describes the exported files, and its picture."""

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import keras
import numpy as np

from keras_resnet.data.preview import legible
from keras_resnet.export.artifacts import ARTIFACTS
from keras_resnet.export.formats import FILE_FORMATS
from keras_resnet.export.keras_models import KerasModelSpec
from keras_resnet.export.report import ExportReport, percent
from keras_resnet.export.serving import PROBABILITIES, serving_function
from keras_resnet.tables import markdown_table
from keras_resnet.weights import ModelSpec, WeightFile

_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
_LONGEST_RECIPE_VALUE = 200
_DEQUANTIZED = """\
scale, zero = model.get_output_details()["probabilities"]["quantization"]
probabilities = (probabilities.astype("float32") - zero) * scale
"""


def model_card(
    spec: ModelSpec,
    report: ExportReport,
    recipe: Mapping | None = None,
    command: str | None = None,
    picture: str | None = None,
    origin: WeightFile | None = None,
) -> str:
    """Returns the card as Markdown.

    Args:
        recipe: content of the run's `recipe.json`; None if the training is unknown.
        command: the command that repeats the export.
        picture: file name of the picture of predictions.
        origin: the weight file, if another zoo trained it.
    """
    template = read_template(_TEMPLATE)
    channels = spec.input_shape[-1]
    mode = _MODES.get(channels)
    snippets: dict[tuple[str, bool], list[str]] = {}  # files that are opened by the same code
    for name, artifact in report.formats.items():
        if not artifact.equal:
            continue  # no code for files that are not published
        quantized = name == "tflite_int8" and report.options["io_dtype"] == "uint8"
        snippets.setdefault((ARTIFACTS[name].format, quantized), []).append(report.files[name])
    files = [(f"`{report.files[name]}`", artifact) for name, artifact in report.formats.items()]
    return template.render(
        spec=spec,
        report=report,
        command=command,
        picture=picture,
        origin=origin,
        own=isinstance(spec, KerasModelSpec),
        table=markdown_table,
        percent=percent,
        overrides=", ".join(f"{name}={value!r}" for name, value in sorted(spec.overrides.items())),
        recipe_rows=recipe_rows(recipe) if recipe else None,
        mode=mode,
        colors="gray" if mode == "L" else mode or f"{channels} channels",
        usages=[
            (_usage(format, files[0], quantized, report.options), files[1:])
            for (format, quantized), files in snippets.items()
        ],
        folders=snippets.get(("saved_model", False)),
        file_rows=[[file, f"{artifact.bytes:,}", f"`{artifact.sha256}`"] for file, artifact in files],
        parity_rows=[
            [
                file,
                str(artifact.images),
                artifact.difference_text,
                percent(artifact.top1_agreement),
                percent(artifact.top1),
                artifact.verdict,
            ]
            for file, artifact in files
        ],
        versions=", ".join(sorted(set(report.versions.values()))),
        speed_rows=[[file, *artifact.latency_texts] for file, artifact in files],
    )


def _usage(format: str, file: str, quantized: bool, options: Mapping[str, Any]) -> str:
    """Python code that computes the probabilities of `images` with a file."""
    file_format, images = FILE_FORMATS[format], "images"
    if "batch_size" in file_format.options and (options.get("batch_size") or 1) > 1:
        images += f".repeat({options['batch_size']}, axis=0)"
    if "layout" in file_format.options and options["layout"] == "nchw":
        images += ".transpose(0, 3, 1, 2)"
    if "io_dtype" in file_format.options and options["io_dtype"] == "uint8":
        images += '.round().astype("uint8")'
    code = string.Template(file_format.usage).substitute(file=file, images=images)
    return code + _DEQUANTIZED if quantized else code


def read_template(path: Path) -> jinja2.Template:
    """Reads the template of a model card."""
    return jinja2.Template(
        path.read_text("utf-8"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def recipe_rows(recipe: Mapping) -> list[list[str]]:
    """Returns the fields of a recipe as rows of a table, without long values."""
    texts = {name: str(value).replace("|", "\\|").replace("\n", " ") for name, value in recipe.items()}
    return [[name, text] for name, text in texts.items() if len(text) <= _LONGEST_RECIPE_VALUE]


def draw_predictions(
    model: keras.Model,
    batch: tuple[np.ndarray, np.ndarray | None],
    labels: tuple[str, ...],
    path: str | Path,
) -> None:
    """Draws up to eight images with the predicted class and its probability; wrong predictions are red.

    Args:
        model: made by `serving_model`.
        batch: images, float32 (batch, height, width, channels) of raw pixels 0-255, and int labels
            (batch,) or None.
        labels: class names in the order of the logits, or empty.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    images, truth = batch
    # As a function: called eagerly, Keras keeps every layer's output until the end.
    probabilities = serving_function(model)(images)[PROBABILITIES].numpy()
    names = [*map(legible, labels)] or [f"class {index}" for index in range(probabilities.shape[-1])]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = list(figure.subplots(2, 4).flat)
    for axis in axes:
        axis.set_axis_off()
    for index, (axis, image, row) in enumerate(zip(axes, images, probabilities, strict=False)):
        pixels = image.clip(0, 255).astype("uint8")
        axis.imshow(pixels[..., 0] if pixels.shape[-1] != 3 else pixels, cmap="gray", vmin=0, vmax=255)
        best = int(row.argmax())
        title, color = f"{names[best]}  {100 * row[best]:.0f} %", "black"
        if truth is not None and best != (actual := int(truth[index])):
            title, color = f"{title}\nis {names[actual]}", "tab:red"
        axis.set_title(title, fontsize=10, color=color, parse_math=False)
    # Without the software's version, equal pictures have equal bytes.
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})
