"""Reads VOC's layout: `Annotations/NAME.xml`, `JPEGImages/NAME.jpg` and `ImageSets/Main/SPLIT.txt`.

Pixel coordinates in the files start at 1, and a box includes both (xmin, ymin) and (xmax, ymax): for a box
that covers the image, xmin is 1 and xmax is the width. Here x1 = xmin - 1 and x2 = xmax, as in detectron2.
Boxes of files whose coordinates start at 0 are off by one pixel, and clipped to the image.
"""

import dataclasses
import functools
import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from keras_resnet.detection.data.annotations import (
    DetectionDataset,
    DetectionSplit,
    Faults,
    Objects,
    checked_box,
)
from keras_resnet.detection.data.files import IMAGE_SUFFIXES, checked_size, image_reader, read_file
from keras_resnet.errors import InputError, one_line

_VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

_LAYOUT = "FOLDER/Annotations/NAME.xml with FOLDER/JPEGImages/NAME.jpg"
_MAX_XML = 2**24  # bytes; VOC's largest file has about 20,000
_DEEPEST = 32
_ALL = "all"
# Lists of the images of one class, such as "aeroplane_train.txt".
_OF_A_CLASS = re.compile("_(train|val|trainval|test)$")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclasses.dataclass(frozen=True, eq=False)
class _Folder:
    """The files of a folder: the image names of each split, and the paths by image name."""

    splits: dict[str, tuple[str, ...]]
    annotations: dict[str, str]
    images: dict[str, str]


def open_voc(path: str) -> DetectionDataset:
    """Opens a folder with VOC's layout, or a folder that contains exactly one, also in `VOCdevkit/`.

    The splits are the files in `ImageSets/Main`, except those for single classes; if there are none, there is
    one split, "all". The classes are VOC's 20 if no other names occur, otherwise the names that occur,
    sorted. Names that differ only in upper and lower case are the same class.

    Raises:
        InputError: the folder does not exist, does not have VOC's layout, or has no objects.
    """
    folder = _scan(os.path.expanduser(path))
    with ThreadPoolExecutor(8) as pool:  # hides the latency of network file systems
        names = list(pool.map(_class_names, folder.annotations.values()))
    class_names = _classes([name for some in names for name in some])
    if not class_names:
        for file in folder.annotations.values():
            _read_xml(file)  # if a file is faulty, the error names it
        raise InputError(f"{path!r} has no objects; the layout is {_LAYOUT}")
    loaders = {split: functools.partial(_load, folder, split, class_names) for split in folder.splits}
    return DetectionDataset(f"voc:{path}", class_names, loaders)


def _scan(root: str) -> _Folder:
    if not os.path.isdir(root):
        raise InputError(f"there is no folder {root!r}; the layout is {_LAYOUT}")
    if not os.path.isdir(os.path.join(root, "Annotations")):
        inner = [path for depth in ("*", "VOCdevkit/*") for path in _inner_folders(root, depth)]
        if len(inner) > 1:
            raise InputError(
                f"{root!r} has several folders of VOC's layout; choose one, such as {inner[0]!r}"
            )
        root = inner[0] if inner else root
    annotations = {
        stem: path
        for stem, path in _listing(os.path.join(root, "Annotations"))
        if path.lower().endswith(".xml")
    }
    if not annotations:
        raise InputError(f"{root!r} has no Annotations/*.xml; the layout is {_LAYOUT}")
    images = {
        stem: path
        for stem, path in _listing(os.path.join(root, "JPEGImages"))
        if path.lower().endswith(IMAGE_SUFFIXES)
    }
    lists = dict(_listing(os.path.join(root, "ImageSets", "Main")))
    whole = [stem for stem, path in lists.items() if path.endswith(".txt") and not _OF_A_CLASS.search(stem)]
    splits = {stem: _names_of_split(lists[stem]) for stem in whole}
    return _Folder(splits or {_ALL: tuple(annotations)}, annotations, images)


def _inner_folders(root: str, depth: str) -> list[str]:
    found = glob.glob(os.path.join(glob.escape(root), depth, "Annotations"))
    return [os.path.dirname(path) for path in sorted(found) if os.path.isdir(path)]


