"""`python -m keras_resnet.classification`: tests weights on a dataset as the paper does.

Exit status: 0; 1 if another worker was lost; 2 for bad input, with one line that says what is wrong.
"""

import re
import shlex
import sys
from pathlib import Path

from absl import flags

from keras_resnet import cli
from keras_resnet.classification.evaluation import EvaluationFailed, evaluate
from keras_resnet.classification.members import Member, find_member
from keras_resnet.classification.protocols import get_protocol
from keras_resnet.classification.report import check_folder, table, write_report
from keras_resnet.data import open_dataset
from keras_resnet.errors import InputError
from keras_resnet.run_folder import RunFolder
from keras_resnet.training.distribution import create

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training, instead of --model and --weights.")
_MODEL = flags.DEFINE_string(
    "model", None, "A network of the zoo, or one for each of --weights; files of our own need none."
)
_WEIGHTS = flags.DEFINE_list(
    "weights",
    None,
    "A weight file, our own or another zoo's, or the name of published weights, such as imagenet; "
    "several, separated by commas, are an ensemble.",
)
_DATASET = flags.DEFINE_string("dataset", None, "digits, a TFDS name or folder:PATH. Default: the workdir's.")
_SPLIT = flags.DEFINE_string(
    "split", None, "Of the dataset, such as validation or test[:100]. Default: its test."
)
_PROTOCOL = flags.DEFINE_string("protocol", "single_crop", "single_crop, ten_crop or multi_scale.")
_STRATEGY = flags.DEFINE_string("strategy", "auto", "auto, one_device, mirrored or multi_worker.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images a replica and step. Default: the protocol's.")
_MAX_BAD_IMAGES = flags.DEFINE_integer(
    "max_bad_images", 0, "Images that cannot be decoded and are left out, before it is an error."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its datasets.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "Where evaluation.json, per_class.csv and confusion.png go. Default: a folder in WORKDIR/evaluation, or "
    "in runs/evaluation.",
)
_WORKER_TIMEOUT = flags.DEFINE_float("worker_timeout", 300, "Seconds to wait for other workers.")
_FLAGS = (
    *(_WORKDIR, _MODEL, _WEIGHTS, _DATASET, _SPLIT, _PROTOCOL),
    *(_STRATEGY, _BATCH_SIZE, _MAX_BAD_IMAGES, _DATA_DIR, _OUTPUT_DIR, _WORKER_TIMEOUT),
)


def main() -> int:
    """Evaluates as the flags say; the exit status."""
    get_protocol(_PROTOCOL.value)
    # Several workers must find each other before TensorFlow does anything.
    distribution = create(_STRATEGY.value, _WORKER_TIMEOUT.value)
    members, dataset_name = _members()
    folder = _OUTPUT_DIR.value or _default_folder(members, dataset_name)
    check_folder(folder)
    try:
        evaluation = evaluate(
            members,
            open_dataset(dataset_name, _DATA_DIR.value),
            _PROTOCOL.value,
            distribution=distribution,
            split=_SPLIT.value,
            batch_size=_BATCH_SIZE.value,
            max_bad_images=_MAX_BAD_IMAGES.value,
        )
    except EvaluationFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    if not distribution.is_chief:
        return 0
    print(table(evaluation))
    try:
        write_report(evaluation, folder, _command())
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from None
    speed = evaluation.metrics.images / evaluation.seconds
    print(
        f"{evaluation.protocol.name} on {evaluation.split} of {evaluation.dataset.name}: "
        f"{evaluation.seconds:.1f} s, {speed:.1f} images/s; see {folder}"
    )
    return 0


def _members() -> tuple[list[Member], str]:
    """The networks and the dataset's name."""
    if _WORKDIR.value is not None:
        for name in ("model", "weights"):
            if flags.FLAGS[name].value is not None:
                raise InputError(f"--workdir and --{name} exclude each other")
        workdir = RunFolder(_WORKDIR.value)
        dataset = _DATASET.value or workdir.read_recipe()["dataset"]
        return [find_member(str(workdir.weights))], dataset
    weights = _WEIGHTS.value
    if not weights or _DATASET.value is None:
        raise InputError("give --weights=FILE_OR_NAME and --dataset=NAME, or --workdir=DIR")
    if not all(weights):
        raise InputError(f"--weights has an empty name: {','.join(weights)!r}")
    models = (_MODEL.value or "").split(",")
    if len(models) not in (1, len(weights)):
        raise InputError(f"--model has {len(models)} names, --weights {len(weights)}; give one, or as many")
    models = models * len(weights) if len(models) == 1 else models
    pairs = zip(weights, models, strict=True)
    return [find_member(name, model or None) for name, model in pairs], _DATASET.value


def _default_folder(members: list[Member], dataset: str) -> Path:
    """A folder that no other evaluation has."""
    about = [dataset if _SPLIT.value is None else f"{dataset}-{_SPLIT.value}", _PROTOCOL.value]
    if _WORKDIR.value is not None:
        folder = Path(_WORKDIR.value, "evaluation")
    else:
        folder = Path("runs", "evaluation")
        about[:0] = [f"{member.spec.model}-{member.digest[:8]}" for member in members]
    return folder / re.sub(r"[^\w.+-]+", "_", "-".join(about))


def _command() -> str:
    """The command that does this again."""
    given = {flag.name: flag.value for flag in _FLAGS if flag.present}
    texts = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    options = [f"--{name}={text}" for name, text in texts.items()]
    return shlex.join(["python", "-m", "keras_resnet.classification", *options])


if __name__ == "__main__":
    cli.run(main)
