from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.commands import run
from helpers.data_helpers import write_image
from PIL import Image

from keras_resnet.data import IndexedSplit, Transform, open_dataset, raw_images
from keras_resnet.data.__main__ import COMMAND
from keras_resnet.data.preview import draw_views, sample_examples, save_sheet, to_pixels
from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization

SOME = Normalization((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
PLAIN = Transform.create(16, SOME)


def test_examples_of_a_folder_are_spread_over_its_classes_and_named_by_their_files(image_folder):
    dataset = open_dataset(f"folder:{image_folder}")
    split = dataset.split("train")
    few, titles = sample_examples(split, dataset.class_names, 4, PLAIN)
    chosen = [index * len(split) // 4 for index in range(4)]
    files = [split.images[index].decode().split("/")[-2:] for index in chosen]
    assert titles == [", ".join(file) for file in files]
    assert few.classes.tolist() == [0, 1, 2, 3]
    assert few.images.tolist() == split.images[chosen].tolist()
    assert len(sample_examples(split, dataset.class_names, 99, PLAIN)[0]) == len(split)


def test_damaged_images_are_left_out(image_folder):
    dataset = open_dataset(f"folder:{image_folder}")
    split = dataset.split("train")
    files = [Path(split.images[index * len(split) // 4].decode()) for index in range(4)]
    files[1].write_bytes(files[1].read_bytes()[:60])
    _, titles = sample_examples(split, dataset.class_names, 4, PLAIN)
    assert titles == [f"{file.parent.name}, {file.name}" for file in (files[0], *files[2:])]


def test_nothing_to_draw_is_one_line(image_folder):
    dataset = open_dataset(f"folder:{image_folder}")
    for path in image_folder.glob("*/*g"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="not one of 4 images of the split 'train' can be decoded"):
        sample_examples(dataset.split("train"), dataset.class_names, 4, PLAIN)


def test_examples_of_record_files_are_spread_over_the_split(large):
    split = large.split("train")
    few, titles = sample_examples(split, large.class_names, 3, PLAIN)
    examples = [split.fetch(tf.constant(index)) for index in (0, 17, 35)]
    assert few.images.tolist() == [image.numpy() for image, _ in examples]
    names = [large.class_names[int(label)] for _, label in examples]
    assert titles == [f"{name}, record {index}" for name, index in zip(names, (0, 17, 35), strict=True)]


def test_examples_in_memory(pixels):
    few, titles = sample_examples(pixels, tuple(f"c{i}" for i in range(50)), 5, PLAIN)
    assert titles == [f"c{i}, example {i}" for i in (0, 10, 20, 30, 40)]
    np.testing.assert_array_equal(few.images, pixels.images[::10])


@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_come_back_from_a_normalization(channels):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, channels), dtype=np.uint8)
    for normalization in (
        SOME.for_channels(channels),
        Normalization(images.mean(0).tolist(), (1.0,) * channels),
    ):
        np.testing.assert_array_equal(
            to_pixels(normalization(images.astype("float32")), normalization), images
        )
    bright = np.full((1, 1, 1, channels), 9.0)
    assert to_pixels(np.concatenate([bright, -bright]), SOME.for_channels(channels)).tolist() == [
        [[[255] * channels]],
        [[[0] * channels]],
    ]


@pytest.mark.parametrize(
    "data_format", ["channels_last", pytest.param("channels_first", marks=pytest.mark.slow)]
)
def test_each_row_shows_one_image_in_every_epoch(image_folder, data_format, monkeypatch):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: data_format)
    dataset = open_dataset(f"folder:{image_folder}")
    few, _ = sample_examples(dataset.split("train"), dataset.class_names, 6, PLAIN)
    transform = Transform.create(16, SOME, "none")
    sheet = draw_views(few, transform, seed=3, epochs=range(2, 4))
    assert sheet.training.shape == (6, 2, 16, 16, 3)
    seen = next(raw_images(few, transform.preprocessing))[0].round()
    np.testing.assert_array_equal(sheet.evaluation, seen)
    for column in range(2):
        # Half a level may be rounded either way on its way through the normalization.
        assert np.abs(sheet.training[:, column].astype(int) - seen).max() <= 1


@pytest.mark.slow
def test_draws_follow_from_seed_and_epoch(image_folder):
    dataset = open_dataset(f"folder:{image_folder}")
    few, _ = sample_examples(dataset.split("train"), dataset.class_names, 3, PLAIN)
    transform = Transform.create(16, SOME, "scale_crop_flip")
    sheet = draw_views(few, transform, 1, range(2))
    np.testing.assert_array_equal(draw_views(few, transform, 1, range(1, 2)).training, sheet.training[:, 1:])
    assert (draw_views(few, transform, 2, range(1)).training != sheet.training[:, :1]).mean() > 0.5
    assert (sheet.training[:, 0] != sheet.training[:, 1]).mean() > 0.5


@pytest.mark.slow
def test_a_sheet_is_drawn_whatever_the_files_are_called(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        for letter in ("$x^$", "\\frac{", "line\nbreak", "長い", "x" * 90):
            write_image(tmp_path / name / f"{letter}.png", np.full((9, 9, 3), 99, np.uint8))
    dataset = open_dataset(f"folder:{tmp_path}")
    few, titles = sample_examples(dataset.split("train"), dataset.class_names, 99, PLAIN)
    assert "a, line\ufffdbreak.png" in titles
    assert all("\n" not in title for title in titles)
    sheet = draw_views(few, Transform.create(8, SOME), 0, range(1))
    save_sheet(sheet, titles, "heading $", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size[0] > 200


def test_gray_inputs_are_drawn(digits, tmp_path):
    few, titles = sample_examples(digits.split("train"), digits.class_names, 2, PLAIN)
    transform = Transform.create(8, SOME.for_channels(1), "pad_crop")
    save_sheet(draw_views(few, transform, 0, range(2)), titles, "gray 猫", tmp_path / "sheet.png")
    drawn = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert (drawn.max(-1) == drawn.min(-1)).all()


# One per kind: the others are parts of these.
@pytest.mark.parametrize("name", ["pad_crop_flip", "scale_crop_flip_pca", "randaugment_erasing"])
def test_every_kind_of_augmentation_can_be_drawn(name):
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    few = IndexedSplit("train", images, np.arange(3, dtype="int32"))
    sheet = draw_views(few, Transform.create(32, SOME, name), 0, range(1))
    assert sheet.training.shape == (3, 1, 32, 32, 3)
    assert sheet.training.std() > 20


def arguments(**changes):
    given = {"recipe": "digits", "images": 2, "draws": 2} | changes
    return ["preview", *(f"--{name}={value}" for name, value in given.items())]


@pytest.mark.slow
def test_the_command_writes_the_same_sheet_again(digits, digits_dir, tmp_path, capsys):
    written = []
    for name in ("one.png", "two.png"):
        assert run(COMMAND, *arguments(data_dir=digits_dir, output=tmp_path / "new" / name)) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'new' / name}: 2 images, 2 draws of each\n"
        written.append((tmp_path / "new" / name).read_bytes())
    assert written[0] == written[1]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.png", "two.png"]
    drawn = np.asarray(Image.open(tmp_path / "new" / "one.png"))
    assert len(np.unique(drawn[..., 0])) > 50
    run(
        COMMAND,
        *arguments(data_dir=digits_dir, output=tmp_path / "seed.png", seed=1, augmentation="pad_crop_flip"),
    )
    assert (tmp_path / "seed.png").read_bytes() != written[0]


@pytest.mark.slow
def test_another_dataset_and_augmentation_than_the_recipes(image_folder, tmp_path):
    output = tmp_path / "sheet.png"
    changes = {"recipe": "imagenet_paper", "dataset": f"folder:{image_folder}", "augmentation": "randaugment"}
    run(COMMAND, *arguments(**changes, output=output))
    assert Image.open(output).size[0] > 3 * 200  # three columns of 224 pixels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "sheet.jpg"}, "--output must end with .png; got sheet.jpg"),
        ({"images": 0}, "--images must be from 1 to 32; got 0"),
        ({"draws": 33}, "--draws must be from 1 to 32; got 33"),
        ({"recipe": "digit"}, "unknown recipe 'digit'; did you mean digits?"),
        ({"augmentation": "incept"}, "unknown augmentation 'incept'; did you mean inception"),
        ({"dataset": "folder:/nowhere"}, "there is no folder '/nowhere'"),
        ({"seed": -1}, "seed and epoch must not be negative: -1, 0"),
        ({"seed": "x"}, "flag --seed=x"),
        ({"output": "{file}/sheet.png"}, "file"),
        ({"sed": 1}, "Unknown command line flag 'sed'"),
    ],
)
def test_bad_input_is_one_line_and_status_two(digits, digits_dir, tmp_path, capsys, changes, message):
    (tmp_path / "file").write_text("no folder")
    changes = {"data_dir": digits_dir, "output": tmp_path / "sheet.png"} | changes
    changes["output"] = str(changes["output"]).format(file=tmp_path / "file")
    assert run(COMMAND, *arguments(**changes)) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert message in line
    assert line.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("given", [[], ["preview"], ["prewiev"]])
def test_a_command_and_its_options_are_required(given, capsys):
    assert run(COMMAND, *given) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_check_ends_with_what_it_found(image_folder, capsys):
    path = image_folder / "cats" / "03.png"
    assert run(COMMAND, "check", str(image_folder)) == 0
    path.write_bytes(path.read_bytes()[:60])
    assert run(COMMAND, "check", str(image_folder)) == 1
    assert str(path) in capsys.readouterr().out
    assert run(COMMAND, "check", str(image_folder / "nowhere")) == 2
    assert capsys.readouterr().err.count("\n") == 1
