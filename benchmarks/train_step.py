"""Training steps: ours against Keras' `fit` and PyTorch, and our whole loop against its bare step.

python -m benchmarks.train_step --output=train_step.json
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags

from benchmarks import harness
from benchmarks.torch_peer import check_torch, torch_python
from benchmarks.workers import Worker
from keras_resnet import cli
from keras_resnet.models.config import get_config


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: a name of the zoo.
        precision: "float32" or "bfloat16".
        batch_size: images a step.
        steps: a round.
        keras: the contender of `keras_worker` that stands for Keras.
        keras_name: its name in the result.
    """

    model: str
    precision: str
    batch_size: int
    steps: int
    keras: str
    keras_name: str


_APPLICATIONS = ("applications", "keras.applications ResNet50, fit")
SUBJECTS = {
    "resnet50/float32": Subject("resnet50", "float32", 32, 2, *_APPLICATIONS),
    "resnet50/bfloat16": Subject("resnet50", "bfloat16", 32, 2, *_APPLICATIONS),
    "cifar_resnet20/float32": Subject(
        "cifar_resnet20", "float32", 128, 20, "keras_layers", "same network with Keras' layers, fit"
    ),
}
LOOP = "loop_overhead/cifar_resnet20"
_LOOP_STEPS = 30
PEERS = ("keras", "torch")

# Before the first round: to compile, and to fill the libraries' caches.
_WARM_UP = 2

_SUBJECTS = flags.DEFINE_list("subjects", [*SUBJECTS, LOOP], "What to measure.")
_PEERS = flags.DEFINE_list("peers", list(PEERS), "Against whom: keras, torch.")
_STEPS = flags.DEFINE_integer("steps", None, "Steps a round. Default: the subject's own.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images a step. Default: the subject's own.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Pixels. Default: the network's own.")


def measure(name: str, subject: Subject, ours: Callable, peers: dict[str, Callable]) -> list[harness.Row]:
    """Starts all contenders, measures them in turn, and ends them.

    Args:
        name: of the subject.
        subject: what to measure.
        ours: starts our worker, given the spec.
        peers: the same for each peer, by its name in the result.
    """
    spec = {
        "model": subject.model,
        "precision": subject.precision,
        "batch_size": _BATCH_SIZE.value or subject.batch_size,
        "image_size": _IMAGE_SIZE.value or get_config(subject.model).input_size,
        "warm_up": _WARM_UP,
    }
    steps, memory = _STEPS.value or subject.steps, {}

    with contextlib.ExitStack() as stack:

        def measure_of(label: str, start: Callable):
            # One after the other, so that none is timed while another still compiles.
            harness.say(f"{name}: starting {label}")
            worker = stack.enter_context(start(spec))

            def measure_once() -> float:
                answer = worker.measure(steps=steps)
                memory[label] = answer["peak_memory_mib"]
                harness.say(f"{name}: {answer['images_per_second']:.2f} images/s, {label}")
                return answer["images_per_second"]

            return worker, measure_once

        first, mine = measure_of("ours", ours)
        theirs = {}
        for label, start in peers.items():
            worker, theirs[label] = measure_of(label, start)
            if "versions" in worker.ready and worker.ready["parameters"] != first.ready["parameters"]:
                raise RuntimeError(f"{label} trains another network: {worker.ready} instead of {first.ready}")
        rows = harness.compare(name, "images/s", mine, theirs, harness.rounds())
    peak = [
        harness.row(f"peak_memory/{name}", "MiB", [memory["ours"]], [memory[label]], label) for label in peers
    ]
    return rows + peak


def torch_peer(subject: Subject, compile: bool) -> tuple[str, Callable]:
    """PyTorch's name in the result, and how to start it."""
    config = dataclasses.asdict(get_config(subject.model))
    how = ["compiled" if compile else "eager", "channels_last"]
    if subject.precision != "float32":
        how.append(f"autocast {subject.precision}")

    def start(spec):
        return Worker(
            "benchmarks.torch_worker", {**spec, "config": config, "compile": compile}, python=torch_python()
        )

    return f"PyTorch {', '.join(how)}", start


def _keras(contender: str) -> Callable:
    return lambda spec: Worker("benchmarks.keras_worker", {**spec, "contender": contender})


def _measure_loop() -> list[harness.Row]:
    """The whole loop (pipeline, metrics, reports) in relation to the same step alone."""
    steps = _STEPS.value or _LOOP_STEPS
    spec = {
        "contender": "loop",
        "model": "cifar_resnet20",
        "batch_size": _BATCH_SIZE.value or 128,
        "image_size": _IMAGE_SIZE.value or 32,
        "steps": steps,
        "warm_up": _WARM_UP,
    }
    harness.say(f"{LOOP}: starting")
    with Worker("benchmarks.keras_worker", spec) as worker:

        def measure_of(what: str) -> Callable[[], float]:
            def measure_once() -> float:
                speed = worker.measure(measure=what, steps=steps)["images_per_second"]
                harness.say(f"{LOOP}: {speed:.2f} images/s, {what}")
                return speed

            return measure_once

        peers = {"the bare step on the same batches": measure_of("bare")}
        return harness.compare(LOOP, "images/s", measure_of("loop"), peers, harness.rounds())


def main() -> None:
    """Measures as the flags say."""
    subjects = harness.chosen("subject", _SUBJECTS.value, [*SUBJECTS, LOOP])
    peers = harness.chosen("peer", _PEERS.value, PEERS)
    harness.at_least_one(steps=_STEPS.value, batch_size=_BATCH_SIZE.value, image_size=_IMAGE_SIZE.value)
    harness.rounds()
    versions = harness.versions("keras", "tensorflow", "numpy")
    if "torch" in peers and subjects != [LOOP]:
        versions |= check_torch(torch_python())
    rows = []
    for name in subjects:
        if name == LOOP:
            rows += _measure_loop()
            continue
        subject, contenders = SUBJECTS[name], {}
        if "keras" in peers:
            contenders[subject.keras_name] = _keras(subject.keras)
        if "torch" in peers:
            label, start = torch_peer(subject, compile=False)
            contenders[label] = start
        rows += measure(name, subject, _keras("ours"), contenders)
    harness.report(rows, versions)


if __name__ == "__main__":
    cli.run(main)
