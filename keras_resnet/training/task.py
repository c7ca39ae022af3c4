"""The interface between the training loop and what is learned."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import BadImages
from keras_resnet.training.distribution import Distribution
from keras_resnet.training.recipe import Recipe

Batch = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One panel of curves.png.

    Attributes:
        metric: a name of `Task.train_metrics` or `Task.val_metrics`, or of both.
        axis: title of the vertical axis.
        value: from the metric to what is drawn.
        log: whether the axis is logarithmic; otherwise it starts at 0.
    """

    metric: str
    axis: str
    value: Callable[[float], float] = float
    log: bool = False


class Task(abc.ABC):
    """What is learned: data, network, loss and metrics.

    The loop calls `open`, `build` and `prepare` once, in this order, before anything else. Batches are
    dictionaries of tensors (or of nested tensors) whose first axis is the batch; "images" is one of them.

    Attributes:
        recipe: its common fields decide about the optimizer, the schedule and the length of the run.
        train_metrics: names, "loss" first; the columns train_NAME of history.csv.
        val_metrics: names; the columns val_NAME of history.csv.
        curves: the panels of curves.png.
        epoch_steps: training steps per epoch; set by `open`.
        evaluation_steps: global batches of the evaluation; set by `open`.
    """

    recipe: Recipe
    train_metrics: tuple[str, ...]
    val_metrics: tuple[str, ...]
    curves: tuple[Curve, ...] = ()
    epoch_steps: int
    evaluation_steps: int

    # Setting up.

    @abc.abstractmethod
    def open(self, data_dir: str | None) -> None:
        """Opens the dataset and counts its steps; `InputError` where the recipe does not fit it."""

    @abc.abstractmethod
    def build(self, pretrained: bool) -> keras.Model:
        """Builds the network, in the scope and with the precision of the run.

        Args:
            pretrained: whether to load the weights that the recipe starts from; not when resuming.
        """

    @abc.abstractmethod
    def prepare(self, held: dict[str, np.ndarray] | None, bad: BadImages) -> None:
        """Decides how images become inputs.

        Args:
            held: when resuming, the arrays of the checkpoint; of an older version they may lack some of
                `arrays`.
            bad: collects undecodable images.
        """

    def arrays(self) -> dict[str, np.ndarray]:
        """What `prepare` decided, to be kept in checkpoints."""
        return {}

    # Batches of this worker's replicas in turn, with static shapes.

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
        """The batches of an epoch, from its step `first_step`; `epochs` is the length of the run."""

    @abc.abstractmethod
    def evaluation_batches(self, distribution: Distribution, bad: BadImages) -> tf.data.Dataset:
        """The batches of the evaluation; what only fills the last one up must not count."""

    # Inside the steps: graph code of one replica.

    @abc.abstractmethod
    def training_sums(
        self,
        model: keras.Model,
        call: Callable[[tf.Tensor], tf.Tensor],
        batch: Batch,
        key: tuple[int, tf.Tensor, tf.Tensor],
    ) -> Sequence[tf.Tensor]:
        """Sums over a batch, under the gradient tape.

        Args:
            model: the network.
            call: applies it in training mode, recomputing activations where the run asks for it.
            batch: of one replica, or a part of it.
            key: (seed, step, part), different for every batch: the source of all randomness.

        Returns:
            A scalar for each of `train_metrics`, the first being the loss that is differentiated, and
            the number of examples. The loop divides by that number, summed over all replicas.
        """

    @abc.abstractmethod
    def evaluation_sums(
        self, model: keras.Model, batch: Batch
    ) -> tuple[Sequence[tf.Tensor], dict[str, tf.Tensor]]:
        """Applies the network in inference mode.

        Returns:
            Scalars, which are summed over all batches; and, for a metric that is no mean, tensors whose
            first axis is the batch, which are collected from all replicas.
        """

    # Metrics, on the host.

    @abc.abstractmethod
    def evaluation_metrics(self, sums: np.ndarray, collected: dict[str, np.ndarray]) -> dict[str, float]:
        """The `val_metrics` from what `evaluation_sums` gave for the whole split."""

    def error_sum(self, sums: dict[str, float]) -> float:
        """The sum over a batch of the error that ends an error warm-up.

        Args:
            sums: by the names of `train_metrics` and "count".
        """
        return sums["loss"]

    def error(self, metrics: dict[str, float]) -> float:
        """The validation error that the plateau schedule watches; smaller is better."""
        return metrics["loss"]

    def describe(self, metrics: dict[str, float]) -> str:
        """Training or validation metrics for the console."""
        return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())

    @abc.abstractmethod
    def save(self, model: keras.Model, path: Path) -> None:
        """Writes the trained weights."""
