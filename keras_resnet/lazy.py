"""Packages whose names are imported on first use, so that `--help` does not load TensorFlow (PEP 562)."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def attach(package: str, homes: Mapping[str, Iterable[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports its public names, and its submodules, on first use.

    The package lists the same names in `__all__`, and imports them under `if TYPE_CHECKING:` for tools.

    Args:
        package: `__name__` of the package.
        homes: the names that each submodule provides. None of them is also the name of a submodule of the
            package: importing that one would replace it.
    """
    modules = {name: f"{package}.{module}" for module, names in homes.items() for name in names}

    def load(name: str) -> Any:
        if name in modules:
            value = getattr(importlib.import_module(modules[name]), name)
            setattr(sys.modules[package], name, value)
            return value
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load
