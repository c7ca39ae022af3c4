"""Writes TensorFlow SavedModels, in the layout of TensorFlow Serving."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import check_choice, precisions
from keras_resnet.export.graph import Graph, fold
from keras_resnet.export.serving import INPUT, OUTPUTS, PROBABILITIES, SIGNATURE, UINT8_SIGNATURE
from keras_resnet.export.writers.image_bytes import decode_batch
from keras_resnet.export.writers.tensorflow_ops import FEATURES, compute, keras_variables, weight_arrays
from keras_resnet.export.writers.tflite_metadata import check_labels, text_files
from keras_resnet.files import replacing
from keras_resnet.images.preprocessing import Preprocessing
from keras_resnet.quiet import quiet

CLASSIFY_BYTES = "classify_bytes"
LABELS = "labels"
TOP = 5  # classes that `classify_bytes` names

# Weights of up to this many bytes become constants, others variables. oneDNN converts a constant kernel to
# its own layout once, a variable in every call: for one image, a fifth to a third of the time. But
# TensorFlow copies constants from graph to graph, 25 times their size in memory before the first answer.
# Both are fused with their bias, ReLU and addition, with one exception: the addition of a constant bias of
# zeros, which untrained networks have, is dropped from the graph, and then nothing is fused.
_CONSTANT_BYTES = 2**27


def to_saved_model(
    model: keras.Model | Graph,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    precision: str = "float32",
    labels: tuple[str, ...] = (),
    preprocessing: Preprocessing | None = None,
) -> Path:
    """Writes a new version of a model, which TensorFlow loads without Keras or this package.

    Args:
        model: made by `serving_model`, or folded by `graph.fold`.
        path: the folder of the model's versions, as TensorFlow Serving expects it; created if missing.
        metadata: strings by name, kept in the file `metadata.json` among the version's assets.
        precision: of the convolutions, "float32" or "bfloat16"; inputs and outputs are float32.
        labels: class names in the order of the logits; without them `classify_bytes` gives numbers.
        preprocessing: how `classify_bytes` resizes and crops an image; None resizes whole images
            bilinearly. The signature is left out where the network's input is not a square of a fixed size.

    Returns:
        The version's folder, `path/1`, or the next free number. Its signatures, for zero or more images:

        - `serving_default`: `images`, float32 (batch, height, width, channels), raw pixels 0-255, to
          `logits` and `probabilities`, float32 (batch, classes).
        - `serving_uint8`: the same with uint8 `images`.
        - `classify_bytes`: `image_bytes`, string (batch,), JPEG or PNG files, to `classes`, string, and
          `probabilities`, float32, both (batch, k), the five most probable first.
        - `labels`: nothing to `labels`, string (classes,), in the order of the logits.
        - `features`: float32 `images` to `features`, float32 (batch, n), what the last dense layer takes: in
          the networks of the zoo, the pooled last map.

    Raises:
        InputError: something else exists at `path`, or it cannot be written.
    """
    check_choice("precision of a SavedModel", precision, precisions("saved_model"))
    graph = fold(model)
    check_labels(labels, graph.classes)
    signatures = functools.partial(
        _signatures, graph=graph, precision=precision, labels=labels, preprocessing=preprocessing
    )
    return write_version(Path(path), signatures, metadata or {}, labels)


def write_version(
    path: Path,
    make_signatures: Callable[[tf.Module], dict[str, Any]],
    metadata: Mapping[str, str],
    labels: Sequence[str],
) -> Path:
    """Writes the next version of a model to `path`, the folder of its versions; returns the version's folder.

    Args:
        make_signatures: returns the signatures by name; stores their variables in the given module.
        metadata: strings by name, for the asset `metadata.json`.
        labels: class names, for the asset `labels.txt`.

    Raises:
        InputError: something else exists at `path`, or it cannot be written.
    """
    version = path / str(next_version(path))
    with _removed_if_empty(path), replacing(version, lambda found: False) as temporary:
        module: Any = tf.Module()
        signatures = make_signatures(module)
        # Assets must exist until TensorFlow has copied them.
        assets = temporary.with_name("assets")
        assets.mkdir()
        for name, text in text_files(dict(sorted(metadata.items())), labels).items():
            (assets / name).write_text(text, encoding="utf-8")
            setattr(module, name.replace(".", "_"), tf.saved_model.Asset(str(assets / name)))
        try:
            with quiet():
                tf.saved_model.save(module, str(temporary), signatures=signatures)
        except tf.errors.OpError as error:  # how TensorFlow reports a full disk
            raise InputError(f"cannot write {path}: {error.message}") from error
    return version


def read_labels(version: Path) -> tuple[str, ...]:
    """Reads the names of the classes from the folder of a version; returns no names if there are none."""
    labels = version / "assets" / "labels.txt"
    return tuple(labels.read_text("utf-8").splitlines()) if labels.is_file() else ()


def constants_or_variables(
    weights: Mapping[tuple[str, str], np.ndarray], module: Any
) -> Mapping[tuple[str, str], Any]:
    """Returns small weights as they are, to become constants, and large ones as variables of `module`.

    Weights that are the same array become the same variable.
    """
    arrays: dict[int, Any] = {id(array): array for array in weights.values()}
    if sum(array.nbytes for array in arrays.values()) <= _CONSTANT_BYTES:
        return weights
    variables = {key: tf.Variable(array, trainable=False) for key, array in arrays.items()}
    module.model_variables = list(variables.values())
    return {key: variables[id(array)] for key, array in weights.items()}


def signature_function(function: Callable, *specs: tf.TensorSpec) -> Any:
    """Returns a signature whose inputs have the names, shapes and dtypes of `specs`."""
    return tf.function(function, input_signature=specs, autograph=False).get_concrete_function()


def next_version(path: Path) -> int:
    """Returns the number of the next version of a model; refuses a path of anything but versions."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    others = [name for name in names if not name.isdecimal() and not name.startswith(".")]
    if (path.exists() and not path.is_dir()) or others:
        what = f" ({others[0]} lies in it)" if others else ""
        raise InputError(
            f"{path} exists and is not a folder of model versions{what}; move it or choose another place"
        )
    return max((int(name) for name in names if name.isdecimal()), default=0) + 1


