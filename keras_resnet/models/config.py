"""The zoo as one table: the networks of "Deep Residual Learning for Image Recognition" and later ones."""

import dataclasses
from typing import Any, Literal, TypedDict, get_args

from keras_resnet.errors import InputError, unknown_name

Block = Literal["basic", "bottleneck", "preactivation"]
Stem = Literal["imagenet", "deep", "cifar"]
Shortcut = Literal["A", "B", "C", "D"] | None  # None: a plain network
BottleneckStride = Literal["1x1", "3x3"]
Shape = tuple[int | None, ...]  # of one image: (height, width, channels), or channels first


class ConfigOverrides(TypedDict, total=False):
    """The fields of `ResNetConfig` that the functions of the zoo take; `classes` is their own."""

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
    """The architecture of one network.

    A plain twin of a residual network is `dataclasses.replace(config, shortcut=None)`.

    Attributes:
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1); Fig. 5. "preactivation":
            a bottleneck that normalizes before its convolutions ("Identity Mappings in Deep Residual
            Networks", He et al., 2016, Fig. 4e), with the stride in a stage's last block and biases
            where no normalization follows, as keras.applications' V2 networks have it.
        stage_depths: blocks in each stage (Table 1, section 4.2).
        stage_filters: filters of the 3x3 convolutions of each stage, for one group of width 64.
        stem: "imagenet" (7x7/2 convolution and 3x3/2 max-pooling), "deep" (three 3x3 convolutions
            instead of the 7x7; "Bag of Tricks", He, T. et al., 2019, ResNet-C) or "cifar" (one 3x3).
        shortcut: section 3.3's options. "A": identity, zero-padded where the width grows; "B":
            projection where the shape changes, identity elsewhere; "C": projections everywhere;
            "D": B with average pooling instead of a projection's stride ("Bag of Tricks",
            ResNet-D; "vd"); None: no shortcuts, a plain net.
        bottleneck_stride: which convolution of a bottleneck carries the stride: "1x1" (the first,
            as in the paper's released models) or "3x3" ("v1.5").
        groups: of a bottleneck's 3x3 convolution: ResNeXt's cardinality (Xie et al., 2017).
        width_per_group: filters of each of these groups where `stage_filters` is 64; 128 with one
            group makes the wide networks (Zagoruyko and Komodakis, 2016).
        batch_norm: whether convolutions are normalized; without it each has a bias instead.
        input_size: height and width, in pixels, that the network was designed for.
        classes: the default width of the last layer.
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
        for field in ("groups", "width_per_group"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{field} must be a positive integer; got {value!r}")
        if not isinstance(self.batch_norm, bool):
            raise InputError(f"batch_norm must be True or False; got {self.batch_norm!r}")
        if self.block == "basic" and (self.groups, self.width_per_group) != (1, 64):
            raise InputError("groups and width_per_group are a bottleneck's; a basic block has neither")
        if self.block == "preactivation" and self.shortcut == "D":
            raise InputError("a pre-activation block has shortcut option A, B, C or None; got 'D'")
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
        """Convolutions and fully connected layers on the main path: the number in a network's name.

        A deep stem has two more than the name says.
        """
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
        """Returns a copy with other fields; `InputError` for a field that does not exist."""
        fields = {field.name for field in dataclasses.fields(self)}
        for name in overrides:
            if name not in fields:
                raise unknown_name("network option", name, fields)
        return dataclasses.replace(self, **overrides)


_CHOICES = {
    "block": get_args(Block),
    "stem": get_args(Stem),
    "shortcut": ("A", "B", "C", "D", None),
    "bottleneck_stride": get_args(BottleneckStride),
}

_IMAGENET_FILTERS = (64, 128, 256, 512)


def _basic(depths, **kwargs):
    return ResNetConfig("basic", depths, _IMAGENET_FILTERS, "imagenet", **{"shortcut": "B", **kwargs})


def _bottleneck(depths, **kwargs):
    return ResNetConfig("bottleneck", depths, _IMAGENET_FILTERS, "imagenet", **{"shortcut": "B", **kwargs})


def _v1_5(depths, **kwargs):
    return _bottleneck(depths, bottleneck_stride="3x3", **kwargs)


def _d(config):
    return config.replace(stem="deep", shortcut="D")


def _v2(depths):
    return ResNetConfig("preactivation", depths, _IMAGENET_FILTERS, "imagenet", "B", "3x3")


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
    "resnet18d": _d(_basic((2, 2, 2, 2))),
    "resnet34d": _d(_basic((3, 4, 6, 3))),
    "resnet50d": _d(_v1_5((3, 4, 6, 3))),
    "resnet101d": _d(_v1_5((3, 4, 23, 3))),
    "resnet152d": _d(_v1_5((3, 8, 36, 3))),
    "resnet50_v2": _v2((3, 4, 6, 3)),
    "resnet101_v2": _v2((3, 4, 23, 3)),
    "resnet152_v2": _v2((3, 8, 36, 3)),
    "resnext50_32x4d": _v1_5((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": _v1_5((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": _v1_5((3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": _v1_5((3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": _v1_5((3, 4, 23, 3), width_per_group=128),
}


def list_models() -> list[str]:
    """Returns the names that `build_model` takes: the paper's in its order, then the later families."""
    return list(MODELS)


def get_config(name: str, **overrides: Any) -> ResNetConfig:
    """Returns the zoo's config `name`, with fields replaced by `overrides`.

    Raises:
        InputError: the name, or a field, does not exist.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name].replace(**overrides)
