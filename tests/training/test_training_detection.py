"""Faster R-CNN is trained by the same loop as classifiers: through the command, resumed, on two replicas.

Killed processes and several workers are in test_training_processes.py.
"""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.commands import run as run_command
from helpers.runs import history
from helpers.tiny_detectors import NETWORK, recipe_flags, small_recipe

from keras_resnet import InputError
from keras_resnet.commands.recipes import TRAIN
from keras_resnet.data import BadImages
from keras_resnet.detection import (
    RECIPES,
    DetectionRecipe,
    DetectionTask,
    get_recipe,
    load_detector,
    open_detection_dataset,
    train,
)
from keras_resnet.detection.config import get_detector_config
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import checkpoints
from keras_resnet.training.loop import TrainingFailed
from keras_resnet.training.remat import Rematerialized
from keras_resnet.training.task import call_in_training
from keras_resnet.weights import ModelSpec, get_entry, save_weights


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_frozen_and_survive_json(name):
    recipe = RECIPES[name]
    again = DetectionRecipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again.to_dict() == recipe.to_dict()
    config = get_detector_config(recipe.model, **again.model_overrides)
    assert config == get_detector_config(recipe.model, **recipe.model_overrides)
    assert config.style in ("c4", "fpn")
    if recipe.backbone_weights:
        network = recipe.model.split("_", 2)[2].rsplit("_", 1)[0]
        assert get_entry(recipe.backbone_weights, network).model == network
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.batch_size = 1


def test_paper_recipes_are_appendix_a():
    voc, coco = get_recipe("detect_voc_paper"), get_recipe("detect_coco_paper")
    for recipe in (voc, coco):
        assert (recipe.momentum, recipe.weight_decay, recipe.learning_rate) == (0.9, 5e-4, 0.001)
        config = get_detector_config(recipe.model)
        assert (config.shorter_side, config.longer_side, config.anchors_inside) == (600, 1000, True)
        assert (config.training_candidates, config.training_proposals) == (12_000, 2000)
        assert (config.rpn_samples, config.roi_samples, config.roi_positive_fraction) == (256, 128, 0.25)
        assert (config.rpn_beta, config.roi_beta, config.frozen_batch_norm) == (1 / 9, 1, True)
    assert round(voc.boundaries[0] * voc.steps) == 50_000
    assert [coco.boundaries[0] * coco.steps, coco.steps] == [240_000, 320_000]


@pytest.mark.slow
def test_the_command_trains_a_detector(tmp_path, data_dir):
    options = [f"--data_dir={data_dir}", f"--workdir={tmp_path / 'run'}", "--strategy=one_device"]
    assert run_command(TRAIN, *options, *recipe_flags(small_recipe(epochs=4))) == 0
    rows = history(tmp_path / "run")
    losses = ("rpn_classification", "rpn_box", "roi_classification", "roi_box")
    assert [float(row["step"]) for row in rows] == [3, 6, 9, 12]
    for row in rows:
        assert float(row["train_loss"]) == pytest.approx(sum(float(row[f"train_{x}"]) for x in losses))
        assert all(0 <= float(row[f"val_{name}"]) <= 1 for name in ("map", "map50", "voc_map"))
    assert float(rows[-1]["train_loss"]) < 0.9 * float(rows[0]["train_loss"])
    detector = load_detector(RunFolder(tmp_path / "run").weights)
    assert (detector.config.classes, detector.config.rpn_channels) == (10, 8)
    found = detector.detect([open_detection_dataset("scenes/digits/48").split("test").read_image(0)])
    assert len(found) == 1


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A file of the backbone's weights."""
    keras.utils.set_random_seed(1)
    spec = ModelSpec.default("cifar_resnet20", overrides=NETWORK)
    return str(save_weights(spec.build(), tmp_path_factory.mktemp("classifier") / "a.weights.h5", spec))


@pytest.mark.slow
def test_frozen_layers_and_statistics(tmp_path, classifier, run_options, early_progress, capsys):
    recipe = small_recipe(backbone_weights=classifier, statistics_batches=2, freeze="C2", steps=1)
    train(recipe, tmp_path, run_options())
    printed = capsys.readouterr().err
    assert "statistics of batch normalization: 1 of 2 batches, " in printed
    assert "evaluating: 1 of 2 batches, " in printed
    arrays = checkpoints.load(checkpoints.list_checkpoints(RunFolder(tmp_path).checkpoints)[-1]).arrays
    # Frozen statistics are not those of the file, and frozen layers have no velocity.
    assert np.abs(arrays["weights/conv2_block1_1_bn/moving_mean"]).max() > 0
    assert "velocity/conv3_block1_1_conv/kernel" in arrays
    assert "velocity/conv2_block1_1_conv/kernel" not in arrays
    assert "velocity/conv3_block1_1_bn/gamma" not in arrays


@pytest.mark.slow
def test_two_replicas_or_parts_do_what_one_does(tmp_path, classifier, run_options):
    recipe = small_recipe(backbone_weights=classifier, learning_rate=0.001, steps=3)

    def losses(name, **changes):
        results = []
        train(
            recipe,
            tmp_path / name,
            run_options(**changes),
            lambda trainer, first, rows: results.extend(np.array(rows)[:, :6].tolist()),
        )
        return results

    one = losses("one")
    assert len(one) == 3
    np.testing.assert_allclose(losses("two", strategy="mirrored"), one, rtol=1e-5)
    np.testing.assert_allclose(losses("parts", accumulate=2), one, rtol=1e-5)


