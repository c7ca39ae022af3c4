"""What happens to an image between its pixels and a network, as plain values."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from keras_resnet.errors import InputError, unknown_name

# Per-channel statistics of the ImageNet training set, in 0-255 units (the figures that
# torchvision publishes as 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225).
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

REFERENCE_SIZE = 224
"""The crop size for which `EVALUATION_SIDE` and the augmentations' shorter sides are given."""

EVALUATION_SIDE = 256
"""The shorter side from which the evaluation's `REFERENCE_SIZE` centre crop is taken."""


def usual_resize(size: int) -> int:
    """The shorter side, in pixels, from which a centre crop of `size` is usually taken."""
    return round(size * EVALUATION_SIDE / REFERENCE_SIZE)


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

    @property
    def shape(self) -> tuple:
        """Of the statistics: (channels,), or (height, width, channels) where they are per pixel.

        Raises:
            InputError: the mean and the std do not fit each other.
        """
        shapes = np.shape(self.mean), np.shape(self.std)
        try:
            shape = np.broadcast_shapes(*shapes)
        except ValueError:
            shape = ()
        if len(shape) not in (1, 3) or 0 in shape:
            raise InputError(
                "the normalization's mean and std must have one number a channel, or a mean one a pixel;"
                f" their shapes are {shapes[0]} and {shapes[1]}"
            )
        return shape

    def for_channels(self, channels: int) -> "Normalization":
        """The same for images of another number of channels.

        For one channel, the means are averaged, and so are the stds; for any other number both are
        repeated cyclically, as the kernels of an adapted first convolution are.

        Raises:
            InputError: `channels` is no positive integer, or the statistics are per pixel and of
                another number of channels.
        """
        if not _is_integer(channels) or channels < 1:
            raise InputError(f"the number of channels must be a positive integer, not {channels!r}")
        shape = self.shape
        if shape[-1] == channels:
            return self
        if len(shape) == 3:
            raise InputError(
                f"per-pixel statistics of {shape[-1]} channels cannot be made ones of {channels}"
            )
        if channels == 1:
            return Normalization((float(np.mean(self.mean)),), (float(np.mean(self.std)),))
        return Normalization(
            *([values[i % len(values)] for i in range(channels)] for values in (self.mean, self.std))
        )

    @classmethod
    def identity(cls, channels: int) -> "Normalization":
        """Mean 0 and standard deviation 1 for each channel."""
        return cls((0.0,) * channels, (1.0,) * channels)

    @classmethod
    def imagenet(cls) -> "Normalization":
        """ImageNet's published per-channel statistics."""
        return cls(IMAGENET_MEAN, IMAGENET_STD)


INTERPOLATIONS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From decoded images to a network's input, as the weights of that network were evaluated.

    Attributes:
        size: height and width of the network's input, pixels.
        resize: pixels to which the shorter side is resized before the centre is cut out; None
            resizes the whole image to `size`, whatever its proportions.
        interpolation: "bilinear" or "bicubic", antialiased where it shrinks.
        normalization: of the pixels, at the end.

    Raises:
        InputError: a `size` that is no positive integer, a `resize` below it, or an unknown
            interpolation.
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

    def __call__(self, images, crop: bool = True) -> np.ndarray:
        """Prepares one image, a batch, or a list of images of different sizes.

        The resizing and the crop are those of torchvision's evaluation. uint8 images come out as
        Pillow resizes them (width first, then height), bit for bit: each pass ends in whole numbers
        0-255. Float images are neither rounded nor clipped. Gray images are repeated where the
        normalization has three channels.

        Args:
            images: uint8 or float, 0-255, NumPy arrays or Keras tensors: (height, width, channels)
                or, gray, (height, width); a batch (n, height, width, channels); a Pillow image of mode
                RGB or L; or a list of images.
            crop: resize, and cut out the centre. Without it the images, which then must be of one
                size, are only normalized.

        Returns:
            A NumPy array, float32, whatever the images came in: (size, size, channels) for one
            image, (n, size, size, channels) for several; without `crop`, of the images' own size.

        Raises:
            InputError: something else than such images, or channels that the normalization has not.
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
        for image in images:
            _check_channels(image.shape[-1], statistics[-1])
        if crop:
            images = [self._resized_and_cut(image) for image in images]
        sizes = sorted({image.shape[:2] for image in images})
        if len(sizes) > 1:
            raise InputError(f"without the crop, images must be of one size, not {sizes[0]} and {sizes[1]}")
        if len(statistics) == 3 and statistics[:2] != sizes[0]:
            raise InputError(
                f"the normalization's statistics are for images of {statistics[:2]} pixels, not of {sizes[0]}"
            )
        if statistics[-1] == 3:
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
        """The same for images of another number of channels: see `Normalization.for_channels`."""
        return dataclasses.replace(self, normalization=self.normalization.for_channels(channels))

    def for_size(self, size: int) -> "Preprocessing":
        """The same for another input size, cutting out the same share of an image."""
        resize = self.resize
        if resize is not None and _is_integer(size):
            resize = max(size, round(resize * size / self.size))
        return dataclasses.replace(self, size=size, resize=resize)

    def resized(self, image: np.ndarray, side: int) -> np.ndarray:
        """A whole image at another size, with its proportions kept; neither cut nor normalized.

        Args:
            image: (height, width, channels), uint8 or float, 0-255.
            side: pixels that the shorter side becomes; the longer one is truncated, as torchvision's.

        Returns:
            (resized height, resized width, channels): uint8 as Pillow resizes it, or float32.

        Raises:
            InputError: something else than such an image, or a side that is no positive integer.
        """
        if not _is_integer(side) or side < 1:
            raise InputError(f"the side must be a positive integer of pixels, not {side!r}")
        image = _as_pixels(image, (3,))
        shape = _resized_shape(image, side)
        return self._window(image, shape, (0, 0), shape)

    def _resized_and_cut(self, image: np.ndarray) -> np.ndarray:
        """(size, size, channels) of an image (height, width, channels), in its dtype."""
        resized = (self.size, self.size)
        if self.resize is not None:
            resized = _resized_shape(image, self.resize)
        # Python's rounding to even, as torchvision's.
        corner = tuple(round((side - self.size) / 2.0) for side in resized)
        return self._window(image, resized, corner, (self.size, self.size))

    def _window(self, image: np.ndarray, resized: tuple, corner: tuple, shape: tuple) -> np.ndarray:
        """The window of `shape` from `corner` (top, left) on, of the image at the size `resized`."""
        rows, row_weights = _taps(image.shape[0], resized[0], corner[0], shape[0], self.interpolation)
        columns, column_weights = _taps(image.shape[1], resized[1], corner[1], shape[1], self.interpolation)
        image = image[rows[0] : rows[-1] + row_weights.shape[1]]
        # As uint8 is rounded between the passes, their order counts. Published weights were evaluated
        # with the width first; Pillow 13 begins with the height for some sizes.
        image = _resample(image.swapaxes(0, 1), columns, column_weights)
        return _resample(image.swapaxes(0, 1), rows - rows[0], row_weights)


def _resized_shape(image: np.ndarray, side: int) -> tuple[int, int]:
    """(height, width) with `side` as the shorter one; the longer is truncated, as torchvision's."""
    shorter = min(image.shape[:2])
    return tuple(int(side * length / shorter) for length in image.shape[:2])


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_pixels(image, ranks: tuple) -> np.ndarray:
    """An image or a batch as a NumPy array, uint8 or finite float32."""
    if hasattr(image, "__array_interface__") and hasattr(image, "mode"):
        if image.mode not in ("RGB", "L"):
            raise InputError(f"a Pillow image must have mode RGB or L, not {image.mode}; use convert('RGB')")
        image = np.asarray(image)
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        raise InputError(f"images must be arrays or tensors of pixels 0-255, not {type(image).__name__}")
    try:
        import keras  # here, because listing weights does not need it

        pixels = keras.ops.convert_to_numpy(image) if keras.ops.is_tensor(image) else np.asarray(image)
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
    with np.errstate(over="ignore"):  # to infinity, which the next line finds
        pixels = pixels.astype("float32")
    if not np.isfinite(pixels).all():
        raise InputError("images must hold finite numbers, 0-255; these have NaN or infinity")
    return pixels


