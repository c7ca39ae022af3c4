"""Composited scenes: small images of a classification dataset, scaled, tinted and pasted on photos.

They need no downloaded files. A scene depends only on (seed, split, index), so its bytes do not depend on
the order of reading or the worker. Scenes are composited, not natural images: a metric measured on them
is suitable for comparing detectors, but does not predict the accuracy on photographs.

- The background is a random crop of one of scikit-learn's two photos: china.jpg for training, flower.jpg for
  testing. The pasted examples are from the training or the test split of their dataset, too.
- A scene has no object with probability 1/10, otherwise 1 to 6 objects, whose longer side is distributed
  log-uniformly between 1/8 and 1/2 of the image's (16 to 64 of 128 pixels). Boxes are tight.
- Of two objects, the smaller has less than 0.3 of its area in common with the larger, so their IoU is below
  0.3, too. An object that cannot be placed in ten attempts is left out.
- Below the objects are up to three pieces of clutter, which belong to no class: other parts of the photo in
  rectangles or ellipses, or examples that are cut into tiles and shuffled.
"""

import dataclasses
import functools
import importlib.util
import os
import re
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from keras_resnet.data.digits import digits_examples
from keras_resnet.data.sources import IndexedSplit, Split, is_prepared, open_dataset
from keras_resnet.detection.data.annotations import DetectionDataset, DetectionSplit, Faults, Objects
from keras_resnet.errors import InputError, require

_SIDE = 128
"""Default height and width of a scene, pixels."""

_SIZES = {"train": 5000, "test": 500}
"""Default number of scenes of each split."""

_VERSION = 1  # part of the identity; increase it if the same arguments give other scenes
_PHOTOS = {"train": "china.jpg", "test": "flower.jpg"}
_NAME = re.compile(r"scenes(?:/(fashion_mnist|digits))?(?:/([0-9]{2,4}))?")
_SMALLEST, _LARGEST = 1 / 8, 1 / 2  # of the image's side
_MOST_OBJECTS, _MOST_CLUTTER, _EMPTY = 6, 3, 0.1
_MOST_COVERED = 0.3  # of the smaller object's area
_TRIES = 10
_VISIBLE = 32  # pixels with at least this value belong to an example's box
_DARKEST_TINT = 80
_TILES = 4  # on each axis of a shuffled example


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    """The examples to paste: uint8 (n, height, width), their labels, and whether they may be mirrored."""

    pixels: np.ndarray
    labels: np.ndarray
    mirrors: bool

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        """The visible part of each example: int (n, 4), x1, y1, x2, y2."""
        visible: Any = self.pixels >= _VISIBLE
        columns, rows = visible.any(1), visible.any(2)
        ends = [axis.shape[1] - axis[:, ::-1].argmax(1) for axis in (columns, rows)]
        return np.stack([columns.argmax(1), rows.argmax(1), *ends], 1)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A part of a scene: its box, x1, y1, x2, y2, and random numbers in [0, 1) that determine its content."""

    box: tuple[int, int, int, int]
    example: int
    numbers: list[float]


def open_scenes(
    name: str = "scenes",
    data_dir: str | os.PathLike | None = None,
    *,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
) -> DetectionDataset:
    """Opens composited scenes of Fashion-MNIST's garments, or of scikit-learn's digits.

    Args:
        name: "scenes", "scenes/SOURCE", "scenes/SIDE" or "scenes/SOURCE/SIDE". The source is
            "fashion_mnist" or "digits"; the default is "fashion_mnist" if TFDS has it prepared, otherwise
            "digits". The side is the height and width of the images in pixels, 32 to 2048.
        data_dir: folder of prepared TFDS datasets; None for the default of TFDS.
        seed: seed of the scenes.
        sizes: number of scenes of "train" and "test"; the default is 5,000 and 500.

    Raises:
        InputError: the name is invalid, or scikit-learn is not installed.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError(
            f"unknown scenes {name!r}; write scenes, scenes/fashion_mnist, scenes/digits,"
            " or scenes/digits/160 for images of 160 pixels"
        )
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("scenes need scikit-learn, which has the photos: pip install scikit-learn")
    kind, side = match[1], int(match[2] or _SIDE)
    require(32 <= side <= 2048, "the side of a scene must be between 32 and 2048 pixels", side)
    if kind is None:
        kind = "fashion_mnist" if is_prepared("fashion_mnist", data_dir) else "digits"
    if kind == "digits":
        class_names, files = tuple(map(str, range(10))), "digits"
        sources = {split: _Source(*digits_examples(split == "test")[1:], mirrors=False) for split in _PHOTOS}
    else:
        dataset = open_dataset(kind, data_dir)
        class_names, files = dataset.class_names, dataset.files
        sources = {split: _garments(dataset.split(split)) for split in _PHOTOS}
    splits = {
        split: _Split(split, class_names, source, side, seed, (sizes or _SIZES).get(split, _SIZES[split]))
        for split, source in sources.items()
    }
    suffix = "" if side == _SIDE else f"/{side}"
    return DetectionDataset(
        name=f"scenes/{kind}{suffix}",
        class_names=class_names,
        loaders={name: split.load for name, split in splits.items()},
        sizes={name: split.size for name, split in splits.items()},
        files=f"composited:{_VERSION} {files} side={side} seed={seed}",
        composited=True,
    )


