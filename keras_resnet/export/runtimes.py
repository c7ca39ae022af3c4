"""Artifacts opened in the runtime that a deployment would use, never in the one that wrote them."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.export.serving import SIGNATURE
from keras_resnet.export.writers.tflite_metadata import read_labels
from keras_resnet.quiet import quiet


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An opened artifact.

    Attributes:
        inputs: name to (dtype, shape), with None for an axis of any size.
        outputs: as `inputs`.
        run: float32 (batch, height, width, channels), raw pixels, to a dictionary of float32
            (batch, classes); brings them to the dtype and the layout that the artifact takes.
        version: of the runtime, such as "onnxruntime 1.23.0".
        problems: promises about its insides that the artifact breaks, as sentences.
        labels: that it carries; None where its format has them elsewhere.
        call: `call(signature, inputs) -> outputs`, where an artifact has more than one signature.
    """

    inputs: dict[str, tuple[str, tuple]]
    outputs: dict[str, tuple[str, tuple]]
    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    version: str
    problems: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    call: Callable[[str, dict], dict[str, np.ndarray]] | None = None


class RunError(Exception):
    """The runtime refused a batch."""


def _cannot_open(path: Path, runtime: str, error: object) -> InputError:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return InputError(f"{path} cannot be opened by {runtime}: {lines[0].strip()}")


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise InputError(f"there is no {path}")


@contextlib.contextmanager
def open_saved_model(path: str | Path) -> Iterator[Artifact]:
    """Opens a SavedModel in a fresh Python process in which Keras and keras_resnet cannot be imported.

    Raises:
        InputError: TensorFlow cannot load it.
    """
    path = Path(path).resolve()
    _check_exists(path)
    script = Path(__file__).with_name("run_saved_model.py")
    # -P: the script's folder, this package, must not be where the process looks for modules.
    command = [sys.executable, "-P", str(script), str(path)]
    # The reference is computed on the CPU, where float32 is float32.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "log").open("w+b") as log,
        subprocess.Popen(command, stderr=log, env=environment, **pipes) as process,
    ):
        try:
            hello = _answer(process, log)
            if "error" in hello:
                raise _cannot_open(path, "TensorFlow", hello["error"])
            signatures = hello["signatures"]
            if SIGNATURE not in signatures:
                raise _cannot_open(path, "TensorFlow", f"it has no signature {SIGNATURE}")

            def call(signature, inputs):
                if signature not in signatures:
                    raise RunError(f"has no signature {signature}")
                return _call_in_process(process, log, Path(folder), signature, inputs)

            def run(images):
                return call(SIGNATURE, {name: images for name in signatures[SIGNATURE]["inputs"]})

            labels = path / "assets" / "labels.txt"
            yield Artifact(
                inputs=_described(signatures[SIGNATURE]["inputs"]),
                outputs=_described(signatures[SIGNATURE]["outputs"]),
                run=run,
                version=hello["version"],
                labels=tuple(labels.read_text("utf-8").splitlines()) if labels.is_file() else (),
                call=call,
            )
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # the process ends when its input does
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def _described(tensors: dict) -> dict[str, tuple[str, tuple]]:
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}


def _answer(process: subprocess.Popen, log) -> dict:
    """The next line of the process; or, if it has died, the last lines that it wrote."""
    line = process.stdout.readline()
    if line:
        return json.loads(line)
    log.seek(0)
    tail = log.read().decode(errors="replace").strip().splitlines()[-1:]
    return {"error": " ".join(tail) or f"the process ended with status {process.wait()}"}


