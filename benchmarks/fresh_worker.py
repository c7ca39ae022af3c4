"""Measures that need a process which has done nothing else before."""

import importlib

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
    functions = {"import_module": _import_module, "read_epoch": _read_epoch, "convert": _convert}
    serve(lambda spec: ({}, functions))