def _garments(split: Split) -> _Source:
    assert isinstance(split, IndexedSplit)  # Fashion-MNIST fits into memory
    return _Source(split.images[..., 0], split.classes, mirrors=True)


@dataclasses.dataclass(frozen=True, eq=False)
class _Split:
    name: str
    class_names: tuple[str, ...]
    source: _Source
    side: int
    seed: int
    size: int

    def load(self, faults: Faults) -> DetectionSplit:
        """Returns the scenes as a split; there are no faults."""
        del faults
        return DetectionSplit(
            name=self.name,
            class_names=self.class_names,
            class_ids=tuple(range(len(self.class_names))),
            image_ids=tuple(range(self.size)),
            sizes=np.full((self.size, 2), self.side, "int32"),
            objects=tuple(map(self._objects, range(self.size))),
            read=self._render,
        )

    @functools.cached_property
    def _photo(self) -> Image.Image:
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(_PHOTOS[self.name]))

    def _compose(self, index: int) -> tuple[list[float], list[_Piece], list[_Piece]]:
        """The random numbers of the background, the clutter, and the objects of a scene."""
        key = np.random.SeedSequence([self.seed, list(_PHOTOS).index(self.name), index])
        # All numbers are drawn at once, so that those of a part do not depend on the number of other parts.
        shape = (1 + _MOST_CLUTTER + _MOST_OBJECTS, 8 + 2 * _TRIES)
        numbers = np.random.Generator(np.random.PCG64(key)).random(shape).tolist()
        scene = numbers[0]
        clutter = [self._piece(row, []) for row in numbers[1 : 1 + int(scene[0] * (_MOST_CLUTTER + 1))]]
        count = 0 if scene[1] < _EMPTY else 1 + int(scene[2] * _MOST_OBJECTS)
        objects: list[_Piece] = []
        for row in numbers[1 + _MOST_CLUTTER :][:count]:
            if piece := self._piece(row, objects):
                objects.append(piece)
        return scene, [piece for piece in clutter if piece], objects

    def _piece(self, numbers: list[float], others: list[_Piece]) -> _Piece | None:
        """Places an example without covering `others` too much; None if all attempts fail."""
        example = int(numbers[0] * len(self.source.labels))
        x1, y1, x2, y2 = self.source.boxes[example].tolist()
        longer = self.side * _SMALLEST * (_LARGEST / _SMALLEST) ** numbers[1]
        width, height = (max(round(side * longer / max(x2 - x1, y2 - y1)), 1) for side in (x2 - x1, y2 - y1))
        for across, down in zip(numbers[8::2], numbers[9::2], strict=True):
            left, top = int(across * (self.side - width + 1)), int(down * (self.side - height + 1))
            box = (left, top, left + width, top + height)
            if all(_covered(box, other.box) < _MOST_COVERED for other in others):
                return _Piece(box, example, numbers[2:8])
        return None

    def _objects(self, index: int) -> Objects:
        pieces = self._compose(index)[2]
        return Objects.from_rows(
            [
                (piece.box, self.source.labels[piece.example], False, False, _area(piece.box))
                for piece in pieces
            ]
        )

    def _render(self, index: int) -> np.ndarray:
        scene, clutter, objects = self._compose(index)
        image = self._crop(scene[3:6], self.side, self.side)
        for piece in clutter:
            image.paste(*self._clutter(piece))
        for piece in objects:
            pixels = self._example(piece)
            mirrored = self.source.mirrors and piece.numbers[0] < 0.5
            image.paste(*_tinted(pixels[:, ::-1] if mirrored else pixels, piece))
        return np.asarray(image)

    def _crop(self, numbers: list[float], width: int, height: int) -> Image.Image:
        """A random crop of the photo, reduced by up to 2, or enlarged if the photo is too small."""
        most = min(self._photo.width / width, self._photo.height / height)
        least = min(1.0, most)
        scale = least + numbers[0] * (min(2.0, most) - least)
        left = numbers[1] * (self._photo.width - scale * width)
        top = numbers[2] * (self._photo.height - scale * height)
        box = (left, top, left + scale * width, top + scale * height)
        return self._photo.resize((width, height), Image.Resampling.BILINEAR, box)

    def _example(self, piece: _Piece) -> np.ndarray:
        x1, y1, x2, y2 = self.source.boxes[piece.example].tolist()
        return self.source.pixels[piece.example, y1:y2, x1:x2]

    def _clutter(self, piece: _Piece) -> tuple[Image.Image, tuple[int, int, int, int], Image.Image]:
        """The arguments of `Image.paste` for another part of the photo, or an example in shuffled tiles."""
        width, height = piece.box[2] - piece.box[0], piece.box[3] - piece.box[1]
        kind = int(piece.numbers[0] * 3)
        if kind == 2:
            return _tinted(_shuffled(self._example(piece), piece.numbers[4]), piece)
        mask = Image.new("L", (width, height), 255 if kind == 0 else 0)
        if kind == 1:
            ImageDraw.Draw(mask).ellipse((0, 0, width - 1, height - 1), fill=255)
        part = np.asarray(self._crop([*piece.numbers[4:6], piece.numbers[0]], width, height))
        tinted = (part * _tint(piece) / 255).astype("uint8")
        return Image.fromarray(tinted), piece.box, mask


