import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from helpers.data_helpers import write_image, write_tfds

from keras_resnet.data import IndexedSplit, open_dataset, sources


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def digits(digits_dir):
    return open_dataset("digits", digits_dir)


@pytest.fixture(scope="session")
def imagenet_dir(tmp_path_factory):
    """ImageNet's format with 53 training images in 4 files; image `i` has size and label of its own."""
    random = np.random.default_rng(0)

    def example(index, label):
        shape = (40 + index % 7, 50 - index % 11, 3)
        return {
            "image": random.integers(0, 256, shape, dtype=np.uint8),
            "label": label,
            "file_name": f"n{index}.JPEG",
        }

    splits = {
        "train": [example(i, i) for i in range(53)],
        "validation": [example(i, i) for i in range(11)],
        "test": [example(i, -1) for i in range(4)],
    }
    return write_tfds(tmp_path_factory.mktemp("imagenet"), "imagenet2012", splits, shards=4)


@pytest.fixture
def large(imagenet_dir, monkeypatch):
    """ImageNet's format, read from its files."""
    monkeypatch.setattr(sources, "INDEXED_BYTES", 0)
    return open_dataset("imagenet2012", imagenet_dir)


@pytest.fixture(scope="session")
def pixels():
    """50 random 12x12 color images; the label of each is its index."""
    images = np.random.default_rng(1).integers(0, 256, (50, 12, 12, 3), dtype=np.uint8)
    return IndexedSplit("train", images, np.arange(50, dtype="int32"))


@pytest.fixture
def image_folder(tmp_path):
    """Two classes of 7 and 10 images, of mixed sizes, formats and colors."""
    random = np.random.default_rng(2)
    for name, count in (("cats", 7), ("dogs", 10)):
        for index in range(count):
            channels = 1 if index % 3 == 0 else 3
            image = random.integers(0, 256, (9 + index, 20 - index, channels), dtype=np.uint8)
            write_image(tmp_path / name / f"{index:02}.{'png' if index % 2 else 'jpg'}", image)
    (tmp_path / "cats" / ".hidden").write_text("no image")
    return tmp_path
