"""A worker that multiplies matrices as fast as the machine can."""

import time

from keras_resnet.processes import serve

_SIZE = 4096
GEMM_FLOPS = 2 * _SIZE**3


def _prepare(spec):
    import tensorflow as tf

    a, b = (tf.random.uniform((_SIZE, _SIZE)) for _ in range(2))
    multiply = tf.function(tf.linalg.matmul)

    def measure(steps: int) -> float:
        """Returns the images/s of a network that would be one large float32 matrix product in oneDNN."""
        begun = time.perf_counter()
        for _ in range(steps):
            multiply(a, b).numpy()
        return steps * GEMM_FLOPS / spec["flops_per_image"] / (time.perf_counter() - begun)

    measure(1)
    return {}, {"measure": measure}


if __name__ == "__main__":
    serve(_prepare)
