"""Converted weights: our networks compute the outputs of their original frameworks."""

import copy
import os
import pickle
import sys
import types
import zipfile

import h5py
import keras
import numpy as np
import pytest
from helpers.commands import run
from helpers.torch_files import state_dict, torch_forward, write_old_layout
from helpers.zoo_networks import images, load_network, randomize, relative_difference
from keras.src.applications.resnet import ResNet, stack_residual_blocks_v1
from safetensors.numpy import save_file

from keras_resnet import InputError, build_model, build_resnet
from keras_resnet.commands.weights import convert_weights as convert
from keras_resnet.images.preprocessing import Normalization
from keras_resnet.models.config import get_config
from keras_resnet.weights import ModelSpec, conversion, open_weights, read_spec, save_weights
from keras_resnet.weights.__main__ import COMMAND
from keras_resnet.weights.keras_applications import applications_names
from keras_resnet.weights.torch_files import torch_names

CLASSES = 7
# Small networks: without a projection in the first stage (18), with one in every stage (50).
SMALL = {
    "resnet18": {"stage_depths": (2, 1), "stage_filters": (64, 20), "classes": CLASSES},
    "resnet50_v1_5": {"stage_depths": (2, 2), "stage_filters": (24, 20), "classes": CLASSES},
}
BLOCK_CONVOLUTIONS = {"basic": 2, "bottleneck": 3}


def small(name):
    config = get_config(name, **SMALL[name])
    model = build_resnet(config, input_shape=(None, None, 3), classifier_activation=None, name=name)
    return model, config


def small_state_dict(name):
    config = get_config(name, **SMALL[name])
    return state_dict(config.block, config.stage_depths, config.stage_filters, CLASSES)


@pytest.fixture(scope="module")
def networks():
    """Small networks that all tests share: each loads weights, or leaves the network unchanged."""
    return {name: small(name) for name in SMALL}


def refusal(model, path, config):
    """Returns the error message for a file; the model must be unchanged."""
    before = model.get_weights()
    with pytest.raises(InputError) as error:
        open_weights(path, config).load(model)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


# torchvision and timm


@pytest.mark.parametrize("size", [(32, 32), (33, 39)], ids=["even", "odd"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", SMALL)
def test_torch_state_dict(name, prefix, size, networks, tmp_path):
    model, config = networks[name]
    tensors = small_state_dict(name)
    path = tmp_path / "m.safetensors"
    save_file({prefix + key: value for key, value in tensors.items()}, path)
    open_weights(path, config).load(model)
    batch = images(2, *size, 3)
    assert relative_difference(model(batch), torch_forward(tensors, batch)) < 1e-5


def test_half_precision_file(networks, tmp_path):
    model, config = networks["resnet18"]
    tensors = small_state_dict("resnet18")
    halves = {n: v.astype("float16") if v.dtype == "float32" else v for n, v in tensors.items()}
    save_file(halves, tmp_path / "m.safetensors")
    open_weights(tmp_path / "m.safetensors", config).load(model)
    batch = images(2, 32, 32, 3)
    assert relative_difference(model(batch), torch_forward(halves, batch)) < 1e-4


def test_without_counters(networks, tmp_path):
    """Old files lack `num_batches_tracked`."""
    model, config = networks["resnet18"]
    tensors = {n: v for n, v in small_state_dict("resnet18").items() if "num_batches" not in n}
    save_file(tensors, tmp_path / "m.safetensors")
    open_weights(tmp_path / "m.safetensors", config).load(model)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50_v1_5", "resnet101_v1_5"])
def test_torch_names_of_the_real_networks(name):
    config = get_config(name)
    names = [source.names for source in torch_names(config).values()]
    filters = tuple(1 for _ in config.stage_filters)  # the names do not depend on it
    expected = state_dict(config.block, config.stage_depths, filters, 1)
    # With one filter per stage, the first stage has a projection, which those of basic blocks lack.
    assert {n for (n,) in names} == {
        n
        for n in expected
        if "num_batches" not in n and not (config.block == "basic" and n.startswith("layer1.0.downsample"))
    }
    assert len(names) == len(set(names))


def changed(change):
    tensors = small_state_dict("resnet18")
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("layer1.1.bn2.running_var"), "missing: layer1.1.bn2.running_var"),
        (lambda t: t.update({"layer5.weight": np.ones(3, "f4")}), "left over: layer5.weight"),
        (lambda t: t.update({"a\nb\x1b": np.ones(3, "f4")}), r"left over: a\nb\x1b"),
        (
            lambda t: t.update({"layer1.0.conv1.weight": np.ones((64, 64, 1, 1), "f4")}),
            "misshapen: layer1.0.conv1.weight is 64x64x1x1, not 64x64x3x3",
        ),
        (lambda t: t.update({"fc.bias": np.ones(CLASSES, "int32")}), "misshapen: fc.bias is of type int32"),
        (lambda t: t.update({"bn1.bias": np.ones((64, 1), "f4")}), "bn1.bias is 64x1, not 64"),
        (
            lambda t: t.update({f"x{n}": np.ones(1, "f4") for n in range(9)}),
            "left over: x0, x1, x2 and 6 more",
        ),
        (
            lambda t: t.update({"fc.weight": np.ones((9, 20), "f4"), "fc.bias": np.ones(9, "f4")}),
            "fc.weight is 9x20, not 7x20, fc.bias is 9, not 7 (the file has 9 classes, the network 7)",
        ),
    ],
)
def test_problems_are_listed(change, told, networks, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(changed(change), path)
    model, config = networks["resnet18"]
    sentence = refusal(model, path, config)
    assert sentence.startswith(f"{path} does not fit resnet18: ")
    assert told in sentence


def test_all_problems_at_once(networks, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"fc.bias": np.ones(9, "f4"), "head.bias": np.ones(2, "f4")}, path)
    model, config = networks["resnet18"]
    sentence = refusal(model, path, config)
    for told in ("missing: conv1.weight, ", "left over: head.bias", "misshapen: fc.bias", "9 classes"):
        assert told in sentence


