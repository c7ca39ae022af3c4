"""Writes the files that `benchmarks.inference` compares, in a process of its own to free its memory.

python -m benchmarks.inference_files FOLDER MODEL
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_resnet.export.artifacts import ARTIFACTS, Options
from keras_resnet.export.images import random_crops
from keras_resnet.export.pipeline import write_artifact
from keras_resnet.export.request import network_with_random_weights
from keras_resnet.export.serving import serving_model
from keras_resnet.processes import resident_memory
from keras_resnet.weights import ModelSpec

# Keys of `ARTIFACTS`.
_OURS = ("saved_model", "saved_model_bfloat16", "tflite", "tflite_int8", "onnx")


def main() -> None:
    """Exports our network and keras.applications' twin of it, both with random weights."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    spec = ModelSpec.default(name)
    model = serving_model(network_with_random_weights(spec), spec.normalization)
    options = Options(calibration=[random_crops(*spec.input_shape, 64)])
    files, seconds = {}, {}
    for key in _OURS:
        begun = time.perf_counter()
        files[key] = str(write_artifact(key, model, folder / ARTIFACTS[key].file_name, options))
        seconds[key] = round(time.perf_counter() - begun, 2)
    answer = {
        "files": files,
        "seconds": seconds,
        "peak_memory_mib": round(resident_memory(peak=True) / 2**20),
    }
    peers: dict[str, Callable[..., Any]] = {"resnet50": keras.applications.ResNet50}
    peer = peers.get(name)
    if peer is not None:
        peer(weights=None, classifier_activation=None).export(str(folder / "applications"), verbose=False)
        answer["files"]["applications"] = str(folder / "applications")
    (folder / "files.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