def _call_in_process(process, log, folder: Path, signature: str, inputs: dict) -> dict[str, np.ndarray]:
    files = {"inputs": str(folder / "inputs.npz"), "outputs": str(folder / "outputs.npz")}
    np.savez(files["inputs"], **inputs)
    try:
        process.stdin.write(json.dumps({"signature": signature, **files}) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # _answer says why
    answer = _answer(process, log)
    if "error" in answer:
        raise RunError(answer["error"])
    with np.load(files["outputs"]) as arrays:
        return dict(arrays)


@contextlib.contextmanager
def open_tflite(path: str | Path) -> Iterator[Artifact]:
    """Opens a TFLite file in LiteRT's interpreter.

    Raises:
        InputError: LiteRT cannot read it, or it has no signature `serving_default`.
    """
    import importlib.metadata

    from ai_edge_litert.interpreter import Interpreter

    path = Path(path)
    _check_exists(path)
    try:
        problems = _custom_operators(path.read_bytes())
        with quiet():
            interpreter = Interpreter(str(path))
            runner = interpreter.get_signature_runner(SIGNATURE)
    except Exception as error:  # whatever a damaged file makes the parser raise
        raise _cannot_open(path, "LiteRT", error) from error

    inputs, outputs = runner.get_input_details(), runner.get_output_details()

    def run(images):
        try:
            given = {name: _quantized(images, detail) for name, detail in inputs.items()}
            with quiet():  # the first run announces a delegate
                results = runner(**given)
            # Copies: the arrays are views into buffers that the next call overwrites.
            return {name: _dequantized(value, outputs[name]) for name, value in results.items()}
        except (RuntimeError, ValueError, TypeError) as error:
            raise RunError(str(error)) from error

    yield Artifact(
        inputs=_litert_tensors(inputs),
        outputs=_litert_tensors(outputs),
        run=run,
        version=f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}",
        problems=problems,
        labels=read_labels(path),
    )


def _quantized(images: np.ndarray, detail: dict) -> np.ndarray:
    """Raw pixels as bytes where the file takes bytes: a client feeds what its camera gives."""
    return images if detail["dtype"] == np.float32 else np.rint(images).astype(detail["dtype"])


def _dequantized(values: np.ndarray, detail: dict) -> np.ndarray:
    scale, zero = detail["quantization"]
    return (values.astype("float32") - zero) * np.float32(scale) if scale else np.array(values)


def _litert_tensors(details: dict) -> dict[str, tuple[str, tuple]]:
    return {
        name: (
            np.dtype(detail["dtype"]).name,
            tuple(None if size == -1 else int(size) for size in detail["shape_signature"]),
        )
        for name, detail in details.items()
    }


def _custom_operators(content: bytes) -> tuple[str, ...]:
    """A sentence if the file needs operators that are not built in, Flex or others."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    codes = (model.OperatorCodes(index).CustomCode() for index in range(model.OperatorCodesLength()))
    custom = sorted({code.decode() for code in codes if code})
    return (f"needs operators that are not built in: {', '.join(custom)}",) if custom else ()


@contextlib.contextmanager
def open_onnx(path: str | Path) -> Iterator[Artifact]:
    """Opens an ONNX file in ONNX Runtime, on the CPU.

    Raises:
        InputError: ONNX Runtime cannot read it.
    """
    import onnxruntime

    path = Path(path)
    _check_exists(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class but this
        raise _cannot_open(path, "ONNX Runtime", error) from error
    inputs, outputs = _onnx_tensors(session.get_inputs()), _onnx_tensors(session.get_outputs())
    metadata = session.get_modelmeta().custom_metadata_map

    def run(images):
        if metadata.get("layout") == "nchw":
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        (name, (dtype, _)), *_ = inputs.items()
        if dtype == "uint8":
            images = np.rint(images).astype("uint8")
        try:
            return dict(zip(outputs, session.run(list(outputs), {name: images}), strict=True))
        except Exception as error:
            raise RunError(str(error)) from error

    try:
        labels = tuple(json.loads(metadata.get("labels", "[]")))
    except (ValueError, TypeError):
        labels = ()
    yield Artifact(inputs, outputs, run, f"onnxruntime {onnxruntime.__version__}", labels=labels)


def _onnx_tensors(tensors) -> dict[str, tuple[str, tuple]]:
    dtypes = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(uint8)": "uint8"}
    return {
        tensor.name: (
            dtypes.get(tensor.type, tensor.type),
            tuple(size if isinstance(size, int) else None for size in tensor.shape),
        )
        for tensor in tensors
    }
