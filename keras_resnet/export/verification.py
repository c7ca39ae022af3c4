"""Compares artifacts, each in its own runtime, with the Keras model that they were exported from."""

import contextlib
import dataclasses
import math
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import keras
import numpy as np

from keras_resnet import files
from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import ARTIFACTS, ArtifactKind, Options
from keras_resnet.export.check_signatures import broken_signatures
from keras_resnet.export.formats import FILE_FORMATS
from keras_resnet.export.report import ArtifactReport, ExportReport
from keras_resnet.export.runtimes import Artifact, RunError, TensorTypes, open_artifact
from keras_resnet.export.serving import (
    INPUT,
    LOGITS,
    OUTPUTS,
    PROBABILITIES,
    Activation,
    activation_of,
    serving_function,
)


def verify(
    model: keras.Model,
    artifacts: Mapping[str, str | Path],
    batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
    options: Options | None = None,
    max_top1_drop: float | None = None,
) -> ExportReport:
    """Feeds the same images to the Keras model and to every artifact, and compares the logits.

    Memory does not grow with the number of batches. Of the report, an export fills in the other fields.

    Args:
        model: made by `serving_model`.
        artifacts: paths of the artifacts, by keys of `ARTIFACTS`.
        batches: pairs of images, float32 (batch, height, width, channels) with pixels 0-255, and int
            labels (batch,), or None for images without labels.
        options: what the artifacts were written with. With `io_dtype="uint8"`, pixels are rounded.
        max_top1_drop: share of the images by which the top-1 of less precise artifacts may fall; more is
            reported as "worse". None allows any.

    Raises:
        InputError: an artifact is missing or cannot be opened, or there are no images.
    """
    options = options or Options()
    reference = _Reference(model)
    with contextlib.ExitStack() as stack:
        comparisons = {}
        for name, path in artifacts.items():
            kind = ARTIFACTS[name]
            artifact = stack.enter_context(open_artifact(kind.format, path))
            problems = _signature_problems(artifact, kind, model, options)
            comparisons[name] = _Comparison(artifact, kind, reference.activation, problems)
        for images, labels in batches:
            images = np.ascontiguousarray(images, "float32")
            if options.io_dtype == "uint8":
                images = np.rint(images)
            if not len(images):
                continue
            if reference.images == 0:
                for comparison in comparisons.values():
                    comparison.try_other_batch_sizes(images)
                    artifact, tolerance = comparison.artifact, comparison.kind.tolerance
                    comparison.problems += broken_signatures(
                        artifact, model, reference.serve, images, options, tolerance
                    )
            logits = reference.add(images, labels)
            for comparison in comparisons.values():
                comparison.add(images, logits, labels)
    if reference.images == 0:
        raise InputError("there are no images to verify on")
    versions = {name: comparison.artifact.version for name, comparison in comparisons.items()}
    return ExportReport(
        model=model.name,
        images=reference.images,
        activation=reference.activation,
        top1=_finite(reference.top1),
        versions={"keras": f"keras {keras.__version__}", **versions},
        formats={
            name: dataclasses.replace(
                comparison.summary(reference, Path(artifacts[name])), max_top1_drop=max_top1_drop
            )
            for name, comparison in comparisons.items()
        },
    )


def expected_signature(
    kind: ArtifactKind, model: keras.Model, options: Options
) -> tuple[TensorTypes, TensorTypes]:
    """Returns the types of an artifact's inputs and outputs."""
    batch, height, width, channels = model.input_shape
    taken = FILE_FORMATS[kind.format].options
    input_dtype = options.io_dtype if "io_dtype" in taken else "float32"
    output_dtype = options.io_dtype if kind.name == "tflite_int8" else "float32"
    if "dynamic_size" in taken and options.dynamic_size:
        height = width = None
    if "batch_size" in taken:
        batch = options.batch_size
    shape = (batch, height, width, channels)
    if "layout" in taken and options.layout == "nchw":
        shape = (batch, channels, height, width)
    tensors = cast(dict[str, keras.KerasTensor], model.output)
    outputs = {name: (output_dtype, (batch, tensors[name].shape[-1])) for name in OUTPUTS}
    return {INPUT: (input_dtype, shape)}, outputs


class _Reference:
    """The Keras model on the CPU, where float32 is not rounded to shorter formats."""

    def __init__(self, model):
        self.serve = serving_function(model)
        self.activation: Activation = activation_of(model)
        self.images = 0
        self.largest_logit = 0.0
        self.squares = 0.0
        self._correct = 0.0

    def add(self, images, labels):
        import tensorflow as tf

        with tf.device("CPU:0"):
            logits = self.serve(tf.constant(images))[LOGITS].numpy()
        self.images += len(images)
        self.largest_logit = _worse(self.largest_logit, logits)
        self.squares += float(np.square(logits, dtype="float64").sum())
        self._correct += _hits(logits, labels)
        return logits

    @property
    def top1(self):
        return self._correct / self.images