@contextlib.contextmanager
def _removed_if_empty(path: Path) -> Iterator[None]:
    """Removes the folder after a failure if it is empty."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.rmdir()
        raise


def _signatures(
    module, graph: Graph, precision: str, labels: tuple[str, ...], preprocessing: Preprocessing | None
) -> dict:
    """Returns the signatures; `module` keeps their variables. Without Keras objects, nothing is nested."""
    weights = constants_or_variables(weight_arrays(graph.nodes, precision), module)
    module.keras_variables = keras_variables(graph.nodes)
    shape = (None, *graph.input_shape)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)], autograph=False)
    def outputs(images):
        # oneDNN refuses zero images: a blank one takes their place, and its results are left out.
        count, sides = tf.shape(images)[:1], tf.shape(images)[1:]
        blank = tf.zeros(tf.concat([tf.cast(count == 0, tf.int32), sides], 0))
        results = compute(graph, tf.concat([images, blank], 0), weights, precision)
        return {name: value[: count[0]] for name, value in results.items()}

    def classify(images):
        results = outputs(tf.cast(images, tf.float32))
        return {name: results[name] for name in OUTPUTS}

    images = tf.TensorSpec(shape, tf.float32, name=INPUT)
    # One tensor for all functions, so that `labels` lists the names that `classify_bytes` returns.
    names = tf.constant(labels or [str(index) for index in range(graph.classes)])
    signatures = {
        SIGNATURE: signature_function(classify, images),
        UINT8_SIGNATURE: signature_function(classify, tf.TensorSpec(shape, tf.uint8, name=INPUT)),
        FEATURES: signature_function(lambda images: {FEATURES: outputs(images)[FEATURES]}, images),
        LABELS: signature_function(lambda: {LABELS: tf.identity(names)}),
    }
    height, width, channels = graph.input_shape
    if height is not None and height == width and channels in (1, 3):
        resize = preprocessing.resize if preprocessing else None
        interpolation = preprocessing.interpolation if preprocessing else "bilinear"

        def classify_bytes(image_bytes):
            images = decode_batch(image_bytes, height, resize, channels, interpolation)
            values, indices = tf.math.top_k(outputs(images)[PROBABILITIES], min(TOP, graph.classes))
            return {"classes": tf.gather(names, indices), PROBABILITIES: values}

        files = tf.TensorSpec((None,), tf.string, name="image_bytes")
        signatures[CLASSIFY_BYTES] = signature_function(classify_bytes, files)
    return signatures
