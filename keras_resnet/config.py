"""The zoo as one table: every network of "Deep Residual Learning for Image Recognition" as a row."""

import dataclasses
from typing import Literal

from keras_resnet.errors import InputError, unknown_name


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """One network, as data.

    A plain twin of a residual network is `dataclasses.replace(config, shortcut=None)`.

    Attributes:
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1); Fig. 5.
        stage_depths: blocks in each stage (Table 1, section 4.2).
        stage_filters: filters of the 3x3 convolutions of each stage.
        stem: "imagenet" (7x7/2 convolution and 3x3/2 max-pooling) or "cifar" (3x3 convolution).
        shortcut: section 3.3's options. "A": identity, zero-padded where the width grows; "B":
            projection where the shape changes, identity elsewhere; "C": projections everywhere;
            None: no shortcuts, a plain net.
        bottleneck_stride: which convolution of a bottleneck carries the stride: "1x1" (the first,
            as in the paper's released models) or "3x3" ("v1.5").
        input_size: height and width, in pixels, that the network was designed for.
        classes: the default width of the last layer.
    """

    block: Literal["basic", "bottleneck"]
    stage_depths: tuple[int, ...]
    stage_filters: tuple[int, ...]
    stem: Literal["imagenet", "cifar"]
    shortcut: Literal["A", "B", "C"] | None
    bottleneck_stride: Literal["1x1", "3x3"] = "1x1"
    input_size: int = 224
    classes: int = 1000

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise InputError(f"{field} must be one of {', '.join(map(repr, choices))}; got {value!r}")
        for field in ("stage_depths", "stage_filters"):
            value = tuple(getattr(self, field))
            if not value or not all(isinstance(n, int) and n > 0 for n in value):
                raise InputError(f"{field} must be a tuple of positive integers; got {value!r}")
            object.__setattr__(self, field, value)
        if len(self.stage_depths) != len(self.stage_filters):
            raise InputError(
                f"stage_depths {self.stage_depths} and stage_filters {self.stage_filters} differ in length"
            )

    @property
    def expansion(self) -> int:
        """Output channels of a block over its 3x3 filters."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def weighted_layers(self) -> int:
        """Convolutions and fully connected layers on the main path: the number in a network's name."""
        return 2 + sum(self.stage_depths) * (3 if self.block == "bottleneck" else 2)

    @property
    def total_stride(self) -> int:
        """Input pixels a pixel of the last feature map; also the least input size."""
        return (4 if self.stem == "imagenet" else 1) * 2 ** (len(self.stage_depths) - 1)

    def replace(self, **overrides) -> "ResNetConfig":
        """A copy with other fields; `InputError` for a field that does not exist."""
        fields = {field.name for field in dataclasses.fields(self)}
        for name in overrides:
            if name not in fields:
                raise unknown_name("network option", name, fields)
        return dataclasses.replace(self, **overrides)


_CHOICES = {
    "block": ("basic", "bottleneck"),
    "stem": ("imagenet", "cifar"),
    "shortcut": ("A", "B", "C", None),
    "bottleneck_stride": ("1x1", "3x3"),
}

_IMAGENET_FILTERS = (64, 128, 256, 512)


def _basic(depths, **kwargs):
    return ResNetConfig("basic", depths, _IMAGENET_FILTERS, "imagenet", **{"shortcut": "B", **kwargs})


def _bottleneck(depths, **kwargs):
    return ResNetConfig("bottleneck", depths, _IMAGENET_FILTERS, "imagenet", shortcut="B", **kwargs)


def _cifar(depth, shortcut="A"):
    # Section 4.2: 6n + 2 layers, n blocks for each of the feature map sizes 32, 16 and 8.
    blocks = (depth - 2) // 6
    return ResNetConfig("basic", (blocks,) * 3, (16, 32, 64), "cifar", shortcut, input_size=32, classes=10)


MODELS: dict[str, ResNetConfig] = {
    "resnet18": _basic((2, 2, 2, 2)),
    "resnet34": _basic((3, 4, 6, 3)),
    "resnet50": _bottleneck((3, 4, 6, 3)),
    "resnet101": _bottleneck((3, 4, 23, 3)),
    "resnet152": _bottleneck((3, 8, 36, 3)),
    "resnet50_v1_5": _bottleneck((3, 4, 6, 3), bottleneck_stride="3x3"),
    "resnet101_v1_5": _bottleneck((3, 4, 23, 3), bottleneck_stride="3x3"),
    "resnet152_v1_5": _bottleneck((3, 8, 36, 3), bottleneck_stride="3x3"),
    "plain18": _basic((2, 2, 2, 2), shortcut=None),
    "plain34": _basic((3, 4, 6, 3), shortcut=None),
    **{f"cifar_resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"cifar_plain{depth}": _cifar(depth, shortcut=None) for depth in (20, 32, 44, 56, 110)},
}


def list_models() -> list[str]:
    """The names that `build_model` knows, in the order of the paper."""
    return list(MODELS)


def get_config(name: str, **overrides) -> ResNetConfig:
    """The zoo's row `name`, with fields replaced by `overrides`.

    Raises:
        InputError: the name, or a field, does not exist; it says which are near.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name].replace(**overrides)
