"""Anchors (Faster R-CNN, section 3.1.1): constants of the sizes of an image and its feature maps.

Boxes are (x1, y1, x2, y2), pixels. Aspect ratios are height / width; in all results they vary more slowly
than the sizes.
"""

from collections.abc import Sequence

import numpy as np

_ASPECT_RATIOS = (0.5, 1.0, 2.0)


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float] = _ASPECT_RATIOS) -> np.ndarray:
    """Returns torchvision's anchors of one cell, with corners rounded to whole pixels (half to even).

    `sizes` are the square roots of the areas in pixels. The result is float32 (ratios * sizes, 4), centered
    at (0, 0).
    """
    heights = np.sqrt(np.asarray(aspect_ratios, np.float32))[:, None]
    sides = np.asarray(sizes, np.float32)
    # In float32 and in this order: float64 rounds some corners the other way.
    width, height = (1 / heights * sides).ravel(), (heights * sides).ravel()
    return np.round(np.stack([-width, -height, width, height], 1) / 2)


def paper_cell_anchors(
    stride: int = 16, scales: Sequence[float] = (8, 16, 32), aspect_ratios: Sequence[float] = _ASPECT_RATIOS
) -> np.ndarray:
    """Returns the anchors of one cell in py-faster-rcnn, the code of the paper's experiments.

    It rounds the sides of a cell of each ratio before it scales them. There, a box includes its last
    pixel, so that (x1, y1, x2, y2) here is (x1, y1, x2 - 1, y2 - 1) there.

    Returns:
        float32 (ratios * scales, 4), centered at (stride / 2, stride / 2).
    """
    ratios = np.asarray(aspect_ratios)
    width = np.round(np.sqrt(stride**2 / ratios))
    sides = np.stack([width, np.round(width * ratios)], 1)[:, None] * np.asarray(scales)[:, None]
    half = sides.reshape(-1, 2) / 2
    return np.concatenate([stride / 2 - half, stride / 2 + half], 1).astype(np.float32)


def grid_strides(image: Sequence[int], grid: Sequence[int]) -> tuple[int, int]:
    """Returns torchvision's distances between cells in pixels, vertical and horizontal.

    They are not powers of two where the padded image is not a multiple of the level's nominal stride.

    Args:
        image: height and width of the padded image, pixels.
        grid: height and width of the feature map, cells.
    """
    return image[0] // grid[0], image[1] // grid[1]


def grid_anchors(cells: np.ndarray, grid: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """Repeats the anchors of one cell at all cells of a feature map.

    Args:
        cells: float32 (k, 4), from `cell_anchors` or `paper_cell_anchors`.
        grid: height and width of the feature map, cells.
        strides: vertical and horizontal distance between cells, pixels.

    Returns:
        float32 (height * width * k, 4): row by row, as in the outputs (height, width, k * 4) of a network.
    """
    rows, columns = (np.arange(count) * stride for count, stride in zip(grid, strides, strict=True))
    y, x = np.meshgrid(rows, columns, indexing="ij")
    corners = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (corners + cells).astype(np.float32).reshape(-1, 4)