def _check_channels(channels: int, expected: int) -> None:
    if channels == expected or (channels, expected) == (1, 3):
        return
    advice = "convert them to gray first" if expected == 1 else "their last axis must be the channels"
    raise InputError(f"the images have {channels} channels and the normalization {expected}; {advice}")


# The resampling is Pillow's, so that images come out as in the evaluations by which published
# weights are known: the filter is widened by the factor by which it shrinks, and weights for
# uint8 pixels are rounded to multiples of 2^-22.
_WEIGHT_UNIT = 2.0**-22
_BLOCK = 32  # outputs for which one dense matrix is cheaper than their separate taps


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' piecewise cubic with a = -1/2."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_FILTERS = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}  # with half their width


def _taps(
    length: int, resized: int, start: int, size: int, interpolation: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of an axis make up `size` resized ones, from the resized axis' `start` on.

    Args:
        length: of the axis, pixels.
        resized: its length after the resizing.

    Returns:
        The first pixel of each sum, (size,), never falling, and the weights of it and of those that
        follow, (size, taps), zero where the axis has ended.
    """
    if length == resized:
        return np.arange(start, start + size), np.ones((size, 1))
    kernel, support = _FILTERS[interpolation]
    scale = length / resized
    stretch = max(scale, 1.0)
    centers = (np.arange(start, start + size) + 0.5) * scale
    first = np.maximum((centers - support * stretch + 0.5).astype(int), 0)
    stop = np.minimum((centers + support * stretch + 0.5).astype(int), length)
    pixels = first[:, None] + np.arange((stop - first).max())
    weights = kernel((pixels - centers[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(pixels < stop[:, None], weights, 0.0)
    return first, weights / np.cumsum(weights, axis=1)[:, -1:]  # one by one, as Pillow adds them


def _resample(pixels: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums along the first axis of (length, ...), with the weights of `_taps`.

    uint8 is rounded and clipped to uint8, float32 gives float32.
    """
    taps = weights.shape[1]
    if taps == 1:
        return pixels[first]
    whole = pixels.dtype == "uint8"
    if whole:
        weights = np.trunc(weights / _WEIGHT_UNIT + np.copysign(0.5, weights))
    sums = np.empty((len(first), *pixels.shape[1:]), pixels.dtype)
    for begin in range(0, len(first), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        offsets = first[block] - first[begin]
        matrix = np.zeros((len(offsets), offsets[-1] + taps))
        np.put_along_axis(matrix, offsets[:, None] + np.arange(taps), weights[block], axis=1)
        source = pixels[first[begin] : first[begin] + matrix.shape[1]].astype("float64", order="C")
        values = matrix[:, : len(source)] @ source.reshape(len(source), -1)
        if whole:  # sums of integers, exact in float64
            values = np.clip(np.floor(values * _WEIGHT_UNIT + 0.5), 0.0, 255.0)
        sums[block] = values.reshape(-1, *pixels.shape[1:])
    return sums
