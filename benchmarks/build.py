"""Building a network and importing the library: ours against keras.applications and Keras.

python -m benchmarks.build --output=build.json
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from absl import flags

from benchmarks import harness
from keras_resnet import build_model, cli

# Our network, its peer, and whether they have the same depth.
_PAIRS = {
    "resnet18": ("ResNet50", False),
    "resnet34": ("ResNet50", False),
    "resnet50": ("ResNet50", True),
    "resnet101": ("ResNet101", True),
    "resnet152": ("ResNet152", True),
    "cifar_resnet1202": ("ResNet152", False),
}
_IMPORT = "import"
_DEEPEST, _DEEPEST_ROUNDS, _DEEPEST_LIMIT = "cifar_resnet1202", 3, 30.0

_SUBJECTS = flags.DEFINE_list("subjects", [_IMPORT, *_PAIRS], "What to measure.")


def seconds_to_build(build: Callable[[], keras.Model]) -> tuple[float, int]:
    """The time that a network takes from nothing, in seconds, and its number of layers."""
    keras.utils.clear_session()
    gc.collect()
    begun = time.perf_counter()
    model = build()
    return time.perf_counter() - begun, len(model.layers)


def _measure_build(name: str, rounds: int) -> list[harness.Row]:
    peer, twins = _PAIRS[name]

    def ours():
        return build_model(name)

    def theirs():
        return getattr(keras.applications, peer)(weights=None)

    seconds = []

    def measure_of(build: Callable[[], keras.Model]) -> Callable[[], float]:
        def measure() -> float:
            taken, layers = seconds_to_build(build)
            harness.say(f"build/{name}: {taken:.3f} s, {build.__name__}, {layers} layers")
            if build is ours:
                seconds.append(taken)
            return taken if twins else 1000 * taken / layers

        return measure

    unit, label = ("s", peer) if twins else ("ms/layer", f"{peer}, per layer")
    if name == _DEEPEST:
        rounds = min(rounds, _DEEPEST_ROUNDS)
    rows = harness.compare(
        f"build/{name}", unit, measure_of(ours), {f"keras.applications {label}": measure_of(theirs)}, rounds
    )
    if name == _DEEPEST:
        limit = [_DEEPEST_LIMIT] * len(seconds)
        rows.append(harness.row(f"build/{name}/seconds", "s", seconds, limit, "the limit we set ourselves"))
    return rows


def _fresh(statement: str) -> tuple[float, float]:
    """Seconds and peak MiB of a statement in a fresh process."""
    program = (
        "import json, time; from benchmarks.workers import peak_memory_mib; begun = time.perf_counter(); "
        f"{statement}; print(json.dumps([time.perf_counter() - begun, peak_memory_mib()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    harness.say(f"{statement}: {seconds:.3f} s, {memory:.0f} MiB")
    return seconds, memory


def _measure_import(rounds: int) -> list[harness.Row]:
    memory = {}

    def measure_of(package: str) -> Callable[[], float]:
        def measure() -> float:
            seconds, peak = _fresh(f"import {package}")
            memory.setdefault(package, []).append(peak)
            return seconds

        return measure

    _fresh("import keras_resnet")  # compiles byte code, and reads the files from the disk
    rows = harness.compare(
        "import", "s", measure_of("keras_resnet"), {"import keras": measure_of("keras")}, rounds
    )
    peak = harness.row("import/peak_memory", "MiB", memory["keras_resnet"], memory["keras"], "import keras")
    return [*rows, peak]


def main() -> None:
    """Measures as the flags say."""
    subjects = harness.chosen("subject", _SUBJECTS.value, [_IMPORT, *_PAIRS])
    rounds = harness.rounds()
    rows = _measure_import(rounds) if _IMPORT in subjects else []
    networks = [name for name in subjects if name != _IMPORT]
    if networks:
        # Keras and its backend do much only once, for their first network.
        build_model("resnet18")
    for name in networks:
        rows += _measure_build(name, rounds)
    harness.report(rows, harness.versions("keras", keras.backend.backend(), "numpy"))


if __name__ == "__main__":
    cli.run(main)
