"""The state of a run: what is set up once, what changes, and how that is checkpointed."""

import contextlib
import dataclasses
import math
from typing import Any

import keras

from keras_resnet.data import BadImages
from keras_resnet.errors import InputError
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import checkpoints
from keras_resnet.training.distribution import Distribution, create
from keras_resnet.training.options import PRECISIONS, RunOptions
from keras_resnet.training.progress import Progress
from keras_resnet.training.recipe import Recipe, check_run_folder, run_identity
from keras_resnet.training.schedules import Schedule
from keras_resnet.training.step import Trainer
from keras_resnet.training.task import Task


@dataclasses.dataclass
class EpochSums:
    """The sums of a task's training metrics, and of examples, since the epoch began."""

    names: tuple[str, ...]
    values: list[float]

    @classmethod
    def zero(cls, names: tuple[str, ...]) -> "EpochSums":
        """The state at the start of an epoch."""
        return cls(names, [0.0] * (len(names) + 1))

    def add(self, sums: dict[str, float]) -> None:
        """Adds the sums of a step, by the names of the metrics and "count"."""
        self.values = [
            value + sums[name] for value, name in zip(self.values, (*self.names, "count"), strict=True)
        ]

    def means(self) -> dict[str, float]:
        """The metrics; 0 before the first example."""
        *sums, count = self.values
        return {name: value / max(count, 1) for name, value in zip(self.names, sums, strict=True)}


@dataclasses.dataclass
class Position:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        sums: of the epoch that has begun.
        history: the rows of history.csv.
    """

    step: int
    sums: EpochSums
    history: list[dict]


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same while a run lasts: its parts, which may have a state of their own."""

    task: Task
    folder: RunFolder
    options: RunOptions
    distribution: Distribution
    trainer: Trainer
    schedule: Schedule
    progress: Progress
    bad_images: BadImages
    epoch_steps: int
    total_steps: int

    @property
    def epochs(self) -> int:
        """Epochs that the run begins."""
        return math.ceil(self.total_steps / self.epoch_steps)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of history.csv."""
        train = (f"train_{name}" for name in self.task.train_metrics)
        val = (f"val_{name}" for name in self.task.val_metrics)
        return ("epoch", "step", "learning_rate", *train, *val, "images_per_second")

    def write_history(self, rows: list[dict]) -> None:
        """Replaces history.csv; on the chief only."""
        if self.distribution.is_chief:
            self.folder.write_history(self.columns, rows)

    def check_bad_images(self) -> None:
        """Stops the run where too many images cannot be decoded, and writes their list."""
        try:
            self.bad_images.check(self.options.max_bad_images)
        except InputError:
            self.write_bad_images()
            raise

    def write_bad_images(self) -> str:
        """Writes the list of the images that this worker could not decode; returns its path."""
        path = self.folder.bad_images(self.distribution.worker)
        self.bad_images.write(path)
        return str(path)


def set_up(task: Task, folder: RunFolder, options: RunOptions) -> tuple[Run, Position]:
    """Prepares a run, at its start or at its newest checkpoint.

    Raises:
        InputError: something in the arguments is wrong; nothing was written then.
    """
    recipe = task.recipe
    distribution = create(options.strategy, options.worker_timeout)
    check_run_folder(folder, recipe, options.seed, options.precision)
    task.open(options.data_dir)
    epoch_steps = task.epoch_steps
    total_steps = recipe.steps or max(1, round(recipe.epochs * epoch_steps))
    _check_divisible(recipe, options, distribution)
    progress = Progress(folder, total_steps, recipe.batch_size, task.describe, visible=distribution.is_chief)
    checkpoint = _load_checkpoint(folder, recipe, options, progress)
    bad_images = BadImages()
    if checkpoint:
        bad_images.read(folder.bad_images(distribution.worker))
    model = _build(task, options, distribution, pretrained=checkpoint is None)
    task.prepare(checkpoint.arrays if checkpoint else None, bad_images)
    bad_images.check(options.max_bad_images)
    trainer = Trainer(
        model,
        task,
        distribution,
        seed=options.seed,
        accumulate=options.accumulate,
        jit=options.jit,
        remat=options.remat,
    )
    schedule = Schedule(recipe, total_steps, epoch_steps)
    run = Run(
        task,
        folder,
        options,
        distribution,
        trainer,
        schedule,
        progress,
        bad_images,
        epoch_steps,
        total_steps,
    )
    if distribution.is_chief and not folder.recipe.exists():
        folder.write_recipe(run_identity(recipe, options.seed, options.precision))
    if checkpoint:
        return run, _restore(run, checkpoint)
    return run, Position(0, EpochSums.zero(task.train_metrics), [])


def save_checkpoint(run: Run, position: Position) -> None:
    """Writes a checkpoint; on the chief only."""
    if not run.distribution.is_chief:
        return
    arrays = {name: variable.numpy() for name, variable in run.trainer.named_variables().items()}
    numbers = {
        **_identity(run.task.recipe, run.options),
        "sums": position.sums.values,
        "history": position.history,
        "schedule": run.schedule.state,
    }
    checkpoint = checkpoints.Checkpoint(position.step, {**arrays, **run.task.arrays()}, numbers)
    checkpoints.save(run.folder.checkpoints, checkpoint, run.options.keep)


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
    """What a checkpoint must agree with."""
    return {"recipe": recipe.to_dict(), "seed": options.seed, "precision": options.precision}


def _load_checkpoint(
    folder: RunFolder, recipe: Recipe, options: RunOptions, progress: Progress
) -> checkpoints.Checkpoint | None:
    """The newest checkpoint, which is of this recipe, seed and precision; None if there is none."""
    checkpoint = checkpoints.load_newest(folder.checkpoints, progress.say)
    if checkpoint is None:
        return None
    wanted = _identity(recipe, options)
    held: dict[str, Any] = {key: checkpoint.numbers.get(key) for key in wanted}
    # Checkpoints of older versions lack newer keys, which then had their defaults.
    with contextlib.suppress(InputError, TypeError):
        held["recipe"] = type(recipe).from_dict(held["recipe"]).to_dict()
    if held != wanted:
        raise _other_run(folder)
    return checkpoint


def _restore(run: Run, checkpoint: checkpoints.Checkpoint) -> Position:
    numbers, variables = checkpoint.numbers, run.trainer.named_variables()
    of_task = run.task.arrays()
    arrays = {name: array for name, array in checkpoint.arrays.items() if name not in of_task}
    shapes = {name: tuple(value.shape) for name, value in variables.items()}
    if {name: array.shape for name, array in arrays.items()} != shapes:
        raise _other_run(run.folder)
    for name, variable in variables.items():
        variable.assign(arrays[name])
    run.schedule.state = numbers["schedule"]
    run.write_history(numbers["history"])
    run.progress.say(f"resuming after step {checkpoint.step} of {run.total_steps}")
    sums = EpochSums(run.task.train_metrics, numbers["sums"])
    return Position(checkpoint.step, sums, numbers["history"])


def _other_run(folder: RunFolder) -> InputError:
    return InputError(f"the checkpoints in {folder.checkpoints} are of another model or recipe")
