"""The flags of `python -m keras_resnet detect` and `detection`, and the table of detectors."""

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
    "Leave out faulty annotations and images without a file instead of stopping.",
    bool,
    False,
)
_DATA_DIR = cli.Flag("data_dir", "Where TFDS keeps its datasets.")
_WEIGHTS = cli.Flag(
    "weights",
    "A weight file of this package or of torchvision, the folder of a run, or a name of published weights, "
    "such as faster_rcnn_resnet50_v1_5_fpn/coco.",
    required=True,
)
_DETECTOR = cli.Flag("detector", "The detector; not needed for weights that contain its name.")

_IMPROVEMENTS = (
    cli.Flag(
        "refine", "Refine the boxes, and average them by box voting (the paper, appendix B).", bool, False
    ),
    cli.Flag(
        "scales",
        "Multi-scale testing (appendix B): shorter sides of the resized images, such as 400,600,800.",
        tuple,
        [],
    ),
    cli.Flag(
        "ensemble",
        "Weights of further detectors with the same classes, for an ensemble (appendix B).",
        tuple,
        [],
    ),
)


def _print_list(detectors: Sequence[str] = ()) -> None:
    """Prints the detectors with their published weights; if `detectors` are given, also their costs."""
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
    "Detects objects in photos: prints a table and draws the boxes.",
    (
        _WEIGHTS,
        cli.Flag(
            "output",
            "A .png file, for one photo or for a contact sheet of several, or a folder for one picture per "
            "photo. Photos of less than 320 pixels are enlarged.",
            required=True,
        ),
        _DETECTOR,
        cli.Flag("json", "Also write the detections to this .json file."),
        cli.Flag("score", "Score threshold: only detections with higher scores are shown.", float, 0.5),
        *_IMPROVEMENTS,
    ),
    (cli.Flag("photos", "Photos, or folders of photos.", tuple),),
    extra="detection",
)

EVALUATE = cli.Command(
    "keras_resnet.commands.detection:evaluate",
    "Evaluates a detector on a dataset with COCO's and VOC's metrics.",
    (
        _DATASET,
        _WEIGHTS,
        cli.Flag(
            "output", "Folder for evaluation.json, per_class.csv and precision_recall.png.", required=True
        ),
        _DETECTOR,
        cli.Flag(
            "split",
            "Split of the dataset, such as test[:100]. Default: the first split that is not for training.",
        ),
        *_IMPROVEMENTS,
        cli.Flag("batch_size", "Images per device and step.", int, 1),
        _SKIP_FAULTY,
        cli.Flag(
            "max_bad_images", "Number of undecodable images that are skipped before it is an error.", int, 0
        ),
        *cli.flags_of(RunOptions, ("strategy", "data_dir", "worker_timeout")),
    ),
    extra="detection",
)

COMMAND = cli.Group(
    "Lists and evaluates detectors, and previews and checks datasets.",
    {
        "list": cli.Command(
            _print_list,
            "Prints the table of detectors and their published weights.",
            arguments=(
                cli.Flag(
                    "detectors",
                    "Only these, with parameters and multiply-adds for a photo of 640 x 480 pixels.",
                    tuple,
                ),
            ),
            extra="detection",
        ),
        "preview": cli.Command(
            "keras_resnet.commands.detection:preview",
            "Draws a contact sheet of images with boxes, as annotated and as augmented.",
            (
                _DATASET,
                cli.Flag("output", "The .png file to write.", required=True),
                _DATA_DIR,
                cli.Flag("split", "Split of the dataset, such as train or train[:100].", default="train"),
                cli.Flag(
                    "scale", "Range of the scale jitter, two numbers, such as 0.5,2.", tuple, ["1", "1"]
                ),
                cli.Flag("seed", "Seed of the augmentation.", int, 0),
                cli.Flag("epoch", "The first epoch whose augmentation is drawn.", int, 0),
                cli.Flag("images", "Number of rows.", int, 4),
                cli.Flag("draws", "Number of columns in addition to the annotated image.", int, 3),
                _SKIP_FAULTY,
            ),
            extra="detection",
        ),
        "check": cli.Command(
            "keras_resnet.detection.data.check:check",
            "Finds faulty annotations and images in a dataset; the exit status is 1 if there are any.",
            (_DATASET, _DATA_DIR),
            extra="detection",
        ),
        "evaluate": EVALUATE,
    },
)

if __name__ == "__main__":
    cli.run(COMMAND)
