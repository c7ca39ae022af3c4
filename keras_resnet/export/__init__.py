"""From a trained network to SavedModel, TFLite and ONNX files that are proven equal to it.

Every exporter is `to_x(model, path) -> Path` for the model of `serving_model`; `export_workdir` and
`export_weights` write several formats, compare each with the Keras model and report what they found.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_resnet.export.artifacts import FORMATS, check_formats
    from keras_resnet.export.pipeline import export_and_verify, export_weights, export_workdir
    from keras_resnet.export.serving import serving_model
    from keras_resnet.export.verification import parity_table, verify
    from keras_resnet.export.writers.onnx import to_onnx
    from keras_resnet.export.writers.saved_model import to_saved_model
    from keras_resnet.export.writers.tflite import to_tflite

# Imported on first use, because they load TensorFlow. No name here is also a module's of this package:
# importing such a module would replace the function.
_HOMES = {
    "FORMATS": "artifacts",
    "check_formats": "artifacts",
    "export_and_verify": "pipeline",
    "export_weights": "pipeline",
    "export_workdir": "pipeline",
    "parity_table": "verification",
    "serving_model": "serving",
    "to_onnx": "writers.onnx",
    "to_saved_model": "writers.saved_model",
    "to_tflite": "writers.tflite",
    "verify": "verification",
}

__all__ = [
    "FORMATS",
    "check_formats",
    "export_and_verify",
    "export_weights",
    "export_workdir",
    "parity_table",
    "serving_model",
    "to_onnx",
    "to_saved_model",
    "to_tflite",
    "verify",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
