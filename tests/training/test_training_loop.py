"""Whole runs on digits: their files, resuming and errors."""

import collections
import contextlib
import gc
import json
import os
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.runs import history
from helpers.zoo_networks import TINY, load_network

from keras_resnet import InputError, build_model
from keras_resnet.classification import get_recipe, train
from keras_resnet.data import evaluation_batches, open_dataset
from keras_resnet.data.digits import Digits
from keras_resnet.files import locked
from keras_resnet.processes import exit_on_sigterm
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import Preempted, RunOptions, TrainingFailed
from keras_resnet.training.checkpoints import list_checkpoints, load, save
from keras_resnet.training.progress import Progress
from keras_resnet.training.sigterm import catch_sigterm
from keras_resnet.training.step import Trainer
from keras_resnet.weights import read_spec, save_weights

# Most tests look at one of two runs that the module shares.
pytestmark = pytest.mark.xdist_group("training_loop")


def demanding():
    """A recipe that uses everything that has a state."""
    return get_recipe("digits").replace(
        model_overrides=TINY,
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


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, run_options):
    """A run of the recipe `demanding` without interruption: 3 epochs of 5 steps."""
    path = tmp_path_factory.mktemp("uninterrupted")
    train(demanding(), path, run_options(checkpoint_every=2))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny, run_options):
    """The folder and the last row of a run of the recipe `tiny`."""
    path = tmp_path_factory.mktemp("finished") / "run"
    return path, train(tiny, path, run_options())


def test_the_files_of_a_run(finished):
    folder, last = finished
    workdir = RunFolder(folder)
    rows = workdir.read_history()
    columns = "epoch step learning_rate train_loss train_top1 val_loss val_top1 images_per_second"
    assert list(rows[0]) == columns.split()
    assert [(row["epoch"], row["step"]) for row in rows] == [("1.0", "5"), ("2.0", "10")]
    assert {key: float(value) for key, value in rows[-1].items()} == last
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert workdir.read_recipe()["model_overrides"]["stage_filters"] == [4, 8]
    assert workdir.curves.read_bytes()[:4] == b"\x89PNG"
    assert len(list_checkpoints(workdir.checkpoints)) == 2
    events = [
        value.tag
        for path in workdir.tensorboard.iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]
    names = {"learning_rate", "images_per_second", "train/loss", "train/top1", "val/loss", "val/top1"}
    assert collections.Counter(events) == dict.fromkeys(names, 2)


def test_the_weights_file_gives_the_last_rows_accuracy(finished, data_dir):
    folder, last = finished
    spec = read_spec(folder / "model.weights.h5")
    assert (spec.model, spec.classes, spec.labels[3]) == ("cifar_resnet20", 10, "3")
    model = load_network(folder / "model.weights.h5")
    split = open_dataset("digits", data_dir).split("test")
    right = count = 0
    for batch in evaluation_batches(split, spec.preprocessing, global_batch=64):
        hits = np.argmax(model(batch["images"], training=False), -1) == batch["labels"]
        right += float(np.sum(hits * batch["weights"].numpy()))
        count += float(np.sum(batch["weights"]))
    assert count == len(split)
    assert right / count == pytest.approx(last["val_top1"], abs=1e-9)


@pytest.mark.slow
def test_another_seed_gives_other_bytes(tmp_path, tiny, run_options, finished):
    train(tiny, tmp_path, run_options(seed=1))
    assert (tmp_path / "model.weights.h5").read_bytes() != (finished[0] / "model.weights.h5").read_bytes()


def assert_same_result(workdir, other):
    assert (workdir / "model.weights.h5").read_bytes() == (other / "model.weights.h5").read_bytes()
    assert history(workdir) == history(other)


