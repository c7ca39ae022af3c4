"""The snippets and commands of the guide, the tutorial and other pages run, with the results on the page."""

import ast
import contextlib
import functools
import importlib
import inspect
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import keras
import pytest
from helpers.commands import run
from helpers.pages import blocks
from helpers.torch_files import state_dict, write_old_layout
from helpers.zoo_networks import relative_difference, zeros_for_weights
from safetensors.numpy import save_file

import keras_resnet
from keras_resnet import applications, cli
from keras_resnet.__main__ import COMMAND as PROGRAM
from keras_resnet.commands.recipes import CHANGES, TRAIN
from keras_resnet.commands.train import changed_recipe
from keras_resnet.export.__main__ import COMMAND as EXPORT
from keras_resnet.export.images import sample_photos
from keras_resnet.models.config import MODELS, get_config
from keras_resnet.weights import ModelSpec, save_weights
from keras_resnet.weights import weight_file as pretrained
from keras_resnet.weights.__main__ import COMMAND as WEIGHTS
from keras_resnet.weights.registry import ENTRIES
from keras_resnet.weights.torch_files import torch_names

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class Notebook:
    """Runs all blocks of a page in order.

    A comment after an expression is its repr, a comment after an assignment the value's shape, and a `text`
    block is the output of the Python block before it. A `py` block is code for another library.
    """

    def __init__(self, run_command, languages=("python",)):
        self.names, self.printed, self.run_command, self.languages = {}, "", run_command, languages
        self.checked = 0  # values stated on the page

    def run(self, page):
        for language, text in blocks((DOCS / page).read_text()):
            if language in self.languages:
                self._python(text)
            elif language == "py":
                ast.parse(text)
            elif language == "text":
                assert self.printed == text
                self.checked += 1
            else:
                assert language == "sh"
                for line in text.replace("\\\n", " ").splitlines():
                    self.run_command(shlex.split(line))

    def _python(self, text):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = {t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT}
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            for statement in ast.parse(text).body:
                comment = comments.get(statement.end_lineno)
                code = ast.unparse(statement)
                if isinstance(statement, ast.Expr) and comment:
                    assert repr(eval(code, self.names)) == comment, code
                    self.checked += 1
                    continue
                exec(code, self.names)
                if isinstance(statement, ast.Assign) and comment:
                    shape = tuple(eval(ast.unparse(statement.targets[0]), self.names).shape)
                    assert str(shape) == comment, code
                    self.checked += 1
        self.printed = output.getvalue()


