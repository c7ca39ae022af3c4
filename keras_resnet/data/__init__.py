"""Datasets by name, and reproducible `tf.data` pipelines."""

import lazy_loader

from keras_resnet.deprecation import with_old_names

_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(__name__, _find)
