"""Opens detection datasets by name: scenes, TFDS, and folders with COCO's or VOC's annotations."""

import dataclasses
import os

from keras_resnet.detection.data.annotations import DetectionDataset
from keras_resnet.detection.data.coco import open_coco
from keras_resnet.detection.data.scenes import open_scenes
from keras_resnet.detection.data.tfds_sources import open_tfds
from keras_resnet.detection.data.voc import open_voc
from keras_resnet.errors import InputError

_FOLDERS = {"coco": open_coco, "voc": open_voc}


def open_detection_dataset(
    name: str, data_dir: str | os.PathLike | None = None, skip_faulty: bool = False
) -> DetectionDataset:
    """Opens a detection dataset.

    A split is read when it is first used; the first faulty annotation is an error.

    Args:
        name: "scenes", "coco:PATH", "voc:PATH", or a TFDS name such as "voc/2007" or "coco/2017".
        data_dir: folder of prepared TFDS datasets; None for the default of TFDS.
        skip_faulty: leave out faulty objects and images instead of raising an error.

    Raises:
        InputError: the dataset does not exist, is not a detection dataset, or cannot be read.
    """
    kind, colon, path = name.partition(":")
    if kind == "folder":
        raise InputError(
            f"dataset {name!r} is not for detection; choose scenes, coco:PATH, voc:PATH or a name of TFDS"
        )
    if colon and kind in _FOLDERS:
        dataset = _FOLDERS[kind](path)
    elif name.partition("/")[0] == "scenes":
        dataset = open_scenes(name, data_dir)
    else:
        dataset = open_tfds(name, data_dir)
    return dataclasses.replace(dataset, skip_faulty=skip_faulty)
