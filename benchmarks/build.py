"""Building a network and importing the library: ours against keras.applications and Keras.

python -m benchmarks.build --output=build.json
"""

import gc
import time
from collections.abc import Callable

import keras_resnet
from benchmarks import harness
from keras_resnet import cli
from keras_resnet.processes import Worker

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
# The package imports its names on first use; this module builds networks.
_OWN_MODULE = "keras_resnet.applications"

_subjects = harness.define_subjects([_IMPORT, *_PAIRS])


def _seconds_to_build(build: Callable) -> tuple[float, int]:
    """The time that a network takes, in seconds, and its number of layers."""
    import keras

    keras.utils.clear_session()
    gc.collect()
    begun = time.perf_counter()
    model = build()
    return time.perf_counter() - begun, len(model.layers)


def _measure_build(name: str, rounds: int) -> list[harness.Row]:
    import keras

    peer, same_depth = _PAIRS[name]
    own_seconds = []

    def ours() -> float:
        seconds, layers = _seconds_to_build(lambda: keras_resnet.build_model(name))
        own_seconds.append(seconds)
        return seconds if same_depth else 1000 * seconds / layers

    def theirs() -> float:
        seconds, layers = _seconds_to_build(lambda: getattr(keras.applications, peer)(weights=None))
        return seconds if same_depth else 1000 * seconds / layers

    unit, label = ("s", peer) if same_depth else ("ms/layer", f"{peer}, per layer")
    if name == _DEEPEST:
        rounds = min(rounds, _DEEPEST_ROUNDS)
    rows = harness.compare(f"build/{name}", unit, ours, {f"keras.applications {label}": theirs}, rounds)
    if name == _DEEPEST:
        limit = [_DEEPEST_LIMIT] * rounds
        rows.append(harness.row(f"build/{name}/seconds", "s", own_seconds, limit, harness.LIMIT))
    return rows


def _measure_import(rounds: int) -> list[harness.Row]:
    memory = {_OWN_MODULE: [], "keras": []}

    def import_fresh(module: str) -> float:
        with Worker("benchmarks.fresh_worker", {}) as worker:
            seconds, peak = worker.call("import_module", name=module)
        memory[module].append(peak)
        return seconds

    import_fresh(_OWN_MODULE)  # compiles byte code, and reads the files from the disk
    memory[_OWN_MODULE].clear()
    peers = {"import keras": lambda: import_fresh("keras")}
    rows = harness.compare("import", "s", lambda: import_fresh(_OWN_MODULE), peers, rounds)
    peak = harness.row("import/peak_memory", "MiB", memory[_OWN_MODULE], memory["keras"], "import keras")
    return [*rows, peak]


def main() -> None:
    """Measures what the flags say."""
    import keras

    subjects, rounds = _subjects(), harness.rounds()
    rows = _measure_import(rounds) if _IMPORT in subjects else []
    networks = [name for name in subjects if name != _IMPORT]
    if networks:
        # Keras and its backend initialize themselves with their first network.
        keras_resnet.build_model("resnet18")
    for name in networks:
        rows += _measure_build(name, rounds)
    harness.report(rows, harness.versions("keras", keras.backend.backend(), "numpy"))


if __name__ == "__main__":
    cli.run(main)
