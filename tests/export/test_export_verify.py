"""Defects that `verify` finds, in artifacts that are plain functions."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.export_networks import SMALL_CIFAR, photo_batches, serving, spec_of

from keras_resnet.errors import InputError
from keras_resnet.export import verification as verify_module
from keras_resnet.export.artifacts import ArtifactKind
from keras_resnet.export.report import ExportReport, parity_table
from keras_resnet.export.runtimes import Artifact, RunError
from keras_resnet.export.verification import verify
from keras_resnet.files import write_json

SPEC = spec_of("cifar_resnet20", SMALL_CIFAR)
INPUTS = {"images": ("float32", (None, 32, 32, 3))}
OUTPUTS = {"logits": ("float32", (None, 10)), "probabilities": ("float32", (None, 10))}


@pytest.fixture(scope="module")
def model():
    return serving(SPEC)


@pytest.fixture
def verify_function(model, monkeypatch, tmp_path):
    """Verifies an artifact that returns `change(correct results, images)`."""
    (tmp_path / "artifact").write_bytes(b"x")

    def check(
        change=lambda results, images: results,
        inputs=INPUTS,
        outputs=OUTPUTS,
        batches=None,
        tolerance=1e-5,
        max_top1_drop=None,
    ):
        def run(images):
            results = {key: value.numpy() for key, value in model(images, training=False).items()}
            return change(results, images)

        @contextlib.contextmanager
        def opened(path):
            yield Artifact(inputs, outputs, run, "function 1.0")

        function = ArtifactKind("function", "float32" if tolerance == 1e-5 else "int8", tolerance)
        monkeypatch.setattr(verify_module, "ARTIFACTS", {"function": function})
        monkeypatch.setattr(verify_module, "open_artifact", lambda format, path: opened(path))
        monkeypatch.setattr(verify_module, "expected_signature", lambda *arguments: (INPUTS, OUTPUTS))
        batches = photo_batches(SPEC) if batches is None else batches
        artifacts = {"function": tmp_path / "artifact"}
        return verify(model, artifacts, batches, max_top1_drop=max_top1_drop)

    return check


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def with_logits(logits):
    return {"logits": logits, "probabilities": softmax(logits)}


def test_equal(verify_function):
    report = verify_function()
    entry = report.formats["function"]
    assert report.equal
    assert entry.equal
    assert entry.images == report.images == 8
    assert entry.top1 == report.top1
    assert "equal" in parity_table(report)


def test_no_labels_no_top1(verify_function):
    report = verify_function(batches=[(images, None) for images, _ in photo_batches(SPEC)])
    assert report.top1 is None
    assert report.formats["function"].top1 is None
    assert "%" not in parity_table(report)


def test_labels_are_counted(verify_function, model):
    images = np.concatenate([images for images, _ in photo_batches(SPEC)])
    best = model(images)["logits"].numpy().argmax(-1)
    labels = np.where(np.arange(8) < 6, best, (best + 1) % 10)
    report = verify_function(batches=[(images[:3], labels[:3]), (images[3:], labels[3:])])
    assert report.top1 == report.formats["function"].top1 == 0.75


@pytest.mark.parametrize(("relative", "equal"), [(0.5e-5, True), (2e-5, False)])
def test_tolerance(verify_function, model, relative, equal):
    def change(results, images):
        del images
        offset = relative * largest
        return with_logits(results["logits"].astype("float64") + offset)

    images = np.concatenate([images for images, _ in photo_batches(SPEC)])
    largest = float(np.abs(model(images)["logits"].numpy()).max())
    report = verify_function(change)
    entry = report.formats["function"]
    assert entry.max_relative_difference == pytest.approx(relative, rel=0.2)
    assert entry.equal is report.equal is equal


@pytest.mark.parametrize(("relative", "verdict"), [(0.04, "close"), (0.06, "DIFFERENT")])
def test_less_precise_formats_are_judged_by_all_their_logits(verify_function, relative, verdict):
    def change(results, images):
        del images
        return with_logits(results["logits"].astype("float64") * (1 + relative))

    report = verify_function(change, tolerance=0.05)
    entry = report.formats["function"]
    assert entry.rms_relative_difference == pytest.approx(relative, rel=1e-3)
    assert report.equal is (verdict == "close")
    assert verdict in parity_table(report)


def test_a_file_that_loses_top1_is_worse(verify_function, model):
    images = np.concatenate([images for images, _ in photo_batches(SPEC)])
    best = model(images)["logits"].numpy().argmax(-1)
    report = verify_function(
        lambda results, images: with_logits(-results["logits"].astype("float64")),
        batches=[(images, best)],
        tolerance=3,
        max_top1_drop=0.5,
    )
    entry = report.formats["function"]
    assert (entry.equal, entry.top1_drop, entry.verdict) == (True, 1, "worse")
    assert report.passes(strict=False)
    assert not report.passes(strict=True)
    table = parity_table(report)
    assert "worse" in table
    assert "its top-1 is 100 points below the Keras model's; 50 are allowed" in table
    values = json.loads(json.dumps(report.to_json()))
    assert values["formats"]["function"]["verdict"] == "worse"
    assert ExportReport.from_json(values).to_json() == values
    allowed = dataclasses.replace(entry, top1_drop=0.7 - 0.69, max_top1_drop=0.01)  # 1 point and a rounding
    assert allowed.verdict == "close"


def test_reports_of_older_versions_are_read():
    file = Path(__file__).parents[1] / "fixtures" / "first_edition" / "finished" / "export" / "parity.json"
    report = ExportReport.from_json(json.loads(file.read_text()))
    assert report.passes(strict=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_different(verify_function, tmp_path, value):
    def change(results, images):
        logits = results["logits"].copy()
        logits[len(images) - 1, 0] = value
        with np.errstate(invalid="ignore"):
            return with_logits(logits)

    with np.errstate(invalid="ignore"):
        report = verify_function(change)
    entry = report.formats["function"]
    assert not entry.equal
    assert entry.max_abs_logit_difference is None
    assert "DIFFERENT" in parity_table(report)
    write_json(tmp_path / "parity.json", report.to_json())
    assert json.loads((tmp_path / "parity.json").read_text())["equal"] is False


def refuses_batches(results, images):
    if len(images) > 1:
        raise RunError("expected batch 1")
    return results


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda results, images: {**results, "probabilities": results["logits"]}, "softmax"),
        (lambda results, images: with_logits(results["logits"] * (1 + 1e-4 * len(images))), "other images"),
        (lambda results, images: {"logits": results["logits"]}, "shapes"),
        (lambda results, images: {key: value[:1] for key, value in results.items()}, "shapes"),
        (refuses_batches, "does not run on a batch of 5: expected batch 1"),
    ],
)
def test_wrong_results(verify_function, change, problem):
    report = verify_function(change)
    assert not report.equal
    assert any(problem in sentence for sentence in report.formats["function"].problems)
    assert problem in parity_table(report)


@pytest.mark.parametrize(
    "described",
    [
        {"inputs": {"keras_tensor": INPUTS["images"]}},
        {"inputs": {"images": ("float32", (1, 32, 32, 3))}},
        {"inputs": {"images": ("uint8", (None, 32, 32, 3))}},
        {"outputs": {"Identity:0": OUTPUTS["logits"], "probabilities": OUTPUTS["probabilities"]}},
    ],
)
def test_wrong_signatures(verify_function, described):
    report = verify_function(**described)
    assert not report.equal
    assert report.formats["function"].problems


def test_no_images(verify_function):
    with pytest.raises(InputError, match="no images"):
        verify_function(batches=[])


def test_a_model_that_diverged_is_not_equal(verify_function, model):
    bias = model.get_layer(SPEC.model).get_layer("predictions").bias
    before = bias.numpy()
    bias.assign(np.full(10, np.nan))
    try:
        report = verify_function()
    finally:
        bias.assign(before)
    assert not report.equal
    assert report.formats["function"].problems == ("the Keras model's own logits are not finite",)
