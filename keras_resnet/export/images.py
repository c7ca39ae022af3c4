"""The images that artifacts are verified on and int8 files are calibrated with."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from keras_resnet import data
from keras_resnet.errors import InputError
from keras_resnet.weights.spec import ModelSpec

Batch = tuple[np.ndarray, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Images:
    """Real images for a network.

    Attributes:
        batches: images to compare on, float32 (batch, height, width, channels) with raw pixels 0-255, and
            int labels (batch,) or None.
        source: where they come from, for the report.
        calibration: returns float32 batches of other images, for int8.
    """

    batches: Iterable[Batch]
    source: str
    calibration: Callable[[], list[np.ndarray]]


def photo_images(spec: ModelSpec, calibration_images: int) -> Images:
    """Returns crops of scikit-learn's two sample photos, for use without a dataset."""
    return Images(
        [(sample_photos(*spec.input_shape), None)],
        "crops of scikit-learn's two sample photos",
        lambda: [random_crops(*spec.input_shape, calibration_images)],
    )


def dataset_images(spec: ModelSpec, dataset: str, data_dir: str | None, calibration_images: int) -> Images:
    """Returns the test split of a dataset, preprocessed but not normalized.

    Raises:
        InputError: the dataset does not fit the network.
    """
    height, width, channels = spec.input_shape
    if height != width:
        raise InputError(f"datasets give square images; the network takes {height}x{width}")
    opened = data.open_dataset(dataset, data_dir)
    if opened.classes != spec.classes:
        raise InputError(f"the network has {spec.classes} classes, dataset {dataset} has {opened.classes}")
    split = opened.test_split
    preprocessing = spec.preprocessing.for_channels(channels)

    def calibration() -> list[np.ndarray]:
        train = opened.split("train" if "train" in opened.split_names else split)
        return [batch for batch, _ in data.raw_images(train, preprocessing, limit=calibration_images)]

    batches = _Repeatable(lambda: data.raw_images(opened.split(split), preprocessing))
    return Images(batches, f"the {split} split of {dataset}", calibration)


@dataclasses.dataclass(frozen=True)
class _Repeatable:
    """An iterable that starts again each time."""

    start: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.start()


def sample_photos(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Returns eight images: each photo as a whole, its center, and two of its corners.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
        channels: 1 averages the colors; more than 3 repeat them.

    Returns:
        float32 (8, height, width, channels), pixels 0-255; the same for the same arguments.
    """
    images = []
    for photo in _photos():
        rows, columns = photo.shape[:2]
        half_rows, half_columns = rows // 2, columns // 2
        crops = [
            photo,
            photo[rows // 4 :, columns // 4 :][:half_rows, :half_columns],
            photo[:half_rows, :half_columns],
            photo[half_rows:, half_columns:],
        ]
        images += [tf.image.resize(crop, (height, width), antialias=True).numpy() for crop in crops]
    return _with_channels(images, channels)


def random_crops(height: int, width: int, channels: int, count: int) -> np.ndarray:
    """Returns random crops of the two photos, to calibrate on without a dataset.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
        channels: see `sample_photos`.
        count: number of images.

    Returns:
        float32 (count, height, width, channels), pixels 0-255; the same for the same arguments.
    """
    random, photos = np.random.default_rng(0), _photos()
    images = []
    for index in range(count):
        photo = photos[index % len(photos)]
        side = int(random.uniform(0.25, 1) * min(photo.shape[:2]))
        top, left = (int(random.integers(0, length - side + 1)) for length in photo.shape[:2])
        crop = photo[top : top + side, left : left + side]
        if random.random() < 0.5:
            crop = crop[:, ::-1]
        images.append(tf.image.resize(crop, (height, width), antialias=True).numpy())
    return _with_channels(images, channels)


def _photos() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


def _with_channels(images: list[np.ndarray], channels: int) -> np.ndarray:
    pixels = np.clip(np.stack(images), 0, 255).astype("float32")
    if channels == 1:
        return pixels.mean(-1, keepdims=True)
    return np.take(pixels, np.arange(channels) % 3, axis=-1)
