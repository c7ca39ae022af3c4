"""`python -m keras_resnet recipes`: the recipes as a table. TRAIN is `python -m keras_resnet train`."""

from keras_resnet import cli
from keras_resnet.classification.recipe import RECIPES as CLASSIFICATION
from keras_resnet.classification.recipe import ClassificationRecipe
from keras_resnet.detection.recipe import RECIPES as DETECTION
from keras_resnet.detection.recipe import DetectionRecipe
from keras_resnet.tables import markdown_table
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipe import Recipe

RECIPES: dict[str, ClassificationRecipe | DetectionRecipe] = {**CLASSIFICATION, **DETECTION}
"""The recipes of all tasks, by name."""

CHANGES = ("model", "dataset", "epochs", "batch_size", "learning_rate", "weights", "freeze")
"""Fields of the recipe that have a flag; `--set` changes the others."""

TRAIN = cli.Command(
    "keras_resnet.commands.train:main",
    "Trains a network: a recipe defines what is learned, the other flags how it is run.\n\n"
    "The same command resumes a run that was stopped.",
    (
        cli.Flag(
            "recipe", "What is learned; `python -m keras_resnet recipes` lists the recipes.", default="digits"
        ),
        *cli.flags_of(Recipe, CHANGES, optional=True),
        cli.Flag(
            "set", "key=value: another field of the recipe, or model.KEY=value for the network's.", list, []
        ),
        cli.Flag("workdir", "The run's folder, also s3://... or gs://... Default: runs/RECIPE-MODEL."),
        *cli.flags_of(RunOptions),
        cli.Flag(
            "export", "Formats to export to and verify afterwards: saved_model, tflite, onnx.", tuple, []
        ),
    ),
)


def print_recipes() -> None:
    """Prints the recipes as a table."""
    header = ("recipe", "model", "dataset", "batch", "length", "rate", "decay", "augmentation", "also")
    print(markdown_table(header, [_row(name, recipe) for name, recipe in RECIPES.items()]))


def _augmentation(recipe: ClassificationRecipe | DetectionRecipe) -> str:
    if isinstance(recipe, ClassificationRecipe):
        return recipe.augmentation
    low, high = recipe.scale_jitter
    parts = ["flip"] * recipe.flip + [f"scale {low:g} to {high:g}"] * (low < high)
    return ", ".join(parts) or "none"


def _row(name: str, recipe: ClassificationRecipe | DetectionRecipe) -> tuple[str, ...]:
    length = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.epochs:g} epochs"
    extras = {
        "weights": recipe.weights or getattr(recipe, "backbone_weights", None) or "",
        "warm-up": f"{recipe.warmup_epochs:g} epochs" if recipe.warmup_epochs else "",
        "label smoothing": getattr(recipe, "label_smoothing", 0) or "",
        "EMA": recipe.ema_decay or "",
        "Nesterov": "yes" if recipe.nesterov else "",
    }
    return (
        name,
        recipe.model,
        recipe.dataset,
        f"{recipe.batch_size}",
        length,
        f"{recipe.learning_rate:g} {recipe.schedule}",
        f"{recipe.weight_decay:g}",
        _augmentation(recipe),
        ", ".join(f"{key} {value}" for key, value in extras.items() if value),
    )


COMMAND = cli.Command(print_recipes, "Prints the recipes of `--recipe` as a table.")

if __name__ == "__main__":
    cli.run(COMMAND)
