"""Trackers: what they are told, and that their errors do not end a run."""

import pytest

from keras_resnet import InputError, cli
from keras_resnet.classification import train
from keras_resnet.commands.recipes import TRAIN
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import RunOptions, Tracker, trackers


class Recorder(Tracker):
    """Records its calls."""

    def __init__(self):
        self.calls = []

    def begin(self, folder, config, rows):
        self.calls.append(("begin", folder.path, config["seed"], [row["step"] for row in rows]))

    def epoch(self, row):
        self.calls.append(("epoch", row["step"], sorted(row)))

    def end(self, status):
        self.calls.append(("end", status))


COLUMNS = ["epoch", "images_per_second", "learning_rate", "step"]
COLUMNS += ["train_loss", "train_top1", "val_loss", "val_top1"]


def test_the_calls_of_a_run_that_is_stopped_and_resumed(tiny, tmp_path, run_options, break_off):
    first, second, third = Recorder(), Recorder(), Recorder()
    options = run_options(seed=3, track=())
    with break_off(7):
        train(tiny, tmp_path, options, trackers=[first])
    assert first.calls == [("begin", tmp_path, 3, []), ("epoch", 5, COLUMNS), ("end", "stopped")]
    train(tiny, tmp_path, options, trackers=[second])
    assert second.calls == [("begin", tmp_path, 3, [5]), ("epoch", 10, COLUMNS), ("end", "finished")]
    train(tiny, tmp_path, options, trackers=[third])
    assert third.calls == []
    assert not RunFolder(tmp_path).tensorboard.exists()


@pytest.mark.parametrize("method", ["begin", "epoch", "end"])
def test_a_tracker_that_fails_is_left_out(tiny, tmp_path, run_options, method, capsys):
    class Failing(Recorder):
        def fail(self, *arguments):
            self.calls.append(method)
            raise ConnectionError("no route\nto the server")

    setattr(Failing, method, Failing.fail)
    failing, other = Failing(), Recorder()
    last = train(tiny.replace(epochs=3), tmp_path, run_options(), trackers=[failing, other])
    assert last["step"] == 15
    assert failing.calls[-1] == method
    assert failing.calls.count(method) == 1
    assert [call[0] for call in other.calls] == ["begin", "epoch", "epoch", "epoch", "end"]
    printed = capsys.readouterr().err
    assert printed.count("warning: Failing does not log this run any more: no route") == 1


def test_an_error_of_the_run_is_told(tiny, tmp_path, run_options):
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="mine"):
        train(
            tiny,
            tmp_path,
            run_options(),
            lambda *call: (_ for _ in ()).throw(RuntimeError("mine")),
            [recorder],
        )
    assert recorder.calls[-1] == ("end", "failed")


def test_trackers_that_do_not_exist_or_are_not_installed(tiny, tmp_path, run_options, monkeypatch):
    with pytest.raises(InputError, match="unknown tracker 'mlfow'; did you mean mlflow"):
        RunOptions(track=("mlfow",))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--track=wandb needs the package wandb: pip install wandb"):
        train(tiny, tmp_path / "run", run_options(track=("tensorboard", "wandb")))
    assert not (tmp_path / "run").exists()


def test_the_flag_of_the_command():
    flags = ["--recipe=digits", "--workdir=runs"]
    assert cli.parse(TRAIN, flags)["track"] == ["tensorboard"]
    assert cli.parse(TRAIN, [*flags, "--track=mlflow,wandb"])["track"] == ["mlflow", "wandb"]
