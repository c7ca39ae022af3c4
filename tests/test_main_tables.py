"""`python -m keras_resnet`, tables, and the message for a mistyped name."""

import json

import pytest
from helpers.commands import run
from helpers.zoo_networks import zeros_for_weights

from keras_resnet import InputError, build_model, list_models
from keras_resnet import __main__ as program
from keras_resnet.commands import models as zoo
from keras_resnet.errors import unknown_name
from keras_resnet.tables import markdown_table

ROWS = {
    "cifar_resnet20": "20 | basic | A | 3x3 | 32x32 | 269,722 | 40.6e6",
    "cifar_plain20": "20 | basic | none | 3x3 | 32x32 | 269,722 | 40.6e6",
    "resnet50_v1_5": "50 | bottleneck | B | 3x3 | 224x224 | 25,557,032 | 4.09e9",
}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows():
    with zeros_for_weights():
        rows = zoo.zoo_rows(list(ROWS))
    for (name, row), found in zip(ROWS.items(), rows, strict=True):
        assert list(found) == [name, *cells(row)]


def test_main_prints_every_network(monkeypatch, early_progress, capsys):
    """With small networks: the real ones take a minute to build."""
    small = {"stage_depths": (1, 1), "stage_filters": (64, 64)}
    monkeypatch.setattr(
        zoo, "build_model", lambda name: build_model(name, shortcut="B", stem="imagenet", **small)
    )
    assert run(program.COMMAND, "models") == 0
    printed = capsys.readouterr()
    assert "building: 1 of 34 networks, " in printed.err
    header, rule, *rows = printed.out.splitlines()
    assert cells(header) == list(zoo.HEADER)
    assert set(rule) <= set("|-:")
    assert [cells(row)[0] for row in rows] == list_models()
    assert len({len(line) for line in (header, rule, *rows)}) == 1


@pytest.mark.slow
def test_main_counts_the_real_networks(capsys):
    with zeros_for_weights():
        assert run(program.COMMAND) == 0
    table = {cells(row)[0]: cells(row) for row in capsys.readouterr().out.splitlines()[2:]}
    assert list(table) == list_models()
    for name, row in ROWS.items():
        assert table[name][1:] == cells(row)
    assert table["cifar_resnet1202"][6] == "19,421,274"


@pytest.mark.parametrize("arguments", [["--json"], ["models", "--json"]])
def test_json(arguments, capsys):
    assert run(program.COMMAND, *arguments) == 0
    table = json.loads(capsys.readouterr().out)
    assert list(table) == list_models()
    assert table["resnet34"]["stage_depths"] == [3, 4, 6, 3]
    assert table["resnet101_v1_5"]["bottleneck_stride"] == "3x3"


def test_markdown_table():
    table = markdown_table(("name", "n"), [("a", "1"), ("long one", "1,000")])
    assert table.splitlines() == [
        "| name     |     n |",
        "|----------|------:|",
        "| a        |     1 |",
        "| long one | 1,000 |",
    ]


def test_markdown_table_without_rows():
    assert markdown_table(("name", "top-1"), []).splitlines()[0] == "| name | top-1 |"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet51", "resnet50"),
        ("ResNet50", "resnet50"),
        ("cifar20", "cifar_plain20"),
        ("plain-34", "plain34"),
    ],
)
def test_near_names(name, hint):
    with pytest.raises(InputError) as error:
        build_model(name)
    assert str(error.value).startswith(f"unknown model {name!r}; did you mean ")
    assert hint in str(error.value)


def test_the_example_of_the_design():
    assert "did you mean resnet50, resnet101?" in str(
        unknown_name("model", "resnet51", ["resnet50", "resnet101"])
    )


def test_names_without_similar_names():
    few = str(unknown_name("recipe", "zzz", ["digits", "cifar10"]))
    assert few == "unknown recipe 'zzz'; choose one of cifar10, digits"
    many = str(unknown_name("model", "zzz", list_models()))
    assert many.startswith("unknown model 'zzz'; there are 34, among them ")


@pytest.mark.parametrize("name", [None, 50, ("resnet50",), ""])
def test_names_that_are_not_text(name):
    with pytest.raises(InputError, match="unknown model"):
        build_model(name)
