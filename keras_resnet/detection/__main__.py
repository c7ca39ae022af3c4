"""`python -m keras_resnet detect` and `detection`: their flags, and the table of detectors."""

from collections.abc import Sequence

from keras_resnet import cli
from keras_resnet.detection.config import get_detector_config, list_detectors
from keras_resnet.detection.registry import detector_entries
from keras_resnet.quiet import quiet
from keras_resnet.tables import markdown_table
from keras_resnet.training.options import RunOptions

_DATASET = cli.Flag(
    "dataset",
    "scenes (composited images), coco:PATH, voc:PATH, or a TFDS name: voc/2007, coco/2017.",
    required=True,
)
_SKIP_FAULTY = cli.Flag(
    "skip_faulty",
    "Leave out faulty annotations, and images without a file, instead of stopping.",
    bool,
    False,
)
_DATA_DIR = cli.Flag("data_dir", "Where TFDS keeps its datasets.")
_WEIGHTS = cli.Flag(
    "weights",
    "A weight file of this package or of torchvision, or a name of published weights, such as "
    "faster_rcnn_resnet50_v1_5_fpn/coco.",
    required=True,
)
_DETECTOR = cli.Flag("detector", "A detector; not needed for weights that name theirs.")


def _print_list(detectors: Sequence[str] = ()) -> None:
    """Prints the detectors with their published weights; of those that are named, their costs, too."""
    names = list(detectors) or list_detectors()
    configs = [get_detector_config(name) for name in names]
    header = ["detector", "style", "sides", "classes", "published weights", "box AP", "license"]
    rows = []
    for name, config in zip(names, configs, strict=True):
        entries = detector_entries(name)
        published = [", ".join(map(str, column)) for column in zip(*map(_published, entries), strict=True)]
        sides = f"{config.shorter_side}, {config.longer_side}"
        rows.append([name, config.style, sides, str(config.classes), *(published or ["-"] * 3)])
    if detectors:
        with quiet():
            count = cli.load("keras_resnet.commands.detection:costs")
        header += ["parameters", "multiply-adds"]
        for row, cells in zip(rows, count(names), strict=True):
            row += cells
    print(markdown_table(header, rows))


def _published(entry) -> tuple[str, float, str]:
    return entry.name, entry.box_ap, entry.license


DETECT = cli.Command(
    "keras_resnet.commands.detection:detect",
    "Detects objects in photos: prints a table, and writes pictures with boxes.",
    (
        _WEIGHTS,
        cli.Flag(
            "output",
            "A file that ends with .png, for one photo or a contact sheet of several, or a folder for a "
            "picture of each photo. Photos of less than 320 pixels are enlarged.",
            required=True,
        ),
        _DETECTOR,
        cli.Flag("json", "Also write the boxes to this file, which ends with .json."),
        cli.Flag("score", "Show detections with scores above this.", float, 0.5),
    ),
    (cli.Flag("photos", "Photos, or folders of photos.", tuple),),
)

EVALUATE = cli.Command(
    "keras_resnet.commands.detection:evaluate",
    "Evaluates a detector on a dataset with COCO's and VOC's metrics.",
    (
        _DATASET,
        _WEIGHTS,
        cli.Flag(
            "output", "Folder of evaluation.json, per_class.csv and precision_recall.png.", required=True
        ),
        _DETECTOR,
        cli.Flag(
            "split",
            "Split of the dataset, such as test[:100]. Default: the first that is not for training.",
        ),
        cli.Flag("batch_size", "Images per device and step.", int, 1),
        _SKIP_FAULTY,
        cli.Flag("max_bad_images", "Undecodable images that are skipped before it is an error.", int, 0),
        *cli.flags_of(RunOptions, ("strategy", "data_dir", "worker_timeout")),
    ),
)

COMMAND = cli.Group(
    "Lists and evaluates detectors, and previews and checks their data.",
    {
        "list": cli.Command(
            _print_list,
            "Prints the table of detectors and their published weights.",
            arguments=(
                cli.Flag(
                    "detectors",
                    "Only these, with their parameters, and multiply-adds for a photo of 640 x 480 pixels.",
                    tuple,
                ),
            ),
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
                _SKIP_FAULTY,
            ),
        ),
        "check": cli.Command(
            "keras_resnet.detection.data.check:check",
            "Finds faulty annotations and images of a dataset; the exit status is 1 if there are any.",
            (_DATASET, _DATA_DIR),
        ),
        "evaluate": EVALUATE,
    },
)

if __name__ == "__main__":
    cli.run(COMMAND)
