"""SavedModels of tiny detectors: each signature in this process, and requests of TensorFlow Serving."""

import contextlib
import json

import numpy as np
import pytest
import tensorflow as tf
from helpers.export_detectors import C4, FPN, RETINANET, build, scenes
from helpers.tensorflow_serving import Server, ask

from keras_resnet.detection.data.files import decode_file
from keras_resnet.detection.export import verification as verification_module
from keras_resnet.detection.export.check_signatures import broken_signatures, encoded
from keras_resnet.detection.export.comparison import problem, read_detections
from keras_resnet.detection.export.saved_model import detector_to_saved_model
from keras_resnet.detection.export.verification import verify
from keras_resnet.errors import InputError
from keras_resnet.export.runtimes import Artifact, RunError

PIXELS = {"images": ("float32", (None, None, None, 3))}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(detector, path of the version)."""
    detector = build(C4)
    return detector, detector_to_saved_model(detector, tmp_path_factory.mktemp("saved_model") / "name")


@pytest.fixture(scope="module")
def artifact(exported):
    """The SavedModel in this process, which is faster than in one of its own."""
    return opened(exported[1])


def opened(version):
    signatures = tf.saved_model.load(str(version)).signatures
    answered = {}

    def call(signature, inputs):
        ((_, values),) = inputs.items()
        key = signature, values.shape, values.tobytes()
        if key not in answered:
            try:
                results = signatures[signature](
                    **{name: tf.constant(value) for name, value in inputs.items()}
                )
            except tf.errors.InvalidArgumentError as error:
                raise RunError(error.message) from error
            arrays = {name: value.numpy() for name, value in results.items()}
            arrays["classes"] = arrays["classes"].astype(str)
            answered[key] = arrays
        return answered[key]

    labels = tuple((version / "assets" / "labels.txt").read_text().splitlines())
    return Artifact(
        PIXELS,
        {},
        lambda images: call("serving_default", {"images": images}),
        "tensorflow",
        labels=labels,
        call=call,
    )


@pytest.fixture
def verify_here(artifact, monkeypatch):
    """Verifies the SavedModel in this process."""

    @contextlib.contextmanager
    def open_artifact(format, path):
        yield artifact

    monkeypatch.setattr(verification_module, "open_artifact", open_artifact)
    return lambda detector, images: verify(detector, "saved_model", "path", images)


def test_signatures(exported):
    signatures = tf.saved_model.load(str(exported[1])).signatures
    inputs = {
        name: {
            key: (spec.dtype.name, spec.shape.as_list())
            for key, spec in f.structured_input_signature[1].items()
        }
        for name, f in signatures.items()
    }
    assert inputs == {
        "serving_default": {"images": ("float32", [None, None, None, 3])},
        "serving_uint8": {"images": ("uint8", [None, None, None, 3])},
        "detect_bytes": {"image_bytes": ("string", [None])},
    }
    for function in signatures.values():
        outputs = function.structured_outputs.items()
        assert {key: (spec.dtype.name, spec.shape.as_list()) for key, spec in outputs} == {
            "boxes": ("float32", [None, 12, 4]),
            "scores": ("float32", [None, 12]),
            "labels": ("int32", [None, 12]),
            "count": ("int32", [None]),
            "classes": ("string", [None, 12]),
        }


def test_labels_and_preprocessing_are_files_of_the_version(exported):
    assets = exported[1] / "assets"
    assert (assets / "labels.txt").read_text().splitlines() == ["cat", "dog", "owl"]
    metadata = json.loads((assets / "metadata.json").read_text())
    assert metadata["model"] == C4
    assert json.loads(metadata["resizing"]) == {
        "inside": True,
        "shorter_side": 64,
        "longer_side": 96,
        "size_multiple": 32,
    }


def test_every_signature_equals_the_detector(exported, artifact):
    counting = Counting(exported[0])
    assert broken_signatures(artifact, counting, scenes(1)[0]) == []
    # Three views of either orientation, which all signatures get, and a JPEG file.
    assert len(counting.seen) == len(set(counting.seen)) == 7


class Counting:
    """A detector that remembers which images it has seen."""

    def __init__(self, detector):
        self.class_names, self._detect, self.seen = detector.class_names, detector.detect, []

    def detect(self, images):
        self.seen += [image.tobytes() for image in images]
        return self._detect(images)


def test_nothing_is_detected_for_answers_that_cannot_be_compared(exported, artifact):
    counting = Counting(exported[0])
    empty = Artifact(PIXELS, {}, artifact.run, "tensorflow", call=lambda signature, inputs: {})
    problems = broken_signatures(empty, counting, scenes(1)[0])
    for signature in ("serving_default", "serving_uint8", "detect_bytes"):
        assert f"its signature {signature} returns unexpected outputs: it has no output boxes" in problems
    assert counting.seen == []


def test_images_of_several_sizes(exported, verify_here):
    images = [*scenes(2), scenes(1)[0][:50, :97], scenes(1)[0][:90, :60], scenes(1)[0][:1, :1]]
    found = verify_here(exported[0], images)
    assert found.problems == ()
    assert found.detections > 10


@pytest.mark.slow
def test_changed_weights_are_found_by_every_signature(exported, artifact):
    bias = exported[0].model.get_layer("roi_logits").bias
    bias.assign([0.0, 0.2, 0.0, 0.0])
    problems = " ".join(broken_signatures(artifact, exported[0], scenes(1)[0]))
    bias.assign([0.0] * 4)
    for signature in ("serving_default", "serving_uint8", "detect_bytes"):
        assert f"its signature {signature} " in problems


WRONG = {
    "classes that do not match the labels": lambda found: {"classes": found["classes"][:, ::-1]},
    "an IoU of": lambda found: {"boxes": found["boxes"] * 1.1},
    "a score that differs by": lambda found: {"scores": found["scores"] * 0.99},
    "objects, not": lambda found: {
        name: np.zeros_like(value) for name, value in found.items() if value.dtype != object
    },
    "rows after count are not 0": lambda found: {"count": np.maximum(found["count"] - 1, 0)},
    "are not numbers": lambda found: {"boxes": found["boxes"] * np.nan},
    "its output count is": lambda found: {"count": found["count"] + 100},
    "its output boxes has the shape": lambda found: {"scores": found["scores"][:, :3]},
    "are int64 and int32, not int32": lambda found: {"labels": found["labels"].astype("int64")},
}


def test_wrong_answers_are_found(exported, artifact):
    detector, image = exported[0], scenes(1)[0]
    expected = {}

    class Remembering:
        class_names = detector.class_names

        def detect(self, images):
            keys = [image.tobytes() for image in images]
            for key, image in zip(keys, images, strict=True):
                if key not in expected:
                    (expected[key],) = detector.detect([image])
            return [expected[key] for key in keys]

    for message, change in WRONG.items():
        call = lambda *given, change=change: (found := artifact.call(*given)) | change(found)  # noqa: E731
        wrong = Artifact(PIXELS, {}, artifact.run, "tensorflow", call=call)
        problems = broken_signatures(wrong, Remembering(), image)
        assert any(message in problem for problem in problems), (message, problems)


def test_bad_files_are_named_by_their_position(artifact):
    good = encoded(scenes(1)[0], "JPEG")
    for bad, reason in ((good[:700], "is damaged"), (b"a text", "is neither a JPEG nor a PNG")):
        with pytest.raises(RunError, match=rf"image_bytes\[2\] {reason}.*1 of 4 images cannot be read"):
            artifact.call("detect_bytes", {"image_bytes": np.array([good, good, bad, good])})
    assert artifact.call("detect_bytes", {"image_bytes": np.array([good])})["count"].shape == (1,)


def test_requests_of_tensorflow_serving(exported):
    """All outputs, through protos as a client and the server exchange them."""
    detector, version = exported
    server, images = Server(version), scenes(3)
    portrait = np.stack(images)[:, :, :90]
    files = [encoded(image, format) for image, format in zip(images, ("PNG", "JPEG", "PNG"), strict=True)]
    files[2] = encoded(portrait[2], "PNG")
    for signature, name, values, shown in (
        ("serving_default", "images", portrait.astype("float32"), portrait),
        ("serving_default", "images", portrait[:1].astype("float32"), portrait[:1]),
        ("serving_uint8", "images", portrait, portrait),
        ("detect_bytes", "image_bytes", files, [decode_file(file, "file") for file in files]),
    ):
        answers = ask(server, signature, name, values)
        expected = detector.detect(list(shown))
        found = read_detections(answers, len(shown))
        assert [problem(*pair) for pair in zip(found, expected, strict=True)] == [None] * len(shown)
        for own, names in zip(expected, answers["classes"], strict=True):
            right = [detector.class_names[label].encode() for label in own.labels]
            assert names.tolist() == right + [b""] * (12 - len(own))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_bytes\[1\] is damaged"):
        ask(server, "detect_bytes", "image_bytes", [files[0], files[1][:600]])


@pytest.mark.slow
def test_nothing_is_found_and_one_class(tmp_path):
    detector = build(C4, classes=("owl",), score_threshold=0.999)
    found = opened(detector_to_saved_model(detector, tmp_path / "name"))
    answers = found.run(np.stack(scenes(3)).astype("float32"))
    assert answers["count"].tolist() == [0, 0, 0]
    assert not any(answers[name].any() for name in ("boxes", "scores", "labels"))
    assert set(answers["classes"].flat) == {""}
    assert broken_signatures(found, detector, scenes(1)[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [(FPN, {}), (RETINANET, {}), (C4, {"global_context": True})])
def test_other_detectors(name, options, tmp_path):
    detector = build(name, score_threshold=0.01, **options)
    artifact = opened(detector_to_saved_model(detector, tmp_path / "name"))
    assert broken_signatures(artifact, detector, scenes(1)[0]) == []
    assert artifact.run(scenes(1)[0][None].astype("float32"))["count"][0] > 2


@pytest.mark.slow
def test_in_a_process_without_keras(exported):
    detector, version = exported
    assert verify(detector, "saved_model", version, scenes()).problems == ()
    layer = detector.model.get_layer("roi_deltas")
    kernel = layer.kernel.numpy()
    layer.kernel.assign(1.1 * kernel)
    try:
        assert not verify(detector, "saved_model", version, scenes()).equal
    finally:
        layer.kernel.assign(kernel)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="line break"):
        detector_to_saved_model(build(C4, classes=("a\nb",)), tmp_path / "name")
    assert not list(tmp_path.iterdir())
