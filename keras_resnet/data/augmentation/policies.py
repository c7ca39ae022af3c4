"""Augmentation policies."""

import dataclasses

from keras_resnet.errors import unknown_name
from keras_resnet.images.preprocessing import REFERENCE_SIZE, usual_resize


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """An augmentation policy.

    Attributes:
        resize: range (inclusive, in pixels for a crop of 224) of the shorter side to which an image is
            resized before a random crop.
        area: range of the crop's share of the image area. If neither this nor `resize` is set, the whole
            image is resized.
        aspect: range of the crop's width / height with `area`, drawn log-uniformly.
        pad: zeros added on each side of the normalized image before a random crop of its size.
        flip: mirrors left and right with probability 1/2.
        randaugment: number of RandAugment operations and their magnitude, 0-30.
        jitter: maximum deviation of the brightness, contrast and saturation factors from 1.
        pca: standard deviation of the color shift along ImageNet's principal components, relative to
            their eigenvalues.
        erasing: probability of setting a rectangle of the normalized image to zero.
    """

    resize: tuple[int, int] | None = None
    area: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 0
    flip: bool = False
    randaugment: tuple[int, int] | None = None
    jitter: tuple[float, float, float] | None = None
    pca: float = 0.0
    erasing: float = 0.0

    def resize_range(self, size: int) -> tuple[int, int]:
        """Scales the range of the shorter side to crops of `size`."""
        assert self.resize is not None
        low, high = self.resize
        return round(low * size / REFERENCE_SIZE), round(high * size / REFERENCE_SIZE)

    @property
    def crops(self) -> bool:
        """Whether the input is a random crop of the image; see `crop_box`."""
        return self.resize is not None or self.area is not None

    def evaluation_resize(self, size: int) -> int | None:
        """The evaluation's `Preprocessing.resize`: None unless training crops, too."""
        return usual_resize(size) if self.crops else None


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "pad_crop": Augmentation(pad=4),
    # The paper's section 4.2, CIFAR-10.
    "pad_crop_flip": Augmentation(pad=4, flip=True),
    # Section 3.4, ImageNet, without and with the color augmentation.
    "scale_crop_flip": Augmentation(resize=(256, 480), flip=True),
    "scale_crop_flip_pca": Augmentation(resize=(256, 480), flip=True, pca=0.1),
    # Szegedy et al. 2015, section 6; torchvision's published weights (V1).
    "inception": Augmentation(area=(0.08, 1.0), flip=True),
    # fb.resnet.torch, datasets/imagenet.lua.
    "inception_jitter": Augmentation(area=(0.08, 1.0), flip=True, jitter=(0.4, 0.4, 0.4), pca=0.1),
    # Cubuk et al. 2020, for ResNet-50 on ImageNet.
    "randaugment": Augmentation(area=(0.08, 1.0), flip=True, randaugment=(2, 9)),
    # Erasing (Zhong et al. 2020) as often as torchvision's later weights (V2) were trained with it.
    "randaugment_erasing": Augmentation(area=(0.08, 1.0), flip=True, randaugment=(2, 9), erasing=0.1),
}
"""The augmentations, by name."""


def get_augmentation(name: str) -> Augmentation:
    """Returns a policy of `AUGMENTATIONS`; raises `InputError` for an unknown name."""
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]
