"""ONNX files of tiny detectors, run by ONNX Runtime, against the detectors."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.export_detectors import C4, FPN, RETINANET, RETINANET_V2, SMALL, V2, build, scenes
from onnx.utils import Extractor

from keras_resnet.detection.detections import Detections
from keras_resnet.detection.export.comparison import difference
from keras_resnet.detection.export.onnx import detector_to_onnx
from keras_resnet.detection.export.verification import verify
from keras_resnet.detection.sizes import resized_shape
from keras_resnet.errors import InputError


@pytest.fixture(scope="module")
def c4(tmp_path_factory):
    detector = build(C4)
    return detector, detector_to_onnx(detector, tmp_path_factory.mktemp("onnx") / "c4.onnx")


@pytest.fixture(scope="module")
def session(c4):
    return onnxruntime.InferenceSession(str(c4[1]), providers=["CPUExecutionProvider"])


def outputs(session, images):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": np.float32(images)}), strict=True))


def test_scenes_of_several_sizes(c4):
    images = [*scenes(1), scenes(1)[0][:50, :97], scenes(1)[0][:90, :60]]
    verification = verify(c4[0], "onnx", c4[1], images)
    assert verification.problems == ()
    assert verification.equal
    assert verification.images == 3
    assert verification.detections > 3


def test_global_context(tmp_path):
    detector = build(C4, global_context=True)
    path = detector_to_onnx(detector, tmp_path / "d.onnx", opset=16)
    verification = verify(detector, "onnx", path, [*scenes(1), scenes(1)[0][:50, :97]])
    assert verification.problems == ()
    assert verification.detections > 2
    kernel = detector.model.get_layer("roi_logits").kernel
    kernel.assign(np.concatenate([kernel[:8], np.zeros_like(kernel[8:])]))
    assert not verify(detector, "onnx", path, scenes(1)).equal


@pytest.mark.slow
@pytest.mark.parametrize(("name", "opset"), [(FPN, 16), (V2, 18), (RETINANET, 18), (RETINANET_V2, 16)])
def test_other_detectors(name, opset, tmp_path):
    detector = build(name)
    path = detector_to_onnx(detector, tmp_path / "d.onnx", opset=opset)
    verification = verify(detector, "onnx", path, scenes())
    assert verification.problems == ()
    assert verification.detections > 2


def test_an_image_does_not_depend_on_the_others_of_its_batch(session):
    first, second = (scene[:60, :80] for scene in scenes(2))
    together, alone = outputs(session, [first, second]), outputs(session, [second])
    assert together["count"].shape == (2,)
    assert together["count"][1] == alone["count"][0] > 0
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(together[name][1], alone[name][0], atol=1e-4)


def test_the_signature(session):
    (images,) = session.get_inputs()
    assert (images.name, images.shape) == ("images", ["batch", "height", "width", 3])
    types = {output.name: (output.type, output.shape) for output in session.get_outputs()}
    assert types == {
        "boxes": ("tensor(float)", ["batch", "detections", 4]),
        "scores": ("tensor(float)", ["batch", "detections"]),
        "labels": ("tensor(int32)", ["batch", "detections"]),
        "count": ("tensor(int32)", ["batch"]),
    }
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["labels"] == '["cat", "dog", "owl"]'


def test_nothing_is_found(tmp_path):
    detector = build(C4, score_threshold=1.0)
    path = detector_to_onnx(detector, tmp_path / "d.onnx", io_dtype="uint8")
    assert onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.elem_type == 2
    assert verify(detector, "onnx", path, scenes(1)).equal
    session = onnxruntime.InferenceSession(str(path))
    boxes, scores, labels, count = session.run(None, {"images": scenes(1)[0][None]})
    assert count.tolist() == [0]
    assert not any(each.any() for each in (boxes, scores, labels))


def test_another_detectors_file_is_not_equal(c4):
    other = build(C4)
    layer = other.model.get_layer("roi_logits")
    layer.bias.assign([0.0, 1.0, 0.0, -1.0])
    verification = verify(other, "onnx", c4[1], scenes(1))
    assert not verification.equal
    assert verification.problems


def test_boxes_without_area_have_counterparts():
    boxes = np.float32([[0, 5, 9, 5], [1, 1, 6, 8]])
    expected = Detections(boxes, np.float32([0.9, 0.8]), np.int32([2, 1]))
    assert difference(expected, expected) == (1.0, 0.0)
    for moved in ([[0, 6, 9, 6], [1, 1, 6, 8]], [[0, 5, 9, 5], [1, 1, 6, 4]]):
        found = dataclasses.replace(expected, boxes=np.float32(moved))
        assert difference(found, expected)[0] < 0.6


def test_what_cannot_be_written(tmp_path):
    detector = build(C4)
    with pytest.raises(InputError, match="opset 16 to 23; got 15"):
        detector_to_onnx(detector, tmp_path / "d.onnx", opset=15)
    with pytest.raises(InputError, match="int8"):
        detector_to_onnx(detector, tmp_path / "d.onnx", io_dtype="int8")
    assert not list(tmp_path.iterdir())


def test_resized_sizes_are_those_of_the_detector(c4):
    """Also where the product in float64 is rounded to less than a whole number."""
    model = onnx.shape_inference.infer_shapes(onnx.load(c4[1]))
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    target = next(node for node in model.graph.node if resize.input[3] in node.output)
    sizes = Extractor(model).extract_model(["images"], [target.input[1]])
    session = onnxruntime.InferenceSession(sizes.SerializeToString())
    limits = SMALL["shorter_side"], SMALL["longer_side"]
    rounded = 0
    for height, width in [(side, side) for side in range(1, 200)] + [(99, 49), (49, 60), (10, 300), (300, 7)]:
        (found,) = session.run(None, {"images": np.zeros((1, height, width, 3), "float32")})
        assert tuple(found) == resized_shape(height, width, *limits), (height, width)
        rounded += min(found) < limits[0] and height == width
    assert rounded > 5
