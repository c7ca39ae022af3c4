"""MODEL_CARD.md: what a person needs to know who finds the exported files and nothing else."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from keras_resnet.export.artifacts import TABLE
from keras_resnet.export.serving import INPUT, LOGITS, PROBABILITIES
from keras_resnet.export.verification import LATENCY_HEADERS, difference_text, latency_texts, verdict
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
_DEQUANTIZE = """\
scale, zero = model.get_output_details()["{probabilities}"]["quantization"]
probabilities = (probabilities.astype("float32") - zero) * scale
"""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where weights come from that others trained.

    Attributes:
        text: what is known about them, as sentences.
        license: of the weights, an SPDX identifier; None where nobody says it.
    """

    text: str
    license: str | None

    @classmethod
    def of(cls, path: Path, entry: PretrainedWeights | None) -> "Origin":
        """Of another zoo's file, which may be a published one."""
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
    report: Mapping,
    recipe: Mapping | None = None,
    command: str | None = None,
    picture: str | None = None,
    origin: Origin | None = None,
) -> str:
    """The card as Markdown.

    Args:
        spec: the network.
        report: of `export.pipeline.export_and_verify`.
        recipe: of the training, as `recipe.json` holds it; None says that nothing is known.
        command: that exports and measures again.
        picture: file name of a picture of a few predictions.
        origin: of weights that others trained.
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
        "## What remains outside: reading and resizing",
        _preprocessing(spec, report["top1"] is not None),
    ]
    parts += _snippets(report)
    if any(TABLE[name].name == "saved_model" for name in report["formats"]):
        parts += [_BYTES]
    parts += [
        "## Files",
        _files(report),
        "## Equality with the Keras model",
        _parity(report),
        "## Speed",
        _speed(report),
        "## Licence",
        _licence(origin),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


_BYTES = """\
The SavedModel also takes JPEG and PNG files as they are (`classify_bytes`: `image_bytes` to `classes` and
`probabilities`), resizes and cuts them out itself, and gives the pooled features (`features`)."""


def _snippets(report):
    """The code for each file; files that are called alike share it."""
    files = {}
    for name in report["formats"]:
        files.setdefault(_snippet(name, report["options"]), []).append(report["files"][name])
    parts = []
    for code, (first, *others) in files.items():
        parts.append(f"```python\n{code.replace(_FILE, first)}```")
        if others:
            parts.append(f"{' and '.join(f'`{other}`' for other in others)}: in the same way.")
    return parts


def _snippet(name, options):
    images = "images"
    if TABLE[name].name == "onnx" and options["layout"] == "nchw":
        images += ".transpose(0, 3, 1, 2)"
    if TABLE[name].name != "saved_model" and options["io_dtype"] == "uint8":
        images += '.round().astype("uint8")'
    template = _SNIPPETS[TABLE[name].name]
    if name == "tflite_int8" and options["io_dtype"] == "uint8":
        template += _DEQUANTIZE
    return template.format(file=_FILE, input=INPUT, probabilities=PROBABILITIES, images=images)


def _network(spec, report):
    overrides = ", ".join(f"{name}={value!r}" for name, value in sorted(spec.overrides.items()))
    size = f", {report['parameters']:,} parameters and {report['multiply_adds']:,} multiply-adds"
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
    rows = ["| recipe | |", "|---|---|"]
    rows += [f"| {name} | {_cell(value)} |" for name, value in recipe.items() if not _is_long(value)]
    return "\n".join(rows)


def _is_long(value):
    return len(str(value)) > 200


def _cell(value):
    return str(value).replace("|", "\\|").replace("\n", " ")


def _accuracy(report, command):
    if report["top1"] is None:
        text = (
            f"Not measured: the files were compared on {report['images']} images without labels "
            f"({report['images_from']})."
        )
    else:
        text = f"Top-1 {100 * report['top1']:.2f} % on {report['images']} images, {report['images_from']}."
    return f"{text} Done, and done again, by\n\n```\n{command}\n```" if command else text


def _signature(spec, report):
    height, width, channels = spec.input_shape
    options = report["options"]
    others = []
    if options["io_dtype"] != "float32":
        others.append(f"The TFLite and ONNX files take `{options['io_dtype']}`; int8 TFLite also answers so.")
    if options["layout"] != "nhwc":
        others.append("The ONNX files take channels first.")
    if options["dynamic_size"]:
        others.append("The ONNX files take any height and width.")
    rows = [
        "| name | type | shape | meaning |",
        "|---|---|---|---|",
        f"| `{INPUT}` (input) | float32 | (batch, {height}, {width}, {channels}) | raw pixels 0 to 255, "
        f"{_colours(channels)}, channels last; any batch size |",
        f"| `{LOGITS}` (output) | float32 | (batch, {spec.classes}) | scores before the softmax |",
        f"| `{PROBABILITIES}` (output) | float32 | (batch, {spec.classes}) | softmax of the logits |",
    ]
    normalization = "The normalization of the pixels is inside the files: do not subtract or divide anything."
    if spec.labels:
        width = len(str(len(spec.labels) - 1))
        listing = "\n".join(f"{index:>{width}} {label}" for index, label in enumerate(spec.labels))
        labels = f"Labels, in the order of the outputs:\n\n```\n{listing}\n```"
    else:
        labels = "The weights came without class names: outputs are numbered as in the training data."
    return "\n\n".join(["\n".join(rows), *others, normalization, labels])


def _colours(channels):
    return {1: "grey", 3: "RGB", 4: "RGBA"}.get(channels, f"{channels} channels")


def _licence(origin):
    if origin is None:
        license = "Apache-2.0 for the exported network."
    elif origin.license is None:
        license = "The license of the weights is not known here."
    else:
        license = f"{origin.license} for the weights, as their publisher states it."
    return f"{license} The training data has its own terms."


def _preprocessing(spec, measured):
    as_measured = ", as the accuracy above was measured" if measured else ""
    height, width, channels = spec.input_shape
    if channels not in _MODES:
        return f"Bring each image to {height} x {width} pixels with {channels} channels, values 0 to 255."
    axes = "None, ..., None" if channels == 1 else "None"
    shape = (1, *spec.input_shape)
    side, interpolation = spec.preprocessing.resize, spec.preprocessing.interpolation
    method = f"Image.Resampling.{interpolation.upper()}"
    if side is None:
        how = f"Resize each image to {height} x {width} pixels ({interpolation}){as_measured}"
        resize = f"photo = photo.resize(({width}, {height}), {method})"
    else:
        how = (
            f"Resize the shorter side of each image to {side} pixels ({interpolation}) and cut out the "
            f"{height} x {width} pixels in its centre{as_measured}"
        )
        resize = f"""\
