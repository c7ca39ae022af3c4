"""The Python snippets of docs/deploy.md run in order on a real export."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.export_networks import SMALL_CIFAR, serving, spec_of

from keras_resnet.export import pipeline
from keras_resnet.export.artifacts import ARTIFACTS, FORMATS, Options
from keras_resnet.export.images import sample_photos
from keras_resnet.export.pipeline import write_artifact

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
LABELS = tuple(f"class {index}" for index in range(10))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Changes to a folder with the files that the page mentions; returns the Keras model."""
    from PIL import Image

    model = serving(spec_of("cifar_resnet20", SMALL_CIFAR, labels=LABELS))
    for name in FORMATS:
        write_artifact(name, model, tmp_path / ARTIFACTS[name].file_name, Options(labels=LABELS))
    photo = sample_photos(100, 120)[0].astype("uint8")
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    monkeypatch.setattr(pipeline, "time_artifact", lambda *arguments: {})  # takes seconds
    monkeypatch.chdir(tmp_path)
    return model


def test_snippets(here):
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(snippets) == 12
    names, probabilities, labels = {}, [], []
    for snippet in snippets:
        names.pop("probabilities", None)
        names.pop("labels", None)
        exec(snippet, names)
        if "probabilities" in names:
            probabilities.append(np.asarray(names["probabilities"]))
        if "labels" in names:
            labels.append(tuple(names["labels"]))
    assert names["images"].shape == (1, 32, 32, 3)
    expected = here(names["images"])["probabilities"].numpy()
    assert len(probabilities) == 4  # TensorFlow, ONNX Runtime, OpenVINO, LiteRT
    for found, tolerance in zip(probabilities, (1e-5, 1e-5, 0.05, 1e-5), strict=True):
        # OpenVINO may compute in bfloat16, as the page says.
        np.testing.assert_allclose(found, expected, atol=tolerance)
    assert labels == [LABELS, LABELS]
    assert set(names["classes"]) <= set(LABELS)
    check_bodies(names)


def check_bodies(names):
    """Runs the request bodies for TensorFlow Serving with the signatures that they name."""
    import tensorflow as tf

    signatures = tf.saved_model.load("saved_model/1").signatures
    rest, request = json.loads(names["body"]), names["request"]
    files = [base64.b64decode(instance["b64"]) for instance in rest["instances"]]
    answer = signatures[rest["signature_name"]](image_bytes=tf.constant(files))
    assert [name.decode() for name in answer["classes"].numpy()[0]] == names["classes"]
    (name,) = request.inputs
    images = tf.make_ndarray(request.inputs[name])
    np.testing.assert_array_equal(images, names["images"])
    assert name in signatures[request.model_spec.signature_name].structured_input_signature[1]
