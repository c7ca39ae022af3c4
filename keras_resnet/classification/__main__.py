"""The flags of `python -m keras_resnet evaluate`."""

from keras_resnet import cli
from keras_resnet.training.options import RunOptions

COMMAND = cli.Command(
    "keras_resnet.commands.evaluate:main",
    "Evaluates weights on a dataset by the paper's test protocols.",
    (
        cli.Flag("workdir", "Folder of a training run, instead of --model and --weights."),
        cli.Flag("model", "A network, or one for each of --weights; not needed for files of this package."),
        cli.Flag(
            "weights",
            "A weight file of this package or another zoo, or a name of published weights, such as imagenet. "
            "Several are an ensemble.",
            tuple,
        ),
        cli.Flag("dataset", "digits, a TFDS name or folder:PATH. Default: that of the workdir."),
        cli.Flag(
            "split",
            "Split of the dataset, such as validation or test[:100]. Default: the recipe's val_split with "
            "--workdir, else the test split.",
        ),
        cli.Flag("protocol", "single_crop, ten_crop or multi_scale.", default="single_crop"),
        cli.Flag(
            "batch_size",
            "Images per replica and step. Default: the recipe's with --workdir and single_crop, to repeat "
            "the run's val_loss to the last digit; else the protocol's.",
            int,
        ),
        cli.Flag("max_bad_images", "Undecodable images that are skipped before it is an error.", int, 0),
        cli.Flag(
            "output_dir",
            "Folder of evaluation.json, per_class.csv and confusion.png. Default: a folder in "
            "WORKDIR/evaluation, or in runs/evaluation.",
        ),
        *cli.flags_of(RunOptions, ("strategy", "data_dir", "worker_timeout")),
    ),
)

if __name__ == "__main__":
    cli.run(COMMAND)
