"""Weight files of a large network: loading against reading them, converting against their size.

python -m benchmarks.weights --output=weights.json
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import keras_resnet
from benchmarks import harness
from benchmarks.workers import seconds_of
from keras_resnet import weights
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker

_NATIVE, _TORCH, _KERAS = "weights.h5", "safetensors", "keras_applications.h5"
_CONVERT = "convert"
_MODEL = "resnet152_v1_5"


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


def _write(folder: Path, subjects: list[str]) -> dict[str, tuple[Path, Any]]:
    """Writes the weight files; returns each with a network that it fits, by kind."""
    network = keras_resnet.build_model(_MODEL)
    files = {_NATIVE: (folder / "m.weights.h5", network), _TORCH: (folder / "m.safetensors", network)}
    weights.save_weights(network, files[_NATIVE][0])
    _write_safetensors(network, files[_TORCH][0])
    if _KERAS in subjects:
        import keras

        # The name of the published file, whose ending means Keras' old layout.
        theirs = folder / Path(weights.get_entry("imagenet", "resnet152").url).name
        build: Callable[..., Any] = keras.applications.ResNet152
        build(weights=None).save(theirs)
        files[_KERAS] = theirs, keras_resnet.build_model("resnet152")
    return files


def _measure_loading(run: harness.Benchmark, kind: str, path: Path, network: Any) -> None:
    def load() -> None:
        if kind == _NATIVE:
            weights.load_weights(network, path)
        else:
            weights.open_weights(path, get_config(network.name)).load(network)

    load()
    contenders = {
        "ours": lambda: seconds_of(load),
        "reading the file's bytes": lambda: seconds_of(path.read_bytes),
    }
    if kind == _NATIVE:
        contenders["Keras' own load_weights"] = lambda: seconds_of(lambda: network.load_weights(path))
    run.compare(f"load/{kind}", "s", contenders)


def _measure_converting(run: harness.Benchmark, path: Path) -> None:
    """Compares the growth of a fresh process' peak memory with the size of the file."""
    output, size = str(path.with_name("out.weights.h5")), path.stat().st_size / 2**20

    def convert() -> float:
        with Worker("benchmarks.fresh_worker", {}) as worker:
            return worker.call("convert", source=str(path), model=_MODEL, output=output)

    contenders = {"ours": convert, "the file's size": lambda: size}
    run.compare(f"{_CONVERT}/safetensors", "MiB", contenders, min(run.rounds, 3))


def main(run: harness.Benchmark, subjects: list[str]) -> None:
    """Measures loading files of each kind, and converting one of them."""
    import keras

    with tempfile.TemporaryDirectory() as folder:
        files = _write(Path(folder), subjects)
        for kind, (path, network) in files.items():
            if kind in subjects:
                _measure_loading(run, kind, path, network)
        if _CONVERT in subjects:
            _measure_converting(run, files[_TORCH][0])
    run.report("keras", keras.backend.backend(), "numpy", "h5py", "safetensors")


if __name__ == "__main__":
    harness.run(main, [_NATIVE, _TORCH, _KERAS, _CONVERT])
