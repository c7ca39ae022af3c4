"""`python -m keras_resnet train` and `python train_main.py`."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from keras_resnet import classification, detection
from keras_resnet.commands.export import export_run
from keras_resnet.commands.recipes import RECIPES
from keras_resnet.errors import unknown_name
from keras_resnet.export import check_formats
from keras_resnet.files import os_errors_as_input_errors
from keras_resnet.training import RunOptions
from keras_resnet.training.distribution import is_chief


def changed_recipe(
    recipe: str, assignments: Sequence[str] = (), **changes: Any
) -> classification.ClassificationRecipe | detection.DetectionRecipe:
    """The recipe of that name with the `assignments` of `--set` and the changed fields that are not None."""
    if recipe not in RECIPES:
        raise unknown_name("recipe", recipe, RECIPES)
    changes = {name: value for name, value in changes.items() if value is not None}
    task = detection if recipe in detection.RECIPES else classification
    found = task.get_recipe(recipe, changes.pop("model", None))
    if "epochs" in changes:
        changes["steps"] = None
    return found.replace(**changes).set(assignments)


def main(recipe: str, set: Sequence[str], workdir: str | None, export: Sequence[str], **given: Any) -> int:
    """Trains and, if there are formats to `export` to, exports; returns the exit status.

    Only the first of several workers exports, after the run is finished on all of them.

    `given` has the fields of `RunOptions` and changed fields of the recipe.
    """
    options = RunOptions(**{field.name: given.pop(field.name) for field in dataclasses.fields(RunOptions)})
    changed = changed_recipe(recipe, set, **given)
    workdir = workdir or os.path.join("runs", f"{recipe}-{changed.model}")
    if export:
        check_formats(export)
    with os_errors_as_input_errors(workdir):
        if isinstance(changed, detection.DetectionRecipe):
            detection.train(changed, workdir, options)
        else:
            classification.train(changed, workdir, options)
    if not export or not is_chief(options.strategy):
        return 0
    return export_run(workdir, export, options.data_dir)
