"""The paper's test protocols: the views of an image, and how their scores are combined."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_resnet.errors import InputError, unknown_name
from keras_resnet.images.decode import transpose
from keras_resnet.images.ops import evaluation_view, normalize, resize_shorter_side, with_channels
from keras_resnet.images.preprocessing import REFERENCE_SIZE, Normalization, Preprocessing, usual_resize
from keras_resnet.models.graph import recursion_limit

_SCALES = (224, 256, 384, 480, 640)
"""Section 3.4's shorter sides for inputs of `REFERENCE_SIZE`; scaled for others."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A test protocol.

    Attributes:
        views: converts an image, uint8 (height, width, channels), and a `Preprocessing` to the network's
            inputs: one tensor, float32 (views, height, width, channels), for each size. A third argument
            is `transposed` as in `evaluation_view`.
        resizes: the shorter sides, in pixels, to which images are resized; None if whole images are
            resized to the input size.
        fully_convolutional: whether the network must accept inputs of any size.
        batch_size: default number of images per replica and step.
    """

    name: str
    summary: str
    views: Callable[..., tuple[tf.Tensor, ...]]
    resizes: Callable[[Preprocessing], tuple[int | None, ...]]
    fully_convolutional: bool = False
    batch_size: int = 64


def single_crop(
    image: tf.Tensor, preprocessing: Preprocessing, transposed: tf.Tensor | None = None
) -> tuple[tf.Tensor, ...]:
    """The view used for the weights' published accuracy: a center crop or the whole image."""
    view = evaluation_view(
        image,
        preprocessing.resize,
        preprocessing.size,
        preprocessing.channels,
        preprocessing.interpolation,
        transposed,
    )
    return (normalize(view, preprocessing.normalization)[None],)


def ten_crop(
    image: tf.Tensor, preprocessing: Preprocessing, transposed: tf.Tensor | None = None
) -> tuple[tf.Tensor, ...]:
    """Crops the four corners and the center, also flipped (section 3.4, after AlexNet).

    The shorter side of the image is 256 for crops of 224, and scaled for others.
    """
    resized = resize_shorter_side(image, usual_resize(preprocessing.size), preprocessing.interpolation)
    resized = transpose(resized, transposed)
    crops = with_channels(ten_crops(resized, preprocessing.size), preprocessing.channels)
    return (normalize(crops, preprocessing.normalization),)


def ten_crops(image: tf.Tensor, size: int) -> tf.Tensor:
    """Crops in the order and with the rounding of torchvision's `TenCrop`: (10, size, size, channels).

    These are top left, top right, bottom left, bottom right and center; then the same crops of the flipped
    image. The image, (height, width, channels), is at least `size` pixels high and wide.
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


def multi_scale(
    image: tf.Tensor, preprocessing: Preprocessing, transposed: tf.Tensor | None = None
) -> tuple[tf.Tensor, ...]:
    """The whole image at five sizes (section 3.4); not flipped, which the paper does not mention."""
    normalization = _per_channel(preprocessing.normalization)

    def view(resize: int) -> tf.Tensor:
        resized = transpose(resize_shorter_side(image, resize, preprocessing.interpolation), transposed)
        return normalize(with_channels(resized, preprocessing.channels), normalization)[None]

    return tuple(map(view, scales(preprocessing)))


def scales(preprocessing: Preprocessing) -> tuple[int, ...]:
    """The shorter sides, in pixels, of `multi_scale`."""
    return tuple(round(side * preprocessing.size / REFERENCE_SIZE) for side in _SCALES)


def _per_channel(normalization: Normalization) -> Normalization:
    """Averages a per-pixel mean, which only fits images of its own size."""

    def flat(values):
        return values if np.ndim(values) < 3 else np.mean(values, axis=(0, 1)).tolist()

    return Normalization(flat(normalization.mean), flat(normalization.std))


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "single_crop",
            "one view, with the weights' own preprocessing",
            single_crop,
            resizes=lambda preprocessing: (preprocessing.resize,),
        ),
        Protocol(
            "ten_crop",
            "4 corners and the center, also flipped; softmax averaged over the 10 views",
            ten_crop,
            resizes=lambda preprocessing: (usual_resize(preprocessing.size),),
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
"""The test protocols: `single_crop`, `ten_crop` and `multi_scale`."""


def get_protocol(name: str) -> Protocol:
    """Returns the protocol `name`; raises `InputError` for an unknown name."""
    if name == "ensemble":
        raise InputError("an ensemble is any protocol with several weights: --weights=FILE,FILE,...")
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def fully_convolutional(network: keras.Model) -> keras.Model:
    """Converts the classifier to a 1x1 convolution that scores every position of an image.

    The mean of the scores over all positions equals the logits of the network, because global average
    pooling and classifier are linear. The network is one of `build_model` with top and without classifier
    activation; for images of any size, it is built for inputs (None, None, channels).

    Returns:
        A model with the same weights and float32 scores (batch, rows, columns, classes), in Keras' image
        data format.
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
    """Averages the scores of a `fully_convolutional` network to (batch, classes)."""
    axes = (2, 3) if keras.config.image_data_format() == "channels_first" else (1, 2)
    return tf.reduce_mean(scores, axes)


def mean_of_softmax(logits: Sequence[tf.Tensor]) -> tf.Tensor:
    """The logarithm of the mean softmax over views, float32 (batch, classes); probabilities could underflow.

    `logits` are float32 (batch, views, classes) for each size of views; all views count equally.
    """
    logarithms = tf.concat([tf.nn.log_softmax(part) for part in logits], axis=1)
    count = tf.cast(tf.shape(logarithms)[1], tf.float32)
    return tf.reduce_logsumexp(logarithms, axis=1) - tf.math.log(count)