def _area(box: tuple[int, int, int, int]) -> int:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _covered(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    """The fraction of the smaller box's area that is inside the other box."""
    corner = max(first[0], second[0]), max(first[1], second[1])
    inner = (*corner, min(first[2], second[2]), min(first[3], second[3]))
    return _area(inner) / min(_area(first), _area(second))


def _tint(piece: _Piece) -> np.ndarray:
    """The color of a piece, float (3,), from 80 to 255."""
    return _DARKEST_TINT + np.array(piece.numbers[1:4]) * (255 - _DARKEST_TINT)


def _tinted(pixels: np.ndarray, piece: _Piece) -> tuple[Image.Image, tuple[int, int, int, int], Image.Image]:
    """The arguments of `Image.paste` for a gray image, scaled to a piece's box and tinted."""
    size = piece.box[2] - piece.box[0], piece.box[3] - piece.box[1]
    values = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    opacity = Image.fromarray(np.minimum(values.astype("uint16") * 4, 255).astype("uint8"))
    return Image.fromarray((values[..., None] * _tint(piece) / 255).astype("uint8")), piece.box, opacity


def _shuffled(pixels: np.ndarray, number: float) -> np.ndarray:
    """Cuts an example into 4 x 4 tiles and shuffles them; `number` in [0, 1) determines the order."""
    padded = np.pad(pixels, [(0, -side % _TILES) for side in pixels.shape], "edge")
    height, width = padded.shape
    tiles = padded.reshape(_TILES, height // _TILES, _TILES, width // _TILES).swapaxes(1, 2)
    tiles = tiles.reshape(_TILES**2, height // _TILES, width // _TILES)
    order = (np.arange(_TILES**2) * 7 + 1 + int(number * 15)) % _TILES**2
    tiles = tiles[order].reshape(_TILES, _TILES, height // _TILES, width // _TILES)
    return np.ascontiguousarray(tiles.swapaxes(1, 2).reshape(height, width))
