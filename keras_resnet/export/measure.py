"""Times an artifact in a process of its own, with nothing but its runtime in it.

A script, not a module of the package: it is started by its path. Arguments: the runtime (saved_model,
tflite or onnx), the artifact's path, and the height and width of its images. It prints one line of JSON:
`latency`, the median milliseconds of a batch, by batch size, and `peak_memory`, the process' bytes.
"""

import json
import os
import resource
import statistics
import sys
import time

BATCHES = (1, 32)
_SECONDS = 1.0  # to spend on each batch size
_LEAST_RUNS = 3


def open_saved_model(path):
    """A function from uint8 images to logits."""
    import tensorflow as tf

    function = tf.saved_model.load(path).signatures["serving_default"]
    return lambda images: function(images=tf.constant(images.astype("float32")))["logits"].numpy(), "nhwc"


def open_tflite(path):
    """A function from uint8 images to logits."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path, num_threads=cores()).get_signature_runner("serving_default")
    dtype = runner.get_input_details()["images"]["dtype"]
    return lambda images: runner(images=images.astype(dtype))["logits"], "nhwc"


def open_onnx(path):
    """A function from uint8 images to logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    dtype = "uint8" if given.type == "tensor(uint8)" else "float32"
    layout = session.get_modelmeta().custom_metadata_map.get("layout", "nhwc")
    return lambda images: session.run(["logits"], {given.name: images.astype(dtype)}), layout


def cores():
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def median_milliseconds(run, images):
    """Of one call, after one that is not counted."""
    run(images)
    times, begun = [], time.perf_counter()
    while len(times) < _LEAST_RUNS or time.perf_counter() - begun < _SECONDS:
        before = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - before)
    return 1000 * statistics.median(times)


def peak_memory():
    """The most bytes that this process ever held."""
    try:
        with open("/proc/self/status") as status:
            return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    except OSError:  # not Linux; getrusage counts what the parent held before it started this program
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    """Measures as the arguments say."""
    runtime, path, height, width, channels = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not disturb the answer
    import numpy as np

    sys.setrecursionlimit(20_000)
    run, layout = {"saved_model": open_saved_model, "tflite": open_tflite, "onnx": open_onnx}[runtime](path)
    random, latency = np.random.default_rng(0), {}
    for batch in BATCHES:
        images = random.integers(0, 256, (batch, int(height), int(width), int(channels)), "uint8")
        if layout == "nchw":
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        latency[batch] = median_milliseconds(run, images)
    print(json.dumps({"latency": latency, "peak_memory": peak_memory()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