def write_coco(folder, seed):
    """Seven images, two of them portrait; one has no object, and one cannot be decoded."""
    numbers = np.random.default_rng(seed)
    images, rows = [], []
    (folder / "train").mkdir(parents=True)
    for index in range(7):
        height, width = (48, 32) if index % 3 == 2 else (32, 48)
        pixels = numbers.integers(0, 255, (height, width, 3), dtype=np.uint8)
        name = f"{index}.png"
        (folder / "train" / name).write_bytes(tf.io.encode_png(pixels).numpy())
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        if index != 1:
            row = {"bbox": [2 + index, 3, 20, 16], "area": 320, "iscrowd": 0, "category_id": index % 2}
            rows.append({"id": index, "image_id": index, **row})
    (folder / "train" / "3.png").write_bytes(b"no image")
    categories = [{"id": number, "name": name} for number, name in enumerate("ab")]
    values = {"images": images, "annotations": rows, "categories": categories}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(values))
    return f"coco:{folder}"


@pytest.mark.slow
def test_images_of_both_orientations(tmp_path, run_options, capsys):
    """Of two datasets; in the step of portrait images, one of two devices has only repeated images."""
    recipe = small_recipe(
        dataset=write_coco(tmp_path / "a", 0),
        also_train=write_coco(tmp_path / "b", 1),
        train_split="train",
        val_split="train",
        batch_size=8,
        epochs=1,
        learning_rate=0.001,
        flip=True,
        scale_jitter=(0.8, 1.3),
    )

    def losses(name, **changes):
        results = []
        last = train(
            recipe,
            tmp_path / name,
            run_options(max_bad_images=3, **changes),
            lambda trainer, first, rows: results.extend(np.array(rows)[:, :6].tolist()),
        )
        assert last["step"] == 2  # eight of ten landscape images, and four portrait ones
        assert 4 in [row[5] for row in results]
        assert np.isfinite(last["train_loss"])
        listed = (tmp_path / name / "bad_images.csv").read_text()
        assert listed.count("3.png") >= 2
        return results

    parts = losses("parts", accumulate=2)
    assert "train of coco" in capsys.readouterr().err
    np.testing.assert_allclose(losses("two", strategy="mirrored"), parts, rtol=1e-5)
    assert load_detector(RunFolder(tmp_path / "two").weights).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "faster_rcnn_resnet50_c5"}, "unknown detector"),
        ({"model": "retinanet_resnet50_v1_5_fpn", "model_overrides": {}}, "RetinaNet cannot be trained yet"),
        ({"model_overrides": {"classes": 3}}, "classes is 3, but scenes/digits/48 has 10"),
        ({"model_overrides": {"rpn_sample": 3}}, "unknown detector option 'rpn_sample'"),
        (
            {"batch_size": 64},
            "has no 64 images of one orientation for a batch: 12 landscape or square, 0 portrait",
        ),
        ({"also_train": "scenes/fashion"}, "unknown scenes"),
        ({"model_overrides": {"network": "cifar_resnet32"}}, "model.network takes fields of the backbone's"),
    ],
)
def test_what_cannot_be_trained(tmp_path, run_options, changes, message):
    with pytest.raises(InputError, match=message):
        train(small_recipe(**changes), tmp_path / "run", run_options())
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_stop_the_run(one_device):
    task = DetectionTask(small_recipe())
    task.open(None)
    weight = task.build(pretrained=False).get_layer("rpn_logits").kernel
    weight.assign(np.full(weight.shape, np.nan))
    bad = BadImages()
    task.prepare(one_device, None, bad)
    place = {"seed": 0, "epoch": 0, "epochs": 1, "first_step": 0, "bad": bad}
    batch = next(iter(task.training_batches(one_device, **place)))
    # The loop stops before a step with such a loss.
    assert np.isnan(task.training_sums(None, call_in_training, batch, (0, tf.constant(0), tf.constant(0)))[0])
    sums, collected = task.evaluation_sums(None, next(iter(task.evaluation_batches(one_device, bad))))
    with pytest.raises(TrainingFailed, match=r"outputs are not finite for 4 of 4 images of 'test\[:5\]'"):
        task.evaluation_metrics(np.array(sums), {name: value.numpy() for name, value in collected.items()})


def test_detectors_are_not_compiled(tmp_path, run_options):
    with pytest.raises(InputError, match="detectors cannot be trained with --jit"):
        train(small_recipe(), tmp_path / "run", run_options(jit=True))


@pytest.mark.slow
def test_rematerialization_changes_nothing(tmp_path, run_options):
    """Neither the shared layers nor the box head, whose input has a gradient, too."""
    recipe, observed = small_recipe(steps=2), []

    def observe(trainer, first, rows):
        observed.extend(rows.tolist())

    plain, remat = (tmp_path / name for name in ("plain", "remat"))
    train(recipe, plain, run_options(), observe)
    train(recipe, remat, run_options(remat=True), observe)
    assert observed[:2] == observed[2:]
    assert RunFolder(remat).weights.read_bytes() == RunFolder(plain).weights.read_bytes()
    detector = load_detector(RunFolder(plain).weights)
    assert all(len(Rematerialized(part).segments) > 1 for part in (detector.shared, detector.head_features))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "coco", "backbone_weights": "imagenet"}, "not both"),
        ({"statistics_batches": 5}, "statistics_batches needs backbone_weights"),
        ({"freeze": "C2"}, "freeze needs weights or backbone_weights"),
        ({"reestimate_batches": 5}, "detection has no reestimate_batches"),
        ({"scale_jitter": (1.0,)}, "scale_jitter takes two numbers"),
    ],
)
def test_recipes_that_contradict_themselves(changes, message):
    with pytest.raises(InputError, match=message):
        small_recipe(**changes)