shorter = min(photo.size)
photo = photo.resize([length * {side} // shorter for length in photo.size], {method})
left, top = round((photo.width - {width}) / 2), round((photo.height - {height}) / 2)
photo = photo.crop((left, top, left + {width}, top + {height}))"""
    return f"""\
{how}:

```python
import numpy as np
from PIL import Image

photo = Image.open("photo.jpg").convert("{_MODES[channels]}")
{resize}
images = np.asarray(photo, "float32")[{axes}]  # {shape}, values 0 to 255
```

Then, in the runtime of your choice:"""


def _files(report):
    rows = ["| file | bytes | sha256 |", "|---|---|---|"]
    rows += [
        f"| `{report['files'][name]}` | {entry['bytes']:,} | `{entry['sha256']}` |"
        for name, entry in report["formats"].items()
    ]
    text = "\n".join(rows)
    folders = [report["files"][name] for name in report["formats"] if TABLE[name].name == "saved_model"]
    if folders:
        text += (
            "\n\nA folder's digest is that of its listing: "
            f"`cd {folders[0]} && find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum`."
        )
    return text


def _parity(report):
    rows = [
        "| file | images | largest logit difference | same top-1 | top-1 | |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| `{report['files'][name]}` | {entry['images']} | {difference_text(entry)} | "
        f"{100 * entry['top1_agreement']:.2f} % | "
        f"{'-' if entry['top1'] is None else f'''{100 * entry['top1']:.2f} %'''} | {verdict(entry)} |"
        for name, entry in report["formats"].items()
    ]
    versions = ", ".join(sorted(set(report["versions"].values())))
    return (
        f"Each file was opened in its own runtime and fed the same {report['images']} images "
        f"({report['images_from']}). *equal*: no logit of a float32 file differs by more than 1e-5 of the "
        "largest; *close*: the root mean square of a less precise file's differences is within its format's "
        "bound, which `parity.json` names; anything else is DIFFERENT.\n\n"
        + "\n".join(rows)
        + f"\n\nMeasured with {versions}."
    )


def _speed(report):
    rows = [f"| file | {' | '.join(LATENCY_HEADERS)} |", "|---|---|---|---|"]
    rows += [
        f"| `{report['files'][name]}` | {' | '.join(latency_texts(entry))} |"
        for name, entry in report["formats"].items()
    ]
    return (
        "Median time of one call with so many images, and the peak memory of the process that made them; "
        f"{report['cores']} CPU cores, in the file's own runtime.\n\n" + "\n".join(rows)
    )
