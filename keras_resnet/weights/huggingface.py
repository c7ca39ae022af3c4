"""Folders in timm's format, as on the Hugging Face Hub: config.json, weights and a model card.

timm, torchvision and KerasHub read the same file of weights.
"""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.errors import InputError, one_line
from keras_resnet.files import replacing, starts_with
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.models.config import MODELS, zoo_name
from keras_resnet.weights.conversion import Tensors
from keras_resnet.weights.hdf5 import refuse_damage
from keras_resnet.weights.registry import PretrainedWeights
from keras_resnet.weights.spec import ModelSpec
from keras_resnet.weights.torch_files import torch_model, write_torch_file

CONFIG = "config.json"
UNKNOWN = "unknown"  # the Hub's identifier of a license that is not known

_WEIGHTS, _README = "model.safetensors", "README.md"
_WEIGHT_FILES = (_WEIGHTS, "pytorch_model.bin")  # the second is an older name of a .pth file
_LARGEST_CONFIG = 2**24  # bytes
_TAG = "keras_resnet"  # of our model cards
_LICENSE = re.compile(r"[a-z0-9]+([.+-]+[a-z0-9]+)*[+]*")
# timm's defaults for keys that a config.json lacks.
_CROP, _INTERPOLATION, _SHAPE, _CLASSES = 0.875, "bicubic", (3, 224, 224), 1000
# Options of timm's networks that only matter in training, or that are read elsewhere.
_HARMLESS_ARGUMENTS = {"in_chans", "num_classes", "drop_rate", "drop_path_rate", "drop_block_rate"}


def timm_config(spec: ModelSpec, license: str = UNKNOWN) -> dict[str, Any]:
    """Returns the content of config.json; raises `InputError` if it cannot describe the network."""
    config, (height, width, channels) = spec.config, spec.input_shape
    name = torch_model(config)
    if height != width:
        raise InputError(f"{CONFIG} describes square images only; the network takes {height}x{width} pixels")
    preprocessing = spec.preprocessing
    if len(preprocessing.normalization.shape) == 3:
        raise InputError(
            f"{CONFIG} has one mean per channel; the images of this network have one per pixel subtracted"
        )
    statistics = preprocessing.for_channels(channels).normalization
    mean, std = (_of_unit_pixels(values, channels) for values in (statistics.mean, statistics.std))
    labels = {"label_names": list(spec.labels)} if spec.labels else {}
    return {
        "architecture": name,
        "num_classes": spec.classes,
        "num_features": config.stage_filters[-1] * config.expansion,
        "global_pool": "avg",
        **labels,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, height, width],
            "fixed_input_size": False,
            "interpolation": preprocessing.interpolation,
            "crop_pct": crop_share(preprocessing),
            "crop_mode": "squash" if preprocessing.resize is None else "center",
            "mean": mean,
            "std": std,
            "num_classes": spec.classes,
            "pool_size": [-(-side // config.total_stride) for side in (height, width)],
            "first_conv": "conv1.0" if config.stem == "deep" else "conv1",
            "classifier": "fc",
            **({} if license == UNKNOWN else {"license": license}),
        },
    }


def crop_share(preprocessing: Preprocessing) -> float:
    """Returns timm's `crop_pct`, of which it computes the shorter side as floor(size / crop_pct)."""
    if preprocessing.resize is None:
        return 1.0
    share = preprocessing.size / preprocessing.resize
    while math.floor(preprocessing.size / share) < preprocessing.resize:  # rounded down
        share = math.nextafter(share, 0)
    return share


def _of_unit_pixels(values: Any, channels: int) -> list[float]:
    """Returns statistics of pixels 0-1, one per channel; those of ImageNet get their published digits."""
    return [round(value / 255, 12) for value in np.broadcast_to(values, channels).tolist()]


