"""Exported files: ours against Keras' own export, PyTorch, and the machine's limit.

python -m benchmarks.inference --output=inference.json
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import harness
from benchmarks.inference_worker import GEMM_FLOPS
from benchmarks.torch_peer import check_torch, start_torch
from keras_resnet import cli
from keras_resnet.export.isolated import start_runtime
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker

_MODEL = "resnet50"
# Table 1 of the paper counts multiply-adds.
_FLOPS = 2 * 3.8e9
_SECONDS = 3.0  # of a round
_WARM_UP = 3
_TORCH = {"task": "inference", "precision": "bfloat16", "warm_up": _WARM_UP}

_KERAS = "keras.applications ResNet50, its float32 export"
_COMPILED = "PyTorch compiled, channels_last, autocast bfloat16"
_TORCH_ONNX = "PyTorch's ONNX export, ONNX Runtime"
_TFLITE = "our float32 TFLite file"
_GEMM = "a 4096 x 4096 float32 matrix product, oneDNN"


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: one of our files in one runtime, against whom."""

    file: str
    runtime: str
    batch_size: int
    peers: tuple[str, ...]


SUBJECTS = {
    "saved_model/float32/1": Subject("saved_model", "saved_model", 1, (_KERAS,)),
    "saved_model/float32/32": Subject("saved_model", "saved_model", 32, (_KERAS,)),
    "saved_model/bfloat16/1": Subject("saved_model_bfloat16", "saved_model", 1, (_KERAS, _COMPILED)),
    "saved_model/bfloat16/32": Subject("saved_model_bfloat16", "saved_model", 32, (_KERAS, _COMPILED)),
    "onnx/float32/1": Subject("onnx", "onnx", 1, (_TORCH_ONNX,)),
    "onnx/float32/32": Subject("onnx", "onnx", 32, (_TORCH_ONNX,)),
    "openvino/float32/32": Subject("onnx", "openvino", 32, (_GEMM,)),
    "tflite/int8/1": Subject("tflite_int8", "tflite", 1, (_TFLITE,)),
}
_subjects = harness.define_subjects(SUBJECTS)


def _files(folder: Path) -> dict:
    """The exported files' paths, and what the export cost."""
    harness.say("exporting")
    command = [sys.executable, "-m", "benchmarks.inference_files", str(folder), _MODEL]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the export failed: {done.stderr.strip()[-2000:]}")
    made = json.loads((folder / "files.json").read_text())
    seconds = ", ".join(f"{name} {value} s" for name, value in made["seconds"].items())
    harness.say(f"exported in {seconds}; {made['peak_memory_mib']:,} MiB at most")
    return made["files"]


Measure = Callable[[int], float]  # from a number of calls to images/s


@contextlib.contextmanager
def _peer(peer: str, subject: Subject, files: dict) -> Iterator[Measure]:
    if peer == _GEMM:
        worker = Worker("benchmarks.inference_worker", {"flops_per_image": _FLOPS})
    elif peer == _COMPILED:
        worker = start_torch(_MODEL, **_TORCH, batch_size=subject.batch_size, compile=True)
    else:
        runtime, file = {
            _KERAS: ("saved_model", "applications"),
            _TORCH_ONNX: ("onnx", "torch"),
            _TFLITE: ("tflite", "tflite"),
        }[peer]
        with _run(runtime, files[file], subject.batch_size) as measure:
            yield measure
        return
    with worker:
        yield lambda steps: worker.call("measure", steps=steps)


@contextlib.contextmanager
def _run(runtime: str, path: str, batch_size: int) -> Iterator[Measure]:
    size = get_config(_MODEL).input_size
    with start_runtime(runtime, path) as worker:

        def measure(steps: int) -> float:
            seconds = worker.call("time", shape=(batch_size, size, size, 3), calls=steps)
            return steps * batch_size / sum(seconds)

        measure(_WARM_UP)
        yield measure


def _measure(name: str, subject: Subject, files: dict) -> list[harness.Row]:
    with contextlib.ExitStack() as stack:

        def rounds_of(label: str, contender: contextlib.AbstractContextManager[Measure]) -> harness.Measure:
            measure = stack.enter_context(contender)
            # Rounds of equal length, however fast a contender is.
            batch = GEMM_FLOPS / _FLOPS if label == _GEMM else subject.batch_size
            steps = max(1, round(_SECONDS * measure(1) / batch))
            return lambda: measure(steps)

        mine = rounds_of("ours", _run(subject.runtime, files[subject.file], subject.batch_size))
        theirs = {peer: rounds_of(peer, _peer(peer, subject, files)) for peer in subject.peers}
        return harness.compare(name, "images/s", mine, theirs, harness.rounds())


def main() -> None:
    """Measures what the flags say."""
    chosen = _subjects()
    harness.rounds()
    versions = harness.versions("keras", "tensorflow", "onnxruntime", "ai-edge-litert", "openvino", "numpy")
    peers = {peer for name in chosen for peer in SUBJECTS[name].peers}
    if peers & {_COMPILED, _TORCH_ONNX}:
        versions |= check_torch()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = _files(Path(folder))
        if _TORCH_ONNX in peers:
            files["torch"] = str(Path(folder) / "torch.onnx")
            start_torch(_MODEL, **_TORCH, batch_size=1, compile=False, onnx=files["torch"]).close()
        for name in chosen:
            rows += _measure(name, SUBJECTS[name], files)
    harness.report(rows, versions)


if __name__ == "__main__":
    cli.run(main)
