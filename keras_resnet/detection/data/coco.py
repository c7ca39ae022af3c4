"""Reads COCO's JSON files, `instances_*.json`, with their images in folders.

A box is [x, y, width, height] in continuous pixel coordinates, so x1 = x and x2 = x + width. Category ids
need not be consecutive; labels follow the order of the ids. `iscrowd` may be missing or null (the default is
0), and so may `area` (the default is width * height).
"""

import dataclasses
import functools
import glob
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_resnet.detection.data.annotations import (
    DetectionDataset,
    DetectionSplit,
    Faults,
    Objects,
    checked_box,
)
from keras_resnet.detection.data.files import as_integer, checked_size, image_reader, read_json
from keras_resnet.errors import InputError, one_line

_PREFIX = "instances_"
_LAYOUT = "FOLDER/annotations/instances_NAME.json with images in FOLDER/NAME/"


def open_coco(path: str) -> DetectionDataset:
    """Opens a folder with COCO's layout, or a single JSON file.

    Splits are named after the files: `annotations/instances_train2017.json` is "train2017". Its images are in
    `train2017/`, `images/train2017/`, `images/`, the folder itself, or next to the JSON file. Roboflow's
    layout, `train/_annotations.coco.json`, is supported, too.

    Raises:
        InputError: there is no such folder or file, it has no JSON file, or the categories are invalid.
    """
    root = os.path.expanduser(path)
    found = _find(root)
    files = {name: _File(name, file, os.path.dirname(file) if root == file else root) for name, file in found}
    # All files must have the same categories, so the smallest file is enough to find them.
    smallest = min(files.values(), key=lambda file: os.path.getsize(file.path))
    categories = smallest.categories
    return DetectionDataset(
        name=f"coco:{path}",
        class_names=tuple(name for _, name in categories),
        loaders={
            name: functools.partial(_load, file, categories, smallest.path) for name, file in files.items()
        },
    )


def _find(root: str) -> list[tuple[str, str]]:
    """The name and the JSON file of each split."""
    if os.path.isfile(root):
        return [(_split_name(root), root)]
    if not os.path.isdir(root):
        raise InputError(f"there is no folder or file {root!r}; the layout is {_LAYOUT}")
    pattern = glob.escape(root)
    for files in (f"annotations/{_PREFIX}*.json", "annotations/*.json", f"{_PREFIX}*.json"):
        if paths := sorted(glob.glob(os.path.join(pattern, files))):
            return [(_split_name(path), path) for path in paths]
    if paths := sorted(glob.glob(os.path.join(pattern, "*/_annotations.coco.json"))):
        return [(os.path.basename(os.path.dirname(path)), path) for path in paths]
    if paths := sorted(glob.glob(os.path.join(pattern, "*.json"))):
        return [(_split_name(path), path) for path in paths]
    raise InputError(f"{root!r} has no JSON file; the layout is {_LAYOUT}")


def _split_name(path: str) -> str:
    return os.path.basename(path).removesuffix(".json").removeprefix(_PREFIX)


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
    split: str
    path: str
    root: str  # the folder in which images are searched

    def read(self) -> dict[str, list]:
        value = read_json(self.path)
        if isinstance(value, list):
            raise InputError(f"{self.path} is a list, perhaps of detections; expected COCO's annotations")
        for key in ("images", "annotations", "categories"):
            if not isinstance(value, dict) or not isinstance(value.get(key), list):
                raise InputError(f"{self.path} has no list {key!r}; expected COCO's instances_*.json")
        return value

    @functools.cached_property
    def categories(self) -> tuple[tuple[int, str], ...]:
        """The id and the name of each category, sorted by id."""
        return _categories(self.path, self.read()["categories"])

    def folder(self, names: Sequence[str]) -> str:
        """The first of the possible folders that contains one of the first ten images `names`."""
        folders = [
            os.path.join(self.root, self.split),
            os.path.join(self.root, "images", self.split),
            os.path.join(self.root, "images"),
            self.root,
            os.path.dirname(self.path),
        ]
        for folder in folders:
            if any(os.path.isfile(os.path.join(folder, name)) for name in names[:10]):
                return folder
        return next((folder for folder in folders if os.path.isdir(folder)), self.root)


def _categories(path: str, rows: list) -> tuple[tuple[int, str], ...]:
    categories: dict[int, str] = {}
    groups = [row.get("supercategory") for row in rows if isinstance(row, dict)]
    for row in rows:
        # Roboflow also lists the supercategory of all classes as a category, which has no objects.
        if isinstance(row, dict) and row.get("supercategory") == "none" and row.get("name") in groups:
            continue
        number = as_integer(row.get("id")) if isinstance(row, dict) else None
        if number is None:
            raise InputError(f"{path}: the category {_shown(row)} has no integer id")
        name = row.get("name")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}: category {number} has no name; give it one")
        if number in categories or name in categories.values():
            raise InputError(
                f"{path}: category {number} ({_shown(name)}) occurs twice; ids and names must differ"
            )
        categories[number] = name
    if not categories:
        raise InputError(f"{path} has no categories")
    return tuple(sorted(categories.items()))