def test_networks_that_torchvision_and_timm_lack(networks, tmp_path):
    """Their tensors would fit, but the outputs would be wrong."""
    path = tmp_path / "m.safetensors"
    save_file(small_state_dict("resnet50_v1_5"), path)
    model, config = networks["resnet50_v1_5"]
    assert "_v1_5" in refusal(model, path, config.replace(bottleneck_stride="1x1"))
    save_file(small_state_dict("resnet18"), path)
    model, config = networks["resnet18"]
    assert "shortcut is None here" in refusal(model, path, config.replace(shortcut=None))


@pytest.mark.parametrize("suffix", [".safetensors", ".h5", ".pth", ".bin", ""])
def test_no_file(suffix, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_weights(tmp_path / f"none{suffix}").tensors()
    with pytest.raises(InputError, match="is a folder"):
        open_weights(tmp_path).tensors()


@pytest.mark.parametrize("length", [0, 4, 8, 100, 5000, -1])
def test_truncated_safetensors(length, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(small_state_dict("resnet18"), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match="truncated or damaged") as error:
        open_weights(path).tensors()
    assert "\n" not in str(error.value)


def test_missing_packages(monkeypatch, tmp_path):
    for suffix, told in [(".safetensors", "pip install safetensors"), (".pth", "convert the file to .safet")]:
        path = tmp_path / f"m{suffix}"
        path.write_bytes(pickle.dumps({"fc.bias": [1.0]}))
        monkeypatch.setitem(sys.modules, "safetensors", None)
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(InputError, match=told):
            open_weights(path).tensors()


class FakeTensor:
    """The parts of a torch tensor that are used."""

    def __init__(self, values, dtype="float32"):
        self.values, self.dtype, self.shape = values, dtype, values.shape

    def float(self):
        return FakeTensor(self.values)

    def detach(self):
        return self

    def numpy(self):
        if self.dtype == "bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values


def fake_torch(monkeypatch, content, version="2.13.0+cpu"):
    """Replaces torch; returns a list that will hold the loaded files."""
    loaded = []

    def load(path, *, map_location, weights_only):
        loaded.append(path)
        assert map_location == "cpu"
        assert weights_only is True
        if isinstance(content, Exception):
            raise content
        return content

    torch = types.SimpleNamespace(load=load, Tensor=FakeTensor, bfloat16="bfloat16", __version__=version)
    monkeypatch.setitem(sys.modules, "torch", torch)
    return loaded


def large_file(path):
    """A file that has space for the tensors of a fake torch, and takes none on the disk."""
    path.touch()
    os.truncate(path, 2**26)
    return path


@pytest.mark.parametrize(
    "wrap", [dict, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"model": t, "args": None}]
)
def test_pth(wrap, monkeypatch, networks, tmp_path):
    """torch is replaced; the test is that unpickling is disabled, and how the result is used."""
    tensors = small_state_dict("resnet18")
    wrapped = {f"module.{name}": FakeTensor(value) for name, value in tensors.items()}
    wrapped["module.fc.bias"].dtype = "bfloat16"
    fake_torch(monkeypatch, wrap(wrapped))
    path = large_file(tmp_path / "m.pth")
    model, config = networks["resnet18"]
    open_weights(path, config).load(model)
    batch = images(1, 32, 32, 3)
    assert relative_difference(model(batch), torch_forward(tensors, batch)) < 1e-5


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (pickle.UnpicklingError("Weights only load failed.\n\nlong text"), "Weights only load failed"),
        (EOFError(), r"damaged, or holds more than tensors \(EOFError\)"),
        (RuntimeError("Failed. Set weights_only=False if you trust it"), r"\(Failed\)$"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "other than a weight at epoch"),
        ({3: FakeTensor(np.ones(1))}, "other than a weight at 3"),
        ({"a": FakeTensor(np.ones(1)), "module.a": FakeTensor(np.ones(1))}, "twice"),
        ({"a": types.SimpleNamespace(shape=(1,))}, "other than a weight at a"),
    ],
)
def test_pth_of_something_else(content, told, monkeypatch, tmp_path):
    fake_torch(monkeypatch, content)
    path = large_file(tmp_path / "m.pt")
    with pytest.raises(InputError, match=told) as error:
        open_weights(path).tensors()
    assert "\n" not in str(error.value)


