"""Weight files of detectors: torchvision's under old and new names, our own, and what is refused."""

import json
import types

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_resnet import InputError, build_model
from keras_resnet.detection.config import get_detector_config, list_detectors
from keras_resnet.detection.detector import Detector, build_detector, load_detector
from keras_resnet.detection.registry import (
    DETECTORS,
    coco_class_names,
    get_detector_entry,
    list_detector_weights,
)
from keras_resnet.detection.spec import DetectorSpec
from keras_resnet.detection.torch_files import torch_detector_names, with_new_names
from keras_resnet.detection.weight_files import (
    load_detector_weights,
    open_detector_weights,
    read_detector_spec,
    save_detector_weights,
)
from keras_resnet.models.config import ResNetConfig
from keras_resnet.weights import open_weights, save_weights
from keras_resnet.weights.spec import ModelSpec

NETWORK = ResNetConfig("basic", (1, 1), (4, 8), "cifar", "B", input_size=32)
COMMON = {"network": NETWORK, "classes": 3, "pyramid_channels": 8, "pyramid_stages": 2, "size_multiple": 8}
PYRAMID = {**COMMON, "anchor_sizes": ((8,), (16,), (32,)), "rpn_channels": 8, "pooled_size": 2}
RETINA = {**COMMON, "anchor_sizes": ((8,), (16,), (32,), (64,)), "head_convs": 2}
TINY = {
    "faster_rcnn_resnet50_v1_5_fpn": PYRAMID,
    "faster_rcnn_resnet50_v1_5_fpn_v2": {**PYRAMID, "head_convs": 2},
    "retinanet_resnet50_v1_5_fpn": RETINA,
    "retinanet_resnet50_v1_5_fpn_v2": RETINA,
    "faster_rcnn_resnet50_v1_5_c4": {
        "network": NETWORK,
        "classes": 3,
        "rpn_channels": 8,
        "pooled_size": 4,
        "anchor_sizes": ((8, 16),),
        "size_multiple": 8,
    },
}
FIRST = "faster_rcnn_resnet50_v1_5_fpn"
OLD_NAMES = {"blocks.0.0.": "blocks.0.", "blocks.1.0.": "blocks.1.", "rpn.head.conv.0.0.": "rpn.head.conv."}


def tiny(name, **overrides):
    config = get_detector_config(name, **{**TINY[name], **overrides})
    return Detector(name, config, [f"class {index}" for index in range(config.classes)])


@pytest.fixture(scope="module")
def detectors():
    return {name: tiny(name) for name in TINY}


@pytest.fixture
def first(detectors):
    return detectors[FIRST]


def state_dict(detector, seed=0, counters=False):
    """A state dict of torchvision with random numbers: new names, and statistics like those of real files."""
    random = np.random.default_rng(seed)
    variables = {(layer.name, v.name): v for layer in detector.model.layers for v in layer.weights}
    table, tensors = torch_detector_names(detector.config), {}
    assert table.keys() == variables.keys()
    for key, source in table.items():
        shape = [0] * len(source.axes)
        for axis, size in zip(source.axes, variables[key].shape, strict=True):
            shape[axis] = size
        tensors[source.names[0]] = random.uniform(0.5, 1.5, shape).astype("float32")
        if counters and key[1] == "moving_variance":
            counter = source.names[0].replace("running_var", "num_batches_tracked")
            tensors[counter] = np.array(3, "int64")
    assert len(set(tensors)) >= len(table)
    return tensors


def values(detector):
    return {f"{layer.name}/{v.name}": v.numpy() for layer in detector.model.layers for v in layer.weights}


def written(tensors, tmp_path):
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        path := tmp_path / "x.safetensors",
    )
    return path


