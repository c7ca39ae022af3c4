"""Compares artifacts with the Keras model they came from, each in its own runtime, on real images."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import keras
import numpy as np

from export import files
from export.formats import TABLE
from export.runtimes import Artifact, RunError
from export.signature import INPUT, LOGITS, OUTPUTS, PROBABILITIES, serving_function
from keras_resnet.errors import InputError

TOLERANCE = 1e-5  # of the largest logit; float32 artifacts reach 2e-6
_PROBABILITY_TOLERANCE = 1e-5


def verify(
    model: keras.Model,
    artifacts: Mapping[str, str | Path],
    batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
    tolerance: float = TOLERANCE,
) -> dict:
    """Feeds the same images to the Keras model and to every artifact, and compares the logits.

    Memory does not grow with the number of batches.

    Args:
        model: of `serving_model`.
        artifacts: format name to the artifact's path.
        batches: pairs of images, float32 (batch, height, width, channels) of pixels 0-255, and int
            labels (batch,), or None for images without labels.
        tolerance: largest allowed logit difference, relative to the largest logit of the Keras model.

    Returns:
        What `parity.json` holds:
        `{"model", "tolerance", "images", "top1", "equal", "versions", "formats": {name: {...}}}`, and
        per format `max_abs_logit_difference`, `max_relative_difference` (over the largest reference
        logit), `max_probability_error` (against the softmax of the artifact's own logits),
        `top1_agreement` (with the Keras model), `top1` (None without labels), `images`, `bytes`,
        `sha256`, `equal`, and `problems`, the promises that were broken as sentences. Shares are
        between 0 and 1. A difference that is not a finite number is None, and never equal.

    Raises:
        InputError: an artifact is missing or cannot be opened, or there are no images.
    """
    reference = _Reference(model)
    with contextlib.ExitStack() as stack:
        comparisons = {}
        for name, path in artifacts.items():
            artifact = stack.enter_context(_opened(name, Path(path)))
            comparisons[name] = _Comparison(artifact, _broken_promises(artifact, model))
        for images, labels in batches:
            images = np.ascontiguousarray(images, "float32")
            if not len(images):
                continue
            if reference.images == 0:
                for comparison in comparisons.values():
                    comparison.try_other_batch_sizes(images)
            logits = reference.add(images, labels)
            for comparison in comparisons.values():
                comparison.add(images, logits, labels)
    if reference.images == 0:
        raise InputError("there are no images to verify on")
    formats = {}
    for name, comparison in comparisons.items():
        path = Path(artifacts[name])
        formats[name] = {
            **comparison.summary(reference, tolerance),
            "bytes": files.size(path),
            "sha256": files.sha256(path),
        }
    return {
        "model": model.name,
        "tolerance": tolerance,
        "images": reference.images,
        "top1": reference.top1,
        "equal": all(entry["equal"] for entry in formats.values()),
        "versions": {
            "keras": f"keras {keras.__version__}",
            **{name: comparison.artifact.version for name, comparison in comparisons.items()},
        },
        "formats": formats,
    }


@contextlib.contextmanager
def _opened(name: str, path: Path):
    try:
        with TABLE[name].open(path) as artifact:
            yield artifact
    except ModuleNotFoundError as error:
        raise InputError(f"to verify {path}, install the extra 'export': {error}") from error


class _Reference:
    """The Keras model on the CPU, where float32 is not rounded to shorter formats."""

    def __init__(self, model):
        self._function = serving_function(model)
        self.images = 0
        self.largest_logit = 0.0
        self._correct = 0
        self._labelled = True

    def add(self, images, labels):
        import tensorflow as tf

        with tf.device("CPU:0"):
            logits = self._function(tf.constant(images))[LOGITS].numpy()
        self.images += len(images)
        self.largest_logit = _worse(self.largest_logit, logits)
        if labels is None:
            self._labelled = False
        else:
            self._correct += _hits(logits, labels)
        return logits

    @property
    def top1(self):
        return self._correct / self.images if self._labelled and self.images else None


@dataclasses.dataclass
class _Comparison:
    """One artifact against the reference, batch by batch."""

    artifact: Artifact
    problems: list[str]
    images: int = 0
    agreeing: int = 0
    correct: int = 0
    labelled: bool = True
    difference: float = 0.0
    probability_error: float = 0.0

    def try_other_batch_sizes(self, images):
        """One image alone, and two more than the first batch has: their logits must stay the same."""
        whole = self._run(images)
        more = self._run(np.concatenate([images, images[:1], images[:1]]))
        alone = self._run(images[:1])
        if whole is None or more is None or alone is None:
            return
        largest = float(np.abs(whole[LOGITS]).max())
        if not math.isfinite(largest):
            return  # `add` and `summary` will tell
        pairs = [(more[LOGITS][: len(images)], whole[LOGITS]), (more[LOGITS][-1:], whole[LOGITS][:1])]
        pairs.append((alone[LOGITS], whole[LOGITS][:1]))
        if not all(float(np.abs(a - b).max()) <= TOLERANCE * largest for a, b in pairs):
            self._problem("an image's logits depend on the other images of its batch")

    def add(self, images, reference_logits, labels):
        results = self._run(images)
        self.images += len(images)
        self.labelled &= labels is not None
        if results is None:
            self.difference = self.probability_error = math.nan
            return
        logits, probabilities = (results[name].astype("float64") for name in (LOGITS, PROBABILITIES))
        self.difference = _worse(self.difference, logits - reference_logits)
        self.probability_error = _worse(self.probability_error, probabilities - _softmax(logits))
        self.agreeing += _hits(logits, reference_logits.argmax(-1))
        if labels is not None:
            self.correct += _hits(logits, labels)

    def summary(self, reference, tolerance):
        relative = self.difference
        if relative:  # without any difference, a reference of zeros is no trouble
            largest = reference.largest_logit
            relative = self.difference / largest if largest else math.inf
        if not math.isfinite(reference.largest_logit):
            self._problem("the Keras model's own logits are not finite")
        elif not math.isfinite(self.difference):
            self._problem("some logits are not finite, or missing")
        elif not self.probability_error <= _PROBABILITY_TOLERANCE:
            self._problem("the probabilities are not the softmax of the logits")
        return {
            "max_abs_logit_difference": _finite(self.difference),
            "max_relative_difference": _finite(relative),
            "max_probability_error": _finite(self.probability_error),
            "top1_agreement": self.agreeing / self.images,
            "top1": self.correct / self.images if self.labelled else None,
            "images": self.images,
            "equal": relative <= tolerance and not self.problems,
            "problems": self.problems,
        }

    def _run(self, images):
        try:
            results = self.artifact.run(images)
        except RunError as error:
            self._problem(f"does not run on a batch of {len(images)}: {str(error).splitlines()[0]}")
            return None
        shapes = {name: results[name].shape if name in results else None for name in OUTPUTS}
        logits, probabilities = shapes.values()
        if not logits or len(logits) != 2 or logits[0] != len(images) or probabilities != logits:
            self._problem(f"answers a batch of {len(images)} with the shapes {shapes}")
            return None
        return results

    def _problem(self, sentence):
        if sentence not in self.problems:
            self.problems.append(sentence)


def _broken_promises(artifact, model):
    """What names, types or shapes differ from the serving model's, as sentences."""
    promised = {
        "inputs": {INPUT: ("float32", tuple(model.input_shape))},
        "outputs": {name: ("float32", tuple(model.output[name].shape)) for name in OUTPUTS},
    }
    return list(artifact.problems) + [
        f"its {kind} are {getattr(artifact, kind)}, not {expected}"
        for kind, expected in promised.items()
        if getattr(artifact, kind) != expected
    ]


def _worse(so_far, values):
    """The largest absolute value; NaN once there was one."""
    return float(np.maximum(so_far, np.abs(values).max()))


def _hits(logits, labels):
    # A row of NaN has no largest entry, so it is nobody's label.
    finite = np.isfinite(logits).all(-1)
    return int(np.sum((logits.argmax(-1) == np.asarray(labels)) & finite))


def _softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _finite(value):
    return value if math.isfinite(value) else None


def parity_table(report: dict, output_dir: str | Path = "") -> str:
    """The table that a person reads: one line for the Keras model, one for each artifact.

    Args:
        report: of `verify`; its `images_from`, if there, names the images.
        output_dir: folder to show before the artifacts' names.
    """
    source = report.get("images_from", "images")
    rows = [("", "size", "top-1", "largest logit difference", "")]
    rows.append((f"{report['model']} (Keras)", "", _percent(report["top1"]), "", ""))
    for name, entry in report["formats"].items():
        rows.append(
            (
                str(Path(output_dir) / TABLE[name].file_name),
                _megabytes(entry["bytes"]),
                _percent(entry["top1"]),
                difference_text(entry),
                verdict(entry),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [f"{report['model']} on {report['images']} images, {source}"]
    for name, size, top1, difference, equal in rows:
        cells = (
            name.ljust(widths[0]),
            size.rjust(widths[1]),
            top1.rjust(widths[2]),
            difference.rjust(widths[3]),
            equal,
        )
        lines.append("  ".join(cells).rstrip())
    lines += [
        f"  {name}: {problem}" for name, entry in report["formats"].items() for problem in entry["problems"]
    ]
    return "\n".join(lines)


def verdict(entry: dict) -> str:
    """ "equal" or "DIFFERENT", for one format of a report."""
    return "equal" if entry["equal"] else "DIFFERENT"


def difference_text(entry: dict) -> str:
    """Absolute and relative difference of one format of a report."""
    absolute, relative = entry["max_abs_logit_difference"], entry["max_relative_difference"]
    if absolute is None or relative is None:
        return "not finite"
    return f"{absolute:.1e} ({relative:.1e} relative)"


def _percent(share):
    return "-" if share is None else f"{100 * share:.2f} %"


def _megabytes(size):
    return f"{size / 1e6:.2f} MB"