def test_a_pth_is_read_once(monkeypatch, tmp_path):
    """For its classes, preprocessing and tensors."""
    tensors = small_state_dict("resnet18")
    loaded = fake_torch(monkeypatch, {name: FakeTensor(value) for name, value in tensors.items()})
    path = large_file(tmp_path / "m.pth")
    stages = {key: value for key, value in SMALL["resnet18"].items() if key != "classes"}
    model = build_model("resnet18", weights=path, **stages)
    assert model.output_shape == (None, CLASSES)
    assert model.preprocess.normalization == Normalization.imagenet()
    assert loaded == [path]


def test_torch_with_an_unsafe_reader(monkeypatch, tmp_path):
    fake_torch(monkeypatch, {}, version="2.5.1")
    (tmp_path / "m.pt").touch()
    with pytest.raises(InputError, match=r"needs torch 2\.6"):
        open_weights(tmp_path / "m.pt").tensors()


def test_sizes_are_bounded(monkeypatch, tmp_path):
    huge = FakeTensor(np.broadcast_to(np.float32(0), (2**16, 2**16)))
    fake_torch(monkeypatch, {"a": huge})
    (tmp_path / "m.pt").touch()
    with pytest.raises(InputError, match="too large"):
        open_weights(tmp_path / "m.pt").tensors()
    with h5py.File(tmp_path / "m.h5", "w") as file:
        group = file.create_group("conv1_conv")
        group.attrs["weight_names"] = [b"kernel:0"]
        group.create_dataset("kernel:0", (2**16, 2**16), "f4", chunks=(64, 64))  # takes a few bytes
    with pytest.raises(InputError, match="too large"):
        open_weights(tmp_path / "m.h5").tensors()
    monkeypatch.setattr(conversion, "MAX_ELEMENTS", 100)
    save_file({"a": np.ones(99, "f4"), "b": np.ones(2, "f4")}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="too large"):
        open_weights(tmp_path / "m.safetensors").tensors()


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", ["builtins bytearray", "torch Tensor", "torch.cuda FloatTensor"])
def test_pickles_that_allocate_memory_are_refused(name, is_zip, monkeypatch, tmp_path):
    """torch's safe reader calls `bytearray(10**10)`."""
    loaded = fake_torch(monkeypatch, {})
    path = tmp_path / "m.pth"
    bomb = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n\x8a\x05" + (10**10).to_bytes(5, "little")
    bomb += b"\x85R."
    path.write_bytes(pickle.dumps(1, 2) + bomb)
    if is_zip:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("m/data.pkl", bomb)
    with pytest.raises(InputError, match=f"it calls {name}"):
        open_weights(path).tensors()
    assert loaded == []


