"""`python -m keras_resnet.training`: the recipes as a table."""

from keras_resnet.classification.recipe import RECIPES, ClassificationRecipe
from keras_resnet.tables import markdown_table


def _row(name: str, recipe: ClassificationRecipe) -> tuple[str, ...]:
    length = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.epochs:g} epochs"
    extras = {
        "weights": recipe.weights or "",
        "warm-up": f"{recipe.warmup_epochs:g} epochs" if recipe.warmup_epochs else "",
        "label smoothing": recipe.label_smoothing or "",
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
        recipe.augmentation,
        ", ".join(f"{key} {value}" for key, value in extras.items() if value),
    )


def main() -> None:
    """Prints the recipes."""
    header = ("recipe", "model", "dataset", "batch", "length", "rate", "decay", "augmentation", "besides")
    print(markdown_table(header, [_row(name, recipe) for name, recipe in RECIPES.items()]))


if __name__ == "__main__":
    main()
