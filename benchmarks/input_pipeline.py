"""Training images from a folder of JPEGs: our pipeline against a plain one, Pillow, and bare decoding.

python -m benchmarks.input_pipeline --output=input_pipeline.json
"""

import contextlib
import io
import itertools
import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

import keras_resnet
from benchmarks import harness
from benchmarks.fresh_worker import open_records
from benchmarks.workers import seconds_of
from keras_resnet import cli, data
from keras_resnet.processes import Worker, cores

_TRAINING, _MEMORY, _INDEXED, _RECORDS = "training", "peak_memory", "skip/indexed", "skip/records"
_INDEX, _SHARE = "index/records", "share/records"
_WIDTH, _HEIGHT = 500, 375
_QUALITIES = (75, 95)
# Standard deviation of the noise in each pixel's brightness. Without it two small photos, enlarged, are
# smoother than any camera's; with it the files are still a third smaller than ImageNet's in the mean.
_GRAIN = 9.0
_BATCH, _SIZE = 64, 224
_EXAMPLES, _FILES, _WORKERS = 1_000_000, 16, 4
_SKIP_LIMIT = 2.0
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FLAGS = (
    cli.Flag("images", "Files in the folder; each round reads all of them.", int, 4096),
    cli.Flag("distinct", "Different images among them.", int, 384),
)


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


def write_folder(folder: Path, count: int, distinct: int) -> str:
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
        pixels = np.clip(pixels + rng.normal(0.0, _GRAIN, (_HEIGHT, _WIDTH, 1)), 0, 255)
        Image.fromarray(pixels.astype("uint8")).save(file, "JPEG", quality=quality)
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


def _rate(batches: Iterator) -> float:
    """Images/s from the second batch on, without the start of the pipeline."""
    next(batches)
    begun = time.perf_counter()
    count = _BATCH * sum(1 for _ in batches)
    return count / (time.perf_counter() - begun)


def _batches(split: "data.Split", size: int, bad: "data.BadImages", **where: int) -> Iterator:
    """Our training batches."""
    transform = data.Transform.create(size, keras_resnet.Normalization.imagenet(), "inception")
    return iter(data.training_batches(split, transform, global_batch=_BATCH, seed=0, bad=bad, **where))


def _ours(folder: Path) -> harness.Measure:
    split = data.open_dataset(f"folder:{folder}").split("train")
    epochs = itertools.count()

    def measure() -> float:
        bad = data.BadImages()
        rate = _rate(_batches(split, _SIZE, bad, epoch=next(epochs)))
        bad.check(0)
        return rate

    return measure


