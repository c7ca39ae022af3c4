"""Training steps: ours against Keras' `fit` and PyTorch, and our whole loop against its bare step.

python -m benchmarks.train_step --output=train_step.json
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

from absl import flags

from benchmarks import harness
from benchmarks.torch_peer import check_torch, start_torch
from keras_resnet import cli
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: a name of the zoo.
        precision: "float32" or "bfloat16".
        batch_size: images per step.
        steps: per round.
        keras: the contender in `keras_worker` that stands for Keras.
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
_LOOP = "loop_overhead/cifar_resnet20"
_LOOP_STEPS = 30
_PEERS = ("keras", "torch")

# Before the first round: to compile, and to fill the libraries' caches.
_WARM_UP = 2

subjects = harness.define_subjects([*SUBJECTS, _LOOP])
_CHOSEN_PEERS = flags.DEFINE_list("peers", list(_PEERS), f"Peers: {', '.join(_PEERS)}.")
_STEPS = flags.DEFINE_integer("steps", None, "Steps per round. Default: the subject's own.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images per step. Default: the subject's own.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Pixels. Default: the network's own.")

Start = Callable[[dict[str, Any]], Worker]  # from a specification


def peers(known: tuple[str, ...] = _PEERS) -> list[str]:
    """The value of --peers; also checks the other flags."""
    harness.at_least_one(steps=_STEPS.value, batch_size=_BATCH_SIZE.value, image_size=_IMAGE_SIZE.value)
    harness.rounds()
    return harness.chosen("peer", _CHOSEN_PEERS.value, known)


def measure(name: str, ours: Start, peers: dict[str, Start]) -> list[harness.Row]:
    """Starts all contenders of a subject, measures them in turn, and ends them.

    Raises:
        RuntimeError: PyTorch's network has another number of parameters.
    """
    subject = SUBJECTS[name]
    spec = _spec(subject.model, subject.batch_size, precision=subject.precision)
    steps = _STEPS.value or subject.steps
    with contextlib.ExitStack() as stack:
        workers = {}
        for label, start in {"ours": ours, **peers}.items():
            # One after the other, so that none is timed while another still compiles.
            harness.say(f"{name}: starting {label}")
            workers[label] = worker = stack.enter_context(start(spec))
            own = workers["ours"].ready
            if "versions" in worker.ready and worker.ready["parameters"] != own["parameters"]:
                raise RuntimeError(f"{label} trains another network: {worker.ready} instead of {own}")
        rows = _compare(name, {label: (worker, "measure") for label, worker in workers.items()}, steps)
        memory = {label: [worker.call("peak_memory")] for label, worker in workers.items()}
    return rows + [
        harness.row(f"peak_memory/{name}", "MiB", memory["ours"], memory[label], label) for label in peers
    ]


def _spec(model: str, batch_size: int, **others: Any) -> dict[str, Any]:
    return {
        "model": model,
        "batch_size": _BATCH_SIZE.value or batch_size,
        "image_size": _IMAGE_SIZE.value or get_config(model).input_size,
        "warm_up": _WARM_UP,
        **others,
    }


def _compare(name: str, contenders: dict[str, tuple[Worker, str]], steps: int) -> list[harness.Row]:
    """Compares functions of workers, by the contenders' names; the first is ours."""

    def measure_of(worker: Worker, function: str) -> harness.Measure:
        return lambda: worker.call(function, steps=steps)

    ours, *others = (measure_of(*contender) for contender in contenders.values())
    peers = dict(zip(list(contenders)[1:], others, strict=True))
    return harness.compare(name, "images/s", ours, peers, harness.rounds())


def torch_peer(name: str, compile: bool) -> dict[str, Start]:
    """PyTorch as a peer of a subject, by its name in the result."""
    subject = SUBJECTS[name]
    how = ["compiled" if compile else "eager", "channels_last"]
    if subject.precision != "float32":
        how.append(f"autocast {subject.precision}")

    def start(spec: dict[str, Any]) -> Worker:
        return start_torch(**spec, task="training", compile=compile)

    return {f"PyTorch {', '.join(how)}": start}


def _keras(contender: str) -> Start:
    return lambda spec: Worker("benchmarks.keras_worker", {**spec, "contender": contender})


def _measure_loop() -> list[harness.Row]:
    """The whole loop (pipeline, metrics, reports) in relation to the same step alone."""
    steps = _STEPS.value or _LOOP_STEPS
    harness.say(f"{_LOOP}: starting")
    with tempfile.TemporaryDirectory() as folder:
        spec = _spec("cifar_resnet20", 128, steps=steps, folder=folder)
        with Worker("benchmarks.loop_worker", spec) as worker:
            bare = "the bare step on the same batches"
            return _compare(_LOOP, {"ours": (worker, "loop"), bare: (worker, "bare")}, steps)


def main() -> None:
    """Measures what the flags say."""
    chosen_subjects, chosen_peers = subjects(), peers()
    versions = harness.versions("keras", "tensorflow", "numpy")
    if "torch" in chosen_peers and chosen_subjects != [_LOOP]:
        versions |= check_torch()
    rows = []
    for name in chosen_subjects:
        if name == _LOOP:
            rows += _measure_loop()
            continue
        contenders = {}
        if "keras" in chosen_peers:
            contenders[SUBJECTS[name].keras_name] = _keras(SUBJECTS[name].keras)
        if "torch" in chosen_peers:
            contenders |= torch_peer(name, compile=False)
        rows += measure(name, _keras("ours"), contenders)
    harness.report(rows, versions)


if __name__ == "__main__":
    cli.run(main)
