"""`python -m keras_resnet data`: previews augmentations, checks images, converts datasets."""

from keras_resnet import cli

COMMAND = cli.Group(
    "Previews augmented training images, finds images that cannot be used, and converts datasets.",
    {
        "preview": cli.Command(
            "keras_resnet.commands.data:preview",
            "Draws a contact sheet of a recipe's training images.",
            (
                cli.Flag("recipe", "`python -m keras_resnet recipes` lists the recipes.", required=True),
                cli.Flag("output", "The file to write; ends with .png.", required=True),
                cli.Flag("dataset", "digits, a TFDS name or folder:PATH. Default: the recipe's."),
                cli.Flag("data_dir", "Where TFDS keeps its datasets."),
                cli.Flag("augmentation", "Default: the recipe's."),
                cli.Flag("seed", "Seed of the augmentation.", int, 0),
                cli.Flag("epoch", "The first epoch that is drawn.", int, 0),
                cli.Flag("images", "Number of rows.", int, 8),
                cli.Flag("draws", "Number of columns in addition to the evaluation's view.", int, 7),
            ),
        ),
        "check": cli.Command(
            "keras_resnet.commands.data:check",
            "Finds the images of a dataset that cannot be used; the exit status is 1 if there are any.",
            arguments=(
                cli.Flag(
                    "path",
                    "A folder: PATH/[split/]class/image. Or scenes, coco:PATH or voc:PATH.",
                    required=True,
                ),
            ),
        ),
        "convert": cli.Command(
            "keras_resnet.commands.data:convert",
            "Converts a TFDS dataset to ArrayRecord files, which hold the positions of their records.",
            (
                cli.Flag("output_dir", "The folder to write to: --data_dir of the result.", required=True),
                cli.Flag("data_dir", "Where TFDS keeps its datasets."),
            ),
            (cli.Flag("name", "A TFDS name.", required=True),),
        ),
    },
)

if __name__ == "__main__":
    cli.run(COMMAND)
