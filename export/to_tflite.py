"""The serving model as a TFLite file."""

from pathlib import Path

import keras

from export.files import replacing, starts_with
from export.quiet import quiet
from export.signature import SIGNATURE
from export.to_saved_model import to_saved_model
from keras_resnet.errors import InputError
from keras_resnet.resnet import recursion_limit


def to_tflite(model: keras.Model, path: str | Path) -> Path:
    """Writes a TFLite file of built-in operators only: it runs in the plain interpreter everywhere.

    Args:
        model: of `serving_model`.
        path: the file; a TFLite file there is replaced.

    Returns:
        The path. Signature `serving_default`: `images`, float32 (batch, height, width, channels), to
        `logits` and `probabilities`, float32 (batch, classes); any batch size, by resizing the input
        (signature runners do it themselves).

    Raises:
        InputError: the network needs an operator that TFLite lacks (it would need TensorFlow's "Flex"
            operators), something else lies at `path`, or it cannot be written.
    """
    import tensorflow as tf

    with replacing(path, starts_with(b"TFL3")) as temporary:
        source = to_saved_model(model, temporary.with_name("source"))
        with recursion_limit():
            temporary.write_bytes(_convert(tf, source, path))
    return Path(path)


def _convert(tf, source: Path, path: str | Path) -> bytes:
    from tensorflow.lite.python.convert import ConverterError

    converter = tf.lite.TFLiteConverter.from_saved_model(str(source), signature_keys=[SIGNATURE])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        with quiet():
            return converter.convert()
    except ConverterError as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: the network needs an operator that TFLite lacks: {first_line}") from error
