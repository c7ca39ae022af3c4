"""Training images from a folder of JPEGs: our pipeline against a plain one, Pillow, and bare decoding.

python -m benchmarks.input_pipeline --output=input_pipeline.json
"""

import contextlib
import io
import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from absl import flags

import keras_resnet
from benchmarks import harness
from keras_resnet import cli, data
from keras_resnet.processes import Worker, cores

_TRAINING, _MEMORY, _INDEXED, _STREAMED = "training", "peak_memory", "skip/indexed", "skip/streamed"
_WIDTH, _HEIGHT = 500, 375
_QUALITIES = (75, 95)
# Standard deviation of the noise in each pixel's brightness. Without it two small photos, enlarged, are
# smoother than any camera's; with it the files are still a third smaller than ImageNet's in the mean.
_GRAIN = 9.0
_BATCH, _SIZE = 64, 224
_RECORDS, _SHARDS = 1_000_000, 16
_SKIP_LIMIT = 10.0
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_subjects = harness.define_subjects([_TRAINING, _MEMORY, _INDEXED, _STREAMED])
_IMAGES = flags.DEFINE_integer("images", 4096, "Files in the folder; each round reads all of them.")
_DISTINCT = flags.DEFINE_integer("distinct", 384, "Different images among them.")


# -- the images -----------------------------------------------------------------------------------


def _tiles() -> tuple[np.ndarray, str]:
    """Small gray images for collages, uint8 (n, height, width), and what they show."""
    import tensorflow_datasets as tfds

    with contextlib.suppress(Exception):
        builder: Any = tfds.builder("fashion_mnist")
        if builder.is_prepared():
            examples = builder.as_dataset(split="test").take(2000).as_numpy_iterator()
            return np.stack([example["image"][..., 0] for example in examples]), "Fashion-MNIST"
    from sklearn.datasets import load_digits

    return (cast(Any, load_digits()).images * (255 / 16)).astype("uint8"), "digits"


def _draw(rng: np.random.Generator, photos: list, tiles: np.ndarray):
    """A part of a photo, or tinted tiles in front of it."""
    from PIL import Image

    photo = photos[rng.integers(len(photos))]
    share = rng.uniform(0.6, 1.0)
    width, height = share * photo.width, share * photo.width * _HEIGHT / _WIDTH
    height = min(height, photo.height)
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    box = (left, top, left + width, top + height)
    image = photo.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.5:
        return image
    for _ in range(rng.integers(10, 30)):
        tile = Image.fromarray(tiles[rng.integers(len(tiles))])
        side = int(rng.integers(40, 140))
        tile = tile.resize((side, side), Image.Resampling.BICUBIC)
        tint = Image.new("RGB", (side, side), tuple(rng.integers(40, 256, 3).tolist()))
        image.paste(tint, (int(rng.integers(_WIDTH - 40)), int(rng.integers(_HEIGHT - 40))), tile)
    return image


def _write_folder(folder: Path, count: int, distinct: int) -> str:
    """Writes `count` JPEGs into two classes of train/ and a few into val/; describes them."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(image) for image in cast(Any, load_sample_images()).images]
    tiles, kind = _tiles()
    files = []
    for _ in range(distinct):
        file = io.BytesIO()
        quality = int(rng.integers(_QUALITIES[0], _QUALITIES[1] + 1))
        pixels = np.asarray(_draw(rng, photos, tiles), "float32")
        pixels = pixels + rng.normal(0.0, _GRAIN, (_HEIGHT, _WIDTH, 1))
        image = Image.fromarray(np.clip(pixels, 0, 255).astype("uint8"))
        image.save(file, "JPEG", quality=quality)
        files.append(file.getvalue())
    for split, amount in (("train", count), ("val", 4)):
        for index in range(amount):
            path = folder / split / "ab"[index % 2] / f"{index:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[index % distinct])
    kilobytes = np.mean([len(file) for file in files]) / 1000
    return (
        f"{distinct} different JPEGs of {_WIDTH}x{_HEIGHT}, quality {_QUALITIES[0]}-{_QUALITIES[1]}, "
        f"{kilobytes:.0f} kB in the mean: scikit-learn's photos and {kind} collages, with grain"
    )


# -- the contenders, in images/s ------------------------------------------------------------------


def _rate(batches: Iterator, per_batch: int) -> float:
    """Images/s from the second batch on, without the start of the pipeline."""
    next(batches)
    begun, count = time.perf_counter(), 0
    for _ in batches:
        count += per_batch
    return count / (time.perf_counter() - begun)


def _batches(split: "data.Split", size: int, bad: "data.BadImages", **where: int):
    """Our training batches."""
    transform = data.Transform.create(size, keras_resnet.Normalization.imagenet(), "inception")
    return iter(data.training_batches(split, transform, global_batch=_BATCH, seed=0, bad=bad, **where))


def _ours(folder: Path) -> Callable[[], float]:
    split = data.open_dataset(f"folder:{folder}").split("train")
    epochs = iter(range(1_000_000))

    def measure() -> float:
        bad = data.BadImages()
        rate = _rate(_batches(split, _SIZE, bad, epoch=next(epochs)), _BATCH)
        bad.check(0)
        return rate

    return measure


def _paths(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "train").rglob("*.jpg"))


def _plain(folder: Path) -> Callable[[], float]:
    """The pipeline of tutorials: decode, crop, resize, mirror, batch, normalize."""
    import tensorflow as tf

    def prepare(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        corner, sides, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([1, 0, 4]),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.image.resize(tf.slice(image, corner, sides), (_SIZE, _SIZE))
        return tf.ensure_shape(tf.image.random_flip_left_right(image), (_SIZE, _SIZE, 3))

    def normalize(images):
        return (images / 255.0 - tf.constant(_MEAN)) / tf.constant(_STD)

    paths = _paths(folder)
    batches = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths))
    batches = batches.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    batches = batches.batch(_BATCH, drop_remainder=True)
    batches = batches.map(normalize, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return lambda: _rate(iter(batches), _BATCH)


def _bare(folder: Path) -> Callable[[], float]:
    """Only reads and decodes."""
    import tensorflow as tf

    def decode(path):
        return tf.shape(tf.io.decode_jpeg(tf.io.read_file(path), channels=3))

    paths = tf.data.Dataset.from_tensor_slices(_paths(folder))
    decoded = paths.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(_BATCH, drop_remainder=True)
    decoded = decoded.prefetch(tf.data.AUTOTUNE)
    return lambda: _rate(iter(decoded), _BATCH)


def _with_pillow(path: str) -> int:
    """torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize for one image."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w, h = min(width, height), min(width, height)
    left, top = random.randint(0, width - w), random.randint(0, height - h)
    image = image.crop((left, top, left + w, top + h)).resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype("float32") / 255
    pixels -= np.array(_MEAN, "float32")[:, None, None]
    pixels /= np.array(_STD, "float32")[:, None, None]
    return len(pixels)


