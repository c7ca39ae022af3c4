"""A real dataset that needs no network: scikit-learn's handwritten digits as a TFDS builder."""

from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

HOLD_OUT = 5
"""Every `HOLD_OUT`-th example of a class is a test example."""


def held_out(classes: np.ndarray) -> np.ndarray:
    """Selects the test examples, bool (examples,): every fifth one of each class, in the source's order."""
    test = np.zeros(len(classes), bool)
    for label in np.unique(classes):
        test[np.flatnonzero(classes == label)[HOLD_OUT - 1 :: HOLD_OUT]] = True
    return test


def digits_examples(test: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the training or test examples: positions in the source, images, uint8 (n, 8, 8), and labels."""
    from sklearn.datasets import load_digits

    digits = cast(Any, load_digits())
    chosen = np.flatnonzero(held_out(digits.target) == test)
    images = np.rint(digits.images[chosen] * (255 / 16)).astype("uint8")
    return chosen, images, digits.target[chosen].astype("int32")


# Not registered: importing a module must not change what `tfds.list_builders()` says.
with skip_registration():

    class Digits(tfds.core.GeneratorBasedBuilder):
        """1,797 images of digits, 8x8 gray pixels, that ship inside scikit-learn.

        The pixels' 17 levels (0-16) are stretched to 0-255. The split is 80/20 and stratified: see
        `held_out`.
        """

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            return self.dataset_info_from_configs(
                description="Handwritten digits, 8x8, from scikit-learn's load_digits().",
                homepage="https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                        "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            del dl_manager  # nothing to download
            return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

        def _generate_examples(self, test: bool):
            for index, image, label in zip(*digits_examples(test), strict=True):
                yield int(index), {"image": image[..., None], "label": int(label)}
