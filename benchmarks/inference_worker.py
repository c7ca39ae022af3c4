"""A worker that runs one exported file in its runtime, or multiplies matrices as fast as the machine can."""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.workers import Channel

_GEMM_SIZE = 4096
GEMM_FLOPS = 2 * _GEMM_SIZE**3


def _saved_model(path: str):
    import tensorflow as tf

    signatures = tf.saved_model.load(path).signatures
    function = signatures["serving_default"]
    (name,) = function.structured_input_signature[1]

    def run(images):
        return next(iter(function(**{name: tf.constant(images)}).values())).numpy()

    run.keep = signatures
    return run


def _tflite(path: str):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=len(os.sched_getaffinity(0)))
    runner = interpreter.get_signature_runner("serving_default")
    return lambda images: runner(images=images)["logits"]


def _onnxruntime(path: str):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    first = session.get_outputs()[0].name
    return _in_layout(given.shape, lambda images: session.run([first], {given.name: images})[0])


def _openvino(path: str):
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    layout = [None if size.is_dynamic else size.get_length() for size in compiled.input(0).partial_shape]
    return _in_layout(layout, lambda images: request.infer([images])[compiled.output(0)])


def _in_layout(shape, run):
    """`run` for images (batch, height, width, channels), whatever the file wants."""
    if shape[-1] == 3:
        return run
    return lambda images: run(images.transpose(0, 3, 1, 2).copy())


RUNTIMES = {
    "saved_model": _saved_model,
    "tflite": _tflite,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def _gemm(flops_of_an_image: float):
    """The images/s of a network that would be one big matrix product in float32, as oneDNN computes it."""
    import tensorflow as tf

    a, b = (tf.random.uniform((_GEMM_SIZE, _GEMM_SIZE)) for _ in range(2))
    multiply = tf.function(tf.linalg.matmul)

    def measure(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            multiply(a, b).numpy()
        return steps * GEMM_FLOPS / flops_of_an_image / (time.perf_counter() - begun)

    return measure


def main() -> None:
    """Serves what the spec names."""
    channel = Channel()
    spec = channel.spec
    import numpy as np

    if spec["runtime"] == "gemm":
        measure = _gemm(spec["flops_of_an_image"])
        measure(1)
        channel.serve({"step": measure})
        return
    run = RUNTIMES[spec["runtime"]](spec["path"])
    batch, size = spec["batch_size"], spec["image_size"]
    images = np.random.default_rng(0).uniform(0, 255, (batch, size, size, 3)).astype("float32")
    for _ in range(spec["warm_up"]):
        run(images)

    def measure(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            run(images)
        return steps * batch / (time.perf_counter() - begun)

    channel.serve({"step": measure})


if __name__ == "__main__":
    main()
