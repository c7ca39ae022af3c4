"""The training loop: steps, evaluation after each epoch, checkpoints and the result."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.data.sources import pipeline_errors
from keras_resnet.errors import CommandFailed
from keras_resnet.progress import ProgressBar
from keras_resnet.run_folder import open_run_folder
from keras_resnet.training import checkpoints
from keras_resnet.training.distribution import create
from keras_resnet.training.options import RunOptions
from keras_resnet.training.progress import draw_curves
from keras_resnet.training.recipe import run_identity
from keras_resnet.training.sigterm import Preempted, Sigterm, catch_sigterm
from keras_resnet.training.state import Run, save_checkpoint, set_up
from keras_resnet.training.step import Trainer
from keras_resnet.training.task import Task
from keras_resnet.training.trackers import Status, Tracker

# Called with the trainer, the first step of a call and its results (see `Trainer.train`).
Observer = Callable[[Trainer, int, np.ndarray], None]


class TrainingFailed(CommandFailed):
    """The run cannot continue."""


def train(
    task: Task,
    folder: str | os.PathLike,
    options: RunOptions | None = None,
    observer: Observer | None = None,
    trackers: Sequence[Tracker] = (),
) -> dict:
    """Trains a task in a folder, from its start or from the newest checkpoint in the folder.

    Args:
        observer: is called with the results of every call of the compiled graph.
        trackers: log every epoch, in addition to those of `options.track`.

    Returns:
        The last row of history.csv.

    Raises:
        InputError: an argument is invalid, or another process uses the folder; nothing was written. Or a file
            of the dataset is found to be damaged, or another process has taken over the folder in object
            storage.
        TrainingFailed: the loss or the gradient is not finite.
        LostWorker: another worker did not connect, or is lost.
        Preempted: SIGTERM was received; all steps done so far are in a checkpoint.
        TryAgain: object storage does not answer.
        OSError: the folder cannot be written.
    """
    options = options or RunOptions()
    with contextlib.ExitStack() as lock, catch_sigterm() as sigterm:
        distribution = create(options.strategy, options.worker_timeout)
        sigterm.install()
        watched = distribution.is_multi_worker
        repeated = sigterm.repeated(distribution.took_sigterm) if watched else contextlib.nullcontext()
        needed = ("checkpoints",) if distribution.is_chief else ()
        with (
            repeated,
            distribution.name_lost_workers(),
            pipeline_errors(),
            open_run_folder(folder, needed) as opened,
        ):
            run = set_up(task, opened, options, distribution, lock, trackers)
            with _tracked(run, sigterm):
                if not run.is_finished:
                    _train_and_evaluate(run, sigterm, observer)
                _save_result(run, sigterm)
            distribution.end_last()
            return run.history[-1]


@contextlib.contextmanager
def _tracked(run: Run, sigterm: Sigterm) -> Iterator[None]:
    """Begins and ends the trackers' logs, unless the run has already ended with its result."""
    if run.is_finished and run.folder.weights.exists():
        yield
        return
    identity = run_identity(run.task.recipe, run.options.seed, run.options.precision)
    run.trackers.begin(run.folder, identity, run.history)
    run.folder.upload()  # recipe.json, and the trackers' names of the run
    status: Status = "failed"
    try:
        yield
        status = "finished"
    except BaseException as error:
        if sigterm.received or isinstance(error, Preempted | KeyboardInterrupt):
            status = "stopped"
        raise
    finally:
        run.trackers.end(status)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of the compiled steps, which may still be running."""

    first: int
    rates: list[float]
    results: tf.Tensor


def _train_and_evaluate(run: Run, sigterm: Sigterm, observer: Observer | None) -> None:
    run.progress.begin(run.step)
    try:
        with run.distribution.name_lost_workers(lambda: f" at step {run.step}"), sigterm.deferred():
            while not run.is_finished:
                if run.unevaluated is None:
                    _train_epoch(run, sigterm, observer)
                _evaluate_epoch(run, sigterm)
    finally:
        run.progress.end()
        run.write_bad_images()


def _train_epoch(run: Run, sigterm: Sigterm, observer: Observer | None) -> None:
    """Trains to the end of an epoch and writes a checkpoint, from which the evaluation can be repeated."""
    epoch, first = divmod(run.step, run.task.epoch_steps)
    end = min((epoch + 1) * run.task.epoch_steps, run.total_steps)
    iterator = _training_iterator(run, epoch, first)
    pending, stop = None, False
    while run.step < end and not stop:
        call = _start_call(run, iterator, end, sigterm)
        # While the devices work on this call, the results of the previous one are read.
        if pending is not None:
            stop = _read(run, pending, observer)
        # With several workers, the results tell whether any of them received SIGTERM.
        stop = stop or (run.distribution.workers == 1 and sigterm.received)
        pending = call
        run.step += len(call.rates)
        save = _is_multiple(run.step, run.options.checkpoint_every)
        if save or stop or run.step == end or _is_multiple(run.step, run.schedule.error_window):
            stop = _read(run, pending, observer) or stop
            pending = None
        if (save or stop) and run.step < end:
            save_checkpoint(run)
    if run.step == end:
        run.unevaluated = _training_row(run)
        run.sums = dict.fromkeys(run.sums, 0.0)
        save_checkpoint(run)
    if stop:
        raise _preempted(run)


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


def _start_call(run: Run, iterator: Iterator, end: int, sigterm: Sigterm) -> _Call:
    """Starts `steps_per_call` steps, or fewer up to the next checkpoint, change of the rate or end."""
    intervals = (run.options.checkpoint_every, run.schedule.error_window)
    multiples = [(run.step // interval + 1) * interval for interval in intervals if interval]
    stops = (end, run.step + run.options.steps_per_call, *multiples)
    rates = [run.schedule.rate(step) for step in range(run.step, min(stops))]
    first, stop = tf.constant(run.step, tf.int32), tf.constant(float(sigterm.received))
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


def _training_row(run: Run) -> dict:
    """The row of history.csv for the epoch just trained, without its evaluation."""
    return {
        "epoch": round(run.step / run.task.epoch_steps, 6),
        "step": run.step,
        "learning_rate": run.schedule.rate(run.step - 1),
        **{f"train_{name}": mean for name, mean in run.means().items()},
        "images_per_second": float(f"{run.progress.images_per_second():.5g}"),
    }


def _evaluate_epoch(run: Run, sigterm: Sigterm) -> None:
    with run.trainer.averaged_weights():
        val = _evaluate(run, sigterm)
    run.check_bad_images()
    run.schedule.observe_epoch(run.task.error(val))
    row = {**(run.unevaluated or {}), **{f"val_{name}": val[name] for name in run.task.val_metrics}}
    run.history.append(row)
    run.unevaluated = None
    run.write_history()
    save_checkpoint(run)
    if run.bad_images.count:
        path = run.folder.bad_images(run.distribution.worker)
        run.progress.say(f"{run.bad_images.count} images cannot be used: see {run.folder.shown(str(path))}")
    run.trackers.epoch(row)
    run.folder.upload()
    train = {name: row[f"train_{name}"] for name in run.task.train_metrics}
    run.progress.epoch(row, run.epochs, train, val)


def _evaluate(run: Run, sigterm: Sigterm) -> dict[str, float]:
    """The metrics of the validation split; `Preempted` if a worker received SIGTERM meanwhile."""
    iterator = iter(run.evaluation_batches)
    total: Any = 0.0
    collected = []
    steps = run.task.evaluation_steps
    progress = ProgressBar(steps, "batches", "evaluating", visible=run.distribution.is_chief)
    for _ in progress.track(range(steps)):
        sums, more, stop = run.trainer.evaluate(iterator, tf.constant(float(sigterm.received)))
        if stop.numpy() > 0:
            raise _preempted(run)
        total = total + sums.numpy().astype("float64")
        collected.append({name: value.numpy() for name, value in more.items()})
    joined = {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
    return run.task.evaluation_metrics(total, joined)


def _preempted(run: Run) -> Preempted:
    return Preempted(
        f"stopped by SIGTERM after step {run.step} of {run.total_steps}, with a checkpoint; "
        "the same command resumes the run"
    )


def _save_result(run: Run, sigterm: Sigterm) -> None:
    """Writes the weights and the curves; all workers take part in estimating statistics, the chief writes."""
    with run.trainer.averaged_weights():
        if run.task.recipe.reestimate_batches:
            _reestimate(run, sigterm)
        if run.distribution.is_chief:
            run.task.save(run.trainer.model, run.folder.weights)
    if run.distribution.is_chief:
        draw_curves(run.folder, run.task)
        run.folder.upload()
    # No worker reports success before the chief has written the result.
    run.distribution.from_chief(b"")


def _reestimate(run: Run, sigterm: Sigterm) -> None:
    """Averages batch normalization's statistics over batches of an additional epoch."""
    before = run.task.describe(_evaluate(run, sigterm))
    count = min(run.task.recipe.reestimate_batches, run.task.epoch_steps)
    run.trainer.average_statistics(_training_iterator(run, run.epochs, 0), count)
    after = run.task.describe(_evaluate(run, sigterm))
    run.progress.say(
        f"batch normalization's statistics averaged over {count} batches: "
        f"val {after}; with the moving averages {before}"
    )
