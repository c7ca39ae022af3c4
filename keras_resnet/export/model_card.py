"""Writes MODEL_CARD.md, which describes the exported files, and its picture."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from keras_resnet.export.artifacts import ARTIFACTS
from keras_resnet.export.report import LATENCY_HEADERS, ExportReport, percent
from keras_resnet.export.serving import INPUT, LOGITS, PROBABILITIES, serving_function
from keras_resnet.tables import markdown_table
from keras_resnet.weights.registry import PretrainedWeights
from keras_resnet.weights.spec import ModelSpec

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_SNIPPETS = {
    "saved_model": """\
import tensorflow as tf

model = tf.saved_model.load("{file}")
results = model.signatures["serving_default"]({input}=tf.constant(images))
probabilities = results["{probabilities}"].numpy()
""",
    "tflite": """\
from ai_edge_litert.interpreter import Interpreter

model = Interpreter("{file}").get_signature_runner("serving_default")
probabilities = model({input}={images})["{probabilities}"]
""",
    "onnx": """\
import onnxruntime

model = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
(probabilities,) = model.run(["{probabilities}"], {{"{input}": {images}}})
""",
}
_FILE = "<file>"
_DRAWN_IMAGES = 8
_DEQUANTIZE = """\
scale, zero = model.get_output_details()["{probabilities}"]["quantization"]
probabilities = (probabilities.astype("float32") - zero) * scale
"""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where weights come from that were trained elsewhere.

    Attributes:
        text: what is known about them, as sentences.
        license: SPDX identifier of the weights' license; None if unknown.
    """

    text: str
    license: str | None

    @classmethod
    def of(cls, path: Path, entry: PretrainedWeights | None) -> "Origin":
        """Describes a converted file, which may be a registered one."""
        if entry is None:
            return cls(f"The weights are those of `{path.name}`, another zoo's file.", None)
        return cls(
            f"The weights are `{entry.name}` for `{entry.model}`, published at {entry.url}. Their accuracy "
            f"on ImageNet's validation images, as published ({entry.metrics_source}): top-1 "
            f"{entry.top1:.2f} %, top-5 {entry.top5:.2f} %.",
            entry.license,
        )


