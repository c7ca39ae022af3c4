"""`python -m keras_resnet detection`: the table of detectors."""

from collections.abc import Sequence

from keras_resnet import cli
from keras_resnet.detection.config import get_detector_config, list_detectors
from keras_resnet.quiet import quiet
from keras_resnet.tables import markdown_table


def _print_list(detectors: Sequence[str] = ()) -> None:
    """Prints the detectors; those that are named, with their numbers of parameters, too."""
    names = list(detectors) or list_detectors()
    header = ["detector", "style", "shorter side", "classes"]
    configs = [get_detector_config(name) for name in names]
    rows = [
        [name, config.style, str(config.shorter_side), str(config.classes)]
        for name, config in zip(names, configs, strict=True)
    ]
    if detectors:
        with quiet():
            count = cli.load("keras_resnet.commands.detection:count_parameters")
        header.append("parameters")
        for row, parameters in zip(rows, count(names), strict=True):
            row.append(f"{parameters:,}")
    print(markdown_table(header, rows))


COMMAND = cli.Group(
    "Lists detectors.",
    {
        "list": cli.Command(
            _print_list,
            "Prints the table of detectors.",
            arguments=(cli.Flag("detectors", "Only these, with their numbers of parameters.", tuple),),
        ),
    },
)

if __name__ == "__main__":
    cli.run(COMMAND)
