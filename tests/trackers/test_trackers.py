"""MLflow and Weights & Biases log a real run, which is stopped and resumed."""

import json
import struct

import pytest
from helpers.runs import break_off, tiny_recipe

from keras_resnet.classification import train
from keras_resnet.training import RunOptions

pytestmark = pytest.mark.tools


@pytest.fixture(autouse=True)
def private(monkeypatch):
    """Neither package reports to its makers that it is used."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def recipe():
    return tiny_recipe()


def train_twice(recipe, folder, options):
    """Stops the run in its second epoch, and resumes it."""
    with break_off(7):
        train(recipe, folder, options)
    return train(recipe, folder, options)


def test_mlflow(recipe, tmp_path, monkeypatch, capsys):
    import mlflow

    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.set_tracking_uri(store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "residual")
    options = RunOptions(strategy="one_device", data_dir=str(tmp_path / "data"), track=("mlflow",), seed=5)
    last = train_twice(recipe, tmp_path / "run", options)
    assert "warning" not in capsys.readouterr().err
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("residual")
    (run,) = client.search_runs([experiment.experiment_id])  # one, although there were two processes
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert (run.data.params["model"], run.data.params["seed"]) == ("cifar_resnet20", "5")
    history = client.get_metric_history(run.info.run_id, "val_top1")
    assert [point.step for point in history] == [5, 10]
    assert history[-1].value == last["val_top1"]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"recipe.json", "history.csv", "curves.png", "model.weights.h5"} == files


def test_mlflow_whose_server_does_not_answer(recipe, tmp_path, monkeypatch, capsys):
    import mlflow

    for name, value in (("MAX_RETRIES", "1"), ("TIMEOUT", "1"), ("BACKOFF_FACTOR", "0")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    options = RunOptions(strategy="one_device", data_dir=str(tmp_path / "data"), track=("mlflow",))
    assert train(recipe, tmp_path / "run", options)["step"] == 10
    assert capsys.readouterr().err.count("warning: MLflow does not log this run any more") == 1


def wandb_records(path):
    """What is in a file of W&B: LevelDB's log format, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    fragment, block = struct.Struct("<IHB"), 2**15  # checksum, size and kind; fragments lie within blocks
    content, position, data = path.read_bytes(), 7, b""
    while position < len(content):
        left = block - position % block
        if left < fragment.size:
            position += left
            continue
        _, size, kind = fragment.unpack_from(content, position)
        position += fragment.size + size
        data += content[position - size : position]
        if kind in (1, 4):  # a whole record, or the end of one
            yield Record.FromString(data)
            data = b""


@pytest.fixture
def wandb_environment(monkeypatch):
    """For the variables that W&B reads once per process."""
    import wandb

    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


def test_wandb_offline(recipe, tmp_path, wandb_environment, capsys):
    import wandb

    wandb_environment.setenv("WANDB_MODE", "offline")
    options = RunOptions(strategy="one_device", data_dir=str(tmp_path / "data"), track=("wandb",), seed=5)
    last = train_twice(recipe, tmp_path / "run", options)
    assert "warning: WandB" not in capsys.readouterr().err
    wandb.teardown()  # waits for W&B's process, which writes the files
    found = {"history": [], "run": [], "exit": []}
    for path in sorted(tmp_path.glob("run/wandb/offline-run-*/*.wandb")):  # one per process
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            found.get(kind, []).append(getattr(record, kind))
    rows = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in history.item}
        for history in found["history"]
    ]
    # W&B's own number of the row, too: the two files are parts of one history.
    assert [(row["_step"], row["step"]) for row in rows] == [(5, 5), (10, 10)]
    assert rows[-1]["val_loss"] == last["val_loss"]
    names = {(run.run_id, run.display_name, run.project) for run in found["run"]}
    assert len(names) == 1  # the second process continues it
    assert next(iter(names))[1:] == ("run", "keras_resnet")
    config = {item.key: json.loads(item.value_json) for item in found["run"][0].config.update}
    assert (config["model"], config["seed"]) == ("cifar_resnet20", 5)
    assert [end.exit_code for end in found["exit"]] == [1, 0]


def test_wandb_without_a_key(recipe, tmp_path, wandb_environment, capsys):
    wandb_environment.delenv("WANDB_API_KEY", raising=False)
    for name, value in (("MODE", "online"), ("BASE_URL", "http://127.0.0.1:9")):
        wandb_environment.setenv(f"WANDB_{name}", value)
    wandb_environment.setenv("NETRC", str(tmp_path / "netrc"))  # where keys are kept
    options = RunOptions(strategy="one_device", data_dir=str(tmp_path / "data"), track=("wandb",))
    assert train(recipe, tmp_path / "run", options)["step"] == 10
    assert capsys.readouterr().err.count("warning: WandB does not log this run any more") == 1
