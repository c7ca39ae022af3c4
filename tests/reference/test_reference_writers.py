"""torchvision's and timm's own code reads what is written for them: strictly, with the same logits."""

import functools
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.torch_zoo import photos, reference, run, save_safetensors, timm, torchvision
from helpers.zoo_networks import randomize, relative_difference, zeros_for_weights
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_resnet import Normalization, Preprocessing, build_model
from keras_resnet.commands.weights import convert_weights
from keras_resnet.weights import ModelSpec, open_weights, save_weights

pytestmark = pytest.mark.torch

LABELS = ("ant", "bee", "cat", "dog", "elk")
SIZE = 64


def spec_of(name, channels=3):
    normalization = Normalization((120.1, 110.2, 100.3), (60.4, 1 / 3 + 50, 40.6))
    preprocessing = Preprocessing(SIZE, 75, "bilinear", normalization)
    return ModelSpec(name, {}, len(LABELS), (SIZE, SIZE, channels), preprocessing, LABELS)


def build_theirs(library, name):
    """A network of theirs without weights."""
    if library == "timm":
        return timm().create_model(name, num_classes=len(LABELS)).eval()
    return torchvision().models.get_model(name, weights=None, num_classes=len(LABELS)).eval()


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """By our name: a network of theirs, and a file of ours with its weights, labels and preprocessing."""
    folder = tmp_path_factory.mktemp("fine_tuned")

    @functools.cache
    def made(name):
        library = "timm" if name.endswith("d") else "torchvision"
        theirs = reference(library, name.removesuffix("_v1_5"), num_classes=len(LABELS))
        save_safetensors(theirs, folder / "theirs.safetensors")
        spec = spec_of(name)
        with zeros_for_weights():
            model = spec.build()
        open_weights(folder / "theirs.safetensors", name).load(model)
        return theirs, save_weights(model, folder / f"{name}.weights.h5", spec)

    return made


def logits(name, path):
    """Ours, of two photos."""
    shape = (SIZE, SIZE, 3)
    with zeros_for_weights():
        model = build_model(name, weights=path, classifier_activation=None, input_shape=shape)
    return model(photos(SIZE, SIZE))


def convert(source, output, library):
    with zeros_for_weights():
        convert_weights(str(source), None, str(output), library)
    return output


def read(path):
    import torch
    from safetensors.torch import load_file

    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("name", "library", "file"),
    [
        ("resnet18", "torchvision", "m.pth"),
        ("resnet18", "timm", "m.safetensors"),
        ("resnet50_v1_5", "torchvision", "m.safetensors"),
        ("resnet50_v1_5", "timm", "m.pt"),
        ("resnet50d", "timm", "m.safetensors"),
    ],
)
def test_state_dicts(name, library, file, fine_tuned, tmp_path):
    source, native = fine_tuned(name)
    state = read(convert(native, tmp_path / file, library))
    expected = {key: value for key, value in source.state_dict().items() if "num_batches" not in key}
    assert state.keys() == expected.keys()
    assert all(np.array_equal(state[key].numpy(), value.numpy()) for key, value in expected.items())
    theirs = build_theirs(library, name.removesuffix("_v1_5"))
    theirs.load_state_dict(state, strict=True)
    batch = photos(SIZE, SIZE)
    assert relative_difference(logits(name, native), run(theirs, batch)) <= 1e-5


@pytest.fixture(scope="module", params=["resnet18", "resnet50_v1_5", "resnet50d"])
def folder(request, fine_tuned, tmp_path_factory):
    """Our name of a network, its file, and its folder as on the Hugging Face Hub."""
    _, native = fine_tuned(request.param)
    path = tmp_path_factory.mktemp("hub") / request.param
    return request.param, native, convert(native, path, "huggingface")


@pytest.fixture
def from_folder(folder, monkeypatch):
    """What timm makes of the folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return timm().create_model(f"local-dir:{folder[2]}", pretrained=True).eval()


def test_timm_opens_the_folder(folder, from_folder):
    name, native, _ = folder
    assert relative_difference(logits(name, native), run(from_folder, photos(SIZE, SIZE))) <= 1e-5
    assert from_folder.pretrained_cfg["architecture"] == name.removesuffix("_v1_5")
    assert tuple(from_folder.pretrained_cfg["label_names"]) == LABELS


def test_timm_prepares_images_alike(from_folder):
    data = importlib.import_module("timm.data")
    config = data.resolve_model_data_config(from_folder)
    transform = data.create_transform(**config, is_training=False)
    ours = spec_of("resnet18").preprocessing
    for photo in load_sample_images().images:
        theirs = np.moveaxis(transform(Image.fromarray(photo)).numpy(), 0, -1)
        assert np.abs(ours(photo) - theirs).max() < 1e-5


def test_the_config_is_what_timm_writes(folder, from_folder, tmp_path):
    """And a folder that timm writes gives the same network here."""
    name, native, path = folder
    ours = json.loads((path / "config.json").read_text())
    importlib.import_module("timm.models._hub").save_config_for_hf(from_folder, tmp_path / "config.json")
    theirs = json.loads((tmp_path / "config.json").read_text())
    labels = ours.pop("label_names")
    assert theirs["pretrained_cfg"]["label_names"] == labels
    given, pretrained_cfg = ours.pop("pretrained_cfg"), theirs.pop("pretrained_cfg")
    assert {key: theirs[key] for key in ours} == ours
    assert {key: pretrained_cfg[key] for key in given} == given

    save_safetensors(from_folder, tmp_path / "model.safetensors")
    again = open_weights(tmp_path).spec
    assert (again.labels, again.preprocessing.resize, again.classes) == (LABELS, 75, len(LABELS))
    mean = spec_of(name).normalization.mean
    np.testing.assert_allclose(again.normalization.mean, mean, rtol=1e-9)
    np.testing.assert_array_equal(logits(name, tmp_path), logits(name, native))


def test_timm_opens_a_folder_for_gray_images(monkeypatch, tmp_path):
    spec = spec_of("resnet18", channels=1)
    ours = randomize(spec.build())
    native = save_weights(ours, tmp_path / "m.weights.h5", spec)
    path: Path = convert(native, tmp_path / "folder", "huggingface")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    theirs = timm().create_model(f"local-dir:{path}", pretrained=True).eval()
    batch = photos(SIZE, SIZE, 1)
    assert relative_difference(ours(batch), run(theirs, batch)) <= 1e-5
