"""The SavedModel's signatures, and bytes of every kind through `classify_bytes`."""

import io
import json
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from helpers.export_networks import SMALL, SMALL_CIFAR, photo_batches, serving, spec_of
from PIL import Image

from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import Options
from keras_resnet.export.check_signatures import broken_signatures
from keras_resnet.export.pipeline import write_artifact
from keras_resnet.export.runtimes import open_artifact
from keras_resnet.export.serving import serving_function
from keras_resnet.export.verification import verify
from keras_resnet.export.writers.image_bytes import decode_batch
from keras_resnet.export.writers.saved_model import to_saved_model
from keras_resnet.images.decode import MAX_PIXELS, decode_image
from keras_resnet.images.ops import evaluation_view
from keras_resnet.images.preprocessing import Normalization, Preprocessing

LABELS = tuple(f"class {index}" for index in range(10))
SPEC = spec_of("resnet18", SMALL, 48, classes=10)
SIDE = 60


def prepared(size, side, interpolation="bilinear"):
    return Preprocessing(size, side, interpolation, Normalization.identity(3))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(Keras model, path of the version, its signatures)."""
    path = tmp_path_factory.mktemp("saved_model") / "name"
    model = serving(SPEC)
    version = to_saved_model(model, path, {"model": "x"}, labels=LABELS, preprocessing=prepared(48, SIDE))
    return model, version, tf.saved_model.load(str(version)).signatures


def photo(size=(70, 90)):
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg")).resize(size)


def encoded(format_name, image=None, **options):
    file = io.BytesIO()
    (image or photo()).save(file, format_name, **options)
    return file.getvalue()


def classify(signatures, *files):
    return signatures["classify_bytes"](image_bytes=tf.constant(list(files), tf.string))


def expected(model, file):
    """As the evaluation sees the file: class names and probabilities, the most probable first."""
    view = evaluation_view(decode_image(file), SIDE, 48, 3)
    probabilities = model(view[None])["probabilities"].numpy()[0]
    best = probabilities.argsort()[::-1][:5]
    return [LABELS[index].encode() for index in best], probabilities[best]


def test_signatures(exported):
    _, version, signatures = exported
    assert version.name == "1"
    assert set(signatures) == {"serving_default", "serving_uint8", "classify_bytes", "features", "labels"}
    (images,) = signatures["serving_uint8"].structured_input_signature[1].values()
    assert (images.dtype, images.shape.as_list()) == (tf.uint8, [None, 48, 48, 3])
    described = {
        name: {key: (spec.dtype.name, spec.shape.as_list()) for key, spec in f.structured_outputs.items()}
        for name, f in signatures.items()
    }
    classes = {"logits": ("float32", [None, 10]), "probabilities": ("float32", [None, 10])}
    assert described == {
        "serving_default": classes,
        "serving_uint8": classes,
        "classify_bytes": {"classes": ("string", [None, 5]), "probabilities": ("float32", [None, 5])},
        "features": {"features": ("float32", [None, 96])},
        "labels": {"labels": ("string", [10])},
    }


def test_labels_and_metadata_are_files_of_the_version(exported):
    _, version, signatures = exported
    assert [name.decode() for name in signatures["labels"]()["labels"].numpy()] == list(LABELS)
    assert (version / "assets" / "labels.txt").read_text().splitlines() == list(LABELS)
    assert json.loads((version / "assets" / "metadata.json").read_text()) == {"model": "x"}


def test_features_are_the_pooled_last_map(exported):
    import keras

    model, _, signatures = exported
    images = photo_batches(SPEC)[0][0]
    network = model.get_layer("resnet18")
    pooled = keras.Model(network.input, network.get_layer("avg_pool").output)
    features = pooled(SPEC.normalization(images), training=False).numpy()
    found = signatures["features"](images=tf.constant(images))["features"].numpy()
    np.testing.assert_allclose(found, features, atol=1e-5 * np.abs(features).max())


def test_bytes_are_seen_as_in_the_evaluation(exported):
    model, _, signatures = exported
    files = [
        encoded("JPEG"),
        encoded("PNG"),
        encoded("JPEG", photo((500, 333)), quality=60),
        encoded("PNG", photo((33, 200)).convert("L")),
        encoded("PNG", photo().convert("RGBA")),
        encoded("JPEG", photo().convert("L")),
    ]
    answers = classify(signatures, *files)
    for index, file in enumerate(files):
        names, probabilities = expected(model, file)
        assert answers["classes"][index].numpy().tolist() == names
        np.testing.assert_allclose(answers["probabilities"][index], probabilities, atol=1e-5)


@pytest.mark.parametrize("side", [60, None])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_bytes_are_prepared_as_for_published_weights(interpolation, side):
    """`Preprocessing` resizes as Pillow does, by which published accuracies were measured."""
    sizes = [(70, 90), (500, 333), (61, 60), (33, 44), (640, 427), (427, 640)]
    photos = [photo(size) for size in sizes]
    files = tf.constant([encoded("PNG", image) for image in photos])
    identity = Normalization((0.0,) * 3, (1.0,) * 3)
    found = decode_batch(files, 48, side, 3, interpolation).numpy()
    assert found.min() > -0.001
    assert found.max() < 255.001
    means = {}
    for known in ("bilinear", "bicubic"):
        expected = Preprocessing(48, side, known, identity)([np.asarray(image) for image in photos])
        means[known] = np.abs(found - expected).mean((1, 2, 3))
    other = means.keys() - {interpolation}
    assert means[interpolation].max() < 1.5
    assert means[other.pop()].mean() > 3 * means[interpolation].mean()


def test_bytes_are_resized_by_the_interpolation_of_the_weights(tmp_path):
    """`broken_signatures` compares with the same interpolation, and reports a different one."""
    spec = spec_of("cifar_resnet20", SMALL_CIFAR)
    model, options = serving(spec), Options(preprocessing=prepared(32, 40, "bicubic"))
    path = write_artifact("saved_model", model, tmp_path / "name", options)
    signatures = tf.saved_model.load(str(path)).signatures

    def call(signature, inputs):
        results = signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        return {
            name: value.numpy().astype(str) if value.dtype == tf.string else value.numpy()
            for name, value in results.items()
        }

    images = photo_batches(spec)[0][0]
    for interpolation, broken in (("bicubic", []), ("bilinear", ["classify_bytes"])):
        options = Options(preprocessing=prepared(32, 40, interpolation))
        artifact = types.SimpleNamespace(call=call)
        problems = broken_signatures(artifact, model, serving_function(model), images, options, 1e-5)
        assert [problem.split()[2] for problem in problems] == broken


def uint16_png():
    return encoded("PNG", Image.fromarray((np.arange(400).reshape(20, 20) * 150).astype("uint16")))


@pytest.mark.parametrize(
    "file",
    [
        encoded("PNG", Image.new("RGB", (1, 1))),
        encoded("JPEG", Image.new("CMYK", (20, 30), (10, 20, 30, 40))),
        uint16_png(),
        encoded("PNG", photo().convert("P")),
        encoded("JPEG") + b"more",
        encoded("JPEG", progressive=True),
    ],
    ids=["1x1", "CMYK", "16 bit", "palette", "trailing", "progressive"],
)
def test_unusual_files_are_classified(exported, file):
    answers = classify(exported[2], encoded("JPEG"), file)
    assert np.isfinite(answers["probabilities"].numpy()).all()
    assert set(answers["classes"][1].numpy()) <= {label.encode() for label in LABELS}


def huge_png():
    file = bytearray(encoded("PNG"))
    file[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(file)


def huge_jpeg():
    file = bytearray(encoded("JPEG"))
    start = file.index(b"\xff\xc0") + 5
    file[start : start + 4] = (60_000).to_bytes(2, "big") * 2
    return bytes(file)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (encoded("JPEG")[:700], f"is damaged, or has more than {MAX_PIXELS} pixels"),
        (encoded("JPEG")[:3], "is damaged"),
        (encoded("PNG")[:-60], "is damaged"),
        (encoded("PNG")[:12], "is damaged"),
        (huge_png(), f"is damaged, or has more than {MAX_PIXELS} pixels"),
        (huge_jpeg(), f"is damaged, or has more than {MAX_PIXELS} pixels"),
        (b"", "is neither a JPEG nor a PNG"),
        (b"an ordinary text", "is neither a JPEG nor a PNG"),
        (
            encoded("GIF", photo(), save_all=True, append_images=[photo((70, 90))]),
            "is neither a JPEG nor a PNG",
        ),
    ],
    ids=["truncated", "3 bytes", "PNG", "PNG head", "huge PNG", "huge JPEG", "empty", "text", "GIF"],
)
def test_bad_files_are_named_by_their_position(exported, file, reason):
    _, _, signatures = exported
    good = encoded("JPEG")
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        classify(signatures, good, good, file, good)
    assert f"image_bytes[2] {reason}" in str(caught.value)
    assert "1 of 4 images cannot be read" in str(caught.value)
    classify(signatures, good)  # later requests are answered


def test_no_images(exported, monkeypatch):
    """Every signature answers zero images, also with oneDNN, which is off by default on older CPUs."""
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    _, version, signatures = exported
    with open_artifact("saved_model", version) as artifact:
        for name, inputs in (
            ("serving_default", {"images": np.zeros((0, 48, 48, 3), "float32")}),
            ("serving_uint8", {"images": np.zeros((0, 48, 48, 3), "uint8")}),
            ("features", {"images": np.zeros((0, 48, 48, 3), "float32")}),
            ("classify_bytes", {"image_bytes": np.zeros(0, "S1")}),
        ):
            found = {key: values.shape for key, values in artifact.call(name, inputs).items()}
            specs = signatures[name].structured_outputs.items()
            assert found == {key: (0, *spec.shape[1:]) for key, spec in specs}, name


@pytest.mark.slow
def test_bfloat16_and_names_that_few_images_show(tmp_path):
    """Two equal names, names beyond ASCII, and swapped names of improbable classes."""
    spec = spec_of("cifar_resnet20", SMALL_CIFAR, classes=50)
    model, name = serving(spec), "saved_model_bfloat16"
    labels = ("crane", "crane", "Käse", *(f"class {index}" for index in range(47)))
    path = write_artifact(name, model, tmp_path / "name", Options(labels=labels))
    entry = verify(model, {name: path}, photo_batches(spec), Options(labels=labels)).formats[name]
    assert entry.problems == ()
    assert entry.equal, entry
    assert 1e-4 < entry.rms_relative_difference < 0.02
    probabilities = np.concatenate([model(images)["probabilities"] for images, _ in photo_batches(spec)])
    last, before = probabilities.max(0)[3:].argsort()[:2] + 3
    swapped = list(labels)
    swapped[last], swapped[before] = swapped[before], swapped[last]
    problems = verify(model, {name: path}, photo_batches(spec), Options(labels=tuple(swapped)))
    assert any("its signature labels gives" in problem for problem in problems.formats[name].problems)


def test_labels_must_be_as_many_as_the_classes(tmp_path):
    with pytest.raises(InputError, match="labels"):
        to_saved_model(serving(SPEC), tmp_path / "name", labels=LABELS[:9])
    assert not (tmp_path / "name").exists()


@pytest.mark.slow
def test_500_damaged_files(exported):
    """Each photo with random flips and truncations is answered, and the process survives."""
    random = np.random.default_rng(0)
    sources = [encoded("JPEG", photo((640, 427)), quality=90), encoded("JPEG", photo(), progressive=True)]
    refusals = []
    for index in range(500):
        file = bytearray(sources[index % 2])
        for _ in range(int(random.integers(1, 20))):
            file[int(random.integers(len(file)))] ^= 1 << int(random.integers(8))
        if random.random() < 0.5:
            del file[int(random.integers(len(file))) :]
        try:
            answers = classify(exported[2], bytes(file))
            assert np.isfinite(answers["probabilities"].numpy()).all()
        except tf.errors.InvalidArgumentError as error:
            refusals.append(str(error))
    assert 100 < len(refusals) < 500
    assert all("image_bytes[0] is" in refusal for refusal in refusals)
    assert classify(exported[2], sources[0])["classes"].shape == (1, 5)


ALONE = """
import sys
hidden = dict.fromkeys(["keras", "keras_resnet", "export", "tf_keras"])
sys.modules.update(hidden)
import tensorflow as tf
version, photo, *arguments = sys.argv[1:]
loaded = tf.saved_model.load(version)
results = loaded.signatures["classify_bytes"](image_bytes=tf.constant([open(photo, "rb").read()]))
print(results["classes"].numpy()[0, 0].decode(), flush=True)
for name in hidden:
    del sys.modules[name]
