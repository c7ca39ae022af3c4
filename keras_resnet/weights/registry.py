"""Table of published pretrained weights.

URLs, digests and evaluation crops are those of torchvision 0.29.2 (`torchvision/models/resnet.py`),
timm 1.0.31 (`timm/models/resnet.py`) and keras.applications in Keras 3.15.1 (`resnet.py`,
`resnet_v2.py`). Each entry names the source of its accuracies.
"""

import dataclasses
import math

from keras_resnet.errors import InputError, unknown_name
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.models.config import MODELS, get_config

_IMAGENET = Normalization.imagenet()
# The "caffe" mode of keras.applications, for RGB instead of BGR.
CAFFE = Normalization((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
MINUS_ONE_TO_ONE = Normalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


@dataclasses.dataclass(frozen=True)
class PretrainedWeights:
    """One set of pretrained weights.

    Attributes:
        name: the publisher's name, such as "torchvision_v2"; unique for each network.
        digest: "sha256:" or "md5:" and as many of the first hexadecimal digits as are published.
        top1: single-crop top-1 accuracy on ImageNet's validation set, in percent; `top5` likewise.
        metrics_source: where the accuracies are published.
        license: SPDX identifier of the weights' license.
        preprocessing: used to measure the accuracies.
        labels: label set of the logits; see `keras_resnet.weights.labels`.
        default: whether `weights="imagenet"` selects these weights.
    """

    name: str
    model: str
    url: str
    digest: str
    top1: float
    top5: float
    metrics_source: str
    license: str
    preprocessing: Preprocessing
    labels: str = "imagenet"
    default: bool = False


Entry = PretrainedWeights
"""The first edition's name of `PretrainedWeights`."""


def _pytorch(name, model, url, top1, top5, source, license, preprocessing, default) -> PretrainedWeights:
    digest = "sha256:" + url.removesuffix(".pth").rsplit("-", 1)[1]  # names in PyTorch Hub end with it
    return PretrainedWeights(
        name, model, url, digest, top1, top5, source, license, preprocessing, default=default
    )


def _torchvision(model, version, file, top1, top5, resize, default=False) -> PretrainedWeights:
    name, url = f"torchvision_{version}", f"https://download.pytorch.org/models/{file}.pth"
    source = "torchvision 0.29.2, torchvision/models/resnet.py"
    preprocessing = Preprocessing(224, resize, "bilinear", _IMAGENET)
    return _pytorch(name, model, url, top1, top5, source, "BSD-3-Clause", preprocessing, default)


def _timm(model, tag, folder, file, top1, top5, size, crop, default=False) -> PretrainedWeights:
    # The repository's current owner; GitHub redirects from the former one.
    repository = "https://github.com/huggingface/pytorch-image-models"
    url = f"{repository}/releases/download/v0.1-{folder}/{file}.pth"
    source = f"{repository}/blob/0173a139a2c66db3a41ebfe1d8ac4fb02483642e/results/results-imagenet.csv"
    preprocessing = Preprocessing(size, math.floor(size / crop), "bicubic", _IMAGENET)
    return _pytorch(f"timm_{tag}", model, url, top1, top5, source, "Apache-2.0", preprocessing, default)


def _applications(model: str, md5: str, top1: float, top5: float) -> PretrainedWeights:
    if model.endswith("_v2"):
        # Trained and measured at 299; at 224 they lose about six points. The shorter side is not
        # published: 341 is 299 * 256 / 224.
        license, preprocessing = "BSD-3-Clause", Preprocessing(299, 341, "bicubic", MINUS_ONE_TO_ONE)
    else:
        # Shorter side and interpolation are from keras-applications' issue 88, by their author.
        license, preprocessing = "MIT", Preprocessing(224, 256, "bicubic", CAFFE)
    file = f"{model.replace('_', '')}_weights_tf_dim_ordering_tf_kernels.h5"
    url = f"https://storage.googleapis.com/tensorflow/keras-applications/resnet/{file}"
    source = "https://github.com/keras-team/keras-applications#performance"
    name, digest = "keras_applications", f"md5:{md5}"
    return PretrainedWeights(
        name, model, url, digest, top1, top5, source, license, preprocessing, default=True
    )


# A network's default is torchvision's default, else keras.applications', else timm's RA2.
# fmt: off
ENTRIES: tuple[PretrainedWeights, ...] = (
    # network, version, file, top-1, top-5, shorter side
    _torchvision("resnet18", "v1", "resnet18-f37072fd", 69.758, 89.078, 256, default=True),
    _torchvision("resnet34", "v1", "resnet34-b627a593", 73.314, 91.420, 256, default=True),
    _torchvision("resnet50_v1_5", "v1", "resnet50-0676ba61", 76.130, 92.862, 256),
    _torchvision("resnet50_v1_5", "v2", "resnet50-11ad3fa6", 80.858, 95.434, 232, default=True),
    _torchvision("resnet101_v1_5", "v1", "resnet101-63fe2227", 77.374, 93.546, 256),
    _torchvision("resnet101_v1_5", "v2", "resnet101-cd907fc2", 81.886, 95.780, 232, default=True),
    _torchvision("resnet152_v1_5", "v1", "resnet152-394f9c45", 78.312, 94.046, 256),
    _torchvision("resnet152_v1_5", "v2", "resnet152-f82ba261", 82.284, 96.002, 232, default=True),
    _torchvision("resnext50_32x4d", "v1", "resnext50_32x4d-7cdf4587", 77.618, 93.698, 256),
    _torchvision("resnext50_32x4d", "v2", "resnext50_32x4d-1a0047aa", 81.198, 95.340, 232, default=True),
    _torchvision("resnext101_32x8d", "v1", "resnext101_32x8d-8ba56ff5", 79.312, 94.526, 256),
    _torchvision("resnext101_32x8d", "v2", "resnext101_32x8d-110c445d", 82.834, 96.228, 232, default=True),
    _torchvision("resnext101_64x4d", "v1", "resnext101_64x4d-173b62eb", 83.246, 96.454, 232, default=True),
    _torchvision("wide_resnet50_2", "v1", "wide_resnet50_2-95faca4d", 78.468, 94.086, 256),
    _torchvision("wide_resnet50_2", "v2", "wide_resnet50_2-9ba9bcbe", 81.602, 95.758, 232, default=True),
    _torchvision("wide_resnet101_2", "v1", "wide_resnet101_2-32ee1156", 78.848, 94.284, 256),
    _torchvision("wide_resnet101_2", "v2", "wide_resnet101_2-d733dc28", 82.510, 96.020, 232, default=True),

    # network, MD5, top-1, top-5
    _applications("resnet50", "2cb95161c43110f7111970584f804107", 74.928, 92.060),
    _applications("resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5", 76.420, 92.786),
    _applications("resnet152", "100835be76be38e30d865e96f2aaae62", 76.604, 93.118),
    _applications("resnet50_v2", "3ef43a0b657b3be2300d5770ece849e0", 75.960, 93.034),
    _applications("resnet101_v2", "6343647c601c52e1368623803854d971", 77.234, 93.816),
    _applications("resnet152_v2", "a49b44d1979771252814e80f8ec446f9", 78.032, 94.162),

    # network, tag, folder, file, top-1, top-5, input size, crop ratio
    # All that timm trained on ImageNet-1k and publishes in its GitHub releases.
    _timm("resnet18", "a1", "rsb-weights", "resnet18_a1_0-d63eafa0", 73.158, 91.026, 288, 1.0),
    _timm("resnet18", "a2", "rsb-weights", "resnet18_a2_0-b61bd467", 72.372, 90.596, 288, 1.0),
    _timm("resnet18", "a3", "rsb-weights", "resnet18_a3_0-40c531c8", 68.254, 88.176, 224, 0.95),
    _timm("resnet34", "a1", "rsb-weights", "resnet34_a1_0-46f8f793", 77.918, 93.766, 288, 1.0),
    _timm("resnet34", "a2", "rsb-weights", "resnet34_a2_0-82d47d71", 77.158, 93.274, 288, 1.0),
    _timm("resnet34", "a3", "rsb-weights", "resnet34_a3_0-a20cabb6", 72.970, 91.108, 224, 0.95),
    _timm("resnet34", "bt", "weights", "resnet34-43635321", 76.480, 93.354, 288, 0.95),
    _timm("resnet50_v1_5", "a1", "rsb-weights", "resnet50_a1_0-14fe96d1", 81.214, 95.102, 288, 1.0),
    _timm("resnet50_v1_5", "a1h", "rsb-weights", "resnet50_a1h2_176-001a1197", 80.676, 95.306, 224, 1.0),
    _timm("resnet50_v1_5", "a2", "rsb-weights", "resnet50_a2_0-a2746f79", 80.772, 94.988, 288, 1.0),
    _timm("resnet50_v1_5", "a3", "rsb-weights", "resnet50_a3_0-59cae1ef", 78.048, 93.780, 224, 0.95),
    _timm("resnet50_v1_5", "b1k", "rsb-weights", "resnet50_b1k-532a802a", 80.706, 95.432, 288, 1.0),
    _timm("resnet50_v1_5", "b2k", "rsb-weights", "resnet50_b2k-1ba180c1", 80.454, 95.318, 288, 1.0),
    _timm("resnet50_v1_5", "c1", "rsb-weights", "resnet50_c1-5ba5e060", 80.912, 95.552, 288, 1.0),
    _timm("resnet50_v1_5", "c2", "rsb-weights", "resnet50_c2-d01e05b2", 80.870, 95.534, 288, 1.0),
    _timm("resnet50_v1_5", "d", "rsb-weights", "resnet50_d-f39db8af", 80.972, 95.430, 288, 1.0),
    _timm("resnet50_v1_5", "ram", "weights", "resnet50_ram-a26f946b", 79.976, 95.052, 288, 0.95),
    _timm("resnet50_v1_5", "am", "weights", "resnet50_am-6c502b37", 78.998, 94.396, 224, 0.875),
    _timm("resnet50_v1_5", "ra", "weights", "resnet50_ra-85ebb6e5", 79.836, 94.966, 288, 0.95),
    _timm("resnet50_v1_5", "bt", "weights", "rw_resnet50-86acaeed", 79.640, 94.892, 288, 0.95),
    _timm("resnet101_v1_5", "a1h", "rsb-weights", "resnet101_a1h-36d3f2aa", 82.778, 96.310, 288, 1.0),
    _timm("resnet101_v1_5", "a1", "rsb-weights", "resnet101_a1_0-cdcb52a9", 82.322, 95.632, 288, 1.0),
    _timm("resnet101_v1_5", "a2", "rsb-weights", "resnet101_a2_0-6edb36c7", 82.236, 95.730, 288, 1.0),
    _timm("resnet101_v1_5", "a3", "rsb-weights", "resnet101_a3_0-1db14157", 79.814, 94.606, 224, 0.95),
    _timm("resnet152_v1_5", "a1h", "rsb-weights", "resnet152_a1h-dc400468", 83.450, 96.538, 288, 1.0),
    _timm("resnet152_v1_5", "a1", "rsb-weights", "resnet152_a1_0-2eee8a7a", 82.732, 95.720, 288, 1.0),
    _timm("resnet152_v1_5", "a2", "rsb-weights", "resnet152_a2_0-b4c6978f", 82.608, 95.752, 288, 1.0),
    _timm("resnet152_v1_5", "a3", "rsb-weights", "resnet152_a3_0-134d4688", 80.546, 95.000, 224, 0.95),
    _timm("resnet18d", "ra2", "weights", "resnet18d_ra2-48a79e06", 73.794, 91.838, 288, 0.95, default=True),
    _timm("resnet34d", "ra2", "weights", "resnet34d_ra2-f8dcfcaf", 78.436, 94.344, 288, 0.95, default=True),
    _timm("resnet50d", "ra2", "weights", "resnet50d_ra2-464e36ba", 81.356, 95.738, 288, 0.95, default=True),
    _timm("resnet50d", "a1", "rsb-weights", "resnet50d_a1_0-e20cff14", 81.450, 95.218, 288, 1.0),
    _timm("resnet50d", "a2", "rsb-weights", "resnet50d_a2_0-a3adc64d", 81.164, 95.084, 288, 1.0),
    _timm("resnet50d", "a3", "rsb-weights", "resnet50d_a3_0-403fdfad", 78.722, 94.236, 224, 0.95),
    _timm("resnet101d", "ra2", "weights", "resnet101d_ra2-2803ffab", 83.016, 96.452, 320, 1.0, default=True),
    _timm("resnet152d", "ra2", "weights", "resnet152d_ra2-5cac0439", 83.684, 96.740, 320, 1.0, default=True),
    _timm("resnext50_32x4d", "a1h", "rsb-weights", "resnext50_32x4d_a1h-0146ab0a", 82.014, 95.934, 288, 1.0),
    _timm("resnext50_32x4d", "a1", "rsb-weights", "resnext50_32x4d_a1_0-b5a91a1d", 81.466, 95.174, 288, 1.0),
    _timm("resnext50_32x4d", "a2", "rsb-weights", "resnext50_32x4d_a2_0-efc76add", 81.304, 95.096, 288, 1.0),
    _timm("resnext50_32x4d", "a3", "rsb-weights", "resnext50_32x4d_a3_0-3e450271", 79.268, 94.306, 224, 0.95),
    _timm("resnext50_32x4d", "ra", "weights", "resnext50_32x4d_ra-d733960d", 80.698, 95.390, 288, 0.95),
    _timm("resnext101_64x4d", "c1", "tpu-weights", "resnext101_64x4d_c-0d0e0cc0", 83.156, 96.374, 288, 1.0),
    _timm("wide_resnet50_2", "racm", "weights", "wide_resnet50_racm-8234f177", 82.280, 96.064, 288, 0.95),
)
# fmt: on


def entries_of(model: str | None = None) -> list[PretrainedWeights]:
    """Returns the entries of a network, or of all in the zoo's order; each network's default is the first."""
    if model is None:
        return [entry for known in MODELS for entry in entries_of(known)]
    get_config(model)  # raises `InputError` for an unknown network
    return sorted((entry for entry in ENTRIES if entry.model == model), key=lambda entry: not entry.default)


def find_entries(name: str) -> list[PretrainedWeights]:
    """Returns the entries of all networks with this name; "imagenet" gives every network's default."""
    found = [entry for entry in ENTRIES if name == entry.name or (name == "imagenet" and entry.default)]
    if not found:
        raise unknown_name("weights", name, {"imagenet", *(entry.name for entry in ENTRIES)})
    return found


def list_weights(model: str | None = None) -> list[str]:
    """Lists the names of pretrained weights, besides "imagenet"; each network's default is the first.

    Without `model`, full names of all networks are returned, such as "resnet50_v1_5/torchvision_v2".
    """
    if model is None:
        return [f"{entry.model}/{entry.name}" for entry in entries_of()]
    return [entry.name for entry in entries_of(model)]


def get_entry(name: str, model: str) -> PretrainedWeights:
    """Returns the entry for a name of `list_weights(model)`, or for "imagenet", the network's default.

    If there is none, the message of the `InputError` names networks that have it.
    """
    entries = entries_of(model)
    for entry in entries:
        if name == entry.name or (name == "imagenet" and entry.default):
            return entry
    if not entries:
        wanted = "pretrained weights" if name == "imagenet" else f"weights {name!r}"
        raise InputError(
            f"{model} has no {wanted}: none are published for it; pass a file's path, or see list_weights()"
        )
    names = [entry.name for entry in entries]
    others = [entry.model for entry in ENTRIES if entry.name == name]
    if others:
        # Those of the same depth, such as resnet50 and resnet50_v1_5, are the likeliest.
        siblings = [other for other in others if _kind_and_depth(other) == _kind_and_depth(model)]
        raise InputError(
            f"{model} has no weights {name!r}: they are for {', '.join(siblings or others[:3])}; "
            f"for {model} there are {', '.join(names)}"
        )
    raise unknown_name(f"weights of {model}", name, ["imagenet", *names])


def _kind_and_depth(model: str) -> str:
    return model.split("_")[0].removesuffix("d")
