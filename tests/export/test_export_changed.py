"""`verify` notices an artifact in which one number was changed."""

import dataclasses
import shutil

import numpy as np
import pytest
from helpers.export_networks import SMALL_CIFAR, photo_batches, serving, spec_of

from keras_resnet.export.artifacts import ARTIFACTS, FORMATS, Options
from keras_resnet.export.pipeline import write_artifact
from keras_resnet.export.report import parity_table
from keras_resnet.export.verification import verify

SPEC = spec_of("cifar_resnet20", SMALL_CIFAR)
OPTIONS = Options(labels=tuple(f"class {index}" for index in range(10)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(Keras model, folder of its artifacts)."""
    model, folder = serving(SPEC), tmp_path_factory.mktemp("exported")
    for name in FORMATS:
        write_artifact(name, model, folder / ARTIFACTS[name].file_name, OPTIONS)
    return model, folder


@pytest.fixture
def exported(written, tmp_path):
    """(Keras model, copies of its artifacts)."""
    model, folder = written
    shutil.copytree(folder, tmp_path / "exported")
    artifacts = {name: tmp_path / "exported" / ARTIFACTS[name].file_name for name in FORMATS}
    artifacts["saved_model"] /= "1"
    return model, artifacts


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


@pytest.mark.slow
def test_one_normalization_constant(exported):
    model, artifacts = exported
    scale = np.array(SPEC.normalization.as_scale_and_offset()[0], "float32")
    other = scale * np.array([1, 1.01, 1], "float32")
    for path in (artifacts["saved_model"] / "saved_model.pb", artifacts["onnx"], artifacts["tflite"]):
        replace_bytes(path, scale.tobytes(), other.tobytes())
    assert_all_different(model, artifacts)


def test_the_label_order(exported):
    model, artifacts = exported
    del artifacts["saved_model"]  # its names are compared in test_export_saved_model
    first, second, *others = OPTIONS.labels
    swapped = dataclasses.replace(OPTIONS, labels=(second, first, *others))
    report = verify(model, artifacts, photo_batches(SPEC), swapped)
    for name, entry in report.formats.items():
        assert not entry.equal, name
        assert entry.max_relative_difference <= 1e-5, name
        assert any("class 1" in problem for problem in entry.problems), name
