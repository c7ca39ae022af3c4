"""The export application: `python -m export`, in front of the library `keras_resnet.export`.

In a checkout `import export` has the library's public names.
"""

from keras_resnet import export as _library

__all__ = dir(_library)  # its public names


def __getattr__(name: str):
    return getattr(_library, name)
