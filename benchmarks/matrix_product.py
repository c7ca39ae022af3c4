"""The machine's limit as a peer: a large matrix product, counted as so many images of a network."""

from keras_resnet.processes import Worker

_SIDE = 4096


def name(precision: str, side: int) -> str:
    """The name of the peer in a result."""
    return f"a {side} x {side} {precision} matrix product"


NAME = f"{name('float32', _SIDE)}, oneDNN"
"""On a CPU."""


def images_per_product(multiply_adds: float, side: int = _SIDE) -> float:
    """The images with so many multiply-adds each that have as many as one product."""
    return side**3 / multiply_adds


def start(multiply_adds: float, precision: str = "float32", side: int = _SIDE) -> Worker:
    """Starts a worker whose steps are products, and whose images have so many multiply-adds each."""
    spec = {"contender": "matrix_product", "size": side, "precision": precision, "warm_up": 1}
    return Worker("benchmarks.keras_worker", {**spec, "batch_size": images_per_product(multiply_adds, side)})
