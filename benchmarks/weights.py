"""Weight files of a large network: loading against reading them, converting against their size.

python -m benchmarks.weights --output=weights.json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import flags

from benchmarks import harness
from keras_resnet import build_model, cli, get_entry
from keras_resnet.models.config import get_config
from keras_resnet.weights import load_weights, open_weights, save_weights
from keras_resnet.weights.torch_files import torch_names

_KINDS = ("weights.h5", "safetensors", "keras_applications.h5")
_CONVERT = "convert"

_SUBJECTS = flags.DEFINE_list("subjects", [*_KINDS, _CONVERT], "What to measure.")


def _write_safetensors(model: keras.Model, path: Path) -> None:
    """torchvision's names, axes and values of a network of ours."""
    from safetensors.numpy import save_file

    variables = {(layer.name, v.name): v for layer in model.layers for v in layer.weights}
    tensors = {}
    for key, source in torch_names(get_config(model.name)).items():
        value = keras.ops.convert_to_numpy(variables[key])
        tensors[source.names[0]] = np.ascontiguousarray(value.transpose(np.argsort(source.axes)))
    save_file(tensors, path)


def _files(folder: Path, subjects: list[str]) -> dict[str, tuple[keras.Model, Path, Callable[[], None]]]:
    """For each kind of file a network, the file, and what loads the one into the other."""
    network = build_model("resnet152_v1_5")
    own, torch = folder / "m.weights.h5", folder / "m.safetensors"
    save_weights(network, own)
    _write_safetensors(network, torch)
    config = get_config("resnet152_v1_5")
    files = {
        "weights.h5": (network, own, lambda: load_weights(network, own)),
        "safetensors": (network, torch, lambda: open_weights(torch, config).load(network)),
    }
    if "keras_applications.h5" in subjects:
        # Their file's name, and so their old layout.
        theirs = folder / Path(get_entry("imagenet", "resnet152").url).name
        keras.applications.ResNet152(weights=None).save(theirs)
        first = build_model("resnet152")
        config_of_first = get_config("resnet152")
        files["keras_applications.h5"] = (
            first,
            theirs,
            lambda: open_weights(theirs, config_of_first).load(first),
        )
    return files


def _seconds(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _measure_loading(kind: str, file, rounds: int) -> list[harness.Row]:
    network, path, load = file
    peers = {"reading the file's bytes": lambda: _seconds(path.read_bytes)}
    if kind == "weights.h5":
        peers["Keras' own load_weights"] = lambda: _seconds(lambda: network.load_weights(path))
    load()
    rows = harness.compare(f"load/{kind}", "s", lambda: _seconds(load), peers, rounds)
    for row in rows:
        harness.say(f"{row['subject']}: {row['ours']:.3f} s, {row['peer_name']} {row['peer']:.3f} s")
    return rows


_PROGRAM = """
import json, sys
from benchmarks.workers import peak_memory_mib
import keras
from keras_resnet import build_model
from keras_resnet.commands.weights import convert_weights
keras.ops.zeros(1)
before = peak_memory_mib()
convert_weights(sys.argv[1], "resnet152_v1_5", sys.argv[2])
print(json.dumps(peak_memory_mib() - before))
"""


def _measure_converting(path: Path, rounds: int) -> list[harness.Row]:
    sizes, peaks = [path.stat().st_size / 2**20] * rounds, []
    for _ in range(rounds):
        command = [sys.executable, "-c", _PROGRAM, str(path), str(path.with_name("out.weights.h5"))]
        done = subprocess.run(command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
        harness.say(f"{_CONVERT}: {peaks[-1]:.0f} MiB more than before it, of a file of {sizes[0]:.0f} MiB")
    return [harness.row(f"{_CONVERT}/safetensors", "MiB", peaks, sizes, "the file's size")]


def main() -> None:
    """Measures as the flags say."""
    subjects = harness.chosen("subject", _SUBJECTS.value, [*_KINDS, _CONVERT])
    rounds, rows = harness.rounds(), []
    with tempfile.TemporaryDirectory() as folder:
        files = _files(Path(folder), subjects)
        for kind, file in files.items():
            if kind in subjects:
                rows += _measure_loading(kind, file, rounds)
        if _CONVERT in subjects:
            rows += _measure_converting(files["safetensors"][1], min(rounds, 3))
    harness.report(rows, harness.versions("keras", keras.backend.backend(), "numpy", "h5py", "safetensors"))


if __name__ == "__main__":
    cli.run(main)