def model_card(
    spec: ModelSpec,
    report: ExportReport,
    recipe: Mapping | None = None,
    command: str | None = None,
    picture: str | None = None,
    origin: Origin | None = None,
) -> str:
    """Returns the card as Markdown.

    Args:
        spec: the network.
        report: what the export found.
        recipe: content of the run's `recipe.json`; None if the training is unknown.
        command: the command that repeats the export.
        picture: file name of the picture of predictions.
        origin: source of weights that were trained elsewhere.
    """
    parts = [
        f"# {spec.model}",
        _network(spec, report),
        "## Training",
        _training(recipe, origin),
        "## Accuracy",
        _accuracy(report, command),
        *([f"![A few images with what the network takes them for]({picture})"] if picture else ()),
        "## Input and output",
        _signature(spec, report),
        "## Reading and resizing images",
        _preprocessing(spec, report.top1 is not None),
    ]
    parts += _snippets(report)
    if any(ARTIFACTS[name].format == "saved_model" for name in report.formats):
        parts += [_BYTES]
    parts += [
        "## Files",
        _files(report),
        "## Equality with the Keras model",
        _parity(report),
        "## Speed",
        _speed(report),
        "## License",
        _license(origin),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


_BYTES = """\
The SavedModel also takes JPEG and PNG files as they are (`classify_bytes`: `image_bytes` to `classes` and
`probabilities`), resizes and crops them, and gives the pooled features (`features`)."""


def _snippets(report):
    """The code for each file; files that are called alike share it."""
    files = {}
    for name in report.formats:
        files.setdefault(_snippet(name, report.options), []).append(report.files[name])
    parts = []
    for code, (first, *others) in files.items():
        parts.append(f"```python\n{code.replace(_FILE, first)}```")
        if others:
            parts.append(f"{' and '.join(f'`{other}`' for other in others)}: in the same way.")
    return parts


def _snippet(name, options):
    images = "images"
    if ARTIFACTS[name].format == "onnx" and options["layout"] == "nchw":
        images += ".transpose(0, 3, 1, 2)"
    if ARTIFACTS[name].format != "saved_model" and options["io_dtype"] == "uint8":
        images += '.round().astype("uint8")'
    template = _SNIPPETS[ARTIFACTS[name].format]
    if name == "tflite_int8" and options["io_dtype"] == "uint8":
        template += _DEQUANTIZE
    return template.format(file=_FILE, input=INPUT, probabilities=PROBABILITIES, images=images)


def _network(spec, report):
    overrides = ", ".join(f"{name}={value!r}" for name, value in sorted(spec.overrides.items()))
    size = f", {report.parameters:,} parameters and {report.multiply_adds:,} multiply-adds"
    return (
        f"An image classifier with {spec.classes} classes: the network `{spec.model}`"
        f"{f' with {overrides}' if overrides else ''} of the Python package `keras_resnet`{size}, after "
        '"Deep Residual Learning for Image Recognition" (He et al., 2015, arXiv 1512.03385).'
    )


def _training(recipe, origin):
    if origin is not None:
        return f"{origin.text} How they were trained is not known here."
    if not recipe:
        return "The weights were exported without a recipe: how they were trained is not known here."
    texts = {name: str(value).replace("|", "\\|").replace("\n", " ") for name, value in recipe.items()}
    return markdown_table(["recipe", ""], [[name, text] for name, text in texts.items() if len(text) <= 200])


def _accuracy(report, command):
    if report.top1 is None:
        text = (
            f"Not measured: the files were compared on {report.images} images without labels "
            f"({report.images_from})."
        )
    else:
        text = f"Top-1 {percent(report.top1)} on {report.images} images, {report.images_from}."
    return f"{text} The command:\n\n```\n{command}\n```" if command else text


def _signature(spec, report):
    height, width, channels = spec.input_shape
    options = report.options
    others = []
    if options["io_dtype"] != "float32":
        others.append(f"The TFLite and ONNX files take `{options['io_dtype']}`; int8 TFLite also answers so.")
    if options["layout"] != "nhwc":
        others.append("The ONNX files take channels first.")
    if options["dynamic_size"]:
        others.append("The ONNX files take any height and width.")
    pixels = f"raw pixels 0 to 255, {_colors(channels)}, channels last; any batch size"
    outputs = f"(batch, {spec.classes})"
    table = markdown_table(
        ["name", "type", "shape", "meaning"],
        [
            [f"`{INPUT}` (input)", "float32", f"(batch, {height}, {width}, {channels})", pixels],
            [f"`{LOGITS}` (output)", "float32", outputs, "scores before the softmax"],
            [f"`{PROBABILITIES}` (output)", "float32", outputs, "softmax of the logits"],
        ],
    )
    normalization = "The normalization of the pixels is inside the files: do not subtract or divide anything."
    if spec.labels:
        width = len(str(len(spec.labels) - 1))
        listing = "\n".join(f"{index:>{width}} {label}" for index, label in enumerate(spec.labels))
        labels = f"Labels, in the order of the outputs:\n\n```\n{listing}\n```"
    else:
        labels = "The weights have no class names: outputs are numbered as in the training data."
    return "\n\n".join([table, *others, normalization, labels])


def _colors(channels):
    return {1: "gray", 3: "RGB", 4: "RGBA"}.get(channels, f"{channels} channels")


def _license(origin):
    if origin is None:
        text = "Apache-2.0 for the exported network."
    elif origin.license is None:
        text = "The license of the weights is not known here."
    else:
        text = f"{origin.license} for the weights, as their publisher states it."
    return f"{text} The training data has its own terms."


def _preprocessing(spec, measured):
    as_measured = ", as the accuracy above was measured" if measured else ""
    height, width, channels = spec.input_shape
    if channels not in _MODES:
        return f"Bring each image to {height} x {width} pixels with {channels} channels, values 0 to 255."
    axes = "None, ..., None" if channels == 1 else "None"
    shape = (1, *spec.input_shape)
    resize, interpolation = spec.preprocessing.resize, spec.preprocessing.interpolation
    method = f"Image.Resampling.{interpolation.upper()}"
    if resize is None:
        how = f"Resize each image to {height} x {width} pixels ({interpolation}){as_measured}"
        code = f"photo = photo.resize(({width}, {height}), {method})"
    else:
        how = (
            f"Resize the shorter side of each image to {resize} pixels ({interpolation}) and crop the "
            f"{height} x {width} pixels in its center{as_measured}"
        )
        code = f"""\
shorter = min(photo.size)
photo = photo.resize([length * {resize} // shorter for length in photo.size], {method})
left, top = round((photo.width - {width}) / 2), round((photo.height - {height}) / 2)
photo = photo.crop((left, top, left + {width}, top + {height}))"""
    return f"""\
{how}:

```python
import numpy as np
from PIL import Image

photo = Image.open("photo.jpg").convert("{_MODES[channels]}")
{code}
images = np.asarray(photo, "float32")[{axes}]  # {shape}, values 0 to 255
```

Then, in the runtime of your choice:"""


def _files(report):
    rows = [
        [f"`{report.files[name]}`", f"{artifact.bytes:,}", f"`{artifact.sha256}`"]
        for name, artifact in report.formats.items()
    ]
    text = markdown_table(["file", "bytes", "sha256"], rows)
    folders = [report.files[name] for name in report.formats if ARTIFACTS[name].format == "saved_model"]
    if folders:
        text += (
            "\n\nA folder's digest is that of its listing: "
            f"`cd {folders[0]} && find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum`."
        )
    return text


def _parity(report):
    rows = [
        [
            f"`{report.files[name]}`",
            str(artifact.images),
            artifact.difference_text,
            percent(artifact.top1_agreement),
            percent(artifact.top1),
            artifact.verdict,
        ]
        for name, artifact in report.formats.items()
    ]
    header = ["file", "images", "largest logit difference", "same top-1", "top-1", ""]
    versions = ", ".join(sorted(set(report.versions.values())))
    return (
        f"Each file was opened in its own runtime and given the same {report.images} images "
        f"({report.images_from}). *equal*: no logit of a float32 file differs by more than 1e-5 of the "
        "largest; *close*: the root mean square of a less precise file's differences is within its format's "
        "limit, which `parity.json` names; anything else is DIFFERENT.\n\n"
        f"{markdown_table(header, rows)}\n\nMeasured with {versions}."
    )


def _speed(report):
    rows = [[f"`{report.files[name]}`", *artifact.latency_texts] for name, artifact in report.formats.items()]
    return (
        "Median time of one call with this many images, and the peak memory of the process; "
        f"{report.cores} CPU cores, in the file's own runtime.\n\n"
        + markdown_table(["file", *LATENCY_HEADERS], rows)
    )


def draw_predictions(
    model: keras.Model,
    batch: tuple[np.ndarray, np.ndarray | None],
    labels: tuple[str, ...],
    path: str | Path,
) -> None:
    """Draws eight images with the predicted class and its probability.

    Args:
        model: made by `serving_model`.
        batch: images, float32 (batch, height, width, channels) of raw pixels 0-255, and int labels
            (batch,) or None. Wrong predictions are red.
        labels: class names in the order of the logits, or empty.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    images, truth = batch[0][:_DRAWN_IMAGES], batch[1]
    # As a function: called eagerly, Keras keeps every layer's output until the end.
    probabilities = serving_function(model)(images)[PROBABILITIES].numpy()
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = list(figure.subplots(2, 4).flat)
    for axis in axes:
        axis.set_axis_off()
    for index, (axis, image, row) in enumerate(zip(axes, images, probabilities, strict=False)):
        pixels = image.clip(0, 255).astype("uint8")
        axis.imshow(pixels[..., 0] if pixels.shape[-1] != 3 else pixels, cmap="gray", vmin=0, vmax=255)
        best = int(row.argmax())
        name = labels[best] if labels else f"class {best}"
        title, color = f"{name}  {100 * row[best]:.0f} %", "black"
        if truth is not None and best != (actual := int(truth[index])):
            title, color = f"{title}\nis {labels[actual] if labels else f'class {actual}'}", "tab:red"
        axis.set_title(title, fontsize=10, color=color)
    # Without the software's version, equal pictures have equal bytes.
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})
