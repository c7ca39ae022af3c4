"""Weight files of a large network: loading against reading them, converting against their size.

python -m benchmarks.weights --output=weights.json
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import keras_resnet
from benchmarks import harness
from keras_resnet import cli, weights
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker

_KINDS = ("weights.h5", "safetensors", "keras_applications.h5")
_CONVERT = "convert"
_MODEL = "resnet152_v1_5"

_subjects = harness.define_subjects([*_KINDS, _CONVERT])


@dataclasses.dataclass(frozen=True)
class _File:
    """A weight file, a network that it fits, and what loads it into the network."""

    path: Path
    network: Any
    load: Callable[[], object]


def _write_safetensors(network: Any, path: Path) -> None:
    """Writes the values of a network under torchvision's names, with its axes."""
    import keras
    from safetensors.numpy import save_file

    variables = {(layer.name, v.name): v for layer in network.layers for v in layer.weights}
    tensors = {}
    for key, source in weights.torch_names(get_config(network.name)).items():
        value = np.asarray(keras.ops.convert_to_numpy(variables[key]))
        tensors[source.names[0]] = np.ascontiguousarray(value.transpose(np.argsort(source.axes).tolist()))
    save_file(tensors, path)


def _files(folder: Path, subjects: list[str]) -> dict[str, _File]:
    """Writes the weight files, by kind."""
    network = keras_resnet.build_model(_MODEL)
    own, torch = folder / "m.weights.h5", folder / "m.safetensors"
    weights.save_weights(network, own)
    _write_safetensors(network, torch)
    files = {
        "weights.h5": _File(own, network, lambda: weights.load_weights(network, own)),
        "safetensors": _File(torch, network, _opening(torch, network)),
    }
    if "keras_applications.h5" in subjects:
        import keras

        # The name of the published file, whose ending means Keras' old layout.
        theirs = folder / Path(weights.get_entry("imagenet", "resnet152").url).name
        build: Callable[..., Any] = keras.applications.ResNet152
        build(weights=None).save(theirs)
        first = keras_resnet.build_model("resnet152")
        files["keras_applications.h5"] = _File(theirs, first, _opening(theirs, first))
    return files


def _opening(path: Path, network: Any) -> Callable[[], object]:
    return lambda: weights.open_weights(path, get_config(network.name)).load(network)


def _seconds(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _measure_loading(kind: str, file: _File, rounds: int) -> list[harness.Row]:
    peers = {"reading the file's bytes": lambda: _seconds(file.path.read_bytes)}
    if kind == "weights.h5":
        peers["Keras' own load_weights"] = lambda: _seconds(lambda: file.network.load_weights(file.path))
    file.load()
    return harness.compare(f"load/{kind}", "s", lambda: _seconds(file.load), peers, rounds)


def _measure_converting(path: Path, rounds: int) -> list[harness.Row]:
    sizes, peaks = [path.stat().st_size / 2**20] * rounds, []
    output = str(path.with_name("out.weights.h5"))
    for _ in range(rounds):
        with Worker("benchmarks.fresh_worker", {}) as worker:
            peaks.append(worker.call("convert", source=str(path), model=_MODEL, output=output))
        harness.say(f"{_CONVERT}: {peaks[-1]:.0f} MiB more than before, for a file of {sizes[0]:.0f} MiB")
    return [harness.row(f"{_CONVERT}/safetensors", "MiB", peaks, sizes, "the file's size")]


def main() -> None:
    """Measures what the flags say."""
    import keras

    subjects, rounds, rows = _subjects(), harness.rounds(), []
    with tempfile.TemporaryDirectory() as folder:
        files = _files(Path(folder), subjects)
        for kind, file in files.items():
            if kind in subjects:
                rows += _measure_loading(kind, file, rounds)
        if _CONVERT in subjects:
            rows += _measure_converting(files["safetensors"].path, min(rounds, 3))
    harness.report(rows, harness.versions("keras", keras.backend.backend(), "numpy", "h5py", "safetensors"))


if __name__ == "__main__":
    cli.run(main)
