"""Measures Faster R-CNN (ResNet-50, FPN) on one image: its layers, its postprocessing, and its ONNX file.

python -m benchmarks.detection --output=detection.json
"""

import contextlib
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import harness, matrix_product, torch_peer
from keras_resnet import cli
from keras_resnet.export.isolated import start_runtime
from keras_resnet.processes import Worker

_NETWORKS, _POST_PROCESSING, _ONNX = SUBJECTS = ("networks", "post_processing", "onnx")
_SHARE = 0.1  # limit for the time of postprocessing, as a fraction of the whole detector's
_WARM_UP = 2
_TORCHVISION = "torchvision eager, channels_last"
_LIMIT = "10 % of the whole detector"
_FLAGS = (
    cli.Flag("height", "Height of the padded image in pixels, a multiple of 32.", int, 800),
    cli.Flag("width", "Width of the padded image in pixels, a multiple of 32.", int, 1344),
    cli.Flag("steps", "Images per round.", int, 3),
    torch_peer.FLAG,
)


def _measure_onnx(run: harness.Benchmark, subject: str, own: Worker, shape: tuple, steps: int) -> None:
    """Compares the ONNX file of the whole detector with the machine's limit, a matrix product."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        harness.say("exporting")
        path = str(Path(folder, "detector.onnx"))
        own.call("export", path=path)
        file = stack.enter_context(start_runtime("onnx", path))
        limit = stack.enter_context(matrix_product.start(own.ready["multiply_adds"]))
        products = max(1, round(steps / matrix_product.images_per_product(own.ready["multiply_adds"])))

        def images_per_second() -> float:
            return steps / sum(file.call("time", shape=shape, calls=steps))

        calls = {
            "ours": images_per_second,
            matrix_product.NAME: partial(limit.call, "measure", steps=products),
        }
        run.compare(subject, "images/s", calls)


def main(
    run: harness.Benchmark, subjects: list[str], height: int, width: int, steps: int, torch_python: str
) -> None:
    """Measures the chosen subjects."""
    torch = torch_peer.Torch(torch_python) if _NETWORKS in subjects else None
    spec = {"height": height, "width": width, "batch_size": 1, "warm_up": _WARM_UP}
    name = f"{height}x{width}"
    with contextlib.ExitStack() as stack:
        harness.say("starting ours")
        own = stack.enter_context(Worker("benchmarks.detection_worker", spec))
        if torch is not None:
            harness.say(f"starting {_TORCHVISION}")
            peer = stack.enter_context(torch.run("benchmarks.detection_torch_worker", spec))
            if peer.ready["parameters"] != own.ready["parameters"]:
                raise RuntimeError(f"torchvision has another network: {peer.ready} instead of {own.ready}")
            measures = {"ours": own, _TORCHVISION: peer}
            calls = {
                label: partial(worker.call, "measure", steps=steps) for label, worker in measures.items()
            }
            run.compare(f"{_NETWORKS}/{name}", "images/s", calls)
        if _POST_PROCESSING in subjects:
            rounds = [own.call("seconds", steps=steps) for _ in range(run.rounds)]
            others = [others for others, _ in rounds]
            limits = [_SHARE * whole for _, whole in rounds]
            run.add(f"{_POST_PROCESSING}/{name}", "s", others, limits, _LIMIT)
        if _ONNX in subjects:
            _measure_onnx(run, f"{_ONNX}/{name}", own, (1, height, width, 3), steps)
    run.report("keras", "tensorflow", "onnxruntime", "numpy", **({"torch": torch.version} if torch else {}))


if __name__ == "__main__":
    harness.run(main, SUBJECTS, _FLAGS)
