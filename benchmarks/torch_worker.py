"""A worker that trains the same networks in PyTorch; it needs PyTorch and nothing else.

The networks are built as torchvision builds its own (in-place ReLU, padding inside the convolutions and
the pooling), with the shortcuts and the place of the stride that the project's config asks for, so that
both sides do the same arithmetic.
"""

import time

from benchmarks.workers import Channel

RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4


def build(config: dict):
    """The network of a `ResNetConfig`, given as a dictionary, as torchvision builds its own."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def conv_bn(inputs, outputs, kernel, stride):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))

    class PaddedIdentity(nn.Module):
        """Option A."""

        def __init__(self, widening, stride):
            super().__init__()
            self.widening, self.stride = widening, stride

        def forward(self, x):
            return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.widening))

    class Block(nn.Module):
        def __init__(self, inputs, filters, stride):
            super().__init__()
            if config["block"] == "basic":
                outputs, sizes = filters, [(filters, 3, stride), (filters, 3, 1)]
            else:
                outputs = 4 * filters
                first, second = (stride, 1) if config["bottleneck_stride"] == "1x1" else (1, stride)
                sizes = [(filters, 1, first), (filters, 3, second), (outputs, 1, 1)]
            layers = []
            for width, kernel, step in sizes:
                layers += [conv_bn(inputs if not layers else layers[-2][0].out_channels, width, kernel, step)]
                layers += [nn.ReLU(inplace=True)]
            self.branch = nn.Sequential(*layers[:-1])
            option, changes = config["shortcut"], stride > 1 or inputs != outputs
            if option == "C" or (option == "B" and changes):
                self.shortcut = conv_bn(inputs, outputs, 1, stride)
            elif option == "A" and changes:
                self.shortcut = PaddedIdentity(outputs - inputs, stride)
            else:
                self.shortcut = nn.Identity()

        def forward(self, x):
            y = self.branch(x)
            if config["shortcut"] is not None:
                y += self.shortcut(x)
            return F.relu(y, inplace=True)

    width = 64 if config["stem"] == "imagenet" else config["stage_filters"][0]
    if config["stem"] == "imagenet":
        layers = [conv_bn(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    else:
        layers = [conv_bn(3, width, 3, 1), nn.ReLU(inplace=True)]
    for stage, (depth, filters) in enumerate(
        zip(config["stage_depths"], config["stage_filters"], strict=True)
    ):
        for index in range(depth):
            layers.append(Block(width, filters, 2 if stage and not index else 1))
            width = filters * (4 if config["block"] == "bottleneck" else 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, config["classes"])]
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def main() -> None:
    """Serves steps of SGD with momentum, channels last, in float32 or under bfloat16 autocast."""
    channel = Channel()
    import torch

    spec = channel.spec
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    network = build(spec["config"])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    model = network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        RATE,
        MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        fused=True if device == "cuda" else None,
    )
    if spec.get("compile"):
        model = torch.compile(model)
    size, batch = spec["image_size"], spec["batch_size"]
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(spec["config"]["classes"], (batch,), device=device)
    precise = spec["precision"] == "float32"

    def measure(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=not precise):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        if not torch.isfinite(loss).item():  # also waits for the device
            raise FloatingPointError("the loss is not finite")
        return steps * batch / (time.perf_counter() - begun)

    measure(spec["warm_up"])
    channel.serve({"step": measure}, parameters=parameters, versions={"torch": torch.__version__})


if __name__ == "__main__":
    main()