def _plain(paths: list[str]) -> harness.Measure:
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

    batches = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths))
    batches = batches.map(prepare, tf.data.AUTOTUNE).batch(_BATCH, drop_remainder=True)
    batches = batches.map(normalize, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return lambda: _rate(iter(batches))


def _bare(paths: list[str]) -> harness.Measure:
    """Only reads and decodes."""
    import tensorflow as tf

    def decode(path):
        return tf.shape(tf.io.decode_jpeg(tf.io.read_file(path), channels=3))

    decoded = tf.data.Dataset.from_tensor_slices(paths).map(decode, tf.data.AUTOTUNE)
    batches = decoded.batch(_BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return lambda: _rate(iter(batches))


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


def _pillow(paths: list[str], pool: Any) -> harness.Measure:
    def read() -> None:
        # The pixels stay in their process: their transfer would cost more.
        for _ in pool.imap_unordered(_with_pillow, paths, chunksize=_BATCH):
            pass

    return lambda: len(paths) / seconds_of(read)


def _measure_training(run: harness.Benchmark, subject: str, folder: Path) -> None:
    paths = sorted(str(path) for path in (folder / "train").rglob("*.jpg"))
    # A fresh interpreter for each process, as TensorFlow's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(len(cores())) as pool:
        contenders = {
            "ours": _ours(folder),
            "plain tf.data: decode, crop, resize, mirror": _plain(paths),
            "Pillow, a process a core, as torchvision's transforms": _pillow(paths, pool),
            "bare decoding by libjpeg-turbo": _bare(paths),
        }
        for measure in contenders.values():
            measure()
        run.compare(subject, "images/s", contenders)


def _measure_memory(run: harness.Benchmark, subject: str, folder: Path) -> None:
    readings = []
    for _ in range(min(run.rounds, 3)):
        with Worker("benchmarks.fresh_worker", {}) as worker:
            reading = worker.call("read_epoch", folder=str(folder), batch_size=_BATCH, image_size=_SIZE)
        readings.append(reading)
        first, last = reading
        harness.say(f"{subject}: {first:.0f} MiB after a quarter of an epoch, {last:.0f} MiB after it")
    quarter, whole = zip(*readings, strict=True)
    run.add(subject, "MiB", whole, quarter, "the same after a quarter of the epoch")


def _indexed(folder: Path) -> "data.Split":
    """A split of a million file names without files."""
    paths = np.array([b"%s/%d.jpg" % (os.fsencode(folder), i) for i in range(_EXAMPLES)], object)
    return data.IndexedSplit("train", paths, np.zeros(_EXAMPLES, "int32"), files=True)


def _write_records(folder: Path, contents: Iterable[bytes], count: int) -> tuple[list[str], list[int]]:
    """Writes TFRecord files; returns them and their numbers of records."""
    import tensorflow as tf

    files, counts = [str(folder / f"records-{file}") for file in range(_FILES)], [count // _FILES] * _FILES
    remaining = iter(contents)
    for file, number in zip(files, counts, strict=True):
        with tf.io.TFRecordWriter(file) as writer:
            for content in itertools.islice(remaining, number):
                writer.write(content)
    return files, counts


def _numbers(folder: Path) -> tuple[list[str], list[int]]:
    """A million records without an image."""
    return _write_records(folder, (b"%d" % index for index in range(_EXAMPLES)), _EXAMPLES)


def _measure_skipping(run: harness.Benchmark, subject: str, folder: Path) -> None:
    """Measures the seconds until the first batch from the middle of an epoch is ready.

    The records' index is there, as in a run that resumes, and its reading is included.
    """
    files = _numbers(folder) if subject == _RECORDS else None
    indexed = open_records(*files) if files else _indexed(folder)

    def skip() -> None:
        split, middle = open_records(*files) if files else indexed, _EXAMPLES // _BATCH // 2
        next(_batches(split, 32, data.BadImages(), epoch=0, first_step=middle))

    contenders = {"ours": lambda: seconds_of(skip), harness.LIMIT: lambda: _SKIP_LIMIT}
    run.compare(subject, "s", contenders, min(run.rounds, 3))


def _measure_index(run: harness.Benchmark, subject: str, folder: Path) -> None:
    """Measures the seconds to find the records of files from the page cache."""
    import tensorflow as tf

    files, counts = _numbers(folder)

    def find() -> None:
        for index in folder.glob("*.npz"):
            index.unlink()
        open_records(files, counts)

    def read() -> None:
        assert sum(1 for _ in tf.data.TFRecordDataset(files).batch(1024)) == -(-_EXAMPLES // 1024)

    contenders = {"ours": lambda: seconds_of(find), "reading the records in order": lambda: seconds_of(read)}
    run.compare(subject, "s", contenders, min(run.rounds, 3))


def _measure_share(run: harness.Benchmark, subject: str, folder: Path) -> None:
    """Measures the bytes that each worker reads in an epoch, with the index, which the first one makes."""
    paths = sorted((folder / "train").rglob("*.jpg"))
    paths = paths[: len(paths) // _FILES * _FILES]
    files, counts = _write_records(folder, (path.read_bytes() for path in paths), len(paths))
    where = {"files": files, "counts": counts, "batch_size": _BATCH, "workers": _WORKERS}
    readings = []
    for index in range(_WORKERS):
        with Worker("benchmarks.fresh_worker", {}) as worker:
            readings.append(worker.call("read_share", worker=index, **where))
        harness.say(f"{subject}: {readings[-1]:.1f} MiB read by worker {index}")
    share = sum(os.path.getsize(file) for file in files) / _WORKERS / 2**20
    run.add(subject, "MiB", readings, [share] * _WORKERS, f"1/{_WORKERS} of the files")


_SUBJECTS = {
    _TRAINING: _measure_training,
    _MEMORY: _measure_memory,
    _INDEXED: _measure_skipping,
    _RECORDS: _measure_skipping,
    _INDEX: _measure_index,
    _SHARE: _measure_share,
}


def main(run: harness.Benchmark, subjects: list[str], images: int, distinct: int) -> None:
    """Writes the images if a subject needs them, and measures each subject."""
    described = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {_TRAINING, _MEMORY, _SHARE} & set(subjects):
            described["images"] = write_folder(folder, max(images, 4 * _BATCH), distinct)
        for subject, measure in _SUBJECTS.items():
            if subject in subjects:
                measure(run, subject, folder)
    run.report("tensorflow", "numpy", "pillow", "scikit-learn", **described)


if __name__ == "__main__":
    harness.run(main, _SUBJECTS, _FLAGS)
