"""Images from encoded bytes: the part that the input needs, and what happens to those that are damaged."""

import csv
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.images import ops as geometry

_COLUMNS = ("path", "split", "reason")


class BadImages:
    """The images of a run that cannot be decoded: each once, however often it is met.

    Pipelines add to it from their threads while the run reads it.
    """

    def __init__(self):
        self._reasons: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many have been met."""
        return len(self._reasons)

    def add(self, path: str, split: str, reason: str) -> None:
        """Notes one.

        Args:
            path: of the file, or what else names the example in its split.
            split: the split's name.
            reason: a few words.
        """
        with self._lock:
            self._reasons[path, split] = reason

    def rows(self) -> list[tuple[str, str, str]]:
        """`(path, split, reason)` of each, sorted."""
        with self._lock:
            return sorted((*key, reason) for key, reason in self._reasons.items())

    def check(self, limit: int) -> None:
        """Raises `InputError` once there are more than `limit`."""
        if self.count > limit:
            path, _, reason = self.rows()[0]
            raise InputError(
                f"{self.count} images cannot be used, {limit} are allowed (--max_bad_images);"
                f" one of them: {path!r} is {reason}"
            )

    def write(self, path: str | os.PathLike) -> None:
        """Replaces a CSV file with `rows`, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        path = Path(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            # File names need not be text.
            with open(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(_COLUMNS)
                writer.writerows(self.rows())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are private
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def read(self, path: str | os.PathLike) -> None:
        """Adds the rows of a file that `write` left, if it is there.

        A run that goes on in the middle of an epoch does not meet again what came before.

        Raises:
            InputError: it is not such a file.
        """
        try:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                header, *rows = csv.reader(file)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}") from None
        if tuple(header) != _COLUMNS or any(len(row) != len(_COLUMNS) for row in rows):
            raise InputError(f"{path} is not a list of bad images; its columns are {', '.join(_COLUMNS)}")
        for row in rows:
            self.add(*row)


def attempt_each(
    function: Callable[..., tuple[tf.Tensor, ...]],
    elements: tuple[tf.Tensor, ...],
    report: Callable[..., None] | None,
) -> list[tf.Tensor]:
    """Inside a `tf.data` map: applies a function to each of several elements.

    Args:
        function: from an element's tensors to others, of static shapes.
        elements: tensors of a common first dimension, the elements' number.
        report: called with NumPy arrays of the elements for which the function failed; their results
            are zeros. None lets the first error through.

    Returns:
        The results, each of them stacked. Others' are not changed by an element that fails.
    """
    count = tf.size(elements[0], out_type=tf.int64)
    places = tf.data.Dataset.from_tensor_slices((tf.range(count), *elements))
    results = places.map(lambda place, *element: (place, *function(*element)))
    if report is None:
        stacked = results.batch(count).get_single_element()[1:]
        return [tf.ensure_shape(result, elements[0].shape + result.shape[1:]) for result in stacked]
    # No operation of TensorFlow catches another's error; a dataset does. One for several elements,
    # because making it takes some time, and with one more at the end, so that there is always one.
    end = [tf.zeros(spec.shape, spec.dtype) for spec in results.element_spec]
    results = results.ignore_errors().concatenate(tf.data.Dataset.from_tensors(tuple(end)))
    done, *stacked = results.batch(count + 1).get_single_element()
    done, stacked = done[:-1], [result[:-1] for result in stacked]

    def filled():
        present = tf.scatter_nd(done[:, None], tf.ones_like(done), [count]) > 0
        failed = [tf.boolean_mask(tensor, ~present) for tensor in elements]
        reported = tf.numpy_function(lambda *arrays: report(*arrays) or np.int64(0), failed, tf.int64)
        # Added, so that it is called.
        places = (done + tf.ensure_shape(reported, ()))[:, None]

        def spread(result):
            rest = tf.constant(result.shape[1:].as_list(), tf.int64)
            return tf.scatter_nd(places, result, tf.concat([count[None], rest], 0))

        return [spread(result) for result in stacked]

    results = tf.cond(tf.size(done, tf.int64) == count, lambda: stacked, filled)
    several = elements[0].shape
    return [tf.ensure_shape(a, several + b.shape[1:]) for a, b in zip(results, stacked, strict=True)]


def fault(encoded: bytes) -> str | None:
    """What makes bytes unusable as an image, in a few words, or None."""
    if not encoded:
        return "empty"
    if encoded.startswith(b"BM") and len(encoded) >= 30:
        bits = int.from_bytes(encoded[28:30], "little")
        if bits not in (24, 32):
            return f"a BMP image with {bits} bits a pixel; only 24 and 32 can be read"
    if not is_image(encoded):
        return "not a JPEG, PNG, GIF or BMP image"
    tensor = tf.constant(encoded)
    try:
        height, width, _ = geometry.read_header(tensor, bounded=False).numpy().tolist()
        if not 0 < height * width <= geometry.MAX_PIXELS:
            return f"of {width} x {height} pixels; {geometry.MAX_PIXELS} are the most"
        geometry.decode_image(tensor)
    except tf.errors.InvalidArgumentError:
        ends = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}
        end = ends.get(encoded[:2], b"")
        return "damaged" if encoded.endswith(end) else "truncated"
    return None


