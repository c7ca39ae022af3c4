"""Exports trained networks as SavedModel, TFLite and ONNX files that are verified against the Keras model.

Every exporter is `to_x(model, path) -> Path` for a model made by `serving_model`; `export_workdir`,
`export_weights` and, for classifiers of any origin, `export_model` write several formats, compare each with
the Keras model and write a report.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
