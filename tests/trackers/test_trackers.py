"""MLflow and Weights & Biases log a real run, which is stopped and resumed."""

import pytest
from helpers.runs import break_off
from helpers.zoo_networks import TINY

from keras_resnet.classification import get_recipe, train
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import RunOptions

pytestmark = pytest.mark.trackers


@pytest.fixture
def recipe():
    """Two epochs of five steps."""
    return get_recipe("digits").replace(
        model_overrides=TINY,
        image_size=16,
        augmentation="none",
        batch_size=64,
        train_split="train[:320]",
        epochs=2,
    )


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


def test_wandb_offline(recipe, tmp_path, monkeypatch, capsys):
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    monkeypatch.setenv("WANDB_MODE", "offline")
    options = RunOptions(strategy="one_device", data_dir=str(tmp_path / "data"), track=("wandb",))
    last = train_twice(recipe, tmp_path / "run", options)
    assert "warning" not in capsys.readouterr().err
    rows = []
    for path in sorted(RunFolder(tmp_path / "run").path.glob("wandb/offline-run-*/*.wandb")):
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                rows.append({item.key or item.nested_key[0]: item.value_json for item in record.history.item})
    assert [float(row["step"]) for row in rows] == [5, 10]
    assert float(rows[-1]["val_loss"]) == last["val_loss"]
