"""Opens an exported file in the runtime of its format, in a process that cannot import Keras or this package.

`start_runtime` starts the process, which serves three functions. `call` runs a signature on tensors or, if
the signature is None, the default signature on images of raw pixels; arrays are exchanged as .npz files.
`time` measures calls, and `peak_memory` the process.
"""

import dataclasses
import importlib.metadata
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_resnet.export.formats import FILE_FORMATS
from keras_resnet.processes import Worker, cores, resident_memory, serve

_OPENVINO = "keras_resnet.export.isolated:_open_openvino"
_BLOCKED = ("keras", "keras_resnet", "tf_keras", "export")
_SIGNATURE = "serving_default"

Tensors = dict[str, Any]  # names to NumPy arrays
Types = Mapping[str, tuple[str | None, list]]  # names to dtype and shape


def start_runtime(runtime: str, path: str | os.PathLike) -> Worker:
    """Starts a process that opens a file on the CPU.

    Args:
        runtime: a key of `FILE_FORMATS`, or "openvino" for an ONNX file in OpenVINO.

    Raises:
        WorkerError: the runtime is not installed or cannot open the file.
    """
    environment = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    opener = _OPENVINO if runtime == "openvino" else FILE_FORMATS[runtime].open
    spec = {"open": opener, "path": os.fspath(path)}
    return Worker("keras_resnet.export.isolated", spec, environment=environment)


@dataclasses.dataclass
class Opened:
    """A file that a runtime has opened.

    Attributes:
        version: name and version of the runtime.
        signatures: by name, {"inputs": {name: (dtype, shape)}, "outputs": ...}; None is an axis of any size.
        call: runs a signature on arrays of the described types.
        details: further JSON values for the parent process.
        finish: converts the outputs of `call` to float32.
    """

    version: str
    signatures: Mapping[str, Mapping[str, Types]]
    call: Callable[[str, Tensors], Tensors]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    channels_first: bool = False
    finish: Callable[[Tensors], Tensors] = lambda tensors: tensors


def _type(dtype: str | None, shape: Sequence[Any]) -> tuple[str | None, list[int | None]]:
    """Returns a dtype and a shape in which axes with names, negative sizes or None have None."""
    return dtype, [size if isinstance(size, int) and size >= 0 else None for size in shape]


def open_saved_model(path: str) -> Opened:
    """Opens a SavedModel in TensorFlow."""
    import tensorflow as tf

    signatures = tf.saved_model.load(path).signatures

    def describe(specs):
        return {name: _type(spec.dtype.name, spec.shape.as_list()) for name, spec in specs.items()}

    def call(signature, inputs):
        try:
            results = signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        except tf.errors.OpError as error:
            # The first lines only say that the graph failed; the last ones name the node.
            lines = [line for line in error.message.splitlines() if line.strip() and "[[" not in line]
            raise ValueError(lines[-1]) from error
        return {name: value.numpy() for name, value in results.items()}

    described = {
        name: {
            "inputs": describe(function.structured_input_signature[1]),
            "outputs": describe(function.structured_outputs),
        }
        for name, function in signatures.items()
    }
    return Opened(f"tensorflow {tf.__version__}", described, call)


def open_tflite(path: str) -> Opened:
    """Opens a TFLite file in LiteRT."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    with open(path, "rb") as file:
        model = schema.Model.GetRootAs(file.read(), 0)
    operators = filter(None, map(model.OperatorCodes, range(model.OperatorCodesLength())))
    codes = [operator.CustomCode() for operator in operators]
    runner = Interpreter(path, num_threads=len(cores())).get_signature_runner(_SIGNATURE)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()

    def describe(details):
        return {
            name: _type(np.dtype(detail["dtype"]).name, detail["shape_signature"].tolist())
            for name, detail in details.items()
        }

    def dequantize(results):
        floats = {}
        for name, value in results.items():
            scale, zero = outputs[name]["quantization"]
            floats[name] = (value.astype("float32") - zero) * np.float32(scale) if scale else value
        return floats

    return Opened(
        f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}",
        {_SIGNATURE: {"inputs": describe(inputs), "outputs": describe(outputs)}},
        lambda signature, tensors: runner(**tensors),
        {"custom_operators": sorted({code.decode() for code in codes if code})},
        finish=dequantize,
    )


def open_onnx(path: str) -> Opened:
    """Opens an ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    dtypes = {f"tensor({name})": name for name in ("uint8", "int32", "int64")}
    dtypes |= {"tensor(float)": "float32", "tensor(double)": "float64"}

    def describe(tensors):
        return {tensor.name: _type(dtypes.get(tensor.type, tensor.type), tensor.shape) for tensor in tensors}

    inputs, outputs = describe(session.get_inputs()), describe(session.get_outputs())
    return Opened(
        f"onnxruntime {onnxruntime.__version__}",
        {_SIGNATURE: {"inputs": inputs, "outputs": outputs}},
        lambda signature, tensors: dict(zip(outputs, session.run(list(outputs), tensors), strict=True)),
        {"metadata": metadata},
        _is_channels_first(inputs) if "layout" not in metadata else metadata["layout"] == "nchw",
    )


