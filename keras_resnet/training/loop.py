"""The training loop: steps, evaluation after each epoch, checkpoints and the result."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.errors import CommandFailed
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import checkpoints
from keras_resnet.training.options import RunOptions
from keras_resnet.training.progress import draw_curves
from keras_resnet.training.state import EpochSums, Position, Run, save_checkpoint, set_up
from keras_resnet.training.step import Trainer
from keras_resnet.training.task import Task

# Called with the trainer, the first step of a call and its results (see `Trainer.train`), once read.
Observer = Callable[[Trainer, int, np.ndarray], None]


class TrainingFailed(CommandFailed):
    """The run cannot continue by itself; the message is one line."""


class Preempted(CommandFailed):
    """The run was asked to stop, and has written a checkpoint to resume from."""

    status = 143  # as after SIGTERM
    prefix = ""


def train(
    task: Task,
    folder: str | os.PathLike,
    options: RunOptions | None = None,
    observer: Observer | None = None,
) -> dict:
    """Trains a task in a folder, from its start or from the newest checkpoint in the folder.

    Args:
        task: what to learn.
        folder: the run's folder; see `RunFolder`.
        options: devices, seed, checkpoints and so on.
        observer: sees the results of every call of the compiled graph.

    Returns:
        The last row of history.csv.

    Raises:
        InputError: something in the arguments is wrong; nothing was written then.
        TrainingFailed: the loss or the gradient is not finite, or another worker is lost.
        Preempted: SIGTERM came; a checkpoint was written.
        OSError: the folder cannot be written.
    """
    run, position = set_up(task, RunFolder(folder), options or RunOptions())
    if position.step < run.total_steps:
        run.progress.begin(position.step)
        try:
            with _lost_workers_named(run, position), _sigterm_noted() as stopping:
                while position.step < run.total_steps:
                    _train_epoch(run, position, stopping, observer)
        finally:
            run.progress.end()
    _save_result(run)
    return position.history[-1]


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of the compiled steps, whose results may not be there yet."""

    first: int
    rates: list[float]
    results: tf.Tensor


def _train_epoch(run: Run, position: Position, stopping: threading.Event, observer: Observer | None) -> None:
    epoch = position.step // run.epoch_steps
    end = min((epoch + 1) * run.epoch_steps, run.total_steps)
    iterator = _training_iterator(run, epoch, position.step % run.epoch_steps)
    pending, stop = None, False
    while position.step < end and not stop:
        call = _start_call(run, iterator, position.step, end, stopping)
        # While the devices work on this call, the results of the last one are read.
        if pending is not None:
            stop = _take(run, position, pending, observer)
        # Several workers learn from the results that one of them was asked to stop.
        stop = stop or (run.distribution.workers == 1 and stopping.is_set())
        pending = call
        position.step += len(call.rates)
        save = _is_multiple(position.step, run.options.checkpoint_every)
        if save or stop or position.step == end or _is_multiple(position.step, run.schedule.window):
            stop = _take(run, position, pending, observer) or stop
            pending = None
        if (save or stop) and position.step < end:
            save_checkpoint(run, position)
    if position.step == end:
        _finish_epoch(run, position)
    if stop and position.step < run.total_steps:
        raise Preempted(
            f"stopped by SIGTERM after step {position.step} of {run.total_steps}, with a checkpoint; "
            "the same command resumes the run"
        )


def _training_iterator(run: Run, epoch: int, first_step: int) -> Iterator:
    dataset = run.task.training_batches(
        run.distribution,
        seed=run.options.seed,
        epoch=epoch,
        epochs=run.total_steps / run.epoch_steps,
        first_step=first_step,
        bad=run.bad_images,
    )
    return run.distribution.iterate(dataset)