@pytest.mark.parametrize("kind", ["compressed", "overlapping", "plain"])
def test_zip_files_are_checked_before_torch_reads_them(kind, monkeypatch, tmp_path):
    """torch would inflate a file of 1 MB to 1 GB."""
    loaded = fake_torch(monkeypatch, {"a": FakeTensor(np.ones(3, "f4"))})
    path = tmp_path / "m.pth"
    method = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("m/data.pkl", bytes(2000))
        file.writestr("m/data/0", bytes(1000))
        if kind == "overlapping":
            file.filelist += [copy.copy(file.filelist[0]) for _ in range(3)]
            for number, entry in enumerate(file.filelist):
                entry.filename = str(number)
    if kind == "plain":
        assert list(open_weights(path).tensors()) == ["a"]
        with zipfile.ZipFile(loaded[0]) as file:
            assert {name: len(file.read(name)) for name in file.namelist()} == {
                "m/data.pkl": 2000,
                "m/data/0": 1000,
            }
        return
    with pytest.raises(InputError, match=kind.removesuffix("ping")):
        open_weights(path).tensors()
    assert loaded == []


# keras.applications


@pytest.fixture(scope="module")
def theirs():
    """A small ResNet, made of what ResNet50 is made of; the full network is compared in test_weight_file."""

    def stages(x):
        for stage, (filters, blocks) in enumerate(((24, 2), (20, 2)), start=2):
            x = stack_residual_blocks_v1(x, filters, blocks, stride1=min(2, stage - 1), name=f"conv{stage}")
        return x

    model = ResNet(
        stages,
        preact=False,
        use_bias=True,
        weights=None,
        input_shape=(64, 64, 3),
        classes=CLASSES,
        classifier_activation=None,
    )
    return randomize(model, 4)


@pytest.fixture(scope="module")
def ours():
    config = get_config("resnet50", **SMALL["resnet50_v1_5"])
    model = build_resnet(config, input_shape=(64, 64, 3), classifier_activation=None, name="resnet50")
    return model, config


@pytest.fixture(scope="module")
def their_file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("theirs") / "resnet50.h5"
    write_old_layout(theirs, path)
    return path


