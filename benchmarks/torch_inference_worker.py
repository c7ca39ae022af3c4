"""A worker that runs the same network in PyTorch, or exports it to ONNX, for which it needs `onnx`, too."""

import time

from benchmarks.torch_worker import build
from keras_resnet.processes import serve


def _prepare(spec):
    """Builds the network; writes an ONNX file if the specification names one."""
    import torch

    ready = {"versions": {"torch": torch.__version__}}
    size, batch = spec["image_size"], spec["batch_size"]
    network = build(spec["config"]).eval()
    images = torch.randn(batch, 3, size, size)
    if spec.get("onnx"):
        axes = {"images": {0: "batch"}, "logits": {0: "batch"}}
        names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": axes}
        # The exporter that needs no further package.
        torch.onnx.export(network, (images,), spec["onnx"], opset_version=17, dynamo=False, **names)
        return ready, {}
    images = images.to(memory_format=torch.channels_last)
    network = network.to(memory_format=torch.channels_last)
    if spec["compile"]:
        network = torch.compile(network)
    precise = spec["precision"] == "float32"

    def measure(steps: int) -> float:
        begun = time.perf_counter()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=not precise):
            for _ in range(steps):
                network(images)
        return steps * batch / (time.perf_counter() - begun)

    measure(spec["warm_up"])
    return ready, {"measure": measure}


if __name__ == "__main__":
    serve(_prepare)
