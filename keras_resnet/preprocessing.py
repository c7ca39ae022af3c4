"""What happens to an image between its pixels and a network, as plain values."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_resnet.errors import InputError

# Per-channel statistics of the ImageNet training set, in 0-255 units (the figures that
# torchvision publishes as 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225).
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Normalization:
    """`(pixels - mean) / std`, in 0-255 units.

    Attributes:
        mean: one number a channel, or nested lists (height, width, channels): the per-pixel mean
            that the paper subtracts (section 4.2).
        std: one number a channel; ones where only the mean is subtracted.

    Raises:
        InputError: something else than finite numbers, or a `std` that is not positive.
    """

    mean: Sequence
    std: Sequence

    def __post_init__(self):
        for field in ("mean", "std"):
            try:
                values = np.asarray(getattr(self, field), "float64")
            except (ValueError, TypeError):
                raise InputError(
                    f"the normalization's {field} must hold numbers only, evenly nested"
                ) from None
            if not np.isfinite(values).all() or (field == "std" and values.min(initial=1) <= 0):
                kind = "positive" if field == "std" else "finite"
                raise InputError(f"the normalization's {field} must hold {kind} numbers")
            object.__setattr__(self, field, _as_tuples(values.tolist()))

    def __call__(self, pixels):
        """Normalizes an array or tensor (..., height, width, channels) of pixels 0-255."""
        offset = np.asarray(self.mean, "float32")
        scale = np.float32(1.0) / np.asarray(self.std, "float32")
        return (pixels - offset) * scale

    def as_scale_and_offset(self) -> tuple[list, list]:
        """`(scale, offset)` with `pixels * scale + offset` equal to calling this object.

        The form of `keras.layers.Rescaling`, which exports cleanly to every format.
        """
        scale = 1.0 / np.asarray(self.std, "float64")
        offset = -np.asarray(self.mean, "float64") * scale
        return scale.tolist(), offset.tolist()

    @classmethod
    def imagenet(cls) -> "Normalization":
        """ImageNet's published per-channel statistics."""
        return cls(IMAGENET_MEAN, IMAGENET_STD)
