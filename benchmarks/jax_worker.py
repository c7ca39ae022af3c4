"""Training steps of a network of the zoo on JAX, with a plain compiled step and without TensorFlow."""

import functools
import os
import sys
from typing import Any

import keras_resnet
from benchmarks.workers import MOMENTUM, RATE, WEIGHT_DECAY, TakeSteps, random_batch, serve_steps


def _prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], TakeSteps]:
    """SGD with momentum in float32 or mixed bfloat16."""
    os.environ["KERAS_BACKEND"] = "jax"
    # Keras imports TensorFlow where it finds it; nothing here may depend on it.
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    import jax
    import jax.numpy as jnp
    import keras

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32" if spec["precision"] == "float32" else "mixed_bfloat16")
    size = spec["image_size"]
    model = keras_resnet.build_model(spec["model"], input_shape=(size, size, 3), classifier_activation=None)
    decays = [WEIGHT_DECAY if variable.name == "kernel" else 0.0 for variable in model.trainable_variables]

    def loss_of(weights, statistics, images, labels):
        logits, statistics, *_ = model.stateless_call(weights, statistics, images, training=True)
        likelihoods = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)
        return -likelihoods.mean(), statistics

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
        weights, velocities, statistics = state
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, statistics), gradients = gradient_of(weights, statistics, images, labels)
        velocities = [
            MOMENTUM * velocity - RATE * (gradient + decay * weight)
            for velocity, gradient, decay, weight in zip(velocities, gradients, decays, weights, strict=True)
        ]
        weights = [weight + velocity for weight, velocity in zip(weights, velocities, strict=True)]
        return (weights, velocities, statistics), loss

    classes = keras_resnet.MODELS[spec["model"]].classes
    images, labels = map(jax.device_put, random_batch(spec["batch_size"], size, classes))
    # Copies: the step gives its arguments' memory away, and the model keeps its own.
    weights = [jnp.array(variable.value) for variable in model.trainable_variables]
    statistics = [jnp.array(variable.value) for variable in model.non_trainable_variables]
    state = (weights, [jnp.zeros_like(weight) for weight in weights], statistics)

    def take_steps(steps: int) -> float:
        nonlocal state
        loss = None
        for _ in range(steps):
            state, loss = step(state, images, labels)
        jax.block_until_ready(state)
        assert loss is not None
        return float(loss)

    return {"parameters": sum(weight.size for weight in weights)}, take_steps


if __name__ == "__main__":
    serve_steps(_prepare)
