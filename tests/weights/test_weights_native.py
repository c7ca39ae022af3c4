"""Native weight files: round trips, refused files, and atomic writing."""

import dataclasses
import functools
import json
import math
import os
import re
import resource
import signal
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from helpers import damage_hdf5
from helpers.damage_hdf5 import with_endless_heap, with_string_length
from helpers.zoo_networks import images, load_network, randomize, zeros_for_weights

from keras_resnet import InputError, build_model, build_resnet
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.models.config import MODELS, get_config
from keras_resnet.weights import ModelSpec, load_weights, open_weights, read_spec, save_weights
from keras_resnet.weights.spec import main_weights

SMALL = {"stage_depths": (1, 1), "stage_filters": (8, 12), "stem": "cifar", "shortcut": "B"}


def small(name="resnet50", classes=5, seed=None, **overrides):
    model = build_model(name, classes=classes, **{"input_shape": (16, 16, 3), **SMALL, **overrides})
    return model if seed is None else randomize(model, seed)


def spec_of(name="resnet50", classes=5, **overrides):
    return ModelSpec.default(name, classes, {**SMALL, **overrides}, (16, 16, 3))


def equal_weights(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network with random statistics, and the bytes of its file."""
    model = small(seed=3)
    path = save_weights(model, tmp_path_factory.mktemp("weights") / "m.weights.h5", spec_of())
    return model, path.read_bytes()


@pytest.fixture
def written(saved, tmp_path):
    """A network and its file, which tests may change."""
    path = tmp_path / "written.weights.h5"
    path.write_bytes(saved[1])
    return saved[0], path


shared = functools.cache(small)  # for refusals, which leave a network unchanged


def refusal(model, path):
    """Returns the error message for `path`; the model must be unchanged."""
    before = model.get_weights()
    with pytest.raises(InputError) as error:
        load_weights(model, path)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def test_round_trip(written):
    model, path = written
    other = small()
    load_weights(other, path)
    assert equal_weights(model, other)
    built = small(weights=path)
    assert equal_weights(model, built)
    batch = images(2, 16, 16, 3)
    np.testing.assert_array_equal(model(batch), built(batch))


def test_path_may_be_a_string_and_its_folder_is_created(tmp_path):
    model = small()
    path = save_weights(model, str(tmp_path / "a" / "b" / "m.weights.h5"))
    assert path == tmp_path / "a" / "b" / "m.weights.h5"
    load_weights(small(), str(path))


def test_keras_reads_ours(written):
    model, path = written
    other = small()
    other.load_weights(path)
    assert equal_weights(model, other)


def test_ours_reads_keras(tmp_path):
    model, path = small(seed=3), tmp_path / "m.weights.h5"
    model.save_weights(path)
    assert read_spec(path) is None
    assert equal_weights(model, small(weights=path))


def test_equal_weights_give_equal_bytes(written, tmp_path):
    _, path = written
    again = save_weights(small(weights=path), tmp_path / "again.weights.h5", spec_of())
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("policy", ["bfloat16", "float16", "mixed_bfloat16"])
def test_other_precisions(policy, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model, other = small(), small()
    finally:
        keras.config.set_dtype_policy(before)
    path = save_weights(model, tmp_path / "m.weights.h5")
    load_weights(other, path)
    assert equal_weights(model, other)


def test_spec_round_trip(tmp_path):
    per_pixel = np.random.default_rng(0).uniform(90, 160, (16, 16, 3)).astype("float32")
    preprocessing = Preprocessing(16, 18, "bicubic", Normalization(per_pixel, (1, 1, 1)))
    labels = ("cat", "dög", "x", "y", "z")
    spec = dataclasses.replace(spec_of(), preprocessing=preprocessing, labels=labels)
    assert ModelSpec.from_json(spec.to_json()).to_json() == spec.to_json()
    again = read_spec(save_weights(small(), tmp_path / "m.weights.h5", spec))
    assert again.normalization == spec.normalization
    np.testing.assert_array_equal(np.asarray(again.normalization.mean, "float32"), per_pixel)
    assert again.labels == spec.labels
    assert again.input_shape == (16, 16, 3)
    assert again.config == spec.config
    assert again == spec


def test_per_pixel_mean_fits_into_a_file(tmp_path):
    """Attributes of HDF5 files are limited to 64 KiB unless they are stored separately."""
    mean = np.random.default_rng(0).normal(size=(64, 64, 3))
    spec = dataclasses.replace(
        spec_of(),
        input_shape=mean.shape,
        preprocessing=Preprocessing(64, None, "bilinear", Normalization(mean, (1, 1, 1))),
    )
    path = save_weights(small(), tmp_path / "m.weights.h5", spec)
    assert read_spec(path) == spec
    small().load_weights(path)


def test_spec_rebuilds_the_network(written):
    model, path = written
    logits = load_network(path)
    assert logits.get_layer("predictions").activation is keras.activations.linear
    assert logits.input_shape == model.input_shape
    assert equal_weights(model, logits)


def test_spec_follows_the_data_format():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        assert spec_of().build().input_shape == (None, 3, 16, 16)
    finally:
        keras.config.set_image_data_format(before)


def test_default_spec():
    spec = ModelSpec.default("cifar_resnet20")
    assert (spec.classes, spec.input_shape, spec.labels) == (10, (32, 32, 3), ())
    assert spec.normalization == Normalization.imagenet()
    with pytest.raises(InputError, match=r"did you mean .*cifar_resnet20"):
        ModelSpec.default("cifar_resnet21")


def change(**fields):
    return json.dumps({**json.loads(spec_of().to_json()), **fields})


BROKEN_SPECS = {
    "no JSON": "resnet50",
    "no object": "[1, 2]",
    "empty": "{}",
    "nested": "[" * 100_000,
    "number": 7,
    "unknown model": change(model="resnet51"),
    "list for a model": change(model=["resnet50"]),
    "unknown option": change(overrides={"depth": 3}),
    "bad option": change(overrides={"shortcut": "D"}),
    "nested options": change(overrides={"shortcut": ["A"]}),
    "no options": change(overrides=3),
    "endless classes": change(classes=float("inf")),
    "no classes": change(classes="many"),
    "negative classes": change(classes=-1),
    "flat shape": change(input_shape=[32, 32]),
    "negative shape": change(input_shape=[-1, 32, 3]),
    "text for a mean": change(normalization={"mean": "abc", "std": [1, 1, 1]}),
    "no mean": change(normalization={"std": [1, 1, 1]}),
    "ragged mean": change(normalization={"mean": [[1, 2], [3]], "std": [1, 1, 1]}),
    "zero deviation": change(normalization={"mean": [0, 0, 0], "std": [1, 0, 1]}),
    "number for labels": change(labels=5),
    "labels for other classes": change(labels=["a", "b"]),
}


@pytest.mark.parametrize("kind", BROKEN_SPECS)
def test_broken_spec_is_refused(kind, written):
    path = written[1]
    with h5py.File(path, "r+") as file:
        file.attrs["keras_resnet"] = BROKEN_SPECS[kind]
    with pytest.raises(InputError) as error:
        load_network(path)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path):
    path = tmp_path / "none.weights.h5"
    assert refusal(shared(), path) == f"weight file {path} does not exist"
    with pytest.raises(InputError, match="does not exist"):
        small(weights=path)


def test_folder(tmp_path):
    assert refusal(shared(), tmp_path) == f"weight file {tmp_path} is a folder"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not weights", b"\x89HDF\r\n\x1a\n", bytes(5000)])
def test_not_hdf5(content, tmp_path):
    path = tmp_path / "m.weights.h5"
    path.write_bytes(content)
    assert str(path) in refusal(shared(), path)


@pytest.mark.parametrize("length", [1, 8, 100, 512, 2048, 0.1, 0.5, 0.9, -1000, -1])
def test_truncated(length, written):
    _, path = written
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length * len(whole)) if isinstance(length, float) else length])
    sentence = refusal(shared(), path)
    assert "truncated" in sentence or "not an HDF5 file" in sentence
    with pytest.raises(InputError):
        read_spec(path)


def test_an_endless_heap_of_strings_is_read(written):
    """With a free object of size 0 the HDF5 library (1.14.6) never returns."""
    _, path = written
    path.write_bytes(with_endless_heap(path.read_bytes()))
    assert read_spec(path) == spec_of()


@pytest.mark.parametrize("length", [2**32 - 1, 10])
def test_the_stated_length_of_a_string_is_checked_before_it_is_read(length, written):
    """The HDF5 library (1.14.6) takes 4 GB and half a minute."""
    _, path = written
    path.write_bytes(with_string_length(path.read_bytes(), len(spec_of().to_json()), length))
    with pytest.raises(InputError, match="a string is not in its heap"):
        read_spec(path)


def test_a_fill_value_of_any_length_is_not_read(written):
    _, path = written
    replace_kernel(path, strings_by_default)
    path.write_bytes(with_string_length(path.read_bytes(), 12_345, 2**32 - 1))
    assert "other than a weight" in refusal(shared(), path)


@pytest.mark.parametrize("make", damage_hdf5.MADE, ids=lambda make: make.__name__)
def test_structures_that_refer_to_themselves_are_refused(make, tmp_path):
    path = tmp_path / "m.weights.h5"
    path.write_bytes(make())
    expected = "heap of names is invalid|a part of itself twice|structures overlap|a group has two names"
    with pytest.raises(InputError, match=expected):
        read_spec(path)


@pytest.mark.parametrize("options", [{"libver": "latest"}, {"userblock_size": 1024}, {"track_order": True}])
def test_other_formats_of_hdf5(options, written, tmp_path):
    _, path = written
    copy = tmp_path / "copy.weights.h5"
    with h5py.File(path) as file, h5py.File(copy, "w", **options) as other:
        other.attrs.update(file.attrs)
        other["weights"] = np.zeros(50_000)  # the description's network must fit
    assert read_spec(copy) == spec_of()
    with h5py.File(copy, "r+") as file:
        file.attrs.update({f"more{index}": "" for index in range(20)})
    if "libver" in options or "track_order" in options:
        with pytest.raises(InputError, match="large groups of a newer format"):
            read_spec(copy)
    else:
        assert read_spec(copy) == spec_of()


def test_addresses_of_32_bits_are_refused(tmp_path):
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    properties.set_sizes(4, 4)
    path = tmp_path / "m.weights.h5"
    h5py.h5f.create(os.fsencode(path), fcpl=properties).close()
    with pytest.raises(InputError, match="do not have 64 bits"):
        read_spec(path)


@pytest.mark.slow
def test_any_flipped_byte_is_refused_or_read(written):
    """The result is an `InputError` or other values, never another exception."""
    _, path = written
    whole, model = path.read_bytes(), small()
    random = np.random.default_rng(0)
    for position in random.integers(0, len(whole), 400):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        before = model.get_weights()
        sentence = None
        try:
            open_weights(path, spec_of().config).load(model, transfer=True)
        except InputError as error:
            sentence = str(error)
        if sentence is not None:
            assert "\n" not in sentence, position
            assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 10**13},
        {"classes": 0},
        {"overrides": {**SMALL, "stage_filters": (8, 10**6)}},
        {"overrides": {**SMALL, "stage_depths": (1, 10**6)}},
        {"overrides": {**SMALL, "stage_depths": (200, 200), "stage_filters": (1, 1)}},
        {"overrides": {**SMALL, "groups": 1024, "width_per_group": 4096, "stage_filters": (64, 4096)}},
        {"overrides": {**SMALL, "stage_filters": (500, 500), "width_per_group": 1, "shortcut": "C"}},
        {"input_shape": (16, 100_000, 3)},
        {"input_shape": (16, 16, 10**9)},
    ],
)
def test_unreasonably_large_networks_are_refused(changes, written):
    with h5py.File(written[1], "r+") as file:
        fields = json.loads(file.attrs["keras_resnet"])
        file.attrs["keras_resnet"] = json.dumps({**fields, **changes})
    with pytest.raises(InputError, match="unreasonably large"):
        build_model("resnet50", weights=written[1], input_shape=(16, 16, 3), **SMALL)


def test_the_size_of_a_network_is_known_before_it_is_built():
    """As in the table of parameters, which also has the stem, biases and batch normalization."""
    table = json.loads((Path(__file__).parents[1] / "models/golden/parameters.json").read_text())[
        "parameters"
    ]
    rows = {name: (config, table.get(name, {}).get(config.shortcut)) for name, config in MODELS.items()}
    shares = [main_weights(config, config.classes) / known for config, known in rows.values() if known]
    assert len(shares) > 15
    assert 0.95 < min(shares) < max(shares) < 1
    for name, overrides in [
        ("resnet50", {}),
        ("resnet18d", {"shortcut": "C"}),
        ("resnext50_32x4d", {"groups": 2, "width_per_group": 32}),
    ]:
        config = get_config(name, **{**SMALL, "shortcut": "B", **overrides})
        with zeros_for_weights():
            model = build_resnet(config, input_shape=(16, 16, 3), classes=5)
        kernels = sum(math.prod(w.shape) for w in model.weights if w.name == "kernel")
        assert main_weights(config, 5) == kernels - math.prod(model.get_layer("conv1_conv").kernel.shape)


def test_links_to_the_same_group_are_refused(written):
    """Otherwise a small file could take hours and gigabytes."""
    with h5py.File(written[1], "r+") as file:
        variables = file.create_group("layers/first/vars")
        variables["0"] = np.zeros(1000, "float32")
        for index in range(1, 100):
            variables[str(index)] = variables["0"]
        for index in range(200):
            file[f"layers/other{index}"] = file["layers/first"]
    assert "a group has two names" in refusal(shared(), written[1])


def test_names_from_a_file_are_printed_on_one_line(written):
    with h5py.File(written[1], "r+") as file:
        group = file["layers"].create_group("a\nb\x1b[31m/vars")
        group["0"] = np.zeros(3, "int32")
    sentence = refusal(shared(), written[1])
    assert "\x1b" not in sentence


def test_a_kernel_without_channels_is_of_another_network(written):
    with h5py.File(written[1], "r+") as file:
        del file[KERNEL]
        file[KERNEL] = np.zeros((3, 3, 0, 8), "float32")
    with pytest.raises(InputError, match="conv1_conv has shapes 3x3x0x8 in the file"):
        small(weights=written[1])


def test_weights_with_an_input_tensor(written):
    """Layers before the network have their own variables and inputs."""
    inputs = [keras.Input((16, 16, 2)), keras.Input((16, 16, 11))]
    x = keras.layers.Conv2D(3, 1)(keras.layers.Concatenate()(inputs))
    model = build_model("resnet50", weights=written[1], input_tensor=x, **SMALL)
    kernel = written[0].get_layer("conv1_conv").get_weights()[0]
    np.testing.assert_array_equal(model.get_layer("conv1_conv").get_weights()[0], kernel)
    assert model.preprocess.size == 16


def test_no_preprocess_for_an_input_that_is_not_square(written):
    assert not hasattr(small(weights=written[1], input_shape=(16, 24, 3)), "preprocess")
    assert small(weights=written[1], input_shape=(None, None, 3)).preprocess.size == 16


def test_an_hdf5_file_without_layers(tmp_path):
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["temperatures"] = np.arange(3)
    assert "no layers" in refusal(shared(), tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers"] = np.arange(3)
    assert "no layers" in refusal(shared(), tmp_path / "m.weights.h5")


def test_another_width(written):
    sentence = refusal(shared(stage_filters=(8, 16)), written[1])
    assert "layer conv3_block1_1_conv" in sentence
    assert "1x1x32x12 in the file" in sentence
    assert "1x1x32x16 in resnet50" in sentence


def test_another_number_of_channels(written):
    model = build_model("resnet50", input_shape=(16, 16, 1), classes=5, **SMALL)
    sentence = refusal(model, written[1])
    assert "layer conv1_conv has shapes 3x3x3x8 in the file, 3x3x1x8 in resnet50" in sentence


def test_other_classes(written):
    sentence = refusal(shared(classes=7), written[1])
    assert "layer predictions has shapes 48x5 5 in the file, 48x7 7 in resnet50" in sentence


def test_another_classifier_keeps_its_initial_weights(written):
    model, path, *_ = written
    keras.utils.set_random_seed(3)
    fresh = small(classes=7)
    keras.utils.set_random_seed(3)
    other = small(classes=7, weights=path)
    for layer, untouched in zip(other.layers, fresh.layers, strict=True):
        source = untouched if layer.name == "predictions" else model.get_layer(layer.name)
        for ours, theirs in zip(layer.get_weights(), source.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    headless = small(include_top=False, weights=path)
    np.testing.assert_array_equal(headless.get_weights()[0], model.get_weights()[0])


def test_a_classifier_of_other_features_is_refused(written, tmp_path):
    with h5py.File(written[1], "r+") as file:
        values = file["layers/dense/vars/0"][:-1]
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = values
    with pytest.raises(InputError, match="layer predictions has shapes 47x5 5 in the file, 48x5 5 in"):
        small(weights=written[1])


def test_the_default_classes_are_those_of_the_file(written):
    model = build_model("resnet50", weights=written[1], input_shape=(16, 16, 3), **SMALL)
    assert equal_weights(model, written[0])
    assert model.output_shape == (None, 5)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_other_channels_adapt_the_first_kernel(channels, written):
    """As in timm: summed for one channel, otherwise repeated and scaled."""
    model, path, *_ = written
    kernel = model.get_layer("conv1_conv").get_weights()[0]
    other = small(weights=path, input_shape=(16, 16, channels))
    adapted = other.get_layer("conv1_conv").get_weights()[0]
    if channels == 1:
        np.testing.assert_allclose(adapted[:, :, 0], kernel.sum(2), rtol=1e-6, atol=1e-6)
    for channel in range(channels if channels > 1 else 0):
        expected = kernel[:, :, channel % 3] * (3 / channels)
        np.testing.assert_allclose(adapted[:, :, channel], expected, rtol=1e-6)
    np.testing.assert_array_equal(other.get_weights()[1], model.get_weights()[1])


def test_preprocess(written):
    spec = read_spec(written[1])
    assert small(weights=written[1]).preprocess == spec.preprocessing
    assert not hasattr(small(), "preprocess")
    larger = small(weights=written[1], input_shape=(20, 20, 1))
    assert larger.preprocess.size == 20
    assert len(larger.preprocess.normalization.mean) == 1


def test_layers_that_the_file_lacks(written):
    sentence = refusal(shared(stage_depths=(2, 1)), written[1])
    assert "no weights for layer conv2_block2_1_conv" in sentence


def test_layers_that_the_network_lacks(written, tmp_path):
    deep = save_weights(small(stage_depths=(1, 2)), tmp_path / "deep.weights.h5")
    sentence = refusal(shared(), deep)
    assert re.search(r"layer conv3_block2_\w+ \(6 in all\) is not in resnet50", sentence)


def test_fewer_tensors_in_a_layer(written):
    with h5py.File(written[1], "r+") as file:
        del file["layers/dense/vars/1"]
    assert "layer predictions has shapes 48x5 in the file, 48x5 5 in" in refusal(shared(), written[1])


def test_v1_weights_are_not_v1_5_weights(written):
    """Their tensors have the same shapes; only the description distinguishes them."""
    load_weights(small(bottleneck_stride="3x3"), written[1])
    with pytest.raises(InputError, match="bottleneck_stride is '1x1' there, '3x3' here"):
        small(bottleneck_stride="3x3", weights=written[1])
    with pytest.raises(InputError, match="another network"):
        small("resnet50_v1_5", weights=written[1])


def test_plain_weights_are_not_residual_weights(tmp_path):
    arguments = {"block": "basic", "shortcut": None}
    path = save_weights(small(**arguments), tmp_path / "m.weights.h5", spec_of(**arguments))
    with pytest.raises(InputError, match="shortcut is None there, 'A' here"):
        small(block="basic", shortcut="A", weights=path)
    small(weights=path, **arguments)


def test_another_size_and_name_than_described(written):
    build_model("resnet50", weights=written[1], input_shape=(None, None, 3), classes=5, name="mine", **SMALL)


KERNEL = "layers/conv2d/vars/0"


def replace_kernel(path, make):
    """Replaces the first kernel by that of `make(file, elsewhere, values)`."""
    with h5py.File(path, "r+") as file:
        values = file[KERNEL][...]
        del file[KERNEL]
        elsewhere = path.parent / "elsewhere.h5"
        with h5py.File(elsewhere, "w") as other:
            other["kernel"] = values
        make(file, elsewhere, values)


def soft_link(file, elsewhere, values):
    file["hidden"] = values
    file[KERNEL] = h5py.SoftLink("/hidden")


def external_link(file, elsewhere, values):
    file[KERNEL] = h5py.ExternalLink(elsewhere, "kernel")


def dangling_link(file, elsewhere, values):
    file[KERNEL] = h5py.SoftLink("/nowhere")


def virtual_dataset(file, elsewhere, values):
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource(elsewhere, "kernel", values.shape)
    file.create_virtual_dataset(KERNEL, layout)


def external_storage(file, elsewhere, values):
    raw = elsewhere.with_suffix(".raw")
    raw.write_bytes(values.tobytes())
    file.create_dataset(KERNEL, values.shape, values.dtype, external=[(raw, 0, values.nbytes)])


def group(file, elsewhere, values):
    file.create_group(KERNEL)


def text(file, elsewhere, values):
    file.create_dataset(KERNEL, data=np.full(values.shape, b"a"))


def integers(file, elsewhere, values):
    file.create_dataset(KERNEL, data=values.astype("int32"))


def objects(file, elsewhere, values):
    file.create_dataset(KERNEL, values.shape, h5py.string_dtype())


def strings_by_default(file, elsewhere, values):
    file.create_dataset(KERNEL, values.shape, h5py.string_dtype(), fillvalue="x" * 12_345)


def compound(file, elsewhere, values):
    file.create_dataset(KERNEL, values.shape, np.dtype([("a", "f4"), ("b", "f4")]))


def nothing(file, elsewhere, values):
    pass


@pytest.mark.parametrize(
    "make",
    [
        soft_link,
        external_link,
        dangling_link,
        virtual_dataset,
        external_storage,
        group,
        text,
        integers,
        objects,
        compound,
        nothing,
    ],
)
def test_other_objects_than_datasets_are_refused(make, written):
    _, path = written
    replace_kernel(path, make)
    sentence = refusal(shared(), path)
    if "link" in make.__name__:
        assert "links are not followed" in sentence


@pytest.mark.parametrize("where", ["layers", "layers/conv2d", "layers/conv2d/vars"])
@pytest.mark.parametrize("external", [True, False])
def test_linked_groups_are_refused(where, external, written, tmp_path):
    _, path = written
    elsewhere = tmp_path / "elsewhere.weights.h5"
    elsewhere.write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as file:
        file.move(where, "hidden")
        file[where] = h5py.ExternalLink(elsewhere, where) if external else h5py.SoftLink("/hidden")
    is_large = external and where == "layers/conv2d"  # external links need HDF5's newer format
    told = "large groups of a newer format" if is_large else "links are not followed"
    assert told in refusal(shared(), path)


def test_failed_save_leaves_the_old_file(written):
    """A limit on file sizes simulates a full disk, on which the HDF5 library crashes."""
    _, path = written
    old = path.read_bytes()
    model = small(seed=8)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_weights(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_failed_description_leaves_the_old_file(written, monkeypatch):
    _, path = written
    old = path.read_bytes()

    def broken(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ModelSpec, "to_json", broken)
    with pytest.raises(OSError, match="Input/output"):
        save_weights(small(seed=8), path, spec_of())
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_saving_replaces_the_file_and_leaves_no_others(written):
    _, path = written
    other = save_weights(small(seed=8), path)
    assert list(path.parent.iterdir()) == [path]
    assert equal_weights(small(weights=other), randomize(small(weights=other), 8))
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
