"""Preprocessing of images for a network, described by plain values."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from keras_resnet.errors import InputError, unknown_name

# Per-channel statistics of the ImageNet training set, in 0-255 units (published by
# torchvision as 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225).
_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)

_ARRAYS = {"mean": "normalization/mean", "std": "normalization/std"}  # names in checkpoints

REFERENCE_SIZE = 224
"""The crop size to which the augmentations' shorter sides refer."""

_EVALUATION_SIDE = 256
"""The shorter side of an image before the center crop of `REFERENCE_SIZE`."""


def usual_resize(size: int) -> int:
    """The usual shorter side of an image before a center crop of `size`."""
    return round(size * _EVALUATION_SIDE / REFERENCE_SIZE)


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Normalization:
    """`(pixels - mean) / std`, in 0-255 units, with one number per channel.

    For the paper's per-pixel mean (section 4.2), `mean` is nested sequences (height, width, channels).

    Raises:
        InputError: the values are not finite numbers, or a `std` is not positive.
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

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns mean and std as float64 arrays under their names in checkpoints."""
        return {name: np.asarray(getattr(self, field), "float64") for field, name in _ARRAYS.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Normalization | None":
        """Reads the result of `to_arrays` from a checkpoint's arrays; None if they lack it."""
        if not arrays.keys() >= set(_ARRAYS.values()):
            return None
        return cls(*(arrays[name].tolist() for name in _ARRAYS.values()))

    def as_scale_and_offset(self) -> tuple[list, list]:
        """`(scale, offset)` for `keras.layers.Rescaling`, which can be exported to every format."""
        scale = 1.0 / np.asarray(self.std, "float64")
        offset = -np.asarray(self.mean, "float64") * scale
        return scale.tolist(), offset.tolist()

    @property
    def shape(self) -> tuple:
        """(channels,), or (height, width, channels) if the statistics are per pixel.

        Raises:
            InputError: the shapes of mean and std do not match.
        """
        shapes = np.shape(self.mean), np.shape(self.std)
        try:
            shape = np.broadcast_shapes(*shapes)
        except ValueError:
            shape = ()
        if len(shape) not in (1, 3) or 0 in shape:
            raise InputError(
                "the normalization's mean and std need one number per channel, or the mean one per pixel;"
                f" their shapes are {shapes[0]} and {shapes[1]}"
            )
        return shape

    def for_channels(self, channels: int) -> "Normalization":
        """Adapts per-channel statistics to another number of channels.

        For one channel, means and stds are averaged; otherwise they are repeated cyclically, like the
        kernels of an adapted first convolution. Raises `InputError` for per-pixel statistics.
        """
        if not _is_integer(channels) or channels < 1:
            raise InputError(f"the number of channels must be a positive integer, not {channels!r}")
        shape = self.shape
        if shape[-1] == channels:
            return self
        if len(shape) == 3:
            raise InputError(
                f"per-pixel statistics of {shape[-1]} channels cannot be converted to {channels}"
            )
        if channels == 1:
            return Normalization((float(np.mean(self.mean)),), (float(np.mean(self.std)),))
        return Normalization(*(np.resize(values, channels).tolist() for values in (self.mean, self.std)))

    @classmethod
    def identity(cls, channels: int) -> "Normalization":
        """Mean 0 and standard deviation 1 for each channel."""
        return cls((0.0,) * channels, (1.0,) * channels)

    @classmethod
    def imagenet(cls) -> "Normalization":
        """ImageNet's published per-channel statistics."""
        return cls(_IMAGENET_MEAN, _IMAGENET_STD)


INTERPOLATIONS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Converts decoded images to the input of a network, as in the evaluation of its weights.

    Attributes:
        size: height and width of the network's input.
        resize: shorter side before the center crop, in pixels; None resizes the whole image to `size`,
            ignoring its aspect.
        interpolation: antialiased when shrinking.
        normalization: applied last.

    Raises:
        InputError: `size` is not a positive integer, `resize` is smaller, or the interpolation is unknown.
    """

    size: int
    resize: int | None
    interpolation: Literal["bilinear", "bicubic"]
    normalization: Normalization

    def __post_init__(self):
        if not _is_integer(self.size) or self.size < 1:
            raise InputError(f"the size must be a positive integer of pixels, not {self.size!r}")
        if self.resize is not None and (not _is_integer(self.resize) or self.resize < self.size):
            raise InputError(
                f"resize must be None or an integer of at least the size, {self.size}, not {self.resize!r}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", self.interpolation, INTERPOLATIONS)
        if not isinstance(self.normalization, Normalization):
            kind = type(self.normalization).__name__
            raise InputError(f"the normalization must be a Normalization, not {kind}")

    def __call__(self, images: Any, crop: bool = True) -> np.ndarray:
        """Prepares one image, a batch, or a list of images of different sizes.

        Resizing and crop are those of torchvision's evaluation. uint8 images are resized bit for bit as
        by Pillow (width first, then height), with rounding to 0-255 after each pass. Float images are
        neither rounded nor clipped. Gray images are repeated if the normalization has three channels.

        Args:
            images: NumPy arrays or Keras tensors, uint8 or float, 0-255: (height, width, channels),
                (height, width) if gray, or a batch (n, height, width, channels); a Pillow image of mode
                RGB or L; or a list of images.
            crop: if False, the images must be of the same size, keep it, and are only normalized.

        Returns:
            float32, (size, size, channels) for one image, (n, size, size, channels) for several.

        Raises:
            InputError: the images are invalid, or their channels do not match the normalization.
        """
        several = isinstance(images, list | tuple)
        if several:
            images = [_as_pixels(image, (2, 3)) for image in images]
        else:
            pixels = _as_pixels(images, (2, 3, 4))
            several = pixels.ndim == 4
            images = list(pixels) if several else [pixels]
        if not images:
            raise InputError("the list of images is empty")
        images = [image[..., None] if image.ndim == 2 else image for image in images]

        statistics = self.normalization.shape
        expected = statistics[-1]
        for channels in (image.shape[-1] for image in images):
            if channels != expected and (channels, expected) != (1, 3):
                advice = (
                    "convert them to gray first" if expected == 1 else "their last axis must be the channels"
                )
                raise InputError(
                    f"the images have {channels} channels and the normalization {expected}; {advice}"
                )
        if crop:
            images = [self._resized_and_cropped(image) for image in images]
        sizes = sorted({image.shape[:2] for image in images})
        if len(sizes) > 1:
            raise InputError(f"without the crop, images must be of one size, not {sizes[0]} and {sizes[1]}")
        if len(statistics) == 3 and statistics[:2] != sizes[0]:
            raise InputError(
                f"the normalization's statistics are for images of {statistics[:2]} pixels, not of {sizes[0]}"
            )
        if expected == 3:
            images = [np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image for image in images]
        prepared = self.normalization(np.stack(images))
        return prepared if several else prepared[0]

    @property
    def channels(self) -> int:
        """The number of channels of the network's input."""
        return self.normalization.shape[-1]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the network's input."""
        return self.size, self.size, self.channels

    def for_channels(self, channels: int) -> "Preprocessing":
        """Adapts the normalization: see `Normalization.for_channels`."""
        return dataclasses.replace(self, normalization=self.normalization.for_channels(channels))

    def for_size(self, size: int) -> "Preprocessing":
        """Adapts the preprocessing to another input size, cropping the same share of an image."""
        resize = self.resize
        if resize is not None and _is_integer(size):
            resize = max(size, round(resize * size / self.size))
        return dataclasses.replace(self, size=size, resize=resize)

    def _resized_and_cropped(self, image: np.ndarray) -> np.ndarray:
        """Resizes and crops with Pillow, with which the accuracy of published weights was measured."""
        shape = image.shape[:2]
        height, width = self.size, self.size
        if self.resize is not None:  # the longer side is truncated, as in torchvision
            height, width = (int(self.resize * length / min(shape)) for length in shape)
        # Rounded half to even, as in torchvision.
        top, left = (round((length - self.size) / 2) for length in (height, width))
        method = Image.Resampling[self.interpolation.upper()]
        channels = []
        for channel in np.moveaxis(image, -1, 0):
            # In one call Pillow 13 resizes the height first for some sizes. uint8 is rounded between the
            # two passes, so their order matters, and published weights were evaluated with the width first.
            wide = Image.fromarray(np.ascontiguousarray(channel)).resize((width, shape[0]), method)
            wide = wide.crop((left, 0, left + self.size, shape[0]))
            channels.append(np.asarray(wide.resize((self.size, height), method)))
        return np.stack(channels, axis=-1)[top : top + self.size]


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_pixels(image, ranks: tuple) -> np.ndarray:
    """Converts an image or a batch to a NumPy array, uint8 or finite float32."""
    if hasattr(image, "__array_interface__") and hasattr(image, "mode"):
        if image.mode not in ("RGB", "L"):
            raise InputError(f"a Pillow image must have mode RGB or L, not {image.mode}; use convert('RGB')")
        image = np.asarray(image)
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        raise InputError(f"images must be arrays or tensors of pixels 0-255, not {type(image).__name__}")
    try:
        import keras  # here, because listing weights must not import Keras

        pixels = np.asarray(keras.ops.convert_to_numpy(image) if keras.ops.is_tensor(image) else image)
    except (ValueError, TypeError, NotImplementedError):
        raise InputError(f"images must hold values, not be symbolic as this {type(image).__name__}") from None
    if pixels.ndim not in ranks:
        several = " or a batch (n, height, width, channels)" if 4 in ranks else ""
        raise InputError(f"an image must be (height, width, channels){several}, not of shape {pixels.shape}")
    if pixels.size == 0:
        raise InputError(f"an image must have pixels, but this has the shape {pixels.shape}")
    if pixels.dtype == "uint8":
        return pixels
    if pixels.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise InputError(f"images must be uint8 or float, 0-255, not {pixels.dtype}")
    with np.errstate(over="ignore"):  # infinity is detected below
        pixels = pixels.astype("float32")
    if not np.isfinite(pixels).all():
        raise InputError("images must hold finite numbers, 0-255; these have NaN or infinity")
    return pixels
