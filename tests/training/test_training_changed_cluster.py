"""A run of two workers is resumed on other numbers of workers and devices."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import processes
from helpers.data_helpers import write_image, write_tfds
from helpers.tiny_detectors import C4, small_recipe
from helpers.train_runs import CHECKPOINT, train_runs

from keras_resnet.classification import get_recipe
from keras_resnet.data import convert
from keras_resnet.weights import ModelSpec, save_weights

# One after the other with the other tests of several processes.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several_processes")]

STEPS, BATCH = 5, 8
CLASSES = 10
LINGER = 9  # seconds; workers send a heartbeat every five
# Each run takes seconds to start. Folders and ArrayRecord files are divided among workers as arrays are.
RESUMED = {
    "one_device": ["arrays", "four parts", "folder", "tfrecord", "array_record", "detection"],
    "mirrored": ["arrays", "four parts", "detection"],
    "four_workers": ["arrays", "tfrecord", "detection"],
}


def pictures(count):
    random = np.random.default_rng(0)
    sizes = random.integers(20, 40, (count, 2))
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def datasets(folder, digits_dir):
    """`(dataset, data_dir, splits)` of each kind of source."""
    train, validation = pictures(BATCH * STEPS), pictures(BATCH)
    for split, images in (("train", train), ("test", validation)):
        for index, image in enumerate(images):
            write_image(folder / "images" / split / f"class{index % 2}" / f"{index}.png", image)
    examples = [
        [{"image": image, "label": index % CLASSES} for index, image in enumerate(images)]
        for images in (train, validation)
    ]
    splits = dict(zip(("train", "validation"), examples, strict=True))
    write_tfds(folder / "tfrecord", "imagenette", splits, shards=2)
    convert("imagenette", folder / "array_record", folder / "tfrecord")
    whole = {"train_split": "train", "val_split": "validation"}
    return {
        # Three steps per epoch: a run is stopped within the first and resumed to within the second.
        "arrays": ("digits", digits_dir, {"train_split": "train[:24]", "val_split": "test[:8]"}),
        "folder": (f"folder:{folder / 'images'}", None, {"train_split": "train", "val_split": "test"}),
        "tfrecord": ("imagenette", str(folder / "tfrecord"), whole),
        "array_record": ("imagenette", str(folder / "array_record"), whole),
    }


def run_of(task, recipe, options, parts=0, large=False):
    recipe = recipe.replace(learning_rate=0.001, warmup_epochs=0, schedule="constant", steps=STEPS)
    values = {"task": task, "recipe": recipe.to_dict(), "options": options}
    return {**values, "parts": parts, "large": large}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir):
    """The runs of the plan by name."""
    folder = tmp_path_factory.mktemp("data")
    found = {}
    for kind, (dataset, directory, splits) in datasets(folder, data_dir).items():
        network = {"stage_depths": (1,), "stage_filters": (8,), "batch_norm": kind == "arrays"}
        recipe = get_recipe("digits").replace(dataset=dataset, **splits, model_overrides=network)
        recipe = recipe.replace(image_size=16, batch_size=BATCH, normalization="imagenet")
        options = {"data_dir": directory, "sync_batch_norm": kind == "arrays"}
        is_large = kind in ("tfrecord", "array_record")
        found[kind] = run_of("classification", recipe, options, large=is_large)
        if kind == "arrays":
            mixed = recipe.replace(mixup=0.2)
            found["four parts"] = run_of("classification", mixed, {"data_dir": directory}, parts=4)
    keras.utils.set_random_seed(0)
    network = {"stage_depths": (1, 1, 1), "stage_filters": (8, 8, 8)}
    spec = ModelSpec.default("cifar_resnet20", overrides=network)
    backbone = save_weights(spec.build(), folder / "a.weights.h5", spec)
    recipe = small_recipe(
        train_split="train[:20]",
        backbone_weights=str(backbone),
        model_overrides={**C4, "network": network},
        flip=True,
    )
    return {**found, "detection": run_of("detection", recipe, {"data_dir": data_dir})}


def plan_of(folder, runs, stopped=None, linger=0):
    return {"folder": str(folder), "stopped": stopped and str(stopped), "runs": runs, "linger": linger}


def launch(workers, plan):
    """Starts to train the runs of a plan on workers of this machine."""
    folder = Path(plan["folder"])
    folder.mkdir(exist_ok=True)
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    program = processes.ROOT / "tests" / "helpers" / "train_runs.py"
    launcher = ["-m", "keras_resnet.training.launch_local", f"--workers={workers}", f"--program={program}"]
    # With TensorFlow's errors, which the commands hide.
    shown = {"PYTHONPATH": str(processes.ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    return processes.start([*launcher, "--", str(path)], **shown)


def ended(process, plan):
    """Waits for the results of runs; returns them. The workers' processes may take longer."""
    path = Path(plan["folder"], "ended.json")
    assert processes.wait_for(path.exists, process), processes.finish(process)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory, runs):
    """What two workers leave when they are stopped, what they end with otherwise, and their processes."""
    folder = tmp_path_factory.mktemp("two")
    plan = plan_of(folder / "whole", runs, folder / "stopped", LINGER)
    process = launch(2, plan)
    yield folder / "stopped", ended(process, plan), process
    if process.poll() is None:
        processes.kill_group(process)


@pytest.mark.parametrize("cluster", RESUMED)
def test_a_run_that_two_workers_began(tmp_path, runs, two_workers, cluster):
    """The other cluster takes the same global batches, with the same losses up to rounding."""
    stopped, whole, _ = two_workers
    runs = {name: runs[name] for name in RESUMED[cluster]}
    plan = plan_of(tmp_path / "resumed", runs)
    shutil.copytree(stopped, plan["folder"])
    if cluster == "four_workers":
        process = launch(4, plan)
        resumed = ended(process, plan)
        status, output = processes.finish(process)
        assert status == 0, output
    else:
        resumed = train_runs(plan, cluster)
    assert resumed.keys() == runs.keys()
    for name, run in runs.items():
        rows, expected = (np.array(each[name]["rows"]) for each in (resumed, whole))
        assert (len(rows), len(expected)) == (STEPS - CHECKPOINT, STEPS), name
        losses = 5 if run["task"] == "detection" else 1
        np.testing.assert_allclose(rows[:, :losses], expected[CHECKPOINT:, :losses], rtol=1e-5, err_msg=name)
        if name not in ("detection", "four parts"):
            results = (each[name]["last"]["val_loss"] for each in (resumed, whole))
            assert next(results) == pytest.approx(next(results), rel=1e-4), name


def test_no_worker_misses_the_chief_at_the_end(two_workers):
    """Not even one whose process ends some seconds after the run."""
    *_, process = two_workers
    status, output = processes.finish(process)
    assert status == 0, output
    assert "[0] epoch 1.66667/2: " in output, output
    for word in ("StartAbort", "heartbeat", "Traceback"):
        assert word not in output, output
