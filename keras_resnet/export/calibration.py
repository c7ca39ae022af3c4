"""The images from which int8 files take the ranges of their activations."""

from collections.abc import Iterable

import numpy as np

from keras_resnet.errors import InputError

LEAST_IMAGES = 32


def calibration_batches(calibration: Iterable[np.ndarray] | None, shape: tuple) -> list[np.ndarray]:
    """The images to calibrate with.

    Args:
        calibration: batches (n, height, width, channels) of raw pixels 0-255.
        shape: of one image, (height, width, channels), with None for any size.

    Returns:
        The batches.

    Raises:
        InputError: too few images, or of another shape.
    """
    batches = [np.asarray(batch) for batch in (() if calibration is None else calibration)]
    for batch in batches:
        fits = batch.ndim == 4 and all(
            wanted in (None, size) for wanted, size in zip(shape, batch.shape[1:], strict=True)
        )
        if not fits:
            raise InputError(
                f"calibration batches must be (n, {', '.join(map(str, shape))}); got {batch.shape}"
            )
    count = sum(map(len, batches))
    if count < LEAST_IMAGES:
        raise InputError(f"int8 needs at least {LEAST_IMAGES} calibration images; got {count}")
    return batches
