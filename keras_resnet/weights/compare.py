"""Weights in the framework that they come from, against the same weights in ours."""

import importlib
import os

import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.models.config import get_config
from keras_resnet.weights.converters import assign_tensors, count_classes, read_tensors
from keras_resnet.weights.registry import PretrainedWeights
from keras_resnet.weights.weight_file import foreign_spec, locate

TOLERANCE = 1e-4
"""Largest difference of two networks that count as equal, relative to the largest logit."""

IMAGES = 4


def compare(source: str | os.PathLike | PretrainedWeights, model: str) -> tuple[str, float]:
    """Runs another zoo's weights in its own framework and in ours, on the same images.

    Args:
        source: a file that `read_tensors` reads, or an entry of the model.
        model: a name of `list_models()`.

    Returns:
        The framework's name and version, and the largest difference of the logits over `IMAGES` images of
        smooth noise, relative to the largest logit.

    Raises:
        InputError: the source does not fit the model, or its framework is not installed.
    """
    config = get_config(model)
    path, entry = locate(source, config)
    kind, tensors = read_tensors(path)
    spec = foreign_spec(model, kind, count_classes(tensors), entry)
    ours = spec.build()
    assign_tensors(ours, kind, dict(tensors), config, path)
    images = _smooth_noise(spec.input_shape)
    run = _on_torch if kind == "torch" else _on_keras_applications
    framework, expected = run(model, path, tensors, spec.classes, spec.normalization, images)
    got = keras.ops.convert_to_numpy(ours(spec.normalization(images)))
    return framework, float(np.abs(got - expected).max() / np.abs(expected).max())


def _smooth_noise(shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels 0-255 with structures of several sizes, as photos have them."""
    random, (height, width, channels) = np.random.default_rng(0), shape
    pixels = np.zeros((IMAGES, height, width, channels), "float32")
    for cell in (1, 4, 16, 64):
        rows, columns = -(-height // cell), -(-width // cell)
        coarse = random.uniform(0, 255 / 4, (IMAGES, rows, columns, channels)).astype("float32")
        pixels += coarse.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
    return pixels


def _on_torch(model, path, tensors, classes, normalization, images) -> tuple[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(f"to compare {path}, install torch, and torchvision or timm") from None
    name = model.removesuffix("_v1_5")
    # resnet50d and its like are timm's alone.
    for package, builders in (("torchvision", "torchvision.models"), ("timm", "timm.models")):
        try:
            module = importlib.import_module(package)
            build = getattr(importlib.import_module(builders), name)
            break
        except (ImportError, AttributeError, RuntimeError):  # RuntimeError: another torch's compiled parts
            continue
    else:
        raise InputError(f"to compare {path}, install torchvision or timm: neither gives {name} here")
    network = build(num_classes=classes).eval()
    network.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in tensors.items()})
    batch = np.ascontiguousarray(np.moveaxis(normalization(images), -1, 1))
    with torch.no_grad():
        logits = network(torch.from_numpy(batch)).numpy()
    return f"{package} {module.__version__}", logits


def _on_keras_applications(model, path, tensors, classes, normalization, images) -> tuple[str, np.ndarray]:
    name = model.replace("resnet", "ResNet").replace("_v2", "V2")
    network = getattr(keras.applications, name)(
        weights=None, classes=classes, classifier_activation=None, input_shape=images.shape[1:]
    )
    network.load_weights(path)
    batch = normalization(images)
    # The networks that are not pre-activated take blue, green, red.
    batch = batch if name.endswith("V2") else batch[..., ::-1]
    return f"keras.applications {keras.__version__}", keras.ops.convert_to_numpy(network(batch))
