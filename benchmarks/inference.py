"""Exported files: ours against Keras' own export, PyTorch, and the machine's limit.

python -m benchmarks.inference --output=inference.json
"""

import contextlib
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import harness, matrix_product, torch_peer
from keras_resnet.export.isolated import start_runtime
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker

_MODEL = "resnet50"
_MULTIPLY_ADDS = 3.8e9  # Table 1 of the paper
_SECONDS = 3.0  # of a round
_WARM_UP = 3
_TORCH = {"task": "inference", "precision": "bfloat16", "warm_up": _WARM_UP}

_KERAS = "keras.applications ResNet50, its float32 export"
_COMPILED = "PyTorch compiled, channels_last, autocast bfloat16"
_TORCH_ONNX = "PyTorch's ONNX export, ONNX Runtime"
_TFLITE = "our float32 TFLite file"

# RUNTIME/PRECISION/BATCH: our file, and the peers.
SUBJECTS = {
    "saved_model/float32/1": ("saved_model", _KERAS),
    "saved_model/float32/32": ("saved_model", _KERAS),
    "saved_model/bfloat16/1": ("saved_model_bfloat16", _KERAS, _COMPILED),
    "saved_model/bfloat16/32": ("saved_model_bfloat16", _KERAS, _COMPILED),
    "onnx/float32/1": ("onnx", _TORCH_ONNX),
    "onnx/float32/32": ("onnx", _TORCH_ONNX),
    "openvino/float32/32": ("onnx", matrix_product.NAME),
    "tflite/int8/1": ("tflite_int8", _TFLITE),
}
# The peers that are files: their runtime and their file.
_PEER_FILES = {
    _KERAS: ("saved_model", "applications"),
    _TORCH_ONNX: ("onnx", "torch"),
    _TFLITE: ("tflite", "tflite"),
}


def _export(folder: str) -> dict[str, str]:
    """The paths of the exported files; prints what the export cost."""
    harness.say("exporting")
    with Worker("benchmarks.inference_files", {"folder": folder}) as worker:
        made = worker.ready
    seconds = ", ".join(f"{name} {value} s" for name, value in made["seconds"].items())
    harness.say(f"exported in {seconds}; {made['peak_memory_mib']:,} MiB at most")
    return made["files"]


def _measure(
    run: harness.Benchmark, subject: str, files: dict[str, str], torch: torch_peer.Torch | None
) -> None:
    """Measures a subject in rounds of equal length, however fast a contender is."""
    file, *peers = SUBJECTS[subject]
    runtime, _, batch = subject.split("/")
    batch_size = int(batch)
    measures: dict[str, harness.Measure] = {}
    with contextlib.ExitStack() as stack:
        for name in ("ours", *peers):
            images = batch_size  # per step
            if name == matrix_product.NAME:
                images = matrix_product.images_per_product(_MULTIPLY_ADDS)
                worker = matrix_product.start(_MULTIPLY_ADDS)
                measure = partial(stack.enter_context(worker).call, "measure")
            elif name == _COMPILED and torch is not None:
                worker = torch.start(_MODEL, **_TORCH, batch_size=batch_size, compile=True)
                measure = partial(stack.enter_context(worker).call, "measure")
            else:
                runtime_of_file, key = _PEER_FILES.get(name, (runtime, file))
                worker = stack.enter_context(start_runtime(runtime_of_file, files[key]))
                measure = partial(_images_per_second, worker, batch_size)
                measure(steps=_WARM_UP)
            steps = max(1, round(_SECONDS * measure(steps=1) / images))
            measures[name] = partial(measure, steps=steps)
        run.compare(subject, "images/s", measures)


def _images_per_second(worker: Worker, batch_size: int, steps: int) -> float:
    """Calls the file that a worker has opened."""
    size = get_config(_MODEL).input_size
    seconds = worker.call("time", shape=(batch_size, size, size, 3), calls=steps)
    return steps * batch_size / sum(seconds)


def main(run: harness.Benchmark, subjects: list[str], torch_python: str) -> None:
    """Compares the files of the chosen subjects with their peers."""
    peers = {peer for subject in subjects for peer in SUBJECTS[subject][1:]}
    torch = torch_peer.Torch(torch_python) if peers & {_COMPILED, _TORCH_ONNX} else None
    with tempfile.TemporaryDirectory() as folder:
        files = _export(folder)
        if torch is not None and _TORCH_ONNX in peers:
            files["torch"] = str(Path(folder, "torch.onnx"))
            torch.start(_MODEL, **_TORCH, batch_size=1, compile=False, onnx=files["torch"]).close()
        for subject in subjects:
            _measure(run, subject, files, torch)
    packages = ("keras", "tensorflow", "onnxruntime", "ai-edge-litert", "openvino", "numpy")
    run.report(*packages, **({"torch": torch.version} if torch else {}))


if __name__ == "__main__":
    harness.run(main, SUBJECTS, [torch_peer.FLAG])
