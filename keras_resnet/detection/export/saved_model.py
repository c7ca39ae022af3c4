"""Exports a detector to a SavedModel, in the layout of TensorFlow Serving."""

import functools
from pathlib import Path

from keras_resnet.detection.detector import Detector
from keras_resnet.detection.export.serving import description, signatures
from keras_resnet.export.writers.saved_model import write_version
from keras_resnet.export.writers.tflite_metadata import check_labels


def detector_to_saved_model(detector: Detector, path: str | Path, *, license: str = "Apache-2.0") -> Path:
    """Writes a new version of a detector, which TensorFlow loads without Keras or this package.

    Args:
        path: the folder of the model's versions, as TensorFlow Serving expects it; created if missing.
        license: SPDX identifier of the weights' license, for the metadata.

    Returns:
        The version's folder, `path/1`, or the next free number. Its signatures take zero or more images of
        any size:

        - `serving_default`: `images`, float32 (batch, height, width, 3), RGB, raw pixels 0-255.
        - `serving_uint8`: the same with uint8 `images`.
        - `detect_bytes`: `image_bytes`, string (batch,), JPEG or PNG files, of different sizes if necessary.

        Each returns, sorted by descending score, `boxes`, float32 (batch, n, 4), x1, y1, x2, y2 in pixels of
        the given images; `scores`, float32 (batch, n); `labels`, int32 (batch, n), indices into the class
        names, and `classes`, string (batch, n), the names; and `count`, int32 (batch,), the number of valid
        detections of each image. The remaining elements are 0 or "".

    Raises:
        InputError: something else exists at `path`, it cannot be written, a class name has a line break, or
            the detector has a layer that cannot be exported.
    """
    check_labels(detector.class_names, len(detector.class_names))
    make_signatures = functools.partial(signatures, detector)
    return write_version(
        Path(path), make_signatures, {"license": license, **description(detector)}, detector.class_names
    )
