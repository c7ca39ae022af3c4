"""Exports trained networks as SavedModel, TFLite and ONNX files that are verified against the Keras model.

Every exporter is `to_x(model, path) -> Path` for a model made by `serving_model`; `export_workdir` and
`export_weights` write several formats, compare each with the Keras model and write a report.
"""

from typing import TYPE_CHECKING

from keras_resnet import lazy

if TYPE_CHECKING:
    from keras_resnet.export.artifacts import ARTIFACTS, FORMATS, Options, check_formats
    from keras_resnet.export.pipeline import export_and_verify, export_weights, export_workdir
    from keras_resnet.export.report import ArtifactReport, ExportReport, parity_table
    from keras_resnet.export.request import ExportRequest
    from keras_resnet.export.serving import serving_model
    from keras_resnet.export.verification import verify
    from keras_resnet.export.writers.onnx import to_onnx
    from keras_resnet.export.writers.saved_model import to_saved_model
    from keras_resnet.export.writers.tflite import to_tflite

__getattr__ = lazy.attach(
    __name__,
    {
        "artifacts": ("ARTIFACTS", "FORMATS", "Options", "check_formats"),
        "pipeline": ("export_and_verify", "export_weights", "export_workdir"),
        "report": ("ArtifactReport", "ExportReport", "parity_table"),
        "request": ("ExportRequest",),
        "serving": ("serving_model",),
        "verification": ("verify",),
        "writers.onnx": ("to_onnx",),
        "writers.saved_model": ("to_saved_model",),
        "writers.tflite": ("to_tflite",),
    },
)

__all__ = [
    "ARTIFACTS",
    "FORMATS",
    "ArtifactReport",
    "ExportReport",
    "ExportRequest",
    "Options",
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
