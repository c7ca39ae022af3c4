"""Compares converted weights in their own framework and in ours."""

import contextlib
import importlib
import sys
from pathlib import Path

import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.models.config import get_config
from keras_resnet.weights.conversion import Tensors
from keras_resnet.weights.keras_applications import applications_model
from keras_resnet.weights.spec import ModelSpec, check_architecture
from keras_resnet.weights.torch_files import torch_model
from keras_resnet.weights.weight_file import Weights, open_weights

TOLERANCE = 1e-4
"""Largest difference of equal networks, relative to the largest logit."""

_IMAGES = 4

_Result = tuple[str, np.ndarray]  # the framework and its version, the logits


def compare(source: Weights, model: str) -> tuple[str, float]:
    """Runs converted weights in their own framework and in ours on four images of smooth noise.

    Returns the framework's name and version, and the largest difference of the logits relative to the largest
    logit. Raises `InputError` if the framework is not installed.
    """
    with open_weights(source, model) as file:
        tensors, spec = dict(file.tensors()), file.spec
        check_architecture(file.path, spec.model, spec.config, get_config(model))
        ours = spec.build()
        file.load(ours)
    images = _smooth_noise(spec.input_shape)
    run = _on_torch if file.kind == "torch" else _on_keras_applications
    framework, expected = run(spec, file.path, tensors, images)
    got = keras.ops.convert_to_numpy(ours(spec.normalization(images)))
    return framework, float(np.abs(got - expected).max() / np.abs(expected).max())


def _smooth_noise(shape: tuple[int, int, int]) -> np.ndarray:
    """Returns images 0-255 with structures of several sizes, like those of photos."""
    random, (height, width, channels) = np.random.default_rng(0), shape
    pixels = np.zeros((_IMAGES, height, width, channels), "float32")
    for cell in (1, 4, 16, 64):
        rows, columns = -(-height // cell), -(-width // cell)
        coarse = random.uniform(0, 255 / 4, (_IMAGES, rows, columns, channels)).astype("float32")
        pixels += coarse.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
    return pixels


def _on_torch(spec: ModelSpec, path: Path, tensors: Tensors, images: np.ndarray) -> _Result:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(f"to compare {path}, install torch, and torchvision or timm") from None
    name = torch_model(spec.config)
    for package in ("torchvision", "timm"):  # only timm has networks such as resnet50d
        # RuntimeError: the package is compiled for another version of torch.
        with contextlib.suppress(ImportError, AttributeError, RuntimeError):
            build = getattr(importlib.import_module(f"{package}.models"), name)
            break
    else:
        raise InputError(f"to compare {path}, install torchvision or timm: neither provides {name}")
    network = build(num_classes=spec.classes).eval()
    network.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in tensors.items()})
    batch = np.ascontiguousarray(np.moveaxis(spec.normalization(images), -1, 1))
    with torch.no_grad():
        logits = network(torch.from_numpy(batch)).numpy()
    return f"{package} {sys.modules[package].__version__}", logits


def _on_keras_applications(spec: ModelSpec, path: Path, tensors: Tensors, images: np.ndarray) -> _Result:
    name = applications_model(spec.config)
    network = getattr(keras.applications, name)(
        weights=None, classes=spec.classes, classifier_activation=None, input_shape=images.shape[1:]
    )
    network.load_weights(path)
    batch = spec.normalization(images)
    if not name.endswith("V2"):
        batch = batch[..., ::-1]  # to BGR
    return f"keras.applications {keras.__version__}", np.asarray(keras.ops.convert_to_numpy(network(batch)))
