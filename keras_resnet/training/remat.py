"""Rematerialization (gradient checkpointing, arXiv:1604.06174): recomputes activations for the gradient."""

import collections
import itertools
import math
from typing import Any

import keras
import tensorflow as tf

from keras_resnet.models.graph import is_functional, layer_calls, producer, recursion_limit, tensor_key


class Rematerialized:
    """A functional model called in training, in segments of which only the outputs are kept.

    A graph with n cut points is divided into about sqrt(n) segments with about equally many activations. The
    backward pass recomputes each segment when it computes its gradient, and frees it before the next one. The
    last segment's gradient is computed immediately, so the segment is not recomputed.

    Outputs, weight gradients and moving statistics equal those of `model(inputs, training=True)`: the
    recomputation normalizes with the same batch's statistics and assigns no variable. Layers that draw random
    numbers (the zoo has none) would draw different ones when recomputed.

    `segments` are models that share the layers of the given model, in the order of the computation.
    """

    def __init__(self, model: keras.Model, jit: bool = False, stem_only: bool = False):
        """Divides a model with one input and any outputs, whose frozen layers must stay frozen.

        With `stem_only`, only the layers up to the first max pooling are recomputed, if there is one: in
        ImageNet's networks they have a tenth of the activations and a thirtieth of the multiply-adds.
        """
        self.segments, self._jit = [model], jit
        # A model without cut points is not divided: recomputing it would save nothing.
        if cuts := _stem_cut(model) if stem_only else _cuts(model):
            ends: list[Any] = [model.inputs[0], *cuts, model.output]
            with recursion_limit():
                self.segments = [keras.Model(first, last) for first, last in itertools.pairwise(ends)]

    def __call__(self, inputs: tf.Tensor, input_gradient: bool = False) -> Any:
        """Returns the outputs in training mode; without `input_gradient`, the inputs have no gradient."""
        x, in_trained = inputs, input_gradient  # whether the gradient of x is needed
        for segment in self.segments[:-1]:
            if in_trained or segment.trainable_variables:
                x = self._call_twice(segment, x, in_trained)
                in_trained = True
            else:
                x = segment(x, training=True)
        return self.segments[-1](x, training=True)

    def _call_twice(self, segment: keras.Model, x: tf.Tensor, with_input: bool) -> Any:
        """`segment(x, training=True)`, recomputed for the gradients; x has one only if `with_input`."""
        variables = segment.variables
        trained = {id(variable) for variable in segment.trainable_variables}
        differentiable = [with_input, *(id(variable) in trained for variable in variables)]
        assigned = []

        def compute(x, values):
            """Returns the output, and the values that the variables would be assigned."""
            with keras.StatelessScope(zip(variables, values, strict=True)) as scope:
                y = segment(x, training=True)
            return y, [scope.get_current_value(variable) for variable in variables]

        @tf.custom_gradient
        def call(x, *values):
            y, after = compute(x, values)
            triples = zip(variables, values, after, strict=True)
            changes = [(variable, new) for variable, old, new in triples if new is not old]
            assigned.extend(variable for variable, _ in changes)

            def gradient(upstream, *_):
                # The barrier makes the recomputation's input depend on the gradient: otherwise the compiler
                # would run it early, or merge it with the first computation.
                again, upstream = _barrier([x, upstream], self._jit)
                sources = [v for v, wanted in zip((again, *values), differentiable, strict=True) if wanted]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(sources)
                    y, _ = compute(again, values)
                gradients = tape.gradient(y, sources, upstream)
                # The previous segment must not start while this one's activations are still needed.
                gradients = iter(_barrier(gradients, self._jit))
                return [next(gradients) if wanted else None for wanted in differentiable]

            return (y, *(new for _, new in changes)), gradient

        y, *after = call(x, *(tf.convert_to_tensor(variable.value) for variable in variables))
        for variable, value in zip(assigned, after, strict=True):
            variable.assign(value)
        return y


def _barrier(tensors: list[Any], jit: bool) -> list[Any]:
    """Returns the tensors, none of which is available before all are; None stays None."""
    present: Any = [tensor for tensor in tensors if tensor is not None]
    if jit:  # XLA ignores control dependencies, and TensorFlow has no kernel for XLA's barrier
        from tensorflow.compiler.tf2xla.python import xla

        present = xla.optimization_barrier(*present)
    else:
        with tf.control_dependencies(present):
            present = [tf.identity(tensor) for tensor in present]
    present = iter(present)
    return [None if tensor is None else next(present) for tensor in tensors]


def _stem_cut(model: keras.Model) -> list[keras.KerasTensor]:
    """Returns the first max pooling's output, if all later layers depend on it alone."""
    if not is_functional(model):
        return []
    for tensor, _ in _pieces(model)[:-1]:
        if isinstance(producer(tensor), keras.layers.MaxPooling2D):
            return [tensor]
    return []


def _cuts(model: keras.Model) -> list[keras.KerasTensor]:
    """Returns the tensors between the segments."""
    tensors, costs = zip(*_pieces(model), strict=True)
    count = max(1, round(math.sqrt(len(costs))))
    sums = list(itertools.accumulate(costs))
    ends = []  # indices of the pieces that segments end with
    for i in range(1, count):
        due = next(j for j, total in enumerate(sums) if total * count >= sums[-1] * i)
        # Every segment has at least one piece.
        ends.append(min(max(due, ends[-1] + 1 if ends else 0), len(costs) - 1 - (count - i)))
    return [tensors[end] for end in ends]


def _pieces(model: keras.Model) -> list[tuple[keras.KerasTensor, int]]:
    """The graph's cut points, each with the number of activations between the previous one and it.

    A cut point is a tensor on which alone all later layers and outputs depend; the last piece ends with the
    model's outputs. Activations are the elements per image of trained layers' outputs, or 1 per piece if the
    image size is unknown.
    """
    calls = layer_calls(model.outputs)
    uses = collections.Counter(tensor_key(tensor) for call in calls for tensor in call.inputs)
    uses.update(map(tensor_key, model.outputs))
    live, pieces, cost = set(), [], 0
    for call in calls:
        for key in map(tensor_key, call.inputs):
            uses[key] -= 1
            if not uses[key]:
                live.discard(key)
        live.update(key for key in map(tensor_key, call.outputs) if uses[key])
        if not call.inputs:
            continue
        if getattr(call.layer, "trainable", True):
            cost += sum(math.prod(size or 1 for size in tensor.shape[1:]) for tensor in call.outputs)
        if len(live) == 1 and tensor_key(call.outputs[0]) in live:
            pieces.append((call.outputs[0], cost))
            cost = 0
    if cost:  # several outputs
        pieces.append((model.outputs[0], cost))
    if any(None in tensor.shape[1:] for tensor, _ in pieces):
        pieces = [(tensor, 1) for tensor, _ in pieces]
    return pieces
