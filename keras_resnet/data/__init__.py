"""Datasets by name, and `tf.data` pipelines whose every byte follows from seed, epoch and example."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