@pytest.mark.slow
def test_a_run_interrupted_anywhere_ends_with_the_same_bytes(
    tmp_path, run_options, break_off, uninterrupted, capsys
):
    """Before its first checkpoint, inside an epoch and between two epochs."""
    options = run_options(checkpoint_every=2)
    for calls in (1, 4, 6):
        with break_off(calls):
            train(demanding(), tmp_path, options)
    train(demanding(), tmp_path, options)
    messages = capsys.readouterr().err
    assert "resuming after step 4 of 15" in messages
    assert "resuming after step 10 of 15" in messages
    assert_same_result(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_broken_newest_checkpoint_and_files_of_an_older_version(
    tmp_path, run_options, break_off, uninterrupted, capsys
):
    """The older recipe has neither weights nor freeze, and the older checkpoint no normalization."""
    with break_off(8):
        train(demanding(), tmp_path, run_options(checkpoint_every=2))
    old = json.loads((tmp_path / "recipe.json").read_text())
    assert (old.pop("weights"), old.pop("freeze")) == (None, None)
    (tmp_path / "recipe.json").write_text(json.dumps(old))
    older, newest = list_checkpoints(tmp_path / "checkpoints")
    checkpoint = load(older)
    del checkpoint.numbers["recipe"]["weights"], checkpoint.numbers["recipe"]["freeze"]
    del checkpoint.arrays["normalization/mean"], checkpoint.arrays["normalization/std"]
    save(tmp_path / "checkpoints", checkpoint, keep=2)
    newest.write_bytes(newest.read_bytes()[:1000])
    train(demanding(), tmp_path, run_options(checkpoint_every=2))
    messages = capsys.readouterr().err
    assert str(newest) in messages
    assert "resuming after step 6 of 15" in messages
    assert_same_result(tmp_path, uninterrupted)


@pytest.mark.slow
def test_sigterm_inside_an_epoch_in_an_evaluation_and_at_the_end(
    tmp_path, run_options, uninterrupted, monkeypatch
):
    """Only the evaluation is repeated; calls of several steps change nothing."""
    evaluate, evaluations = Trainer.evaluate, []

    def stopped_in_the_second_batch(self, iterator, stopping):
        evaluations.append(float(stopping))
        if len(evaluations) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate.__get__(self, Trainer)(iterator, stopping)

    def newest():
        return load(list_checkpoints(tmp_path / "checkpoints")[-1])

    for at, after, options in ((6, 8, {}), (None, 10, {}), (13, 15, {"steps_per_call": 3})):

        def stop(trainer, first, results, at=at):
            if first == at:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            if at is None:
                patch.setattr(Trainer, "evaluate", stopped_in_the_second_batch)
            with pytest.raises(Preempted, match=f"stopped by SIGTERM after step {after} of 15"):
                train(demanding(), tmp_path, run_options(**options), observer=stop)
        assert newest().step == after
        assert (newest().numbers["unevaluated"] or {}).get("step") == (None if after == 8 else after)
    assert evaluations == [0, 0, 1]
    train(demanding(), tmp_path, run_options(), observer=lambda *call: pytest.fail("trained again"))
    assert_same_result(tmp_path, uninterrupted)
    assert newest().numbers["unevaluated"] is None


@pytest.mark.parametrize("phase", ["preparation", "statistics"])
def test_sigterm_before_the_first_step_ends_the_run_at_once(tmp_path, tiny, run_options, monkeypatch, phase):
    """Also where SIGTERM would be ignored, as by a container's first process."""

    def stop(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("SIGTERM was ignored")

    options = run_options()
    if phase == "preparation":
        monkeypatch.setattr(Digits, "_generate_examples", stop)
        options = run_options(data_dir=str(tmp_path / "tfds"))
    else:
        monkeypatch.setattr("keras_resnet.classification.task.dataset_statistics", stop)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(Preempted, match="stopped by SIGTERM; the same command resumes the run"):
            train(tiny, tmp_path / "run", options)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("tfds/**/*.tfrecord*"))


@contextlib.contextmanager
def default_sigterm():
    """Within the block, SIGTERM has its default handler, as in a new process."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("catch", "ends_with"), [(catch_sigterm, Preempted), (exit_on_sigterm, SystemExit)])
def test_sigterm_within_a_callback_that_drops_its_exception(catch, ends_with, monkeypatch):
    """As JAX's callback for every garbage collection does."""
    dropped, cleaned = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropping: dropped.append(dropping.exc_value))

    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGTERM)

    def body():
        gc.callbacks.append(callback)
        try:
            gc.collect()  # can take longer than the second until the repetition
            time.sleep(30)
            pytest.fail("SIGTERM was lost")
        finally:
            signal.raise_signal(signal.SIGTERM)  # does not interrupt
            cleaned.append(True)

    with default_sigterm(), pytest.raises(ends_with), catch():
        body()
    assert dropped
    assert cleaned


@pytest.mark.parametrize(("catch", "ends_with"), [(catch_sigterm, Preempted), (exit_on_sigterm, SystemExit)])
def test_sigterm_whose_exception_becomes_another_one_in_cpp_code(catch, ends_with):
    def stop():
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError(f"{type(error).__name__}\n\nAt:\n  errors_impl.py(474)") from error

    with default_sigterm(), pytest.raises(ends_with), catch():
        stop()


def test_a_finished_run_is_not_trained_again(tiny, run_options, finished):
    folder, last = finished
    before = (folder / "model.weights.h5").read_bytes()
    again = train(tiny, folder, run_options(), observer=lambda *call: pytest.fail("trained again"))
    assert again == last
    assert (folder / "model.weights.h5").read_bytes() == before