LAYOUTS = {
    "old": write_old_layout,
    "old with probs": lambda model, path: write_old_layout(model, path, top="probs"),
    "old with fc1000, whole model": lambda m, path: write_old_layout(m, path, "fc1000", "model_weights"),
    "old with long attributes": lambda model, path: write_old_layout(model, path, chunked=True),
    "new": lambda model, path: model.save_weights(path),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keras_applications(layout, theirs, ours, tmp_path):
    path = tmp_path / "resnet50.weights.h5"
    LAYOUTS[layout](theirs, path)
    model, config = ours
    model.set_weights([np.zeros(w.shape, "f4") for w in model.weights])
    open_weights(path, config).load(model)
    batch = 50 * images(2, 64, 64, 3)
    # Our networks take RGB, those of keras.applications BGR.
    assert relative_difference(model(batch), theirs(batch[..., ::-1])) < 1e-4


def test_epsilon_is_folded(theirs, ours, their_file):
    """The difference matters where a variance is small, as in dead channels."""
    file = open_weights(their_file)
    assert file.kind == "applications"
    tensors = file.tensors()
    tensors["conv1_bn/moving_variance"] = np.full(64, 1e-6, "f4")
    model, config = ours
    conversion.assign_tensors(model, applications_names(config), dict(tensors), "memory")
    variance = model.get_layer("conv1_bn").moving_variance.numpy().astype("float64")
    np.testing.assert_allclose(variance + 1e-5, 1e-6 + 1.001e-5, rtol=1e-7)
    mean = tensors["conv1_bn/moving_mean"] - tensors["conv1_conv/bias"]
    np.testing.assert_allclose(model.get_layer("conv1_bn").moving_mean.numpy(), mean, rtol=1e-6)


def edited(their_file, tmp_path, edit):
    path = tmp_path / "edited.h5"
    path.write_bytes(their_file.read_bytes())
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def elsewhere(their_file, link):
    """Returns an edit that replaces a kernel by a link."""

    def edit(file):
        del file["conv1_conv/conv1_conv/kernel:0"]
        file["conv1_conv/conv1_conv/kernel:0"] = link

    return edit


def linked_group(their_file):
    def edit(file):
        del file["conv1_conv/conv1_conv"]
        file["conv1_conv/conv1_conv"] = h5py.ExternalLink(their_file, "conv1_conv/conv1_conv")

    return edit


def virtual(their_file):
    def edit(file):
        del file["conv1_conv/conv1_conv/kernel:0"]
        layout = h5py.VirtualLayout((7, 7, 3, 64), "f4")
        layout[...] = h5py.VirtualSource(their_file, "conv1_conv/conv1_conv/kernel:0", (7, 7, 3, 64))
        file.create_virtual_dataset("conv1_conv/conv1_conv/kernel:0", layout)

    return edit


def no_biases(their_file):
    def edit(file):
        file["conv1_conv"].attrs["weight_names"] = [b"conv1_conv/kernel:0"]

    return edit


def twice(their_file):
    def edit(file):
        file["conv1_conv"].attrs["weight_names"] = [b"conv1_conv/kernel:0"] * 2

    return edit


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda f: elsewhere(f, h5py.ExternalLink(f, "conv1_conv/conv1_conv/kernel:0")), "not followed"),
        (lambda f: elsewhere(f, h5py.SoftLink("/conv2_block1_1_conv")), "not followed"),
        (linked_group, "not followed"),
        (virtual, "it has virtual datasets"),
        (no_biases, "missing: conv1_conv/bias"),
        (twice, "conv1_conv/kernel twice"),
    ],
    ids=["external", "soft", "group", "virtual", "no biases", "twice"],
)
def test_invalid_files(make, told, their_file, ours, tmp_path):
    path = edited(their_file, tmp_path, make(their_file))
    assert told in refusal(ours[0], path, ours[1])


def test_damaged_h5(their_file, ours, tmp_path):
    path = tmp_path / "damaged.h5"
    for content in (b"", b"no HDF5", their_file.read_bytes()[:5000], their_file.read_bytes()[:-1000]):
        path.write_bytes(content)
        assert str(path) in refusal(ours[0], path, ours[1])
    with h5py.File(path, "w") as file:
        file["temperatures"] = np.arange(3)
    assert "no weights of a Keras model" in refusal(ours[0], path, ours[1])


def test_networks_that_keras_applications_lacks(ours, their_file):
    model, config = ours
    told = refusal(model, their_file, config.replace(bottleneck_stride="3x3"))
    assert "bottleneck_stride is '1x1' there, '3x3' here" in told
    assert "block is 'bottleneck' there" in refusal(model, their_file, get_config("resnet18"))


def test_compressed_data_are_refused(their_file, ours, tmp_path):
    """A file of some kilobytes must not allocate gigabytes."""
    path = edited(their_file, tmp_path, lambda file: None)
    with h5py.File(path, "r+") as file:
        del file["conv1_conv/conv1_conv/kernel:0"]
        file.create_dataset("conv1_conv/conv1_conv/kernel:0", (7, 7, 3, 64), "f4", compression="gzip")
    model, config = ours
    assert "is chunked, compressed or was never written" in refusal(model, path, config)


def test_native_files_are_not_converted(tmp_path):
    overrides = {"stage_depths": (1, 1), "stage_filters": (8, 8)}
    spec = ModelSpec.default("resnet50_v2", 5, overrides, (64, 64, 3))
    path = save_weights(spec.build(), tmp_path / "ours.weights.h5", spec)
    with pytest.raises(InputError, match="is a native file already"):
        convert(str(path), "resnet50_v2", str(tmp_path / "again.weights.h5"))


