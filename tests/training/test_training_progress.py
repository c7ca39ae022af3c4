"""What a run draws at its end."""

import types

from keras_resnet.run_folder import RunFolder
from keras_resnet.training.progress import draw_curves
from keras_resnet.training.task import Curve


def test_the_name_of_a_dataset_is_no_formula_and_of_any_script(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_history(("epoch", "train_loss"), [{"epoch": 1, "train_loss": 2.0}])
    recipe = types.SimpleNamespace(model="resnet18", dataset="folder:/data/猫/$_$/$x^$")
    draw_curves(folder, types.SimpleNamespace(recipe=recipe, curves=(Curve(("loss",), "loss"),)))
    assert folder.curves.read_bytes().startswith(b"\x89PNG")
