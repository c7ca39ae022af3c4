"""TFLite files of tiny detectors, run by LiteRT, against the detectors."""

import json
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from helpers.export_detectors import C4, FPN, RETINANET, V2, build, scenes

from keras_resnet.detection.export import tflite as module
from keras_resnet.detection.export import tflite_ops
from keras_resnet.detection.export.comparison import difference, read_detections
from keras_resnet.detection.export.tflite import detector_to_tflite
from keras_resnet.detection.export.verification import verify
from keras_resnet.detection.nms import non_max_suppression
from keras_resnet.detection.roi_align import multilevel_roi_align, roi_align
from keras_resnet.errors import InputError
from keras_resnet.export.writers.tflite_conversion import convert

SIZE = (60, 97)
BUILTINS = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
TYPES = {number: name for name, number in vars(schema.TensorType).items() if name.isupper()}


def views(size=SIZE, count=3):
    return [scene[: size[0], : size[1]] for scene in scenes(count)]


def write(detector, folder, size=SIZE, **options):
    return detector_to_tflite(detector, folder / "detector.tflite", image_size=size, **options)


def run(path, image):
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    return runner(images=image[None].astype("float32"))


def problems(path, detector, images):
    """What differs from the detector's own detections; asserts that it has some."""
    verification = verify(detector, "tflite", path, images)
    assert verification.detections > len(images)
    return verification.problems


@pytest.fixture(scope="module")
def c4(tmp_path_factory):
    detector = build(C4)
    return detector, write(detector, tmp_path_factory.mktemp("tflite"))


@pytest.mark.slow
def test_landscape_scenes(c4):
    detector, path = c4
    assert problems(path, detector, views()) == ()


