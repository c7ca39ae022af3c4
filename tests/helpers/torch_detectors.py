"""torchvision's detectors as references, with random weights whose scores and boxes differ."""

import collections

import numpy as np
from helpers.torch_zoo import detection, randomize, torchvision

SIDES = {"min_size": 160, "max_size": 224}
PROPOSALS, DETECTIONS = 24, 40
TWO_STAGES = {"rpn_post_nms_top_n_test": PROPOSALS, "box_detections_per_img": DETECTIONS}

# The same in our configs.
OPTIONS = {"shorter_side": 160, "longer_side": 224, "proposals": PROPOSALS, "detections": DETECTIONS}
C4 = {
    "anchor_sizes": ((32, 64, 128),),
    "anchor_rule": "torchvision",
    "rpn_channels": 1024,
    "proposal_candidates": 1000,
    "proposal_side": 1e-3,
    "box_side": 1e-2,
    "box_nms": 0.5,
}


def torch_detector(name, photo, seed=0):
    """Builds torchvision's counterpart of a detector.

    Args:
        name: ours.
        photo: uint8 (height, width, 3), in which there is something to detect afterwards.

    Returns:
        The `torch.nn.Module` in inference mode, with the epsilon of the published weights.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _BUILDERS[name]()
        # Before `randomize`, which changes the running statistics and the sizes of residuals.
        for key, module in network.named_modules():
            if "body" not in key and isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    torch.nn.init.normal_(module.bias, 0, 0.1)
    linear = {module: module.weight.detach().clone() for module in network.modules() if _is_linear(module)}
    randomize(network, seed)
    with torch.no_grad():
        for module, weight in linear.items():
            module.weight.copy_(weight)
    _spread(network, as_torch(photo))
    return network


def as_torch(photo):
    """A photo, uint8 (height, width, 3), as torchvision's detectors take it."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(photo, -1, 0))).float() / 255


def with_old_names(state):
    """A state dict under the names that torchvision had before version 0.13."""
    old = {}
    for name, tensor in state.items():
        for index in range(4):
            for block in ("inner", "layer"):
                name = name.replace(f"{block}_blocks.{index}.0.", f"{block}_blocks.{index}.")
            name = name.replace(f"_head.conv.{index}.0.", f"_head.conv.{2 * index}.")
        old[name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = tensor
    return old


def _is_linear(module):
    import torch

    return isinstance(module, torch.nn.Linear)


def _spread(network, photo):
    """Scales the last layers, so that neither scores nor boxes are all alike, one stage after the other."""
    import torch

    # The layer, and the standard deviation and mean of its outputs.
    if hasattr(network, "rpn"):
        rpn, box = network.rpn.head, network.roi_heads.box_predictor
        stages = [
            {rpn.cls_logits: (2.0, 0.0), rpn.bbox_pred: (0.3, 0.0)},
            {box.cls_score: (2.0, 0.0), box.bbox_pred: (1.0, 0.0)},
        ]
    else:
        head = network.head
        stages = [
            {head.classification_head.cls_logits: (1.5, -5.0), head.regression_head.bbox_reg: (0.3, 0.0)}
        ]
    for stage in stages:
        outputs = collections.defaultdict(list)
        hooks = [
            layer.register_forward_hook(
                lambda layer, _, output, outputs=outputs: outputs[layer].append(output.flatten())
            )
            for layer in stage
        ]
        with torch.inference_mode():
            network([photo])
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for layer, (deviation, mean) in stage.items():
                found = torch.cat(outputs[layer])
                factor = deviation / found.std()
                layer.weight.mul_(factor)
                layer.bias.mul_(factor).add_(mean - factor * found.mean())
    if not hasattr(network, "rpn"):
        # The unused first class of each anchor.
        with torch.no_grad():
            network.head.classification_head.cls_logits.bias.view(-1, 91)[:, 0] = -40.0


def _frozen():
    return torchvision().ops.FrozenBatchNorm2d


def _backbone(**options):
    utilities = detection().backbone_utils
    return utilities.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=_frozen(), trainable_layers=5, **options
    )


def _first_faster_rcnn():
    network = detection().FasterRCNN(_backbone(), 91, **SIDES, **TWO_STAGES)
    detection()._utils.overwrite_eps(network, 0.0)
    return network


def _first_retinanet():
    extra = torchvision().ops.feature_pyramid_network.LastLevelP6P7(256, 256)
    backbone = _backbone(returned_layers=[2, 3, 4], extra_blocks=extra)
    network = detection().RetinaNet(backbone, 91, **SIDES, detections_per_img=DETECTIONS)
    detection()._utils.overwrite_eps(network, 0.0)
    return network


def _second_faster_rcnn():
    return detection().fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **SIDES, **TWO_STAGES)


def _second_retinanet():
    return detection().retinanet_resnet50_fpn_v2(
        weights=None, weights_backbone=None, **SIDES, detections_per_img=DETECTIONS
    )


def _c4():
    """Put together from `FasterRCNN`: torchvision publishes none."""
    import torch

    package = torchvision()
    resnet = package.models.resnet50(weights=None, norm_layer=_frozen())
    body = package.models._utils.IntermediateLayerGetter(resnet, {"layer3": "0"})
    backbone = torch.nn.Sequential(collections.OrderedDict(body=body))
    backbone.out_channels = 1024
    box_head = torch.nn.Sequential(
        collections.OrderedDict(layer4=resnet.layer4, pool=torch.nn.AdaptiveAvgPool2d(1))
    )
    return detection().FasterRCNN(
        backbone,
        rpn_anchor_generator=detection().anchor_utils.AnchorGenerator(((32, 64, 128),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=package.ops.MultiScaleRoIAlign(["0"], 14, 2),
        box_head=box_head,
        box_predictor=detection().faster_rcnn.FastRCNNPredictor(2048, 91),
        **SIDES,
        **TWO_STAGES,
    )


_BUILDERS = {
    "faster_rcnn_resnet50_v1_5_fpn": _first_faster_rcnn,
    "faster_rcnn_resnet50_v1_5_fpn_v2": _second_faster_rcnn,
    "retinanet_resnet50_v1_5_fpn": _first_retinanet,
    "retinanet_resnet50_v1_5_fpn_v2": _second_retinanet,
    "faster_rcnn_resnet50_v1_5_c4": _c4,
}
