"""Detectors that train in seconds on scenes of 48 pixels."""

from keras_resnet.detection import DetectionRecipe, get_recipe

NETWORK = {"stage_depths": (1, 1, 1), "stage_filters": (4, 8, 8)}
_COMMON = {
    "shorter_side": 48,
    "longer_side": 48,
    "rpn_channels": 8,
    "training_candidates": 60,
    "training_proposals": 16,
    "roi_samples": 8,
    "proposal_candidates": 60,
    "proposals": 8,
    "pooled_size": 4,
}
C4 = {"network": NETWORK, "size_multiple": 16, "anchor_sizes": ((8, 16, 24),), **_COMMON}
FPN = {
    "network": {"stage_depths": (1, 1, 1, 1), "stage_filters": (4, 4, 4, 4)},
    "anchor_sizes": ((8,), (12,), (16,), (24,), (32,)),
    "pyramid_channels": 8,
    **_COMMON,
}


def small_recipe(fpn: bool = False, **changes) -> DetectionRecipe:
    """Three epochs of three steps on scenes of digits, with a C4 detector or a feature pyramid."""
    values = {
        "dataset": "scenes/digits/48",
        "train_split": "train[:12]",
        "val_split": "test[:5]",
        "model_overrides": C4,
        "batch_size": 4,
        "epochs": 3,
        "warmup_epochs": 0,
        "schedule": "constant",
    }
    if fpn:
        values |= {"model": "faster_rcnn_resnet50_v1_5_fpn", "model_overrides": FPN}
    return get_recipe("detect_scenes").replace(**{**values, **changes})


def recipe_flags(recipe: DetectionRecipe) -> list[str]:
    """The flags of `train_main.py` for a recipe."""
    usual = get_recipe("detect_scenes").to_dict()
    changed = {name: value for name, value in recipe.to_dict().items() if value != usual[name]}
    overrides = changed.pop("model_overrides", {})
    assert overrides.keys() >= usual["model_overrides"].keys()
    values = {**changed, **{f"model.{name}": value for name, value in overrides.items()}}
    return ["--recipe=detect_scenes", *(f"--set={name}={value!r}" for name, value in values.items())]
