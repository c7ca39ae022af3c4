"""Weights in the formats of other libraries: what is written, what comes in again, and what is refused."""

import dataclasses
import functools
import json
import math
import os
import shutil
import sys

import keras
import numpy as np
import pytest
from helpers.commands import run
from helpers.torch_files import state_dict
from helpers.zoo_networks import images, randomize, relative_difference, small_config
from keras.src.applications.resnet import ResNet, stack_residual_blocks_v1
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from keras_resnet import InputError, Normalization, Preprocessing, build_model, build_resnet, get_entry
from keras_resnet.classification import load_evaluated_model
from keras_resnet.models.config import MODELS, ResNetConfig, get_config
from keras_resnet.weights import ModelSpec, huggingface, open_weights, save_weights
from keras_resnet.weights import weight_file as pretrained
from keras_resnet.weights.__main__ import COMMAND
from keras_resnet.weights.conversion import Source, assign_tensors, collect_tensors
from keras_resnet.weights.keras_applications import applications_names
from keras_resnet.weights.registry import MINUS_ONE_TO_ONE
from keras_resnet.weights.torch_files import torch_model
from keras_resnet.weights.writers import check_writable, name_in

LABELS = ("cat", "dög", "x")
# Digits that config.json rounds, and a crop whose share of the image is not a short decimal.
PREPROCESSING = Preprocessing(
    32, 35, "bicubic", Normalization((123.4567890123456, 116.28, 0.1), (58.395, 1 / 3, 57.375))
)
TINY = {
    "tiny": ResNetConfig("basic", (1, 1), (8, 12), "imagenet", "B"),
    "tiny_v1_5": ResNetConfig("bottleneck", (1, 1), (8, 12), "imagenet", "B", "3x3"),
    "tinyd": ResNetConfig("basic", (1, 1), (8, 12), "deep", "D"),
    # In place of the real one.
    "resnet50": get_config("resnet50", stage_depths=(2, 2), stage_filters=(24, 20)),
}


def stages(x):
    x = stack_residual_blocks_v1(x, 24, 2, stride1=1, name="conv2")
    return stack_residual_blocks_v1(x, 20, 2, name="conv3")


@pytest.fixture(autouse=True, scope="module")
def zoo():
    """Adds tiny networks to the zoo, and makes keras.applications' ResNet50 as small as ours."""
    with pytest.MonkeyPatch.context() as patch:
        for name, config in TINY.items():
            patch.setitem(MODELS, name, config)
        patch.setattr(keras.applications, "ResNet50", functools.partial(ResNet, stages, False, True))
        yield


def spec_of(name, **changes):
    return dataclasses.replace(ModelSpec(name, {}, 3, (32, 32, 3), PREPROCESSING, LABELS), **changes)


@pytest.fixture(scope="module")
def native(zoo, tmp_path_factory):
    """The path of a file with random statistics, by the network's name."""
    folder = tmp_path_factory.mktemp("native")

    @functools.cache
    def written(name):
        spec = spec_of(name)
        return save_weights(randomize(spec.build(), 3), folder / f"{name}.weights.h5", spec)

    return written


def convert(source, output, *flags):
    assert run(COMMAND, "convert", source, f"--output={output}", *flags) == 0
    return output


@pytest.fixture(scope="module")
def folder(native, tmp_path_factory):
    """A folder as on the Hugging Face Hub."""
    return convert(native("tiny"), tmp_path_factory.mktemp("hub") / "tiny", "--to=huggingface")


# The tensors


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        (Source(("a",), (2, 3, 1, 0)), (3, 3, 2, 4)),
        (Source(("a",), (0, 1, 2, 3), reversed_axis=2), (3, 3, 2, 4)),
        (Source(("a",), (1, 0)), (4, 3)),
        (Source(("a", "b"), signs=(1, -1)), (5,)),
        (Source(("a",), offset=1e-8), (1000,)),
        (Source(("a",), (1, 0), flattened=(2, 3, 4)), (24, 5)),
    ],
)
def test_sources_are_inverted(source, shape):
    # As variances may be: exact for all that are larger than the offset.
    value = (10 ** np.random.default_rng(0).uniform(-7.9, 3, shape)).astype("float32")
    tensors = source.restore(value)
    assert tuple(tensors) == source.names
    assert all(tensor.flags["C_CONTIGUOUS"] for tensor in tensors.values())
    assert not any(tensor.any() for tensor in list(tensors.values())[1:])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(source.compute(tensors)), value)


