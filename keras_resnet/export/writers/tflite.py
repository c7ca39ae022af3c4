"""Writes TFLite files, in float32 or quantized."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import IO_DTYPES, check_calibration, check_choice, precisions
from keras_resnet.export.formats import FILE_FORMATS
from keras_resnet.export.graph import Graph, fold
from keras_resnet.export.serving import INPUT, LOGITS, OUTPUTS, PROBABILITIES
from keras_resnet.export.writers.tensorflow_ops import FEATURES, compute
from keras_resnet.export.writers.tflite_classifier import append_classifier
from keras_resnet.export.writers.tflite_conversion import convert
from keras_resnet.export.writers.tflite_metadata import (
    OutputMetadata,
    check_labels,
    read_model,
    write_with_metadata,
)
from keras_resnet.files import replacing

_PROBABILITIES = {
    "softmax": "Probabilities of the classes; they sum to 1.",
    "sigmoid": "Probabilities of the classes, each by itself.",
}


def to_tflite(
    model: keras.Model | Graph,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    precision: str = "float32",
    io_dtype: str = "float32",
    calibration: Iterable[np.ndarray] | None = None,
    labels: Sequence[str] = (),
    batch_size: int | None = None,
) -> Path:
    """Writes a TFLite file that needs built-in operators only, so the plain interpreter runs it.

    Its signature `serving_default` maps `images`, `io_dtype` (batch, height, width, channels) of raw pixels
    0-255, to `logits` and `probabilities`, (batch, classes). Unless `batch_size` is given, it takes any
    number of images after resizing the input, which signature runners do themselves.

    Args:
        model: made by `serving_model`, or folded by `graph.fold`.
        path: the file; a TFLite file there is replaced.
        metadata: strings to keep in the file, see `write_with_metadata`.
        precision: "float32"; "float16", weights in float16; "dynamic", weights in int8 and activations
            quantized at run time; "int8", weights and activations in int8, by calibration, but the classifier
            and the probabilities in float32 with a kernel in float16.
        io_dtype: "float32"; or "uint8", for images as bytes. With precision "int8" the whole file
            then computes in integers: the outputs become uint8 too, with their scale and zero point in the
            file, and the two largest logits can become equal, which costs accuracy.
        calibration: for "int8": batches (n, height, width, channels) of raw pixels 0-255, at least 32
            images in all, like those that the network will see.
        labels: names of the classes in the order of the logits, kept in the file.
        batch_size: number of images per call; None for any. LiteRT.js and the accelerators of phones need a
            fixed one.

    Raises:
        InputError: an unknown precision or dtype, too few calibration images or images of another
            shape, labels that do not fit, a network that needs an operator that TFLite lacks (it would
            need TensorFlow's "Flex" operators), another file at `path`, or one that cannot be written.
    """
    check_choice("precision", precision, precisions("tflite"))
    check_choice("io_dtype", io_dtype, IO_DTYPES)
    graph = fold(model)
    check_labels(labels, graph.classes)
    metadata = {"model": graph.name, "classes": str(graph.classes), **(metadata or {})}
    images = _calibration_images(calibration, graph.input_shape) if precision == "int8" else None
    float_classifier = images is not None and io_dtype == "float32"
    outputs = (FEATURES,) if float_classifier else OUTPUTS
    with replacing(path, FILE_FORMATS["tflite"].is_ours) as temporary:
        # Integer files are made from a function of float32; the converter turns its ends into bytes.
        dtype = io_dtype if images is None else "float32"
        given = tf.TensorSpec((batch_size, *graph.input_shape), dtype, name=INPUT)

        def serve(weights, inputs):
            results = compute(graph, inputs[INPUT], weights)
            return {name: results[name] for name in outputs}

        try:
            content = convert(
                serve,
                [given],
                graph.nodes,
                temporary.with_name("source"),
                precision=precision,
                io_dtype=io_dtype,
                samples=None if images is None else lambda: _groups(images, batch_size or 1),
                sample_count=None if images is None else math.ceil(len(images) / (batch_size or 1)),
            )
        except tf.errors.OpError as error:
            raise InputError(f"cannot write {path}: {error.message}") from error
        model = read_model(content)
        if float_classifier:
            append_classifier(model, graph, batch_size)
        task = f"Classifies images into {metadata['classes']} classes"
        write_with_metadata(model, temporary, metadata, labels, _descriptions(graph), task)
    return Path(path)


def _descriptions(graph: Graph) -> dict[str, OutputMetadata]:
    logits = OutputMetadata(f"Scores of the classes, before the {graph.activation}.", labels="axis")
    meaning = _PROBABILITIES[graph.activation]
    return {LOGITS: logits, PROBABILITIES: OutputMetadata(meaning, limits=(1.0, 0.0), labels="axis")}


def _groups(images: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Yields inputs for the calibration, of `size` images each; the last one repeats the first images."""
    for start in range(0, len(images), size):
        group = itertools.islice(itertools.cycle(images), start, start + size)
        yield [np.stack(list(group)).astype("float32")]


def _calibration_images(batches: Iterable[np.ndarray] | None, shape: tuple) -> list[np.ndarray]:
    """Returns all images as bytes, which is all that an integer network sees, with pixels 0 and 255."""
    images = [
        image
        for batch in check_calibration(batches, shape)
        for image in np.rint(np.clip(batch, 0, 255)).astype(np.uint8)
    ]
    # With pixels 0 and 255 among the images, the input's scale is 1 and a raw byte is its own code.
    images[0][0, 0], images[0][-1, -1] = 0, 255
    return images
