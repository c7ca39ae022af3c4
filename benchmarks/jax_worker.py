"""A worker that trains a network of the zoo on JAX, with a plain compiled step; TensorFlow stays out."""

import functools
import os
import sys
import time

from benchmarks.workers import Channel

RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4


def main() -> None:
    """Serves steps of SGD with momentum in float32 or mixed bfloat16."""
    channel = Channel()
    spec = channel.spec
    os.environ["KERAS_BACKEND"] = "jax"
    # Keras loads TensorFlow where it can find it; here nothing may depend on it.
    sys.modules["tensorflow"] = None
    import jax
    import jax.numpy as jnp
    import keras
    import numpy as np

    from keras_resnet import build_model

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32" if spec["precision"] == "float32" else "mixed_bfloat16")
    size, batch = spec["image_size"], spec["batch_size"]
    model = build_model(spec["model"], input_shape=(size, size, 3), classifier_activation=None)
    decays = [WEIGHT_DECAY if variable.name == "kernel" else 0.0 for variable in model.trainable_variables]

    def loss_of(weights, statistics, images, labels):
        logits, statistics = model.stateless_call(weights, statistics, images, training=True)
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

    random = np.random.default_rng(0)
    images = jax.device_put(random.standard_normal((batch, size, size, 3), dtype="float32"))
    labels = jax.device_put(random.integers(0, model.output.shape[-1], batch, dtype="int32"))
    # Copies: the step gives its arguments' memory away, and the model keeps its own.
    weights = [jnp.array(variable.value) for variable in model.trainable_variables]
    parameters = sum(weight.size for weight in weights)
    statistics = [jnp.array(variable.value) for variable in model.non_trainable_variables]
    state = (weights, [jnp.zeros_like(weight) for weight in weights], statistics)

    def measure(steps: int) -> float:
        nonlocal state
        begun = time.perf_counter()
        for _ in range(steps):
            state, loss = step(state, images, labels)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - begun
        if not np.isfinite(loss):
            raise FloatingPointError("the loss is not finite")
        return steps * batch / seconds

    measure(spec["warm_up"])
    channel.serve({"step": measure}, parameters=parameters)


if __name__ == "__main__":
    main()