def test_preactivation_is_inverted():
    config = small_config("preactivation", "B", "imagenet", "3x3")
    model = randomize(build_resnet(config, input_shape=(32, 32, 3), name="resnet50_v2"), 3)
    before, table = model.get_weights(), applications_names(config)
    tensors = collect_tensors(model, table)
    model.set_weights([np.zeros_like(value) for value in before])
    assign_tensors(model, table, tensors, "memory")
    assert all(map(np.array_equal, before, model.get_weights()))


def test_a_state_dict_comes_out_as_it_went_in(tmp_path):
    tensors = state_dict("bottleneck", (1, 1), (8, 12), 3)
    save_file(tensors, tmp_path / "theirs.safetensors")
    flags = ("--model=tiny_v1_5", "--to=timm")
    again = load_file(convert(tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors", *flags))
    expected = {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}
    assert again.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(again[name], tensor, strict=True)


# Out and in again


@pytest.mark.parametrize(
    ("name", "to", "output"),
    [
        ("tiny_v1_5", "torchvision", "m.safetensors"),
        ("tinyd", "timm", "m.safetensors"),
        ("tinyd", "huggingface", "m.b"),
        ("resnet50", "keras_applications", "m.h5"),
    ],
)
def test_the_same_bytes(name, to, output, native, tmp_path):
    """Weights, labels and preprocessing."""
    there = convert(native(name), tmp_path / output, f"--to={to}")
    again = convert(there, tmp_path / "again.weights.h5")
    assert again.read_bytes() == native(name).read_bytes()


def test_keras_applications_reads_its_file(native, tmp_path, capsys):
    """Its own code loads it strictly, and takes BGR."""
    path = convert(native("resnet50"), tmp_path / "m.h5", "--to=keras_applications")
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{path}: ResNet50 of keras_applications, 3 classes"
    assert told[1].startswith("its images: BGR, shorter side 35, crop 32, bicubic, mean [123.45")
    options = {"classes": 3, "classifier_activation": None, "input_shape": (32, 32, 3)}
    theirs = keras.applications.ResNet50(weights=str(path), **options)
    ours, batch = build_model("resnet50", weights=native("resnet50"), **options), images(2, 32, 32, 3)
    assert relative_difference(theirs(batch[..., ::-1]), ours(batch)) < 1e-5
    file = open_weights(path)
    assert (file.kind, file.described) == ("applications", spec_of("resnet50"))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["", "V2"])
def test_networks_of_keras_applications(version, tmp_path):
    """At full size: out, loaded by its own code, and in again."""
    name = "resnet101" + version.lower().replace("v", "_v")
    spec = ModelSpec.default(name, 4, input_shape=(64, 64, 3))
    ours = randomize(spec.build())
    source = save_weights(ours, tmp_path / "m.weights.h5", spec)
    path = convert(source, tmp_path / "m.h5", "--to=keras_applications")
    build = getattr(keras.applications, f"ResNet101{version}")
    theirs = build(weights=str(path), classes=4, classifier_activation=None, input_shape=(64, 64, 3))
    batch = images(2, 64, 64, 3)
    assert relative_difference(theirs(batch if version else batch[..., ::-1]), ours(batch)) < 1e-5
    assert convert(path, tmp_path / "again.weights.h5").read_bytes() == source.read_bytes()


def test_weights_trained_here_without_labels(tmp_path):
    """With one mean per pixel, as the paper's CIFAR networks, and for gray images."""
    mean = np.random.default_rng(0).uniform(90, 160, (32, 32, 1))
    preprocessing = Preprocessing(32, None, "bilinear", Normalization(mean, (1.0,)))
    spec = spec_of("tiny", input_shape=(32, 32, 1), preprocessing=preprocessing, labels=())
    source = save_weights(spec.build(), tmp_path / "m.weights.h5", spec)
    there = convert(source, tmp_path / "m.safetensors", "--to=timm")
    assert load_file(there)["conv1.weight"].shape == (64, 1, 7, 7)
    assert convert(there, tmp_path / "again.weights.h5").read_bytes() == source.read_bytes()
    with pytest.raises(InputError, match="one per pixel subtracted"):
        check_writable("huggingface", spec, "folder")


def test_files_describe_themselves(native, tmp_path):
    path = convert(native("tinyd"), tmp_path / "m.safetensors", "--to=timm")
    with safe_open(path, "np") as file:
        assert file.metadata()["format"] == "pt"  # for libraries that ask
    model = build_model("tinyd", weights=path, input_shape=(32, 32, 3))
    assert model.preprocess == PREPROCESSING
    with pytest.raises(InputError, match="holds weights of tinyd, another network"):
        build_model("tiny", weights=path)
    assert load_evaluated_model(str(path)).spec == spec_of("tinyd")
    assert run(COMMAND, "convert", path, "--model=tiny", f"--output={tmp_path}/m.weights.h5") == 2
    assert not (tmp_path / "m.weights.h5").exists()


# Folders


# The fields of timm's `PretrainedCfg`, which takes no others (tests/reference has timm itself).
TIMM_FIELDS = {
    *("custom_load", "input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean"),
    *("std", "num_classes", "pool_size", "first_conv", "classifier", "license"),
}


def test_what_is_in_a_folder(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("tiny", 3)
    assert config["label_names"] == list(LABELS)
    given = config["pretrained_cfg"]
    assert given.keys() == TIMM_FIELDS - {"license"}
    assert given["input_size"] == [3, 32, 32]
    assert math.floor(32 / given["crop_pct"]) == 35
    assert (given["mean"][1], given["std"][0]) == (0.456, 0.229)  # of pixels 0-1
    assert (given["interpolation"], given["first_conv"], given["num_classes"]) == ("bicubic", "conv1", 3)


def test_what_kerashub_reads_in_a_folder():
    """Its loader indexes these without defaults (`keras_hub/src/utils/timm`)."""
    spec = ModelSpec.default("resnet18", 3)
    config = huggingface.timm_config(spec)
    assert config["architecture"] in {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}
    given = config["pretrained_cfg"]
    assert (config["num_classes"], len(given["mean"]), len(given["std"])) == (3, 3, 3)
    assert given["interpolation"] in ("bilinear", "nearest", "bicubic")
    assert "ImageClassifier.from_preset" in huggingface.model_card(spec)
    assert "keras_hub" not in huggingface.model_card(ModelSpec.default("resnet18d"))


def front_matter(text):
    """The fields between the lines `---`, in the subset of YAML that the cards use."""
    before, matter, _ = text.split("---\n", 2)
    assert before == ""
    fields, key = {}, ""
    for line in matter.splitlines():
        if line.startswith("- "):
            fields[key].append(line.removeprefix("- "))
            continue
        key, colon, value = line.partition(":")
        assert colon
        fields[key] = value.strip() or []
    return fields


def test_the_model_card(folder):
    text = (folder / "README.md").read_text()
    assert front_matter(text) == {
        "library_name": "timm",
        "license": "unknown",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "keras", "keras_resnet"],
    }
    assert "resize the shorter side of the image to 35 pixels (bicubic)" in text
    assert 'build_model("tiny", weights=folder)' in text
    assert "{" not in text.replace("{folder}", "")  # no field of the template is left


def test_published_weights_keep_their_license(native, monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, "resnet18", TINY["tiny"])
    there = convert(native("tiny"), tmp_path / "m.safetensors", "--to=torchvision")
    published = tmp_path / "published.safetensors"
    save_file(load_file(there), published)  # without our description
    monkeypatch.setattr(pretrained, "fetch", lambda url, digest: published)
    source, entry = "resnet18/torchvision_v1", get_entry("torchvision_v1", "resnet18")
    card = (convert(source, tmp_path / "a", "--to=huggingface") / "README.md").read_text()
    assert front_matter(card)["license"] == "bsd-3-clause"
    assert entry.url in card
    assert "top-1 69.76 %" in card
    flags = ("--to=huggingface", "--license=CC-BY-4.0")
    card = (convert(source, tmp_path / "b", *flags) / "README.md").read_text()
    assert front_matter(card)["license"] == "cc-by-4.0"
    assert (
        json.loads((tmp_path / "b" / "config.json").read_text())["pretrained_cfg"]["license"] == "cc-by-4.0"
    )


def test_networks_from_a_folder(folder, native, monkeypatch):
    monkeypatch.chdir(folder.parent)
    options = {"classifier_activation": None, "input_shape": (32, 32, 3)}
    expected = build_model("tiny", weights=native("tiny"), **options)
    for weights in (folder, str(folder), folder.name):
        model = build_model("tiny", weights=weights, **options)
        assert model.preprocess == PREPROCESSING
        assert all(map(np.array_equal, model.get_weights(), expected.get_weights()))
    assert open_weights(folder).spec == spec_of("tiny")
    assert load_evaluated_model(folder.name).spec == spec_of("tiny")
    assert build_model("tiny", weights=folder, classes=7).output_shape == (None, 7)


@pytest.fixture
def edited(folder, tmp_path):
    """Writes another config.json beside the weights."""
    shutil.copytree(folder, tmp_path / "edited")

    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "edited" / "config.json").write_text(text)
        return tmp_path / "edited"

    return write


