"""Reads image and annotation files, which are untrusted input."""

import json
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.detection.data.annotations import Faults
from keras_resnet.errors import InputError, one_line
from keras_resnet.images.decode import MAX_PIXELS, decode_error, decode_image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
MAX_IMAGE = 300_000_000  # bytes; a BMP image of the largest size that is decoded
_MAX_JSON = 2**31  # bytes; COCO's largest file has 470 million
_decode = tf.function(decode_image, input_signature=[tf.TensorSpec([], tf.string)])


def read_file(path: str, limit: int) -> bytes:
    """Returns the contents of a file; raises `InputError` if it is not regular or exceeds `limit` bytes."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file")
        if status.st_size > limit:
            raise InputError(f"{path} has {status.st_size} bytes; the limit is {limit}")
        with open(path, "rb") as file:
            return file.read(limit)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: str) -> Any:
    """Returns the value of a JSON file; raises `InputError` if it cannot be read or is not valid."""
    try:
        return json.loads(read_file(path, _MAX_JSON))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a valid JSON file: {one_line(error)}") from None


def decode_file(encoded: bytes, name: str) -> np.ndarray:
    """Decodes an image, upright according to its Exif tag: uint8 (height, width, 3), RGB.

    Raises:
        InputError: the image cannot be decoded; the message begins with `name`.
    """
    try:
        return _decode(tf.constant(encoded)).numpy()
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
        raise InputError(f"{name} is not a usable image: {decode_error(encoded)}") from None


def decode_pixels(encoded: bytes, name: str, size: Sequence[int]) -> np.ndarray:
    """Decodes an image like `decode_file`, and checks that it has the annotated `size`, height and width.

    Raises:
        InputError: the image cannot be decoded or has another size; the message begins with `name`.
    """
    image = decode_file(encoded, name)
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    hint = "correct its annotation"
    if (width, height) == tuple(size):
        hint = "its Exif tag may rotate it: annotate the upright image, or remove the tag"
    raise InputError(
        f"{name} has {width} x {height} pixels, but is annotated with {size[1]} x {size[0]}"
        f" (width x height); {hint}"
    )


def image_reader(paths: Sequence[str], sizes: np.ndarray) -> Callable[[int], np.ndarray]:
    """Returns `DetectionSplit.read` for image files."""

    def read(index: int) -> np.ndarray:
        return decode_pixels(read_file(paths[index], MAX_IMAGE), paths[index], sizes[index].tolist())

    return read


def checked_size(height: Any, width: Any, faults: Faults, file: str, what: str) -> tuple[int, int] | None:
    """Returns the annotated height and width; reports invalid ones to `faults` and returns None."""
    rows, columns = as_integer(height) or 0, as_integer(width) or 0
    if rows <= 0 or columns <= 0 or rows * columns > MAX_PIXELS:
        return faults.add(
            file,
            f"{what} has width {one_line(repr(width), 30)} and height {one_line(repr(height), 30)}; they must"
            f" be the pixels of its file, at most {MAX_PIXELS} in all",
        )
    return rows, columns


def as_integer(value: Any) -> int | None:
    """Returns an integer, or a float or text with an integer value, as an integer; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < 2**53 else None
    except (ValueError, OverflowError):
        return None
