"""Recipes for object detection."""

import dataclasses

from keras_resnet.errors import InputError, require, unknown_name
from keras_resnet.training.recipe import Recipe, described


@dataclasses.dataclass(frozen=True)
class DetectionRecipe(Recipe):
    """A training recipe for a two-stage detector.

    `model_overrides` are fields of `DetectorConfig`; its key "network" holds fields of the backbone's config.
    `weights` are weights of a whole detector; `weights` and `backbone_weights` are mutually exclusive.
    """

    backbone_weights: str | None = described(
        "Weights of a classifier for the backbone: a name such as imagenet, or a file.", None
    )
    statistics_batches: int = described(
        "With backbone_weights: number of training batches on which the statistics of the backbone's batch "
        "normalization are recomputed before they are frozen (appendix A); 0 keeps those of the weights.",
        0,
    )
    flip: bool = described("Mirror images left and right with probability 1/2.", True)
    scale_jitter: tuple[float, ...] = described(
        "Range of the random factor by which images are enlarged and cropped, or shrunk and padded.",
        (1.0, 1.0),
    )
    skip_faulty: bool = described(
        "Leave out faulty annotations and images without a file instead of stopping.", False
    )
    also_train: str | None = described(
        "A second dataset with the same classes, whose train_split is added, such as voc/2012.", None
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.statistics_batches >= 0, "statistics_batches must not be negative", self.statistics_batches
        )
        require(len(self.scale_jitter) == 2, "scale_jitter takes two numbers", self.scale_jitter)
        if self.weights is not None and self.backbone_weights is not None:
            raise InputError(
                "set weights, which are those of the whole detector, or backbone_weights, not both"
            )
        if self.statistics_batches and self.backbone_weights is None:
            raise InputError("statistics_batches needs backbone_weights, whose statistics it recomputes")
        if self.freeze is not None and self.weights is None and self.backbone_weights is None:
            raise InputError("freeze needs weights or backbone_weights; random layers are not frozen")
        if self.reestimate_batches:
            raise InputError(
                "detection has no reestimate_batches; set statistics_batches, which applies before training"
            )


RECIPES: dict[str, DetectionRecipe] = {
    # Takes minutes on two CPU cores. No flipping, because scenes may show digits.
    "detect_scenes": DetectionRecipe(
        model="faster_rcnn_cifar_resnet20_c4",
        dataset="scenes/64",
        val_split="test[:200]",
        flip=False,
        model_overrides={
            "shorter_side": 64,
            "longer_side": 107,
            "anchor_sizes": ((8, 16, 32),),
            "rpn_channels": 64,
            "pooled_size": 8,
            "proposal_candidates": 500,
            "proposals": 50,
            "training_candidates": 500,
            "training_proposals": 200,
            "roi_samples": 32,
        },
        batch_size=8,
        epochs=4,
        learning_rate=0.02,
        schedule="cosine",
        warmup_epochs=0.2,
        clip_norm=10,
    ),
    # Appendix A, with the hyperparameters of py-faster-rcnn; trained on VOC "07+12".
    "detect_voc_paper": DetectionRecipe(
        model="faster_rcnn_resnet101_c4",
        dataset="voc/2007",
        train_split="train+validation",
        also_train="voc/2012",
        val_split="test",
        backbone_weights="imagenet",
        statistics_batches=200,
        freeze="C2",
        batch_size=2,
        steps=70_000,
        learning_rate=0.001,
        schedule="steps",
        boundaries=(5 / 7,),
        weight_decay=5e-4,
    ),
    # Appendix A: 8 GPUs with 2 images each, as in the step that trains the box head; also anchors of size 64.
    "detect_coco_paper": DetectionRecipe(
        model="faster_rcnn_resnet101_c4",
        dataset="coco/2014",
        val_split="validation",
        model_overrides={"anchor_sizes": ((64, 128, 256, 512),)},
        backbone_weights="imagenet",
        statistics_batches=200,
        freeze="C2",
        batch_size=16,
        steps=320_000,
        learning_rate=0.001,
        schedule="steps",
        boundaries=(0.75,),
        weight_decay=5e-4,
    ),
    # torchvision's recipe: 26 epochs on 8 GPUs with 2 images each, 1,000 steps of warm-up.
    "detect_coco_fpn": DetectionRecipe(
        model="faster_rcnn_resnet50_v1_5_fpn",
        dataset="coco/2017",
        val_split="validation",
        backbone_weights="torchvision_v1",
        freeze="C2",
        batch_size=16,
        epochs=26,
        learning_rate=0.02,
        schedule="steps",
        boundaries=(16 / 26, 22 / 26),
        warmup_epochs=0.135,
    ),
}
"""The recipes of detectors, by name."""


def get_recipe(name: str, model: str | None = None) -> DetectionRecipe:
    """Returns the recipe `name`, with the detector `model` if it is given.

    Raises:
        InputError: the recipe does not exist.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name].replace(**({} if model is None else {"model": model}))
