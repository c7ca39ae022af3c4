"""Measures that need a process which has done nothing else before."""

import base64
import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import keras_resnet
from benchmarks.workers import peak_memory, seconds_of
from keras_resnet import data, weights
from keras_resnet.processes import serve


def _import_module(name: str) -> tuple[float, float]:
    """Seconds, and peak memory in MiB, of importing a module."""
    return seconds_of(lambda: importlib.import_module(name)), peak_memory()


def _read_epoch(folder: str, batch_size: int, image_size: int) -> list[float]:
    """Peak memory, MiB, after a quarter of an epoch of training images, and after all of it."""
    split = data.open_dataset(f"folder:{folder}").split("train")
    transform = data.Transform.create(image_size, keras_resnet.Normalization.imagenet(), "inception")
    bad = data.BadImages()
    batches = data.training_batches(split, transform, global_batch=batch_size, seed=0, epoch=0, bad=bad)
    steps = len(split) // batch_size
    return [peak_memory() for step, _ in enumerate(batches) if step in (steps // 4, steps - 1)]


def open_records(files: Sequence[str], counts: Sequence[int]) -> "data.RecordSplit":
    """TFRecord files of encoded images as a split."""
    import tensorflow as tf

    records = data.open_tfrecords("train", files, counts)
    return data.RecordSplit("train", records, lambda record: (record, tf.constant(0)))


def _read_share(files: list[str], counts: list[int], worker: int, workers: int, batch_size: int) -> float:
    """The MiB that a worker reads in an epoch of training on TFRecord files, with their index."""
    transform = data.Transform.create(8, keras_resnet.Normalization.imagenet(), "inception")

    def read(split: "data.Split", **where: int) -> None:
        bad = data.BadImages()
        for _ in data.training_batches(split, transform, seed=0, epoch=0, bad=bad, **where):
            pass
        bad.check(0)

    image = base64.b64decode("R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs=")
    read(data.IndexedSplit("one", np.array([image], object), np.zeros(1, "int32")), global_batch=1)  # imports
    before = _bytes_read()
    read(open_records(files, counts), global_batch=batch_size, workers=workers, worker=worker)
    return (_bytes_read() - before) / 2**20


def _bytes_read() -> int:
    """What this process has asked Linux to read so far, from disks or the page cache."""
    values = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(values["rchar"])


def _convert(source: str, model: str, output: str) -> float:
    """The growth of the peak memory, MiB, while a weight file is converted."""
    import keras

    open_weights, save_weights = weights.open_weights, weights.save_weights
    keras.ops.zeros(1)
    before = peak_memory()
    with open_weights(source, model) as file:
        network = file.spec.build()
        file.load(network)
    save_weights(network, output, file.spec)
    return peak_memory() - before


if __name__ == "__main__":
    functions = {
        "import_module": _import_module,
        "read_epoch": _read_epoch,
        "read_share": _read_share,
        "convert": _convert,
    }
    serve(lambda spec: ({}, functions))