def refusal(function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("entry", DETECTORS, ids=lambda entry: entry.model)
def test_published_weights(entry):
    assert entry.model in list_detectors()
    assert entry.url.endswith(f"-{entry.digest.removeprefix('sha256:')}.pth")
    assert 30 < entry.box_ap < 50
    assert get_detector_config(entry.model).classes == len(coco_class_names())
    assert list_detector_weights(entry.model) == ["coco"]
    assert get_detector_entry("coco", entry.model) == get_detector_entry(f"{entry.model}/coco", entry.model)


def test_names_of_published_weights_are_explained():
    assert "none are published" in refusal(get_detector_entry, "coco", "faster_rcnn_resnet50_c4")
    assert "another detector" in refusal(get_detector_entry, "retinanet_resnet50_v1_5_fpn/coco", FIRST)
    assert "did you mean coco" in refusal(get_detector_entry, "cocoo", FIRST)
    assert "unknown detector" in refusal(list_detector_weights, "yolo")


def test_cocos_class_names():
    names = coco_class_names()
    assert (len(names), names.count("N/A")) == (90, 10)
    # COCO's ids of a few categories, less 1.
    assert (names[0], names[11], names[17], names[89]) == ("person", "N/A", "dog", "toothbrush")


@pytest.mark.parametrize(("name", "count"), list(zip(TINY, (295, 339, 301, 309), strict=False)))
def test_the_published_files_have_this_many_tensors(name, count):
    sources = torch_detector_names(get_detector_config(name)).values()
    assert len({source.names for source in sources}) == len(sources) == count


@pytest.mark.parametrize("name", TINY)
def test_each_tensor_is_used_once(name, detectors, tmp_path):
    detector, tensors = detectors[name], state_dict(detectors[name], counters=True)
    load_detector_weights(detector, written(tensors, tmp_path))
    loaded = values(detector)
    for (layer, attribute), source in torch_detector_names(detector.config).items():
        theirs = tensors[source.names[0]]
        if source.flattened:  # (outputs, channels * rows * columns)
            theirs = theirs.reshape(-1, *source.flattened).transpose(2, 3, 1, 0).reshape(-1, len(theirs))
        else:
            theirs = theirs.transpose(source.axes)
        np.testing.assert_array_equal(loaded[f"{layer}/{attribute}"], theirs)


@pytest.mark.parametrize("name", [FIRST, "retinanet_resnet50_v1_5_fpn"])
def test_old_names(name, detectors):
    tensors = state_dict(detectors[name])
    pairs = {**OLD_NAMES, **{f"_head.conv.{i}.0.": f"_head.conv.{2 * i}." for i in range(2)}}
    old = {}
    for key, tensor in tensors.items():
        for new, before in pairs.items():
            key = key.replace(new, before)
        old[key] = tensor
    assert old.keys() != tensors.keys()
    assert with_new_names(old, "x").keys() == tensors.keys()
    assert "twice" in refusal(with_new_names, {**tensors, **old}, "x")


def test_frozen_statistics_have_no_epsilon(first, tmp_path):
    """Channels without variance, whose gamma is 0, are in real files."""
    tensors = state_dict(first)
    tensors["backbone.body.bn1.running_var"][:3] = 0, 1e-40, 1e-7
    tensors["backbone.body.bn1.weight"][:2] = 0, 1e-25
    load_detector_weights(first, written(tensors, tmp_path))
    layer = first.model.get_layer("conv1_bn")
    x = np.random.default_rng(0).normal(size=(1, 3, 3, 4)).astype("float32")
    gamma, beta, mean, variance = (
        tensors[f"backbone.body.bn1.{n}"].astype("float64")
        for n in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(np.maximum(variance, 1e-300))
    np.testing.assert_allclose(layer(x), (x - mean) * scale + beta, rtol=1e-5, atol=1e-6)
    assert np.isfinite(np.concatenate([np.ravel(value) for value in values(first).values()])).all()
    assert first.model.get_layer("conv1_bn").epsilon == 1e-5
    np.testing.assert_array_equal(layer.moving_variance, tensors["backbone.body.bn1.running_var"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("rpn.head.cls_logits.bias"), "missing: rpn.head.cls_logits.bias"),
        (lambda t: t.update(extra=np.ones(3, "float32")), "left over: extra"),
        (
            lambda t: t.update({"rpn.head.bbox_pred.bias": np.ones(5, "float32")}),
            "misshapen: rpn.head.bbox_pred.bias is 5, not 12",
        ),
        (
            lambda t: t.update(
                {
                    "roi_heads.box_predictor.cls_score.bias": np.ones(21, "float32"),
                    "roi_heads.box_predictor.bbox_pred.bias": np.ones(84, "float32"),
                }
            ),
            "the file has 20 classes, the detector 3",
        ),
        (lambda t: t.update({"roi_heads.mask_head.mask_fcn1.weight": np.ones(3, "float32")}), "masks"),
        (
            lambda t: t.update({"backbone.fpn.inner_blocks.0.1.weight": np.ones(3, "float32")}),
            "such as faster_rcnn_resnet50_v1_5_fpn_v2, another detector",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_changes_nothing(change, message, first, tmp_path):
    before, tensors = values(first), state_dict(first, seed=1)
    change(tensors)
    assert message in refusal(load_detector_weights, first, written(tensors, tmp_path))
    assert all((before[name] == value).all() for name, value in values(first).items())


def test_detectors_and_classifiers_are_not_confused(detectors, tmp_path):
    first, retinanet = detectors[FIRST], detectors["retinanet_resnet50_v1_5_fpn"]
    message = refusal(load_detector_weights, first, written(state_dict(retinanet), tmp_path))
    assert "holds a RetinaNet, such as retinanet_resnet50_v1_5_fpn, another detector than" in message
    path = written(state_dict(first), tmp_path)
    with open_weights(path, "resnet18") as file:
        assert "holds a detector, not a classifier" in refusal(file.tensors)
    classifier = {"conv1.weight": np.ones((4, 3, 3, 3), "float32"), "fc.weight": np.ones((3, 8), "float32")}
    message = refusal(load_detector_weights, first, written(classifier, tmp_path))
    assert "a classifier, not a detector; pass it to build_detector as backbone_weights" in message
    other = written({"a": np.ones(3, "float32")}, tmp_path)
    assert "does not hold a detector of torchvision" in refusal(load_detector_weights, first, other)


def test_native_classifiers_and_detectors_are_not_confused(first, tmp_path):
    own = save_detector_weights(first, tmp_path / "detector.weights.h5")
    assert "holds a detector, not a classifier" in refusal(open_weights, own)
    spec = ModelSpec.default("cifar_resnet20", overrides={"stage_depths": (1, 1, 1)})
    save_weights(spec.build(), path := tmp_path / "classifier.weights.h5", spec)
    assert "holds a classifier, cifar_resnet20, not a detector" in refusal(load_detector_weights, first, path)


@pytest.mark.parametrize("name", TINY)
def test_own_files(name, detectors, tmp_path):
    detector = detectors[name]
    for index, weight in enumerate(detector.model.weights):
        weight.assign(np.random.default_rng(index).normal(size=weight.shape))
    path = save_detector_weights(detector, tmp_path / "x.weights.h5")
    spec = read_detector_spec(path)
    assert spec == DetectorSpec(name, detector.config, detector.class_names)
    other = tiny(name, score_threshold=0.5)
    load_detector_weights(other, path)
    mine = values(detector)
    assert all((mine[key] == value).all() for key, value in values(other).items())
    again = load_detector(path)
    assert (again.class_names, again.config) == (detector.class_names, detector.config)
    assert all((mine[key] == value).all() for key, value in values(again).items())


def test_own_files_of_other_detectors(first, tmp_path):
    path = save_detector_weights(first, tmp_path / "x.weights.h5")
    for overrides, message in {
        "anchors": ({"anchor_sizes": ((8,), (16,), (24,))}, "anchor_sizes is"),
        "classes": ({"classes": 4}, "classes is 3 there, 4 here"),
        "network": ({"network": NETWORK.replace(shortcut="C")}, "shortcut is 'B' there, 'C' here"),
    }.values():
        assert message in refusal(load_detector_weights, tiny(FIRST, **overrides), path)


@pytest.mark.parametrize("kind", ["native", "torch"])
@pytest.mark.parametrize("name", [FIRST, "retinanet_resnet50_v1_5_fpn"])
def test_transfer_keeps_the_new_predictor(name, kind, detectors, tmp_path):
    source, target = detectors[name], tiny(name, classes=5)
    if kind == "torch":
        load_detector_weights(source, path := written(state_dict(source), tmp_path))
    else:
        path = save_detector_weights(source, tmp_path / "x.weights.h5")
    before, theirs = values(target), values(source)
    load_detector_weights(target, path, transfer=True)
    kept = ("roi_logits", "roi_deltas", "classification_logits")
    for key, value in values(target).items():
        np.testing.assert_array_equal(value, (before if key.startswith(kept) else theirs)[key])


def test_build_detector_with_weights(first, tmp_path):
    path = first.save_weights(tmp_path / "x.weights.h5")
    built = build_detector(FIRST, weights=path, score_threshold=0.3)
    assert (built.class_names, built.config.score_threshold) == (first.class_names, 0.3)
    assert not built.model.get_layer("conv1_conv").trainable
    assert build_detector(FIRST, weights=path, classes=["a", "b"]).class_names == ("a", "b")
    assert build_detector(FIRST, weights=path, classes=3).class_names == first.class_names
    message = refusal(build_detector, "retinanet_resnet50_v1_5_fpn", weights=path)
    assert message.endswith(f"holds weights of {FIRST}, not of retinanet_resnet50_v1_5_fpn")
    converted = written(state_dict(first), tmp_path)
    assert build_detector(FIRST, weights=converted, **TINY[FIRST]).class_names == ("0", "1", "2")


def test_a_number_of_classes_keeps_cocos_names(tmp_path):
    options = {**TINY["retinanet_resnet50_v1_5_fpn"], "classes": 90}
    source = tiny("retinanet_resnet50_v1_5_fpn", **options)
    path = written(state_dict(source), tmp_path)
    built = build_detector("retinanet_resnet50_v1_5_fpn", weights=path, **options)
    assert built.class_names == coco_class_names()
    load_detector_weights(source, path)
    for key, value in values(source).items():
        np.testing.assert_array_equal(values(built)[key], value)


BROKEN = {
    "not JSON": "{",
    "a list": "[]",
    "unknown detector": json.dumps({"detector": "yolo", "overrides": {}, "class_names": []}),
    "unknown option": json.dumps({"detector": FIRST, "overrides": {"x": 1}, "class_names": []}),
    "other names": json.dumps({"detector": FIRST, "overrides": {}, "class_names": ["a"]}),
    "huge": json.dumps(
        {"detector": FIRST, "overrides": {"pyramid_channels": 2**20}, "class_names": ["a"] * 90}
    ),
    "deep": json.dumps({"detector": FIRST, "overrides": {"rpn_convs": 2**20}, "class_names": ["a"] * 90}),
    "large images": json.dumps(
        {"detector": FIRST, "overrides": {"shorter_side": 2**20}, "class_names": ["a"] * 90}
    ),
    "bad network": json.dumps({"detector": FIRST, "overrides": {"network": {"block": 1}}, "class_names": []}),
    "bad type": json.dumps({"detector": FIRST, "overrides": {"classes": "many"}, "class_names": []}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_descriptions(kind, first, tmp_path):
    path = save_detector_weights(first, tmp_path / "x.weights.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["keras_resnet_detector"] = BROKEN[kind]
    assert "the description in the weight file is invalid" in refusal(read_detector_spec, path)


def test_files_that_are_no_weights(first, tmp_path):
    (path := tmp_path / "x.weights.h5").write_bytes(b"no")
    assert "not an HDF5 file" in refusal(load_detector_weights, first, path)
    (path := tmp_path / "x.txt").write_bytes(b"no")
    assert "is not a .safetensors" in refusal(load_detector_weights, first, path)
    assert "does not exist" in refusal(load_detector_weights, first, tmp_path / "y.pth")
    assert "weights must be" in refusal(load_detector_weights, first, 3)


def test_a_model_without_a_description(first, tmp_path):
    """Keras' own `save_weights`."""
    first.model.save_weights(path := tmp_path / "x.weights.h5")
    assert open_detector_weights(path, FIRST).class_names is None
    load_detector_weights(
        types.SimpleNamespace(**{n: getattr(first, n) for n in ("name", "config", "class_names", "model")}),
        path,
    )
    assert "another network" in refusal(build_and_load, path)


def build_and_load(path):
    build_model("cifar_resnet20", weights=path)


def test_other_classes_of_the_same_number_get_a_new_predictor(first, tmp_path):
    path = save_detector_weights(first, tmp_path / "x.weights.h5")
    for names, is_new in ((first.class_names, False), (first.class_names[::-1], True)):
        target = Detector(FIRST, first.config, names)
        before = values(target)["roi_logits/kernel"]
        load_detector_weights(target, path, transfer=True)
        np.testing.assert_equal((values(target)["roi_logits/kernel"] == before).all(), is_new)


def test_a_description_of_another_network_keeps_what_differs_from_its_defaults():
    name = "faster_rcnn_cifar_resnet20_c4"
    network = NETWORK.replace(stage_depths=(1, 1, 1, 1), stage_filters=(16, 32, 64, 128))
    for changes in ({}, {"anchor_sizes": ((16, 32, 64),)}, {"rpn_channels": 256}):
        config = get_detector_config(name, network=network, classes=1, **changes)
        again = DetectorSpec.from_json(DetectorSpec(name, config, ("a",)).to_json())
        assert again.config == config
