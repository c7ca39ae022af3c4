"""The paper's recipes on tiny datasets of the real format, under two devices."""

import numpy as np
import pytest
from helpers.data_helpers import write_tfds
from helpers.zoo_networks import TINY, load_network
from safetensors.numpy import save_file

from keras_resnet import InputError, build_model
from keras_resnet.classification import get_recipe, train
from keras_resnet.data import sources
from keras_resnet.models.config import get_config
from keras_resnet.training import RunOptions
from keras_resnet.weights import get_entry, read_spec
from keras_resnet.weights import weight_file as pretrained
from keras_resnet.weights.torch_files import torch_names


def picture(random, height, width):
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_cifar10(data_dir):
    random = np.random.default_rng(0)

    def examples(count):
        return [
            {"id": f"{i}", "image": picture(random, 32, 32), "label": int(random.integers(10))}
            for i in range(count)
        ]

    write_tfds(data_dir, "cifar10", {"train": examples(24), "test": examples(4)})


def write_imagenet(data_dir):
    random = np.random.default_rng(0)

    def examples(count):
        return [
            {
                "file_name": f"{i}.JPEG",
                "image": picture(random, *random.integers(40, 90, 2)),
                "label": int(random.integers(1000)),
            }
            for i in range(count)
        ]

    write_tfds(data_dir, "imagenet2012", {"train": examples(8), "validation": examples(3)}, shards=2)


def write_imagenette(data_dir):
    random = np.random.default_rng(0)

    def examples(count):
        return [
            {"image": picture(random, *random.integers(40, 90, 2)), "label": int(random.integers(10))}
            for _ in range(count)
        ]

    write_tfds(data_dir, "imagenette", {"train": examples(8), "validation": examples(3)})


def write_torchvision(path, name):
    """A file of the tensors that torchvision's file has; returns our network with their values."""
    model = build_model(name)
    variables = {(layer.name, v.name): v.numpy() for layer in model.layers for v in layer.weights}
    tensors = {}
    for key, source in torch_names(get_config(name)).items():
        tensors[source.names[0]] = np.ascontiguousarray(variables[key].transpose(np.argsort(source.axes)))
    save_file(tensors, path)
    return model


SMALL = {"stage_depths": (1, 1), "stage_filters": (64, 72)}  # the stem has 64 filters
SMALL_IMAGENET = {"model": "resnet18", "model_overrides": SMALL, "image_size": 32, "batch_size": 4}
CASES = {
    "cifar10_paper": (
        write_cifar10,
        {
            "model_overrides": TINY,
            "steps": 2,
            "batch_size": 8,
            "train_split": "train[:16]",
            "val_split": "train[16:]",
        },
        (10, (32, 32, 3)),
    ),
    "imagenet_paper": (write_imagenet, {**SMALL_IMAGENET, "steps": 1}, (1000, (32, 32, 3))),
    "imagenet_modern": (write_imagenet, {**SMALL_IMAGENET, "epochs": 0.5}, (1000, (32, 32, 3))),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "imagenet" in name else []) for name in CASES]
)
def test_a_recipe_takes_steps_on_its_own_dataset_under_two_devices(tmp_path, name):
    write, changes, (classes, shape) = CASES[name]
    write(tmp_path / "tfds")
    recipe = get_recipe(name).replace(**changes)
    last = train(recipe, tmp_path / "run", RunOptions(strategy="mirrored", data_dir=str(tmp_path / "tfds")))
    assert np.isfinite([last["train_loss"], last["val_loss"]]).all()
    spec = read_spec(tmp_path / "run" / "model.weights.h5")
    assert (spec.classes, spec.input_shape) == (classes, shape)
    if name == "cifar10_paper":  # the mean image, and nothing but the mean
        assert np.shape(spec.normalization.mean) == (32, 32, 3)
        assert spec.normalization.std == (1, 1, 1)


@pytest.mark.slow
def test_a_run_that_breaks_off_inside_an_epoch_ends_with_the_same_bytes(tmp_path, break_off):
    write_imagenet(tmp_path / "tfds")
    recipe = get_recipe("imagenet_modern").replace(
        **{**SMALL_IMAGENET, "batch_size": 2}, steps=8, reestimate_batches=2
    )
    run_options = RunOptions(strategy="mirrored", data_dir=str(tmp_path / "tfds"), checkpoint_every=1)
    train(recipe, tmp_path / "whole", run_options)
    epoch_steps = int((tmp_path / "whole" / "history.csv").read_text().splitlines()[1].split(",")[1])
    assert 1 < epoch_steps < 8
    with break_off(epoch_steps + 1):
        train(recipe, tmp_path / "broken", run_options)
    train(recipe, tmp_path / "broken", run_options)
    files = [(tmp_path / run / "model.weights.h5").read_bytes() for run in ("whole", "broken")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_finetune_on_its_own_dataset_from_published_weights(tmp_path, monkeypatch):
    write_imagenette(tmp_path / "tfds")
    theirs = write_torchvision(tmp_path / "resnet18.safetensors", "resnet18")
    files = {get_entry("imagenet", "resnet18").url: tmp_path / "resnet18.safetensors"}
    monkeypatch.setattr(pretrained, "fetch", lambda url, digest: files[url])
    recipe = get_recipe("finetune", "resnet18").replace(freeze="C4", image_size=64, batch_size=4, steps=2)
    train(recipe, tmp_path / "run", RunOptions(strategy="one_device", data_dir=str(tmp_path / "tfds")))
    spec = read_spec(tmp_path / "run" / "model.weights.h5")
    assert (spec.classes, spec.input_shape, spec.preprocessing.resize) == (10, (64, 64, 3), 73)
    assert spec.normalization == get_entry("imagenet", "resnet18").preprocessing.normalization
    ours = load_network(tmp_path / "run" / "model.weights.h5")
    for layer in ours.layers:
        if layer.weights and layer.name != "predictions":
            before, after = theirs.get_layer(layer.name).get_weights(), layer.get_weights()
            same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
            assert all(same) if layer.name < "conv5" else not any(same), layer.name


@pytest.mark.slow
def test_a_run_whose_record_file_breaks_resumes_when_it_is_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "INDEXED_BYTES", 0)
    write_imagenet(tmp_path / "tfds")
    recipe = get_recipe("imagenet_modern").replace(**{**SMALL_IMAGENET, "batch_size": 2}, epochs=1)
    options = RunOptions(strategy="one_device", data_dir=str(tmp_path / "tfds"), checkpoint_every=1)
    train(recipe, tmp_path / "whole", options)
    file = next((tmp_path / "tfds").rglob("*validation.tfrecord-00001*"))
    content = file.read_bytes()

    def damage(trainer, step, results):
        file.write_bytes(content[:-1])

    with pytest.raises(InputError, match=f"{file.name} cannot be read after record .*truncated"):
        train(recipe, tmp_path / "broken", options, damage)
    assert not (tmp_path / "broken" / "model.weights.h5").exists()
    file.write_bytes(content)
    train(recipe, tmp_path / "broken", options)
    weights = [(tmp_path / name / "model.weights.h5").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]
