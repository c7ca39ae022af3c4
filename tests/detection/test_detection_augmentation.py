"""Boxes follow their pixels through flips, crops and shrinking, which depend on (seed, epoch, example)."""

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.detection.boxes import mirror
from keras_resnet.detection.data.annotations import Objects
from keras_resnet.detection.data.augmentation import (
    DetectionAugmentation,
    augment,
    augment_example,
    kept,
)
from keras_resnet.errors import InputError

NONE = DetectionAugmentation(flip=False)


def example(*boxes, crowd=False):
    """An image whose objects are bright rectangles of their own color."""
    image = np.zeros((60, 80, 3), "uint8")
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2, index] = 255
    rows = [(box, index, crowd, False, 10.0) for index, box in enumerate(boxes)]
    return image, Objects.from_rows(rows)


def found_box(image, channel):
    """The box of the bright pixels of a channel; ImageNet's mean color is not bright."""
    rows, columns = np.nonzero(image[..., channel] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_flip():
    image, objects = example((10, 20, 30, 25), (70, 0, 80, 60))
    flipped = 0
    for number in range(20):
        changed, after = augment_example(image, objects, DetectionAugmentation(), 0, 0, number)
        for index, box in enumerate(after.boxes):
            assert found_box(changed, index) == box.tolist()
        flipped += after.boxes[0, 0] == 50
    assert 4 <= flipped <= 16
    twice = mirror(mirror(tf.constant(objects.boxes), 80), 80)
    np.testing.assert_array_equal(twice, objects.boxes)


@pytest.mark.parametrize("scale", [(0.3, 0.9), (1.1, 3.0), (0.5, 2.0)])
def test_scale_jitter(scale):
    image, objects = example((10, 20, 40, 45), (50, 0, 80, 60))
    policy = DetectionAugmentation(scale=scale)
    sides = set()
    for number in range(12):
        changed, after = augment_example(image, objects, policy, 1, 2, number)
        sides.add(changed.shape)
        assert abs(changed.shape[1] / changed.shape[0] - 80 / 60) < 0.05
        assert changed.dtype == np.uint8
        for label, box in zip(after.labels, after.boxes, strict=True):
            np.testing.assert_allclose(found_box(changed, label), box, atol=1.01)
        assert (after.boxes <= np.array([changed.shape[1], changed.shape[0]] * 2)).all()
    assert (len(sides) > 4) == (scale[1] > 1)


def test_reduced_images_are_on_a_canvas_of_the_given_color():
    image, objects = example((0, 0, 80, 60))
    shrink = {"flip": False, "scale": (0.5, 0.5)}
    for policy, color in (
        (DetectionAugmentation(**shrink), [124, 116, 104]),
        (DetectionAugmentation(**shrink, fill=(0.4, 127.5, 255)), [0, 128, 255]),
    ):
        changed, _ = augment_example(image, objects, policy, 0, 0, 0)
        assert (changed[30:] == color).all()
        assert (changed[:, 40:] == color).all()
        assert (changed[:30, :40] == image[:30, :40]).all()


def test_it_is_a_function_of_seed_epoch_and_example():
    image, objects = example((10, 20, 40, 45))
    policy = DetectionAugmentation(scale=(1.0, 2.0))

    def boxes(*numbers):
        return augment_example(image, objects, policy, *numbers)[1].boxes.tolist()

    assert boxes(0, 1, 2) == boxes(0, 1, 2)
    assert len({str(boxes(*numbers)) for numbers in ((0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3))}) == 4

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([None, 4])])
    def traced(image, boxes):
        return augment(image, boxes, tf.constant([5, 6], tf.int64), policy)

    eager = augment(tf.constant(image), tf.constant(objects.boxes), tf.constant([5, 6], tf.int64), policy)
    for one, other in zip(traced(image, objects.boxes), eager, strict=True):
        np.testing.assert_array_equal(one, other)


def test_objects_that_leave_the_crop_are_dropped():
    boxes = tf.constant([[0.0, 0, 5, 10], [0, 0, 5, 10], [0, 0, 0.5, 10], [3, 3, 3, 10]])
    visible = tf.constant([0.25, 0.24, 0.9, 0.0])
    some = kept(boxes, visible, tf.constant([False] * 4), NONE)
    np.testing.assert_array_equal(some, [True, False, False, False])
    crowd = kept(boxes, visible, tf.constant([True] * 4), NONE)
    np.testing.assert_array_equal(crowd, [True, True, True, False])


def test_areas_change_with_their_boxes():
    image, objects = example((0, 0, 80, 60))
    policy = DetectionAugmentation(flip=False, scale=(0.5, 0.5))
    _, after = augment_example(image, objects, policy, 0, 0, 0)
    np.testing.assert_array_equal(after.boxes, [[0, 0, 40, 30]])
    assert after.areas == 2.5


def test_images_without_objects():
    image, objects = example()
    for policy in (DetectionAugmentation(), DetectionAugmentation(scale=(0.5, 2.0))):
        assert len(augment_example(image, objects, policy, 0, 0, 0)[1]) == 0


def test_no_augmentation_changes_nothing():
    image, objects = example((1, 2, 3, 4))
    same, after = augment_example(image, objects, NONE, 0, 0, 0)
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(after.boxes, objects.boxes)


def test_bad_policies():
    with pytest.raises(InputError, match="the range of the scale"):
        DetectionAugmentation(scale=(2.0, 1.0))
    with pytest.raises(InputError, match="least_visible"):
        DetectionAugmentation(least_visible=2)
    with pytest.raises(InputError, match="fill must be three numbers from 0 to 255"):
        DetectionAugmentation(fill=(0, 0, 256))
