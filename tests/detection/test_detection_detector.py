"""Detectors on tiny networks: their layers, the operations between them, and what `detect` returns."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo_networks import zeros_for_weights

from keras_resnet.detection import detector as detector_module
from keras_resnet.detection.config import get_detector_config
from keras_resnet.detection.detector import Outputs, build_detector
from keras_resnet.detection.statistics import reestimate_statistics
from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.models.config import get_config
from keras_resnet.models.resnet import build_network
from keras_resnet.weights import ModelSpec, save_weights

CIFAR = get_config("cifar_resnet20", stage_depths=(1, 1, 1), stage_filters=(8, 8, 8))
IMAGENET = get_config("resnet18", stage_depths=(1, 1, 1, 1), stage_filters=(8, 8, 8, 8))
SMALL = {"shorter_side": 64, "longer_side": 96, "proposals": 20, "proposal_candidates": 50}
PYRAMID = {**SMALL, "network": IMAGENET, "pyramid_channels": 8, "rpn_channels": 8}
TINY = {
    "faster_rcnn_cifar_resnet20_c4": {**SMALL, "network": CIFAR},
    "faster_rcnn_resnet50_v1_5_fpn": PYRAMID,
    "faster_rcnn_resnet50_v1_5_fpn_v2": {**PYRAMID, "head_convs": 2},
    "retinanet_resnet50_v1_5_fpn": PYRAMID,
    "retinanet_resnet50_v1_5_fpn_v2": {**PYRAMID, "head_convs": 2},
}
C4 = "faster_rcnn_cifar_resnet20_c4"


def build(name, **options):
    keras.utils.set_random_seed(0)
    return build_detector(name, **{"classes": ("cat", "dog", "owl"), **TINY[name], **options})


def build_for_dogs(name, **options):
    """A detector that finds only objects of class 1, wherever it proposes any."""
    detector = build(name, **options)
    for layer in detector.model.layers:
        if layer.name in ("roi_logits", "classification_logits"):
            bias = np.full(layer.bias.shape, -4.0, "float32")
            bias[2 :: detector.config.classes + 1] = 1.0
            layer.bias.assign(bias)
            layer.kernel.assign(0.01 * layer.kernel)
    return detector


@pytest.fixture(scope="module")
def detectors():
    return {name: build_for_dogs(name) for name in TINY}


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype="uint8") for size in ((40, 50), (90, 60))]


def weighted(detector):
    return {layer.name for layer in detector.model.layers if layer.weights}


def zoo(network):
    layers = build_network(network, include_top=False).layers
    return {layer.name for layer in layers if layer.weights}


def numbered(prefix, count, *endings):
    return {f"{prefix}_{i}{ending}" for i in range(count) for ending in ("", *endings)}


RPN = {"rpn_conv_0", "rpn_logits", "rpn_deltas"}
PREDICTOR = {"roi_logits", "roi_deltas"}
P6_P7 = {"fpn_p6", "fpn_p7"}
RETINANET = {"classification_logits", "regression_deltas"}
OWN_LAYERS = {
    "faster_rcnn_cifar_resnet20_c4": RPN | PREDICTOR,
    "faster_rcnn_resnet50_v1_5_fpn": RPN
    | PREDICTOR
    | {"roi_fc6", "roi_fc7"}
    | numbered("fpn_inner", 4)
    | numbered("fpn_layer", 4),
    "faster_rcnn_resnet50_v1_5_fpn_v2": RPN
    | PREDICTOR
    | {"rpn_conv_1", "roi_fc"}
    | numbered("roi_conv", 2, "_bn")
    | numbered("fpn_inner", 4, "_bn")
    | numbered("fpn_layer", 4, "_bn"),
    "retinanet_resnet50_v1_5_fpn": RETINANET
    | P6_P7
    | numbered("fpn_inner", 3)
    | numbered("fpn_layer", 3)
    | numbered("classification_conv", 4)
    | numbered("regression_conv", 4),
    "retinanet_resnet50_v1_5_fpn_v2": RETINANET
    | P6_P7
    | numbered("fpn_inner", 3)
    | numbered("fpn_layer", 3)
    | numbered("classification_conv", 2, "_gn")
    | numbered("regression_conv", 2, "_gn"),
}


@pytest.mark.parametrize("name", TINY)
def test_layers_have_the_zoos_names_and_their_own(name, detectors):
    detector = detectors[name]
    assert weighted(detector) == zoo(detector.config.network) | OWN_LAYERS[name]


@pytest.mark.parametrize("name", TINY)
def test_levels_have_as_many_anchors_as_outputs(name, detectors):
    """Sides that are odd multiples of 32, whose coarser levels are rounded up."""
    detector = detectors[name]
    outputs = detector.features(tf.zeros([2, 96, 160, 3]))
    anchors = detector.anchors(96, 160)
    assert len(anchors) == len(outputs.logits) == len(detector.config.strides)
    for logits, deltas, level in zip(outputs.logits, outputs.deltas, anchors, strict=True):
        assert deltas.shape[0] == 2
        assert np.prod(deltas.shape[1:]) == level.size
        per_anchor = 1 if detector.head else 4
        assert np.prod(logits.shape[1:]) == len(level) * per_anchor
    assert [m.shape[1] for m in outputs.maps] == (
        [96 // stride for stride in detector.config.roi_strides] if detector.head else []
    )


@pytest.mark.parametrize(
    "name",
    [
        C4,
        "retinanet_resnet50_v1_5_fpn_v2",
        pytest.param("faster_rcnn_resnet50_v1_5_fpn", marks=pytest.mark.slow),
        pytest.param("faster_rcnn_resnet50_v1_5_fpn_v2", marks=pytest.mark.slow),
        pytest.param("retinanet_resnet50_v1_5_fpn", marks=pytest.mark.slow),
    ],
)
def test_detections_are_in_pixels_of_the_original_image(name, detectors, images):
    detector = detectors[name]
    found = detector.detect(images)
    assert len(found) == 2
    for image, result in zip(images, found, strict=True):
        assert len(result) > 0
        assert set(result.labels) == {1}
        assert result.boxes.min() >= 0
        height, width = image.shape[:2]
        limits = np.array([width, height, width, height])
        assert (result.boxes <= limits + 1e-4).all()
        # Anchors at the borders are clipped to the whole image.
        assert (result.boxes[:, 2].max(), result.boxes[:, 3].max()) == pytest.approx((width, height), 0.3)
    again = detector.detect(images[1:])[0]
    np.testing.assert_array_equal(again.boxes, found[1].boxes)


@pytest.mark.parametrize(
    "name",
    [
        C4,
        "retinanet_resnet50_v1_5_fpn_v2",
        pytest.param("faster_rcnn_resnet50_v1_5_fpn_v2", marks=pytest.mark.slow),
    ],
)
def test_boxes_are_float32_under_any_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        detector = build_for_dogs(name)
        outputs = detector.features(tf.zeros([1, 64, 64, 3]))
        assert {x.dtype for x in (*outputs.logits, *outputs.deltas)} == {tf.float32}
        assert {x.dtype for x in outputs.maps} <= {tf.bfloat16}
        raw = raw_detections(detector)
        assert (raw.boxes.dtype, raw.scores.dtype) == (tf.float32, tf.float32)
        assert raw.valid.numpy().any()
    finally:
        keras.config.set_dtype_policy(before)


def raw_detections(detector):
    images = tf.random.stateless_normal([2, 64, 64, 3], (0, 0))
    return detector.raw_detections(images, detector.anchors(64, 64), tf.constant([[64, 64], [40, 64]]))


def test_without_proposals_nothing_is_detected():
    assert not raw_detections(build_for_dogs(C4, proposal_side=1e4)).valid.numpy().any()


def test_one_proposal():
    raw = raw_detections(build_for_dogs(C4, proposals=1))
    assert raw.valid.numpy().sum(1).tolist() == [1, 1]
    assert raw.labels.numpy()[:, 0].tolist() == [1, 1]


def test_no_images(detectors):
    assert detectors[C4].detect([]) == []


@pytest.mark.parametrize("name", [C4, "faster_rcnn_resnet50_v1_5_fpn"])
@pytest.mark.parametrize("count", [0, 1])
def test_few_regions(name, count, detectors):
    detector = detectors[name]
    outputs = detector.features(tf.zeros([2, 64, 64, 3]))
    logits, deltas = detector.regions(outputs, tf.zeros([2, count, 4]), tf.fill([2, 2], 64))
    assert (logits.shape, deltas.shape) == ((2, count, 4), (2, count, 16))
    assert np.isfinite(deltas).all()


def test_regions_in_parts_are_the_same(monkeypatch):
    detector = build(C4, global_context=True)
    sizes = tf.fill([2, 2], 64)
    generator = np.random.default_rng(1)
    outputs = detector.features(generator.normal(size=(2, 64, 64, 3)).astype("float32"))
    corners = generator.uniform(0, 40, (2, 7, 2))
    boxes = tf.constant(
        np.concatenate([corners, corners + generator.uniform(0, 24, (2, 7, 2))], -1), tf.float32
    )
    whole = detector.regions(outputs, boxes, sizes)
    monkeypatch.setattr(detector_module, "_CHUNK", 3 * 28 * 28 * 8)
    for part, expected in zip(detector.regions(outputs, boxes, sizes), whole, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-6)


def test_parts_of_regions_are_for_the_number_of_images(monkeypatch):
    """The number is unknown for the boxes, but not for the feature maps."""
    detector, pooled = build(C4), []

    def pool(outputs, boxes):
        pooled.append(tuple(boxes.shape))
        return type(detector).pool(detector, outputs, boxes)

    monkeypatch.setattr(detector, "pool", pool)
    monkeypatch.setattr(detector_module, "_CHUNK", 4 * 28 * 28 * 8)
    outputs = Outputs([tf.zeros([2, 8, 8, 8])], [], [])
    sizes = tf.fill([2, 2], 64)
    traced = tf.function(
        lambda boxes: detector.regions(outputs, boxes, sizes),
        input_signature=[tf.TensorSpec([None, 7, 4])],
        autograph=False,
    )
    traced.get_concrete_function()
    assert pooled == [(2, 2, 4)]  # four regions of all images at a time


def test_a_classifiers_weights_load_into_the_backbone(tmp_path):
    spec = ModelSpec.default("cifar_resnet20")
    keras.utils.set_random_seed(1)
    classifier = spec.build()
    for weight in classifier.weights:
        weight.assign(np.random.default_rng(2).uniform(0.5, 1, weight.shape))
    path = save_weights(classifier, tmp_path / "c.weights.h5", spec)
    detector = build_detector("faster_rcnn_cifar_resnet20_c4", classes=3, backbone_weights=path)
    compared = 0
    for layer in classifier.layers:
        if layer.weights and layer.name != "predictions":
            ours = detector.model.get_layer(layer.name).weights
            for theirs, our in zip(layer.weights, ours, strict=True):
                assert our.numpy().tobytes() == theirs.numpy().tobytes()
                compared += 1
    assert compared == len(classifier.weights) - 2
    frozen = {layer.name for layer in detector.model.layers if layer.weights and not layer.trainable}
    assert {"conv1_conv", "conv2_block3_2_conv", "conv4_block3_2_bn"} <= frozen
    assert not {"conv3_block1_1_conv", "rpn_conv_0", "roi_logits"} & frozen


def test_a_mean_image_becomes_the_mean_color(tmp_path):
    mean = np.random.default_rng(0).uniform(0, 255, (32, 32, 1))
    normalization = Normalization(mean.tolist(), (50.0,))
    preprocessing = Preprocessing(32, None, "bilinear", normalization)
    options = {"stage_depths": (1, 1, 1), "stage_filters": (8, 8, 8)}
    spec = ModelSpec("cifar_resnet20", options, 10, (32, 32, 1), preprocessing)
    path = save_weights(spec.build(), tmp_path / "c.weights.h5", spec)
    detector = build(C4, backbone_weights=path)
    np.testing.assert_allclose(detector.config.normalization.mean, [mean.mean()] * 3)
    assert detector.config.normalization.std == (50.0,) * 3


def test_a_backbone_of_v1_is_refused_by_v1_5(tmp_path):
    options = {"block": "bottleneck", "stage_depths": (1, 1), "stage_filters": (4, 4)}
    spec = ModelSpec.default("cifar_resnet20", overrides=options)
    path = save_weights(spec.build(), tmp_path / "c.weights.h5", spec)
    v1_5 = get_config("cifar_resnet20", bottleneck_stride="3x3", **options)
    with pytest.raises(InputError, match="bottleneck_stride is '1x1' there, '3x3' here"):
        build_detector(C4, network=v1_5, backbone_weights=path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3)), "float64 of shape"),
        (np.zeros((8, 8), "uint8"), "uint8 of shape"),
        (np.zeros((8, 0, 3), "uint8"), "uint8 of shape"),
        ("photo.jpg", "got str"),
    ],
)
def test_invalid_images(image, message, detectors):
    with pytest.raises(InputError, match=message):
        detectors[C4].detect([image])


@pytest.mark.parametrize(
    ("name", "layer"),
    [(C4, "rpn_logits"), (C4, "roi_deltas"), (list(TINY)[-1], "classification_logits")],
)
def test_weights_that_are_not_finite(name, layer, images):
    """Without the error, nothing would be detected.

    These layers have no ReLU behind them: oneDNN's turns NaN into 0 on some CPUs.
    """
    detector = build(name)
    weight = detector.model.get_layer(layer).kernel
    weight.assign(np.where(np.arange(weight.shape[-1]) == 0, np.nan, weight))
    with pytest.raises(InputError, match=f"the outputs of {name} are not finite numbers: its weights are da"):
        detector.detect(images[:1])


def test_one_image_is_not_a_list(detectors):
    with pytest.raises(InputError, match="takes a list of images"):
        detectors[C4].detect(np.zeros((8, 8, 3), "uint8"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "classes must be a positive integer"),
        ({"classes": True}, "classes must be a positive integer"),
        ({"classes": ()}, "classes must be a positive integer"),
        ({"classes": "cat"}, "classes must be a positive integer"),
        ({"classes": ["cat", "cat"]}, "must be different"),
        ({"weights": "a.weights.h5", "backbone_weights": "b.weights.h5"}, "not both"),
        ({"scales": 3}, "unknown detector option"),
        ({"freeze": "C9"}, "freeze takes one of C1, C2, C3, C4 or None; got 'C9'"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(InputError, match=message):
        build_detector(C4, **options)


def test_paper_anchors():
    """The first anchor of py-faster-rcnn, (-84, -40, 99, 55) with the last pixel included, at two cells."""
    detector = build("faster_rcnn_cifar_resnet20_c4", network=IMAGENET, anchor_rule="paper")
    (anchors,) = detector.anchors(64, 96)
    assert detector.config.strides == (16,)
    assert anchors.shape == (4 * 6 * 9, 4)
    np.testing.assert_array_equal(anchors[0], [-84, -40, 100, 56])
    np.testing.assert_array_equal(anchors[9 * 7], [-84 + 16, -40 + 16, 100 + 16, 56 + 16])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # "num_params" of torchvision 0.29's weights. Frozen batch normalization has no parameters there.
        ("faster_rcnn_resnet50_v1_5_fpn", 41_755_286),
        ("faster_rcnn_resnet50_v1_5_fpn_v2", 43_712_278),
        ("retinanet_resnet50_v1_5_fpn", 34_014_999),
        ("retinanet_resnet50_v1_5_fpn_v2", 38_198_935),
    ],
)
def test_parameters_of_torchvisions_detectors(name, parameters):
    detector = build_detector(name, classes=90)
    assert get_detector_config(name).classes == 90
    frozen = detector.config.frozen_batch_norm
    norms = [x for x in detector.model.layers if isinstance(x, keras.layers.BatchNormalization)]
    without = sum(layer.count_params() if frozen else layer.count_params() // 2 for layer in norms)
    assert detector.model.count_params() - without == parameters


def test_complexity_by_hand():
    """A 3 x 3 stem, three stages of one block, and a head at each of 20 regions, on 64 x 96 pixels."""
    cost = build(C4).complexity(20, 30)
    shared = 64 * 96 * 9 * 8 * (3 + 2 * 8) + 32 * 48 * (9 * 8 * (8 + 8) + 9 * 8 * 128 + 128 * 5 * 9)
    # The last stage on 14 x 14 halves them.
    head = 7 * 7 * 9 * 8 * (8 + 8) + 8 * 4 * 5
    assert cost.multiply_adds == shared + 20 * head
    trained = sum(np.prod(weight.shape) for weight in build(C4).model.trainable_weights)
    assert cost.parameters == trained
    with pytest.raises(InputError, match="the sides of an image must be positive"):
        build(C4).complexity(0, 30)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        # "_ops" of torchvision 0.28's weights: an image of 512 x 512 pixels, which becomes 800 x 800.
        ("faster_rcnn_resnet50_v1_5_fpn", 134.38),
        ("faster_rcnn_resnet50_v1_5_fpn_v2", 280.371),
        ("retinanet_resnet50_v1_5_fpn", 151.54),
        ("retinanet_resnet50_v1_5_fpn_v2", 152.238),
    ],
)
def test_multiply_adds_of_torchvisions_detectors(name, billions):
    with zeros_for_weights():
        cost = build_detector(name, classes=90).complexity(512, 512)
    assert cost.multiply_adds == pytest.approx(billions * 1e9, rel=0.001)


def test_outputs_are_those_of_the_flat_model(detectors):
    detector = detectors[C4]
    images = np.random.default_rng(3).normal(size=(1, 32, 64, 3)).astype("float32")
    rois = np.random.default_rng(4).normal(size=(2, 14, 14, 8)).astype("float32")
    shared = detector.features(images)
    assert isinstance(shared, Outputs)
    parts = [*shared.maps, *shared.logits, *shared.deltas, *detector.head(rois)]
    for part, whole in zip(parts, detector.model([images, rois]), strict=True):
        np.testing.assert_array_equal(part, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", ["resnet18", "plain18", "resnet50d", "resnext50_32x4d", "wide_resnet50_2", "resnet50_v2"]
)
def test_c4_on_other_families(network):
    detector = build_detector(f"faster_rcnn_{network}_c4", classes=3, proposals=2, proposal_candidates=10)
    raw = detector.raw_detections(
        tf.random.stateless_normal([1, 64, 96, 3], (0, 0)), detector.anchors(64, 96), tf.constant([[64, 96]])
    )
    assert raw.boxes.shape == (1, 100, 4)
    # The last stage halves the pooled maps to 7 x 7; those of a pre-activation network are pooled to 7 x 7.
    maps = detector.head.get_layer("roi_pool").input
    assert maps.shape[1:3] == (7, 7)
    assert weighted(detector) == zoo(detector.config.network) | OWN_LAYERS[C4]


def test_what_is_frozen_up_to_the_last_stage():
    """The last stage has an input of its own, but the others are frozen, too."""
    detector = build(C4)
    detector_module.freeze_detector(detector, "C4")
    trained = {weight.path.split("/")[0] for weight in detector.model.trainable_weights}
    assert trained == RPN | PREDICTOR


def test_statistics_are_those_of_all_images_together():
    detector = build(C4)
    random = np.random.default_rng(0)
    images = [tf.constant(random.normal(shift, 1, (1, 16, 24, 3)), tf.float32) for shift in (-2, 0, 2)]
    reestimate_statistics(detector, images)
    outputs = detector.model.get_layer("conv1_conv")(tf.concat(images, 0)).numpy()
    layer = detector.model.get_layer("conv1_bn")
    np.testing.assert_allclose(layer.moving_mean, outputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, outputs.var((0, 1, 2)), rtol=1e-2)
    with pytest.raises(InputError, match="no image can be decoded"):
        reestimate_statistics(detector, [])

    # Of two workers, one of which has no images.
    sums = []
    reestimate_statistics(detector, images, lambda rows: sums.append(rows) or rows)
    other = build(C4)
    reestimate_statistics(other, [], lambda rows: np.concatenate([rows, *sums]))
    for own, expected in zip(other.model.weights, detector.model.weights, strict=True):
        np.testing.assert_array_equal(own, expected)
