"""Whole detectors against torchvision's, whose weights go through files as torchvision writes them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.torch_detectors import C4, OPTIONS, as_torch, torch_detector, with_old_names
from helpers.torch_zoo import detection
from helpers.zoo_networks import relative_difference, zeros_for_weights

from keras_resnet.detection.config import get_detector_config
from keras_resnet.detection.data.batches import OBJECT
from keras_resnet.detection.detector import build_detector
from keras_resnet.detection.registry import DETECTORS, coco_class_names
from keras_resnet.detection.task import joint_losses
from keras_resnet.detection.torch_files import torch_detector_names
from keras_resnet.export.images import sample_photos

pytestmark = pytest.mark.torch

THEIRS = {
    "faster_rcnn_resnet50_v1_5_fpn": "fasterrcnn_resnet50_fpn",
    "faster_rcnn_resnet50_v1_5_fpn_v2": "fasterrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_v1_5_fpn": "retinanet_resnet50_fpn",
    "retinanet_resnet50_v1_5_fpn_v2": "retinanet_resnet50_fpn_v2",
}
NAMES = [*THEIRS, "faster_rcnn_resnet50_v1_5_c4"]


def photos():
    """scikit-learn's two photos in different sizes: uint8 (height, width, 3)."""
    views = sample_photos(160, 215, 3)[0], sample_photos(219, 170, 3)[4]
    return [view.round().astype("uint8") for view in views]


class Pair:
    """torchvision's detector and ours, with the same weights."""

    def __init__(self, name, folder):
        import torch
        from safetensors.torch import save_file

        self.theirs = torch_detector(name, photos()[0])
        state = self.theirs.state_dict()
        if name in ("faster_rcnn_resnet50_v1_5_fpn", "retinanet_resnet50_v1_5_fpn"):
            torch.save(with_old_names(state), path := folder / "theirs.pth")
        else:
            save_file(state, path := folder / "theirs.safetensors")
        overrides = {**OPTIONS, **(C4 if name.endswith("c4") else {})}
        with zeros_for_weights():
            self.ours = build_detector(name, weights=path, **overrides)
        assert self.ours.class_names == coco_class_names()
        path.unlink()

    def batch(self):
        """torchvision's input for the two photos, and the sizes without padding."""
        images, _ = self.theirs.transform([as_torch(photo) for photo in photos()])
        return images

    def levels(self, batch):
        """Our maps that have anchors."""
        if self.ours.head is not None and len(self.ours.config.strides) == 1:
            return self.ours.features(batch).maps
        suffix, stages = "_bn" * self.ours.config.pyramid_norm, self.ours.config.pyramid_stages
        names = [f"fpn_layer_{index}{suffix}" for index in range(stages)]
        names += ["fpn_pool"] if self.ours.config.extra_levels == "pool" else ["fpn_p6", "fpn_p7"]
        outputs = [self.ours.model.get_layer(name).output for name in names]
        return keras.Model(self.ours.model.inputs[0], outputs)(batch)


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp("weights"))


def flat(tensor, last):
    """Our outputs of a level, (batch, height, width, anchors * last), in torchvision's order."""
    array = np.asarray(tensor)
    return array.reshape(len(array), -1, last)


@pytest.mark.parametrize("name", THEIRS)
def test_all_names_and_shapes(name):
    """On torch's device without memory; the parameters are as many as torchvision says."""
    import torch

    with torch.device("meta"):
        state = getattr(detection(), THEIRS[name])(weights=None, weights_backbone=None).state_dict()
    names = {key for key in state if not key.endswith(".num_batches_tracked")}
    config = get_detector_config(name)
    table = torch_detector_names(config)
    assert {source.names[0] for source in table.values()} == names
    entry = next(entry for entry in DETECTORS if entry.model == name)
    version = "V2" if name.endswith("_v2") else ""
    kind = "FasterRCNN" if name.startswith("faster") else "RetinaNet"
    published = getattr(detection(), f"{kind}_ResNet50_FPN{'_' + version if version else ''}_Weights").COCO_V1
    assert entry.url == published.url
    assert entry.box_ap == published.meta["_metrics"]["COCO-val2017"]["box_map"]
    assert coco_class_names() == tuple(published.meta["categories"][1:])


def test_maps_logits_and_deltas(pair):
    import torch

    images = pair.batch()
    batch = np.moveaxis(images.tensors.numpy(), 1, -1)
    outputs = pair.ours.features(batch)
    with torch.inference_mode():
        maps = pair.theirs.backbone(images.tensors)
        maps = maps if isinstance(maps, dict) else {"0": maps}
        for found, expected in zip(pair.levels(batch), maps.values(), strict=True):
            assert relative_difference(found, np.moveaxis(expected.numpy(), 1, -1)) <= 1e-4
        if pair.ours.head is None:
            expected = pair.theirs.head(list(maps.values()))
            expected = expected["cls_logits"], expected["bbox_regression"]
            found = [
                np.concatenate([flat(level, last) for level in levels], 1)
                for levels, last in ((outputs.logits, 91), (outputs.deltas, 4))
            ]
            for ours, theirs in zip(found, expected, strict=True):
                # The unused class is -40 at least.
                theirs = theirs.numpy()
                used = slice(1, None) if theirs.shape[-1] == 91 else slice(None)
                assert relative_difference(ours[..., used], theirs[..., used]) <= 1e-4
            return
        logits, deltas = pair.theirs.rpn.head(list(maps.values()))
        for ours, theirs in ((outputs.logits, logits), (outputs.deltas, deltas)):
            for found, expected in zip(ours, theirs, strict=True):
                assert relative_difference(found, np.moveaxis(expected.numpy(), 1, -1)) <= 1e-4
        boxes = regions(images.image_sizes)
        pooled = pair.theirs.roi_heads.box_roi_pool(maps, list(torch.from_numpy(boxes)), images.image_sizes)
        expected = pair.theirs.roi_heads.box_predictor(pair.theirs.roi_heads.box_head(pooled))
    found = pair.ours.regions(outputs, boxes, np.array(images.image_sizes, "int32"))
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_difference(np.reshape(ours, theirs.shape), theirs.numpy()) <= 1e-4