@dataclasses.dataclass
class _Comparison:
    """Compares one artifact with the reference, batch by batch."""

    artifact: Artifact
    kind: ArtifactKind
    activation: Activation
    problems: list[str]
    images: int = 0
    agreeing: float = 0.0
    correct: float = 0.0
    difference: float = 0.0
    squares: float = 0.0
    probability_error: float = 0.0

    def try_other_batch_sizes(self, images):
        """Checks that the logits do not change in a batch of one image, and in one of two more images."""
        whole = self._run(images)
        more = self._run(np.concatenate([images, images[:1], images[:1]]))
        alone = self._run(images[:1])
        if whole is None or more is None or alone is None:
            return
        largest = float(np.abs(whole[LOGITS]).max())
        if not math.isfinite(largest):
            return  # reported by `summary`
        first = whole[LOGITS][:1]
        pairs = [(more[LOGITS][:-2], whole[LOGITS]), (more[LOGITS][-1:], first), (alone[LOGITS], first)]
        # Kernels for one image and for many may round differently, which matters in 16 bits.
        if not all(float(np.abs(a - b).max()) <= self.kind.tolerance * largest for a, b in pairs):
            self._problem("an image's logits depend on the other images of its batch")

    def add(self, images, reference_logits, labels):
        # Without results, all differences are NaN.
        results = self._run(images) or dict.fromkeys(OUTPUTS, np.full_like(reference_logits, np.nan))
        logits, probabilities = (results[name].astype("float64") for name in (LOGITS, PROBABILITIES))
        self.images += len(images)
        self.difference = _worse(self.difference, logits - reference_logits)
        self.squares += float(np.square(logits - reference_logits).sum())
        expected = _ACTIVATIONS[self.activation](logits)
        self.probability_error = _worse(self.probability_error, probabilities - expected)
        self.agreeing += _hits(logits, reference_logits.argmax(-1))
        self.correct += _hits(logits, labels)

    def summary(self, reference: _Reference, path: Path) -> ArtifactReport:
        relative = _ratio(self.difference, reference.largest_logit)
        rms = _ratio(math.sqrt(self.squares), math.sqrt(reference.squares))
        if not math.isfinite(reference.largest_logit):
            self._problem("the Keras model's own logits are not finite")
        elif not math.isfinite(self.difference):
            self._problem("some logits are not finite, or missing")
        elif not self.probability_error <= self.kind.probability_tolerance:
            self._problem(f"the probabilities are not the {self.activation} of the logits")
        top1 = self.correct / self.images
        # In float32, each logit must be equal.
        decisive = relative if self.kind.precision == "float32" else rms
        return ArtifactReport(
            max_abs_logit_difference=_finite(self.difference),
            max_relative_difference=_finite(relative),
            rms_relative_difference=_finite(rms),
            tolerance=self.kind.tolerance,
            max_probability_error=_finite(self.probability_error),
            top1_agreement=self.agreeing / self.images,
            top1=_finite(top1),
            top1_drop=_finite(reference.top1 - top1),
            images=self.images,
            equal=decisive <= self.kind.tolerance and not self.problems,
            problems=tuple(self.problems),
            bytes=files.size(path),
            sha256=files.sha256(path),
        )

    def _run(self, images):
        try:
            results = self.artifact.run(images)
        except RunError as error:
            self._problem(f"does not run on a batch of {len(images)}: {str(error).splitlines()[0]}")
            return None
        shapes = {name: results[name].shape if name in results else None for name in OUTPUTS}
        logits, probabilities = shapes.values()
        if not logits or len(logits) != 2 or logits[0] != len(images) or probabilities != logits:
            self._problem(f"returns the shapes {shapes} for a batch of {len(images)}")
            return None
        return results

    def _problem(self, sentence):
        if sentence not in self.problems:
            self.problems.append(sentence)


def _signature_problems(
    artifact: Artifact, kind: ArtifactKind, model: keras.Model, options: Options
) -> list[str]:
    """Returns the names, dtypes, shapes or labels that differ from the expected ones, as sentences."""
    inputs, outputs = expected_signature(kind, model, options)
    tensors = {"inputs": (artifact.inputs, inputs), "outputs": (artifact.outputs, outputs)}
    problems = list(artifact.problems)
    for name, (found, right) in tensors.items():
        if found != right:
            problems.append(f"its {name} are {found}, not {right}")
    if artifact.labels is not None and tuple(artifact.labels) != tuple(options.labels):
        found, right = reprlib.repr(list(artifact.labels)), reprlib.repr(list(options.labels))
        problems.append(f"its labels are {found}, not {right}")
    return problems


def _ratio(difference, largest):
    """Returns the quotient; 0 if both are 0."""
    if not difference:
        return difference
    return difference / largest if largest else math.inf


def _worse(so_far, values):
    """Returns the largest absolute value so far; NaN if there was one."""
    return float(np.maximum(so_far, np.abs(values).max()))


def _hits(logits, labels):
    """Returns how many rows have their largest logit at the label; NaN without labels."""
    if labels is None:
        return math.nan
    # A row with NaN has no largest entry, so it matches no label.
    finite = np.isfinite(logits).all(-1)
    return int(np.sum((logits.argmax(-1) == np.asarray(labels)) & finite))


def _softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _sigmoid(logits):
    return np.exp(-np.logaddexp(0, -logits))


_ACTIVATIONS = {"softmax": _softmax, "sigmoid": _sigmoid}


def _finite(value):
    return value if math.isfinite(value) else None
