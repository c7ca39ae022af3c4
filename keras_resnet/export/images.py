"""Real images for a network that has no dataset at hand: scikit-learn's two sample photos."""

import numpy as np

SOURCE = "crops of scikit-learn's two sample photos"


def sample_photos(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Eight images: each photo as a whole, its center, and two of its corners.

    Args:
        height: of the images, in pixels.
        width: likewise.
        channels: 1 gives the mean of the colours; more than 3 repeat them.

    Returns:
        float32 (8, height, width, channels), pixels 0-255; the same for the same arguments.
    """
    import tensorflow as tf
    from sklearn.datasets import load_sample_images

    images = []
    for photo in load_sample_images().images:
        rows, columns = photo.shape[:2]
        half_rows, half_columns = rows // 2, columns // 2
        crops = [
            photo,
            photo[rows // 4 :, columns // 4 :][:half_rows, :half_columns],
            photo[:half_rows, :half_columns],
            photo[half_rows:, half_columns:],
        ]
        images += [tf.image.resize(crop, (height, width), antialias=True).numpy() for crop in crops]
    return _with_channels(images, channels)


def random_crops(height: int, width: int, channels: int, count: int) -> np.ndarray:
    """Other views of the two photos than `sample_photos` gives, to calibrate on where nothing else is.

    Args:
        height: of the images, in pixels.
        width: likewise.
        channels: as `sample_photos` takes it.
        count: of images.

    Returns:
        float32 (count, height, width, channels), pixels 0-255; the same for the same arguments.
    """
    import tensorflow as tf
    from sklearn.datasets import load_sample_images

    random, photos = np.random.default_rng(0), load_sample_images().images
    images = []
    for index in range(count):
        photo = photos[index % len(photos)]
        side = int(random.uniform(0.25, 1) * min(photo.shape[:2]))
        top, left = (int(random.integers(0, length - side + 1)) for length in photo.shape[:2])
        crop = photo[top : top + side, left : left + side]
        if random.random() < 0.5:
            crop = crop[:, ::-1]
        images.append(tf.image.resize(crop, (height, width), antialias=True).numpy())
    return _with_channels(images, channels)


def _with_channels(images: list[np.ndarray], channels: int) -> np.ndarray:
    images = np.clip(np.stack(images), 0, 255).astype("float32")
    if channels == 1:
        return images.mean(-1, keepdims=True)
    return np.take(images, np.arange(channels) % 3, axis=-1)
