import dataclasses
import json

import pytest

from keras_resnet import InputError
from keras_resnet.classification import RECIPES, ClassificationRecipe, get_recipe
from keras_resnet.commands.recipes import print_recipes
from keras_resnet.data import AUGMENTATIONS
from keras_resnet.models.config import MODELS
from keras_resnet.weights import get_entry


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_frozen_known_and_survive_json(name):
    recipe = RECIPES[name]
    assert recipe.model in MODELS
    assert recipe.augmentation in AUGMENTATIONS
    assert ClassificationRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.batch_size = 1


def test_cifar10_paper_is_section_4_2():
    recipe = get_recipe("cifar10_paper")
    assert (recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.9, 1e-4, 128)
    assert (recipe.learning_rate, recipe.steps) == (0.1, 64_000)
    assert [fraction * recipe.steps for fraction in recipe.boundaries] == [32_000, 48_000]
    assert (recipe.train_split, recipe.val_split) == ("train[:45000]", "train[45000:]")
    assert (recipe.normalization, recipe.augmentation) == ("per_pixel", "pad_crop_flip")
    assert recipe.error_warmup_rate == 0
    deep = get_recipe("cifar10_paper", "cifar_resnet110")
    assert (deep.error_warmup_rate, deep.error_warmup_threshold) == (0.01, 0.8)


def test_imagenet_paper_is_section_3_4():
    recipe = get_recipe("imagenet_paper")
    assert (recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.9, 1e-4, 256)
    assert (recipe.learning_rate, recipe.steps, recipe.schedule) == (0.1, 600_000, "plateau")


def test_finetune_starts_from_published_weights_on_any_dataset():
    recipe = get_recipe("finetune")
    assert (recipe.weights, recipe.freeze, recipe.normalization) == ("imagenet", None, "weights")
    assert get_entry(recipe.weights, recipe.model).name == "keras_applications"
    assert recipe.val_split is None  # the dataset's own
    fresh = recipe.set(["weights=none", "normalization=imagenet"])
    assert (fresh.weights, fresh.normalization) == (None, "imagenet")


@pytest.mark.parametrize(
    ("assignments", "field", "value"),
    [
        (["weight_decay=5e-4"], "weight_decay", 5e-4),
        (["boundaries=(0.25, 0.5)"], "boundaries", (0.25, 0.5)),
        (["boundaries=0.5"], "boundaries", (0.5,)),
        (["nesterov=true"], "nesterov", True),
        (["val_split=train[:10%]"], "val_split", "train[:10%]"),
        (["steps=none"], "steps", None),
        (["augmentation=none"], "augmentation", "none"),
        (
            ["model.shortcut=B", "model.stage_depths=(1,1,1)"],
            "model_overrides",
            {"shortcut": "B", "stage_depths": (1, 1, 1)},
        ),
    ],
)
def test_set(assignments, field, value):
    assert getattr(get_recipe("digits").set(assignments), field) == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("wieght_decay=1", "unknown recipe key 'wieght_decay'; did you mean weight_decay"),
        ("weight_decay", "--set takes key=value"),
        ("weight_decay=much", "'weight_decay' takes float; got 'much'"),
        ("batch_size=1.5", "'batch_size' takes int"),
        ("batch_size=0", "batch_size must be at least 1; got 0"),
        ("batch_size=True", "'batch_size' takes int"),
        ("nesterov=1", "'nesterov' takes bool"),
        ("schedule=cosin", "unknown schedule 'cosin'; did you mean cosine"),
        ("learning_rate=nan", "'learning_rate' takes float"),
        ("epochs=1e999", "'epochs' takes float; got inf"),
        ("boundaries=(0.5, 0.25)", "rising fractions"),
        ("epochs=-1", "epochs must be positive"),
        ("mixup=-1", "mixup must not be negative"),
        ("freeze=3", "'freeze' takes str; got 3"),
        ("normalization=weights", "'weights' needs pretrained weights; set weights"),
    ],
)
def test_set_refuses(assignment, message):
    with pytest.raises(InputError) as caught:
        get_recipe("digits").set([assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "resnet18"}, "lacks 'dataset'"),
        ({"model": "resnet18", "dataset": "digits", "rate": 1}, "unknown recipe key 'rate'"),
        ({"model": "resnet18", "dataset": "digits", "epochs": "many"}, "'epochs' takes float"),
        ({"model": 18, "dataset": "digits"}, "'model' takes str"),
    ],
)
def test_from_dict_refuses(values, message):
    with pytest.raises(InputError, match=message):
        ClassificationRecipe.from_dict(values)


def test_unknown_recipe_names_the_near_ones():
    with pytest.raises(InputError, match=r"did you mean .*imagenet_paper"):
        get_recipe("imagenet_papr")


def test_the_list_of_recipes_names_all(capsys):
    print_recipes()
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)
