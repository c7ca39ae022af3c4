"""`verify` notices an artifact in which one number was changed."""

import dataclasses

import numpy as np
import pytest
from helpers.export_networks import SMALL_CIFAR, photo_batches, serving, spec_of

from keras_resnet.export.artifacts import ARTIFACTS, FORMATS, Options
from keras_resnet.export.pipeline import write_artifact
from keras_resnet.export.report import parity_table
from keras_resnet.export.verification import verify

SPEC = spec_of("cifar_resnet20", SMALL_CIFAR)
OPTIONS = Options(labels=tuple(f"class {index}" for index in range(10)))


@pytest.fixture
def exported(tmp_path):
    model = serving(SPEC)
    return model, {
        name: write_artifact(name, model, tmp_path / ARTIFACTS[name].file_name, OPTIONS) for name in FORMATS
    }


def replace_bytes(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1, "the bytes must occur once"
    path.write_bytes(content.replace(old, new))


def changed(kernel):
    kernel = np.array(kernel)
    kernel[3, 2] += 0.05
    return kernel


def assert_all_different(model, artifacts):
    report = verify(model, artifacts, photo_batches(SPEC), OPTIONS)
    assert not report.equal
    for name, entry in report.formats.items():
        assert not entry.equal, name
        assert entry.max_relative_difference > 1e-5, name
    assert parity_table(report).count("DIFFERENT") == 3


def test_one_weight(exported):
    model, artifacts = exported
    kernel = model.get_layer(SPEC.model).get_layer("predictions").kernel.numpy()
    for path in (artifacts["saved_model"] / "saved_model.pb", artifacts["onnx"]):
        replace_bytes(path, kernel.tobytes(), changed(kernel).tobytes())
    replace_bytes(artifacts["tflite"], kernel.T.tobytes(), changed(kernel).T.tobytes())
    assert_all_different(model, artifacts)


def test_one_normalization_constant(exported):
    model, artifacts = exported
    scale = np.array(SPEC.normalization.as_scale_and_offset()[0], "float32")
    other = scale * np.array([1, 1.01, 1], "float32")
    for path in (artifacts["saved_model"] / "saved_model.pb", artifacts["onnx"], artifacts["tflite"]):
        replace_bytes(path, scale.tobytes(), other.tobytes())
    assert_all_different(model, artifacts)


def test_the_label_order(exported, tmp_path):
    model, _ = exported
    first, second, *others = OPTIONS.labels
    swapped = dataclasses.replace(OPTIONS, labels=(second, first, *others))
    artifacts = {
        name: write_artifact(name, model, tmp_path / "swapped" / ARTIFACTS[name].file_name, swapped)
        for name in FORMATS
    }
    report = verify(model, artifacts, photo_batches(SPEC), OPTIONS)
    for name, entry in report.formats.items():
        assert not entry.equal, name
        assert entry.max_relative_difference <= 1e-5, name
        assert any("class 1" in problem for problem in entry.problems), name
    assert verify(model, artifacts, photo_batches(SPEC), swapped).equal
