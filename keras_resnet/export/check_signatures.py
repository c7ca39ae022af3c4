"""Compares the other signatures of a SavedModel with the Keras model, and calls all with zero images."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.export.artifacts import Options
from keras_resnet.export.graph import is_identity
from keras_resnet.export.runtimes import Artifact, RunError
from keras_resnet.export.serving import (
    INPUT,
    LOGITS,
    PROBABILITIES,
    SIGNATURE,
    UINT8_SIGNATURE,
    serving_function,
)
from keras_resnet.export.writers.saved_model import CLASSIFY_BYTES, LABELS, TOP
from keras_resnet.export.writers.tensorflow_ops import FEATURES
from keras_resnet.images.ops import evaluation_view
from keras_resnet.models.graph import layer_calls, recursion_limit, tensor_key

_IMAGES = 8


def broken_signatures(
    artifact: Artifact,
    model: keras.Model,
    serve: Callable[[np.ndarray], dict],
    images: np.ndarray,
    options: Options,
    tolerance: float,
) -> list[str]:
    """Runs the other signatures on a few images; an artifact with a single signature passes.

    Args:
        artifact: the opened artifact.
        model: made by `serving_model`.
        serve: its `serving_function`.
        images: float32 (batch, height, width, channels), raw pixels 0-255.
        options: what the artifact was written with.
        tolerance: largest allowed difference, over the largest reference value.

    Returns:
        The differences from the Keras model or from the options, as sentences.
    """
    if artifact.call is None:
        return []
    checks: list[tuple[str, Callable[..., str | None]]] = [
        (UINT8_SIGNATURE, _uint8),
        (FEATURES, _features),
        (LABELS, _labels),
    ]
    no_images = {name: {INPUT: images[:0]} for name in (SIGNATURE, FEATURES)}
    no_images[UINT8_SIGNATURE] = {INPUT: np.zeros((0, *images.shape[1:]), "uint8")}
    height, width, channels = model.input_shape[1:]
    if height is not None and height == width and channels in (1, 3):
        checks.append((CLASSIFY_BYTES, _classify_bytes))
        no_images[CLASSIFY_BYTES] = {"image_bytes": np.zeros(0, "S1")}
    checks += [(name, functools.partial(_no_images, name, inputs)) for name, inputs in no_images.items()]
    problems, pixels = [], np.rint(images[:_IMAGES]).clip(0, 255).astype("uint8")
    for signature, check in checks:
        try:
            problem = check(artifact.call, model, serve, pixels, options, tolerance)
        except RunError as error:
            problem = str(error).splitlines()[0]
        except (KeyError, ValueError) as error:
            problem = f"returns unexpected outputs: {error}"
        if problem:
            problems.append(f"its signature {signature} {problem}")
    return problems


def _no_images(name, inputs, call, *arguments):
    counts = {len(values) for values in call(name, inputs).values()}
    return None if counts == {0} else f"answers a batch of zero images with {max(counts)}"


def _uint8(call, model, serve, pixels, options, tolerance):
    logits = call(UINT8_SIGNATURE, {INPUT: pixels})[LOGITS]
    return _difference(logits, serve(pixels.astype("float32"))[LOGITS].numpy(), tolerance)


def _features(call, model, serve, pixels, options, tolerance):
    features = call(FEATURES, {INPUT: pixels.astype("float32")})[FEATURES]
    network = model.get_layer(model.name)
    with recursion_limit():
        compute = serving_function(keras.Model(network.input, _classifier_input(network)))
    normalized = model.get_layer("normalization")(pixels.astype("float32"))
    return _difference(features, compute(normalized).numpy(), tolerance)


def _classifier_input(network):
    """The tensor that the last dense layer takes; the logits if that layer is not dense."""
    calls = {tensor_key(tensor): call for call in layer_calls(network.outputs) for tensor in call.outputs}
    call = calls[tensor_key(network.outputs[0])]
    while is_identity(call.layer):
        call = calls[tensor_key(call.inputs[0])]
    return call.inputs[0] if type(call.layer) is keras.layers.Dense else network.outputs[0]


def _classify_bytes(call, model, serve, pixels, options, tolerance):
    files = np.array([tf.io.encode_png(image).numpy() for image in pixels])
    answers = call(CLASSIFY_BYTES, {"image_bytes": files})
    size, channels = model.input_shape[1], model.input_shape[3]
    colors = pixels if channels == 3 else np.repeat(pixels, 3, -1)  # as a PNG is decoded
    preprocessing = options.preprocessing
    resize = preprocessing.resize if preprocessing else None
    interpolation = preprocessing.interpolation if preprocessing else "bilinear"
    views = [evaluation_view(tf.constant(image), resize, size, channels, interpolation) for image in colors]
    probabilities = serve(np.stack(views))[PROBABILITIES].numpy()
    count = min(TOP, probabilities.shape[-1])
    best = np.sort(probabilities, -1)[:, ::-1][:, :count]
    if answers[PROBABILITIES].shape != best.shape:
        return f"gives {answers[PROBABILITIES].shape[-1]} classes, not {count}"
    tolerance = max(tolerance, 1e-4)  # a logit's rounding is relative to the logits, not to its class
    if problem := _difference(answers[PROBABILITIES], best, tolerance):
        return problem
    names = np.array(_names(options, probabilities.shape[-1]))
    for row, classes in zip(probabilities, answers["classes"].tolist(), strict=True):
        # Two classes can have one name, and equal probabilities can change places.
        named = [row[names == name].max(initial=-1) for name in classes]
        if not np.allclose(named, np.sort(row)[::-1][:count], atol=tolerance):
            return f"names {classes}, not {names[row.argsort()[::-1][:count]].tolist()}"
    return None


def _labels(call, model, serve, pixels, options, tolerance):
    found = call(LABELS, {})[LABELS].tolist()
    expected = _names(options, model.output[LOGITS].shape[-1])
    different = [f"{a!r} instead of {b!r}" for a, b in zip(found, expected, strict=False) if a != b]
    if len(found) != len(expected):
        return f"gives {len(found)} names, not {len(expected)}"
    return f"gives {different[0]}, and {len(different) - 1} more" if different else None


def _names(options, classes):
    return list(options.labels) or [str(index) for index in range(classes)]


def _difference(found, expected, tolerance):
    if found.shape != expected.shape:
        return f"answers in the shape {found.shape}, not {expected.shape}"
    difference = float(np.abs(found.astype("float64") - expected).max() / np.abs(expected).max())
    return None if difference <= tolerance else f"differs from the Keras model by {difference:.1e} relative"
