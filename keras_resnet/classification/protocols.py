"""The paper's ways to test a network: from one image to views of it, and from their scores to one."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_resnet.errors import InputError, unknown_name
from keras_resnet.images.ops import evaluation_view, normalize, resize_shorter_side, with_channels
from keras_resnet.images.preprocessing import REFERENCE_SIZE, Normalization, Preprocessing, usual_resize
from keras_resnet.models.graph import recursion_limit

_SCALES = (224, 256, 384, 480, 640)
"""Section 3.4's shorter sides for inputs of `REFERENCE_SIZE`; others take them in proportion."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A way to test.

    Attributes:
        name: for `--protocol`.
        summary: what it does, in words.
        views: from an image, (height, width, channels), uint8, and the weights' preprocessing to the
            network's inputs: one tensor (views, height, width, channels), float32, for each size.
        resizes: from the preprocessing to the shorter sides, pixels, to which images are resized; None
            where whole images are resized to the network's own size.
        fully_convolutional: whether the network must take inputs of any size.
        batch_size: images per replica and step by default; the more views, the fewer.
    """

    name: str
    summary: str
    views: Callable[[tf.Tensor, Preprocessing], tuple[tf.Tensor, ...]]
    resizes: Callable[[Preprocessing], tuple[int | None, ...]]
    fully_convolutional: bool = False
    batch_size: int = 64


def single_crop(image: tf.Tensor, preprocessing: Preprocessing) -> tuple[tf.Tensor, ...]:
    """The view on which the weights' published accuracy was measured: a center crop or the whole image."""
    view = evaluation_view(
        image, preprocessing.resize, preprocessing.size, preprocessing.channels, preprocessing.interpolation
    )
    return (normalize(view, preprocessing.normalization)[None],)


def ten_crop(image: tf.Tensor, preprocessing: Preprocessing) -> tuple[tf.Tensor, ...]:
    """Four corners and the center, as they are and flipped (section 3.4, after AlexNet).

    They are cropped from the image whose shorter side is 256 for crops of 224, and in proportion.
    """
    (resize,) = _ten_crop_resize(preprocessing)
    resized = resize_shorter_side(image, resize, preprocessing.interpolation)
    crops = with_channels(ten_crops(resized, preprocessing.size), preprocessing.channels)
    return (normalize(crops, preprocessing.normalization),)


def _ten_crop_resize(preprocessing: Preprocessing) -> tuple[int]:
    return (usual_resize(preprocessing.size),)


def ten_crops(image: tf.Tensor, size: int) -> tf.Tensor:
    """The ten crops, in the order and with the rounding of torchvision's `TenCrop`.

    Args:
        image: (height, width, channels), at least as high and wide as `size`.
        size: of the crops, pixels.

    Returns:
        (10, size, size, channels): top left, top right, bottom left, bottom right, center; then the
        same crops of the flipped image.
    """
    bottom, right = tf.unstack(tf.shape(image)[:2] - size)
    middle = tf.unstack(tf.cast(tf.round(tf.cast(tf.stack([bottom, right]), tf.float32) / 2), tf.int32))
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), middle)
    crops = [
        flipped[top : top + size, left : left + size]
        for flipped in (image, tf.reverse(image, [1]))
        for top, left in corners
    ]
    return tf.ensure_shape(tf.stack(crops), (10, size, size, image.shape[-1]))


def multi_scale(image: tf.Tensor, preprocessing: Preprocessing) -> tuple[tf.Tensor, ...]:
    """The whole image at five sizes (section 3.4); not flipped, of which the paper says nothing."""
    normalization = _per_channel(preprocessing.normalization)
    resized = [
        resize_shorter_side(image, resize, preprocessing.interpolation) for resize in scales(preprocessing)
    ]
    return tuple(normalize(with_channels(a, preprocessing.channels), normalization)[None] for a in resized)


def scales(preprocessing: Preprocessing) -> tuple[int, ...]:
    """The shorter sides, pixels, at which a network of this input is tested."""
    return tuple(round(side * preprocessing.size / REFERENCE_SIZE) for side in _SCALES)


def _per_channel(normalization: Normalization) -> Normalization:
    """The same with the mean over its pixels: a mean image fits no other size than its own."""

    def flat(values):
        return values if np.ndim(values) < 3 else np.mean(values, axis=(0, 1)).tolist()

    return Normalization(flat(normalization.mean), flat(normalization.std))


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "single_crop",
            "one view, as the weights' own preprocessing has it",
            single_crop,
            resizes=lambda preprocessing: (preprocessing.resize,),
        ),
        Protocol(
            "ten_crop",
            "4 corners and the centre, also flipped; softmax averaged over the 10 views",
            ten_crop,
            resizes=_ten_crop_resize,
            batch_size=8,
        ),
        Protocol(
            "multi_scale",
            "whole images at 5 sizes, fully convolutional: logits averaged over space, softmax over sizes",
            multi_scale,
            resizes=scales,
            fully_convolutional=True,
            batch_size=8,
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol `name`; `InputError` where there is none."""
    if name == "ensemble":
        raise InputError("an ensemble is any protocol with several weights: --weights=FILE,FILE,...")
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def fully_convolutional(network: keras.Model) -> keras.Model:
    """The network with its classifier as a 1x1 convolution, so that it scores every place of an image.

    The mean of the scores over all places equals the logits of the network itself, whose global
    average pooling and classifier are linear.

    Args:
        network: of `build_model` with the top and without an activation behind it; built for inputs
            (None, None, channels) it takes images of any size.

    Returns:
        A model with the same weights: float (batch, height, width, channels) to float32 scores
        (batch, rows, columns, classes), channels first under that image data format.
    """
    classifier = network.get_layer("predictions")
    features = network.get_layer("avg_pool").input
    scores = layers.Conv2D(classifier.units, 1, dtype="float32", name="score_map")
    with recursion_limit():
        model = keras.Model(network.input, scores(features), name=network.name)
    kernel, bias = classifier.get_weights()
    scores.set_weights([kernel[None, None], bias])
    return model


def mean_over_places(scores: tf.Tensor) -> tf.Tensor:
    """(batch, classes) of the scores that a `fully_convolutional` network gives."""
    axes = (2, 3) if keras.config.image_data_format() == "channels_first" else (1, 2)
    return tf.reduce_mean(scores, axes)


def mean_of_softmax(logits: Sequence[tf.Tensor]) -> tf.Tensor:
    """The score of images that were seen several times.

    Args:
        logits: float32 (batch, views, classes), one for each size of views; all views count equally.

    Returns:
        The logarithm of the mean softmax, float32 (batch, classes); as logarithms, because in 32 bits
        the probability of a class may well be zero.
    """
    logarithms = tf.concat([tf.nn.log_softmax(part) for part in logits], axis=1)
    count = tf.cast(tf.shape(logarithms)[1], tf.float32)
    return tf.reduce_logsumexp(logarithms, axis=1) - tf.math.log(count)
