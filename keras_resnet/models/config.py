"""The zoo as one table: the networks of "Deep Residual Learning for Image Recognition" and later ones."""

import dataclasses
import functools
from typing import Any, Literal, TypedDict, get_args

from keras_resnet.errors import InputError, require, unknown_name

Block = Literal["basic", "bottleneck", "preactivation"]
Stem = Literal["imagenet", "deep", "cifar"]
Shortcut = Literal["A", "B", "C", "D"] | None  # None: a plain network
BottleneckStride = Literal["1x1", "3x3"]
Shape = tuple[int | None, ...]  # of one image: (height, width, channels), or channels first


class ConfigOverrides(TypedDict, total=False):
    """The fields of `ResNetConfig` as keyword arguments; `classes` is an argument of its own."""

    block: Block
    stage_depths: tuple[int, ...]
    stage_filters: tuple[int, ...]
    stem: Stem
    shortcut: Shortcut
    bottleneck_stride: BottleneckStride
    groups: int
    width_per_group: int
    batch_norm: bool
    input_size: int


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The architecture of a network. Its plain counterpart is `config.replace(shortcut=None)`.

    Attributes:
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1); Fig. 5. "preactivation":
            a bottleneck that normalizes before its convolutions ("Identity Mappings in Deep Residual
            Networks", He et al., 2016, Fig. 4e), with the stride in a stage's last block and biases
            where no normalization follows, as in keras.applications' V2 networks.
        stage_depths: blocks in each stage (Table 1, section 4.2).
        stage_filters: filters of the 3x3 convolutions of each stage, for one group of width 64.
        stem: "imagenet" (7x7/2 convolution and 3x3/2 max-pooling), "deep" (three 3x3 convolutions
            instead of the 7x7; "Bag of Tricks", He, T. et al., 2019, ResNet-C) or "cifar" (one 3x3).
        shortcut: section 3.3's options. "A": identity, zero-padded where the width grows; "B":
            projection where the shape changes, identity elsewhere; "C": projections everywhere;
            "D": B with average pooling instead of a projection's stride ("Bag of Tricks", ResNet-D).
            None: a plain network without shortcuts.
        bottleneck_stride: which convolution of a bottleneck carries the stride: "1x1" (the first,
            as in the paper's released models) or "3x3" ("v1.5").
        groups: of a bottleneck's 3x3 convolution: ResNeXt's cardinality (Xie et al., 2017).
        width_per_group: filters of each of these groups where `stage_filters` is 64; 128 with one
            group makes the wide networks (Zagoruyko and Komodakis, 2016).
        batch_norm: whether convolutions are normalized; without it each has a bias instead.
        input_size: height and width, in pixels, that the network was designed for.
        classes: the default number of classes.
    """

    block: Block
    stage_depths: tuple[int, ...]
    stage_filters: tuple[int, ...]
    stem: Stem
    shortcut: Shortcut
    bottleneck_stride: BottleneckStride = "1x1"
    groups: int = 1
    width_per_group: int = 64
    batch_norm: bool = True
    input_size: int = 224
    classes: int = 1000

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            require(value in choices, f"{field} must be one of {', '.join(map(repr, choices))}", value)
        for field in ("stage_depths", "stage_filters"):
            value = getattr(self, field)
            is_list = isinstance(value, tuple | list) and bool(value)
            valid = is_list and all(isinstance(n, int) and n > 0 for n in value)
            require(valid, f"{field} must be a tuple of positive integers", value)
            object.__setattr__(self, field, tuple(value))
        if len(self.stage_depths) != len(self.stage_filters):
            raise InputError(
                f"stage_depths {self.stage_depths} and stage_filters {self.stage_filters} differ in length"
            )
        for field in ("groups", "width_per_group"):
            value = getattr(self, field)
            valid = isinstance(value, int) and not isinstance(value, bool) and value > 0
            require(valid, f"{field} must be a positive integer", value)
        require(isinstance(self.batch_norm, bool), "batch_norm must be True or False", self.batch_norm)
        if self.block == "basic" and (self.groups, self.width_per_group) != (1, 64):
            raise InputError("groups and width_per_group are a bottleneck's; a basic block has neither")
        valid = self.block != "preactivation" or self.shortcut != "D"
        require(valid, "a pre-activation block has shortcut option A, B, C or None", self.shortcut)
        if min(map(self.inner_filters, self.stage_filters)) < 1:
            raise InputError(
                f"width_per_group {self.width_per_group} leaves stage_filters {self.stage_filters} no filters"
            )

    @property
    def expansion(self) -> int:
        """Output channels of a block over its 3x3 filters."""
        return 1 if self.block == "basic" else 4

    def inner_filters(self, filters: int) -> int:
        """Filters of the 3x3 convolutions in a stage whose `stage_filters` is `filters`."""
        return filters * self.width_per_group // 64 * self.groups

    @property
    def weighted_layers(self) -> int:
        """Layers on the main path: the number in the network's name, plus two with a deep stem."""
        in_a_block = 2 if self.block == "basic" else 3
        return (4 if self.stem == "deep" else 2) + in_a_block * sum(self.stage_depths)

    @property
    def total_stride(self) -> int:
        """Size of the input over the size of the last feature map; also the least input size."""
        return self.stem_stride * 2 ** (len(self.stage_depths) - 1)

    @property
    def stem_stride(self) -> int:
        """Size of the input over the size of the first stage's feature map."""
        return 1 if self.stem == "cifar" else 4

    @property
    def architecture(self) -> dict:
        """The fields that define the network's function, without its input size and classes."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("input_size", "classes")}

    def replace(self, **overrides: Any) -> "ResNetConfig":
        """Returns a copy with other fields; raises `InputError` for a field that does not exist."""
        for name in overrides:
            if name not in self.__dataclass_fields__:
                raise unknown_name("network option", name, self.__dataclass_fields__)
        return dataclasses.replace(self, **overrides)


_CHOICES = {
    "block": get_args(Block),
    "stem": get_args(Stem),
    "shortcut": ("A", "B", "C", "D", None),
    "bottleneck_stride": get_args(BottleneckStride),
}

_imagenet = functools.partial(ResNetConfig, stage_filters=(64, 128, 256, 512), stem="imagenet", shortcut="B")
_basic = functools.partial(_imagenet, "basic")
_bottleneck = functools.partial(_imagenet, "bottleneck")
_v1_5 = functools.partial(_bottleneck, bottleneck_stride="3x3")
_v2 = functools.partial(_imagenet, "preactivation", bottleneck_stride="3x3")
_d = functools.partial(_v1_5, stem="deep", shortcut="D")


def _cifar(depth: int, shortcut: Shortcut = "A") -> ResNetConfig:
    # Section 4.2: 6n + 2 layers, n blocks for each of the feature map sizes 32, 16 and 8.
    blocks = (depth - 2) // 6
    return ResNetConfig("basic", (blocks,) * 3, (16, 32, 64), "cifar", shortcut, input_size=32, classes=10)


MODELS: dict[str, ResNetConfig] = {
    "resnet18": _basic((2, 2, 2, 2)),
    "resnet34": _basic((3, 4, 6, 3)),
    "resnet50": _bottleneck((3, 4, 6, 3)),
    "resnet101": _bottleneck((3, 4, 23, 3)),
    "resnet152": _bottleneck((3, 8, 36, 3)),
    "resnet50_v1_5": _v1_5((3, 4, 6, 3)),
    "resnet101_v1_5": _v1_5((3, 4, 23, 3)),
    "resnet152_v1_5": _v1_5((3, 8, 36, 3)),
    "plain18": _basic((2, 2, 2, 2), shortcut=None),
    "plain34": _basic((3, 4, 6, 3), shortcut=None),
    **{f"cifar_resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"cifar_plain{depth}": _cifar(depth, shortcut=None) for depth in (20, 32, 44, 56, 110)},
    "resnet18d": _basic((2, 2, 2, 2), stem="deep", shortcut="D"),
    "resnet34d": _basic((3, 4, 6, 3), stem="deep", shortcut="D"),
    "resnet50d": _d((3, 4, 6, 3)),
    "resnet101d": _d((3, 4, 23, 3)),
    "resnet152d": _d((3, 8, 36, 3)),
    "resnet50_v2": _v2((3, 4, 6, 3)),
    "resnet101_v2": _v2((3, 4, 23, 3)),
    "resnet152_v2": _v2((3, 8, 36, 3)),
    "resnext50_32x4d": _v1_5((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": _v1_5((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": _v1_5((3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": _v1_5((3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": _v1_5((3, 4, 23, 3), width_per_group=128),
}
"""The configs of the zoo, by name, in the order of `list_models`."""


def list_models() -> list[str]:
    """Returns the names that `build_model` takes: the paper's in its order, then the later families."""
    return list(MODELS)


def zoo_name(config: ResNetConfig) -> str | None:
    """Returns the name of the network of the zoo with this architecture; None if there is none."""
    return next((name for name, row in MODELS.items() if row.architecture == config.architecture), None)


def get_config(name: str, **overrides: Any) -> ResNetConfig:
    """Returns a config of the zoo; raises `InputError` for a name or a field that does not exist."""
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name].replace(**overrides)
