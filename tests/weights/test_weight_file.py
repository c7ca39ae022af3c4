"""Published weights and weight files, by name or path, with their preprocessing."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from helpers.commands import run
from helpers.torch_files import state_dict, torch_forward
from helpers.zoo_networks import images, randomize, relative_difference
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images

import keras_resnet
from keras_resnet import InputError, Normalization, Preprocessing, build_model, get_entry, preprocess_input
from keras_resnet.classification import load_evaluated_model
from keras_resnet.commands.weights import convert_weights as convert
from keras_resnet.weights import ModelSpec, compare, hdf5, open_weights, read_spec, save_weights, torch_files
from keras_resnet.weights import weight_file as pretrained
from keras_resnet.weights.__main__ import COMMAND

SMALL = {"stage_depths": (1, 1, 1, 1), "stage_filters": (64, 8, 8, 8)}


@pytest.fixture(scope="module")
def tensors():
    return state_dict("basic", (2, 2, 2, 2), (64, 128, 256, 512), 1000)


@pytest.fixture(scope="module")
def downloaded(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "resnet18.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def fetched(downloaded, monkeypatch):
    """Replaces downloading; returns the recorded requests."""
    asked = []

    def fetch(url, digest):
        asked.append((url, digest))
        return downloaded

    monkeypatch.setattr(pretrained, "fetch", fetch)
    return asked


@pytest.mark.parametrize("weights", ["imagenet", get_entry("imagenet", "resnet18")])
def test_weights_by_name(weights, fetched, tensors):
    model = keras_resnet.ResNet18(weights=weights, classifier_activation=None, input_shape=(64, 64, 3))
    entry = get_entry("torchvision_v1", "resnet18")
    assert fetched == [(entry.url, entry.digest)]
    batch = images(2, 64, 64, 3)
    assert relative_difference(model(batch), torch_forward(tensors, batch)) < 1e-5
    # At another size the crop keeps its share of the image: 224 of 256.
    assert model.preprocess == dataclasses.replace(entry.preprocessing, size=64, resize=73)
    assert keras_resnet.ResNet18(weights=weights).preprocess == entry.preprocessing


def test_other_classes_and_channels(fetched, tensors):
    model = keras_resnet.ResNet18(weights="imagenet", classes=3, input_shape=(64, 64, 1))
    assert model.output_shape == (None, 3)
    kernel = model.get_layer("conv1_conv").kernel.numpy()
    expected = tensors["conv1.weight"].transpose(2, 3, 1, 0).sum(2, keepdims=True)
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-6)
    mean = np.mean(Normalization.imagenet().mean)
    assert model.preprocess.normalization.mean == (pytest.approx(mean),)
    assert model.preprocess(np.zeros((100, 90), "uint8")).shape == (64, 64, 1)


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        ("resnet50", {"weights": "torchvision_v1"}, "they are for resnet50_v1_5"),
        ("resnet18", {"weights": "imagnet"}, "did you mean imagenet"),
        ("plain18", {"weights": "imagenet"}, "plain18 has no pretrained weights"),
        ("resnet18", {"weights": "imagenet", "shortcut": "C"}, "no network of the zoo has these options"),
        (
            "resnet34",
            {"weights": get_entry("imagenet", "resnet18")},
            "weights of resnet18, another network: stage_depths is",
        ),
        ("resnet34", {"weights": "imagenet"}, "does not fit resnet34: missing: layer1.2.conv1.weight"),
        ("resnet18", {"weights": "none.safetensors"}, "weight file none.safetensors does not exist"),
        ("resnet18", {"weights": "folder/imagenet"}, "folder/imagenet does not exist"),
    ],
)
def test_weights_that_do_not_fit(model, arguments, told, fetched):
    with pytest.raises(InputError) as refusal:
        build_model(model, input_shape=(32, 32, 3), **arguments)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_options_of_another_network_of_the_zoo(fetched):
    """A plain network with shortcuts is the residual network, whose weights it takes."""
    model = keras_resnet.PlainNet18(weights="imagenet", shortcut="B", input_shape=(32, 32, 3))
    assert model.name == "plain18"
    assert len(fetched) == 1


def test_full_names_and_a_folder_named_imagenet(fetched, monkeypatch, tmp_path):
    (tmp_path / "imagenet").mkdir()
    monkeypatch.chdir(tmp_path)
    photo = np.zeros((300, 400, 3), "uint8")
    for weights in ("imagenet", "resnet18/torchvision_v1"):
        model = keras_resnet.ResNet18(weights=weights, input_shape=(32, 32, 3))
        assert model.preprocess.resize == 37
        assert preprocess_input(photo, weights, "resnet18").shape == (224, 224, 3)
    with pytest.raises(InputError, match="'torchvision_v1' holds weights of resnet18"):
        keras_resnet.ResNet34(weights="resnet18/torchvision_v1")


@pytest.mark.parametrize("weights", [5, True, object()])
def test_invalid_types_of_weights(weights):
    with pytest.raises(InputError, match="weights must be a name of list_weights"):
        build_model("resnet18", weights=weights, input_shape=(32, 32, 3))
    with pytest.raises(InputError, match="weights must be a name of list_weights"):
        preprocess_input(np.zeros((8, 8, 3), "uint8"), weights)


def test_the_default_classes_are_those_of_the_file(tmp_path):
    save_file(state_dict("basic", (2, 2, 2, 2), (64, 128, 256, 512), 5), tmp_path / "m.safetensors")
    model = keras_resnet.ResNet18(weights=tmp_path / "m.safetensors", input_shape=(32, 32, 3))
    assert model.output_shape == (None, 5)
    assert np.any(model.get_layer("predictions").bias.numpy())


def test_torch_files_by_path(downloaded, tensors):
    model = build_model("resnet18", weights=downloaded, classifier_activation=None, input_shape=(64, 64, 3))
    batch = images(2, 64, 64, 3)
    assert relative_difference(model(batch), torch_forward(tensors, batch)) < 1e-5
    usual = Preprocessing(64, 73, "bilinear", Normalization.imagenet())
    assert model.preprocess == usual


@pytest.mark.parametrize(
    ("name", "theirs", "module", "ending"),
    [
        pytest.param("resnet50", "ResNet50", "resnet", "m.h5", marks=pytest.mark.slow),
        pytest.param("resnet50_v2", "ResNet50V2", "resnet_v2", "m.h5", marks=pytest.mark.slow),
        ("resnet50_v2", "ResNet50V2", "resnet_v2", "m.weights.h5"),
    ],
)
def test_keras_applications_with_its_preprocessing(name, theirs, module, ending, tmp_path):
    """Our `preprocess` and network give the same logits as those of keras.applications."""
    other = randomize(
        getattr(keras.applications, theirs)(
            weights=None, classes=4, classifier_activation=None, input_shape=(64, 64, 3)
        )
    )
    path = tmp_path / ending
    other.save_weights(path) if ending == "m.weights.h5" else other.save(path)
    model = build_model(name, weights=path, classes=4, classifier_activation=None, input_shape=(64, 64, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("float32")
    expected = other(getattr(keras.applications, module).preprocess_input(pixels.copy()))
    if hasattr(model, "preprocess"):
        prepared = model.preprocess(pixels, crop=False)
    else:
        # A pre-activation network's file in the new layout is ambiguous.
        assert (name, ending) == ("resnet50_v2", "m.weights.h5")
        prepared = preprocess_input(pixels, "keras_applications", "resnet50_v2", crop=False)
    assert relative_difference(model(prepared), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "version"), [(50, ""), (101, "V2")])
def test_networks_of_keras_applications_on_photos(depth, version, tmp_path):
    """At full size, with random statistics, in the format of the published files."""
    theirs = randomize(getattr(keras.applications, f"ResNet{depth}{version}")(weights=None))
    for (
        layer
    ) in theirs.layers:  # with random statistics in all blocks the output would hardly depend on the photo
        last = layer.name.endswith("_3_bn" if not version else "_preact_bn")
        if last:
            layer.gamma.assign(0.3 * layer.gamma)
    theirs.layers[-1].activation = keras.activations.linear
    theirs.save(tmp_path / "theirs.h5")
    name = f"resnet{depth}" + ("_v2" if version else "")
    model = build_model(name, weights=tmp_path / "theirs.h5", classifier_activation=None)
    photos = load_sample_images().images
    module = keras.applications.resnet_v2 if version else keras.applications.resnet
    views = [np.asarray(Image.fromarray(photo).resize((224, 224)), "float32") for photo in photos]
    expected = theirs(module.preprocess_input(np.stack(views)))
    got = model(model.preprocess(np.stack(views), crop=False))
    assert relative_difference(got, expected) < 1e-4


def test_preprocess_input(downloaded, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype("uint8")
    entry = get_entry("torchvision_v2", "resnet50_v1_5")
    for weights, model in [(entry, None), ("torchvision_v2", None), ("imagenet", "resnet50_v1_5")]:
        np.testing.assert_array_equal(preprocess_input(photo, weights, model), entry.preprocessing(photo))
    batch = np.stack([photo, photo]).astype("float32")
    expected = keras.applications.resnet.preprocess_input(batch.copy())[..., ::-1]
    got = preprocess_input(batch, "imagenet", model="resnet50", crop=False)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    spec = ModelSpec.default("resnet18", overrides=SMALL)
    own = save_weights(spec.build(), tmp_path / "m.weights.h5", spec)
    np.testing.assert_array_equal(preprocess_input(photo, own), spec.preprocessing(photo))
    with pytest.raises(InputError, match="use the model's `preprocess`"):
        preprocess_input(photo, downloaded)


@pytest.mark.parametrize(
    ("weights", "model", "told"),
    [
        ("imagenet", None, "differ; pass model="),
        ("torchvision_v2", None, None),
        ("torchvision_v1", None, "differ; pass model="),
        ("torchvision_v3", None, "did you mean torchvision_v2, torchvision_v1"),
        ("torchvision_v1", "resnet50", "they are for resnet50_v1_5"),
        ("m.safetensors", None, "does not exist"),
        ("m.weights.h5", None, "does not exist"),
    ],
)
def test_preprocessing_by_name(weights, model, told):
    photo = np.zeros((300, 400, 3), "uint8")
    if told is None:
        assert preprocess_input(photo, weights, model).shape == (224, 224, 3)
        return
    with pytest.raises(InputError) as refusal:
        preprocess_input(photo, weights, model)
    assert told in str(refusal.value)


def test_spec(fetched, downloaded, tmp_path):
    published = open_weights("imagenet", "resnet18").spec
    entry = get_entry("imagenet", "resnet18")
    assert published.preprocessing == entry.preprocessing
    assert (published.classes, published.labels[207]) == (1000, "golden retriever")
    file = open_weights(downloaded, "resnet18").spec
    assert (file.classes, file.labels) == (1000, ())
    preprocessing = dataclasses.replace(ModelSpec.default("resnet18").preprocessing, resize=300)
    spec = ModelSpec("resnet18", SMALL, 5, (224, 224, 3), preprocessing)
    own = save_weights(spec.build(), tmp_path / "m.weights.h5", spec)
    assert open_weights(own, "resnet18").spec == spec


# The command


def test_convert_a_published_entry(fetched, tmp_path):
    output = tmp_path / "m.weights.h5"
    convert("torchvision_v1", "resnet18", str(output))
    assert read_spec(output) == open_weights("torchvision_v1", "resnet18").spec
    assert len(read_spec(output).labels) == 1000


def test_list_from_the_command_line():
    command = [sys.executable, "-m", "keras_resnet.weights", "list"]
    done = subprocess.run([*command, "resnet18"], text=True, capture_output=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + len(keras_resnet.list_weights("resnet18"))
    assert "torchvision_v1 (imagenet)" in lines[2]
    assert "69.76" in lines[2]
    assert "256, 224" in lines[2]


@pytest.mark.slow
def test_compare_with_keras_applications(tmp_path, capsys, monkeypatch):
    """The difference is a wrong order of the channels."""
    theirs = randomize(keras.applications.ResNet50(weights=None, classes=7))
    theirs.save_weights(tmp_path / "m.weights.h5")
    assert run(COMMAND, "compare", str(tmp_path / "m.weights.h5"), "--model=resnet50") == 0
    told = capsys.readouterr().out
    assert f"keras.applications {keras.__version__} differ by at most" in told
    assert told.endswith(": equal\n")

    theirs = compare._on_keras_applications
    monkeypatch.setattr(
        compare,
        "_on_keras_applications",
        lambda *arguments: theirs(*arguments[:-1], arguments[-1][..., ::-1]),
    )
    assert run(COMMAND, "compare", str(tmp_path / "m.weights.h5"), "--model=resnet50") == 1
    assert "NOT EQUAL" in capsys.readouterr().out


def test_compare_without_the_framework(downloaded, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(COMMAND, "compare", str(downloaded), "--model=resnet18") == 2
    assert "install torch, and torchvision or timm" in capsys.readouterr().err


# Files are opened once and closed


@pytest.fixture
def opened(monkeypatch):
    """Records the names of all files that are opened."""
    names = []

    def counting(function):
        def wrapper(path, *arguments, **options):
            names.append(Path(path).name)
            return function(path, *arguments, **options)

        return wrapper

    class File(h5py.File):
        def __init__(self, path, *arguments, **options):
            if not isinstance(path, io.BytesIO):
                names.append(Path(path).name)
            super().__init__(path, *arguments, **options)

    monkeypatch.setattr(h5py, "File", File)
    monkeypatch.setattr(hdf5, "Structures", counting(hdf5.Structures))
    monkeypatch.setattr(torch_files, "read_torch_file", counting(torch_files.read_torch_file))
    return names


def test_a_native_file_is_opened_once(opened, tmp_path):
    spec = ModelSpec.default("resnet18", 5, SMALL)
    path = save_weights(spec.build(), tmp_path / "m.weights.h5", spec)
    opened.clear()
    model = keras_resnet.ResNet18(weights=path, **SMALL)
    assert model.output_shape == (None, 5)
    assert model.preprocess == spec.preprocessing
    assert opened == ["m.weights.h5"] * 2  # the check of the structures, and the opening
    opened.clear()
    assert np.shape(load_evaluated_model(str(path)).network()(images(1, 224, 224, 3))) == (1, 5)
    assert opened == ["m.weights.h5"] * 2
    opened.clear()
    with open_weights(path) as file:
        again = file.build()
        assert again.preprocess == spec.preprocessing
        file.load(again)  # the first load closed it
    assert opened == ["m.weights.h5"] * 4
    path.unlink()
    with pytest.raises(InputError, match="does not exist"):
        file.load(again)


def test_a_converted_file_is_read_once(opened, downloaded, tmp_path):
    model = keras_resnet.ResNet18(weights=downloaded, input_shape=(64, 64, 3))
    assert model.output_shape == (None, 1000)
    assert opened == [downloaded.name]
    theirs = keras.applications.ResNet50(weights=None, classes=3, input_shape=(64, 64, 3))
    theirs.save_weights(tmp_path / "m.weights.h5")
    opened.clear()
    assert keras_resnet.ResNet50(weights=tmp_path / "m.weights.h5").output_shape == (None, 3)
    assert opened == ["m.weights.h5"] * 2


def test_the_file_is_closed_when_the_networks_arguments_are_refused(monkeypatch, tmp_path):
    spec = ModelSpec.default("resnet18", 5, SMALL)
    path = save_weights(spec.build(), tmp_path / "m.weights.h5", spec)
    files = []

    class File(h5py.File):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            files.append(self)

    monkeypatch.setattr(h5py, "File", File)
    with pytest.raises(InputError, match="at least 32x32 pixels"):
        keras_resnet.ResNet18(weights=path, input_shape=(31, 31, 3), **SMALL)
    assert [bool(file) for file in files] == [False]  # an open file is true


def test_a_file_that_does_not_name_its_network(downloaded):
    with (
        open_weights(downloaded) as file,
        pytest.raises(InputError, match="does not say which network it is for"),
    ):
        file.spec.build()
    with pytest.raises(InputError, match="'imagenet' exist for several networks"):
        open_weights("imagenet")
