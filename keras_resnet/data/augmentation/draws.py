"""Random numbers that are pure functions of a seed pair: (epoch, example).

Augmentation does not depend on the worker or on how often a run was resumed. Draws are computed for each
image separately: in a batch, the last bit could depend on the batch size.
"""

import tensorflow as tf

TOP, LEFT, FLIP, RESIZE = range(4)
"""Positions of the four numbers of stream 0."""

BOX, OPERATIONS, JITTER, PCA, ERASED, ERASED_BOX, OBJECTS = range(1, 8)
"""The other streams."""


def stream(seeds: tf.Tensor, purpose: int) -> tf.Tensor:
    """Seed pairs (..., 2) of an independent stream; stream 0 is the seeds themselves."""
    key = purpose * 0x9E3779B97F4A7C15 % 2**63
    return tf.bitwise.bitwise_xor(seeds, tf.constant([key, 0], tf.int64))


def uniforms(seeds: tf.Tensor, purpose: int = 0, count: int = 4) -> tf.Tensor:
    """Draws numbers in [0, 1) for each seed pair: float32 (..., count) for seeds (..., 2)."""

    def draw(seed):
        return tf.random.stateless_uniform([count], seed, alg="philox")

    seeds = stream(seeds, purpose)
    return draw(seeds) if seeds.shape.rank == 1 else tf.map_fn(draw, seeds, fn_output_signature=tf.float32)


def choose(uniform: tf.Tensor, choices: tf.Tensor | int) -> tf.Tensor:
    """Converts a number in [0, 1) to an integer in [0, choices)."""
    return tf.cast(uniform * tf.cast(choices, tf.float32), tf.int32)
