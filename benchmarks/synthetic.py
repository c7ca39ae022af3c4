"""A TFDS dataset of noise, for what must read its images as any training does."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

_TEST_EXAMPLES = 64


def write(folder: Path, examples: int, size: int) -> None:
    """Prepares the dataset "synthetic" in a data folder.

    Args:
        folder: TFDS' data_dir.
        examples: of the training split; the test split is small.
        size: height and width, pixels.
    """
    # Not registered: importing a module must not change what `tfds.list_builders()` says.
    with tfds.core.registered.skip_registration():

        class Synthetic(tfds.core.GeneratorBasedBuilder):
            """Random pixels of ten classes."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(size, size, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
                return self.dataset_info_from_configs(
                    features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
                )

            def _split_generators(self, dl_manager):
                del dl_manager  # nothing to download
                return {
                    "train": self._generate_examples(examples),
                    "test": self._generate_examples(_TEST_EXAMPLES),
                }

            def _generate_examples(self, count):
                random = np.random.default_rng(0)
                for index in range(count):
                    image = random.integers(0, 256, (size, size, 3), "uint8")
                    yield index, {"image": image, "label": index % 10}

    tfds.disable_progress_bar()
    Synthetic(data_dir=str(folder)).download_and_prepare()
