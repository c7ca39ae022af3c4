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
from keras_resnet.training.state import Run, save_checkpoint, set_up
from keras_resnet.training.step import Trainer
from keras_resnet.training.task import Task

# Called with the trainer, the first step of a call and its results (see `Trainer.train`).
Observer = Callable[[Trainer, int, np.ndarray], None]


class TrainingFailed(CommandFailed):
    """The run cannot continue."""


class Preempted(CommandFailed):
    """The run was stopped by SIGTERM, after writing a checkpoint to resume from."""

    status = 143  # 128 + SIGTERM, as in shells
    prefix = ""


def train(
    task: Task,
    folder: str | os.PathLike,
    options: RunOptions | None = None,
    observer: Observer | None = None,
) -> dict:
    """Trains a task in a folder, from its start or from the newest checkpoint in the folder.

    `observer` is called with the results of every call of the compiled graph.

    Returns:
        The last row of history.csv.

    Raises:
        InputError: an argument is invalid; nothing was written.
        TrainingFailed: the loss or the gradient is not finite, or another worker is lost.
        Preempted: SIGTERM was received; a checkpoint was written.
        OSError: the folder cannot be written.
    """
    run = set_up(task, RunFolder(folder), options or RunOptions())
    if run.step < run.total_steps:
        run.progress.begin(run.step)
        try:
            with _name_lost_workers(run), _catch_sigterm() as stopping:
                while run.step < run.total_steps:
                    _train_epoch(run, stopping, observer)
        finally:
            run.progress.end()
    _save_result(run)
    return run.history[-1]


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of the compiled steps, which may still be running."""

    first: int
    rates: list[float]
    results: tf.Tensor


def _train_epoch(run: Run, stopping: threading.Event, observer: Observer | None) -> None:
    epoch, first = divmod(run.step, run.task.epoch_steps)
    end = min((epoch + 1) * run.task.epoch_steps, run.total_steps)
    iterator = _training_iterator(run, epoch, first)
    pending, stop = None, False
    while run.step < end and not stop:
        call = _start_call(run, iterator, end, stopping)
        # While the devices work on this call, the results of the previous one are read.
        if pending is not None:
            stop = _read(run, pending, observer)
        # With several workers, the results tell whether any of them received SIGTERM.
        stop = stop or (run.distribution.workers == 1 and stopping.is_set())
        pending = call
        run.step += len(call.rates)
        save = _is_multiple(run.step, run.options.checkpoint_every)
        if save or stop or run.step == end or _is_multiple(run.step, run.schedule.error_window):
            stop = _read(run, pending, observer) or stop
            pending = None
        if (save or stop) and run.step < end:
            save_checkpoint(run)
    if run.step == end:
        _finish_epoch(run)
    if stop and run.step < run.total_steps:
        raise Preempted(
            f"stopped by SIGTERM after step {run.step} of {run.total_steps}, with a checkpoint; "
            "the same command resumes the run"
        )


def _training_iterator(run: Run, epoch: int, first_step: int) -> Iterator:
    dataset = run.task.training_batches(
        run.distribution,
        seed=run.options.seed,
        epoch=epoch,
        epochs=run.total_steps / run.task.epoch_steps,
        first_step=first_step,
        bad=run.bad_images,
    )
    return run.distribution.iterate(dataset)


def _start_call(run: Run, iterator: Iterator, end: int, stopping: threading.Event) -> _Call:
    """Starts `steps_per_call` steps, or fewer up to the next checkpoint, change of the rate or end."""
    intervals = (run.options.checkpoint_every, run.schedule.error_window)
    multiples = [(run.step // interval + 1) * interval for interval in intervals if interval]
    stops = (end, run.step + run.options.steps_per_call, *multiples)
    rates = [run.schedule.rate(step) for step in range(run.step, min(stops))]
    first, stop = tf.constant(run.step, tf.int32), tf.constant(float(stopping.is_set()))
    return _Call(run.step, rates, run.trainer.train(iterator, tf.constant(rates, tf.float32), first, stop))


def _is_multiple(step: int, interval: int | None) -> bool:
    return bool(interval) and step % interval == 0


def _read(run: Run, call: _Call, observer: Observer | None) -> bool:
    """Reads a call's results; returns whether a worker received SIGTERM."""
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
            run.sums = {name: value + result[name] for name, value in run.sums.items()}
            run.schedule.observe_errors(call.first + offset, run.task.error_sum(result), result["count"])
        stop = stop or result["stopping"] > 0
    run.progress.advance(call.first + len(rows), run.means())
    return stop


