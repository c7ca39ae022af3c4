"""From a trained network to a SavedModel, a TFLite and an ONNX file that are proven equal to it.

`python -m export --workdir=DIR` is the command; `export_workdir` and `export_weights` are the same
as functions. Every exporter is `to_x(model, path) -> Path` for the model of `serving_model`.
"""

import importlib

# Looked up on first use: a program can set up its logging before this loads Keras and TensorFlow.
_HOMES = {
    "FORMATS": "export.formats",
    "check_formats": "export.formats",
    "export_and_verify": "export.pipeline",
    "export_weights": "export.pipeline",
    "export_workdir": "export.pipeline",
    "parity_table": "export.verify",
    "serving_model": "export.signature",
    "to_onnx": "export.to_onnx",
    "to_saved_model": "export.to_saved_model",
    "to_tflite": "export.to_tflite",
    "verify": "export.verify",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
