"""Anchors against the numbers that py-faster-rcnn and torchvision document."""

import numpy as np
import pytest

from keras_resnet.detection.anchors import cell_anchors, grid_anchors, grid_strides, paper_cell_anchors

# lib/rpn/generate_anchors.py's listing of the nine. It counts pixels from 1, and includes the last one.
PY_FASTER_RCNN = [
    [-83, -39, 100, 56],
    [-175, -87, 192, 104],
    [-359, -183, 376, 200],
    [-55, -55, 72, 72],
    [-119, -119, 136, 136],
    [-247, -247, 264, 264],
    [-35, -79, 52, 96],
    [-79, -167, 96, 184],
    [-167, -343, 184, 360],
]


def test_the_nine_of_py_faster_rcnn():
    np.testing.assert_array_equal(paper_cell_anchors(), np.array(PY_FASTER_RCNN) - [1, 1, 0, 0])
    assert paper_cell_anchors().dtype == np.float32


# size: the half sides (x, y) of ratios 0.5, 1 and 2 by hand: size / sqrt(ratio) / 2, size * sqrt(ratio) / 2.
TORCHVISION = {
    32: [(23, 11), (16, 16), (11, 23)],  # 22.63, 11.31
    64: [(45, 23), (32, 32), (23, 45)],  # 45.25, 22.63
    128: [(91, 45), (64, 64), (45, 91)],  # 90.51, 45.25
    256: [(181, 91), (128, 128), (91, 181)],  # 181.02, 90.51
    512: [(362, 181), (256, 256), (181, 362)],  # 362.04, 181.02
    40: [(28, 14), (20, 20), (14, 28)],  # RetinaNet's int(32 * 2 ** (1 / 3)): 28.28, 14.14
    50: [(35, 18), (25, 25), (18, 35)],  # RetinaNet's int(32 * 2 ** (2 / 3)): 35.36, 17.68
}


@pytest.mark.parametrize("size", TORCHVISION)
def test_torchvision_rounds_corners(size):
    expected = [(-x, -y, x, y) for x, y in TORCHVISION[size]]
    found = cell_anchors([size])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_half_a_pixel_is_rounded_to_even():
    np.testing.assert_array_equal(cell_anchors([5, 7, 9], [1.0]), [[-s, -s, s, s] for s in (2, 4, 4)])


def test_ratios_vary_more_slowly_than_sizes():
    found = cell_anchors([32, 64], [1.0, 4.0])
    np.testing.assert_array_equal(found[:, 2:], [[16, 16], [32, 32], [8, 32], [16, 64]])


# Image side, then the sides of P2 to P7 and their strides: torchvision's are not powers of two.
STRIDES = {
    800: [(200, 4), (100, 8), (50, 16), (25, 32), (13, 61), (7, 114)],
    1344: [(336, 4), (168, 8), (84, 16), (42, 32), (21, 64), (11, 122)],
}


def test_strides_follow_from_the_grid():
    for level in range(6):
        sides, strides = zip(STRIDES[800][level], STRIDES[1344][level], strict=True)
        assert grid_strides((800, 1344), sides) == strides


def test_grid_runs_row_by_row():
    cells = cell_anchors([32, 64], [1.0])
    found = grid_anchors(cells, (2, 3), (16, 20)).reshape(2, 3, 2, 4)
    assert found.dtype == np.float32
    for row, column in np.ndindex(2, 3):
        shift = np.array([20 * column, 16 * row, 20 * column, 16 * row])
        np.testing.assert_array_equal(found[row, column], cells + shift)
