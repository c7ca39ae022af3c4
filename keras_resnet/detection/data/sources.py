"""Detection datasets by name: scenes, TFDS, and folders with COCO's or VOC's annotations."""

import os
from collections.abc import Callable

from keras_resnet.detection.data.annotations import DetectionDataset
from keras_resnet.errors import unknown_name

_OPENERS: dict[str, Callable[..., DetectionDataset]] = {}


def open_detection_dataset(name: str, data_dir: str | os.PathLike | None = None) -> DetectionDataset:
    """Opens a detection dataset.

    Args:
        name: "scenes", "coco:PATH", "voc:PATH", or a name of TFDS: "voc/2007", "coco/2017".
        data_dir: folder of prepared TFDS datasets; None for the default of TFDS.

    Raises:
        InputError: the dataset does not exist, is not for detection, or cannot be prepared.
    """
    if name not in _OPENERS:
        raise unknown_name(
            "detection dataset", name, {"scenes", "coco:PATH", "voc:PATH", "voc/2007", "coco/2017"}
        )
    return _OPENERS[name](data_dir)