def test_an_edited_config_counts(folder, edited):
    """Otherwise the description in the weights does, which has all digits."""
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["license"] = "mit"
    assert open_weights(edited(config)).spec == spec_of("tiny")
    config["label_names"][0] = "tiger"
    spec = open_weights(edited(config)).spec
    assert spec.labels == ("tiger", *LABELS[1:])
    np.testing.assert_allclose(spec.normalization.mean, PREPROCESSING.normalization.mean, atol=1e-8)
    assert spec.normalization != PREPROCESSING.normalization
    assert spec.preprocessing.resize == 35


HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ({"num_classes": 3}, {}),
        ({"architecture": "tiny.a1_in1k", "num_classes": 3}, {}),
        (
            {"num_classes": 3, "labels": list(LABELS), "input_size": [3, 64, 64], **HALF},
            {
                "size": 64,
                "resize": 73,
                "normalization": MINUS_ONE_TO_ONE,
                "labels": LABELS,
            },
        ),
        (
            {"num_classes": 3, "label_names": {"2": "x", "0": "cat", "1": "dög"}, "pretrained_cfg": {}},
            {"labels": LABELS},
        ),
        ({"num_classes": 3, "label_names": ["one", "two"]}, {}),
        (
            {"pretrained_cfg": {"num_classes": 3, "crop_mode": "squash", "crop_pct": 1.0}},
            {"resize": None},
        ),
        ({"num_classes": 3, "model_args": {"in_chans": 1, "drop_rate": 0.1}}, {"channels": 1}),
        ({"num_classes": 3, "global_pool": "max", "model_args": {"global_pool": "avg"}}, {}),
        ({"num_classes": 3, "pretrained_cfg": {"interpolation": "bilinear"}}, {"interpolation": "bilinear"}),
    ],
)
def test_folders_of_others(config, changes, edited):
    """What timm takes for granted is taken for granted here."""
    expected = {"size": 224, "resize": 256, "interpolation": "bicubic", "labels": (), "channels": 3}
    expected |= {"normalization": Normalization.imagenet()} | changes
    labels, channels = expected.pop("labels"), expected.pop("channels")
    path, spec = huggingface.read_folder(edited({"architecture": "tiny", **config}))
    size = expected["size"]
    assert spec == ModelSpec("tiny", {}, 3, (size, size, channels), Preprocessing(**expected), labels)
    assert path.name == "model.safetensors"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is truncated or damaged"),
        ("[" * 100_000, "is truncated or damaged"),
        pytest.param(" " * (2**24 + 1), " is too large: over 16777216 bytes", id="too large"),
        ("[]", "names no architecture, so it is not in timm's format"),
        ({"architectures": ["ResNetForImageClassification"]}, "names no architecture"),
        ({"architecture": "resnet26\n"}, r"timm's resnet26\n is not a network of this package"),
        ({"architecture": "tiny", "num_classes": 0}, "no classifier: num_classes is 0"),
        ({"architecture": "tiny", "num_classes": 2**40}, "unreasonably large"),
        ({"architecture": "tiny", "num_classes": "many"}, "is invalid"),
        ({"architecture": "tiny", "model_args": {"output_stride": 8}}, "model_args output_stride are not"),
        ({"architecture": "tiny", "model_args": [8]}, "is truncated or damaged"),
        ({"architecture": "tiny", "global_pool": "avgmax"}, "networks with global_pool avgmax are not"),
        ({"architecture": "tiny", "crop_mode": "border"}, "crop_mode border with crop_pct 0.875"),
        ({"architecture": "tiny", "crop_pct": -1}, "resize must be None or an integer"),
        ({"architecture": "tiny", "crop_pct": 1e-320}, "is truncated or damaged"),
        ({"architecture": "tiny", "input_size": [3, 32]}, "is truncated or damaged"),
        ({"architecture": "tiny", "interpolation": "lanczos"}, "unknown interpolation 'lanczos'"),
        ({"architecture": "tiny", "mean": [math.nan] * 3}, "must hold finite numbers"),
        ({"architecture": "tiny", "std": [0, 1, 1]}, "must hold positive numbers"),
        ({"architecture": "tiny", "mean": "0.5"}, "is truncated or damaged"),
        ({"architecture": "resnet152_v1_5"}, "is not a network"),
        ({"architecture": "wide_resnet101_2"}, "unreasonably large for the file"),
    ],
)
def test_folders_that_are_refused(content, told, edited):
    path = edited(content)
    with pytest.raises(InputError) as refusal:
        build_model("tiny", weights=path)
    assert str(refusal.value).startswith(str(path / "config.json"))
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_folders_without_one_of_the_files(edited):
    path = edited({"architecture": "tiny", "num_classes": 3})
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert open_weights(path).path.name == "pytorch_model.bin"
    (path / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"no weights: neither model\.safetensors nor pytorch_model\.bin"):
        open_weights(path)
    (path / "config.json").unlink()
    with pytest.raises(InputError, match=r"is a folder, and has no config\.json"):
        open_weights(path)


