"""Compares artifacts with the Keras model they came from, each in its own runtime, on real images."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import keras
import numpy as np

from keras_resnet import files
from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import TABLE, TOLERANCES, Options
from keras_resnet.export.runtimes import Artifact, RunError
from keras_resnet.export.saved_model_signatures import broken_signatures
from keras_resnet.export.serving import LOGITS, OUTPUTS, PROBABILITIES, serving_function


def verify(
    model: keras.Model,
    artifacts: Mapping[str, str | Path],
    batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
    options: Options | None = None,
) -> dict:
    """Feeds the same images to the Keras model and to every artifact, and compares the logits.

    Memory does not grow with the number of batches.

    Args:
        model: of `serving_model`.
        artifacts: names of `formats.TABLE` to the artifacts' paths.
        batches: pairs of images, float32 (batch, height, width, channels) of pixels 0-255, and int
            labels (batch,), or None for images without labels.
        options: that the artifacts were written with. With `io_dtype="uint8"` all see whole pixels.

    Returns:
        What `parity.json` holds:
        `{"model", "images", "top1", "equal", "versions", "formats": {name: {...}}}`, and per format
        `max_abs_logit_difference`, `max_relative_difference` (over the largest reference logit),
        `rms_relative_difference` (root mean squares, of the differences over the logits'),
        `tolerance` (of the former for float32, of the latter for less precise formats),
        `max_probability_error` (against the softmax of the artifact's own logits), `top1_agreement`
        (with the Keras model), `top1` (None without labels), `top1_drop` (the Keras model's minus
        this one's), `images`, `bytes`, `sha256`, `equal`, and `problems`, the promises that were broken
        as sentences. Shares are between 0 and 1. A difference that is not a finite number is None, and
        never equal.

    Raises:
        InputError: an artifact is missing or cannot be opened, or there are no images.
    """
    options = options or Options()
    reference = _Reference(model)
    with contextlib.ExitStack() as stack:
        comparisons = {}
        for name, path in artifacts.items():
            artifact = stack.enter_context(_opened(name, Path(path)))
            problems = _broken_promises(artifact, *TABLE[name].promise(model, options), options)
            entry = TABLE[name]
            comparisons[name] = _Comparison(artifact, problems, entry.tolerance, entry.probability_tolerance)
        for images, labels in batches:
            images = np.ascontiguousarray(images, "float32")
            if options.io_dtype == "uint8":
                images = np.rint(images)
            if not len(images):
                continue
            if reference.images == 0:
                for comparison in comparisons.values():
                    comparison.try_other_batch_sizes(images)
                    comparison.problems += broken_signatures(
                        comparison.artifact, model, reference.serve, images, options, comparison.tolerance
                    )
            logits = reference.add(images, labels)
            for comparison in comparisons.values():
                comparison.add(images, logits, labels)
    if reference.images == 0:
        raise InputError("there are no images to verify on")
    formats = {}
    for name, comparison in comparisons.items():
        path = Path(artifacts[name])
        formats[name] = {
            **comparison.summary(reference),
            "bytes": files.size(path),
            "sha256": files.sha256(path),
        }
    return {
        "model": model.name,
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
        self.serve = serving_function(model)
        self.images = 0
        self.largest_logit = 0.0
        self.squares = 0.0
        self._correct = 0
        self._labelled = True

    def add(self, images, labels):
        import tensorflow as tf

        with tf.device("CPU:0"):
            logits = self.serve(tf.constant(images))[LOGITS].numpy()
        self.images += len(images)
        self.largest_logit = _worse(self.largest_logit, logits)
        self.squares += float(np.square(logits, dtype="float64").sum())
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
    tolerance: float
    probability_tolerance: float
    images: int = 0
    agreeing: int = 0
    correct: int = 0
    labelled: bool = True
    difference: float = 0.0
    squares: float = 0.0
    probability_error: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether the artifact computes in float32, and every single logit must be equal."""
        return self.tolerance == TOLERANCES["float32"]

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
        # Kernels for one image and for many may round differently, in 16 bits visibly.
        if not all(float(np.abs(a - b).max()) <= self.tolerance * largest for a, b in pairs):
            self._problem("an image's logits depend on the other images of its batch")

    def add(self, images, reference_logits, labels):
        results = self._run(images)
        self.images += len(images)
        self.labelled &= labels is not None
        if results is None:
            self.difference = self.squares = self.probability_error = math.nan
            return
        logits, probabilities = (results[name].astype("float64") for name in (LOGITS, PROBABILITIES))
        self.difference = _worse(self.difference, logits - reference_logits)
        self.squares += float(np.square(logits - reference_logits).sum())
        self.probability_error = _worse(self.probability_error, probabilities - _softmax(logits))
        self.agreeing += _hits(logits, reference_logits.argmax(-1))
        if labels is not None:
            self.correct += _hits(logits, labels)

    def summary(self, reference):
        relative = _ratio(self.difference, reference.largest_logit)
        rms = _ratio(math.sqrt(self.squares), math.sqrt(reference.squares))
        if not math.isfinite(reference.largest_logit):
            self._problem("the Keras model's own logits are not finite")
        elif not math.isfinite(self.difference):
            self._problem("some logits are not finite, or missing")
        elif not self.probability_error <= self.probability_tolerance:
            self._problem("the probabilities are not the softmax of the logits")
        top1 = self.correct / self.images if self.labelled else None
        return {
            "max_abs_logit_difference": _finite(self.difference),
            "max_relative_difference": _finite(relative),
            "rms_relative_difference": _finite(rms),
            "tolerance": self.tolerance,
            "max_probability_error": _finite(self.probability_error),
            "top1_agreement": self.agreeing / self.images,
            "top1": top1,
            "top1_drop": None if top1 is None or reference.top1 is None else reference.top1 - top1,
            "images": self.images,
            "equal": (relative if self.exact else rms) <= self.tolerance and not self.problems,
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


def _broken_promises(artifact, inputs, outputs, options):
    """What names, types, shapes or labels differ from what was promised, as sentences."""
    problems = list(artifact.problems) + [
        f"its {kind} are {found}, not {expected}"
        for kind, found, expected in (
            ("inputs", artifact.inputs, inputs),
            ("outputs", artifact.outputs, outputs),
        )
        if found != expected
    ]
    if artifact.labels is not None and tuple(artifact.labels) != tuple(options.labels):
        problems.append(f"its labels are {_short(artifact.labels)}, not {_short(options.labels)}")
    return problems


def _short(labels):
    names = ", ".join(repr(label) for label in labels[:5])
    return f"[{names}{', ...' if len(labels) > 5 else ''}]"


def _ratio(difference, largest):
    """Their quotient; without any difference, a reference of zeros is no trouble."""
    if not difference:
        return difference
    return difference / largest if largest else math.inf


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
        report: of `verify`; if there, its `images_from` names the images, its `files` the artifacts,
            and the entries' `latency` adds columns.
        output_dir: folder to show before the artifacts' names.
    """
    source = report.get("images_from", "images")
    timed = any(entry.get("latency") for entry in report["formats"].values())
    rows = [("", "size", "top-1", "largest logit difference", "", *(LATENCY_HEADERS if timed else ()))]
    rows.append((f"{report['model']} (Keras)", "", _percent(report["top1"]), "", ""))
    for name, entry in report["formats"].items():
        row = (
            str(Path(output_dir) / report.get("files", {}).get(name, TABLE[name].file_name)),
            _megabytes(entry["bytes"]),
            _percent(entry["top1"]),
            difference_text(entry),
            verdict(entry),
        )
        rows.append(row + latency_texts(entry) if timed else row)
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    lines = [f"{report['model']} on {report['images']} images, {source}"]
    for row in rows:
        cells = (
            cell.ljust(width) if column in (0, 4) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        lines.append("  ".join(cells).rstrip())
    lines += [
        f"  {name}: {problem}" for name, entry in report["formats"].items() for problem in entry["problems"]
    ]
    return "\n".join(lines)


LATENCY_HEADERS = ("batch 1", "batch 32", "memory")


def latency_texts(entry: dict) -> tuple[str, str, str]:
    """Milliseconds for one image and for 32, and the peak memory, of one format of a report."""
    if not entry.get("latency"):
        return ("-", "-", "-")
    one, many = (f"{entry['latency'][batch]:.1f} ms" for batch in ("1", "32"))
    return one, many, f"{entry['peak_memory'] / 2**20:,.0f} MiB"


def verdict(entry: dict) -> str:
    """ "equal" (every logit, to float32's rounding), "close" (less precise formats) or "DIFFERENT"."""
    if not entry["equal"]:
        return "DIFFERENT"
    return "equal" if entry["tolerance"] == TOLERANCES["float32"] else "close"


def difference_text(entry: dict) -> str:
    """The difference of one format of a report, in the measure that decides about it."""
    absolute, relative = entry["max_abs_logit_difference"], entry["max_relative_difference"]
    if absolute is None or relative is None:
        return "not finite"
    if entry["tolerance"] == TOLERANCES["float32"]:
        return f"{absolute:.1e} ({relative:.1e} relative)"
    return f"{absolute:.1e} ({entry['rms_relative_difference']:.1e} rms)"


def _percent(share):
    return "-" if share is None else f"{100 * share:.2f} %"


def _megabytes(size):
    return f"{size / 1e6:.2f} MB"
