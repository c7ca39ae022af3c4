"""Box refinement, box voting, multi-scale testing, ensembles and global context (the paper, appendix B)."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.detection import proposals as proposals_module
from keras_resnet.detection.config import get_detector_config
from keras_resnet.detection.detector import build_detector, load_detector
from keras_resnet.detection.improvements import ImprovedDetector, closest_scales, refine
from keras_resnet.detection.nms import vote_boxes
from keras_resnet.detection.proposals import Predictions, decode_regions, select_detections
from keras_resnet.detection.task import joint_losses
from keras_resnet.errors import InputError
from keras_resnet.models.config import get_config

C4, FPN = "faster_rcnn_cifar_resnet20_c4", "faster_rcnn_resnet50_v1_5_fpn"
SMALL = {"shorter_side": 64, "longer_side": 96, "proposals": 12, "proposal_candidates": 50, "detections": 15}
NETWORKS = {
    C4: {"network": get_config("cifar_resnet20", stage_depths=(1, 1, 1), stage_filters=(8, 8, 8))},
    FPN: {
        "network": get_config("resnet18", stage_depths=(1, 1, 1, 1), stage_filters=(8, 8, 8, 8)),
        "pyramid_channels": 8,
        "rpn_channels": 8,
    },
}
NAMES = ("cat", "dog", "owl")


def build(name=C4, seed=0, **options):
    """A detector whose scores and boxes differ from region to region."""
    keras.utils.set_random_seed(seed)
    detector = build_detector(name, **{"classes": NAMES, **SMALL, **NETWORKS[name], **options})
    for layer, deviation in (("roi_logits", 0.5), ("roi_deltas", 0.3)):
        kernel = detector.model.get_layer(layer).kernel
        kernel.assign(np.random.default_rng(seed).normal(0, deviation, kernel.shape))
    return detector


@pytest.fixture(scope="module")
def detector():
    return build()


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype="uint8") for size in ((40, 50), (90, 60))]


def assert_same(found, expected, tolerance=0.0):
    assert [len(each) for each in found] == [len(each) for each in expected]
    assert sum(map(len, expected)) > 4
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=tolerance)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=100 * tolerance)


def test_votes_by_hand():
    boxes = tf.constant([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [0, 0, 10, 4.9], [0, 0, 8, 10]])
    weights = tf.constant([[0.8, 0.4, 0.2, 0.7, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])  # the last: other class
    # IoU 1, .8, .5 and .49: the fourth does not vote.
    voted = vote_boxes(boxes[:2], boxes, weights)
    side = (0.8 * 10 + 0.4 * 8 + 0.2 * 5) / 1.4
    np.testing.assert_allclose(voted, [[0, 0, 10, side], boxes[1]], rtol=1e-6)


def selected(scores, boxes, vote):
    """Of regions with two classes in an image of 40 x 40 pixels."""
    config = get_detector_config(C4, classes=2, **SMALL)
    predictions = Predictions(tf.constant([scores]), tf.constant([boxes], tf.float32))
    valid = tf.ones([1, len(scores)], tf.bool)
    found = select_detections(predictions, valid, tf.constant([[40, 40]]), config, vote)
    kept = found.valid[0].numpy()
    return [each[0].numpy()[kept] for each in (found.boxes, found.scores, found.labels)]


def test_only_boxes_of_the_class_above_the_score_threshold_vote():
    boxes = [[[0, 0, 10, height]] * 2 for height in (10, 8, 6)]
    scores = [[0.9, 0.1], [0.6, 0.3], [0.05, 0.0]]
    voted, kept_scores, labels = selected(scores, boxes, True)
    np.testing.assert_allclose(kept_scores, [0.9, 0.3])
    assert labels.tolist() == [0, 1]
    np.testing.assert_allclose(voted[:, 3], [(9 + 4.8) / 1.5, (1 + 2.4) / 0.4], rtol=1e-6)
    np.testing.assert_allclose(selected(scores, boxes, False)[0][:, 3], [10, 8])


def test_the_votes_of_a_batch_are_counted_one_box_at_a_time(monkeypatch):
    """The largest tensors have an element per region and class, not that times the number of detections."""
    weighed = []

    def vote(kept, boxes, weights):
        weighed.append(tuple(weights.shape))
        return vote_boxes(kept, boxes, weights)

    monkeypatch.setattr(proposals_module, "vote_boxes", vote)
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 25, (2, 30, 2, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(5, 15, corners.shape)], -1).astype("float32")
    scores = generator.uniform(0, 1, (2, 30, 2)).astype("float32")
    predictions = Predictions(tf.constant(scores), tf.constant(boxes))
    config = get_detector_config(C4, classes=2, **SMALL)
    plain, voted = (
        select_detections(predictions, tf.ones([2, 30], tf.bool), tf.fill([2, 2], 40), config, each)
        for each in (False, True)
    )
    assert weighed == [(2, 1, 60)] * SMALL["detections"]
    assert plain.valid.numpy().all()
    same = plain.labels[..., None] == tf.tile([0, 1], [30])
    weights = tf.where(same, np.where(scores > config.score_threshold, scores, 0).reshape(2, 1, 60), 0.0)
    expected = vote_boxes(plain.boxes, boxes.reshape(2, 60, 4), weights)
    np.testing.assert_allclose(voted.boxes, expected, rtol=1e-6, atol=1e-5)
    assert np.abs(voted.boxes - plain.boxes).max() > 1


def test_refinement_pools_the_box_of_the_most_probable_class():
    asked = []
    target = tf.constant([4, 4, 20, 30], tf.float32)

    def predict(boxes):
        """A perfect regressor of the second class."""
        asked.append(boxes)
        shape = [*boxes.shape[:2], 2]
        return Predictions(tf.broadcast_to([0.1, 0.8], shape), tf.broadcast_to(target, [*shape, 4]))

    away = tf.constant([30, 30, 60, 34], tf.float32)
    first = Predictions(
        tf.constant([[[0.2, 0.7], [0.6, 0.3], [0.0, 0.0]]]),
        tf.stack([[[away, target], [away, target], [away, away]]]),
    )
    valid = tf.constant([[True, True, False]])
    both, usable = refine(predict, first, valid, tf.constant([[40, 40]]), smallest_side=5)
    np.testing.assert_array_equal(asked[0][0], [target, [30, 30, 40, 34], [30, 30, 40, 34]])
    # The second box is 4 pixels high; the third was not valid.
    assert usable.numpy().tolist() == [[True, True, False, True, False, False]]
    assert (both.scores.shape, both.boxes.shape) == ((1, 6, 2), (1, 6, 2, 4))
    # A perfect box stays.
    boxes, scores, labels = selected(both.scores[0].numpy()[[0, 3]], both.boxes[0].numpy()[[0, 3]], True)
    best = scores.argmax()
    assert (labels[best], scores[best]) == (1, np.float32(0.8))
    np.testing.assert_allclose(boxes[best], target, rtol=1e-6)


def test_the_two_scales_are_adjacent_and_closest_to_the_square():
    boxes = tf.constant([[0, 0, 16, 16], [0, 0, 64, 64], [0, 0, 2, 2], [0, 0, 24, 24]], tf.float32)
    factors = tf.constant([[0.25], [0.5], [1], [2]]) * tf.ones([1, 4])
    found = closest_scales(boxes, factors, 16, 2).numpy()
    # The areas of the last are 36, 144, 576 and 2,304; 256 is closest to 144 and then to 36.
    assert found.tolist() == [[2, 1], [0, 1], [3, 2], [1, 0]]


def test_at_the_detectors_own_scale_nothing_changes(detector, images):
    improved = ImprovedDetector([detector], scales=[64])
    assert (improved.name, improved.class_names) == (detector.name, detector.class_names)
    assert_same(improved.detect(images), detector.detect(images))
    assert improved.detect([]) == []


def test_maxout_of_a_scale_with_itself_is_that_scale(detector):
    outputs = detector.features(tf.random.stateless_normal([1, 64, 64, 3], (0, 0)))
    boxes = tf.constant([[[0, 0, 30, 40], [8, 9, 50, 60]]], tf.float32)
    pool = functools.partial(detector.pool, outputs)
    once, twice = (detector.region_features([pool] * count, boxes) for count in (1, 2))
    np.testing.assert_array_equal(once, twice)


@pytest.mark.parametrize("name", [C4, pytest.param(FPN, marks=pytest.mark.slow)])
def test_two_scales_by_hand(name, images):
    """With two scales each region uses both; the features of the region are the maximum."""
    detector, image = build(name), images[0]
    (large, size), (small, small_size) = detector.prepare(image), detector.prepare(image, 48)
    assert (size, small_size) == ((64, 80), (48, 60))
    outputs = [detector.features(each[None]) for each in (large, small)]
    sizes = tf.constant([size])
    proposals = detector.propose(outputs[0], detector.anchors(*large.shape[:2]), sizes)
    pools = [
        lambda boxes, scale=scale, outputs=each: detector.pool(outputs, boxes * scale)
        for scale, each in zip((1.0, 0.75), outputs, strict=True)
    ]
    features = [detector.region_features([pool], proposals.boxes) for pool in pools]
    logits, deltas = detector.predict(tf.maximum(*features))
    predictions = decode_regions(logits, deltas, proposals.boxes, detector.config)
    expected = select_detections(predictions, proposals.valid, sizes, detector.config)
    (found,) = ImprovedDetector([detector], scales=(48, 64)).detect([image])
    kept = expected.valid[0].numpy()
    np.testing.assert_allclose(found.scores, expected.scores[0].numpy()[kept], atol=1e-4)
    np.testing.assert_allclose(found.boxes * 1.6, expected.boxes[0].numpy()[kept], atol=1e-2)
    assert len(found) > 0


def test_an_ensemble_of_a_detector_with_itself_is_the_detector(detector, images):
    ensemble = ImprovedDetector([detector, detector])
    assert ensemble.name == f"2 x {C4}"
    assert_same(ensemble.detect(images), detector.detect(images), 1e-6)


@pytest.mark.parametrize(("layer", "refine"), [("rpn_logits", False), ("roi_deltas", True)])
def test_outputs_of_a_member_that_are_not_finite(layer, refine, detector, images):
    damaged = build()
    damaged.name = "damaged"
    weight = damaged.model.get_layer(layer).kernel
    weight.assign(np.full(weight.shape, np.nan))
    with pytest.raises(InputError, match="the outputs of damaged are not finite numbers: its weights are da"):
        ImprovedDetector([detector, damaged], refine=refine).detect(images[:1])


def test_an_ensemble_is_the_mean_over_the_proposals_of_all(images):
    image = images[0]
    detectors = [build(), build(seed=1, shorter_side=48)]
    prepared = [each.prepare(image) for each in detectors]
    outputs = [each.features(pixels[None]) for each, (pixels, _) in zip(detectors, prepared, strict=True)]
    boxes = []
    for each, out, (pixels, size), factor in zip(detectors, outputs, prepared, (1, 4 / 3), strict=True):
        proposals = each.propose(out, each.anchors(*pixels.shape[:2]), tf.constant([size]))
        assert proposals.valid.numpy().all()
        boxes.append(proposals.boxes * factor)
    boxes, parts = tf.concat(boxes, 1), []
    for each, out, (_, size), factor in zip(detectors, outputs, prepared, (1, 4 / 3), strict=True):
        logits, deltas = each.regions(out, boxes / factor, tf.constant([size]))
        parts.append(decode_regions(logits, deltas, boxes, each.config))
    mean = Predictions(*((first + second) / 2 for first, second in zip(*parts, strict=True)))
    valid = tf.ones(boxes.shape[:2], tf.bool)
    expected = select_detections(mean, valid, tf.constant([prepared[0][1]]), detectors[0].config)
    (found,) = ImprovedDetector(detectors).detect([image])
    kept = expected.valid[0].numpy()
    np.testing.assert_allclose(found.scores, expected.scores[0].numpy()[kept], atol=1e-5)
    np.testing.assert_allclose(found.boxes * 1.6, expected.boxes[0].numpy()[kept], atol=1e-2)


@pytest.mark.slow
def test_all_together(images):
    detectors = [build(global_context=True), build(seed=1, shorter_side=48)]
    improved = ImprovedDetector(detectors, refine=True, scales=[32, 64, 96])
    for image, found in zip(images, improved.detect(images), strict=True):
        height, width = image.shape[:2]
        assert len(found) > 0
        assert (found.boxes[:, :2] >= 0).all()
        assert (found.boxes[:, 2:] <= np.array([width, height]) + 1e-4).all()
    again = improved.detect(images[1:])[0]
    np.testing.assert_array_equal(again.boxes, found.boxes)


@pytest.mark.parametrize(
    ("detectors", "options", "message"),
    [
        ([], {}, "pass one or several detectors"),
        ([{}, {"classes": ("cat", "owl", "dog")}], {}, "must have the same classes"),
        ([{}], {"scales": [64, 64]}, "different shorter sides from 1 to 8192 pixels"),
        ([{}], {"scales": [0]}, "different shorter sides"),
        ([{}], {"scales": [48.5]}, "different shorter sides"),
        ([{}], {"scales": [10**6]}, "different shorter sides"),
    ],
)
def test_invalid_options(detectors, options, message):
    with pytest.raises(InputError, match=message):
        ImprovedDetector([build(**each) for each in detectors], **options)


def test_a_one_stage_detector_is_refused():
    options = {**SMALL, **NETWORKS[FPN]}
    retinanet = build_detector("retinanet_resnet50_v1_5_fpn", **options)
    with pytest.raises(InputError, match="need two-stage detectors; retinanet_resnet50_v1_5_fpn has one"):
        ImprovedDetector([retinanet])
    with pytest.raises(InputError, match="global_context needs a two-stage detector"):
        build_detector("retinanet_resnet50_v1_5_fpn", **options, global_context=True)
    with pytest.raises(InputError, match="global_context must be True or False; got 'yes'"):
        build(global_context="yes")


def test_an_image_is_not_a_list(detector):
    with pytest.raises(InputError, match="takes a list of images"):
        ImprovedDetector([detector]).detect(np.zeros((8, 8, 3), "uint8"))


@pytest.mark.parametrize("name", [C4, pytest.param(FPN, marks=pytest.mark.slow)])
def test_context_is_the_feature_of_the_whole_image(name):
    detector = build(name, global_context=True)
    outputs = detector.features(tf.random.stateless_normal([2, 64, 96, 3], (0, 0)))
    sizes = tf.constant([[64, 96], [50, 64]])
    boxes = tf.constant([[[0, 0, 30, 40], [8, 9, 50, 60]], [[5, 5, 60, 45], [0, 20, 20, 30]]], tf.float32)
    whole = tf.constant([[[0, 0, 96, 64]], [[0, 0, 64, 50]]], tf.float32)
    own, context = (detector.head_features(detector.pool(outputs, each)) for each in (boxes, whole))
    context = tf.repeat(context, 2, axis=0)
    logits, deltas = detector.regions(outputs, boxes, sizes)
    layer = detector.model.get_layer("roi_logits")
    assert layer.kernel.shape == (2 * own.shape[-1], 4)
    expected = np.concatenate([own, context], 1) @ layer.kernel.numpy()
    np.testing.assert_allclose(np.reshape(logits, (4, 4)), expected, rtol=1e-4, atol=1e-5)
    pooled = detector.pool(outputs, boxes)
    for ours, theirs in zip((logits, deltas), detector.head([pooled, context]), strict=True):
        np.testing.assert_allclose(np.reshape(ours, theirs.shape), theirs, rtol=1e-4, atol=1e-5)


def test_context_is_trained_end_to_end():
    """With weights for the context only, the box losses still reach the backbone."""
    detector = build(global_context=True, roi_samples=4, rpn_samples=4, training_proposals=8)
    features = detector.head_features.output_shape[-1]
    for name in ("roi_logits", "roi_deltas"):
        kernel = detector.model.get_layer(name).kernel
        kernel.assign(tf.concat([tf.zeros_like(kernel[:features]), kernel[features:]], 0))
    batch = {
        "images": tf.random.stateless_normal([2, 64, 64, 3], (0, 0)),
        "boxes": tf.constant([[[10, 10, 40, 40]], [[20, 5, 50, 30]]], tf.float32),
        "labels": tf.constant([[1], [2]]),
        "kinds": tf.ones([2, 1], tf.int32),
        "sizes": tf.constant([[64, 64], [50, 60]]),
    }
    seeds = [tf.zeros([2, 2], tf.int64)] * 2
    with tf.GradientTape() as tape:
        losses = joint_losses(detector, batch, detector.anchors(64, 64), seeds)
        loss = tf.add_n([tf.reduce_sum(each) for each in losses[2:]])
    names = ("conv1_conv", "conv4_block1_1_conv", "roi_logits", "roi_deltas")
    gradients = tape.gradient(loss, [detector.model.get_layer(name).kernel for name in names])
    for gradient in gradients:
        assert np.abs(gradient).max() > 0
    assert np.abs(gradients[2][features:]).max() > 0


def test_files_of_detectors_with_and_without_context_are_not_confused(detector, tmp_path):
    context = build(global_context=True)
    path, plain = context.save_weights(tmp_path / "c.weights.h5"), tmp_path / "p.weights.h5"
    loaded = load_detector(path)
    assert loaded.config.global_context
    for ours, theirs in zip(loaded.model.weights, context.model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not load_detector(detector.save_weights(plain)).config.global_context
    with pytest.raises(InputError, match="global_context is False there, True here"):
        context.load_weights(plain)


def test_the_cost_of_context(detector):
    """One region more, and twice as many weights in the last layers."""
    with_context, without = (each.complexity(64, 64) for each in (build(global_context=True), detector))
    per_region = 7 * 7 * 9 * 8 * (8 + 8)
    assert with_context.multiply_adds - without.multiply_adds == per_region + 12 * 8 * 4 * 5
    assert with_context.parameters - without.parameters == 8 * 4 * 5
    assert with_context.weighted_layers == without.weighted_layers
