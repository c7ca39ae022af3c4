"""The serving model as a TensorFlow SavedModel."""

from pathlib import Path

import keras

from export.files import replacing
from export.quiet import quiet
from export.signature import SIGNATURE, serving_function
from keras_resnet.errors import InputError
from keras_resnet.resnet import recursion_limit

_ENTRIES = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"}


def to_saved_model(model: keras.Model, path: str | Path) -> Path:
    """Writes a SavedModel folder that plain TensorFlow loads without Keras or this package.

    Args:
        model: of `serving_model`.
        path: the folder; a SavedModel there is replaced.

    Returns:
        The path. Signature `serving_default`: `images`, float32 (batch, height, width, channels), to
        `logits` and `probabilities`, float32 (batch, classes); any batch size.

    Raises:
        InputError: something else lies at `path`, or it cannot be written.
    """
    import tensorflow as tf

    function = serving_function(model)
    # A bare module with a flat list of variables: the file then holds no Keras object, and loading it
    # does not walk the layers one inside another.
    module = tf.Module()
    module.model_variables = [variable.value for variable in model.variables]
    with replacing(path, is_saved_model) as temporary, recursion_limit():
        signatures = {SIGNATURE: function.get_concrete_function()}
        try:
            with quiet():
                tf.saved_model.save(module, str(temporary), signatures=signatures)
        except tf.errors.OpError as error:  # TensorFlow's own word for what the disk refuses
            raise InputError(f"cannot write {path}: {error.message}") from error
    return Path(path)


def is_saved_model(path: Path) -> bool:
    """Whether `path` is a folder that holds a SavedModel and nothing else, or nothing at all."""
    if not path.is_dir():
        return False
    entries = {entry.name for entry in path.iterdir()}
    return not entries or ("saved_model.pb" in entries and entries <= _ENTRIES)
