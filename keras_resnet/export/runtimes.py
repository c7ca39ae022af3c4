"""Opens and times artifacts in the runtimes of their formats, each in its own process."""

import contextlib
import dataclasses
import json
import pkgutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.export.formats import FILE_FORMATS, FileFormat
from keras_resnet.export.isolated import start_runtime
from keras_resnet.export.serving import SIGNATURE
from keras_resnet.processes import WorkerError

TensorTypes = dict[str, tuple[str, tuple]]  # names to dtype and shape, with None for an axis of any size
_TIMED_BATCHES = (1, 32)


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An opened artifact.

    Attributes:
        run: takes float32 images (batch, height, width, channels) of raw pixels and returns float32 arrays
            (batch, classes) by name; converts to the artifact's dtype and layout.
        version: of the runtime, such as "onnxruntime 1.23.0".
        problems: defects that were found when it was opened, as sentences.
        labels: class names in the artifact; None skips their comparison.
        call: runs a signature of an artifact with several signatures.
    """

    inputs: TensorTypes
    outputs: TensorTypes
    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    version: str
    problems: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    call: Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None


class RunError(Exception):
    """The runtime rejected a batch."""


@contextlib.contextmanager
def open_artifact(format: str, path: str | Path) -> Iterator[Artifact]:
    """Opens an artifact of one of `FILE_FORMATS` on the CPU, where float32 is not rounded to shorter formats.

    "openvino" opens an ONNX file in OpenVINO, which returns neither its labels nor the types of its outputs.

    Raises:
        InputError: it does not exist, or its runtime cannot load it or is not installed.
    """
    path = Path(path).resolve()
    file_format = FILE_FORMATS.get(format)
    cannot_open = f"{path} cannot be opened by {'OpenVINO' if file_format is None else file_format.runtime}"
    if not path.exists():
        raise InputError(f"there is no {path}")
    try:
        worker = start_runtime(format, path)
    except WorkerError as error:
        if error.reason.startswith("failed with ModuleNotFoundError"):
            raise InputError(f"to verify {path}, install the extra 'export': {_short(error)}") from error
        raise InputError(f"{cannot_open}: {_short(error)}") from error
    with worker, tempfile.TemporaryDirectory() as folder:
        signatures = worker.ready["signatures"]
        if SIGNATURE not in signatures:
            raise InputError(f"{cannot_open}: it has no signature {SIGNATURE}")

        def call(signature: str | None, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            if signature is not None and signature not in signatures:
                raise RunError(f"has no signature {signature}")
            files = {name: str(Path(folder) / f"{name}.npz") for name in ("inputs", "outputs")}
            np.savez(files["inputs"], **inputs)  # pyright: ignore[reportArgumentType]
            try:
                worker.call("call", signature=signature, **files)
            except WorkerError as error:
                raise RunError(_short(error)) from error
            with np.load(files["outputs"]) as arrays:
                return dict(arrays)

        custom = ", ".join(worker.ready.get("custom_operators", ()))
        yield Artifact(
            inputs=_types(signatures[SIGNATURE]["inputs"]),
            outputs=_types(signatures[SIGNATURE]["outputs"]),
            run=lambda images: call(None, {"images": images}),
            version=worker.ready["version"],
            problems=(f"needs operators that are not built in: {custom}",) if custom else (),
            labels=None if file_format is None else _labels(file_format, path, worker.ready),
            call=call if file_format is not None and file_format.several_signatures else None,
        )


def time_artifact(format: str, path: str | Path, input_shape: tuple[int, int, int]) -> dict:
    """Returns `latency` and `peak_memory` of an `ArtifactReport`, measured on random images.

    The dictionary is empty if the artifact does not run, which `verify` reports.
    """
    try:
        with start_runtime(format, Path(path).resolve()) as worker:
            latency = {
                str(batch): 1000 * statistics.median(worker.call("time", shape=(batch, *input_shape)))
                for batch in _TIMED_BATCHES
            }
            return {"latency": latency, "peak_memory": worker.call("peak_memory")}
    except WorkerError:
        return {}


def _short(error: WorkerError) -> str:
    return error.reason.removeprefix("failed with ")


def _types(tensors: dict) -> TensorTypes:
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}


def _labels(file_format: FileFormat, path: Path, described: dict) -> tuple[str, ...]:
    if file_format.read_labels is not None:
        return pkgutil.resolve_name(file_format.read_labels)(path)
    try:
        return tuple(json.loads(described["metadata"].get("labels", "[]")))
    except (ValueError, TypeError):
        return ()
