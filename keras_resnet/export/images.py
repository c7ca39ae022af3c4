"""The images for verifying artifacts and for calibrating int8 files."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_resnet import data
from keras_resnet.data.identity import check_classes, data_changes
from keras_resnet.errors import InputError
from keras_resnet.weights.spec import ModelSpec

_SAMPLES = 8

Batch = tuple[np.ndarray, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Images:
    """Real images for a network.

    Attributes:
        batches: returns the images to compare on, float32 (batch, height, width, channels) with raw pixels
            0-255, and int labels (batch,) or None.
        source: description of the images, for the report.
        calibration: returns float32 batches of other images, for int8.
        count: number of images to compare on, for the progress; None if it is unknown.
    """

    batches: Callable[[], Iterable[Batch]]
    source: str
    calibration: Callable[[], list[np.ndarray]]
    count: int | None = None

    def samples(self) -> Batch:
        """Returns the first images, up to eight, with their labels."""
        images, labels = next(iter(self.batches()))
        return images[:_SAMPLES], None if labels is None else labels[:_SAMPLES]


def photo_images(spec: ModelSpec, calibration_images: int) -> Images:
    """Returns crops of scikit-learn's two sample photos, for use without a dataset."""
    return Images(
        lambda: [(sample_photos(*spec.input_shape), None)],
        "crops of scikit-learn's two sample photos",
        lambda: [random_crops(*spec.input_shape, calibration_images)],
    )


def dataset_images(
    spec: ModelSpec,
    dataset: str,
    data_dir: str | None,
    calibration_images: int,
    trained_on: Any = None,
) -> Images:
    """Returns the test split of a dataset, resized and cropped but not normalized.

    `trained_on` is the dataset's identity at the training, empty if unknown; None if it need not be the same.

    Raises:
        InputError: the classes are others than the network's, or the data have changed since the training.
    """
    height, width, channels = spec.input_shape
    if height != width:
        raise InputError(f"datasets give square images; the network takes {height}x{width}")
    opened = data.open_dataset(dataset, data_dir)
    if trained_on is not None and (changes := data_changes(trained_on, opened.identity())):
        raise InputError(
            f"the data have changed since the training ({', '.join(changes[:4])}); restore them, or give"
            f" --dataset={dataset} to compare on them as they are now"
        )
    check_classes("the network", spec, opened)
    split = opened.test_split
    preprocessing = spec.preprocessing.for_channels(channels)

    def calibration() -> list[np.ndarray]:
        train = opened.split("train" if "train" in opened.split_names else split)
        return [batch for batch, _ in data.raw_images(train, preprocessing, limit=calibration_images)]

    def batches() -> Iterable[Batch]:
        return data.raw_images(opened.split(split), preprocessing)

    return Images(batches, f"the {split} split of {dataset}", calibration, opened.sizes[split])


def sample_photos(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Returns eight images: each of scikit-learn's two photos as a whole, its center, and two corners.

    They are float32 (8, height, width, channels), pixels 0-255. One channel is the average of the colors;
    more than three channels repeat them.
    """
    images = []
    for photo in photos():
        rows, columns = photo.shape[:2]
        half_rows, half_columns = rows // 2, columns // 2
        crops = [
            photo,
            photo[rows // 4 :, columns // 4 :][:half_rows, :half_columns],
            photo[:half_rows, :half_columns],
            photo[half_rows:, half_columns:],
        ]
        images += crops
    return _resized(images, height, width, channels)


def random_crops(height: int, width: int, channels: int, count: int) -> np.ndarray:
    """Returns crops of the photos with a fixed seed, to calibrate without a dataset; see `sample_photos`."""
    random, pair = np.random.default_rng(0), photos()
    images = []
    for index in range(count):
        photo = pair[index % len(pair)]
        side = int(random.uniform(0.25, 1) * min(photo.shape[:2]))
        top, left = (int(random.integers(0, length - side + 1)) for length in photo.shape[:2])
        crop = photo[top : top + side, left : left + side]
        if random.random() < 0.5:
            crop = crop[:, ::-1]
        images.append(crop)
    return _resized(images, height, width, channels)


def photos() -> list[np.ndarray]:
    """Returns scikit-learn's two sample photos, uint8 (427, 640, 3)."""
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


def save_strip(images: np.ndarray, path: str | Path) -> None:
    """Saves images side by side as a PNG file; float32 (n, height, width, 1 or 3), pixels 0-255, rounded."""
    strip = np.concatenate(np.rint(images).clip(0, 255).astype("uint8"), axis=1)
    Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip).save(path, format="png")


def _resized(images: list[np.ndarray], height: int, width: int, channels: int) -> np.ndarray:
    resized = [tf.image.resize(image, (height, width), antialias=True).numpy() for image in images]
    pixels = np.clip(np.stack(resized), 0, 255).astype("float32")
    if channels == 1:
        return pixels.mean(-1, keepdims=True)
    return np.take(pixels, np.arange(channels) % 3, axis=-1)
