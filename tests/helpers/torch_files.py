"""Other zoos' weight files without their frameworks: names and shapes, and the forward pass in NumPy."""

import h5py
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def state_dict(block, depths, filters, classes, seed=0):
    """torchvision's names and shapes, with random statistics."""
    random, tensors = np.random.default_rng(seed), {}

    def conv_bn(conv, bn, outputs, inputs, size):
        scale = (2 / (inputs * size * size)) ** 0.5
        tensors[f"{conv}.weight"] = random.normal(0, scale, (outputs, inputs, size, size))
        tensors[f"{bn}.weight"] = random.uniform(0.5, 1.5, outputs)
        tensors[f"{bn}.bias"] = random.normal(0, 0.3, outputs)
        tensors[f"{bn}.running_mean"] = random.normal(0, 0.3, outputs)
        tensors[f"{bn}.running_var"] = random.uniform(0.5, 1.5, outputs)
        tensors[f"{bn}.num_batches_tracked"] = np.array(3, "int64")

    conv_bn("conv1", "bn1", 64, 3, 7)
    width = 64
    for layer, (depth, planes) in enumerate(zip(depths, filters, strict=True), start=1):
        for index in range(depth):
            name = f"layer{layer}.{index}"
            out = planes if block == "basic" else 4 * planes
            if block == "basic":
                shapes = [(planes, width, 3), (planes, planes, 3)]
            else:
                shapes = [(planes, width, 1), (planes, planes, 3), (out, planes, 1)]
            for number, shape in enumerate(shapes, start=1):
                conv_bn(f"{name}.conv{number}", f"{name}.bn{number}", *shape)
            if index == 0 and (layer > 1 or width != out):
                conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", out, width, 1)
            width = out
    tensors["fc.weight"] = random.normal(0, 0.1, (classes, width))
    tensors["fc.bias"] = random.normal(0, 0.3, classes)
    return {n: value if value.dtype == "int64" else value.astype("float32") for n, value in tensors.items()}


def torch_forward(tensors, batch):
    """torchvision's `ResNet.forward` in NumPy: NCHW, OIHW, padding k // 2, stride on the 3x3."""

    def windows(x, size, stride, fill=0.0):
        pad = size // 2
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill)
        return sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]

    def conv_bn(x, conv, bn, stride=1):
        kernel = tensors[f"{conv}.weight"].astype("float64")
        x = np.einsum("nchwij,ocij->nohw", windows(x, kernel.shape[2], stride), kernel, optimize=True)
        scale, shift, mean, variance = (
            tensors[f"{bn}.{name}"].astype("float64")[:, None, None]
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift

    x = np.moveaxis(batch.astype("float64"), -1, 1)
    x = np.maximum(conv_bn(x, "conv1", "bn1", 2), 0)
    x = windows(x, 3, 2, -np.inf).max((-2, -1))
    for layer in range(1, 5):
        for index in range(10):
            name = f"layer{layer}.{index}"
            if f"{name}.conv1.weight" not in tensors:
                break
            stride = 2 if layer > 1 and index == 0 else 1
            bottleneck = f"{name}.conv3.weight" in tensors
            y = np.maximum(conv_bn(x, f"{name}.conv1", f"{name}.bn1", 1 if bottleneck else stride), 0)
            y = conv_bn(y, f"{name}.conv2", f"{name}.bn2", stride if bottleneck else 1)
            if bottleneck:
                y = conv_bn(np.maximum(y, 0), f"{name}.conv3", f"{name}.bn3")
            if f"{name}.downsample.0.weight" in tensors:
                x = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = np.maximum(x + y, 0)
    return x.mean((2, 3)) @ tensors["fc.weight"].T + tensors["fc.bias"]


def write_old_layout(model, path, top="predictions", under=None, chunked=False):
    """As Keras 2 wrote it: a group a layer, with the variables' names in an attribute."""
    with h5py.File(path, "w") as file:
        root = file.create_group(under) if under else file
        names = [top if layer.name == "predictions" else layer.name for layer in model.layers]
        root.attrs["layer_names"] = [name.encode() for name in names]
        root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.0.8"
        for name, layer in zip(names, model.layers, strict=True):
            group = root.create_group(name)
            weights = [f"{name}/{weight.name}:0" for weight in layer.weights]
            encoded = [weight.encode() for weight in weights]
            if chunked:
                for index, weight in enumerate(encoded):
                    group.attrs[f"weight_names{index}"] = [weight]
            else:
                group.attrs["weight_names"] = encoded
            for weight, variable in zip(weights, layer.weights, strict=True):
                group[weight] = variable.numpy()
