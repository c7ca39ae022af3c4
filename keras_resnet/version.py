"""The version, readable without importing Keras, and those of the packages that results depend on."""

import contextlib
import importlib.metadata
import platform

__version__ = "0.2.0"


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of Python, this package, and those of `packages` that are installed."""
    found = {"python": platform.python_version(), "keras_resnet": __version__}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
