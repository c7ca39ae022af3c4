"""Rematerialization: activations are computed a second time instead of being kept for the gradient.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

import collections
import itertools
import math

import keras
import tensorflow as tf

from keras_resnet.models.resnet import recursion_limit


class Rematerialized:
    """A functional model's call in training, cut into segments of which only the ends are kept.

    Of n pieces of the graph, between tensors that everything goes through, about sqrt(n) segments are
    made, each with about as many activations as the others. In the backward pass a segment is
    computed again, when its gradient is due, and forgotten before the next one is. The last segment's
    gradient is due at once; so it is not computed twice.

    Logits, the weights' gradients and moving statistics are those of `model(images, training=True)`:
    the second time, batch normalization takes the same batch's statistics, and no variable is assigned.
    There is no gradient with regard to the images. Layers that draw random numbers, of which the zoo
    has none, would draw others the second time.

    Attributes:
        segments: models that share the layers of the given one, in the order of the computation.
    """

    def __init__(self, model: keras.Model, jit: bool = False):
        """Finds the cuts.

        Args:
            model: with one input and one output; what is frozen now stays so.
            jit: whether the call is compiled by XLA.
        """
        ends = [model.inputs[0], *_cuts(model), model.outputs[0]]
        with recursion_limit():
            # Where there is no cut, the model itself: nothing would be saved.
            self.segments = (
                [keras.Model(first, last) for first, last in itertools.pairwise(ends)]
                if len(ends) > 2
                else [model]
            )
        self._jit = jit

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """The logits of `images`, in training."""
        x, in_trained = images, False  # whether x depends on anything that is trained
        for segment in self.segments[:-1]:
            if in_trained or segment.trainable_variables:
                x = self._call_twice(segment, x, in_trained)
                in_trained = True
            else:
                x = segment(x, training=True)
        return self.segments[-1](x, training=True)

    def _call_twice(self, segment: keras.Model, x: tf.Tensor, with_input: bool) -> tf.Tensor:
        """`segment(x, training=True)`, computed again for the gradient: of x, too, if `with_input`."""
        variables = segment.variables
        trained = {id(variable) for variable in segment.trainable_variables}
        differentiable = [with_input, *(id(variable) in trained for variable in variables)]
        assigned = []

        def compute(x, values):
            """The output, and what the variables would be assigned."""
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
                # The computation is the same as the first one but for its input, which comes with the
                # gradient: that keeps it from being done early, or taken for a copy of the first.
                again, upstream = _in_step([x, upstream], self._jit)
                sources = [value for value, of in zip((again, *values), differentiable, strict=True) if of]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(sources)
                    y, _ = compute(again, values)
                gradients = tape.gradient(y, sources, upstream)
                # The segment before must not begin while this one's activations are still needed.
                gradients = iter(_in_step(gradients, self._jit))
                return [next(gradients) if of else None for of in differentiable]

            return (y, *(new for _, new in changes)), gradient

        y, *after = call(x, *(tf.convert_to_tensor(variable.value) for variable in variables))
        for variable, value in zip(assigned, after, strict=True):
            variable.assign(value)
        return y


def _in_step(tensors: list[tf.Tensor | None], jit: bool) -> list[tf.Tensor | None]:
    """The same tensors, none of which is there before all are; what is None stays so."""
    there = [tensor for tensor in tensors if tensor is not None]
    if jit:  # XLA heeds no control dependencies, and TensorFlow has no kernel for XLA's barrier
        from tensorflow.compiler.tf2xla.python import xla

        there = xla.optimization_barrier(*there)
    else:
        with tf.control_dependencies(there):
            there = [tf.identity(tensor) for tensor in there]
    there = iter(there)
    return [None if tensor is None else next(there) for tensor in tensors]


def _cuts(model: keras.Model) -> list:
    """The tensors between the segments."""
    tensors, costs = zip(*_pieces(model), strict=True)
    count = max(1, round(math.sqrt(len(costs))))
    sums = list(itertools.accumulate(costs))
    ends = []  # indices of the pieces that segments end with
    for i in range(1, count):
        due = next(j for j, total in enumerate(sums) if total * count >= sums[-1] * i)
        # Every segment gets a piece at least.
        ends.append(min(max(due, ends[-1] + 1 if ends else 0), len(costs) - 1 - (count - i)))
    return [tensors[end] for end in ends]


def _pieces(model: keras.Model) -> list[tuple]:
    """Each tensor that everything behind it depends on alone, and how much is computed up to it.

    That is the number of elements since the last such tensor that trained layers put out for an
    image, or 1 if the images' size is not known. The last piece ends with the model's output.
    """
    nodes = _nodes(model)
    output = model.outputs[0]
    uses = collections.Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    uses[id(output)] += 1
    live, pieces, cost = set(), [], 0
    for node in nodes:
        for tensor in node.input_tensors:
            uses[id(tensor)] -= 1
            if not uses[id(tensor)]:
                live.discard(id(tensor))
        live.update(id(tensor) for tensor in node.outputs if uses[id(tensor)])
        if node.is_input:
            continue
        if getattr(node.operation, "trainable", True):
            cost += sum(_elements(tensor) for tensor in node.outputs)
        if len(live) == 1 and id(node.outputs[0]) in live:
            pieces.append((node.outputs[0], cost))
            cost = 0
    if any(None in tensor.shape[1:] for tensor, _ in pieces):
        pieces = [(tensor, 1) for tensor, _ in pieces]
    return pieces


def _elements(tensor) -> int:
    return math.prod(size or 1 for size in tensor.shape[1:])


def _nodes(model: keras.Model) -> list:
    """The nodes of the graph, each behind those that it depends on."""
    order, seen = [], set()
    stack = [(_maker(model.outputs[0]), False)]
    while stack:  # not recursive: cifar_resnet1202 is deeper than Python's stack
        node, is_ready = stack.pop()
        if is_ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((_maker(tensor), False) for tensor in node.input_tensors)
    return order


def _maker(tensor):
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]
