"""Runs on folders: images that cannot be decoded, and sizes that grow with the epochs."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.data_helpers import write_image

from keras_resnet import InputError
from keras_resnet.classification import ClassificationTask, train
from keras_resnet.data import open_dataset
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import checkpoints
from keras_resnet.training.progress import Progress
from keras_resnet.weights import read_spec

SPOILT = {
    **{f"train/cat/empty{index}.png": b"" for index in range(7)},
    "train/dog/text.jpg": b"no image",
    "val/cat/cut.png": None,
}


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


def test_images_that_cannot_be_used_are_listed_at_every_checkpoint(
    tmp_path, recipe, run_options, spoilt, monkeypatch, capsys
):
    """A run that is killed inside an epoch does not see the earlier images again when it resumes."""
    recipe = recipe.replace(dataset=f"folder:{spoilt}", normalization="imagenet", image_size=16, epochs=1)
    save, killed = checkpoints.save, tmp_path / "killed"

    def save_and_be_killed(folder, checkpoint, keep):
        other = {**checkpoint.numbers, "versions": {"numpy": "1.0", "tensorflow": "2.0"}}
        save(folder, dataclasses.replace(checkpoint, numbers=other), keep)
        shutil.copytree(tmp_path / "run", killed)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_be_killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", run_options(checkpoint_every=2))
    assert listed(killed / "bad_images.csv")
    last = train(recipe, killed, run_options())
    assert listed(killed / "bad_images.csv") == {str(spoilt / name): name.split("/")[0] for name in SPOILT}
    messages = capsys.readouterr().err
    assert f"{len(SPOILT)} images cannot be used: see" in messages
    assert "resuming after step 2 of 4" in messages
    assert "the checkpoint was written with numpy 1.0, tensorflow 2.0, this is keras_resnet" in messages
    # 8 of the 9 files in val/ are images.
    assert last["val_top1"] * 8 == pytest.approx(round(last["val_top1"] * 8))


def test_too_many_bad_images_stop_the_run(tmp_path, recipe, run_options, spoilt):
    recipe = recipe.replace(dataset=f"folder:{spoilt}", normalization="imagenet")
    with pytest.raises(InputError, match=r"images cannot be used, 1 are allowed \(--max_bad_images\)"):
        train(recipe, tmp_path / "run", run_options(max_bad_images=1))
    assert set(listed(tmp_path / "run" / "bad_images.csv")) <= {str(spoilt / name) for name in SPOILT}
    assert not (tmp_path / "run" / "model.weights.h5").exists()


@pytest.mark.slow
def test_an_epoch_is_kept_if_no_validation_image_can_be_decoded(
    tmp_path, recipe, run_options, photos, monkeypatch
):
    """With its speed, even a very low one, by which experiments divide."""
    monkeypatch.setattr(Progress, "images_per_second", lambda self: 0.01234567)
    recipe = recipe.replace(dataset=f"folder:{photos}", normalization="imagenet", image_size=16, epochs=1)
    whole = {path: path.read_bytes() for path in photos.glob("val/*/*")}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not one image of the split 'val' can be decoded"):
        train(recipe, tmp_path / "run", run_options())
    assert set(listed(tmp_path / "run" / "bad_images.csv")) == {str(path) for path in whole}
    for path, content in whole.items():
        path.write_bytes(content)
    last = train(recipe, tmp_path / "run", run_options(), observer=lambda *call: pytest.fail("trained again"))
    assert last["step"] == 3
    assert last["images_per_second"] == 0.012346


def test_a_run_is_bound_to_its_data(tmp_path, recipe, run_options, photos):
    """Also a finished one, and one without recipe.json; files of older versions do not know their data."""
    recipe = recipe.replace(dataset=f"folder:{photos}", normalization="imagenet", image_size=16, epochs=1)
    folder = RunFolder(tmp_path / "run")

    def again():
        return train(recipe, folder.path, run_options(), observer=lambda *call: pytest.fail("trained again"))

    def rename(old, new):
        for split in ("train", "val"):
            (photos / split / old).rename(photos / split / new)

    last = train(recipe, folder.path, run_options())
    weights = folder.weights.read_bytes()
    more = shutil.copy(photos / "train/cat/0.png", photos / "train/cat/more.png")
    with pytest.raises(InputError, match=r"have changed \(train has 24 images there, 25 now\); restore them"):
        again()
    Path(more).unlink()
    rename("cat", "kitten")
    with pytest.raises(InputError, match="renamed classes: 'cat' there, 'kitten' now"):
        again()
    known = folder.recipe.read_text()
    folder.recipe.unlink()
    with pytest.raises(InputError, match="renamed classes: 'cat' there, 'kitten' now"):
        again()
    assert folder.weights.read_bytes() == weights
    rename("kitten", "cat")
    unknown = {key: value for key, value in json.loads(known).items() if key != "data"}
    folder.recipe.write_text(json.dumps(unknown))
    (path,) = checkpoints.list_checkpoints(folder.checkpoints)
    checkpoint = checkpoints.load(path)
    for key in ("data", "versions", "unevaluated"):
        del checkpoint.numbers[key]
    checkpoints.save(folder.checkpoints, checkpoint, keep=1)
    assert again() == last


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize(
    ("folder", "changes"),
    [("photos/train", {}), ("photos", {"train_split": "train[:20]", "val_split": "train[20:]"})],
)
def test_a_run_whose_splits_an_older_version_made_by_position_is_refused(
    tmp_path, recipe, run_options, photos, folder, changes, is_known
):
    """Otherwise it would continue with other validation images, many of which it was trained on."""
    recipe = recipe.replace(dataset=f"folder:{photos.parent / folder}", **changes)
    held = {**recipe.to_dict(), "seed": 0, "precision": "float32"}
    if is_known:
        held["data"] = open_dataset(recipe.dataset).identity("train[:20]")
        del held["data"]["split_rule"]
    run = RunFolder(tmp_path / "run")
    run.write_recipe(held)
    change = r"images were selected for splits by their order, now by a hash of their names"
    expected = rf"is of an older version \({change}\), .* choose another --workdir$"
    with pytest.raises(InputError, match=expected):
        train(recipe, run.path, run_options())
    assert {path.name for path in run.path.iterdir()} <= {"recipe.json", "lock"}
    assert json.loads(run.recipe.read_text()) == held


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
