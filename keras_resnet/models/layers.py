"""Batch normalization on TensorFlow's fused kernel, also in models that are loaded from `.keras` files."""

import os
from typing import Any, cast

import keras

from keras_resnet.errors import InputError, one_line
from keras_resnet.models.graph import recursion_limit


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalization, on TensorFlow's fused kernel where both are equal.

    Variables, configuration, saved weights and results are those of `keras.layers.BatchNormalization`.
    Where the fused kernel cannot compute the same, Keras' own code runs. Outputs have the layer's compute
    dtype; the arithmetic is float32. A saved model names Keras' layer instead of this one, so that it can be
    loaded without this package; `load_model` loads it with this layer.
    """

    # Keras saves a class by its module and its name.
    __module__ = "keras.layers"

    # Set when the layer is built; None for Keras' types.
    moving_mean: keras.Variable
    moving_variance: keras.Variable

    def __reduce__(self) -> tuple:
        # Pickle would look for our class in the module above, where Keras' is.
        return keras.layers.BatchNormalization._unpickle_model, super().__reduce__()[1]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalizes `inputs` (batch, height, width, channels), as Keras' layer does."""
        if mask is not None or not self._can_fuse(inputs):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf  # already loaded: it is the backend

        in_training = bool(training) and self.trainable
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=() if in_training else tf.convert_to_tensor(self.moving_mean),
            variance=() if in_training else tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=in_training,
        )
        if in_training:
            # The kernel returns the sample variance; Keras keeps the population's.
            count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], variance.dtype)
            variance *= (count - 1.0) / count
            self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1.0 - self.momentum))
            self.moving_variance.assign(
                self.moving_variance * self.momentum + variance * (1.0 - self.momentum)
            )
        return outputs

    def _can_fuse(self, inputs) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and not self.synchronized
            and not getattr(self, "renorm", False)  # Keras 3.12 has no renormalization
            and self.variable_dtype == "float32"
            and self.compute_dtype in ("float32", "float16", "bfloat16")
            and keras.backend.standardize_dtype(inputs.dtype) == self.compute_dtype
        )


# The name of this layer in the files of earlier versions.
keras.saving.get_custom_objects()["keras_resnet>BatchNormalization"] = BatchNormalization


def load_model(
    path: str | os.PathLike[str], custom_objects: dict[str, Any] | None = None, compile: bool = True
) -> keras.Model:
    """Loads a model from a `.keras` file, with batch normalization on the fused kernel.

    Otherwise the model is that of `keras.models.load_model` in safe mode, which runs no code from the file.

    Args:
        custom_objects: classes and functions by the names in the file, except Keras' and registered ones.
        compile: whether a model that was compiled when it was saved has its optimizer and loss again.

    Raises:
        InputError: the file is missing or damaged, has another format, or holds a `Lambda` layer or another
            object that the safe mode refuses.
    """
    path = os.fspath(path)
    if not path.endswith(".keras"):
        raise InputError(f"a Keras model is read from a file that ends with .keras, not from {path}")
    if not os.path.isfile(path):
        raise InputError(f"there is no {path}")
    try:
        with recursion_limit():
            loaded = keras.models.load_model(path, custom_objects, compile, safe_mode=True)
    except Exception as error:  # a damaged file fails in any part of Keras
        cause = str(error).rpartition("Exception encountered: ")[2]  # Keras puts the whole config before it
        raise InputError(f"{path} cannot be loaded in safe mode: {one_line(cause)}") from error
    model = cast(keras.Model, loaded)
    for layer in model._flatten_layers():  # with those of models inside the model
        if type(layer) is keras.layers.BatchNormalization:
            layer.__class__ = BatchNormalization  # it has no attributes of its own
    return model
