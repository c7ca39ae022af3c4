"""One optimizer step and one evaluation step, as TensorFlow graph code run on every replica."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.progress import ProgressBar
from keras_resnet.training.distribution import Distribution
from keras_resnet.training.remat import Rematerialized
from keras_resnet.training.task import Batch, Task, call_in_training

_INITIAL_LOSS_SCALE = 2.0**15
_LOSS_SCALE_GROWTH_STEPS = 2000
# Input channels from which oneDNN's gradient of strided 1x1 convolutions is right on CPUs without AVX-512:
# https://github.com/uxlfoundation/oneDNN/issues/6035
_ONEDNN_CHANNELS = 8
# Bytes of gradients in one collective operation, as in PyTorch's DistributedDataParallel.
_BUCKET = 25 * 2**20


class Trainer:
    """A model, the variables of its optimizer, and the compiled steps that change them.

    After every step the variables are equal, bit for bit, on all replicas of all workers: all-reduces carry
    the gradients and batch normalization's moving statistics.

    `columns` names the results of a training step: sums of the task's metrics over the global batch, its
    number of examples ("count"), and the state of the step.
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
        compress_gradients: bool = False,
    ):
        """Creates the optimizer's variables for a model that was built within `distribution.scope()`.

        The task's recipe configures the optimizer; `RunOptions` describes the keyword arguments.

        Raises:
            InputError: `jit` with batch normalization that is synchronized over several replicas; a network
                whose gradients oneDNN computes wrongly.
        """
        _check_onednn(model)
        several = distribution.total_replicas > 1
        self._synchronized = several and any(getattr(layer, "synchronized", False) for layer in model.layers)
        if jit and self._synchronized:
            raise InputError("--jit and --sync_batch_norm exclude each other on several devices")
        self.model = model
        # XLA on CPUs saves nothing by recomputing, and synchronized statistics would be sent twice.
        kept = not remat and (jit or self._synchronized)
        self._calls: dict[int, Callable] = {
            id(part): functools.partial(call_in_training, part)
            if kept
            else Rematerialized(part, jit, stem_only=not remat)
            for part in task.parts(model)
        }
        self._task = task
        self._recipe = recipe = task.recipe
        self.columns = (*task.train_metrics, "count", "finite", "stopping", "loss_scale")
        self._distribution = distribution
        self._seed = seed
        self._accumulate = accumulate
        self._compress = compress_gradients and several
        self._weights = [variable.value for variable in model.trainable_variables]
        self._decays = [
            recipe.weight_decay if variable.name == "kernel" else 0.0
            for variable in model.trainable_variables
        ]
        # The moving statistics, but not the (integer) state of seed generators. Without frozen layers: a mean
        # over replicas would change their last bits.
        self._statistics = [
            variable.value
            for layer in model.layers
            if layer.trainable
            for variable in layer.non_trainable_variables
            if variable.dtype == "float32"
        ]
        self._scaled = any(layer.compute_dtype == "float16" for layer in model.layers)
        averaged = model.variables if recipe.ema_decay else []
        with distribution.scope():
            self._velocities = [tf.Variable(tf.zeros_like(w), trainable=False) for w in self._weights]
            self._averages = [tf.Variable(variable.value, trainable=False) for variable in averaged]
            scale = _INITIAL_LOSS_SCALE if self._scaled else 1.0
            self._loss_scale = tf.Variable(tf.constant(scale), trainable=False)
            self._good_steps = tf.Variable(tf.constant(0), trainable=False)
        self._set_replica_functions(jit)
        self._graphs: dict[str, Callable] = {}  # by the shapes and dtypes of the batches

    def _set_replica_functions(self, jit: bool) -> None:
        """Sets what each replica computes, compiled with `jit`."""
        self._train_replica: Any = self._train_on_replica
        self._evaluate_replica: Any = self._evaluate_on_replica
        self._compute: Any = self._compute_on_replica
        self._evaluation_sums: Any = functools.partial(self._task.evaluation_sums, self.model)
        if jit and self._distribution.total_replicas > 1:  # the communication stays outside
            self._compute, self._evaluation_sums = map(_Compiled, (self._compute, self._evaluation_sums))
        elif jit:
            self._train_replica, self._evaluate_replica = map(
                _Compiled, (self._train_replica, self._evaluate_replica)
            )

    def named_variables(self) -> dict[str, tf.Variable]:
        """All variables that are saved in checkpoints, by name."""
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

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the block, the model has the averages of its weights, if the recipe has `ema_decay`."""
        variables = self.model.variables if self._averages else []
        kept = [variable.numpy() for variable in variables]
        try:
            _assign(variables, [average.numpy() for average in self._averages])
            yield
        finally:
            _assign(variables, kept)

    def average_statistics(self, iterator: Iterator, batches: int) -> None:
        """Sets the moving statistics, except of frozen layers, to the means over some global batches."""
        normalizations = [x for x in self.model.layers if isinstance(x, keras.layers.BatchNormalization)]
        momenta = [layer.momentum for layer in normalizations]
        for layer in normalizations:
            layer.momentum = 0.0  # a constant of the graph that the first call traces
        sums: Any = [0.0] * len(self._statistics)
        about, is_chief = "statistics of batch normalization", self._distribution.is_chief
        progress = ProgressBar(batches, "batches", about, visible=is_chief)
        try:
            for _ in progress.track(range(batches)):
                values = [value.numpy().astype("float64") for value in self._observe(iterator)]
                sums = [a + b for a, b in zip(sums, values, strict=True)]
        finally:
            for layer, momentum in zip(normalizations, momenta, strict=True):
                layer.momentum = momentum
        _assign(self._statistics, [(total / batches).astype("float32") for total in sums])

    @tf.function
    def _observe(self, iterator: Iterator):
        """The statistics of one global batch, averaged over replicas; overwrites the moving statistics."""
        results = self._distribution.run(self._observe_replica, (next(iterator),))
        return [self._distribution.local(result) for result in results]

    def _observe_replica(self, batch):
        context = tf.distribute.get_replica_context()
        self.model(batch["images"], training=True)
        local = [tf.convert_to_tensor(statistic) for statistic in self._statistics]
        return [total / context.num_replicas_in_sync for total in _sum_together(context, local)]

    def train(self, iterator: Any, rates: tf.Tensor, first_step: tf.Tensor, stopping: tf.Tensor):
        """Takes one step per learning rate, in one call.

        Args:
            iterator: yields one global batch at a time.
            rates: float32 (steps,), the learning rates.
            first_step: int32, number of the first step.
            stopping: float32, positive if this worker received SIGTERM.

        Returns:
            float32 (steps, len(columns)).
        """
        # One graph per image size, with static shapes, for any number of steps.
        kind = repr(iterator.element_spec)
        if kind not in self._graphs:
            self._graphs[kind] = tf.function(self._train, reduce_retracing=True)
        return self._graphs[kind](iterator, rates, first_step, stopping)

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
        replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
        gradients, others, before = self._compute(batch, step, replica, stopping)
        # First the statistics, which are known before the gradients.
        *statistics, sums = _sum_together(context, others)
        statistics = [statistic / replicas for statistic in statistics]
        *sums, count, stop = tf.unstack(sums)
        gradients = self._sum_gradients(context, gradients)

        # Converts the gradients of the scaled sums of losses to the gradient of the mean loss.
        # The count is 0 if no image of the batch could be decoded.
        unscale = 1.0 / (tf.maximum(count, 1.0) * self._loss_scale)
        gradients = [gradient * tf.cast(unscale, gradient.dtype) for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(sums[0])
        scale = tf.convert_to_tensor(self._loss_scale)

        def update():
            if replicas > 1:
                _assign(self._statistics, statistics)
            self._apply(gradients, norm, rate)

        tf.cond(finite, update, lambda: _assign(self._statistics, before))
        if self._scaled:
            self._adjust_loss_scale(finite)
        return tf.stack([*sums, count, tf.cast(finite, tf.float32), stop, scale])

    def _compute_on_replica(self, batch: Batch, step, replica, stopping):
        """Gradients; new moving statistics and a vector of sums; and the statistics before."""
        before = [tf.identity(statistic) for statistic in self._statistics]
        sums, gradients = self._gradients(batch, step, replica)
        statistics = [tf.convert_to_tensor(statistic) for statistic in self._statistics]
        return gradients, [*statistics, tf.stack([*sums, stopping])], before

    def _sum_gradients(self, context, gradients):
        """Sums over replicas, in buckets that are sent while the backward pass computes the next ones.

        With `compress_gradients` they are sent in bfloat16, whose range is that of float32: sums are finite.
        """
        if context.num_replicas_in_sync == 1:
            return gradients
        totals: list[Any] = []
        for bucket in _buckets(gradients):
            sent = [tf.cast(gradient, tf.bfloat16) for gradient in bucket] if self._compress else bucket
            totals += [tf.cast(total, tf.float32) for total in _sum_together(context, sent)]
        return totals[::-1]

    def _gradients(self, batch: Batch, step, replica):
        """The task's sums over this replica's batch, and the gradient of the scaled loss."""
        if self._accumulate == 1:
            return self._differentiate(batch, (self._seed, step, replica))
        sums = [tf.zeros(())] * (len(self._task.train_metrics) + 1)
        gradients = [tf.zeros_like(weight) for weight in self._weights]
        parts = tf.nest.map_structure(self._in_parts, batch)
        # A loop in the graph cannot contain communication between devices.
        loop = range(self._accumulate) if self._synchronized else tf.range(self._accumulate)
        for i in loop:
            part = tf.nest.map_structure(lambda value, i=i: value[i], parts)
            key = (self._seed, step, replica * self._accumulate + i)
            more_sums, more = self._differentiate(part, key)
            sums = [a + b for a, b in zip(sums, more_sums, strict=True)]
            gradients = [a + b for a, b in zip(gradients, more, strict=True)]
        return sums, gradients

    def _in_parts(self, value: tf.Tensor) -> tf.Tensor:
        """Splits a batch into parts, (parts, examples, ...); the other sides may be unknown."""
        parts = tf.reshape(value, tf.concat([[self._accumulate, -1], tf.shape(value)[1:]], 0))
        return tf.ensure_shape(parts, (self._accumulate, None, *value.shape[1:]))

    def _differentiate(self, batch: Batch, key: tuple):
        # Only trained weights are watched, so that no activations below the first trained layer are kept.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._weights)
            sums = list(self._task.training_sums(self.model, self._call, batch, key))
            scaled = sums[0] * self._loss_scale
        return sums, tape.gradient(scaled, self._weights)

    def _call(self, part: keras.Model, inputs: tf.Tensor, input_gradient: bool = False) -> Any:
        return self._calls[id(part)](inputs, input_gradient)

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

    @tf.function
    def evaluate(self, iterator: Iterator, stopping: tf.Tensor):
        """Evaluates one global batch; `stopping` is that of `train`.

        Returns:
            The results of the task's `evaluation_sums` over all replicas, the sums as one float32 vector; and
            a float32 scalar that is positive if a worker received SIGTERM.
        """
        results = self._distribution.run(self._evaluate_replica, (next(iterator), stopping))
        return tf.nest.map_structure(self._distribution.local, results)

    def _evaluate_on_replica(self, batch: Batch, stopping: tf.Tensor):
        context = tf.distribute.get_replica_context()
        sums, collected = self._evaluation_sums(batch)
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack([*sums, stopping]))
        if context.num_replicas_in_sync > 1:
            # Several workers need a tensor with a device, which those of the input pipeline lack: copy it.
            collected = {
                name: context.all_gather(tf.identity(value), axis=0) for name, value in collected.items()
            }
        return sums[:-1], collected, sums[-1]


class _Compiled:
    """A replica's function, compiled with XLA.

    Each device has its own graph, because a graph holds one device's copies of the variables.
    """

    def __init__(self, function: Callable):
        self._function = function
        self._graphs: dict[str, Callable] = {}  # by device

    @tf.autograph.experimental.do_not_convert  # which devices there are is known when the graph is built
    def __call__(self, *arguments: Any) -> Any:
        # Not the context's `devices`, which fails on other workers than the first.
        device = tf.constant(0).device
        if device not in self._graphs:
            self._graphs[device] = tf.function(self._function, jit_compile=True)
        return self._graphs[device](*arguments)


def _assign(variables, values) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _buckets(gradients: list[tf.Tensor]) -> list[list[tf.Tensor]]:
    """Divides gradients into lists of about `_BUCKET` bytes, the last ones first, as they are computed."""
    buckets: list[list[tf.Tensor]] = []
    size = _BUCKET
    for gradient in reversed(gradients):
        if size >= _BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(gradient)
        size += gradient.shape.num_elements() * gradient.dtype.size
    return buckets


def _sum_together(context, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums tensors of one dtype over all replicas, with one collective operation for all of them."""
    if context.num_replicas_in_sync == 1:
        return tensors
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
    flat = context.all_reduce(tf.distribute.ReduceOp.SUM, flat)
    parts = tf.split(flat, [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _check_onednn(model: keras.Model) -> None:
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "1":
        return
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Conv2D) or not layer.trainable:
            continue
        *size, channels, _ = layer.weights[0].shape  # of the kernel
        if size == [1, 1] and max(layer.strides) > 1 and channels < _ONEDNN_CHANNELS:
            raise InputError(
                f"{layer.name} is a 1x1 convolution with strides and {channels} input channels, whose "
                "gradient oneDNN computes wrongly on some CPUs: take at least "
                f"{_ONEDNN_CHANNELS} channels, or set the environment variable TF_ENABLE_ONEDNN_OPTS=0"
            )
