"""Weight files: native `.weights.h5`, those of other libraries, and a table of published ones."""

from typing import TYPE_CHECKING

from keras_resnet import lazy

if TYPE_CHECKING:
    from keras_resnet.weights.labels import decode_predictions
    from keras_resnet.weights.native import load_weights, read_spec, save_weights
    from keras_resnet.weights.registry import PretrainedWeights, get_entry, list_weights
    from keras_resnet.weights.spec import ModelSpec
    from keras_resnet.weights.weight_file import (
        WeightFile,
        open_weights,
        preprocess_input,
        preprocessing_of,
    )

__all__ = [
    "ModelSpec",
    "PretrainedWeights",
    "WeightFile",
    "decode_predictions",
    "get_entry",
    "list_weights",
    "load_weights",
    "open_weights",
    "preprocess_input",
    "preprocessing_of",
    "read_spec",
    "save_weights",
]

__getattr__ = lazy.attach(
    __name__,
    {
        "labels": ["decode_predictions"],
        "native": ["load_weights", "read_spec", "save_weights"],
        "registry": ["PretrainedWeights", "get_entry", "list_weights"],
        "spec": ["ModelSpec"],
        "weight_file": ["WeightFile", "open_weights", "preprocess_input", "preprocessing_of"],
    },
)
