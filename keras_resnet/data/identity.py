"""Tells whether a dataset is still the one of a run, and whether it has the classes of weights."""

from collections.abc import Sequence
from typing import Any

from keras_resnet.data.sources import Dataset
from keras_resnet.errors import InputError
from keras_resnet.weights.labels import labels
from keras_resnet.weights.spec import ModelSpec


def split_rule_change(before: Any, now: dict) -> str | None:
    """How another version selected the images of splits, given two values of `Dataset.identity`; or None.

    `before` was read from a file; it is empty or None if an older version has not stored it.
    """
    there = before.get("split_rule") if isinstance(before, dict) else None  # older versions had no rule
    here = now.get("split_rule")
    if not here or there in ("", here):
        return None
    return f"images were selected for splits by {there or 'their order'}, now by {here}"


def data_changes(before: Any, now: dict) -> list[str]:
    """What differs between two values of `Dataset.identity`, in words; see `split_rule_change`."""
    if change := split_rule_change(before, now):
        return [change]
    if not before or before == now:
        return []
    try:
        found = _class_changes(before["class_names"], now["class_names"])
        old, new = before["split_sizes"], now["split_sizes"]
        for split in {**old, **new}:
            if old.get(split, 0) != new.get(split, 0):
                found.append(f"{split} has {old.get(split, 0)} images there, {new.get(split, 0)} now")
        # Stored when the order of records depended on their format.
        files = before["files"].removesuffix(", array_record")
        if not found and files != now["files"]:
            found.append(f"files {before['files']} there, {now['files']} now")
        return found
    except (AttributeError, KeyError, TypeError):
        return ["the identity stored there is not valid"]


def check_classes(weights: str, spec: ModelSpec, dataset: Dataset) -> None:
    """Raises `InputError` if the classes of weights and dataset differ, or their order."""
    theirs, ours = spec.labels, dataset.class_names
    if spec.classes != dataset.classes:
        raise InputError(
            f"{weights} has {spec.classes} classes, dataset {dataset.name} has {dataset.classes}"
        )
    identifiers, names = zip(*labels("imagenet"), strict=True)
    if not theirs or theirs == ours or {theirs, ours} == {identifiers, names}:
        return
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if their != our:
            raise InputError(
                f"class {index} is {their!r} in {weights}, but {our!r} in dataset {dataset.name}"
            )


def _class_changes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    removed, added = sorted({*old} - {*new}), sorted({*new} - {*old})
    if removed and len(removed) == len(added):
        return [f"renamed classes: {_some(removed)} there, {_some(added)} now"]
    if removed or added:
        changes = {"removed": removed, "added": added}
        return [f"{what} classes: {_some(names)}" for what, names in changes.items() if names]
    moved = [index for index, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]][:1]
    return [f"reordered classes: class {i} is {old[i]!r} there, {new[i]!r} now" for i in moved]


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
