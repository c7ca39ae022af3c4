"""Whole runs on digits: their files, resuming and errors."""

import json
import math
import os
import signal

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.runs import history
from helpers.zoo_networks import load_network

from keras_resnet import InputError, build_model
from keras_resnet.classification import get_recipe, train
from keras_resnet.data import evaluation_batches, open_dataset
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import Preempted, RunOptions, TrainingFailed
from keras_resnet.training.checkpoints import list_checkpoints, load, save
from keras_resnet.weights import load_weights, read_spec, save_weights


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_dir):
    """A run of the recipe `demanding` without interruption."""
    path = tmp_path_factory.mktemp("uninterrupted")
    train(demanding(), path, RunOptions(strategy="one_device", data_dir=data_dir, checkpoint_every=2))
    return path


def demanding():
    """A recipe that uses everything that has a state."""
    return get_recipe("digits").replace(
        model_overrides={"stage_depths": (1, 1, 1), "stage_filters": (4, 8, 8)},
        image_size=16,
        train_split="train[:320]",
        epochs=3,
        schedule="plateau",
        patience=1,
        error_warmup_rate=0.01,
        ema_decay=0.9,
        mixup=0.2,
        cutmix=0.5,
        label_smoothing=0.1,
        clip_norm=5,
    )


def test_the_files_of_a_run(tmp_path, tiny, run_options):
    last = train(tiny, tmp_path / "run", run_options())
    workdir = RunFolder(tmp_path / "run")
    rows = workdir.read_history()
    columns = "epoch step learning_rate train_loss train_top1 val_loss val_top1 images_per_second"
    assert list(rows[0]) == columns.split()
    assert [(row["epoch"], row["step"]) for row in rows] == [
        ("1.0", "5"),
        ("2.0", "10"),
        ("3.0", "15"),
        ("4.0", "20"),
    ]
    assert {key: float(value) for key, value in rows[-1].items()} == last
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert workdir.read_recipe()["model_overrides"]["stage_filters"] == [4, 8, 8]
    assert workdir.curves.read_bytes()[:4] == b"\x89PNG"
    assert len(list_checkpoints(workdir.checkpoints)) == 2
    events = [
        value.tag
        for path in workdir.tensorboard.iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]
    assert events.count("val/top1") == 4


def test_the_weights_file_gives_the_last_rows_accuracy(tmp_path, tiny, run_options, data_dir):
    last = train(tiny, tmp_path, run_options())
    spec = read_spec(tmp_path / "model.weights.h5")
    assert (spec.model, spec.classes, spec.labels[3]) == ("cifar_resnet20", 10, "3")
    model = load_network(tmp_path / "model.weights.h5")
    split = open_dataset("digits", data_dir).split("test")
    right = count = 0
    for batch in evaluation_batches(split, spec.preprocessing, global_batch=64):
        hits = np.argmax(model(batch["images"], training=False), -1) == batch["labels"]
        right += float(np.sum(hits * batch["weights"].numpy()))
        count += float(np.sum(batch["weights"]))
    assert count == len(split)
    assert right / count == pytest.approx(last["val_top1"], abs=1e-9)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path, tiny, run_options):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny.replace(epochs=1), tmp_path / name, run_options(seed=seed))
    a, b, c = ((tmp_path / name / "model.weights.h5").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("after", [1, 4, 5, 9, 13])
def test_a_run_interrupted_at_any_step_ends_with_the_same_bytes(
    tmp_path, run_options, break_off, uninterrupted, after
):
    with break_off(after):
        train(demanding(), tmp_path, run_options(checkpoint_every=2))
    train(demanding(), tmp_path, run_options(checkpoint_every=2))
    assert (tmp_path / "model.weights.h5").read_bytes() == (uninterrupted / "model.weights.h5").read_bytes()
    assert history(tmp_path) == history(uninterrupted)


def test_a_run_of_an_older_version_is_resumed(tmp_path, run_options, break_off, uninterrupted, capsys):
    """Its recipe has neither weights nor freeze, and its checkpoint no normalization."""
    with break_off(7):
        train(demanding(), tmp_path, run_options(checkpoint_every=2))
    old = json.loads((tmp_path / "recipe.json").read_text())
    assert (old.pop("weights"), old.pop("freeze")) == (None, None)
    (tmp_path / "recipe.json").write_text(json.dumps(old))
    newest = load(list_checkpoints(tmp_path / "checkpoints")[-1])
    del newest.numbers["recipe"]["weights"], newest.numbers["recipe"]["freeze"]
    del newest.arrays["normalization/mean"], newest.arrays["normalization/std"]
    save(tmp_path / "checkpoints", newest, keep=1)
    train(demanding(), tmp_path, run_options(checkpoint_every=2))
    assert "resuming after step 6 of 15" in capsys.readouterr().err
    assert (tmp_path / "model.weights.h5").read_bytes() == (uninterrupted / "model.weights.h5").read_bytes()


def test_checkpoints_and_calls_of_several_steps_change_nothing(tmp_path, run_options, uninterrupted):
    train(demanding(), tmp_path, run_options(steps_per_call=3))
    assert (tmp_path / "model.weights.h5").read_bytes() == (uninterrupted / "model.weights.h5").read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path, tiny, run_options):
    first = train(tiny, tmp_path, run_options())
    before = (tmp_path / "model.weights.h5").read_bytes()
    again = train(tiny, tmp_path, run_options(), observer=lambda *call: pytest.fail("trained again"))
    assert again == first
    assert (tmp_path / "model.weights.h5").read_bytes() == before