def write_published(entry, path):
    """A file with random numbers in the names, the shapes and the layout of an entry's own."""
    if entry.name == "keras_applications":
        network = getattr(keras.applications, entry.model.replace("resnet", "ResNet").replace("_v2", "V2"))
        write_old_layout(network(weights=None), path)
    else:
        config = MODELS[entry.model]
        tensors = state_dict(config.block, config.stage_depths, config.stage_filters, config.classes)
        save_file(tensors, path)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Stands in for the network: gives a file for an address of the table of entries."""
    folder = tmp_path_factory.mktemp("published")

    def fetch(url, digest):
        (entry,) = (entry for entry in ENTRIES if (entry.url, entry.digest) == (url, digest))
        suffix = ".h5" if url.endswith(".h5") else ".safetensors"  # .pth files would need torch
        path = folder / f"{entry.model}-{entry.name}{suffix}"
        if not path.exists():
            write_published(entry, path)
        return path

    yield fetch
    shutil.rmtree(folder)  # hundreds of megabytes, which pytest would keep


@pytest.fixture
def here(tmp_path, published, monkeypatch):
    """The folder that the pages speak of, as the working directory."""
    from PIL import Image

    photos = sample_photos(427, 640).astype("uint8")
    Image.fromarray(photos[0]).save(tmp_path / "photo.jpg")
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(5):
            photo = Image.fromarray(photos[index]).resize((64, 48))
            photo.save(tmp_path / "photos" / name / f"{index}.jpg")
    config = MODELS["resnet18"]
    save_file(
        state_dict(config.block, config.stage_depths, config.stage_filters, 7, seed=1),
        tmp_path / "theirs.safetensors",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "fetch", published)

    def get_file(name, origin, cache_subdir, file_hash):
        """What keras.applications fetches with."""
        return published(origin, f"md5:{file_hash}")

    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", get_file)
    yield tmp_path
    keras.config.set_dtype_policy("float32")  # wherever the guide ended
    shutil.rmtree(tmp_path)


@pytest.fixture
def command(here):
    """Runs a command of a page; if not `whole`, only checks the flags of slow ones."""

    def run_line(words, whole):
        environment = dict(word.split("=") for word in words if re.match(r"[A-Z_]+=", word))
        program, *arguments = words[len(environment) + 1 :]
        assert words[len(environment)] == "python"
        if program == "-c":
            _subprocess([program, *arguments], **environment) if whole else exec(arguments[0], {})
            return
        package, verb, *flags = arguments
        assert (program, package) == ("-m", "keras_resnet")
        if verb == "train":
            _train(flags)
        elif verb == "weights":
            assert run(WEIGHTS, *flags) == 0
        else:
            assert verb == "export"
            cli.parse(EXPORT, flags)
            if whole:
                _subprocess([program, *arguments, "--formats=onnx"])  # the quickest to write

    return run_line


def _subprocess(arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


def _train(arguments):
    """Trains for an epoch if the data exist, otherwise makes the recipe."""
    if "--dataset=folder:photos" in arguments:
        assert run(TRAIN, *arguments, "--set=image_size=32", "--batch_size=4", "--epochs=1") == 0
    else:
        given = cli.parse(TRAIN, arguments)
        changed_recipe(given["recipe"], given["set"], **{name: given[name] for name in CHANGES})


@pytest.mark.slow
def test_guide(command):
    notebook = Notebook(functools.partial(command, whole=False))
    notebook.run("guide.md")
    assert notebook.checked > 50


@pytest.mark.slow
def test_commands_of_the_guide_in_processes(command):
    """Exports the run that the page trains and the file that it saves, and starts JAX."""
    spec = ModelSpec.default("resnet18", 10, {"stage_depths": (1, 1), "stage_filters": (64, 64)}, (64, 64, 3))
    save_weights(spec.build(), "mine.weights.h5", spec)
    ran = []
    for language, text in blocks((DOCS / "guide.md").read_text()):
        for line in text.replace("\\\n", " ").splitlines() if language == "sh" else ():
            words = shlex.split(line)
            if {"export", "-c", "--dataset=folder:photos"} & set(words):
                command(words, whole=True)
                ran.append(line)
    assert len(ran) == 4


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """A function that parses a command of a page, in an empty folder; its attribute `commands` lists them."""
    monkeypatch.chdir(tmp_path)

    def parse(words):
        assert words[:3] == ["python", "-m", "keras_resnet"]
        command, flags = PROGRAM, words[3:]
        while isinstance(command, cli.Group):
            command = cli.load(command.commands[flags.pop(0)])
        parse.commands.append(cli.parse(command, flags))

    parse.commands = []
    return parse


@pytest.mark.slow
def test_detection_page(parsed):
    notebook = Notebook(parsed)
    notebook.run("detection.md")
    assert notebook.checked == 17
    assert len(parsed.commands) == 16


def test_tutorial(parsed):
    notebook = Notebook(parsed)
    notebook.run("understanding_resnet.md")
    assert notebook.checked == 12
    assert len(parsed.commands) == 4


@pytest.mark.slow
def test_first_page_of_the_site(here):
    installed = []
    Notebook(installed.append).run("index.md")
    assert installed == [["pip", "install", ".[train,export]"]]


@pytest.mark.slow
def test_migration(command):
    notebook = Notebook(functools.partial(command, whole=False))
    notebook.run("migration.md")
    assert notebook.checked >= 11


@pytest.mark.torch
def test_migration_with_the_other_zoos(command, published, monkeypatch):
    """What the page says of their code, run by torchvision and timm themselves on the same files."""
    torch_zoo = importlib.import_module("helpers.torch_zoo")
    torch_zoo.torchvision(), torch_zoo.timm()
    import timm.models._builder as timm_builder
    import torchvision.models._api as torchvision_api
    from safetensors.torch import load_file

    addresses = {entry.url: entry.digest for entry in ENTRIES}

    def load(url, **kwargs):
        return load_file(published(url, addresses[url]))

    monkeypatch.setattr(torchvision_api, "load_state_dict_from_url", load)
    monkeypatch.setattr(timm_builder, "load_state_dict_from_url", load)
    monkeypatch.setattr(timm_builder, "has_hf_hub", lambda *args, **kwargs: False)
    notebook = Notebook(functools.partial(command, whole=False), languages=("python", "py"))
    notebook.run("migration.md")
    before, after = notebook.names["before"].numpy(), notebook.names["after"]
    assert relative_difference(after, before) < 1e-4


# The tables of migration.md


def rows(kind, page="migration.md"):
    """The cells of the table behind a comment `<!-- kind -->`."""
    text = (DOCS / page).read_text()
    (table,) = re.findall(rf"<!-- {re.escape(kind)} -->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return found[2:]


def names_in(kind):
    """A table of networks as (there, function, name), without the backticks."""
    return [tuple(cell.strip("`") for cell in row) for row in rows(kind)]


@pytest.fixture
def configs(monkeypatch):
    """Lets the functions that build networks give their configs instead."""
    monkeypatch.setattr(applications, "build_resnet", lambda config, **_: config)


@pytest.mark.parametrize("zoo", ["keras.applications", "torchvision", "timm"])
def test_the_networks_are_those_that_the_weights_are_of(zoo, configs):
    table = names_in(f"table: {zoo}")
    for _, function, name in table:
        assert getattr(keras_resnet, function)() == MODELS[name]
    prefix = {"keras.applications": "keras_applications", "torchvision": "torchvision_", "timm": "timm_"}[zoo]
    assert {name for *_, name in table} >= {e.model for e in ENTRIES if e.name.startswith(prefix)}
    assert len({there for there, *_ in table}) == len(table)


def test_the_networks_of_keras_applications_are_there():
    theirs = {name for name in dir(keras.applications) if name.startswith("ResNet")}
    assert {there for there, *_ in names_in("table: keras.applications")} == theirs


@pytest.mark.parametrize("zoo", ["torchvision", "timm"])
def test_the_networks_of_the_torch_zoos_differ_in_their_strides_name_alone(zoo):
    for there, _, name in names_in(f"table: {zoo}"):
        assert there == name.removesuffix("_v1_5")
        torch_names(get_config(name))  # refuses networks that neither zoo has


@pytest.mark.torch
def test_the_networks_of_the_torch_zoos_are_there():
    torch_zoo = importlib.import_module("helpers.torch_zoo")
    models = torch_zoo.torchvision().models
    theirs = {name for name in models.list_models(models) if "resne" in name}
    assert {there for there, *_ in names_in("table: torchvision")} == theirs
    assert {there for there, *_ in names_in("table: timm")} <= set(torch_zoo.timm().list_models())
    # The rule for the names of the weights.
    for entry in ENTRIES:
        if entry.name.startswith("timm_"):
            tag = f"{entry.model.removesuffix('_v1_5')}.{entry.name.removeprefix('timm_')}_in1k"
            assert tag in torch_zoo.timm().list_pretrained()


@pytest.mark.parametrize("zoo", ["keras.applications", "torchvision", "timm"])
def test_the_arguments_are_those_of_build_model(zoo):
    known = {*inspect.signature(keras_resnet.build_model).parameters, *vars(get_config("resnet18"))}
    table = rows(f"arguments: {zoo}")
    for there, here in table:
        keywords = re.findall(r"(\w+)=", there if here.startswith("the same") else here)
        assert keywords
        assert set(keywords) <= known
    if zoo == "keras.applications":
        theirs = inspect.signature(keras.applications.ResNet50).parameters
        keywords = [word for there, _ in table for word in re.findall(r"(\w+)=", there)]
        assert {*keywords, "name"} == set(theirs)


def test_every_name_of_weights_is_one():
    names = re.findall(r'weights="(\w+)"', "".join(here for zoo in ZOOS for _, here in rows(zoo)))
    assert set(names) == {"imagenet", "torchvision_v1", "torchvision_v2"}
    assert set(names) <= {"imagenet", *(entry.name for entry in ENTRIES)}


ZOOS = ["arguments: keras.applications", "arguments: torchvision", "arguments: timm"]


@pytest.mark.parametrize("name", ["resnet50_v1_5", "resnet50d"])
def test_the_variables_have_these_names(name):
    with zeros_for_weights():
        model = keras_resnet.build_model(name)
    ours = {(layer.name, variable.name) for layer in model.layers for variable in layer.weights}
    table = torch_names(get_config(name))
    for there, here in names_in(f"variables: {name}"):
        key = tuple(here.split("/"))
        assert key in ours
        assert table[key].names == (there,)


def test_the_rule_for_the_layers_names():
    for (layer, _), source in torch_names(get_config("resnet50_v1_5")).items():
        found = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.\w+", source.names[0])
        if found:
            number = 0 if found[3] == "downsample." else found[4]
            assert layer.startswith(f"conv{int(found[1]) + 1}_block{int(found[2]) + 1}_{number}_")


def test_what_differs_from_keras_applications():
    with zeros_for_weights():
        theirs, ours = keras.applications.ResNet50(weights=None), keras_resnet.ResNet50()
    layers = ("conv1_bn", "conv2_block1_1_conv")
    (their_bn, their_conv), (our_bn, our_conv) = ([m.get_layer(n) for n in layers] for m in (theirs, ours))
    assert (their_bn.momentum, their_bn.epsilon, their_conv.use_bias) == (0.99, 1.001e-5, True)
    assert (our_bn.momentum, our_bn.epsilon, our_conv.use_bias) == (0.9, 1e-5, False)
    names = [{layer.name for layer in model.layers[1:]} for model in (theirs, ours)]
    assert names[0] == names[1]
    assert ours.layers[0].name == "images"
    with pytest.raises(ValueError, match="classes"):
        keras.applications.ResNet50(weights="imagenet", classes=10)


# The rest of the guide


def test_the_papers_networks(configs):
    """The guide's table has each of them once, and ResNet-34 A in two tables of the paper."""
    section = (DOCS / "guide.md").read_text().split("### The paper's networks")[1].split("###")[0]
    table = "".join(line for line in section.splitlines() if line.startswith("|"))
    calls = re.findall(r"`(\w+\([^`]*\))`", table)
    networks = {call: eval(f"keras_resnet.{call}") for call in calls}
    assert len(calls) == len(networks) + 1
    for call, config in networks.items():
        assert config.weighted_layers == int(re.search(r"Net(\d+)", call)[1])
        given = re.search(r'shortcut="(.)"', call)
        usual = None if "Plain" in call else "A" if "Cifar" in call else "B"
        assert config.shortcut == (given[1] if given else usual)
    of_the_paper = [name for name in MODELS if re.fullmatch(r"(cifar_)?(resnet|plain)\d+", name)]
    without_options = {config.replace(shortcut=None) for config in networks.values()}
    assert without_options == {MODELS[name].replace(shortcut=None) for name in of_the_paper}


@pytest.mark.parametrize("page", ["guide.md", "migration.md", "detection.md"])
def test_the_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", (DOCS / page).read_text()):
        file, _, anchor = target.partition("#")
        text = "" if file.endswith(".png") else (DOCS / (file or page)).read_text()
        assert (DOCS / (file or page)).exists()
        headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors
