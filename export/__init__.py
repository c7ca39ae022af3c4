"""The export application, `python -m export`; has the public names of the library `keras_resnet.export`."""

from keras_resnet import export as _library

__all__ = dir(_library)  # its public names


def __getattr__(name: str):
    return getattr(_library, name)
