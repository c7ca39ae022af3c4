"""The interface between the training loop and a task."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import BadImages
from keras_resnet.training.distribution import Distribution
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipe import Recipe

Batch = dict[str, tf.Tensor]


class Call(Protocol):
    """Calls one of `Task.parts` in training mode, with rematerialization if the run uses it."""

    def __call__(self, part: keras.Model, inputs: tf.Tensor, input_gradient: bool = False) -> Any:
        """The outputs; without `input_gradient`, gradients with respect to the inputs may be missing."""
        ...


def call_in_training(part: keras.Model, inputs: tf.Tensor, input_gradient: bool = False) -> Any:
    """A `Call` without rematerialization."""
    del input_gradient  # the gradient is always available
    return part(inputs, training=True)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One panel of curves.png: metrics of `Task.train_metrics` or `Task.val_metrics`, or of both."""

    metrics: tuple[str, ...]
    axis: str
    value: Callable[[float], float] = float  # from the metric to what is drawn
    log: bool = False  # otherwise the axis starts at 0


class Task(abc.ABC):
    """Data, network, loss and metrics.

    The loop calls `open`, `build` and `prepare` once, in this order, before anything else. Batches are
    dictionaries of tensors (or of nested tensors), whose first axis is the batch and static; "images" is one
    of them. Each is for one replica; those of a worker's replicas follow each other.
    """

    recipe: Recipe
    train_metrics: tuple[str, ...]  # "loss" first; the columns train_NAME of history.csv
    val_metrics: tuple[str, ...]  # the columns val_NAME of history.csv
    curves: tuple[Curve, ...] = ()
    epoch_steps: int  # training steps per epoch; set by `open`
    evaluation_steps: int  # global batches of the evaluation; set by `open`
    data_identity: dict | None = None  # JSON values that must stay the same in a run; set by `open`
    notices: tuple[str, ...] = ()  # lines about the data for the console; set by `open`

    def check_options(self, options: RunOptions) -> None:
        """Raises `InputError` for options of a run that the task does not support."""
        del options

    @abc.abstractmethod
    def open(self, data_dir: str | None) -> None:
        """Opens the dataset and counts its steps; `InputError` if the recipe does not match it."""

    @abc.abstractmethod
    def build(self, pretrained: bool) -> keras.Model:
        """Builds the network within the strategy's scope and with the run's dtype policy.

        `pretrained`: load the weights that the recipe names; False when resuming.
        """

    @abc.abstractmethod
    def prepare(self, distribution: Distribution, held: dict[str, np.ndarray] | None, bad: BadImages) -> None:
        """Chooses the preprocessing; `bad` collects undecodable images.

        `held` has the checkpoint's arrays when resuming; those of older versions may lack some of `arrays`.
        All workers call it, and must end with the same result.
        """

    def parts(self, model: keras.Model) -> Sequence[keras.Model]:
        """The models with one input each that `training_sums` applies; the network itself by default."""
        return [model]

    def arrays(self) -> dict[str, np.ndarray]:
        """The result of `prepare` as arrays for checkpoints."""
        return {}

    @abc.abstractmethod
    def training_batches(
        self,
        distribution: Distribution,
        *,
        seed: int,
        epoch: int,
        epochs: float,
        first_step: int,
        bad: BadImages,
    ) -> tf.data.Dataset:
        """The batches of an epoch from its step `first_step` on; `epochs` is the length of the run."""

    @abc.abstractmethod
    def evaluation_batches(self, distribution: Distribution, bad: BadImages) -> tf.data.Dataset:
        """The batches of the evaluation; padding of the last batch must not count."""

    @abc.abstractmethod
    def training_sums(
        self,
        model: keras.Model,
        call: Call,
        batch: Batch,
        key: tuple[int, tf.Tensor, tf.Tensor],
    ) -> Sequence[tf.Tensor]:
        """Sums over the batch of one replica, or a part of it; graph code, recorded by the gradient tape.

        Args:
            call: applies the network, or one of its `parts`.
            key: (seed, step, part), different for every batch: the source of all randomness.

        Returns:
            A scalar for each of `train_metrics`, the first of which is the differentiated loss, and the
            number of examples. The loop divides by that number, summed over all replicas.
        """

    @abc.abstractmethod
    def evaluation_sums(
        self, model: keras.Model, batch: Batch
    ) -> tuple[Sequence[tf.Tensor], dict[str, tf.Tensor]]:
        """Sums and values per example of a replica's batch, in inference mode; graph code.

        Returns:
            Scalars, which are summed over all batches; and, for metrics that are not means, tensors whose
            first axis is the batch, which are concatenated over all batches and replicas.
        """

    @abc.abstractmethod
    def evaluation_metrics(self, sums: np.ndarray, collected: dict[str, np.ndarray]) -> dict[str, float]:
        """The `val_metrics` from the results of `evaluation_sums` for the whole split."""

    def error_sum(self, sums: dict[str, float]) -> float:
        """The sum of the error that ends an error warm-up, from the sums of `train_metrics` and "count"."""
        return sums["loss"]

    def error(self, metrics: dict[str, float]) -> float:
        """The validation error that the plateau schedule watches; smaller is better."""
        return metrics["loss"]

    def describe(self, metrics: dict[str, float]) -> str:
        """Training or validation metrics as text for the console."""
        return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())

    @abc.abstractmethod
    def save(self, model: keras.Model, path: Path) -> None:
        """Writes the trained weights."""