def test_files_without_description_and_batch_norm_are_native(tmp_path):
    config = get_config("resnet50", **SMALL["resnet50_v1_5"], batch_norm=False)
    model = build_resnet(config, input_shape=(64, 64, 3), classifier_activation=None)
    model.save_weights(tmp_path / "m.weights.h5")
    assert open_weights(tmp_path / "m.weights.h5", config).kind == "native"
    assert open_weights(tmp_path / "m.weights.h5", "resnet50").kind == "applications"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "old", "new"])
def test_any_damage_is_refused_or_read(kind, tmp_path):
    """The result is an `InputError` or other values, never another exception."""
    path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.weights.h5")
    if kind == "safetensors":
        save_file({f"{n}.weight": np.ones((n, 2), "f4") for n in range(9)}, path)
    else:
        conv, bn = keras.layers.Conv2D(2, 1, name="conv"), keras.layers.BatchNormalization(name="bn")
        layers = [keras.layers.Input((8, 8, 3)), conv, bn]
        LAYOUTS[kind](keras.Sequential(layers), path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    sentences = []
    for _ in range(1000):
        damaged = bytearray(whole)
        for position in random.integers(0, len(whole), random.integers(1, 4)):
            damaged[position] = random.choice([0, 255, random.integers(256)])
        path.write_bytes(damaged)
        try:
            open_weights(path).tensors()
        except InputError as error:
            sentences.append(str(error))
    assert len(sentences) > 50
    assert [sentence for sentence in sentences if "\n" in sentence] == []


# The command


def test_convert_from_the_command_line(tmp_path, capsys):
    config = get_config("resnet18")
    tensors = state_dict("basic", config.stage_depths, config.stage_filters, CLASSES)
    source, output = tmp_path / "m.safetensors", tmp_path / "folder" / "m.weights.h5"
    save_file(tensors, source)
    assert run(COMMAND, "convert", str(source), "--model=resnet18", f"--output={output}") == 0
    assert capsys.readouterr().out == f"{output}: resnet18, 7 classes\n"
    assert read_spec(output) == ModelSpec.default("resnet18", CLASSES)
    model = build_model(
        "resnet18", weights=output, classes=CLASSES, input_shape=(48, 48, 3), classifier_activation=None
    )
    batch = images(2, 48, 48, 3)
    assert relative_difference(model(batch), torch_forward(tensors, batch)) < 1e-5


@pytest.mark.slow
def test_converted_networks_take_rgb(tmp_path):
    """With the spec's normalization, outputs are those of keras.applications with its preprocessing."""
    source, output = tmp_path / "theirs.weights.h5", tmp_path / "m.weights.h5"
    theirs = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classifier_activation=None)
    randomize(theirs).save_weights(source)
    convert(str(source), "resnet50", str(output))
    spec = read_spec(output)
    model = load_network(output, input_shape=(64, 64, 3))
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    expected = theirs(keras.applications.resnet.preprocess_input(pixels.copy()))
    assert relative_difference(model(spec.normalization(pixels)), expected) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required: command"),
        (["convert"], "required: source, --output"),
        (["convert", "{}", "--output=m.weights.h5"], "does not name its network; pass --model=NAME"),
        (["convert", "{}", "--model=resnet51", "--output=m.weights.h5"], "did you mean"),
        (["convert", "{}", "--model=resnet18", "--output=m.h5"], "must end with .weights.h5"),
        (["convert", "none.pth", "--model=resnet18", "--output=m.weights.h5"], "does not exist"),
        (["convert", "{}", "--model=plain18", "--output=m.weights.h5"], "shortcut is None"),
        (["convert", "{}", "--model=cifar_resnet20", "--output=m.weights.h5"], "shortcut is 'A'"),
        (["convert", "{}", "--model=resnet18", "--output=m.weights.h5"], "missing: "),
    ],
)
def test_mistakes_are_one_line(arguments, told, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "m.safetensors"
    save_file(small_state_dict("resnet18"), source)
    assert run(COMMAND, *(argument.format(source) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error
    assert list(tmp_path.iterdir()) == [source]
