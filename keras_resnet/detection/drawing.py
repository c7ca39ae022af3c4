"""Draws boxes with class names and scores on images, with Pillow."""

import colorsys
import functools
import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_resnet.data.preview import FONT, characters, save_grid, spelled
from keras_resnet.errors import InputError, printable, require

CELL = 320
"""Longer side of an image on a contact sheet, pixels."""

_GOLDEN_RATIO = 0.618034  # makes the hues of successive classes differ
_SMALLEST_TEXT = 12  # font size, pixels
_COLUMNS = 4  # of a contact sheet


def class_color(label: int) -> tuple[int, int, int]:
    """Returns the RGB color of a class, which depends only on its label."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label * _GOLDEN_RATIO) % 1, (0.9, 0.6)[label % 2], 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """Draws boxes with class names and scores in the colors of the classes.

    Images whose longer side is less than 320 pixels are enlarged by an integer factor, so that the text is
    legible. Boxes with higher scores are drawn on top; boxes are clipped to the image.

    Args:
        image: uint8 (height, width, 3).
        boxes: (n, 4), pixels of the image.
        labels: integers (n,), indices of `class_names`.
        scores: (n,); None for annotations.

    Returns:
        uint8 (factor * height, factor * width, 3), a new array.

    Raises:
        InputError: a box is not finite, has swapped corners or lies outside the image, a label is out of
            range, or a shape or the image's dtype is wrong.
    """
    _check(image, boxes, labels, class_names)
    height, width = image.shape[:2]
    factor = -(-CELL // max(height, width))
    picture = Image.fromarray(image).resize((factor * width, factor * height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    line = max(2, round(min(picture.size) / 250))
    corners = [_outline(boxes[index] * factor, picture.size) for index in order]
    for index, outline in zip(order, corners, strict=True):
        draw.rectangle(outline, outline=class_color(int(labels[index])), width=line)
    taken: list[tuple[int, int, int, int]] = []
    # Labels are placed in descending order of scores, so that the best detection gets the best place.
    for index, outline in reversed([*zip(order, corners, strict=True)]):
        text = class_names[int(labels[index])] + ("" if scores is None else f" {scores[index]:.2f}")
        taken.append(_draw_label(draw, text, outline, class_color(int(labels[index])), taken))
    return np.asarray(picture)


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Reduces a drawing to the size of an image on a contact sheet."""
    image = Image.fromarray(picture)
    image.thumbnail((CELL, CELL))
    return np.asarray(image)


def save_contact_sheet(
    pictures: Sequence[np.ndarray], captions: Sequence[str], heading: str, path: str | os.PathLike
) -> None:
    """Writes a PNG file with pictures of any sizes, each with a caption, in up to four columns."""
    columns = min(_COLUMNS, len(pictures))
    rows = [slice(start, start + columns) for start in range(0, len(pictures), columns)]
    cells, titles = [pictures[row] for row in rows], [captions[row] for row in rows]
    save_grid(cells, titles, (), heading, path, CELL)


def _check(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    valid = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    require(valid, "the image must be uint8 (height, width, 3)", (str(image.dtype), image.shape))
    require(boxes.shape == (len(labels), 4), f"boxes must have the shape ({len(labels)}, 4)", boxes.shape)
    height, width = image.shape[:2]
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        x1, y1, x2, y2 = box
        if not np.isfinite(box).all():
            raise InputError(f"a box must have finite coordinates; got {box}")
        if x1 > x2 or y1 > y2:
            raise InputError(f"a box must be (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2; got {box}")
        if x1 > width or y1 > height or x2 < 0 or y2 < 0:
            raise InputError(f"the box {box} is outside its image of {width} x {height} pixels")
        if not 0 <= label < len(class_names):
            raise InputError(f"a label must be from 0 to {len(class_names) - 1}; got {label}")


def _outline(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The first and last column and row of a box, clipped to a picture of `size`, width and height."""
    limits = np.array([*size, *size])
    x1, y1, x2, y2 = (min(max(round(float(x)), 0), int(most)) for x, most in zip(box, limits, strict=True))
    x1, y1 = min(x1, size[0] - 1), min(y1, size[1] - 1)
    return x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    outline: tuple[int, int, int, int],
    color: tuple[int, int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Draws a text on a background of the given color next to a box; returns the area that it covers."""
    width, height = draw.im.size
    text, font = _fitting(text, max(_SMALLEST_TEXT, round(min(width, height) / 40)), width)
    ascent, descent = font.getmetrics()
    wide, high = min(math.ceil(font.getlength(text)) + 6, width), min(ascent + descent + 2, height)
    x1, y1, x2, y2 = outline
    # Candidates: above the box, inside at the top, below, inside at the bottom; left, then right.
    rows = (y1 - high + 1, y1, y2, y2 - high + 1)
    places = [(x, y) for y in rows for x in (x1, x2 - wide + 1)]
    areas = [_inside(x, y, wide, high, (width, height)) for x, y in places]
    free = [
        area
        for area, place in zip(areas, places, strict=True)
        if area[1] == place[1] and not any(_overlap(area, other) for other in taken)
    ]
    area = (free or areas)[0]
    draw.rectangle((area[0], area[1], area[2] - 1, area[3] - 1), fill=color)
    dark = color[0] * 0.299 + color[1] * 0.587 + color[2] * 0.114 > 130  # luma of BT.601
    draw.text((area[0] + 3, area[1] + 1), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
    return area


def _inside(x: int, y: int, wide: int, high: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    x, y = min(max(x, 0), size[0] - wide), min(max(y, 0), size[1] - high)
    return x, y, x + wide, y + high


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bool:
    is_apart = first[2] <= second[0] or second[2] <= first[0]
    return not (is_apart or first[3] <= second[1] or second[3] <= first[1])


def _fitting(text: str, size: int, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text, truncated with "..." if it is wider than the picture, and a font with its characters."""
    text = printable(text)
    path = _font_with(text)
    text = spelled(text, path)
    font = ImageFont.truetype(path, size)
    if font.getlength(text) + 6 <= width:
        return text, font
    while text and font.getlength(text + "...") + 6 > width:
        text = text[:-1]
    return text + "...", font


def _font_with(text: str) -> str:
    """The file of the first installed font with all characters of a text, otherwise the default font's."""
    from matplotlib import font_manager

    usual = font_manager.findfont(FONT)
    if {*map(ord, text)} <= characters(usual):
        return usual
    return next((path for path in _installed() if {*map(ord, text)} <= characters(path)), usual)


@functools.cache
def _installed() -> list[str]:
    """The files of all installed scalable fonts that Pillow can read."""
    from matplotlib import font_manager

    fonts = sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.weight != 400))
    return [path for path in dict.fromkeys(font.fname for font in fonts) if _is_usable(path)]


def _is_usable(path: str) -> bool:
    try:
        ImageFont.truetype(path, _SMALLEST_TEXT)
    except OSError:  # e.g. a bitmap font with one size
        return False
    # The LastResort font has only placeholder glyphs.
    return "LastResort" not in path
