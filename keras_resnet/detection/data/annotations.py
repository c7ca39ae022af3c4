"""Annotated images: the objects of an image, splits and datasets.

Boxes are float32 (n, 4): x1, y1, x2, y2 in continuous pixel coordinates. (0, 0) is the upper left corner of
the image, its last column ends at its width, and the sides of a box are x2 - x1 and y2 - y1. Labels are
indices into the class names, which have no background class.
"""

import collections
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_resnet.data.sources import slice_bounds
from keras_resnet.errors import InputError, printable, require, unknown_name

_COLUMNS = {"boxes": "float32", "labels": "int32", "crowd": "bool", "difficult": "bool", "areas": "float32"}
_TOLERANCE = 1.0  # pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """The annotated objects of one image.

    Attributes:
        boxes: float32 (n, 4): x1, y1, x2, y2 in pixels.
        labels: int32 (n,).
        crowd: bool (n,), COCO's `iscrowd`: regions with several objects, which are ignored.
        difficult: bool (n,), VOC's `difficult`: objects that VOC's metric ignores.
        areas: float32 (n,), square pixels: of COCO's segmentation if there is one, otherwise of the box.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray) -> "Objects":
        """Returns the objects at `indices`, integers (k,) in any order, or a mask, bool (n,)."""
        return Objects(*(getattr(self, name)[indices] for name in _COLUMNS))

    @classmethod
    def from_rows(cls, rows: Sequence[tuple]) -> "Objects":
        """Makes objects from one row `(box, label, crowd, difficult, area)` per object."""
        columns = zip(*rows, strict=True) if rows else ((),) * len(_COLUMNS)
        pairs = zip(columns, _COLUMNS.values(), strict=True)
        boxes, *others = (np.array(column, dtype) for column, dtype in pairs)
        return cls(boxes.reshape(-1, 4), *others)


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionSplit:
    """Images with their annotated objects, which can be read in any order.

    Attributes:
        name: the split with its slice, e.g. "train[:600]".
        class_ids: the dataset's own number of each class, e.g. COCO's `category_id`.
        image_ids: the dataset's own number or name of each image.
        sizes: int32 (n, 2), height and width in pixels.
        read: returns the pixels of the image at an index; use `read_image` instead.
        image_names: the relative path of each image, or the name of its record, for messages and pictures.
            The default is the ids.
        skipped: `(file, reason)` of each fault that `skip_faulty` left out of the whole split.

    Raises:
        InputError: the numbers of images, sizes and objects differ, a label is out of range, or a box is not
            finite.
    """

    name: str
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    image_ids: tuple[int | str, ...]
    sizes: np.ndarray
    objects: tuple[Objects, ...]
    read: Callable[[int], np.ndarray] = dataclasses.field(repr=False)
    image_names: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        counts = len(self.image_ids), len(self.sizes), len(self.objects)
        require(len({*counts}) == 1, "a split needs a size and objects for each image", counts)
        if not self.image_names:
            object.__setattr__(self, "image_names", tuple(map(str, self.image_ids)))
        if not self.objects:
            return
        places = np.repeat(np.arange(len(self)), [len(objects) for objects in self.objects])
        labels = np.concatenate([objects.labels for objects in self.objects])
        boxes = np.concatenate([objects.boxes for objects in self.objects])
        wrong = (labels < 0) | (labels >= len(self.class_names))
        if wrong.any():
            name, label = self.image_names[places[wrong.argmax()]], labels[wrong.argmax()]
            known = f"labels are 0 to {len(self.class_names) - 1}"
            raise InputError(f"image {name} has an object with the label {label}; {known}")
        wrong = ~np.isfinite(boxes).all(1)
        if wrong.any():
            name, box = self.image_names[places[wrong.argmax()]], boxes[wrong.argmax()].tolist()
            raise InputError(f"image {name} has the box {box}; coordinates must be finite numbers")

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def left_out(self) -> str | None:
        """One line about what `skip_faulty` left out of the whole split; None for nothing."""
        if not self.skipped:
            return None
        first = printable(": ".join(self.skipped[0]))
        return f"{len(self.skipped)} faulty annotations left out, the first: {first}"

    def read_image(self, index: int) -> np.ndarray:
        """Returns the pixels of an image: uint8 (height, width, 3), RGB, upright according to the Exif tag.

        Raises:
            InputError: the image cannot be decoded, or its size is not the annotated one; the message names
                the file.
        """
        return self.read(range(len(self))[index])

    def part(self, name: str, start: int, stop: int) -> "DetectionSplit":
        """Returns the images from `start` to before `stop` as a split with another name."""
        rows = slice(start, stop)
        parts = {key: getattr(self, key)[rows] for key in ("image_ids", "sizes", "objects", "image_names")}
        return dataclasses.replace(self, name=name, read=lambda index: self.read(start + index), **parts)


def concatenate(name: str, splits: Sequence[DetectionSplit]) -> DetectionSplit:
    """Returns the images of several splits with the same classes as one split with another name."""
    starts = np.cumsum([0, *map(len, splits)])

    def read(index: int) -> np.ndarray:
        place = int(np.searchsorted(starts, index, "right")) - 1
        return splits[place].read_image(index - int(starts[place]))

    names = ("image_ids", "objects", "image_names", "skipped")
    joined = {key: sum((getattr(split, key) for split in splits), ()) for key in names}
    sizes = np.concatenate([split.sizes for split in splits])
    return dataclasses.replace(splits[0], name=name, read=read, sizes=sizes, **joined)


