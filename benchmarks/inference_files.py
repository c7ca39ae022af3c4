"""Writes the files that `benchmarks.inference` compares, in a process of its own to free its memory."""

import time
from pathlib import Path
from typing import Any

import keras

from benchmarks.workers import peak_memory
from keras_resnet.export.artifacts import ARTIFACTS, Options
from keras_resnet.export.images import random_crops
from keras_resnet.export.pipeline import write_artifact
from keras_resnet.export.request import network_with_random_weights
from keras_resnet.export.serving import serving_model
from keras_resnet.processes import serve
from keras_resnet.weights import ModelSpec

# Keys of `ARTIFACTS`.
_OURS = ("saved_model", "saved_model_bfloat16", "tflite", "tflite_int8", "onnx")


def _export(worker_spec: dict[str, Any]):
    """Exports our ResNet-50 and that of keras.applications to `folder`, both with random weights."""
    folder, spec = Path(worker_spec["folder"]), ModelSpec.default("resnet50")
    model = serving_model(network_with_random_weights(spec), spec.normalization)
    options = Options(calibration=[random_crops(*spec.input_shape, 64)])
    files, seconds = {}, {}
    for key in _OURS:
        begun = time.perf_counter()
        files[key] = str(write_artifact(key, model, folder / ARTIFACTS[key].file_name, options))
        seconds[key] = round(time.perf_counter() - begun, 2)
    peak = round(peak_memory())
    files["applications"] = str(folder / "applications")
    applications: Any = keras.applications  # its stubs say that weights and activation are strings
    peer = applications.ResNet50(weights=None, classifier_activation=None)
    peer.export(files["applications"], verbose=False)
    return {"files": files, "seconds": seconds, "peak_memory_mib": peak}, {}


if __name__ == "__main__":
    serve(_export)
