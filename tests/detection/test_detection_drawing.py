import numpy as np
import pytest
from PIL import Image

from keras_resnet.detection import drawing
from keras_resnet.detection.drawing import class_color, draw_boxes, save_contact_sheet, thumbnail
from keras_resnet.errors import InputError

BLANK = np.full((320, 400, 3), 128, np.uint8)


def draw(boxes, labels=(0,), names=("dog", "cat"), scores=None, image=BLANK):
    scores = None if scores is None else np.array(scores, "float32")
    return draw_boxes(image, np.array(boxes, "float32").reshape(-1, 4), np.array(labels, int), names, scores)


def covered(picture, label):
    """The first and last rows and columns with exactly the color of a class: y1, y2, x1, x2."""
    rows, columns = np.nonzero((picture == class_color(label)).all(-1))
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_a_box_covers_its_pixels_and_nothing_else_changes(monkeypatch):
    monkeypatch.setattr(drawing, "_draw_label", lambda *_: (0, 0, 0, 0))
    picture = draw([[100, 50, 200, 150]])
    assert covered(picture, 0) == (50, 149, 100, 199)
    assert (picture[60:140, 110:190] == 128).all()
    assert (picture[:50] == 128).all()
    assert (BLANK == 128).all()


@pytest.mark.parametrize(
    "box", [[0, 0, 10, 10], [390, 0, 400, 320], [0, 310, 400, 320], [395, 315, 400, 320], [0, 0, 400, 320]]
)
def test_labels_stay_inside_the_image(box, monkeypatch):
    areas = []
    own = drawing._draw_label
    monkeypatch.setattr(drawing, "_draw_label", lambda *args: areas.append(own(*args)) or areas[-1])
    for name in ("dog", "a name that is much wider than the image " * 3):
        draw([box], names=(name,), scores=[0.5])
    for x1, y1, x2, y2 in areas:
        assert 0 <= x1 < x2 <= 400
        assert 0 <= y1 < y2 <= 320


def test_labels_of_equal_boxes_do_not_overlap(monkeypatch):
    areas = []
    own = drawing._draw_label
    monkeypatch.setattr(drawing, "_draw_label", lambda *args: areas.append(own(*args)) or areas[-1])
    draw([[100, 100, 300, 200]] * 3, labels=(0, 1, 0), scores=[0.9, 0.8, 0.7])
    assert not any(drawing._overlap(a, b) for i, a in enumerate(areas) for b in areas[:i])


def test_small_images_are_enlarged_with_their_boxes(monkeypatch):
    monkeypatch.setattr(drawing, "_draw_label", lambda *_: (0, 0, 0, 0))
    picture = draw([[10, 20, 30, 40]], image=BLANK[:64, :128])
    assert picture.shape == (192, 384, 3)
    assert covered(picture, 0) == (60, 119, 30, 89)


def test_colors_depend_on_the_class_alone():
    colors = [class_color(label) for label in range(91)]
    assert len(set(colors)) == 91
    assert colors[1] == class_color(1)


@pytest.mark.parametrize(
    "name", ["dog", "кошка", "\u0637\u0627\u0626\u0631", "猫", "😀 \x1b[2J\ud800", "\u0939\u093f"]
)
def test_names_of_any_script_are_drawn(name):
    assert (draw([[100, 100, 300, 200]], names=(name,)) != draw([[100, 100, 300, 200]], names=("",))).any()


def test_characters_that_no_font_has_are_spelled(monkeypatch):
    monkeypatch.setattr(drawing, "_installed", lambda: [])
    text, _ = drawing._fitting("猫 cat", 12, 400)
    assert text == "\\u732b cat"


def test_the_better_detection_is_on_top(monkeypatch):
    monkeypatch.setattr(drawing, "_draw_label", lambda *_: (0, 0, 0, 0))
    picture = draw([[50, 50, 100, 100]] * 2, labels=(0, 1), scores=[0.9, 0.2])
    assert tuple(picture[50, 70]) == class_color(0)


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([0, 0, np.nan, 5], 0, "finite"),
        ([9, 0, 5, 5], 0, "x1 <= x2"),
        ([401, 0, 410, 5], 0, "outside its image of 400 x 320 pixels"),
        ([0, 0, 5, 5], 2, "a label must be from 0 to 1; got 2"),
        ([0, 0, 5, 5], -1, "a label must be from 0 to 1; got -1"),
    ],
)
def test_bad_boxes_are_one_line(box, label, message):
    with pytest.raises(InputError, match=message):
        draw([box], [label])


def test_without_boxes_the_image_is_unchanged():
    assert (draw([], []) == BLANK).all()
    assert Image.fromarray(draw([], [])).size == (400, 320)


def test_a_contact_sheet_of_pictures_of_several_sizes(tmp_path):
    sizes = [(320, 200), (100, 320), (320, 320), (320, 10), (320, 320)]
    pictures = [np.full((*size, 3), 200, np.uint8) for size in sizes]
    save_contact_sheet(pictures, [f"photo {i}" for i in range(5)], "猫", tmp_path / "sheet.png")
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width > 4 * 320  # four columns
    assert height > 2 * 320  # and two rows


def test_thumbnails_keep_the_aspect():
    assert thumbnail(np.zeros((1000, 500, 3), np.uint8)).shape == (320, 160, 3)
    assert thumbnail(BLANK[:20, :30]).shape == (20, 30, 3)
