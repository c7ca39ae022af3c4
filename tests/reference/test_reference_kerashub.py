"""KerasHub opens the folders that are written for it, with the same outputs."""

import pytest
from helpers.zoo_networks import randomize, relative_difference, zeros_for_weights

from keras_resnet import Normalization, Preprocessing, extract_features
from keras_resnet.commands.weights import convert_weights
from keras_resnet.export.images import sample_photos
from keras_resnet.weights import ModelSpec, save_weights

pytestmark = pytest.mark.tools

LABELS = ("ant", "bee", "cat", "dog", "elk")
SIZE = 64
PREPROCESSING = Preprocessing(SIZE, 75, "bilinear", Normalization((120.1, 110.2, 100.3), (60.4, 50.5, 40.6)))


@pytest.fixture
def written(tmp_path):
    """Writes a network with random weights; returns it and the folder."""

    def write(name, channels=3):
        spec = ModelSpec(name, {}, len(LABELS), (SIZE, SIZE, channels), PREPROCESSING, LABELS)
        model, path = randomize(spec.build(), 3), tmp_path / name
        source = save_weights(model, tmp_path / f"{name}.weights.h5", spec)
        with zeros_for_weights():
            convert_weights(str(source), None, str(path), "huggingface")
        return model, path

    return write


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v1_5"])
def test_the_same_outputs(name, written):
    import keras_hub

    ours, folder = written(name)
    pixels = sample_photos(SIZE, SIZE)
    inputs = PREPROCESSING.normalization(pixels)
    expected = ours(inputs)
    theirs = keras_hub.models.ImageClassifier.from_preset(str(folder))
    assert relative_difference(theirs(inputs), expected) <= 1e-5
    # It normalizes the images for `predict`, and resizes those of another size.
    assert relative_difference(theirs.predict(pixels, verbose=0), expected) <= 1e-5
    converter = theirs.preprocessor.image_converter
    assert (converter.image_size, converter.interpolation) == ((SIZE, SIZE), "bilinear")
    backbone = keras_hub.models.Backbone.from_preset(str(folder))
    assert relative_difference(backbone(inputs), extract_features(ours)(inputs)["C5"]) <= 1e-5


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", 3), ("resnet18", 1), ("resnet18d", 3), ("resnext50_32x4d", 3)]
)
def test_the_card_mentions_kerashub_if_it_opens_the_folder(name, channels, written):
    import keras_hub

    _, folder = written(name, channels)
    try:
        keras_hub.models.ImageClassifier.from_preset(str(folder))
    except ValueError as error:
        print(error)
        opens = False
    else:
        opens = True
    assert opens == ("keras_hub" in (folder / "README.md").read_text(encoding="utf-8"))