def _start_call(run: Run, iterator: Iterator, first: int, end: int, stopping: threading.Event) -> _Call:
    """Starts steps up to the next one after which something must be looked at."""
    stops = [end, first + run.options.steps_per_call]
    for interval in (run.options.checkpoint_every, run.schedule.window):
        if interval:
            stops.append((first // interval + 1) * interval)
    rates = [run.schedule.rate(step) for step in range(first, min(stops))]
    results = run.trainer.train(
        iterator,
        tf.constant(rates, tf.float32),
        tf.constant(first, tf.int32),
        tf.constant(float(stopping.is_set())),
    )
    return _Call(first, rates, results)


def _is_multiple(step: int, interval: int | None) -> bool:
    return bool(interval) and step % interval == 0


def _take(run: Run, position: Position, call: _Call, observer: Observer | None) -> bool:
    """Reads a call's results; returns whether some worker was asked to stop."""
    run.check_bad_images()
    rows = call.results.numpy().astype("float64")
    if observer is not None:
        observer(run.trainer, call.first, rows)
    stop = False
    for offset, row in enumerate(rows.tolist()):
        result = dict(zip(run.trainer.columns, row, strict=True))
        if not result["finite"] and result["loss_scale"] <= 1:
            raise TrainingFailed(_not_finite(run, call.first + offset, call.rates[offset]))
        if result["finite"]:
            position.sums.add(result)
            run.schedule.observe_errors(call.first + offset, run.task.error_sum(result), result["count"])
        stop = stop or result["stopping"] > 0
    run.progress.advance(call.first + len(rows), position.sums.means())
    return stop


def _not_finite(run: Run, step: int, rate: float) -> str:
    kept = checkpoints.list_checkpoints(run.folder.checkpoints)
    good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    return f"loss or gradient is not finite at step {step + 1}, learning rate {rate:g}; {good}"


def _finish_epoch(run: Run, position: Position) -> None:
    speed = run.progress.images_per_second()
    train = position.sums.means()
    with _averaged_weights(run.trainer):
        val = _evaluate(run)
    rate = run.schedule.rate(position.step - 1)
    run.schedule.observe_epoch(run.task.error(val))
    row = {
        "epoch": round(position.step / run.epoch_steps, 6),
        "step": position.step,
        "learning_rate": rate,
        **{f"train_{name}": train[name] for name in run.task.train_metrics},
        **{f"val_{name}": val[name] for name in run.task.val_metrics},
        "images_per_second": round(speed, 1),
    }
    position.history.append(row)
    position.sums = EpochSums.zero(run.task.train_metrics)
    run.write_history(position.history)
    if run.bad_images.count:
        path = run.write_bad_images()
        run.progress.say(f"{run.bad_images.count} images cannot be used: see {path}")
    run.check_bad_images()
    save_checkpoint(run, position)
    run.progress.epoch(row, run.epochs, train, val)


def _evaluate(run: Run) -> dict[str, float]:
    """The metrics of the validation split, with the weights as they are."""
    iterator = run.distribution.iterate(run.task.evaluation_batches(run.distribution, run.bad_images))
    total: Any = 0.0
    collected = []
    for _ in range(run.task.evaluation_steps):
        sums, more = run.trainer.evaluate(iterator)
        total = total + sums.numpy().astype("float64")
        collected.append({name: value.numpy() for name, value in more.items()})
    joined = {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
    return run.task.evaluation_metrics(total, joined)


def _save_result(run: Run) -> None:
    """Writes what was learned; all workers take part in estimating statistics, the chief writes."""
    with _averaged_weights(run.trainer):
        if run.task.recipe.reestimate_batches:
            _reestimate(run)
        if run.distribution.is_chief:
            run.task.save(run.trainer.model, run.folder.weights)
    if run.distribution.is_chief:
        recipe = run.task.recipe
        draw_curves(run.folder, f"{recipe.model} on {recipe.dataset}", run.task.curves)


def _reestimate(run: Run) -> None:
    """Averages batch normalization's statistics anew, over batches of an epoch of its own."""
    before = run.task.describe(_evaluate(run))
    count = min(run.task.recipe.reestimate_batches, run.epoch_steps)
    iterator = _training_iterator(run, run.epochs, 0)
    sums = run.trainer.batch_statistics(iterator)
    for _ in range(count - 1):
        sums = [a + b for a, b in zip(sums, run.trainer.batch_statistics(iterator), strict=True)]
    run.trainer.assign_statistics([total / count for total in sums])
    after = run.task.describe(_evaluate(run))
    run.progress.say(
        f"batch normalization's statistics averaged over {count} batches: "
        f"val {after}; with the moving averages {before}"
    )


@contextlib.contextmanager
def _averaged_weights(trainer: Trainer) -> Iterator[None]:
    """Gives the model its averaged weights, where the recipe has such, inside the block."""
    averages = trainer.averaged_weights()
    if not averages:
        yield
        return
    variables = trainer.model.variables
    kept = [variable.numpy() for variable in variables]
    try:
        for variable, value in zip(variables, averages, strict=True):
            variable.assign(value)
        yield
    finally:
        for variable, value in zip(variables, kept, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def _sigterm_noted() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM sets, instead of ending the process, in the main thread."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _lost_workers_named(run: Run, position: Position) -> Iterator[None]:
    """Turns TensorFlow's error about other workers into a `TrainingFailed` that names them."""
    try:
        yield
    except tf.errors.OpError as error:
        lost = run.distribution.lost_workers(error)
        if not lost:
            raise
        raise TrainingFailed(
            f"lost {' and '.join(lost)} at step {position.step}; "
            "start all workers again to resume from the last checkpoint"
        ) from error