def write_folder(
    tensors: Tensors,
    folder: Path,
    spec: ModelSpec,
    license: str = UNKNOWN,
    origin: PretrainedWeights | None = None,
) -> None:
    """Writes a folder atomically; one that was written by this function is replaced.

    Args:
        license: the Hub's identifier.
        origin: the published weights, if they are these.

    Raises:
        InputError: the network or its preprocessing cannot be described, there is something else at `folder`,
            or it cannot be written.
    """
    config = json.dumps(timm_config(spec, license), indent=2)
    with replacing(folder, _is_ours) as temporary:
        temporary.mkdir()
        write_torch_file(tensors, temporary / _WEIGHTS, spec)
        (temporary / CONFIG).write_text(config + "\n", encoding="utf-8")
        (temporary / _README).write_text(model_card(spec, license, origin), encoding="utf-8")


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir() or folder.is_symlink():
        return False
    names = {path.name for path in folder.iterdir()}
    has_our_card = starts_with(f"- {_TAG}\n".encode())
    return not names or (names == {CONFIG, _WEIGHTS, _README} and has_our_card(folder / _README))


def license_id(text: str) -> str:
    """Returns the Hub's identifier of a license, in lower case, such as apache-2.0 for Apache-2.0."""
    if not _LICENSE.fullmatch(text.lower()):
        raise InputError(f"a license is an identifier such as apache-2.0, mit or other; got {text!r}")
    return text.lower()


def read_folder(folder: Path) -> tuple[Path, ModelSpec]:
    """Returns the file of weights in a folder, and the network that config.json describes.

    Raises `InputError` if one of the files is missing or damaged, or for other networks than ours.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"weight file {folder} is a folder, and has no {CONFIG}")
    weights = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise InputError(f"{folder} has no weights: neither {' nor '.join(_WEIGHT_FILES)}")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise InputError(f"{path} is too large: over {_LARGEST_CONFIG} bytes")
    with refuse_damage(path):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            return weights, _described(config, weights.stat().st_size)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def with_all_digits(spec: ModelSpec, exact: ModelSpec | None) -> ModelSpec:
    """Returns `exact`, the description in the weights, if config.json, read as `spec`, says the same.

    config.json has rounded statistics, but may have been edited.
    """
    with contextlib.suppress(InputError):
        if exact is not None and _described(timm_config(exact)) == spec:
            return exact
    return spec


def _described(config: Any, file_size: float = math.inf) -> ModelSpec:
    """Returns the network that the content of a config.json describes."""
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise InputError("it names no architecture, so it is not in timm's format")
    given = config.get("pretrained_cfg", config)
    arguments = dict(config.get("model_args") or {})
    pooling = arguments.pop("global_pool", config.get("global_pool", "avg"))
    if pooling != "avg":
        raise InputError(f"networks with global_pool {one_line(pooling)} are not supported")
    if unknown := sorted(arguments.keys() - _HARMLESS_ARGUMENTS):
        raise InputError(f"networks with model_args {one_line(', '.join(unknown))} are not supported")
    channels, height, width = given.get("input_size") or _SHAPE
    classes = config.get("num_classes", given.get("num_classes", _CLASSES))
    if classes == 0:
        raise InputError("the network has no classifier: num_classes is 0")
    mean, std = given.get("mean"), given.get("std")
    usual = Normalization.imagenet()
    fields = {
        "model": _our_name(config["architecture"]),
        "overrides": {},
        "classes": classes,
        "input_shape": (height, width, arguments.get("in_chans", channels)),
        "resize": _resize(given, height),
        "interpolation": given.get("interpolation") or _INTERPOLATION,
        "normalization": {
            "mean": [round(255 * value, 10) for value in mean] if mean else usual.mean,
            "std": [round(255 * value, 10) for value in std] if std else usual.std,
        },
        "labels": _labels(config, given, classes),
    }
    return ModelSpec.from_json(json.dumps(fields), file_size)


def _our_name(architecture: str) -> str:
    name = architecture.split(".")[0]  # without the tag of published weights
    for ours, config in MODELS.items():
        with contextlib.suppress(InputError):
            if torch_model(config) == name:
                return ours
    raise InputError(f"timm's {one_line(name)} is not a network of this package")


def _resize(given: Mapping[str, Any], size: int) -> int | None:
    share, mode = given.get("crop_pct") or _CROP, given.get("crop_mode") or "center"
    if mode == "center":
        return math.floor(size / share)
    if mode == "squash" and share == 1:
        return None
    raise InputError(f"crop_mode {one_line(mode)} with crop_pct {one_line(share)} is not supported")


def _labels(config: Mapping[str, Any], given: Mapping[str, Any], classes: int) -> list[str]:
    """Returns the class names; none if they are not one per class."""
    names: Any = config.get("label_names") or given.get("label_names") or given.get("labels")
    if not isinstance(names, dict | list) or len(names) != classes:
        return []
    if isinstance(names, dict):
        names = [names.get(str(index)) for index in range(classes)]
    return names if all(isinstance(name, str) for name in names) else []


def model_card(spec: ModelSpec, license: str = UNKNOWN, origin: PretrainedWeights | None = None) -> str:
    """Returns the model card, Markdown with the Hub's front matter."""
    theirs, ours = torch_model(spec.config), zoo_name(spec.config)
    tags = "".join(f"- {tag}\n" for tag in ("image-classification", "timm", "keras", _TAG))
    known = (
        "The license of the weights is not known." if license == UNKNOWN else f"`{license}` for the weights."
    )
    trained = "How the weights were trained is not described here."
    if origin is not None:
        trained = (
            f"The weights are `{origin.name}` for `{origin.model}`, published at {origin.url}. Their "
            f"accuracy on ImageNet's validation images, as published ({origin.metrics_source}): "
            f"top-1 {origin.top1:.2f} %, top-5 {origin.top5:.2f} %."
        )
    # KerasHub knows these architectures, for RGB images.
    hub = ""
    if re.fullmatch(r"resnet\d+", theirs) and spec.input_shape[2] == 3:
        hub = _CODE.format(_KERASHUB)
    return _CARD.format(
        license=license,
        tags=tags,
        theirs=theirs,
        classes=spec.classes,
        trained=trained,
        preprocessing=_preprocessing(spec.preprocessing.for_channels(spec.input_shape[2])),
        timm=_CODE.format(_TIMM),
        ours=_CODE.format(
            f'import keras_resnet\n\nmodel = keras_resnet.build_model("{ours}", weights=folder)'
        ),
        hub=hub,
        known=known,
    )


