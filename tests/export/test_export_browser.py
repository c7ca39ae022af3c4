"""The page of `zoo serve` in a real browser: its logits are ONNX Runtime's, and it has no faults."""

import base64
import dataclasses
import io
import json
import threading

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from helpers import browser
from helpers.export_networks import SMALL_CIFAR, randomize, spec_of
from PIL import Image

from keras_resnet.data.digits import digits_examples
from keras_resnet.export import pipeline
from keras_resnet.export.artifacts import Options
from keras_resnet.export.images import photos
from keras_resnet.export.page.catalog import describe, find_networks
from keras_resnet.export.page.runtime import runtime_files
from keras_resnet.export.page.server import PageServer
from keras_resnet.images.decode import decode_image
from keras_resnet.images.ops import evaluation_view
from keras_resnet.weights import save_weights

pytestmark = pytest.mark.slow

LABELS = [f"{index}" for index in range(10)]
SPEC = spec_of("cifar_resnet20", SMALL_CIFAR, labels=LABELS)
CROPPED = dataclasses.replace(
    SPEC, preprocessing=dataclasses.replace(SPEC.preprocessing, resize=36, interpolation="bicubic")
)

# Files of images, as base64, through the page's own modules: the logits of a network, by URL.
CLASSIFY = """
async ([url, resize, interpolation, files]) => {
  const { Network } = await import(new URL("network.js", document.baseURI));
  const { decode, prepare } = await import(new URL("pixels.js", document.baseURI));
  const network = await Network.open(url);
  const { channels } = network.input;
  const input = { height: 32, width: 32, channels, resize, interpolation };
  const results = [];
  for (const file of files) {
    const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
    const pixels = prepare(await decode(new Blob([bytes])), input);
    results.push((await network.run(pixels, input)).logits);
  }
  return { logits: results, labels: network.labels };
}
"""
PREPARE = """
async ([file, input]) => {
  const { decode, prepare } = await import(new URL("pixels.js", document.baseURI));
  const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
  return [...prepare(await decode(new Blob([bytes])), input)];
}
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of three exports: in three precisions, with the other options, and with a crop."""
    folder = tmp_path_factory.mktemp("page")
    network, weights = randomize(SPEC.build()), {}
    # No class is the best for all images. The offset of all logits keeps int8's relative errors small.
    views = evaluation_view(tf.constant(digits_examples(test=False)[1][:64, ..., None]), None, 32, 3)
    logits = network(SPEC.normalization(views))
    network.get_layer("predictions").bias.assign_sub(keras.ops.mean(logits, 0) - 5)
    for name, spec in (("whole", SPEC), ("cropped", CROPPED)):
        weights[name] = save_weights(network, folder / f"{name}.weights.h5", spec)
    given = {"dataset": "digits", "formats": "onnx", "max_top1_drop": 100}
    given["data_dir"] = str(folder / "data")
    options = Options(layout="nchw", io_dtype="uint8", dynamic_size=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "time_artifact", lambda *arguments: {})
        for name, kind, more in (
            ("0", "whole", {"precision": "float32,float16,int8", "calibration_images": 64}),
            ("1", "whole", {"options": options}),
            ("2", "cropped", {}),
        ):
            more = {**given, **more, "output_dir": folder / "exported" / name}
            assert pipeline.export_weights("cifar_resnet20", weights[kind], **more)
    return folder / "exported"


