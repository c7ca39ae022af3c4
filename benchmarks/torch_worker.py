"""The same networks in PyTorch: training steps, inference, or an ONNX file; needs PyTorch and nothing else.

They are built as torchvision builds its own (in-place ReLU, padding inside the convolutions and the pooling),
with the shortcuts and the place of the stride of the project's configuration, so that both sides do the same
arithmetic. ONNX files also need the package `onnx`.
"""

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from benchmarks.workers import MOMENTUM, RATE, WEIGHT_DECAY, TakeSteps, peak_memory, serve_steps

# PyTorch does not declare the argument `memory_format` of a module's `to`, and `compile` returns a function.
_Module = Any


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class _PaddedIdentity(nn.Module):
    """Option A."""

    def __init__(self, widening: int, stride: int):
        super().__init__()
        self.widening, self.stride = widening, stride

    def forward(self, x):
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.widening))


class _Block(nn.Module):
    def __init__(self, config: dict[str, Any], inputs: int, filters: int, stride: int):
        super().__init__()
        if config["block"] == "basic":
            outputs, sizes = filters, [(filters, 3, stride), (filters, 3, 1)]
        else:
            outputs = 4 * filters
            first, second = (stride, 1) if config["bottleneck_stride"] == "1x1" else (1, stride)
            sizes = [(filters, 1, first), (filters, 3, second), (outputs, 1, 1)]
        layers, width = [], inputs
        for channels, kernel, step in sizes:
            layers += [_conv_bn(width, channels, kernel, step), nn.ReLU(inplace=True)]
            width = channels
        self.branch = nn.Sequential(*layers[:-1])
        option, changes = config["shortcut"], stride > 1 or inputs != outputs
        self.has_shortcut = option is not None
        if option == "C" or (option == "B" and changes):
            self.shortcut = _conv_bn(inputs, outputs, 1, stride)
        elif option == "A" and changes:
            self.shortcut = _PaddedIdentity(outputs - inputs, stride)
        else:
            self.shortcut = nn.Identity()

    def forward(self, x):
        y = self.branch(x)
        if self.has_shortcut:
            y += self.shortcut(x)
        return F.relu(y, inplace=True)


def _build(config: dict[str, Any]) -> nn.Sequential:
    """The network of a `ResNetConfig`, given as a dictionary."""
    imagenet = config["stem"] == "imagenet"
    width = 64 if imagenet else config["stage_filters"][0]
    kernel, stride = (7, 2) if imagenet else (3, 1)
    layers = [_conv_bn(3, width, kernel, stride), nn.ReLU(inplace=True)]
    if imagenet:
        layers.append(nn.MaxPool2d(3, 2, 1))
    stages = zip(config["stage_depths"], config["stage_filters"], strict=True)
    for stage, (depth, filters) in enumerate(stages):
        for index in range(depth):
            layers.append(_Block(config, width, filters, 2 if stage and not index else 1))
            width = filters * (4 if config["block"] == "bottleneck" else 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, config["classes"])]
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def _training(network: _Module, spec: dict[str, Any]) -> TakeSteps:
    """SGD with momentum, channels last, in float32 or under bfloat16 autocast."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    model = network.to(device, memory_format=torch.channels_last).train()
    fused = True if device == "cuda" else None
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=fused)
    if spec["compile"]:
        model = torch.compile(model)
    images = _images(spec).to(device, memory_format=torch.channels_last)
    labels = torch.randint(spec["config"]["classes"], (spec["batch_size"],), device=device)

    def take_steps(steps: int) -> float:
        loss = torch.zeros(())
        for _ in range(steps):
            optimizer.zero_grad()
            with _autocast(device, spec):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        return loss.item()  # waits for the device

    return take_steps


def _inference(network: _Module, spec: dict[str, Any]) -> TakeSteps:
    """Inference, channels last; on a GPU if there is one, except for an ONNX file."""
    device = "cuda" if torch.cuda.is_available() and "onnx" not in spec else "cpu"
    network = network.eval()
    images = _images(spec)
    if "onnx" in spec:
        axes = {"images": {0: "batch"}, "logits": {0: "batch"}}
        names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": axes}
        # The exporter that needs no further package.
        torch.onnx.export(network, (images,), spec["onnx"], opset_version=17, dynamo=False, **names)
    images = images.to(device, memory_format=torch.channels_last)
    network = network.to(device, memory_format=torch.channels_last)
    if spec["compile"]:
        network = torch.compile(network)

    def take_steps(steps: int) -> None:
        with torch.inference_mode(), _autocast(device, spec):
            for _ in range(steps):
                network(images)
        if device == "cuda":
            torch.cuda.synchronize()

    return take_steps


def _images(spec: dict[str, Any]):
    return torch.randn(spec["batch_size"], 3, spec["image_size"], spec["image_size"])


def _autocast(device: str, spec: dict[str, Any]):
    return torch.autocast(device, dtype=torch.bfloat16, enabled=spec["precision"] != "float32")


def _prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], TakeSteps]:
    network = _build(spec["config"])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    take_steps = {"training": _training, "inference": _inference}[spec["task"]](network, spec)
    return {"parameters": parameters, "versions": {"torch": torch.__version__}}, take_steps


def _peak_memory() -> float:
    """The most memory that tensors took on the GPU, or the process on a CPU, MiB."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_memory()


if __name__ == "__main__":
    serve_steps(_prepare, _peak_memory)
