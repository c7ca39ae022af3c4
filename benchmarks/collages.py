"""A folder of real JPEGs of any size and number: handwritten digits in color on crops of photos.

python -m benchmarks.collages --output_dir=collages --height=224 --width=224 --train=3000 --val=500
"""

from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks import harness
from keras_resnet import cli, data
from keras_resnet.errors import InputError

_QUALITIES = (75, 95)


def main(output_dir: str, height: int, width: int, **counts: int) -> None:
    """Writes `output_dir/split/class/number.jpg`; the same bytes for the same arguments.

    A digit covers 50 to 95 % of the shorter side, at a random place and in a random color that is brighter or
    darker than the background. `counts` are the numbers of images by split; splits share no digits.
    """
    import tensorflow as tf
    from sklearn.datasets import load_digits, load_sample_images

    folder = Path(output_dir)
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another --output_dir")
    harness.at_least_one(height=height, width=width, **counts)
    digits: Any = load_digits()
    photos = cast(Any, load_sample_images()).images
    test = data.held_out(digits.target)
    for number, (split, count) in enumerate(counts.items()):
        random = np.random.default_rng(number)
        chosen = np.flatnonzero(test == (split == "val"))
        for name in np.unique(digits.target):
            (folder / split / str(name)).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            which = chosen[index % len(chosen)]
            image = _background(photos[index % len(photos)], height, width, random)
            _paste(image, digits.images[which] / 16, random)
            quality = int(random.integers(_QUALITIES[0], _QUALITIES[1] + 1))
            encoded = tf.io.encode_jpeg(image.astype("uint8"), quality=quality).numpy()
            (folder / split / str(digits.target[which]) / f"{index:06}.jpg").write_bytes(encoded)


def _background(photo: np.ndarray, height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A crop of a photo, float32 (height, width, 3), 0-255."""
    import tensorflow as tf

    scale = random.uniform(0.4, 1) * min(photo.shape[0] / height, photo.shape[1] / width)
    rows, columns = int(height * scale), int(width * scale)
    top = int(random.integers(0, photo.shape[0] - rows + 1))
    left = int(random.integers(0, photo.shape[1] - columns + 1))
    crop = photo[top : top + rows, left : left + columns]
    resized = tf.image.resize(crop, (height, width), antialias=True).numpy()
    return np.clip(resized, 0, 255)


def _paste(image: np.ndarray, digit: np.ndarray, random: np.random.Generator) -> None:
    """Draws a digit, (8, 8) in 0-1, into the image."""
    import tensorflow as tf

    height, width = image.shape[:2]
    side = int(random.uniform(0.5, 0.95) * min(height, width))
    top, left = (int(random.integers(0, length - side + 1)) for length in (height, width))
    shape = np.clip(tf.image.resize(digit[..., None], (side, side), method="bicubic").numpy(), 0, 1)
    under = image[top : top + side, left : left + side]
    bright = random.random() < 0.5
    color = random.uniform(180, 255, 3) if bright else random.uniform(0, 75, 3)
    # The background is moved away from the color, so that the digit is visible everywhere.
    under *= 0.3
    under += 0 if bright else 0.7 * 255
    under += (color - under) * shape


COMMAND = cli.Command(
    main,
    __doc__ or "",
    (
        cli.Flag("output_dir", "The folder to make.", required=True),
        cli.Flag("height", "Pixels.", int, 224),
        cli.Flag("width", "Pixels.", int, 224),
        cli.Flag("train", "Images in train/.", int, 3000),
        cli.Flag("val", "Images in val/, with digits that train/ does not have.", int, 500),
    ),
)

if __name__ == "__main__":
    cli.run(COMMAND)
