"""`python -m keras_resnet export` and `python -m export`."""

from collections.abc import Callable
from typing import Any

from keras_resnet.errors import InputError, require
from keras_resnet.export import export_weights, export_workdir
from keras_resnet.export.artifacts import Options


def main(
    workdir: str | None,
    model: str | None,
    weights: str | None,
    classes: int | None,
    export_all: Callable[..., bool] | None = None,
    **given: Any,
) -> int:
    """Exports a run or weights, or with `export_all` and the model "all" the whole zoo.

    Returns the exit status: 0 if all artifacts equal their models and, with `strict`, none is worse.
    """
    names = ("io_dtype", "opset", "layout", "dynamic_size")
    given["options"] = Options(**{name: given.pop(name) for name in names})
    chosen = {"model": model, "weights": weights, "classes": classes}
    if workdir is not None:
        for name, value in chosen.items():
            if value is not None:
                raise InputError(f"--workdir and --{name} exclude each other")
        return 0 if export_workdir(workdir, **given) else 1
    if model is None or weights is None:
        raise InputError("give --workdir=DIR, or --model=NAME and --weights=FILE_OR_NAME")
    require(classes is None or classes >= 1, "--classes must be at least 1", classes)
    if model == "all" and export_all is not None:
        if classes is not None:
            raise InputError("--classes and --model=all exclude each other")
        return 0 if export_all(weights, **given) else 1
    return 0 if export_weights(**chosen, **given) else 1
