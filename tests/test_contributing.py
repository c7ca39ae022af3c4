"""The lines of CONTRIBUTING.md add a network and a format to a copy of the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pages import add, blocks, section

import keras_resnet

ROOT = Path(keras_resnet.__file__).parents[1]
NAMES = """
import json
import keras_resnet
from keras_resnet.export.formats import FILE_FORMATS

print(json.dumps([keras_resnet.__file__, list(FILE_FORMATS), dir(keras_resnet)]))
"""
# timm publishes resnet26 with 16.00 million parameters.
USE = """
import json
import keras_resnet
from keras_resnet.export import export_weights

model = keras_resnet.ResNet26V1_5(input_shape=(32, 32, 3))
passed = export_weights("cifar_resnet20", "none", formats="ort", output_dir="exported")
print(json.dumps([model.name, keras_resnet.complexity(model).parameters, passed]))
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A folder with the package and the additions."""
    folder = tmp_path_factory.mktemp("changed")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "keras_resnet", folder / "keras_resnet", ignore=ignored)
    for heading in ("Add a network", "Add a format"):
        for language, text in blocks(section(ROOT / "CONTRIBUTING.md", heading)):
            add(language, text, folder)
    return folder


def run(folder, *arguments):
    """What Python prints in its last line."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_additions_have_their_names(changed):
    file, formats, names = json.loads(run(changed, "-c", NAMES))
    assert Path(file).is_relative_to(changed)
    assert formats[-1] == "ort"
    assert "ResNet26V1_5" in names


@pytest.mark.slow
def test_the_network_is_built_and_the_format_is_verified(changed):
    name, parameters, passed = json.loads(run(changed, "-c", USE))
    assert name == "resnet26_v1_5"
    assert round(parameters / 1e6, 2) == 16.00
    assert passed
    parity = json.loads((changed / "exported" / "parity.json").read_text())
    assert parity["formats"]["ort"]["equal"]
    assert parity["formats"]["ort"]["latency"]
    assert (changed / "exported" / "model.ort").read_bytes()[4:8] == b"ORTM"
    assert 'InferenceSession("model.ort"' in (changed / "exported" / "MODEL_CARD.md").read_text()
