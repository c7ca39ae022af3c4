"""Measures the layers of torchvision's Faster R-CNN in eager mode; needs only PyTorch and torchvision.

RoIAlign and non-maximum suppression are not measured, so torchvision's compiled operators are not loaded.
"""

from typing import Any
from unittest import mock

import torch  # pyright: ignore[reportMissingImports]

from benchmarks.workers import TakeSteps, serve_steps


def _detection():
    """Imports torchvision.models.detection without the compiled operators, two of which must be declared."""
    for operator in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{operator}", schema)
    with mock.patch.object(torch.ops, "load_library", side_effect=OSError("left out")):
        import torchvision.models.detection  # pyright: ignore[reportMissingImports]
    return torchvision.models.detection


def _prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], TakeSteps]:
    torch.manual_seed(0)
    # Any: PyTorch does not declare the argument `memory_format` of a module's `to`.
    model: Any = _detection().fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(1, 3, spec["height"], spec["width"]).to(memory_format=torch.channels_last)
    regions = torch.rand(1000, 256, 7, 7)

    def take_steps(steps: int) -> None:
        with torch.inference_mode():
            for _ in range(steps):
                model.rpn.head(list(model.backbone(images).values()))
                model.roi_heads.box_predictor(model.roi_heads.box_head(regions))

    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "versions": {"torch": torch.__version__}}, take_steps


if __name__ == "__main__":
    serve_steps(_prepare)