class Faults:
    """Handles faulty annotations: raises an error for the first one, or collects all.

    Attributes:
        rows: `(file, reason)` of each collected fault.
        repaired: number of repaired annotations by the kind of repair; these are not faults.
    """

    def __init__(self, collect: bool = False):
        self.rows: list[tuple[str, str]] = []
        self.repaired: collections.Counter[str] = collections.Counter()
        self._collect = collect

    def add(self, file: str, what: str) -> None:
        """Records a fault of a file, or raises `InputError` if faults are not collected."""
        if not self._collect:
            raise InputError(
                f"{file}: {what} (`detection check` lists all faults; --skip_faulty, for a recipe"
                " --set=skip_faulty=true, leaves them out)"
            )
        self.rows.append((file, what))


def checked_box(
    box: Sequence[float], size: Sequence[int], faults: Faults, file: str, what: str
) -> tuple[float, float, float, float] | None:
    """Returns a valid box, clipped to its image; reports any other box to `faults` and returns None.

    A box that extends beyond the image by at most one pixel is clipped, which counts as a repair, because
    rounded coordinates and coordinates that start at 1 instead of 0 are common.

    Args:
        box: x1, y1, x2, y2 in pixels.
        size: height and width of the image in pixels.
        file: the annotation file, for the message.
        what: the object, for the message, e.g. "object 3 (dog)".
    """
    x1, y1, x2, y2 = box
    shown = f"[{', '.join(f'{number:.6g}' for number in box)}]"
    if not all(map(math.isfinite, box)):
        return faults.add(file, f"{what} has the box {shown}; coordinates must be finite numbers")
    if x2 < x1 or y2 < y1:
        return faults.add(
            file,
            f"{what} has the box {shown}, whose corners are swapped; x1 must be below x2 and y1 below y2",
        )
    if x2 == x1 or y2 == y1:
        return faults.add(
            file, f"{what} has the box {shown}, which has no area; remove it or correct its corners"
        )
    height, width = size
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    outside = max(abs(before - after) for before, after in zip(box, clipped, strict=True))
    if outside > _TOLERANCE or clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return faults.add(
            file,
            f"{what} has the box {shown}, outside of its image of {width} x {height} pixels (width x height)",
        )
    faults.repaired["boxes clipped to their image"] += outside > 0
    return clipped


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionDataset:
    """An object detection dataset.

    Attributes:
        name: the name that `open_detection_dataset` takes.
        class_names: in the order of the labels.
        loaders: for each split, a function that reads it and reports faults to `Faults`; use `split` instead.
        sizes: number of images of each split; None if unknown until the splits are read.
        files: what identifies the data, e.g. the full name of a TFDS dataset with its version; None to use a
            digest of all annotations.
        composited: whether the images are composited by a program, see `scenes`.
        skip_faulty: whether faulty objects and images are left out instead of being an error.
    """

    name: str
    class_names: tuple[str, ...]
    loaders: Mapping[str, Callable[[Faults], DetectionSplit]] = dataclasses.field(repr=False)
    sizes: Mapping[str, int] | None = None
    files: str | None = None
    composited: bool = False
    skip_faulty: bool = False

    @property
    def title(self) -> str:
        """The name for reports and pictures, which says whether the images are composited."""
        return f"{self.name} (composited)" if self.composited else self.name

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names of the whole splits."""
        return tuple(self.loaders)

    @functools.cached_property
    def identity(self) -> dict:
        """The identity of the data, as JSON values, to which a run is bound; see `data_changes`.

        If the sizes or the files are unknown, all splits are read.
        """
        sizes, files = self.sizes, self.files
        if sizes is None or files is None:
            splits = {name: self._whole(name) for name in self.loaders}
            sizes = {name: len(split) for name, split in splits.items()}
            files = f"annotations-sha256:{_digest(splits)}"
        elif self.skip_faulty:
            files += " skip_faulty"
        return {"class_names": list(self.class_names), "split_sizes": dict(sizes), "files": files}

    def split(self, spec: str) -> DetectionSplit:
        """Opens a split or a slice of a split: "train", "train[:600]", "train[:10%]", "train[-500:]".

        "train+validation" concatenates two splits.

        Raises:
            InputError: the split does not exist, the slice is malformed or empty, or an annotation is faulty.
        """
        if "+" in spec:
            return concatenate(spec, [self.split(part) for part in spec.split("+")])
        name = spec.partition("[")[0]
        if name not in self.loaders:
            raise unknown_name(f"split of {self.name}", name, self.loaders)
        whole = self._whole(name)
        if not len(whole):
            raise InputError(f"the split {name!r} of {self.name} has no usable image")
        if name == spec:
            return whole
        return whole.part(spec, *slice_bounds(spec, self.name, len(whole)))

    @functools.cache  # noqa: B019 (splits live as long as their dataset)
    def _whole(self, name: str) -> DetectionSplit:
        faults = Faults(collect=self.skip_faulty)
        return dataclasses.replace(self.loaders[name](faults), skipped=tuple(faults.rows))


def _digest(splits: Mapping[str, DetectionSplit]) -> str:
    digest = hashlib.sha256()
    for name, split in sorted(splits.items()):
        digest.update(repr((name, split.image_ids, split.image_names, split.class_ids)).encode())
        digest.update(np.asarray(split.sizes, "<i4").tobytes())
        digest.update(np.array([len(objects) for objects in split.objects], "<i4").tobytes())
        for objects in split.objects:
            for column, dtype in _COLUMNS.items():
                digest.update(getattr(objects, column).astype(np.dtype(dtype).newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]