def test_only_folders_of_ours_are_replaced(native, folder, tmp_path, capsys):
    output = shutil.copytree(folder, tmp_path / "folder")
    (output / "config.json").write_text("{}")
    convert(native("tiny"), output, "--to=huggingface")
    assert (output / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    capsys.readouterr()
    (output / "notes.txt").write_text("mine")
    flags = (f"--output={output}", "--to=huggingface")
    assert run(COMMAND, "convert", native("tiny"), *flags) == 2
    assert "exists and was not written by an export" in capsys.readouterr().err
    (output / "notes.txt").unlink()
    (output / "README.md").write_text("# Another project's card")
    assert run(COMMAND, "convert", native("tiny"), *flags) == 2
    assert (output / "README.md").read_text() == "# Another project's card"
    assert sorted(os.listdir(tmp_path)) == ["folder"]


def test_timm_computes_the_same_shorter_side():
    sides = [(size, size + more) for size in range(32, 400, 7) for more in range(0, 200, 3)]
    for size, resize in sides:
        share = huggingface.crop_share(Preprocessing(size, resize, "bilinear", Normalization.imagenet()))
        assert math.floor(size / share) == resize
    assert huggingface.crop_share(Preprocessing(224, 256, "bilinear", Normalization.imagenet())) == 0.875


# Networks that other libraries do not have


def test_every_network_of_timm_has_one_name_here(tmp_path):
    """All but the paper's bottlenecks, with another stride, the plain, the small and the V2 networks."""
    real = {name: config for name, config in MODELS.items() if name not in TINY and not is_ours_alone(name)}
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(2**31)  # takes no space on the disk
    for name in real:
        spec = ModelSpec.default(name)
        (tmp_path / "config.json").write_text(json.dumps(huggingface.timm_config(spec)))
        _, read = huggingface.read_folder(tmp_path)
        assert read == spec
    names = {torch_model(config) for config in real.values()}
    assert len(names) == len(real)
    for name in MODELS:
        if is_ours_alone(name):
            with pytest.raises(InputError, match="torchvision's and timm's"):
                torch_model(get_config(name))


def is_ours_alone(name):
    is_v1 = name in ("resnet50", "resnet101", "resnet152")
    return is_v1 or "cifar" in name or "plain" in name or "_v2" in name


@pytest.mark.parametrize(
    ("library", "model", "options", "output", "told"),
    [
        ("torchvision", "resnet101", {}, "m.pth", "bottleneck_stride is '1x1'"),
        ("timm", "cifar_resnet20", {}, "m.pth", "shortcut is 'A' here"),
        ("timm", "plain18", {}, "m.pth", "shortcut is None here"),
        ("huggingface", "resnet50_v2", {}, "folder", "block is 'preactivation' here"),
        ("torchvision", "resnet50d", {}, "m.pth", "torchvision has no resnet50d; timm has"),
        ("keras_applications", "resnet50_v1_5", {}, "m.h5", "bottleneck_stride is '1x1' there, '3x3' here"),
        ("keras_applications", "resnet18", {}, "m.h5", "block is 'bottleneck' there, 'basic' here"),
        ("keras_applications", "resnet101", {}, "m.weights.h5", "with .h5 (.weights.h5 is another format)"),
        ("torchvision", "resnet18", {}, "m.h5", "must end with .safetensors or .pth or .pt"),
        ("huggingface", "resnet18", {}, "m.safetensors", "is the name of a new folder"),
        ("huggingface", "resnet18", {}, ".", "is the name of a new folder"),
        ("tim", "resnet18", {}, "m.pth", "unknown library 'tim'; did you mean timm"),
        ("timm", "resnet18", {"overrides": {"stage_depths": (1,) * 4}}, "m.pth", "with these options"),
        ("timm", "resnet18", {"overrides": {"shortcut": "C"}}, "m.pth", "shortcut is 'C'"),
        ("keras_applications", "resnet101", {"overrides": {"batch_norm": False}}, "m.h5", "batch_norm is"),
        ("torchvision", "resnet18", {"input_shape": (64, 64, 1)}, "m.pth", "this one takes 1 channels"),
        ("huggingface", "resnet18", {"input_shape": (64, 96, 3)}, "folder", "takes 64x96 pixels"),
    ],
)
def test_networks_and_outputs_that_are_refused(library, model, options, output, told):
    with pytest.raises(InputError) as refusal:
        check_writable(library, ModelSpec.default(model, **options), output)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_options_of_a_network_of_the_zoo():
    spec = ModelSpec.default("plain18", overrides={"shortcut": "B"})
    assert name_in("torchvision", spec) == "resnet18"


@pytest.mark.parametrize(
    ("name", "flags", "told"),
    [
        ("tiny", ["--to=torch", "--output=m.pth"], "unknown library 'torch'; did you mean torchvision"),
        ("tiny", ["--output=m.pth"], "--output must end with .weights.h5"),
        ("tiny", ["--output=m.weights.h5"], "is a native file already"),
        ("tiny", ["--to=timm", "--output=m.pth", "--model=tinyd"], "holds weights of tiny, another network"),
        ("tiny", ["--to=timm", "--output=m.pth"], "needs PyTorch: install torch, or write a .safetensors"),
        ("tiny", ["--to=timm", "--output=m.pth", "--license=mit"], "--license is for the model card"),
        (
            "tiny",
            ["--to=huggingface", "--output=m", "--license=my own"],
            "a license is an identifier such as",
        ),
    ],
)
def test_mistakes_are_one_line(name, flags, told, native, monkeypatch, tmp_path, capsys):
    source = native(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(COMMAND, "convert", source, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error
    assert list(tmp_path.iterdir()) == []