def _pillow(folder: Path, pool) -> Callable[[], float]:
    paths = _paths(folder)

    def measure() -> float:
        begun = time.perf_counter()
        # The pixels stay in their process: their transfer would cost more.
        for _ in pool.imap_unordered(_with_pillow, paths, chunksize=_BATCH):
            pass
        return len(paths) / (time.perf_counter() - begun)

    return measure


def _measure_training(folder: Path, rounds: int) -> list[harness.Row]:
    # A fresh interpreter for each process, as TensorFlow's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(len(cores())) as pool:
        peers = {
            "plain tf.data: decode, crop, resize, mirror": _plain(folder),
            "Pillow, a process a core, as torchvision's transforms": _pillow(folder, pool),
            "bare decoding by libjpeg-turbo": _bare(folder),
        }
        ours = _ours(folder)
        for measure in (ours, *peers.values()):
            measure()
        return harness.compare(_TRAINING, "images/s", ours, peers, rounds)


# -- memory and skipping --------------------------------------------------------------------------


def _measure_memory(folder: Path, rounds: int) -> list[harness.Row]:
    whole, quarter = [], []
    for _ in range(min(rounds, 3)):
        with Worker("benchmarks.fresh_worker", {}) as worker:
            first, last = worker.call("read_epoch", folder=str(folder), batch_size=_BATCH, image_size=_SIZE)
        quarter.append(first)
        whole.append(last)
        harness.say(f"{_MEMORY}: {first:.0f} MiB after a quarter of an epoch, {last:.0f} MiB after it")
    return [harness.row(_MEMORY, "MiB", whole, quarter, "the same after a quarter of the epoch")]


def _seconds_to_skip(split: "data.Split") -> float:
    """Seconds until the first batch from the middle of an epoch is ready."""
    begun = time.perf_counter()
    next(_batches(split, 32, data.BadImages(), epoch=0, first_step=len(split) // _BATCH // 2))
    return time.perf_counter() - begun


def _measure_skipping(subject: str, folder: Path, rounds: int) -> list[harness.Row]:
    """Skips half of a million examples: file names without files, or records without an image."""
    import tensorflow as tf

    if subject == _INDEXED:
        paths = np.array([b"%s/%d.jpg" % (os.fsencode(folder), i) for i in range(_RECORDS)], object)
        split = data.IndexedSplit("train", paths, np.zeros(_RECORDS, "int32"), files=True)
    else:
        count = _RECORDS // _SHARDS
        for shard in range(_SHARDS):
            with tf.io.TFRecordWriter(str(folder / f"records-{shard}")) as writer:
                for index in range(count):
                    writer.write(b"%d" % index)
        shards = tuple((str(folder / f"records-{shard}"), 0, count) for shard in range(_SHARDS))
        split = data.StreamedSplit("train", shards, lambda record: (record, tf.constant(0)))
    seconds = []
    for _ in range(min(rounds, 3)):
        seconds.append(_seconds_to_skip(split))
        harness.say(f"{subject}: {seconds[-1]:.2f} s")
    limit = [_SKIP_LIMIT] * len(seconds)
    return [harness.row(subject, "s", seconds, limit, harness.LIMIT)]


def main() -> None:
    """Measures what the flags say."""
    subjects = _subjects()
    harness.at_least_one(images=_IMAGES.value, distinct=_DISTINCT.value)
    rounds, rows = harness.rounds(), []
    versions = harness.versions("tensorflow", "numpy", "pillow", "scikit-learn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {_TRAINING, _MEMORY} & set(subjects):
            versions["images"] = _write_folder(folder, max(_IMAGES.value, 4 * _BATCH), _DISTINCT.value)
        if _TRAINING in subjects:
            rows += _measure_training(folder, rounds)
        if _MEMORY in subjects:
            rows += _measure_memory(folder, rounds)
        for subject in (_INDEXED, _STREAMED):
            if subject in subjects:
                rows += _measure_skipping(subject, folder, rounds)
    harness.report(rows, versions)


if __name__ == "__main__":
    cli.run(main)