def test_the_saved_weights_are_the_averaged_ones(uninterrupted):
    checkpoint = load(list_checkpoints(uninterrupted / "checkpoints")[-1])
    with h5py.File(uninterrupted / "model.weights.h5") as file:
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


@pytest.mark.slow
def test_reduced_precision_learns(tmp_path, tiny, run_options):
    """float16; bfloat16 has the same layers and no loss scale."""
    train(tiny, tmp_path, run_options(precision="float16"))
    rows = history(tmp_path)
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert keras.config.dtype_policy().name == "float32"  # restored


def test_two_devices_count_every_example_once_and_the_last_part_of_an_epoch_is_a_row(
    tmp_path, tiny, run_options
):
    counts = []

    def observe(trainer, first, results):
        counts.extend(results[:, trainer.columns.index("count")].tolist())

    recipe = tiny.replace(val_split="test[:101]", steps=7)
    last = train(recipe, tmp_path, run_options(strategy="mirrored"), observer=observe)
    assert counts == [64] * 7
    assert last["val_top1"] * 101 == pytest.approx(round(last["val_top1"] * 101), abs=1e-9)
    rows = history(tmp_path)
    assert [(row["epoch"], row["step"]) for row in rows] == [("1.0", "5"), ("1.4", "7")]
    assert np.isfinite([float(value) for row in rows for value in row.values()]).all()


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
        bad({"image_size": 1}, {}, "needs images of at least 2 pixels; image_size is 1"),
        bad({"model_overrides": {"classes": 7}}, {}, "classes is 7, but digits has 10"),
        bad(
            {"model_overrides": {"shortcuts": "A"}},
            {},
            "unknown network option 'shortcuts'; did you mean shortcut",
        ),
        bad({"weights": "nowhere.weights.h5"}, {}, "nowhere.weights.h5 does not exist"),
        bad({"freeze": "C9"}, {}, "freeze takes one of C1, C2, C3 or None; got 'C9'"),
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
        ({"seed": 5_000_000_000}, "seed must be less than 4294967296"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"steps_per_call": 0}, "steps_per_call must be at least 1"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(InputError, match=message):
        RunOptions(**changes)


def test_starts_from_weights_but_not_from_those_of_another_network(tmp_path, tiny, run_options, finished):
    weights = str(finished[0] / "model.weights.h5")
    plain = tiny.replace(model="cifar_plain20", weights=weights)
    with pytest.raises(InputError, match="shortcut is 'A' there, None here"):
        train(plain, tmp_path / "run", run_options())
    other = tmp_path / "other.weights.h5"
    save_weights(build_model("cifar_resnet20", classes=7, **{**TINY, "stage_filters": (6, 8)}), other)
    with pytest.raises(InputError, match=r"layer .* has shapes"):
        train(tiny.replace(weights=str(other)), tmp_path / "run", run_options())
    assert not (tmp_path / "run").exists()
    last = train(tiny.replace(steps=1, weights=weights), tmp_path / "run", run_options())
    assert last["train_loss"] < float(history(finished[0])[0]["train_loss"])


def test_a_workdir_with_another_recipe(tmp_path, tiny, run_options, finished):
    with pytest.raises(InputError, match=r"holds another run \(learning_rate 0.1 there, 0.2 now\)"):
        train(tiny.replace(learning_rate=0.2), finished[0], run_options())
    with pytest.raises(InputError, match="seed 0 there, 5 now"):
        train(tiny, finished[0], run_options(seed=5))
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    (copy / "recipe.json").unlink()
    with pytest.raises(InputError, match="are of another model or recipe"):
        train(tiny.replace(epochs=3), copy, run_options())


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


def test_a_folder_that_another_process_uses(tmp_path, tiny, run_options, finished):
    """A run that exists, and a new one, whose folder is locked when nothing else can fail."""
    new = tmp_path / "new"
    for folder in (finished[0], new):
        with (
            locked(folder / "lock"),
            pytest.raises(InputError, match=f"another process is using {folder}; wait until it ends"),
        ):
            train(tiny, folder, run_options())
    assert [path.name for path in new.iterdir()] == ["lock"]
    assert train(tiny, finished[0], run_options()) == finished[1]


def test_a_closed_terminal_does_not_end_a_run(monkeypatch):
    written = []

    def write(line, file):
        written.append(line)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("keras_resnet.training.progress.tqdm.write", write)
    task = SimpleNamespace(recipe=SimpleNamespace(batch_size=1), describe=str)
    Progress(task, 1, visible=True).say("epoch 1")
    assert written == ["epoch 1"]


def test_a_workdir_that_is_a_file(tmp_path, tiny, run_options):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        train(tiny, tmp_path / "file", run_options())
    assert (tmp_path / "file").read_text() == "mine"
