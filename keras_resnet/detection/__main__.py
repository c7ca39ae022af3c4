"""`python -m keras_resnet detection`: its flags, and the table of detectors."""

from collections.abc import Sequence

from keras_resnet import cli
from keras_resnet.detection.config import get_detector_config, list_detectors
from keras_resnet.quiet import quiet
from keras_resnet.tables import markdown_table

_DATASET = cli.Flag(
    "dataset", "scenes, coco:PATH, voc:PATH, or a TFDS name: voc/2007, coco/2017.", required=True
)
_DATA_DIR = cli.Flag("data_dir", "Where TFDS keeps its datasets.")


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
    "Lists detectors, and previews and checks their data.",
    {
        "list": cli.Command(
            _print_list,
            "Prints the table of detectors.",
            arguments=(cli.Flag("detectors", "Only these, with their numbers of parameters.", tuple),),
        ),
        "preview": cli.Command(
            "keras_resnet.commands.detection:preview",
            "Draws a contact sheet of images with boxes, as annotated and as augmented.",
            (
                _DATASET,
                cli.Flag("output", "The file to write; ends with .png.", required=True),
                _DATA_DIR,
                cli.Flag("split", "Split of the dataset, such as train or train[:100].", default="train"),
                cli.Flag("scale", "Range of the scale jitter, two numbers.", tuple, ["1", "1"]),
                cli.Flag("seed", "Seed of the augmentation.", int, 0),
                cli.Flag("epoch", "The first epoch that is drawn.", int, 0),
                cli.Flag("images", "Number of rows.", int, 4),
                cli.Flag("draws", "Number of columns in addition to the annotated image.", int, 3),
            ),
        ),
        "check": cli.Command(
            "keras_resnet.commands.detection:check",
            "Finds faulty annotations and images of a dataset; the exit status is 1 if there are any.",
            (_DATASET, _DATA_DIR),
        ),
    },
)

if __name__ == "__main__":
    cli.run(COMMAND)
