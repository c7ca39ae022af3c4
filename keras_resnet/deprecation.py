"""Old names that still work: one table, and the warning that each of them gives."""

import pkgutil
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple


class OldName(NamedTuple):
    """A name that was replaced. That of a module stands for all names in the module.

    `since` is the first version with the new name, `until` the first one without the old name.
    """

    old: str
    new: str
    since: str
    until: str

    @property
    def message(self) -> str:
        """What the warning says."""
        renamed = f"{self.old} was renamed to {self.new} in version {self.since}"
        return f"{renamed} and will be removed in {self.until}"


OLD_NAMES = (
    OldName("keras_resnet.Entry", "keras_resnet.PretrainedWeights", "0.2.0", "0.4.0"),
    OldName("keras_resnet.weights.Entry", "keras_resnet.weights.PretrainedWeights", "0.2.0", "0.4.0"),
    OldName("keras_resnet.training.Machine", "keras_resnet.training.RunOptions", "0.2.0", "0.4.0"),
    OldName("keras_resnet.data.StreamedSplit", "keras_resnet.data.RecordSplit", "0.2.0", "0.4.0"),
    OldName("keras_resnet.evaluation", "keras_resnet.classification", "0.2.0", "0.4.0"),
    OldName("keras_resnet.evaluation.Member", "keras_resnet.classification.EvaluatedModel", "0.2.0", "0.4.0"),
    OldName(
        "keras_resnet.evaluation.find_member",
        "keras_resnet.classification.load_evaluated_model",
        "0.2.0",
        "0.4.0",
    ),
    OldName("python -m keras_resnet.evaluation", "python -m keras_resnet evaluate", "0.2.0", "0.4.0"),
    OldName("export", "keras_resnet.export", "0.2.0", "0.4.0"),
)
_BY_NAME = {row.old: row for row in OLD_NAMES}


def get_old_name(old: str) -> OldName:
    """The row of an old name."""
    return _BY_NAME[old]


def with_old_names(module: str, find: Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a module that has old names or is one; `find` looks up other names."""

    def getattr_with_old_names(name: str) -> Any:
        row = _BY_NAME.get(f"{module}.{name}")
        if row is None and module in _BY_NAME and not name.startswith("__"):
            whole = _BY_NAME[module]
            row = whole._replace(old=f"{whole.old}.{name}", new=f"{whole.new}.{name}")
        if row is None:
            if find is None:
                raise AttributeError(f"module {module!r} has no attribute {name!r}")
            return find(name)
        found = pkgutil.resolve_name(row.new)
        warnings.warn(row.message, FutureWarning, stacklevel=2)
        return found

    return getattr_with_old_names