def regions(sizes, count=12):
    """Boxes of all scales inside images, some at their borders: float32 (images, count, 4)."""
    random, boxes = np.random.default_rng(0), []
    for height, width in sizes:
        sides = np.exp(random.uniform(np.log(2), np.log(150), (count, 2)))
        center = random.uniform(0, 1, (count, 2)) * (width, height)
        corners = np.concatenate([center - sides / 2, center + sides / 2], 1)
        boxes.append(np.clip(corners, 0, [width, height, width, height]))
    return np.array(boxes, "float32")


def test_prepared_images(pair):
    for photo in photos():
        expected, _ = pair.theirs.transform([as_torch(photo)])
        found, size = pair.ours.prepare(photo)
        assert expected.image_sizes == [size]
        np.testing.assert_allclose(found, np.moveaxis(expected.tensors[0].numpy(), 0, -1), atol=1e-5)


def test_detections(pair):
    """Image by image: torchvision pads the images of a batch to the same size."""
    import torch

    for photo, found in zip(photos(), pair.ours.detect(photos()), strict=True):
        with torch.inference_mode():
            expected = {key: value.numpy() for key, value in pair.theirs([as_torch(photo)])[0].items()}
        assert len(found) == len(expected["scores"]) >= 10
        assert np.ptp(expected["scores"]) > 0.05
        np.testing.assert_array_equal(found.labels, expected["labels"] - 1)
        np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-4)
        np.testing.assert_allclose(found.boxes, expected["boxes"], atol=0.05)


class AllOfThem:
    """A sampler of torchvision's that takes every anchor or region that is not ignored."""

    def __call__(self, matched):
        self.count = sum(int((labels >= 0).sum()) for labels in matched)
        return [labels >= 1 for labels in matched], [labels == 0 for labels in matched]


@pytest.mark.parametrize(
    "pair", ["faster_rcnn_resnet50_v1_5_fpn", "faster_rcnn_resnet50_v1_5_c4"], indirect=True
)
def test_losses_of_a_training_step(pair):
    """On all anchors and regions; torchvision divides by their number, we by that of a full sample."""
    import torch

    theirs, ours, photo = pair.theirs, pair.ours, photos()[0]
    boxes = np.array([[20, 30, 90, 120], [60, 10, 150, 100], [5, 5, 40, 30]], "float32")
    labels = np.array([3, 0, 17])
    heads = theirs.rpn, theirs.roi_heads
    kept = [head.fg_bg_sampler for head in heads]
    counts = theirs.rpn._pre_nms_top_n, theirs.rpn._post_nms_top_n
    samplers = AllOfThem(), AllOfThem()
    for head, sampler in zip(heads, samplers, strict=True):
        head.fg_bg_sampler = sampler
    theirs.rpn._pre_nms_top_n = {"training": 300, "testing": 300}
    theirs.rpn._post_nms_top_n = {"training": 40, "testing": 40}
    theirs.train()
    try:
        target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels + 1)}
        with torch.no_grad():
            expected = {key: float(loss) for key, loss in theirs([as_torch(photo)], [target]).items()}
    finally:
        theirs.eval()
        for head, sampler in zip(heads, kept, strict=True):
            head.fg_bg_sampler = sampler
        theirs.rpn._pre_nms_top_n, theirs.rpn._post_nms_top_n = counts
    config = ours.config
    ours.config = config.replace(
        training_candidates=300,
        training_proposals=40,
        rpn_samples=2**14,
        roi_samples=256,
        roi_beta=1 / 9,
        anchors_inside=False,
    )
    image, size = ours.prepare(photo)
    ratio = (np.array(size) / photo.shape[:2]).astype("float32")
    batch = {
        "images": image[None],
        "sizes": tf.constant([size]),
        "boxes": tf.constant(boxes * ratio[[1, 0, 1, 0]])[None],
        "labels": tf.constant(labels[None], tf.int32),
        "kinds": tf.fill([1, 3], OBJECT),
    }
    seeds = [tf.zeros([1, 2], tf.int64)] * 2
    found = joint_losses(ours, batch, ours.anchors(*image.shape[:2]), seeds)
    names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
    fills = [ours.config.rpn_samples / samplers[0].count] * 2 + [256 / samplers[1].count] * 2
    ours.config = config
    for name, loss, fill in zip(names, found, fills, strict=True):
        assert expected[name] > 1e-4
        assert float(loss[0]) * fill == pytest.approx(expected[name], rel=1e-4), name