def _listing(folder: str) -> list[tuple[str, str]]:
    """The sorted `(name without suffix, path)` of a folder's files; empty if there is no such folder."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"the folder {folder!r} cannot be read: {error.strerror}") from None
    return [(os.path.splitext(name)[0], os.path.join(folder, name)) for name in names if name[0] != "."]


def _names_of_split(path: str) -> tuple[str, ...]:
    try:
        lines = read_file(path, 2**28).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; expected the name of an image in each line") from None
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path} is empty; expected the name of an image in each line")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} lists {_shown(repeated[0])} twice; list each image once")
    return tuple(names)


def _read_xml(path: str) -> Element:
    """Returns the root of an XML file, with tags in lower case.

    Document types, which may define entities, are refused.

    Raises:
        InputError: the file cannot be read, is too large, or is not valid.
    """
    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def start(tag, attributes):
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise InputError(f"{path} is nested deeper than {_DEEPEST} elements")
        builder.start(tag.lower(), attributes)

    def end(tag):
        nonlocal depth
        depth -= 1
        builder.end(tag.lower())

    def refuse(*_):
        raise InputError(f"{path} declares a document type (<!DOCTYPE ...>); remove it")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(read_file(path, _MAX_XML), True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a valid XML file: {one_line(error)}") from None


def _class_names(path: str) -> list[str]:
    """The class names in a file; empty if it is faulty, which is reported when its split is read."""
    try:
        return [name for item in _read_xml(path).findall("object") if (name := _text(item, "name"))]
    except InputError:
        return []


def _classes(names: Sequence[str]) -> tuple[str, ...]:
    spellings: dict[str, set[str]] = {}
    for name in names:
        spellings.setdefault(name.lower(), set()).add(name)
    if spellings.keys() <= set(_VOC_CLASSES):
        return _VOC_CLASSES if names else ()
    return tuple(lower if len(some) > 1 else min(some) for lower, some in sorted(spellings.items()))


def _load(folder: _Folder, split: str, class_names: tuple[str, ...], faults: Faults) -> DetectionSplit:
    labels = {name.lower(): label for label, name in enumerate(class_names)}
    names, sizes, objects = [], [], []
    for name in folder.splits[split]:
        if name not in folder.annotations:
            faults.add(f"split {split}", f"image {_shown(name)} has no file Annotations/{_shown(name)}.xml")
        elif name not in folder.images:
            faults.add(
                folder.annotations[name], f"its image is missing in JPEGImages ({', '.join(IMAGE_SUFFIXES)})"
            )
        elif found := _image(folder.annotations[name], labels, faults):
            names.append(name)
            sizes.append(found[0])
            objects.append(found[1])
    paths = [folder.images[name] for name in names]
    shape = np.array(sizes, "int32").reshape(-1, 2)
    return DetectionSplit(
        name=split,
        class_names=class_names,
        class_ids=tuple(range(len(class_names))),
        image_ids=tuple(names),
        sizes=shape,
        objects=tuple(objects),
        read=image_reader(paths, shape),
        image_names=tuple(f"JPEGImages/{os.path.basename(path)}" for path in paths),
    )


def _image(path: str, labels: dict[str, int], faults: Faults) -> tuple[tuple[int, int], Objects] | None:
    """The height and width of an image, and its objects; None if the file is faulty."""
    try:
        root = _read_xml(path)
    except InputError as error:
        return faults.add(path, str(error).removeprefix(path).lstrip(": "))
    size = root.find("size")
    if size is None:
        return faults.add(path, "has no <size> with <width> and <height>")
    shape = checked_size(_text(size, "height"), _text(size, "width"), faults, path, "the image")
    if shape is None:
        return None
    items = enumerate(root.findall("object"), 1)
    rows = [_object(path, f"object {number}", item, shape, labels, faults) for number, item in items]
    return shape, Objects.from_rows([row for row in rows if row])


def _object(
    path: str, what: str, item: Element, size: tuple[int, int], labels: dict[str, int], faults: Faults
) -> tuple | None:
    """Returns the row of an object for `Objects.from_rows`, or None if it is faulty."""
    name = _text(item, "name")
    if not name:
        return faults.add(path, f"{what} has no <name>")
    what = f"{what} ({_shown(name)})"
    if name.lower() not in labels:
        return faults.add(path, f"{what} is of no class of the dataset")
    bounds = item.find("bndbox")
    texts = [None if bounds is None else _text(bounds, corner) for corner in _CORNERS]
    try:
        xmin, ymin, xmax, ymax = (float(text or "") for text in texts)
    except ValueError:
        return faults.add(
            path, f"{what} has the <bndbox> {_shown(texts)}; expected numbers as xmin, ymin, xmax, ymax"
        )
    if xmin > xmax or ymin > ymax:
        return faults.add(
            path,
            f"{what} has swapped corners: xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g};"
            " xmin must not be above xmax, nor ymin above ymax",
        )
    difficult = _text(item, "difficult") or "0"
    if difficult not in ("0", "1"):
        return faults.add(path, f"{what} has <difficult> {_shown(difficult)}; expected 0 or 1")
    box = checked_box((xmin - 1, ymin - 1, xmax, ymax), size, faults, path, what)
    return box and (box, labels[name.lower()], False, difficult == "1", (box[2] - box[0]) * (box[3] - box[1]))


def _text(element: Element, tag: str) -> str | None:
    """The text of the first child with this tag, without leading and trailing whitespace."""
    text = element.findtext(tag)
    return text and text.strip()


def _shown(value: object) -> str:
    """Formats a value of an untrusted file for a message."""
    return one_line(value, 80)
