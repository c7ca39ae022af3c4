"""Object detection: detectors, their training and evaluation, datasets, and export to ONNX."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