def _load(file: _File, categories: tuple, categories_path: str, faults: Faults) -> DetectionSplit:
    value = file.read()
    if _categories(file.path, value["categories"]) != categories:
        raise InputError(
            f"{file.path} and {categories_path} have different categories; they must be the same"
        )
    images = _images(file, value["images"], faults)
    folder = file.folder([name for name, _ in images.values()])
    _leave_out_missing(file.path, folder, images, faults)
    paths = [os.path.join(folder, name) for name, _ in images.values()]
    labels = {number: label for label, (number, _) in enumerate(categories)}
    faulty = {number for number in map(_id, value["images"]) if number is not None} - set(images)
    rows: dict[int | str, list] = {number: [] for number in images}
    for position, row in enumerate(value["annotations"]):
        number = _id(row, "image_id")
        if number not in faulty and (found := _object(file.path, position, row, images, labels, faults)):
            rows[number].append(found)  # pyright: ignore[reportArgumentType]: found: one of the images
    sizes = np.array([size for _, size in images.values()], "int32").reshape(-1, 2)
    return DetectionSplit(
        name=file.split,
        class_names=tuple(name for _, name in categories),
        class_ids=tuple(labels),
        image_ids=tuple(images),
        sizes=sizes,
        objects=tuple(map(Objects.from_rows, rows.values())),
        read=image_reader(paths, sizes),
        image_names=tuple(name for name, _ in images.values()),
    )


def _images(file: _File, rows: list, faults: Faults) -> dict[int | str, tuple[str, tuple[int, int]]]:
    """The file name and the size of each valid image by its id."""
    images, names = {}, set()
    for position, row in enumerate(rows):
        number = _id(row)
        if number is None:
            faults.add(file.path, f"image number {position} has no id, an integer or a text")
            continue
        name = row.get("file_name")
        what = f"image {_shown(number)} ({_shown(name)})"
        if reason := _name_error(name):
            faults.add(file.path, f"image {_shown(number)} {reason}")
        elif number in images:
            faults.add(file.path, f"{what} has the id of another image, {_shown(images[number][0])}")
        elif name in names:
            faults.add(file.path, f"{what} has the file of another image; list each file once")
        else:
            size = checked_size(row.get("height"), row.get("width"), faults, file.path, what)
            images.update({number: (name, size)} if size else {})
            names.add(name)
    if not rows:
        faults.add(file.path, "has no images")
    return images


def _name_error(name: Any) -> str | None:
    if not isinstance(name, str) or not name or "\0" in name:
        return "has no file_name"
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        return f"has the file_name {_shown(name)}, which is not a path inside the folder of the images"
    return None


def _object(
    path: str, position: int, row: Any, images: dict, labels: dict[int, int], faults: Faults
) -> tuple | None:
    """Returns the row of an annotation for `Objects.from_rows`, or None if it is faulty."""
    if not isinstance(row, dict):
        return faults.add(path, f"annotation number {position} is {_shown(row)}; expected an object")
    what = f"annotation {_shown(row['id'])}" if "id" in row else f"annotation number {position}"
    number, category = _id(row, "image_id"), row.get("category_id")
    if number not in images:
        shown = one_line(repr(row.get("image_id")), 80)
        return faults.add(path, f"{what} has the image_id {shown}, but no image has this id")
    name, size = images[number]
    what = f"{what} of image {_shown(number)} ({_shown(name)})"
    label = labels.get(as_integer(category))  # pyright: ignore[reportArgumentType]: None is no key
    if label is None:
        known = f"{min(labels)} to {max(labels)}" if len(labels) > 1 else f"{min(labels)}"
        return faults.add(path, f"{what} has the category_id {_shown(category)}; the categories have {known}")
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return faults.add(path, f"{what} has the bbox {_shown(box)}; expected [x, y, width, height]")
    crowd = _value(row, "iscrowd", 0)
    if crowd not in (0, 1):
        return faults.add(path, f"{what} has iscrowd {_shown(crowd)}; expected 0 or 1")
    x, y, width, height = map(float, box)
    if width <= 0 or height <= 0:
        return faults.add(
            path, f"{what} has the bbox {_shown(box)}; width and height must be above 0: correct or remove it"
        )
    corners = checked_box((x, y, x + width, y + height), size, faults, path, what)
    area = _value(row, "area", width * height)
    if not _is_number(area) or not 0 <= area < float("inf"):
        return faults.add(path, f"{what} has the area {_shown(area)}; expected square pixels")
    return corners and (corners, label, bool(crowd), False, area)


def _leave_out_missing(path: str, folder: str, images: dict, faults: Faults) -> None:
    """Removes images without a file; listing folders is much faster than checking each file."""
    listings: dict[str, set[str]] = {}
    for number, (name, _) in list(images.items()):
        inner, base = os.path.split(name)
        if inner not in listings:
            try:
                listings[inner] = set(os.listdir(os.path.join(folder, inner)))
            except OSError:
                listings[inner] = set()
        if base not in listings[inner]:
            faults.add(path, f"image {_shown(number)} ({_shown(name)}) has no file in {folder}")
            del images[number]


def _id(row: Any, key: str = "id") -> int | str | None:
    number = row.get(key) if isinstance(row, dict) else None
    if isinstance(number, float):  # pandas may write integer columns as floats
        number = as_integer(number)
    return None if isinstance(number, bool) or not isinstance(number, int | str) else number


def _value(row: dict, key: str, default: float) -> Any:
    """Returns a value, or the default if it is missing or null."""
    value = row.get(key)
    return default if value is None else value


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**53  # not every integer is a float


def _shown(value: Any) -> str:
    """Formats a value of an untrusted file for a message."""
    return one_line(value if isinstance(value, str) else repr(value), 80)
