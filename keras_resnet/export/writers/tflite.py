"""Writes TFLite files, in float32 or quantized."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import IO_DTYPES, check_calibration, check_choice, precisions
from keras_resnet.export.graph import Graph, fold
from keras_resnet.export.serving import INPUT, OUTPUTS, SIGNATURE
from keras_resnet.export.writers.tensorflow_ops import FEATURES, compute, weight_arrays
from keras_resnet.export.writers.tflite_classifier import append_classifier
from keras_resnet.export.writers.tflite_metadata import check_labels, read_model, write_with_metadata
from keras_resnet.files import replacing, starts_with
from keras_resnet.models.graph import recursion_limit
from keras_resnet.quiet import quiet

is_tflite_file = starts_with(b"TFL3")


def to_tflite(
    model: keras.Model | Graph,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    precision: str = "float32",
    io_dtype: str = "float32",
    calibration: Iterable[np.ndarray] | None = None,
    labels: Sequence[str] = (),
) -> Path:
    """Writes a TFLite file that needs built-in operators only, so the plain interpreter runs it.

    Its signature `serving_default` maps `images`, `io_dtype` (batch, height, width, channels) of raw pixels
    0-255, to `logits` and `probabilities`, (batch, classes). It takes any batch size after resizing the
    input, which signature runners do themselves.

    Args:
        model: made by `serving_model`, or folded by `graph.fold`.
        path: the file; a TFLite file there is replaced.
        metadata: strings to keep in the file, see `write_with_metadata`.
        precision: "float32"; "float16", weights in float16; "dynamic", weights in int8 and activations
            quantized at run time; "int8", weights and activations in int8, by calibration, but the classifier
            and the softmax in float32 with a kernel in float16.
        io_dtype: "float32"; or "uint8", for images as bytes. With precision "int8" the whole file
            then computes in integers: the outputs become uint8 too, with their scale and zero point in the
            file, and the two largest logits can become equal, which costs accuracy.
        calibration: for "int8": batches (n, height, width, channels) of raw pixels 0-255, at least 32
            images in all, like those that the network will see.
        labels: names of the classes in the order of the logits, kept in the file.

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
    with replacing(path, is_tflite_file) as temporary:
        source = temporary.with_name("source")
        # Integer files are made from a function of float32; the converter turns its ends into bytes.
        try:
            _write_source(graph, source, io_dtype if images is None else "float32", outputs)
        except tf.errors.OpError as error:  # how TensorFlow reports a full disk
            raise InputError(f"cannot write {path}: {error.message}") from error
        model = read_model(_convert(source, precision, io_dtype, images, path))
        if float_classifier:
            append_classifier(model, graph)
        write_with_metadata(model, temporary, metadata, labels)
    return Path(path)


def _write_source(graph: Graph, path: Path, input_dtype: str, outputs: Iterable[str]) -> None:
    """Writes a SavedModel for the converter, which reads weights from its files, not through Python."""
    module: Any = tf.Module()
    variables = {
        key: tf.Variable(array, trainable=False)  # pyright: ignore[reportArgumentType] (takes arrays, too)
        for key, array in weight_arrays(graph.nodes).items()
    }
    module.model_variables = list(variables.values())
    signature = [tf.TensorSpec((None, *graph.input_shape), input_dtype, name=INPUT)]

    @tf.function(input_signature=signature, autograph=False)
    def serve(images):
        results = compute(graph, images, variables)
        return {name: results[name] for name in outputs}

    with quiet(), recursion_limit():
        tf.saved_model.save(module, str(path), signatures={SIGNATURE: serve.get_concrete_function()})


def _convert(
    source: Path, precision: str, io_dtype: str, images: list[np.ndarray] | None, path: str | Path
) -> bytes:
    from tensorflow.lite.python.convert import ConverterError

    with quiet(), recursion_limit():
        converter = tf.lite.TFLiteConverter.from_saved_model(str(source), signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.exclude_conversion_metadata = True  # costs two more copies of the model
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if images is not None:
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: ([image[None].astype("float32")] for image in images)
            converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io_dtype)
        try:
            return converter.convert()
        except ConverterError as error:
            line = str(error).strip().splitlines()[0]
            raise InputError(f"{path}: the network needs an operator that TFLite lacks: {line}") from error


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
