"""Reads TFDS detection datasets, such as voc/2007 and coco/2017.

TFDS stores relative boxes: (ymin, xmin, ymax, xmax) divided by the height and width. They are converted to
pixels and rounded to 1/1000, so that they equal those of the original files. In `voc`, TFDS does not account
for pixel coordinates that start at 1, so 1 is subtracted from x1 and y1 here, as in `voc.py`.

The records of a split are read once to collect the objects; images are read from the files on demand.
"""

import dataclasses
import functools
import os
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_resnet.data.examples import parallel_map, prefetched
from keras_resnet.data.records import FOOTER, HEADER
from keras_resnet.data.sources import open_builder, tfrecords, unreadable
from keras_resnet.detection.data.annotations import (
    DetectionDataset,
    DetectionSplit,
    Faults,
    Objects,
    checked_box,
)
from keras_resnet.detection.data.files import checked_size, decode_pixels
from keras_resnet.errors import InputError
from keras_resnet.images.decode import read_header

_COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_COCO_IDS = tuple(number for number in range(1, 91) if number not in _COCO_UNUSED)


def open_tfds(name: str, data_dir: str | os.PathLike | None = None) -> DetectionDataset:
    """Opens a TFDS dataset with the features `image` and `objects` (`bbox`, `label`); see `open_dataset`."""
    builder, _ = open_builder(name, data_dir, _check_features)
    class_names = tuple(builder.info.features["objects"].feature["label"].names)
    loaders = {split: functools.partial(_load, name, builder, split) for split in builder.info.splits}
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    return DetectionDataset(name, class_names, loaders, sizes, builder.info.full_name)


def _check_features(name: str, info: Any) -> None:
    features = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    objects = getattr(features.get("objects"), "feature", None)
    inner = dict(objects.items()) if isinstance(objects, tfds.features.FeaturesDict) else {}
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(inner.get("bbox"), tfds.features.BBoxFeature)
        and isinstance(inner.get("label"), tfds.features.ClassLabel)
    ):
        has = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise InputError(
            f"dataset {name!r} is not for detection: it needs an image and objects with bbox and label, it"
            f" has {has or 'neither'}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Record:
    """The position of an image's record in its file, and its content except the image."""

    file: str
    start: int
    length: int
    name: str
    identifier: int | str
    size: tuple[int, int]
    objects: Objects


def _load(name: str, builder: Any, split: str, faults: Faults) -> DetectionSplit:
    try:
        found = _read_records(name, builder, split, faults)
    except tf.errors.OpError as error:
        raise unreadable(name, error) from None
    records = [record for record in found if record]
    if not faults.rows and not any(len(record.objects) for record in records):
        raise InputError(f"the split {split!r} of {name} has no objects; use another split")
    class_names = tuple(builder.info.features["objects"].feature["label"].names)
    is_coco = builder.name == "coco" and len(class_names) == len(_COCO_IDS)

    def read(index: int) -> np.ndarray:
        record = records[index]
        try:
            with open(record.file, "rb") as file:
                file.seek(record.start)
                example = _parse(builder, file.read(record.length))
        except (OSError, tf.errors.OpError) as error:  # e.g. the file was replaced or truncated since
            raise unreadable(name, error) from None
        return decode_pixels(example["image"], f"{name} {split}: {record.name}", record.size)

    return DetectionSplit(
        name=split,
        class_names=class_names,
        class_ids=_COCO_IDS if is_coco else tuple(range(len(class_names))),
        image_ids=tuple(record.identifier for record in records),
        sizes=np.array([record.size for record in records], "int32").reshape(-1, 2),
        objects=tuple(record.objects for record in records),
        read=read,
        image_names=tuple(record.name for record in records),
    )


def _parse(builder: Any, serialized: bytes) -> dict[str, Any]:
    """The features of a record as NumPy values; the image is not decoded."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    example = builder.info.features.deserialize_example(serialized, decoders=decoders)
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), example)


def _read_records(name: str, builder: Any, split: str, faults: Faults) -> list[_Record | None]:
    records, decoders = [], {"image": tfds.decode.SkipDecoding()}

    def parse(record):
        example = builder.info.features.deserialize_example(record, decoders=decoders)
        image = example.pop("image")
        return tf.strings.length(record), read_header(image), example

    for file, skip, take in tfrecords(name, builder.info, split):
        start = position = 0
        rows = parallel_map(tf.data.TFRecordDataset(file).take(skip + take), parse)
        for position, row in enumerate(prefetched(rows).as_numpy_iterator(), 1):
            length, header, example = row
            if position > skip:
                size = header[1::-1] if header[3] >= 5 else header[:2]
                place = (file, start + HEADER, int(length))
                shape = int(size[0]), int(size[1])
                records.append(_record(name, builder, len(records), place, shape, example, faults))
            start += HEADER + int(length) + FOOTER
        if position < skip + take:
            raise InputError(f"{file} has {position} records instead of {skip + take}: it is truncated")
    return records


def _record(
    dataset: str,
    builder: Any,
    index: int,
    place: tuple[str, int, int],
    size: tuple[int, int],
    example: dict,
    faults: Faults,
) -> _Record | None:
    name = example.get("image/filename", b"").decode(errors="replace") or f"record {index}"
    shape = checked_size(size[0], size[1], faults, dataset, f"image {name}")
    if shape is None:
        return None
    objects = example["objects"]
    scale = np.tile(np.array(shape, "float64"), 2)
    boxes = np.round(objects["bbox"].reshape(-1, 4) * scale, 3) - (
        (1, 1, 0, 0) if builder.name == "voc" else (0, 0, 0, 0)
    )
    names, rows = builder.info.features["objects"].feature["label"].names, []
    for number, (y1, x1, y2, x2) in enumerate(boxes.tolist()):
        label = int(objects["label"][number])
        what = f"object {number + 1} of {name}"
        if not 0 <= label < len(names):
            faults.add(dataset, f"{what} has the label {label}; labels are 0 to {len(names) - 1}")
            continue
        if builder.name == "coco" and (x1 == x2 or y1 == y2):  # two boxes in the published dataset
            faults.repaired["boxes without area left out"] += 1
            continue
        if box := checked_box((x1, y1, x2, y2), shape, faults, dataset, f"{what} ({names[label]})"):
            crowd, difficult = (bool(_value(objects, key, number, 0)) for key in ("is_crowd", "is_difficult"))
            area = float(_value(objects, "area", number, (box[2] - box[0]) * (box[3] - box[1])))
            rows.append((box, label, crowd, difficult, area))
    identifier = int(example["image/id"]) if "image/id" in example else name
    return _Record(place[0], place[1], place[2], name, identifier, shape, Objects.from_rows(rows))


def _value(objects: dict, key: str, number: int, default: float) -> float:
    return objects[key][number] if key in objects else default