def test_a_run_with_a_broken_newest_checkpoint_ends_with_the_same_bytes(
    tmp_path, run_options, uninterrupted, capsys
):
    train(demanding(), tmp_path, run_options(checkpoint_every=2))
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    train(demanding(), tmp_path, run_options(checkpoint_every=2))
    assert str(newest) in capsys.readouterr().err
    assert (tmp_path / "model.weights.h5").read_bytes() == (uninterrupted / "model.weights.h5").read_bytes()


@pytest.mark.parametrize(("at", "after"), [(6, "8"), (8, "10")])
def test_sigterm_finishes_the_step_and_leaves_a_checkpoint(tmp_path, run_options, uninterrupted, at, after):
    def stop(trainer, first, results):
        if first == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match=f"stopped by SIGTERM after step {after} of 15"):
        train(demanding(), tmp_path, run_options(), observer=stop)
    assert list_checkpoints(tmp_path / "checkpoints")
    train(demanding(), tmp_path, run_options())
    assert (tmp_path / "model.weights.h5").read_bytes() == (uninterrupted / "model.weights.h5").read_bytes()
    assert history(tmp_path) == history(uninterrupted)


def test_the_saved_weights_are_the_averaged_ones(tmp_path, tiny, run_options):
    train(tiny.replace(ema_decay=0.9, epochs=1), tmp_path, run_options())
    checkpoint = load(list_checkpoints(tmp_path / "checkpoints")[-1])
    with h5py.File(tmp_path / "model.weights.h5") as file:
        saved = file["layers/conv2d/vars/0"][...]
    np.testing.assert_array_equal(saved, checkpoint.arrays["average/conv1_conv/kernel"])
    assert np.abs(saved - checkpoint.arrays["weights/conv1_conv/kernel"]).max() > 0


def test_a_divergence_names_step_rate_and_checkpoint(tmp_path, tiny, run_options):
    with pytest.raises(TrainingFailed) as caught:
        train(
            tiny.replace(learning_rate=1e30, warmup_epochs=0, schedule="constant"),
            tmp_path,
            run_options(checkpoint_every=1),
        )
    message = str(caught.value)
    assert "not finite at step" in message
    assert "learning rate 1e+30" in message
    assert str(list_checkpoints(tmp_path / "checkpoints")[-1]) in message
    step = int(message.split("at step ")[1].split(",")[0])
    newest = load(list_checkpoints(tmp_path / "checkpoints")[-1])
    assert newest.step < step
    assert all(np.isfinite(array).all() for array in newest.arrays.values())


