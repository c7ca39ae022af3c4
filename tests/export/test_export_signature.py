"""The serving model: what goes in and out, and what it refuses."""

import keras
import numpy as np
import pytest
from helpers.export_networks import PER_PIXEL, SMALL_CIFAR, photo_batches, randomize, spec_of

from keras_resnet import build_model
from keras_resnet.errors import InputError
from keras_resnet.export.serving import network_for_export, serving_model
from keras_resnet.images.preprocessing import Normalization
from keras_resnet.weights import save_weights

SPEC = spec_of("cifar_resnet20", SMALL_CIFAR)


@pytest.mark.parametrize("normalization", [Normalization.imagenet(), PER_PIXEL], ids=["channel", "pixel"])
def test_normalization_and_softmax_are_inside(normalization):
    network = randomize(network_for_export(SPEC))
    images = photo_batches(SPEC)[0][0]
    results = serving_model(network, normalization)(images)
    logits = network(normalization(images)).numpy()
    scale = np.abs(logits).max()
    np.testing.assert_allclose(results["logits"], logits, atol=1e-5 * scale)
    np.testing.assert_allclose(results["probabilities"], keras.ops.softmax(results["logits"]), atol=1e-6)


@pytest.mark.parametrize(
    ("data_format", "policy"), [("channels_first", "float32"), ("channels_last", "mixed_bfloat16")]
)
def test_layout_and_precision_of_the_training_do_not_matter(tmp_path, data_format, policy):
    before = keras.config.image_data_format(), keras.config.dtype_policy()
    keras.config.set_image_data_format(data_format)
    keras.config.set_dtype_policy(policy)
    try:
        trained = randomize(SPEC.build())
        save_weights(trained, tmp_path / "model.weights.h5", SPEC)
        network = network_for_export(SPEC, str(tmp_path / "model.weights.h5"))
        assert keras.config.image_data_format() == data_format
        assert keras.config.dtype_policy().name == policy
        model = serving_model(network, SPEC.normalization)
    finally:
        keras.config.set_image_data_format(before[0])
        keras.config.set_dtype_policy(before[1])
    expected = network_for_export(SPEC)
    expected.set_weights(trained.get_weights())
    images = photo_batches(SPEC)[0][0]
    logits = serving_model(expected, SPEC.normalization)(images)["logits"]
    np.testing.assert_array_equal(model(images)["logits"], logits)


def test_refused_models():
    with pytest.raises(InputError, match="classifier_activation=None"):
        serving_model(build_model("cifar_resnet20"), SPEC.normalization)
    with pytest.raises(InputError, match="images to logits"):
        serving_model(build_model("cifar_resnet20", include_top=False), SPEC.normalization)
    for indices, names in ((None, "C1, C2, C3, C4"), ((1, 3), "C2, C4")):
        features = build_model("cifar_resnet20", features_only=True, out_indices=indices)
        with pytest.raises(
            InputError, match=f"gives the features {names}; build it without features_only"
        ) as e:
            serving_model(features, SPEC.normalization)
        assert "\n" not in str(e.value)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = build_model("cifar_resnet20", classifier_activation=None)
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(InputError, match="bfloat16"):
        serving_model(mixed, SPEC.normalization)


def test_other_backends_are_refused(monkeypatch):
    network = network_for_export(SPEC)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="export needs KERAS_BACKEND=tensorflow; it is 'jax'"):
        serving_model(network, SPEC.normalization)


@pytest.mark.parametrize(
    "mean", [(1.0, 2.0), np.zeros((16, 16, 3)).tolist()], ids=["channels", "height and width"]
)
def test_refused_normalizations(mean):
    normalization = Normalization(mean, (1.0,) * np.shape(mean)[-1])
    with pytest.raises(InputError, match="does not fit"):
        serving_model(network_for_export(SPEC), normalization)
