"""Counts what training graphs send between devices."""

import collections
import contextlib
from collections.abc import Iterator
from unittest import mock

import tensorflow as tf


@contextlib.contextmanager
def sent_bytes() -> Iterator[list[tuple[str, int]]]:
    """Yields the list of (dtype, bytes) of all all-reduces in the graphs that are traced within the block.

    Each replica of this process adds its own.
    """
    sent = []
    original = tf.distribute.ReplicaContext.all_reduce

    def all_reduce(context, reduce_op, value, options=None):
        for tensor in tf.nest.flatten(value):
            sent.append((tensor.dtype.name, tensor.shape.num_elements() * tensor.dtype.size))
        return original(context, reduce_op, value, options)

    with mock.patch.object(tf.distribute.ReplicaContext, "all_reduce", all_reduce):
        yield sent


def totals(sent: list[tuple[str, int]]) -> dict[str, int]:
    """The bytes by dtype."""
    result = collections.Counter()
    for dtype, size in sent:
        result[dtype] += size
    return dict(result)
