"""One optimizer step and one evaluation step, as TensorFlow graph code run on every replica."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.training.distribution import Distribution
from keras_resnet.training.remat import Rematerialized
from keras_resnet.training.task import Batch, Task

_INITIAL_LOSS_SCALE = 2.0**15
_LOSS_SCALE_GROWTH_STEPS = 2000


class Trainer:
    """A model with its optimizer's variables and the compiled steps that change them.

    After every step all replicas and workers hold the same bytes: gradients and batch
    normalization's moving statistics travel in one all-reduce.

    Attributes:
        model: has float32 variables.
        columns: names of what a training step returns: sums over the global batch of the task's
            metrics, its number of examples, and the state of the step.
    """

    def __init__(
        self,
        model: keras.Model,
        task: Task,
        distribution: Distribution,
        *,
        seed: int,
        accumulate: int = 1,
        jit: bool = False,
        remat: bool = False,
    ):
        """Creates the optimizer's variables.

        Args:
            model: built within `distribution.scope()`.
            task: gives the loss and the metrics; its recipe, the optimizer.
            distribution: the devices.
            seed: of the task's randomness.
            accumulate: parts into which each replica's batch is split.
            jit: whether XLA compiles the steps.
            remat: whether activations are recomputed for the gradient instead of kept.
        """
        self.model = model
        self._call = Rematerialized(model, jit) if remat else functools.partial(model, training=True)
        self._task = task
        self._recipe = recipe = task.recipe
        self.columns = (*task.train_metrics, "count", "finite", "stopping", "loss_scale")
        self._distribution = distribution
        self._seed = seed
        self._accumulate = accumulate
        self._weights = [variable.value for variable in model.trainable_variables]
        self._decays = [
            recipe.weight_decay if variable.name == "kernel" else 0.0
            for variable in model.trainable_variables
        ]
        # Moving statistics; the state of a seed generator, for instance, is not float. Frozen layers are left
        # out: a mean over replicas would change their last bits.
        self._statistics = [
            variable.value
            for layer in model.layers
            if layer.trainable
            for variable in layer.non_trainable_variables
            if variable.dtype == "float32"
        ]
        self._scaled = any(layer.compute_dtype == "float16" for layer in model.layers)
        names = [variable.path for variable in model.trainable_variables]
        with distribution.scope():
            self._velocities = [
                _zeros_like(w, f"velocity/{n}") for w, n in zip(self._weights, names, strict=True)
            ]
            self._averages = (
                [tf.Variable(v.value, trainable=False) for v in model.variables] if recipe.ema_decay else []
            )
            scale = _INITIAL_LOSS_SCALE if self._scaled else 1.0
            self._loss_scale = tf.Variable(tf.constant(scale), trainable=False)
            self._good_steps = tf.Variable(tf.constant(0), trainable=False)
        self._train_replica = (
            tf.function(self._train_on_replica, jit_compile=True) if jit else self._train_on_replica
        )
        self._evaluate_replica = (
            tf.function(self._evaluate_on_replica, jit_compile=True) if jit else self._evaluate_on_replica
        )
        self._compiled: dict[str, Callable] = {}  # by what the batches are like
        self._evaluate = tf.function(self._evaluate_batch)
        self._observe = tf.function(self._observe_batch)

    def named_variables(self) -> dict[str, tf.Variable]:
        """Every variable that a resumed run needs, by name."""
        names = [variable.path for variable in self.model.variables]
        trainable = [variable.path for variable in self.model.trainable_variables]
        return {
            **{f"weights/{n}": v.value for n, v in zip(names, self.model.variables, strict=True)},
            **{f"velocity/{n}": v for n, v in zip(trainable, self._velocities, strict=True)},
            # Empty without EMA.
            **{f"average/{n}": v for n, v in zip(names, self._averages, strict=False)},
            "loss_scale": self._loss_scale,
            "good_steps": self._good_steps,
        }

    def averaged_weights(self) -> list[np.ndarray] | None:
        """The moving average of `model.variables`, or None if the recipe has none."""
        return [average.numpy() for average in self._averages] or None

    def batch_statistics(self, iterator: Iterator) -> list[np.ndarray]:
        """The means and variances of one global batch in every batch normalization that is trained.

        The moving statistics are overwritten.

        Args:
            iterator: yields one global batch at a time, of the same shape in all calls.

        Returns:
            float64 arrays in the order of `assign_statistics`; means over the replicas.
        """
        normalizations = [x for x in self.model.layers if isinstance(x, keras.layers.BatchNormalization)]
        momenta = [layer.momentum for layer in normalizations]
        for layer in normalizations:
            layer.momentum = 0.0  # a constant of the graph that the first call traces
        try:
            return [value.numpy().astype("float64") for value in self._observe(iterator)]
        finally:
            for layer, momentum in zip(normalizations, momenta, strict=True):
                layer.momentum = momentum

    def assign_statistics(self, values: list[np.ndarray]) -> None:
        """Replaces the moving statistics."""
        for variable, value in zip(self._statistics, values, strict=True):
            variable.assign(value.astype("float32"))

    def _observe_batch(self, iterator: Iterator):
        results = self._distribution.run(self._observe_replica, (next(iterator),))
        return [self._distribution.local(result) for result in results]

    def _observe_replica(self, batch):
        context = tf.distribute.get_replica_context()
        self.model(batch["images"], training=True)
        local = [tf.convert_to_tensor(statistic) for statistic in self._statistics]
        if context.num_replicas_in_sync == 1:
            return local
        return [total / context.num_replicas_in_sync for total in _sum_over_replicas(context, local)]

    def train(self, iterator: Any, rates: tf.Tensor, first_step: tf.Tensor, stopping: tf.Tensor):
        """Several steps in one call.

        Args:
            iterator: yields one global batch at a time.
            rates: float32 (steps,), the learning rates.
            first_step: int32, number of the first step.
            stopping: float32, positive if this worker was asked to stop.

        Returns:
            float32 (steps, len(columns)).
        """
        # One graph per image size, with static shapes, for any number of steps.
        kind = repr(iterator.element_spec)
        if kind not in self._compiled:
            self._compiled[kind] = tf.function(self._train, reduce_retracing=True)
        return self._compiled[kind](iterator, rates, first_step, stopping)

    def _train(self, iterator: Iterator, rates: tf.Tensor, first_step: tf.Tensor, stopping: tf.Tensor):
        count = tf.shape(rates)[0]
        results = tf.TensorArray(tf.float32, size=count, element_shape=(len(self.columns),))
        for i in tf.range(count):
            batch = next(iterator)
            result = self._distribution.run(self._train_replica, (batch, rates[i], first_step + i, stopping))
            results = results.write(i, self._distribution.local(result))
        return results.stack()

    def _train_on_replica(self, batch, rate, step, stopping):
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        before = [tf.identity(statistic) for statistic in self._statistics]
        sums, gradients = self._gradients(batch, step, tf.cast(context.replica_id_in_sync_group, tf.int32))
        local = [
            *gradients,
            *(tf.convert_to_tensor(s) for s in self._statistics),
            tf.stack([*sums, stopping]),
        ]
        if replicas > 1:
            local = _sum_over_replicas(context, local)
        gradients = local[: len(gradients)]
        statistics = [total / replicas for total in local[len(gradients) : -1]]
        *sums, count, stop = tf.unstack(local[-1])

        # Each replica differentiated its sum of losses, scaled; the step wants the mean's gradient.
        # A batch of undecodable images has a count of 0.
        unscale = 1.0 / (tf.maximum(count, 1.0) * self._loss_scale)
        gradients = [gradient * tf.cast(unscale, gradient.dtype) for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(sums[0])
        scale = tf.convert_to_tensor(self._loss_scale)

        def update():
            if replicas > 1:
                for variable, value in zip(self._statistics, statistics, strict=True):
                    variable.assign(value)
            self._apply(gradients, norm, rate)

        def keep():
            for variable, value in zip(self._statistics, before, strict=True):
                variable.assign(value)

        tf.cond(finite, update, keep)
        if self._scaled:
            self._adjust_loss_scale(finite)
        return tf.stack([*sums, count, tf.cast(finite, tf.float32), stop, scale])

    def _gradients(self, batch: Batch, step, replica):
        """The task's sums over this replica's batch, and the gradient of the scaled loss."""
        if self._accumulate == 1:
            return self._differentiate(batch, (self._seed, step, replica))
        sums = [tf.zeros(())] * (len(self._task.train_metrics) + 1)
        gradients = [tf.zeros_like(weight) for weight in self._weights]
        parts = tf.nest.map_structure(
            lambda value: tf.reshape(value, (self._accumulate, -1, *value.shape[1:])), batch
        )
        for i in tf.range(self._accumulate):
            part = tf.nest.map_structure(lambda value, i=i: value[i], parts)
            key = (self._seed, step, replica * self._accumulate + i)
            more_sums, more = self._differentiate(part, key)
            sums = [a + b for a, b in zip(sums, more_sums, strict=True)]
            gradients = [a + b for a, b in zip(gradients, more, strict=True)]
        return sums, gradients

    def _differentiate(self, batch: Batch, key: tuple):
        # Nothing is recorded, or kept in memory, for the layers below the first that is trained.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._weights)
            sums = list(self._task.training_sums(self.model, self._call, batch, key))
            scaled = sums[0] * self._loss_scale
        return sums, tape.gradient(scaled, self._weights)

    def _apply(self, gradients, norm, rate):
        """SGD with momentum as in Caffe and Keras: `v = m v - rate g; w += v`."""
        recipe = self._recipe
        clip = tf.minimum(1.0, recipe.clip_norm / (norm + 1e-6)) if recipe.clip_norm else None
        for weight, velocity, gradient, decay in zip(
            self._weights, self._velocities, gradients, self._decays, strict=True
        ):
            if clip is not None:
                gradient *= clip
            if decay:
                gradient += decay * weight
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=weight.handle,
                accum=velocity.handle,
                lr=rate,
                grad=gradient,
                momentum=recipe.momentum,
                use_nesterov=recipe.nesterov,
            )
        for average, variable in zip(self._averages, self.model.variables, strict=bool(self._averages)):
            # In this form the average of a constant is the constant itself.
            average.assign(average + (variable.value - average) * (1 - recipe.ema_decay))

    def _adjust_loss_scale(self, finite):
        grown = tf.where(finite, self._good_steps + 1, 0)
        grow = grown >= _LOSS_SCALE_GROWTH_STEPS
        scale = tf.where(finite, self._loss_scale, tf.maximum(self._loss_scale * 0.5, 1.0))
        self._loss_scale.assign(tf.where(grow, scale * 2.0, scale))
        self._good_steps.assign(tf.where(grow, 0, grown))

    def evaluate(self, iterator: Iterator) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """One global batch of the evaluation.

        Returns:
            The task's sums, a float32 vector, and what it collects, by name; over all replicas.
        """
        return self._evaluate(iterator)

    def _evaluate_batch(self, iterator: Iterator):
        results = self._distribution.run(self._evaluate_replica, (next(iterator),))
        return tf.nest.map_structure(self._distribution.local, results)

    def _evaluate_on_replica(self, batch: Batch):
        context = tf.distribute.get_replica_context()
        sums, collected = self._task.evaluation_sums(self.model, batch)
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack(sums))
        if context.num_replicas_in_sync > 1:
            collected = {name: context.all_gather(value, axis=0) for name, value in collected.items()}
        return sums, collected


def _sum_over_replicas(context, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    # One vector: one collective, however many variables there are.
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
    flat = context.all_reduce(tf.distribute.ReduceOp.SUM, flat)
    parts = tf.split(flat, [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _zeros_like(variable: tf.Variable, name: str) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False, name=name)