def _open_openvino(path: str) -> Opened:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    (given,) = compiled.inputs
    shape = [None if size.is_dynamic else size.get_length() for size in given.partial_shape]
    inputs = {given.any_name: (given.element_type.to_dtype().name, shape)}

    def call(signature, tensors):
        results = request.infer(list(tensors.values()))
        return {output.any_name: results[output] for output in compiled.outputs}

    described = {_SIGNATURE: {"inputs": inputs, "outputs": {}}}
    version = f"openvino {openvino.__version__}"
    return Opened(version, described, call, channels_first=_is_channels_first(inputs))


def _is_channels_first(inputs: Types) -> bool:
    ((_, shape),) = inputs.values()
    return len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4)


def _prepare(spec):
    open_file = pkgutil.resolve_name(spec["open"])
    for name in [name for name in sys.modules if name.partition(".")[0] in _BLOCKED]:
        del sys.modules[name]
    blocked: dict[str, Any] = dict.fromkeys(_BLOCKED)
    sys.modules.update(blocked)  # importing a module that is None fails
    sys.setrecursionlimit(20_000)
    import numpy as np

    opened = open_file(spec["path"])

    def prepare(images):
        """Returns inputs for one call, or for several if the file takes a fixed number of images."""
        ((name, (dtype, (batch, *_))),) = opened.signatures[_SIGNATURE]["inputs"].items()
        if opened.channels_first:
            images = images.transpose(0, 3, 1, 2)
        if dtype == "uint8":
            images = np.rint(images)
        images = np.ascontiguousarray(images, dtype)
        if batch is None:
            return [{name: images}]
        missing = -len(images) % batch
        whole = np.concatenate([images, np.repeat(images[-1:], missing, 0)])
        return [{name: whole[start : start + batch]} for start in range(0, len(whole), batch)]

    def call_prepared(inputs):
        return [opened.call(_SIGNATURE, part) for part in inputs]

    def classify(images):
        results = [opened.finish(part) for part in call_prepared(prepare(images))]
        return {key: np.concatenate([part[key] for part in results])[: len(images)] for key in results[0]}

    def call(signature, inputs, outputs):
        with np.load(inputs) as arrays:
            given = dict(arrays)
        results: Tensors = classify(given["images"]) if signature is None else opened.call(signature, given)
        # NumPy can store byte strings of Python only as pickles.
        texts = {name: value for name, value in results.items() if value.dtype == object}
        for name, value in texts.items():
            results[name] = np.array([text.decode() for text in value.flat], str).reshape(value.shape)
        np.savez(outputs, **results)

    def time_calls(shape, calls=None):
        """Returns the seconds of each call with random images; `calls` of them, or at least 3 in 1 second."""
        images = np.random.default_rng(0).integers(0, 256, shape, "uint8").astype("float32")
        inputs, times = prepare(images), []
        call_prepared(inputs)  # the first call is slower
        began = time.perf_counter()
        while len(times) < (calls or 3) or (calls is None and time.perf_counter() - began < 1):
            before = time.perf_counter()
            call_prepared(inputs)
            times.append(time.perf_counter() - before)
        return times

    ready = {"version": opened.version, "signatures": opened.signatures, **opened.details}
    functions = {"call": call, "time": time_calls, "peak_memory": lambda: resident_memory(peak=True)}
    return ready, functions


if __name__ == "__main__":
    serve(_prepare)
