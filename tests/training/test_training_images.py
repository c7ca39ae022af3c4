"""Runs on folders: images that cannot be decoded, and sizes that grow with the epochs."""

import csv

import numpy as np
import pytest
from helpers.data_helpers import write_image

from keras_resnet import InputError
from keras_resnet.classification import ClassificationTask, train
from keras_resnet.weights import read_spec

SPOILT = {"train/cat/empty.png": b"", "train/dog/text.jpg": b"no image", "val/cat/cut.png": None}


@pytest.fixture
def photos(tmp_path):
    """Two classes of noise, dark and bright: 24 training and 8 test images."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, low in (("cat", 0), ("dog", 128)):
            for index in range(count):
                pixels = random.integers(low, low + 128, (40, 48, 3)).astype("uint8")
                write_image(tmp_path / "photos" / split / name / f"{index}.png", pixels)
    return tmp_path / "photos"


@pytest.fixture
def spoilt(photos):
    whole = (photos / "val/cat/0.png").read_bytes()
    for name, content in SPOILT.items():
        (photos / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    return photos


@pytest.fixture
def recipe(tiny):
    return tiny.replace(train_split="train", batch_size=8, epochs=2, image_size=32)


def listed(path):
    with open(path, newline="") as file:
        return {row["path"]: row["split"] for row in csv.DictReader(file)}


def test_bad_images_are_left_out_and_listed_in_a_run_that_breaks_off(
    tmp_path, recipe, run_options, spoilt, break_off, capsys
):
    recipe = recipe.replace(dataset=f"folder:{spoilt}", normalization="imagenet", image_size=16)
    with break_off(4):
        train(recipe, tmp_path / "run", run_options())
    last = train(recipe, tmp_path / "run", run_options())
    assert listed(tmp_path / "run" / "bad_images.csv") == {
        str(spoilt / name): name.split("/")[0] for name in SPOILT
    }
    assert "3 images cannot be used: see" in capsys.readouterr().err
    # 8 of the 9 files in val/ are images.
    assert last["val_top1"] * 8 == pytest.approx(round(last["val_top1"] * 8))


def test_too_many_bad_images_stop_the_run(tmp_path, recipe, run_options, spoilt):
    recipe = recipe.replace(dataset=f"folder:{spoilt}", normalization="imagenet")
    with pytest.raises(InputError, match=r"images cannot be used, 1 are allowed \(--max_bad_images\)"):
        train(recipe, tmp_path / "run", run_options(max_bad_images=1))
    assert set(listed(tmp_path / "run" / "bad_images.csv")) <= {str(spoilt / name) for name in SPOILT}
    assert not (tmp_path / "run" / "model.weights.h5").exists()


@pytest.mark.slow
def test_images_grow_with_the_epochs(tmp_path, recipe, run_options, photos, monkeypatch):
    sizes = []
    training_sums = ClassificationTask.training_sums

    def watch(self, model, call, batch, key):
        sizes.append(batch["images"].shape[1])  # while the graph is traced
        return training_sums(self, model, call, batch, key)

    monkeypatch.setattr(ClassificationTask, "training_sums", watch)
    # A crop of its own for each size, and a mask.
    recipe = recipe.replace(image_size=96, progressive=(0.5, 1), cutmix=1.0, augmentation="scale_crop_flip")
    train(recipe.replace(dataset=f"folder:{photos}"), tmp_path / "run", run_options())
    assert list(dict.fromkeys(sizes)) == [64, 96]  # half of 96, rounded to 32's multiples: 48 is 64
    assert read_spec(tmp_path / "run" / "model.weights.h5").input_shape == (96, 96, 3)
    assert not (tmp_path / "run" / "bad_images.csv").exists()  # all are good


@pytest.mark.parametrize(
    "shares",
    [(0.5,), (0.5, 0.5, 1.0), (0.0, 1.0), (-0.5, 1.0), (0.5, 1.5), (1.0, 0.5), (1.0, 0.5, 1.0)],
)
def test_shares_that_do_not_rise_to_one(recipe, shares):
    with pytest.raises(InputError, match="must rise from above 0 to 1"):
        recipe.replace(progressive=shares)


def test_a_mean_image_has_one_size(recipe):
    with pytest.raises(InputError, match="a mean image has one size"):
        recipe.replace(progressive=(0.5, 1.0), normalization="per_pixel")