def test_starts_from_weights(tmp_path, tiny, run_options):
    train(tiny, tmp_path / "a", run_options())
    weights = tmp_path / "a" / "model.weights.h5"
    again = train(tiny.replace(epochs=1, weights=str(weights)), tmp_path / "b", run_options())
    fresh = train(tiny.replace(epochs=1), tmp_path / "c", run_options())
    assert again["train_loss"] < fresh["train_loss"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_learns(tmp_path, tiny, run_options, precision):
    train(tiny, tmp_path, run_options(precision=precision))
    rows = history(tmp_path)
    assert float(rows[-1]["train_loss"]) < 0.9 * float(rows[0]["train_loss"])
    assert keras.config.dtype_policy().name == "float32"  # restored


def test_two_devices_train_and_count_every_example_once(tmp_path, tiny, run_options):
    last = train(tiny.replace(val_split="test[:101]"), tmp_path, run_options(strategy="mirrored"))
    assert last["val_top1"] * 101 == pytest.approx(round(last["val_top1"] * 101), abs=1e-9)
    assert last["train_loss"] < 2.3


def test_an_incomplete_last_epoch_is_a_row(tmp_path, tiny, run_options):
    train(tiny.replace(steps=7), tmp_path, run_options())
    assert [row["step"] for row in history(tmp_path)] == ["5", "7"]
    assert history(tmp_path)[-1]["epoch"] == "1.4"


def bad(recipe_changes, option_changes, message):
    return pytest.param(recipe_changes, option_changes, message, id=message[:30])


@pytest.mark.parametrize(
    ("recipe_changes", "option_changes", "message"),
    [
        bad({"model": "cifar_resnet21"}, {}, "unknown model 'cifar_resnet21'; did you mean "),
        bad({"dataset": "digit"}, {}, "unknown dataset 'digit'; did you mean digits"),
        bad({"batch_size": 321}, {}, "batch size 321 is larger than the split 'train[:320]', 320 examples"),
        bad({}, {"accumulate": 3}, "global batch of 64 is not divisible by 3"),
        bad(
            {"batch_size": 63},
            {"strategy": "mirrored"},
            "global batch of 63 is not divisible by 2 (2 replicas",
        ),
        bad({"image_size": 3}, {}, "needs images of at least 4 pixels; image_size is 3"),
        bad({"model_overrides": {"classes": 7}}, {}, "classes is 7, but digits has 10"),
        bad(
            {"model_overrides": {"shortcuts": "A"}},
            {},
            "unknown network option 'shortcuts'; did you mean shortcut",
        ),
        bad({"weights": "nowhere.weights.h5"}, {}, "nowhere.weights.h5 does not exist"),
        bad({"freeze": "C9"}, {}, "freeze takes one of C1, C2, C3, C4 or None; got 'C9'"),
        bad({"weights": "torchvison_v1"}, {}, "torchvison_v1"),
        bad({"val_split": "tests"}, {}, "tests"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path, tiny, run_options, recipe_changes, option_changes, message
):
    with pytest.raises(InputError) as caught:
        train(tiny.replace(**recipe_changes), tmp_path / "run", run_options(**option_changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "float8"}, "unknown precision 'float8'; did you mean float"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"steps_per_call": 0}, "steps_per_call must be at least 1"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(InputError, match=message):
        RunOptions(**changes)


def test_weights_of_other_networks(tmp_path, tiny, run_options):
    train(tiny.replace(epochs=1), tmp_path / "a", run_options())
    weights = tmp_path / "a" / "model.weights.h5"
    plain = tiny.replace(model="cifar_plain20", weights=str(weights))
    with pytest.raises(InputError, match="shortcut is 'A' there, None here"):
        train(plain, tmp_path / "b", run_options())
    other = tmp_path / "other.weights.h5"
    save_weights(build_model("cifar_resnet20", classes=7), other)
    with pytest.raises(InputError, match=r"layer .* has shapes"):
        train(tiny.replace(weights=str(other)), tmp_path / "b", run_options())
    assert not (tmp_path / "b").exists()


def test_a_workdir_with_another_recipe(tmp_path, tiny, run_options):
    train(tiny.replace(epochs=1), tmp_path, run_options())
    with pytest.raises(InputError, match=r"holds another run \(learning_rate 0.1 there, 0.2 now\)"):
        train(tiny.replace(epochs=1, learning_rate=0.2), tmp_path, run_options())
    with pytest.raises(InputError, match="seed 0 there, 5 now"):
        train(tiny.replace(epochs=1), tmp_path, run_options(seed=5))


def test_checkpoints_of_another_recipe(tmp_path, tiny, run_options):
    train(tiny.replace(epochs=1), tmp_path, run_options())
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(InputError, match="are of another model or recipe"):
        train(tiny.replace(epochs=2), tmp_path, run_options())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a recipe"),
        ('{"model": "a", "dataset": "b", "x": 1}', "unknown recipe key 'x'"),
    ],
)
def test_a_broken_recipe_file(tmp_path, tiny, run_options, content, message):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(InputError, match=message):
        train(tiny, tmp_path, run_options())


def test_a_workdir_that_is_a_file(tmp_path, tiny, run_options):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        train(tiny, tmp_path / "file", run_options())
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_round_trip_through_load_weights(tmp_path, tiny, run_options):
    train(tiny.replace(epochs=1), tmp_path, run_options())
    model = read_spec(tmp_path / "model.weights.h5").build()
    load_weights(model, tmp_path / "model.weights.h5")
    assert math.isfinite(float(np.sum(model(np.zeros((1, 16, 16, 3), "float32")))))
