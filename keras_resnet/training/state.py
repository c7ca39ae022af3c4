"""The parts and the state of a run, set up at its start or from a checkpoint."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import BadImages
from keras_resnet.data.identity import data_changes, split_rule_change
from keras_resnet.errors import InputError
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import checkpoints
from keras_resnet.training.distribution import Distribution
from keras_resnet.training.options import PRECISIONS, RunOptions
from keras_resnet.training.progress import Progress
from keras_resnet.training.recipe import Recipe, check_run_folder, run_identity
from keras_resnet.training.schedules import Schedule
from keras_resnet.training.step import Trainer
from keras_resnet.training.task import Task
from keras_resnet.training.trackers import Tracker, Trackers, create_trackers
from keras_resnet.version import __version__

_OTHER_RUN = "the checkpoints in {} are of another model or recipe"

# The order of examples and the last bits of a result may depend on them.
_VERSIONS = {"keras_resnet": __version__, "numpy": np.__version__, "tensorflow": tf.__version__}


@dataclasses.dataclass
class Run:
    """The parts of a run, and its progress."""

    task: Task
    folder: RunFolder
    options: RunOptions
    distribution: Distribution
    trainer: Trainer
    schedule: Schedule
    progress: Progress
    trackers: Trackers
    bad_images: BadImages
    total_steps: int
    sums: dict[str, float]  # of the training metrics, and the "count" of examples, over the current epoch
    step: int = 0  # number of optimizer steps done
    history: list[dict] = dataclasses.field(default_factory=list)  # the rows of history.csv
    unevaluated: dict | None = None  # the row of an epoch that is trained, but not evaluated

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done and all epochs evaluated."""
        return self.step >= self.total_steps and self.unevaluated is None

    @property
    def epochs(self) -> int:
        """The number of epochs, counting an incomplete last one."""
        return math.ceil(self.total_steps / self.task.epoch_steps)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of history.csv."""
        train = (f"train_{name}" for name in self.task.train_metrics)
        val = (f"val_{name}" for name in self.task.val_metrics)
        return ("epoch", "step", "learning_rate", *train, *val, "images_per_second")

    @functools.cached_property
    def evaluation_batches(self) -> Any:
        """The global batches of an evaluation; traced once per run."""
        return self.distribution.distribute(self.task.evaluation_batches(self.distribution, self.bad_images))

    def means(self) -> dict[str, float]:
        """The training metrics over the current epoch; 0 before the first example."""
        count = max(self.sums["count"], 1)
        return {name: self.sums[name] / count for name in self.task.train_metrics}

    def write_history(self) -> None:
        """Replaces history.csv; on the chief only."""
        if self.distribution.is_chief:
            self.folder.write_history(self.columns, self.history)

    def check_bad_images(self) -> None:
        """Raises `InputError` if there are too many bad images."""
        self.bad_images.check(self.options.max_bad_images)

    def write_bad_images(self) -> None:
        """Writes the list of images that this worker could not decode, if there are any."""
        if self.bad_images.count:
            self.bad_images.write(self.folder.bad_images(self.distribution.worker))


def set_up(
    task: Task,
    folder: RunFolder,
    options: RunOptions,
    distribution: Distribution,
    lock: contextlib.ExitStack,
    trackers: Sequence[Tracker] = (),
) -> Run:
    """Prepares a run, at its start or at its newest checkpoint; writes nothing if it raises `InputError`.

    The chief holds the folder's lock until `lock` is closed.
    """
    recipe = task.recipe
    is_new = not folder.recipe.exists()
    if distribution.is_chief and not is_new:
        _lock(lock, folder, options, distribution)
    check_run_folder(folder, recipe, options.seed, options.precision)
    task.check_options(options)
    task.open(options.data_dir)
    total_steps = recipe.steps or max(1, round(recipe.epochs * task.epoch_steps))
    _check_divisible(recipe, options, distribution)
    progress = Progress(task, total_steps, visible=distribution.is_chief)
    chosen = [*create_trackers(options.track), *trackers] if distribution.is_chief else []
    checkpoint = _load_checkpoint(folder, recipe, options, distribution, progress)
    _check_data(folder, task, checkpoint)
    bad_images = BadImages()
    if checkpoint:
        bad_images.read(folder.bad_images(distribution.worker))
    model = _build(task, options, distribution, pretrained=checkpoint is None)
    task.prepare(distribution, checkpoint.arrays if checkpoint else None, bad_images)
    bad_images.check(options.max_bad_images)
    trainer = Trainer(
        model,
        task,
        distribution,
        seed=options.seed,
        accumulate=options.accumulate,
        jit=options.jit,
        remat=options.remat,
        compress_gradients=options.compress_gradients,
    )
    schedule = Schedule(recipe, total_steps, task.epoch_steps)
    sums = dict.fromkeys((*task.train_metrics, "count"), 0.0)
    parts = task, folder, options, distribution, trainer, schedule, progress, Trackers(chosen, progress.say)
    run = Run(*parts, bad_images, total_steps, sums)
    if distribution.is_chief and is_new:  # only now, when all arguments are known to be valid
        _lock(lock, folder, options, distribution)
        if folder.recipe.exists():
            raise InputError(f"another process has started a run in {folder.path}; start again to resume it")
        identity = run_identity(recipe, options.seed, options.precision)
        folder.write_recipe({**identity, "data": task.data_identity})
    for line in task.notices:
        progress.say(line)
    if checkpoint:
        _restore(run, checkpoint)
    return run


def _lock(
    lock: contextlib.ExitStack, folder: RunFolder, options: RunOptions, distribution: Distribution
) -> None:
    """Excludes other processes from the folder; for the chief only, because its workers share the folder."""
    # A file server may keep the lock of a machine that failed for minutes.
    seconds = options.worker_timeout if distribution.workers > 1 else 0
    lock.enter_context(folder.locked(seconds))


def save_checkpoint(run: Run) -> None:
    """Writes the list of bad images and, on the chief only, a checkpoint; both also to object storage."""
    run.write_bad_images()
    if run.distribution.is_chief:
        checkpoints.save(run.folder.checkpoints, _checkpoint(run), run.options.keep)
    run.folder.upload()


def _checkpoint(run: Run) -> checkpoints.Checkpoint:
    arrays = {name: variable.numpy() for name, variable in run.trainer.named_variables().items()}
    numbers = {
        **_identity(run.task.recipe, run.options),
        "sums": list(run.sums.values()),
        "history": run.history,
        "unevaluated": run.unevaluated,
        "schedule": run.schedule.state,
        "data": run.task.data_identity,
        "versions": _VERSIONS,
    }
    return checkpoints.Checkpoint(run.step, {**arrays, **run.task.arrays()}, numbers)


def _check_divisible(recipe: Recipe, options: RunOptions, distribution: Distribution) -> None:
    parts = distribution.total_replicas * options.accumulate
    if recipe.batch_size % parts:
        raise InputError(
            f"the global batch of {recipe.batch_size} is not divisible by {parts} "
            f"({distribution.total_replicas} replicas x {options.accumulate} parts)"
        )


def _build(task: Task, options: RunOptions, distribution: Distribution, pretrained: bool) -> keras.Model:
    keras.utils.set_random_seed(options.seed)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(PRECISIONS[options.precision])
    try:
        with distribution.scope():
            model = task.build(pretrained)
    finally:
        keras.config.set_dtype_policy(policy)
    for layer in model.layers:
        if options.sync_batch_norm and isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
    return model


def _identity(recipe: Recipe, options: RunOptions) -> dict:
    """The entries of a checkpoint that must equal those of the run that resumes from it."""
    return {"recipe": recipe.to_dict(), "seed": options.seed, "precision": options.precision}


def _load_checkpoint(
    folder: RunFolder,
    recipe: Recipe,
    options: RunOptions,
    distribution: Distribution,
    progress: Progress,
) -> checkpoints.Checkpoint | None:
    """The newest checkpoint that the chief sees; None if there is none, `InputError` if it is of another run.

    Other workers may see an older list of files, because network file systems cache it.
    """
    checkpoint = None
    if distribution.is_chief:
        checkpoint = checkpoints.load_newest(
            folder.checkpoints, lambda line: progress.say(folder.shown(line))
        )
    sent = distribution.from_chief(checkpoints.to_bytes(checkpoint) if distribution.workers > 1 else b"")
    if not distribution.is_chief:
        checkpoint = checkpoints.from_bytes(sent)
    if checkpoint is None:
        return None
    wanted = _identity(recipe, options)
    held: dict[str, Any] = {key: checkpoint.numbers.get(key) for key in wanted}
    # Checkpoints of older versions lack newer keys, which had their default values.
    with contextlib.suppress(InputError, TypeError):
        held["recipe"] = type(recipe).from_dict(held["recipe"]).to_dict()
    if held != wanted:
        raise InputError(_OTHER_RUN.format(folder.checkpoints))
    return checkpoint


def _check_data(folder: RunFolder, task: Task, checkpoint: checkpoints.Checkpoint | None) -> None:
    """Raises `InputError` if the data have changed since the run was started, saying how."""
    identity, stored = task.data_identity, []
    if identity is None:
        return
    if folder.recipe.exists():
        stored.append(folder.read_recipe().get("data"))
    if checkpoint:
        stored.append(checkpoint.numbers.get("data"))
    for held in stored:  # None in runs of older versions
        if change := split_rule_change(held, identity):
            raise InputError(
                f"the run in {folder.path} is of an older version ({change}), so its validation images would "
                "change; resume it with that version, or choose another --workdir"
            )
        if changes := data_changes(held, identity):
            changed = ", ".join(changes[:4])
            raise InputError(
                f"the data of the run in {folder.path} have changed ({changed}); "
                "restore them, or choose another --workdir"
            )


def _restore(run: Run, checkpoint: checkpoints.Checkpoint) -> None:
    numbers, variables = checkpoint.numbers, run.trainer.named_variables()
    task_arrays = run.task.arrays()
    arrays = {name: array for name, array in checkpoint.arrays.items() if name not in task_arrays}
    shapes = {name: tuple(value.shape) for name, value in variables.items()}
    if {name: array.shape for name, array in arrays.items()} != shapes:
        raise InputError(_OTHER_RUN.format(run.folder.checkpoints))
    for name, variable in variables.items():
        variable.assign(arrays[name])
    run.step, run.history, run.schedule.state = checkpoint.step, numbers["history"], numbers["schedule"]
    run.unevaluated = numbers.get("unevaluated")  # checkpoints of older versions lack it
    run.sums = dict(zip(run.sums, numbers["sums"], strict=True))
    run.write_history()
    run.progress.say(f"resuming after step {run.step} of {run.total_steps}")
    written = numbers.get("versions", _VERSIONS)
    if written != _VERSIONS and not run.is_finished:
        there, here = (", ".join(map(" ".join, versions.items())) for versions in (written, _VERSIONS))
        run.progress.say(
            f"warning: the checkpoint was written with {there}, this is {here}; "
            "the order of examples, and so the result, may differ from an uninterrupted run's"
        )