from tensorflow.python.tools.saved_model_cli import main
sys.argv[1:] = arguments
main()
"""


def test_nothing_of_ours_is_needed(exported, tmp_path):
    """A process loads the model and classifies a photo; then TensorFlow's `saved_model_cli` runs it."""
    model, version, signatures = exported
    (tmp_path / "photo.jpg").write_bytes(encoded("JPEG"))
    images = photo_batches(SPEC)[0][0]
    np.save(tmp_path / "images.npy", images)
    options = ["--tag_set=serve", "--signature_def=serving_default", f"--inputs=images={tmp_path}/images.npy"]
    command = [sys.executable, "-c", ALONE, str(version), str(tmp_path / "photo.jpg")]
    command += ["run", f"--dir={version}", *options, f"--outdir={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == expected(model, encoded("JPEG"))[0][0].decode()
    expected_logits = signatures["serving_default"](images=tf.constant(images))["logits"]
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected_logits)


def test_bfloat16_takes_half_the_bytes(exported, tmp_path):
    model, version, _ = exported
    path = to_saved_model(model, tmp_path / "b", precision="bfloat16", labels=LABELS)
    halves, wholes = ((folder / "saved_model.pb").stat().st_size for folder in (path, version))
    assert halves < 0.6 * wholes
    with pytest.raises(InputError, match="unknown precision of a SavedModel 'int8'"):
        to_saved_model(model, tmp_path / "c", precision="int8")


def test_without_labels_classes_are_numbers(tmp_path):
    spec = spec_of("cifar_resnet20", SMALL_CIFAR)
    version = to_saved_model(serving(spec), tmp_path / "name")
    answers = classify(tf.saved_model.load(str(version)).signatures, encoded("JPEG"))
    assert all(name.isdigit() for name in answers["classes"].numpy()[0])
