"""`python -m keras_resnet models`: the networks as a table."""

from collections.abc import Sequence

from keras_resnet.applications import build_model
from keras_resnet.models.complexity import complexity
from keras_resnet.models.config import MODELS
from keras_resnet.progress import ProgressBar
from keras_resnet.tables import engineering, markdown_table

HEADER = ("network", "layers", "block", "shortcut", "stride on", "input", "parameters", "multiply-adds")


def zoo_rows(names: Sequence[str] = tuple(MODELS)) -> list[tuple[str, ...]]:
    """One row of text per network, counted on the built network."""
    rows = []
    for name in ProgressBar(len(names), "networks", "building").track(names):
        config = MODELS[name]
        cost = complexity(build_model(name))
        rows.append(
            (
                name,
                str(config.weighted_layers),
                config.block,
                config.shortcut or "none",
                config.bottleneck_stride if config.block == "bottleneck" else "3x3",
                f"{config.input_size}x{config.input_size}",
                f"{cost.parameters:,}",
                engineering(cost.multiply_adds),
            )
        )
    return rows


def main() -> None:
    """Prints the zoo."""
    print(markdown_table(HEADER, zoo_rows()))