def _not_finite(run: Run, step: int, rate: float) -> str:
    kept = checkpoints.list_checkpoints(run.folder.checkpoints)
    good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    return f"loss or gradient is not finite at step {step + 1}, learning rate {rate:g}; {good}"


def _finish_epoch(run: Run) -> None:
    speed, train = run.progress.images_per_second(), run.means()
    with run.trainer.averaged_weights():
        val = _evaluate(run)
    rate = run.schedule.rate(run.step - 1)
    run.schedule.observe_epoch(run.task.error(val))
    row = {
        "epoch": round(run.step / run.task.epoch_steps, 6),
        "step": run.step,
        "learning_rate": rate,
        **{f"train_{name}": train[name] for name in run.task.train_metrics},
        **{f"val_{name}": val[name] for name in run.task.val_metrics},
        "images_per_second": round(speed, 1),
    }
    run.history.append(row)
    run.sums = dict.fromkeys(run.sums, 0.0)
    run.write_history()
    if run.bad_images.count:
        path = run.write_bad_images()
        run.progress.say(f"{run.bad_images.count} images cannot be used: see {path}")
    run.check_bad_images()
    save_checkpoint(run)
    run.progress.epoch(row, run.epochs, train, val)


def _evaluate(run: Run) -> dict[str, float]:
    """The metrics of the validation split with the present weights."""
    iterator = iter(run.evaluation_batches)
    total: Any = 0.0
    collected = []
    for _ in range(run.task.evaluation_steps):
        sums, more = run.trainer.evaluate(iterator)
        total = total + sums.numpy().astype("float64")
        collected.append({name: value.numpy() for name, value in more.items()})
    joined = {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
    return run.task.evaluation_metrics(total, joined)


def _save_result(run: Run) -> None:
    """Writes the weights and the curves; all workers take part in estimating statistics, the chief writes."""
    with run.trainer.averaged_weights():
        if run.task.recipe.reestimate_batches:
            _reestimate(run)
        if run.distribution.is_chief:
            run.task.save(run.trainer.model, run.folder.weights)
    if run.distribution.is_chief:
        draw_curves(run.folder, run.task)


def _reestimate(run: Run) -> None:
    """Averages batch normalization's statistics over batches of an additional epoch."""
    before = run.task.describe(_evaluate(run))
    count = min(run.task.recipe.reestimate_batches, run.task.epoch_steps)
    run.trainer.average_statistics(_training_iterator(run, run.epochs, 0), count)
    after = run.task.describe(_evaluate(run))
    run.progress.say(
        f"batch normalization's statistics averaged over {count} batches: "
        f"val {after}; with the moving averages {before}"
    )


@contextlib.contextmanager
def _catch_sigterm() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM sets instead of ending the process; only in the main thread."""
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
def _name_lost_workers(run: Run) -> Iterator[None]:
    """Turns TensorFlow's error about lost workers into a `TrainingFailed` that names them."""
    try:
        yield
    except tf.errors.OpError as error:
        lost = run.distribution.lost_workers(error)
        if not lost:
            raise
        raise TrainingFailed(
            f"lost {' and '.join(lost)} at step {run.step}; "
            "start all workers again to resume from the last checkpoint"
        ) from error
