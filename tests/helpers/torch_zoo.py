"""torchvision's and timm's own networks as references: their Python code beside a CPU build of torch.

torch is imported by functions only: the tests are collected where it is not installed, too.
"""

import functools
import sys
from unittest import mock

import numpy as np
from helpers.zoo_networks import zeros_for_weights

from keras_resnet import build_model
from keras_resnet.export.images import sample_photos
from keras_resnet.images.preprocessing import Normalization


@functools.cache
def torchvision():
    """The package torchvision, without its compiled operators.

    torchvision's wheel is built for one build of torch and loads its operators (for detection; no
    ResNet has one) only there. Where it does not load them, its import still describes two of them
    to torch and fails, because torch does not know them. So they are declared first, and the
    operators are left out everywhere, that the tests may see the same thing everywhere.
    """
    import torch

    for operator in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{operator}", schema)
    with mock.patch.object(torch.ops, "load_library", side_effect=OSError("left out")):
        import torchvision
    return torchvision


@functools.cache
def detection():
    """`torchvision.models.detection`, which runs on Python operators in place of its compiled ones.

    Its own RoIAlign in Python repeats the last cell of a map for samples beyond it, where its compiled
    kernels have zeros; here, too.
    """
    import torch

    package = torchvision()
    roi_align = sys.modules["torchvision.ops.roi_align"]
    interpolate = roi_align._bilinear_interpolate

    def with_zeros(maps, images, y, x, *masks):
        height, width = maps.shape[-2:]
        inside = [(it >= -1) & (it <= size) for it, size in ((y, height), (x, width))]
        # (regions, channels, bins, bins, samples, samples)
        valid = inside[0][:, None, :, None, :, None] & inside[1][:, None, None, :, None, :]
        return interpolate(maps, images, y, x, *masks) * valid

    roi_align._bilinear_interpolate = with_zeros
    roi_align._roi_align = roi_align._roi_align.__wrapped__
    roi_align.is_compile_supported = lambda device: True
    package.ops.boxes._assert_has_ops = lambda: None
    torch.library.impl("torchvision::nms", "cpu", _non_max_suppression)
    return package.models.detection


def _non_max_suppression(boxes, scores, iou_threshold):
    """What torchvision's kernel selects: greedily, by descending score, in a stable order."""
    import torch

    overlaps = torchvision().ops.boxes.box_iou(boxes, boxes).numpy() > iou_threshold
    kept, suppressed = [], np.zeros(len(boxes), bool)
    for index in torch.argsort(scores, descending=True, stable=True).tolist():
        if not suppressed[index]:
            kept.append(index)
            suppressed |= overlaps[index]
    return torch.tensor(kept, dtype=torch.int64)


@functools.cache
def timm():
    """The package timm, which imports torchvision."""
    torchvision()
    import timm

    return timm


def randomize(network, seed=0):
    """Gives a network statistics that no error can hide behind; its convolutions stay as they are.

    Args:
        network: a `torch.nn.Module`, a ResNet of torchvision or timm; it is changed.
        seed: of the random numbers.

    Returns:
        The network, in inference mode.
    """
    import torch
    from torch.nn import init

    norms = torch.nn.BatchNorm2d, torchvision().ops.FrozenBatchNorm2d
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, norms):
                init.uniform_(module.weight, 0.5, 1.5)
                init.normal_(module.bias, 0, 0.3)
                init.normal_(module.running_mean, 0, 0.3)
                init.uniform_(module.running_var, 0.5, 1.5)
                if hasattr(module, "num_batches_tracked"):
                    module.num_batches_tracked.fill_(3)
            elif isinstance(module, torch.nn.GroupNorm):
                init.uniform_(module.weight, 0.5, 1.5)
                init.normal_(module.bias, 0, 0.3)
            elif isinstance(module, torch.nn.Linear):
                init.normal_(module.weight, 0, 0.1)
                init.normal_(module.bias, 0, 0.3)
        for module in network.modules():
            if hasattr(module, "conv2"):
                # Fixed statistics do not hold the sum of 50 residuals in bounds.
                last = module.bn3 if hasattr(module, "bn3") else module.bn2
                last.weight.mul_(0.3)
                last.bias.mul_(0.3)
    return network.eval()


def reference(library, name, seed=0, **arguments):
    """A network of a zoo with random weights and random statistics.

    Args:
        library: "torchvision" or "timm".
        name: the network's name there.
        seed: of the random numbers.
        **arguments: of the function there that makes it.

    Returns:
        The `torch.nn.Module`, in inference mode.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if library == "timm":
            network = timm().create_model(name, **arguments)
        else:
            network = torchvision().models.get_model(name, weights=None, **arguments)
    return randomize(network, seed)


def photos(height=224, width=224, channels=3):
    """scikit-learn's two photos, normalized: float32 (2, height, width, channels)."""
    # The first of each photo's four views is all of it.
    pixels = sample_photos(height, width, channels)[::4]
    return Normalization.imagenet().for_channels(channels)(pixels).astype("float32")


def run(function, batch):
    """What a function of torch makes of images whose channels come last, as arrays of that kind.

    Args:
        function: a `torch.nn.Module`, or anything that takes a tensor (batch, channels, height,
            width) and gives one tensor or a list of them.
        batch: float32 (batch, height, width, channels).

    Returns:
        An array, or a list of them; feature maps are (batch, height, width, channels).
    """
    import torch

    with torch.inference_mode():
        result = function(torch.from_numpy(np.ascontiguousarray(np.moveaxis(batch, -1, 1))))
    several = isinstance(result, list | tuple)
    arrays = [tensor.numpy() for tensor in (result if several else [result])]
    arrays = [np.moveaxis(array, 1, -1) if array.ndim == 4 else array for array in arrays]
    return arrays if several else arrays[0]


def save_safetensors(network, path):
    """Writes a network's state dict as its own zoo does."""
    from safetensors.torch import save_file

    save_file(network.state_dict(), path)


def load(name, network, folder, **arguments):
    """Our network `name` with the weights of theirs, which go through a `.safetensors` file.

    Args:
        name: of our zoo.
        network: theirs.
        folder: where the file is for as long as it is needed: they are large.
        **arguments: of `build_model`.
    """
    path = folder / "theirs.safetensors"
    save_safetensors(network, path)
    with zeros_for_weights():
        model = build_model(name, weights=path, **{"classifier_activation": None, **arguments})
    path.unlink()
    return model