@pytest.fixture(scope="module")
def address(exported):
    entries, paths = describe(find_networks(exported))
    paths |= {f"runtime/{name}": path for name, path in runtime_files().items()}
    with PageServer(0, paths, {"networks.json": json.dumps(entries).encode()}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture
def page(chromium, address):
    """The page, ready; fails at its end for faults that the browser named in the meantime."""
    with browser.opened(chromium, address, browser.DEVICES["desktop"], "light", address) as (page, found):
        settle(page)
        yield page
        assert found == []


def encoded(image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, **{"format": "png", **options})
    return file.getvalue()


def as_text(content):
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("index", [0, 1, 2], ids=["default", "nchw uint8", "cropped bicubic"])
def test_logits_are_those_of_onnx_runtime(page, exported, index):
    """On 100 test images of the digits, of 8 x 8 pixels, as PNG files."""
    files = [encoded(image) for image in digits_examples(test=True)[1][:100]]
    view = (36, 32, 3, "bicubic") if index == 2 else (None, 32, 3, "bilinear")
    images = np.stack([evaluation_view(decode_image(tf.constant(file)), *view) for file in files])
    path = exported / str(index) / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if index == 1:
        images = np.rint(images.transpose(0, 3, 1, 2)).astype("uint8")
    (expected,) = session.run(["logits"], {"images": images})
    entry = page.evaluate("async () => (await fetch('networks.json')).json()")[index]
    given = [entry["files"][0]["url"], entry["resize"], entry["interpolation"], [*map(as_text, files)]]
    found = page.evaluate(CLASSIFY, given)
    logits = np.array(found["logits"])
    assert found["labels"] == LABELS
    assert len(set(expected.argmax(-1))) > 1
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_images_are_resized_as_in_the_evaluation(page):
    random = np.random.default_rng(0)
    sizes = [(8, 8, 32, None), (300, 411, 224, 256), (300, 411, 61, 73), (45, 61, 64, 70), (37, 50, 24, None)]
    for height, width, size, resize in sizes:
        noise = random.integers(0, 256, (height, width, 3), "uint8")
        for channels, interpolation in ((3, "bilinear"), (1, "bilinear"), (3, "bicubic")):
            expected = evaluation_view(tf.constant(noise), resize, size, channels, interpolation).numpy()
            found = prepared(page, encoded(noise), size, resize, interpolation, channels)
            # TensorFlow computes positions in float32.
            np.testing.assert_allclose(found, expected, atol=0.05)


def prepared(page, file, size, resize, interpolation="bilinear", channels=3):
    given = {"height": size, "width": size, "channels": channels}
    given |= {"resize": resize, "interpolation": interpolation}
    return np.reshape(page.evaluate(PREPARE, [as_text(file), given]), (size, size, channels))


def test_files_are_decoded_as_in_the_evaluation(page):
    """A turned JPEG, gray pixels for a network of one channel, and transparent pixels on white."""
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    file = encoded(photos()[0], format="jpeg", quality=95, exif=exif)
    expected = evaluation_view(decode_image(tf.constant(file)), 64, 56, 3).numpy()
    assert np.abs(prepared(page, file, 56, 64) - expected).mean() < 1
    gray = np.random.default_rng(0).integers(0, 256, (8, 8), "uint8")
    np.testing.assert_array_equal(prepared(page, encoded(gray), 8, None, channels=1)[..., 0], gray)
    transparent = np.zeros((4, 4, 4), "uint8")
    np.testing.assert_array_equal(prepared(page, encoded(transparent), 4, None), 255)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", browser.DEVICES)
def test_the_page_has_no_fault(chromium, address, device, scheme):
    """Nothing is asked from other addresses."""
    with browser.opened(chromium, address, browser.DEVICES[device], scheme, address) as (page, found):
        settle(page)
        page.locator("#samples button").first.click()
        page.locator("#compare").click()
        settle(page)
        assert found + browser.look(page, browser.DEVICES[device]) == []


def settle(page):
    """Waits until the page has done what it was asked for."""
    page.wait_for_selector("main[aria-busy=false]")


def text(page, selector):
    settle(page)
    return page.locator(selector).inner_text()


def classes(page):
    """The names of the classes in the result, best first."""
    settle(page)
    return page.locator("#classes .line span:first-child").all_inner_texts()


def test_a_person_tries_a_network(page, tmp_path):
    assert page.locator("#network option").all_inner_texts() == ["cifar_resnet20"] * 3
    assert text(page, "#status").startswith("cifar_resnet20 in float32, ")
    assert page.locator("#index tbody tr").count() == 3
    samples = page.locator("#samples button")
    assert samples.count() == 8
    assert samples.first.get_attribute("aria-label").startswith("Sample 1: ")
    samples.first.click()
    assert len(set(classes(page)) & set(LABELS)) == 5
    assert "ms for the network" in text(page, "#time")
    assert page.locator("#view").evaluate("view => [view.width, view.height]") == [32, 32]

    page.locator("#compare").click()
    settle(page)
    rows = page.locator("#comparison tbody tr")
    texts = [rows.nth(index).locator("td").all_inner_texts() for index in range(rows.count())]
    assert [cells[0] for cells in texts] == ["float32", "float16", "int8"]
    assert [float(cells[7]) < 0.2 for cells in texts] == [True] * 3
    assert all(" ms" in cells[3] and cells[5] in LABELS for cells in texts)

    page.locator("#file").select_option("2")
    assert text(page, "#status").startswith("cifar_resnet20 in int8, ")
    assert len(classes(page)) == 5

    (tmp_path / "photo.png").write_bytes(encoded(photos()[0]))
    page.locator("#photo").set_input_files(tmp_path / "photo.png")
    assert text(page, "#view-caption") == "photo.png"
    (tmp_path / "text.png").write_bytes(b"no image")
    page.locator("#photo").set_input_files(tmp_path / "text.png")
    assert text(page, "#status") == "Error: the browser cannot decode this file as an image"

    page.locator("#network").select_option("1")
    assert text(page, "#status").startswith("cifar_resnet20 in float32, ")
    assert len(classes(page)) == 5


def test_samples_are_not_cropped_again(page, exported):
    page.locator("#network").select_option("2")
    settle(page)
    page.locator("#samples button").nth(1).click()
    assert len(classes(page)) == 5
    seen = page.locator("#view").evaluate(
        "view => [...view.getContext('2d').getImageData(0, 0, view.width, view.height).data]"
    )
    strip = np.asarray(Image.open(exported / "2" / "samples.png"))
    np.testing.assert_array_equal(np.reshape(seen, (32, 32, 4))[..., :3], strip[:, 32:64])


def ink(page):
    """The share of the drawing's pixels that is white."""
    levels = page.locator("#pad").evaluate(
        "pad => [...pad.getContext('2d').getImageData(0, 0, pad.width, pad.height).data]"
    )
    return np.mean(levels[::4]) / 255


def test_a_drawing_by_pointer_and_by_keyboard(page):
    assert ink(page) == 0
    pad = page.locator("#pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 200, steps=5)
    page.mouse.up()
    drawn = ink(page)
    assert 0.03 < drawn < 0.1
    assert len(classes(page)) == 5
    assert text(page, "#view-caption") == "Drawing"
    page.mouse.move(box["x"] + 200, box["y"] + 200)  # the button is up
    assert ink(page) == drawn

    pad.press("Delete")
    assert ink(page) == 0
    pad.press("ArrowRight")
    assert ink(page) == 0  # the pen is up
    pad.press("Space")
    for _ in range(5):
        pad.press("ArrowDown")
    assert ink(page) > 0.005
    page.locator("#paper").check()
    assert ink(page) == 1
    page.locator("#clear").click()
    assert ink(page) == 1


def test_a_dropped_photo(page):
    """Files are dropped as the browser does it."""
    page.evaluate(
        """
        (file) => {
          const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }
        """,
        as_text(encoded(photos()[1])),
    )
    assert text(page, "#view-caption") == "dropped.png"
    assert len(classes(page)) == 5
