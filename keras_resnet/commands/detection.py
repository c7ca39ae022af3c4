"""`python -m keras_resnet detection`."""

from collections.abc import Sequence

from keras_resnet.detection.detector import build_detector


def count_parameters(detectors: Sequence[str]) -> list[int]:
    """Returns the number of parameters of each detector, with its default classes."""
    return [build_detector(name).model.count_params() for name in detectors]