def _preprocessing(preprocessing: Preprocessing) -> str:
    size, normalization = preprocessing.size, preprocessing.normalization
    crop = f"resize the image to {size} x {size} pixels ({preprocessing.interpolation})"
    if preprocessing.resize is not None:
        crop = (
            f"resize the shorter side of the image to {preprocessing.resize} pixels "
            f"({preprocessing.interpolation}), crop the {size} x {size} pixels in its center"
        )
    mean, std = ([f"{value:g}" for value in values] for values in (normalization.mean, normalization.std))
    return f"{crop}, subtract ({', '.join(mean)}) from the pixels 0 to 255, and divide by ({', '.join(std)})"


_TIMM = """\
import timm

model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()  # from the Hub: "hf-hub:USER/NAME"
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)"""

_KERASHUB = """\
import keras_hub

classifier = keras_hub.models.ImageClassifier.from_preset(folder)
# `inputs` are prepared as above. `classifier.predict` takes pixels 0-255, which it resizes by its own rule.
logits = classifier(inputs)"""

_CODE = """
```python
{}
```
"""

_CARD = """\
---
library_name: timm
license: {license}
pipeline_tag: image-classification
tags:
{tags}---

# {theirs}

An image classifier with {classes} classes: timm's `{theirs}`, of "Deep Residual Learning for Image \
Recognition" (He et al., 2015, https://arxiv.org/abs/1512.03385) and its successors. Written by the Python \
package `keras_resnet`.

## Training

{trained}

## Input and output

As in `config.json`: {preprocessing}. The outputs are logits.

## Use

`folder` is the path of this folder.
{timm}{ours}{hub}
## License

{known} The training data has its own terms.
"""
