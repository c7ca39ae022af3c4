"""Training steps: ours against Keras' `fit` and PyTorch, and our whole loop against its bare step.

python -m benchmarks.train_step --output=train_step.json
"""

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from benchmarks import harness, torch_peer
from keras_resnet import cli
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker

# MODEL/PRECISION: images per step, and steps per round.
SUBJECTS = {"resnet50/float32": (32, 2), "resnet50/bfloat16": (32, 2), "cifar_resnet20/float32": (128, 20)}
_LOOP, _LOOP_SUBJECT, _LOOP_STEPS = "loop_overhead/cifar_resnet20", "cifar_resnet20/float32", 30
# What stands for Keras: its name in the result, and the contender of `keras_worker`.
_KERAS = {
    "resnet50": ("keras.applications ResNet50, fit", "applications"),
    "cifar_resnet20": ("same network with Keras' layers, fit", "keras_layers"),
}
_PEERS = ("keras", "torch")
FLAGS = (
    cli.Flag("peers", f"Peers: {', '.join(_PEERS)}.", tuple, list(_PEERS)),
    cli.Flag("steps", "Steps per round, instead of the subject's own.", int),
    cli.Flag("batch_size", "Images per step, instead of the subject's own.", int),
    cli.Flag("image_size", "Pixels, instead of the network's own.", int),
    torch_peer.FLAG,
)

# Before the first round: to compile, and to fill the libraries' caches.
_WARM_UP = 2

Contenders = dict[str, Callable[[], Worker]]  # what starts each, by its name in the result


def _specification(subject: str, sizes: Mapping[str, int | None]) -> dict[str, Any]:
    """A worker's specification; `sizes` are the values of --steps, --batch_size and --image_size."""
    model, precision = subject.split("/")
    batch_size, steps = SUBJECTS[subject]
    return {
        "model": model,
        "precision": precision,
        "batch_size": sizes["batch_size"] or batch_size,
        "image_size": sizes["image_size"] or get_config(model).input_size,
        "steps": sizes["steps"] or steps,
        "warm_up": _WARM_UP,
    }


def _measure(run: harness.Benchmark, subject: str, steps: int, contenders: Contenders) -> None:
    """Starts all contenders of a subject, measures them in turn, and ends them.

    Raises:
        RuntimeError: PyTorch's network has another number of parameters.
    """
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for label, start in contenders.items():
            # One after the other, so that none is timed while another still compiles.
            harness.say(f"{subject}: starting {label}")
            workers[label] = worker = stack.enter_context(start())
            own = workers["ours"].ready
            if "versions" in worker.ready and worker.ready["parameters"] != own["parameters"]:
                raise RuntimeError(f"{label} trains another network: {worker.ready} instead of {own}")
        measures = {name: partial(worker.call, "measure", steps=steps) for name, worker in workers.items()}
        run.compare(subject, "images/s", measures)
        peaks = {name: worker.call("peak_memory") for name, worker in workers.items()}
        steps_own = {name: peak - workers[name].ready["base_memory"] for name, peak in peaks.items()}
    for kind, memory in (("peak_memory", peaks), ("step_memory", steps_own)):
        ours = memory.pop("ours")
        for name, peer in memory.items():
            run.add(f"{kind}/{subject}", "MiB", [ours], [peer], name)


def _torch_name(precision: str, compile: bool) -> str:
    autocast = "" if precision == "float32" else f", autocast {precision}"
    return f"PyTorch {'compiled' if compile else 'eager'}, channels_last{autocast}"


def _measure_loop(run: harness.Benchmark, sizes: Mapping[str, int | None]) -> None:
    """The whole loop (pipeline, metrics, reports) in relation to the same step alone."""
    harness.say(f"{_LOOP}: starting")
    with tempfile.TemporaryDirectory() as folder:
        spec = _specification(_LOOP_SUBJECT, {**sizes, "steps": sizes["steps"] or _LOOP_STEPS})
        with Worker("benchmarks.keras_worker", {**spec, "folder": folder}) as worker:
            names = {"ours": "loop", "the bare step on the same batches": "bare"}
            measures = {name: partial(worker.call, call, steps=spec["steps"]) for name, call in names.items()}
            run.compare(_LOOP, "images/s", measures)


def main(
    run: harness.Benchmark,
    subjects: list[str],
    peers: list[str],
    torch_python: str,
    *,
    known_peers: tuple[str, ...] = _PEERS,
    worker: str = "benchmarks.keras_worker",
    packages: tuple[str, ...] = ("keras", "tensorflow", "numpy"),
    compile: bool = False,
    **sizes: int | None,
) -> None:
    """Compares our step with those of the peers, and our loop with our step.

    Our step is that of `worker`; `packages` are what it uses, and `compile` is for PyTorch.
    """
    peers = harness.chosen("peer", peers, known_peers)
    torch = torch_peer.Torch(torch_python) if "torch" in peers and subjects != [_LOOP] else None
    for subject in subjects:
        if subject == _LOOP:
            _measure_loop(run, sizes)
            continue
        spec = _specification(subject, sizes)
        contenders: Contenders = {"ours": partial(Worker, worker, {**spec, "contender": "ours"})}
        if "keras" in peers:
            name, contender = _KERAS[spec["model"]]
            contenders[name] = partial(Worker, worker, {**spec, "contender": contender})
        if torch is not None:
            name = _torch_name(spec["precision"], compile)
            contenders[name] = partial(torch.start, **spec, task="training", compile=compile)
        _measure(run, subject, spec["steps"], contenders)
    run.report(*packages, **({"torch": torch.version} if torch else {}))


if __name__ == "__main__":
    harness.run(main, [*SUBJECTS, _LOOP], FLAGS)
