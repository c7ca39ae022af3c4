"""Anchors (Faster R-CNN, section 3.1.1), which depend only on the sizes of the image and its feature maps.

Boxes are (x1, y1, x2, y2), pixels. Aspect ratios are height / width. All results are ordered by aspect ratio
first, then by size.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_ASPECT_RATIOS = (0.5, 1.0, 2.0)


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float] = _ASPECT_RATIOS) -> np.ndarray:
    """Returns torchvision's anchors of one cell, with coordinates rounded to whole pixels (half to even).

    Args:
        sizes: square roots of the anchors' areas, pixels.

    Returns:
        float32 (ratios * sizes, 4), centered at (0, 0).
    """
    heights = np.sqrt(np.asarray(aspect_ratios, np.float32))[:, None]
    sides = np.asarray(sizes, np.float32)
    # In float32 and in this order, as in torchvision; float64 would round some coordinates differently.
    width, height = (1 / heights * sides).ravel(), (heights * sides).ravel()
    return np.round(np.stack([-width, -height, width, height], 1) / 2)


def paper_cell_anchors(
    stride: int = 16, scales: Sequence[float] = (8, 16, 32), aspect_ratios: Sequence[float] = _ASPECT_RATIOS
) -> np.ndarray:
    """Returns the anchors of one cell in py-faster-rcnn, the code of the paper's experiments.

    For each ratio, the sides of a box of one cell are rounded before they are scaled. In py-faster-rcnn, a
    box includes its last pixel: (x1, y1, x2, y2) here is (x1, y1, x2 - 1, y2 - 1) there.

    Args:
        stride: pixels per cell of the feature map.
        scales: square roots of the anchors' areas, cells.

    Returns:
        float32 (ratios * scales, 4), centered at (stride / 2, stride / 2).
    """
    ratios = np.asarray(aspect_ratios)
    width = np.round(np.sqrt(stride**2 / ratios))
    sides = np.stack([width, np.round(width * ratios)], 1)[:, None] * np.asarray(scales)[:, None]
    half = sides.reshape(-1, 2) / 2
    return np.concatenate([stride / 2 - half, stride / 2 + half], 1).astype(np.float32)


def grid_strides(image: Sequence[int], grid: Sequence[int]) -> tuple[int, int]:
    """Returns the vertical and horizontal distance between cells, pixels, as torchvision computes them.

    They differ from the level's nominal stride if the sides of the padded image are not multiples of it.

    Args:
        image: height and width of the padded image, pixels.
        grid: height and width of the feature map, cells.
    """
    return image[0] // grid[0], image[1] // grid[1]


def grid_anchors(cells: np.ndarray, grid: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """Returns the anchors of all cells of a feature map.

    Args:
        cells: float32 (k, 4), from `cell_anchors` or `paper_cell_anchors`.
        grid: height and width of the feature map, cells.
        strides: vertical and horizontal distance between cells, pixels.

    Returns:
        float32 (height * width * k, 4), in row-major order, like the network's output (height, width, k * 4).
    """
    rows, columns = (np.arange(count) * stride for count, stride in zip(grid, strides, strict=True))
    y, x = np.meshgrid(rows, columns, indexing="ij")
    corners = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (corners + cells).astype(np.float32).reshape(-1, 4)


def grid_anchors_of(cells: np.ndarray, grid: tf.Tensor, strides: tf.Tensor) -> tf.Tensor:
    """`grid_anchors` in TensorFlow; `grid` and `strides` are int32 (2,)."""
    rows, columns = (tf.cast(tf.range(grid[axis]) * strides[axis], tf.float32) for axis in (0, 1))
    y, x = tf.meshgrid(rows, columns, indexing="ij")
    corners = tf.reshape(tf.stack([x, y, x, y], -1), [-1, 1, 4])
    return tf.reshape(corners + cells, [-1, 4])
