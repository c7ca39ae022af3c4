"""The machine's limit as a peer: a large matrix product, counted as so many images of a network."""

from keras_resnet.processes import Worker

_SIDE = 4096
NAME = f"a {_SIDE} x {_SIDE} float32 matrix product, oneDNN"


def images_per_product(multiply_adds: float) -> float:
    """The images with so many multiply-adds each that have as many as one product."""
    return _SIDE**3 / multiply_adds


def start(multiply_adds: float) -> Worker:
    """Starts a worker whose steps are products, and whose images have so many multiply-adds each."""
    spec = {"contender": "matrix_product", "size": _SIDE, "precision": "float32", "warm_up": 1}
    return Worker("benchmarks.keras_worker", {**spec, "batch_size": images_per_product(multiply_adds)})
