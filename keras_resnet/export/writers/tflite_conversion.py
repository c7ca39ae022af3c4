"""Converts TensorFlow functions to TFLite models that need built-in operators only."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.export.graph import Node
from keras_resnet.export.serving import SIGNATURE
from keras_resnet.export.writers.tensorflow_ops import Weights, keras_variables, weight_arrays
from keras_resnet.models.graph import recursion_limit
from keras_resnet.progress import ProgressBar
from keras_resnet.quiet import quiet

Compute = Callable[[Weights, dict[str, Any]], dict[str, Any]]


def convert(
    compute: Compute,
    inputs: Sequence[tf.TensorSpec],
    layers: Iterable[Node],
    folder: Path,
    *,
    precision: str = "float32",
    io_dtype: str = "float32",
    samples: Callable[[], Iterable[list[np.ndarray]]] | None = None,
    sample_count: int | None = None,
) -> bytes:
    """Converts a function to a TFLite model whose signature `serving_default` has the function's names.

    Args:
        compute: from the weights of `layers` and the inputs by name to the outputs by name.
        inputs: types and names of the inputs.
        layers: the nodes whose weights the function uses.
        folder: where a SavedModel is written for the converter, which reads weights from its files, not
            through Python.
        precision: "float32"; "float16" for weights in float16; "dynamic" for weights in int8; "int8" for
            weights and activations in int8.
        io_dtype: dtype of the inputs and outputs of an "int8" model.
        samples: returns lists of inputs, from which the ranges of an "int8" model's activations are measured.
        sample_count: number of samples, for the progress.

    Raises:
        InputError: the function needs an operator that TFLite lacks.
        tf.errors.OpError: the folder cannot be written; this is how TensorFlow reports a full disk.
    """
    _write_source(compute, inputs, layers, folder)
    return _convert(folder, precision, io_dtype, samples, sample_count)


def _write_source(
    compute: Compute, inputs: Sequence[tf.TensorSpec], layers: Iterable[Node], path: Path
) -> None:
    layers = list(layers)
    arrays = weight_arrays(layers)
    # One variable for all nodes that share an array, such as the calls of a layer on several feature maps.
    variables = {
        id(array): tf.Variable(array, trainable=False)  # pyright: ignore[reportArgumentType] (takes arrays, too)
        for array in arrays.values()
    }
    weights = {key: variables[id(array)] for key, array in arrays.items()}
    module: Any = tf.Module()
    module.model_variables = [*variables.values(), *keras_variables(layers)]

    @tf.function(input_signature=inputs, autograph=False)
    def serve(*tensors):
        return compute(
            weights, {str(spec.name): tensor for spec, tensor in zip(inputs, tensors, strict=True)}
        )

    with quiet(), recursion_limit():
        tf.saved_model.save(module, str(path), signatures={SIGNATURE: serve.get_concrete_function()})


def _convert(
    source: Path,
    precision: str,
    io_dtype: str,
    samples: Callable[[], Iterable[list[np.ndarray]]] | None,
    sample_count: int | None,
) -> bytes:
    from tensorflow.lite.python.convert import ConverterError

    with quiet() as stderr, recursion_limit():
        converter = tf.lite.TFLiteConverter.from_saved_model(str(source), signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.exclude_conversion_metadata = True  # costs two more copies of the model
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if samples is not None:
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: ProgressBar(
                sample_count, "samples", "int8 calibration", stream=stderr
            ).track(samples())
            converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io_dtype)
        try:
            return converter.convert()
        except ConverterError as error:
            line = str(error).strip().splitlines()[0]
            raise InputError(f"the network needs an operator that TFLite lacks: {line}") from error
