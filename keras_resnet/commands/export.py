"""`python -m keras_resnet export` and `python -m export`."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from keras_resnet import cli
from keras_resnet.detection.config import list_detectors
from keras_resnet.detection.export.pipeline import export_detector
from keras_resnet.detection.export.request import IMAGES, DetectorExportRequest
from keras_resnet.errors import InputError, require
from keras_resnet.export import export_workdir
from keras_resnet.export.__main__ import COMMAND
from keras_resnet.export.artifacts import CHOICES, Options
from keras_resnet.export.pipeline import export
from keras_resnet.export.request import ExportRequest
from keras_resnet.run_folder import RunFolder, open_run_folder

# Flags that apply to one of the two tasks only.
_CLASSIFIERS = ("classes", "layout", "dynamic_size", "batch_size", "max_top1_drop", "strict")
_DETECTORS = ("images", "image_size")
_NEEDED = ("export",)  # what an export reads of a run's folders: the files that it may replace
_KERAS = ("mean", "std", "resize", "labels")  # of a .keras file


def main(export_all: Callable[..., bool] | None = None, **given: Any) -> int:
    """Exports a run or weights, or with `export_all` and the model "all" the whole zoo.

    Args:
        given: the values of `COMMAND.flags`.

    Returns:
        The exit status: 0 if all artifacts equal their models and, with `strict`, none is worse.
    """
    workdir, model, keras = given["workdir"], given["model"], given["keras"]
    cli.check_exclusive(given, "workdir", ("model", "weights", "classes", "keras"))
    cli.check_exclusive(given, "keras", ("model", "weights", "classes"))
    if workdir is None and keras is None and (model is None or given["weights"] is None):
        raise InputError("give --workdir=DIR, --model=NAME and --weights=FILE_OR_NAME, or --keras=FILE")
    with contextlib.ExitStack() as stack:
        if workdir is not None:
            given["workdir"] = stack.enter_context(open_run_folder(workdir, _NEEDED))
        return _export(export_all, given)


def _export(export_all: Callable[..., bool] | None, given: dict[str, Any]) -> int:
    workdir, keras = given["workdir"], given["keras"]
    is_detector = _is_detector_run(workdir) if workdir is not None else given["model"] in list_detectors()
    defaults = {flag.name: flag.default for flag in COMMAND.flags}
    for name in _CLASSIFIERS if is_detector else _DETECTORS:
        if given.pop(name) != defaults[name]:
            raise InputError(f"--{name} applies to {'classifiers' if is_detector else 'detectors'} only")
    for name in _KERAS:
        if keras is None and given[name] != defaults[name]:
            raise InputError(f"--{name} applies to --keras only")
    if is_detector:
        common = {name: value for name, value in given.items() if name not in ("keras", *_KERAS)}
        return _export_detector(**common)
    return _export_classifier(export_all, **given)


def export_run(workdir: str, formats: Iterable[str], data_dir: str | None) -> int:
    """Exports a finished run with the default options; returns the exit status."""
    with open_run_folder(workdir, _NEEDED) as folder:
        if _is_detector_run(folder):
            return _export_detector(workdir=folder, formats=formats, data_dir=data_dir)
        return 0 if export_workdir(folder, formats, data_dir=data_dir) else 1


def _is_detector_run(folder: RunFolder) -> bool:
    return folder.recipe.is_file() and folder.read_recipe()["model"] in list_detectors()


def _export_detector(
    image_size: tuple[str, ...] | None = None, images: int | None = None, **given: Any
) -> int:
    sides = None
    if image_size:
        if len(image_size) != 2 or not all(side.isdecimal() and int(side) for side in image_size):
            raise InputError(f"--image_size must be HEIGHT,WIDTH in pixels; got {','.join(image_size)}")
        sides = int(image_size[0]), int(image_size[1])
    request = DetectorExportRequest(image_size=sides, images=IMAGES if images is None else images, **given)
    return 0 if export_detector(request).equal else 1


def _export_classifier(export_all: Callable[..., bool] | None, **given: Any) -> int:
    options = Options(**{name: given.pop(name) for name in CHOICES})
    statistics = {name: ",".join(given.pop(name)) for name in ("mean", "std")}
    classes = given["classes"]
    require(classes is None or classes >= 1, "--classes must be at least 1", classes)
    if given["model"] == "all" and export_all is not None:
        if classes is not None:
            raise InputError("--classes and --model=all exclude each other")
        unused = ("workdir", "model", "classes", "keras", *_KERAS)
        common = {name: value for name, value in given.items() if name not in unused}
        return 0 if export_all(options=options, **common) else 1
    request = ExportRequest(options=options, **statistics, **given)
    return 0 if export(request).passes(request.strict) else 1
