"""`python -m keras_resnet evaluate`."""

import contextlib
import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from keras_resnet import cli
from keras_resnet.classification.__main__ import COMMAND
from keras_resnet.classification.evaluated_model import EvaluatedModel, load_evaluated_model
from keras_resnet.classification.evaluation import evaluate, validation_arguments
from keras_resnet.classification.protocols import get_protocol
from keras_resnet.classification.report import check_folder, table, write_report
from keras_resnet.data import Dataset, open_dataset
from keras_resnet.data.identity import split_rule_change
from keras_resnet.errors import InputError
from keras_resnet.files import os_errors_as_input_errors
from keras_resnet.run_folder import RunFolder, open_run_folder
from keras_resnet.training.distribution import Distribution, create


def main(**flags: Any) -> None:
    """Evaluates, prints a table and writes a report; takes the values of `COMMAND.flags`."""
    given = SimpleNamespace(**flags)
    get_protocol(given.protocol)
    # Several workers must connect before TensorFlow runs any operation.
    distribution = create(given.strategy, given.worker_timeout)
    with contextlib.ExitStack() as stack:
        if given.workdir is not None:
            given.workdir = stack.enter_context(open_run_folder(given.workdir, ("evaluation",)))
        command = cli.command_line("python -m keras_resnet evaluate", COMMAND, flags)
        _evaluate(given, distribution, command)


def _evaluate(given: SimpleNamespace, distribution: Distribution, command: str) -> None:
    models, dataset, defaults = _evaluated_models(given, distribution)
    folder = given.output_dir or _default_folder(given, models, dataset)
    check_folder(folder)
    opened = open_dataset(dataset, given.data_dir)
    if given.workdir is not None:
        _check_split_rule(given.workdir, opened)
    evaluation = evaluate(
        models,
        opened,
        given.protocol,
        distribution=distribution,
        split=given.split or defaults.get("split"),
        batch_size=defaults.get("batch_size") if given.batch_size is None else given.batch_size,
        max_bad_images=given.max_bad_images,
    )
    if not distribution.is_chief:
        return
    print(table(evaluation))
    with os_errors_as_input_errors(folder):
        write_report(evaluation, folder, command)
    speed = evaluation.metrics.images / evaluation.seconds
    shown = folder if given.workdir is None else given.workdir.shown(str(folder))
    print(
        f"{evaluation.protocol.name} on {evaluation.split} of {evaluation.dataset.name}: "
        f"{evaluation.seconds:.1f} s, {speed:.1f} images/s; see {shown}"
    )


def _evaluated_models(
    given: SimpleNamespace, distribution: Distribution
) -> tuple[list[EvaluatedModel], str, dict]:
    """The networks, the name of the dataset, and default values of arguments of `evaluate`."""
    cli.check_exclusive(vars(given), "workdir", ("model", "weights"))
    if given.workdir is not None:
        folder = given.workdir
        recipe = folder.read_recipe()
        dataset = given.dataset or recipe["dataset"]
        defaults = validation_arguments(recipe, dataset, given.protocol, distribution.total_replicas)
        model = load_evaluated_model(str(folder.weights))
        return [dataclasses.replace(model, weights=folder.shown(model.weights))], dataset, defaults
    if not given.weights or given.dataset is None:
        raise InputError("give --weights=FILE_OR_NAME and --dataset=NAME, or --workdir=DIR")
    if not all(given.weights):
        raise InputError(f"--weights has an empty name: {','.join(given.weights)!r}")
    names = (given.model or "").split(",")
    if len(names) == 1:
        names *= len(given.weights)
    if len(names) != len(given.weights):
        raise InputError(
            f"--model has {len(names)} names, --weights {len(given.weights)}; give one, or as many"
        )
    pairs = zip(given.weights, names, strict=True)
    return [load_evaluated_model(name, model or None) for name, model in pairs], given.dataset, {}


def _check_split_rule(run: RunFolder, dataset: Dataset) -> None:
    """Raises `InputError` if training images of a run of an older version are validation images now."""
    recipe = run.read_recipe()
    specs = [recipe[key] for key in ("train_split", "val_split") if recipe.get(key)]
    if dataset.name != recipe["dataset"]:
        return
    if change := split_rule_change(recipe.get("data"), dataset.identity(*specs)):
        raise InputError(
            f"the run in {run.path} is of an older version ({change}), so it was trained on images that "
            "would be evaluated; use that version, or another --dataset"
        )


def _default_folder(given: SimpleNamespace, models: list[EvaluatedModel], dataset: str) -> Path:
    """A folder for evaluations with these models, dataset, split and protocol."""
    about = [dataset if given.split is None else f"{dataset}-{given.split}", given.protocol]
    if given.workdir is not None:
        folder = Path(given.workdir, "evaluation")
    else:
        folder = Path("runs", "evaluation")
        about[:0] = [f"{model.spec.model}-{model.digest[:8]}" for model in models]
    return folder / re.sub(r"[^\w.+-]+", "_", "-".join(about))
