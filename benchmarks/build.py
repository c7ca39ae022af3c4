"""Building a network and importing the library: ours against keras.applications and Keras.

python -m benchmarks.build --output=build.json
"""

import gc
import time
from collections.abc import Callable

import keras_resnet
from benchmarks import harness
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


def _building(build: Callable, per_layer: bool, seconds: list[float]) -> harness.Measure:
    """Measures seconds for a network, which are added to a list, or milliseconds per layer."""
    import keras

    def measure() -> float:
        keras.utils.clear_session()
        gc.collect()
        begun = time.perf_counter()
        model = build()
        seconds.append(time.perf_counter() - begun)
        return 1000 * seconds[-1] / len(model.layers) if per_layer else seconds[-1]

    return measure


def _measure_build(run: harness.Benchmark, name: str) -> None:
    import keras

    peer, same_depth = _PAIRS[name]
    unit, label = ("s", peer) if same_depth else ("ms/layer", f"{peer}, per layer")
    own_seconds: list[float] = []
    build_peer = getattr(keras.applications, peer)
    contenders = {
        "ours": _building(lambda: keras_resnet.build_model(name), not same_depth, own_seconds),
        f"keras.applications {label}": _building(lambda: build_peer(weights=None), not same_depth, []),
    }
    rounds = min(run.rounds, _DEEPEST_ROUNDS) if name == _DEEPEST else run.rounds
    run.compare(f"build/{name}", unit, contenders, rounds)
    if name == _DEEPEST:
        run.add(f"build/{name}/seconds", "s", own_seconds, [_DEEPEST_LIMIT] * rounds, harness.LIMIT)


def _measure_import(run: harness.Benchmark) -> None:
    memory = {_OWN_MODULE: [], "keras": []}

    def import_fresh(module: str) -> float:
        with Worker("benchmarks.fresh_worker", {}) as worker:
            seconds, peak = worker.call("import_module", name=module)
        memory[module].append(peak)
        return seconds

    import_fresh(_OWN_MODULE)  # compiles byte code, and reads the files from the disk
    memory[_OWN_MODULE].clear()
    contenders = {"ours": lambda: import_fresh(_OWN_MODULE), "import keras": lambda: import_fresh("keras")}
    run.compare("import", "s", contenders)
    run.add("import/peak_memory", "MiB", memory[_OWN_MODULE], memory["keras"], "import keras")


def main(run: harness.Benchmark, subjects: list[str]) -> None:
    """Measures the import first, then each network."""
    import keras

    networks = [name for name in subjects if name != _IMPORT]
    if networks != subjects:
        _measure_import(run)
    if networks:
        # Keras and its backend initialize themselves with their first network.
        keras_resnet.build_model("resnet18")
    for name in networks:
        _measure_build(run, name)
    run.report("keras", keras.backend.backend(), "numpy")


if __name__ == "__main__":
    harness.run(main, [_IMPORT, *_PAIRS])
