"""The export application, `python -m export`. The library is `keras_resnet.export`."""

from keras_resnet.deprecation import with_old_names

__getattr__ = with_old_names(__name__)