def file_fault(path: str | bytes) -> str | None:
    """`fault` of a file, which may also be unreadable."""
    try:
        with open(path, "rb") as file:
            return fault(file.read())
    except IsADirectoryError:
        return "a folder where an image was expected"
    except OSError as error:
        return f"unreadable: {error.strerror}"


def is_image(head: bytes) -> bool:
    """Whether a file of which these are the first bytes, 8 or more, claims to be an image."""
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM"))


def decode_window(
    encoded: tf.Tensor, choose: Callable[[tf.Tensor], tf.Tensor], size: int, whole_pixels: bool
) -> tf.Tensor:
    """Decodes a window of an image and resizes it; of a JPEG little else is decoded.

    Args:
        encoded: string (): JPEG, PNG, GIF or BMP bytes.
        choose: from the upright image's height and width, int32 (2,), to the window, float32 (4,):
            top, left, height and width in pixels.
        size: side of the result.
        whole_pixels: as for `cut_window`.

    Returns:
        float32 (size, size, 3), 0-255: what `cut_window` makes of the decoded image, to rounding, or
        with `whole_pixels` to 2 along the edges.
    """
    header = geometry.read_header(encoded)
    orientation = geometry.read_orientation(encoded)
    shape = tf.where(orientation >= 5, header[1::-1], header[:2])
    window = choose(shape)
    box = _box(window, shape, size, whole_pixels)
    part = geometry.decode_part(encoded, header, geometry.stored_box(box, shape, orientation))
    return _resize_part(geometry.upright(part, orientation), box, window, size, whole_pixels)


def cut_window(
    image: tf.Tensor, choose: Callable[[tf.Tensor], tf.Tensor], size: int, whole_pixels: bool
) -> tf.Tensor:
    """Resizes a window of an image to a square.

    Args:
        image: uint8 (height, width, channels).
        choose: from the image's height and width to the window, as for `decode_window`.
        size: side of the result.
        whole_pixels: whether windows are cut out between pixels and then resized, which is quick: see
            `geometry.resize_quickly`. Otherwise the image is resized, and the result cut out of it.

    Returns:
        float32 (size, size, channels), 0-255.
    """
    shape = tf.shape(image)[:2]
    window = choose(shape)
    box = _box(window, shape, size, whole_pixels)
    part = tf.slice(image, tf.concat([box[:2], [0]], 0), tf.concat([box[2:], [-1]], 0))
    part = tf.ensure_shape(part, (None, None, image.shape[-1]))
    return _resize_part(part, box, window, size, whole_pixels)


def _box(window: tf.Tensor, shape: tf.Tensor, size: int, whole_pixels: bool) -> tf.Tensor:
    """The pixels that a window's resizing looks at, as top, left, height and width: int32 (4,)."""
    if whole_pixels:
        return tf.cast(window, tf.int32)
    reach = tf.maximum(window[2:] / size, 1.0) + 2.0  # 2: the edges of a part are not exact
    low = tf.maximum(tf.cast(tf.floor(window[:2] - reach), tf.int32), 0)
    high = tf.minimum(tf.cast(tf.math.ceil(window[:2] + window[2:] + reach), tf.int32), shape)
    return tf.concat([low, high - low], 0)


def _resize_part(part, box, window, size: int, whole_pixels: bool) -> tf.Tensor:
    if whole_pixels:
        return geometry.resize_quickly(part, size)
    corner = tf.cast(tf.concat([box[:2], [0, 0]], 0), tf.float32)
    return geometry.resize_window(part, window - corner, size)
