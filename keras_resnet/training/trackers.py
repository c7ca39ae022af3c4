"""Trackers, which log the metrics of a run to TensorBoard, MLflow or Weights & Biases."""

import importlib.util
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from keras_resnet.errors import InputError, one_line, unknown_name
from keras_resnet.files import write_json
from keras_resnet.run_folder import RunFolder

Status = Literal["finished", "stopped", "failed"]
"""How a run ended; "stopped" is by SIGTERM or Ctrl-C."""

Row = Mapping[str, float]
"""A row of history.csv: "epoch", "step", and metrics by name."""

_PROJECT = "keras_resnet"  # the name of the experiment or project, unless an environment variable names one


class Tracker:
    """Logs a run. Subclasses override what they need.

    Only the process that writes the run's files calls it. If a method raises an exception, it is reported in
    one line and the tracker is not called again: a tracker never stops a run.
    """

    package: str | None = None
    """The package that it needs."""

    def begin(self, folder: RunFolder, config: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """Begins the log of the run in `folder`, or continues it if the run is resumed.

        Args:
            config: the recipe, "seed" and "precision", as JSON values.
            rows: the epochs that are already trained.
        """

    def epoch(self, row: Row) -> None:
        """Logs an epoch."""

    def end(self, status: Status) -> None:
        """Ends the log."""


class _TensorBoard(Tracker):
    """Writes TensorBoard's logs to the folder `tensorboard` of the run."""

    def begin(self, folder: RunFolder, config: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """Creates a new file of events."""
        import tensorflow as tf

        self._writer, self._scalar = tf.summary.create_file_writer(str(folder.tensorboard)), tf.summary.scalar

    def epoch(self, row: Row) -> None:
        """Writes a scalar for each metric: `train/NAME`, `val/NAME`, `learning_rate`, `images_per_second`."""
        with self._writer.as_default(step=int(row["step"])):
            for name, value in _metrics(row).items():
                self._scalar(re.sub("^(train|val)_", r"\1/", name), value)
        self._writer.flush()

    def end(self, status: Status) -> None:
        """Closes the file."""
        self._writer.close()


class _MLflow(Tracker):
    """Logs to MLflow.

    MLflow's environment variables `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` (default: keras_resnet)
    choose the server or store, and the experiment.
    """

    package = "mlflow"

    def begin(self, folder: RunFolder, config: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """Creates a run with the recipe as its parameters, or continues that of the run's folder."""
        from mlflow import MlflowClient, entities, exceptions  # pyright: ignore[reportMissingImports]

        self._entities, self._folder = entities, folder
        self._client = client = MlflowClient()
        known = _read_ids(folder).get("mlflow")
        if known is not None:
            try:
                client.update_run(known, status="RUNNING")
                self._run = known
                return
            except exceptions.MlflowException:  # of another store
                pass
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else client.create_experiment(name)
        self._run = client.create_run(number, run_name=folder.path.name).info.run_id
        _write_id(folder, "mlflow", self._run)
        parameters = [self._entities.Param(key, str(value)) for key, value in config.items()]
        client.log_batch(self._run, params=parameters)
        for row in rows:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        """Logs the metrics with the number of the step."""
        now, step = int(1000 * time.time()), int(row["step"])
        metrics = [
            self._entities.Metric(name, float(value), now, step) for name, value in _metrics(row).items()
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, status: Status) -> None:
        """Ends the run; a finished one gets its recipe, history, curves and weights as artifacts."""
        folder, names = self._folder, {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        try:
            for path in (folder.recipe, folder.history, folder.curves, folder.weights):
                if status == "finished" and path.exists():
                    self._client.log_artifact(self._run, str(path))
        finally:
            self._client.set_terminated(self._run, names[status])


class _WandB(Tracker):
    """Logs to Weights & Biases.

    W&B's environment variables, such as `WANDB_PROJECT` (default: keras_resnet) and `WANDB_MODE=offline`,
    configure it.
    """

    package = "wandb"

    def begin(self, folder: RunFolder, config: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """Creates a run with the recipe as its config, or continues that of the run's folder."""
        import wandb  # pyright: ignore[reportMissingImports]

        known = _read_ids(folder).get("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.path.name,
            id=known,
            resume="allow",
            config=dict(config),
            dir=str(folder.path),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")
        if known is None:
            _write_id(folder, "wandb", self._run.id)
            for row in rows:
                self.epoch(row)

    def epoch(self, row: Row) -> None:
        """Logs the row, whose number in W&B's history is the step also where W&B cannot resume: offline."""
        self._run.log(dict(row), step=int(row["step"]), commit=True)

    def end(self, status: Status) -> None:
        """Waits until everything is sent."""
        self._run.finish(exit_code=0 if status == "finished" else 1)


_TRACKERS: dict[str, type[Tracker]] = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}
"""The trackers by the names that `RunOptions.track` takes."""


def check_trackers(names: Iterable[str]) -> None:
    """Raises `InputError` for an unknown tracker."""
    for name in names:
        if name not in _TRACKERS:
            raise unknown_name("tracker", name, _TRACKERS)


def create_trackers(names: Iterable[str]) -> list[Tracker]:
    """Creates trackers; raises `InputError` if the package of one is not installed."""
    kinds = {name: _TRACKERS[name] for name in dict.fromkeys(names)}
    for name, kind in kinds.items():
        if kind.package is not None and importlib.util.find_spec(kind.package) is None:
            raise InputError(f"--track={name} needs the package {kind.package}: pip install {kind.package}")
    return [kind() for kind in kinds.values()]


class Trackers:
    """Calls the trackers of a run, each of which is left out after its first error."""

    def __init__(self, trackers: Iterable[Tracker], say: Callable[[str], None]):
        self._trackers, self._say = list(trackers), say

    def begin(self, *arguments: Any) -> None:
        """See `Tracker.begin`."""
        self._call("begin", *arguments)

    def epoch(self, row: Row) -> None:
        """See `Tracker.epoch`."""
        self._call("epoch", row)

    def end(self, status: Status) -> None:
        """See `Tracker.end`."""
        self._call("end", status)

    def _call(self, method: str, *arguments: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                self._trackers.remove(tracker)
                name, reason = type(tracker).__name__.lstrip("_"), one_line(error) or type(error).__name__
                self._say(f"warning: {name} does not log this run any more: {reason}")


def _metrics(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in ("epoch", "step")}


def _read_ids(folder: RunFolder) -> dict[str, str]:
    """The trackers' own names of the run, by tracker."""
    try:
        return json.loads(folder.trackers.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_id(folder: RunFolder, tracker: str, name: str) -> None:
    write_json(folder.trackers, {**_read_ids(folder), tracker: name})