@pytest.mark.slow
def test_a_changed_weight_is_noticed(c4):
    other = build(C4)
    kernel = other.model.get_layer("roi_logits").kernel
    kernel.assign(kernel.numpy() * 1.01)
    assert any("score differs" in problem for problem in problems(c4[1], other, views(count=1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "config", "options"),
    [
        (FPN, (128, 96), {}, {}),
        (V2, (64, 64), {}, {"io_dtype": "uint8"}),
        (C4, (100, 128), {"global_context": True}, {}),
    ],
)
def test_other_detectors_and_sizes(name, size, config, options, tmp_path):
    detector = build(name, **config)
    path = write(detector, tmp_path, size, **options)
    assert problems(path, detector, views(size)) == ()


@pytest.mark.slow
def test_float16_weights(c4, tmp_path):
    detector, whole = c4
    path = write(detector, tmp_path, precision="float16")
    kinds = {kind for inputs, kind, _ in operators(path) if "FLOAT16" in inputs}
    assert kinds == {"DEQUANTIZE"}
    assert path.stat().st_size < whole.stat().st_size
    for image in views():
        (own,), (found,) = detector.detect([image]), read_detections(run(path, image), 1)
        iou, score = difference(found, own)
        assert len(found) == len(own)
        assert iou > 0.9
        assert score < 0.02


@pytest.mark.slow
def test_chunks_of_regions(c4, tmp_path, monkeypatch):
    """Three chunks of 7 of the 20 regions; the head's weights are stored once."""
    monkeypatch.setattr(module, "_CHUNK", 7 * 14**2 * 8)
    detector, whole = c4
    path = write(detector, tmp_path)
    assert problems(path, detector, views(count=2)) == ()
    convolutions, kernels = zip(*map(convolutions_and_kernels, (whole, path)), strict=True)
    assert kernels[0] == kernels[1]
    assert convolutions[0] < convolutions[1]


def convolutions_and_kernels(path):
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    (graph,) = model.subgraphs
    kinds = [BUILTINS[code.builtinCode] for code in model.operatorCodes]
    used = [entry.inputs[1] for entry in graph.operators if kinds[entry.opcodeIndex] == "CONV_2D"]
    return len(used), len({graph.tensors[index].buffer for index in used})


@pytest.mark.slow
def test_nothing_is_found_of_one_class(tmp_path):
    detector = build(C4, score_threshold=1.0, classes=("owl",))
    path = write(detector, tmp_path)
    outputs = run(path, views()[0])
    assert outputs["count"].tolist() == [0]
    assert not any(outputs[name].any() for name in ("boxes", "scores", "labels"))
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt") == b"owl\n"
        assert json.loads(archive.read("metadata.json")) == {
            "model": C4,
            "classes": "1",
            "license": "Apache-2.0",
        }


@pytest.mark.slow
def test_the_signature(c4):
    runner = Interpreter(str(c4[1])).get_signature_runner("serving_default")
    (images,) = runner.get_input_details().values()
    assert (images["name"], images["dtype"], images["shape"].tolist()) == (
        "images",
        np.float32,
        [1, 60, 97, 3],
    )
    outputs = runner.get_output_details()
    assert {name: (detail["dtype"], detail["shape"].tolist()) for name, detail in outputs.items()} == {
        "boxes": (np.float32, [1, 12, 4]),
        "scores": (np.float32, [1, 12]),
        "labels": (np.int32, [1, 12]),
        "count": (np.int32, [1]),
    }


def operators(path):
    """The kind of each operator, and the types of its inputs and of its outputs."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    (graph,) = model.subgraphs
    for entry in graph.operators:
        types = [
            [TYPES[graph.tensors[index].type] for index in indices if index >= 0]
            for indices in (entry.inputs, entry.outputs)
        ]
        yield types[0], BUILTINS[model.operatorCodes[entry.opcodeIndex].builtinCode], types[1]


@pytest.mark.slow
def test_int8_networks_with_float_boxes(tmp_path, monkeypatch, early_progress, capfd):
    """In two chunks of regions."""
    monkeypatch.setattr(module, "_CHUNK", 10 * 14**2 * 8)
    detector = build(C4)
    path = write(detector, tmp_path, precision="int8", calibration=scenes(4) * 8)
    progress = capfd.readouterr().err
    assert "int8 calibration: 1 of 32 samples, " in progress
    assert "int8 calibration: 1 of 64 samples, " in progress  # the box head of each chunk
    kinds = {}
    for inputs, kind, outputs in operators(path):
        kinds.setdefault(kind, set()).add((inputs[0], outputs[0]))
    # The last layers of the region proposal network are convolutions in float32.
    assert kinds["CONV_2D"] == {("INT8", "INT8"), ("FLOAT32", "FLOAT32")}
    for kind in ("FULLY_CONNECTED", "TOPK_V2", "SOFTMAX", "LOGISTIC", "RESIZE_BILINEAR"):
        assert kinds[kind] == {("FLOAT32", "FLOAT32")}
    assert kinds["QUANTIZE"] == {("FLOAT32", "INT8")}
    assert kinds["NON_MAX_SUPPRESSION_V5"] == {("FLOAT32", "INT32")}
    (own,), found = detector.detect(views(count=1)), run(path, views()[0])
    assert abs(found["scores"][0, 0] - own.scores[0]) < 0.1
    assert found["scores"].dtype == found["boxes"].dtype == np.float32


def test_non_max_suppression(tmp_path):
    """Many ties, many overlaps of exactly the threshold, and boxes without area."""
    count, threshold = 150, 0.5

    def compute(weights, inputs):
        names = ("boxes", "scores", "groups")
        boxes, scores, groups = (inputs[name] for name in names)
        selected, valid = tflite_ops.non_max_suppression(
            boxes, scores, threshold, count, groups, score_threshold=0.2, most=140
        )
        return {"selected": selected, "valid": valid}

    shapes = {"boxes": (1, count, 4), "scores": (1, count), "groups": (1, count)}
    inputs = [tf.TensorSpec(shape, tf.float32, name=name) for name, shape in shapes.items()]
    content = convert(compute, inputs, (), tmp_path / "source")
    runner = Interpreter(model_content=content).get_signature_runner("serving_default")
    for seed in range(3):
        random = np.random.default_rng(seed)
        corners = random.integers(0, 40, (1, count, 2))
        boxes = np.concatenate([corners, corners + random.integers(0, 30, corners.shape)], -1).astype(
            "float32"
        )
        boxes[:, 75::7] = boxes[:, :11]
        scores = random.integers(1, 11, (1, count)).astype("float32") / 10
        groups = random.integers(0, 2, (1, count)).astype("float32")
        expected, known = non_max_suppression(boxes, scores, threshold, count, groups, 0.2)
        found = runner(boxes=boxes, scores=scores, groups=groups)
        assert found["valid"].tolist() == known.numpy().tolist()
        assert 5 < found["valid"].sum() < 140
        assert found["selected"].tolist() == expected.numpy().tolist()


def test_roi_align():
    """At the borders, outside, and below one cell, too."""
    random = np.random.default_rng(0)
    maps = [tf.constant(random.normal(size=(1, 40 // n, 56 // n, 3)), tf.float32) for n in (1, 2, 4)]
    corners = random.uniform(-20, 220, (60, 2))
    sides = np.exp(random.uniform(0, 7, (60, 2)))
    rois = tf.constant(np.concatenate([corners, corners + sides], 1), tf.float32)
    found = tflite_ops.gather_roi_align(maps[:1], rois, 7, (4,))
    np.testing.assert_allclose(found, roi_align(maps[0], rois[None], 7, 4)[0], atol=2e-5)
    found = tflite_ops.gather_roi_align(maps, rois, 7, (4, 8, 16))
    expected = multilevel_roi_align(maps, rois[None], 7, (4, 8, 16))[0]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_what_cannot_be_written(tmp_path):
    detector = build(C4)
    images = scenes(1)
    for options, message in [
        ({"precision": "int4"}, "unknown precision 'int4'"),
        ({"io_dtype": "int8"}, "unknown io_dtype 'int8'"),
        ({"size": (64, 0)}, "a height and a width in pixels; got \\(64, 0\\)"),
        ({"precision": "int8", "calibration": images * 5}, "at least 32 calibration images; got 5"),
        ({"precision": "int8", "calibration": [np.zeros((4, 4))]}, "an image must be a uint8 array"),
    ]:
        with pytest.raises(InputError, match=message):
            write(detector, tmp_path, **options)
    retinanet = build(RETINANET)
    with pytest.raises(InputError, match="retinanet_resnet50_v1_5_fpn has one"):
        write(retinanet, tmp_path)
    assert not list(tmp_path.iterdir())
