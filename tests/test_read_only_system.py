"""The commands in a container whose file system is read-only, but for the run's folder."""

import os
import subprocess
import sys

import pytest
from helpers.processes import ROOT, TINY_FLAGS, environment

from keras_resnet.data import open_dataset

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several_processes")]

# $1 is a folder for the only writable file system, $2 Python, $3 the datasets' folder; the others are flags.
SCRIPT = """
set -e
mount -t tmpfs tmpfs "$1"
for folder in /tmp "$3"; do  # they may be file systems of their own
    mount --rbind "$folder" "$folder"
    mount -o remount,bind,ro "$folder"
done
mount -o remount,bind,ro /
mount -t tmpfs -o ro tmpfs /dev/shm
run=$1/run python=$2 data=$3
shift 3
! touch "$data/file" 2>&-
"$python" train_main.py --workdir=$run --data_dir=$data --epochs=1 --export=tflite "$@"
"$python" -m export --workdir=$run --data_dir=$data --precision=float32,int8 --calibration_images=32
"$python" -m keras_resnet evaluate --workdir=$run --data_dir=$data
find $run -name ".*"
cd $run; ls model.weights.h5 curves.png export/model_int8.onnx export/saved_model/1/saved_model.pb
ls export/predictions.png evaluation/*/*
"""


def test_train_export_and_evaluate_write_only_to_the_runs_folder(tmp_path):
    place, home, data = (tmp_path / name for name in ("place", "home", "data"))
    place.mkdir()
    home.mkdir()
    open_dataset("digits", str(data))  # prepares it
    arguments = ["sh", "-c", SCRIPT, "sh", str(place), sys.executable, str(data), *TINY_FLAGS]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *arguments],
        cwd=ROOT,
        env=environment(HOME=str(home), TMPDIR="", PYTHONPATH=os.fspath(ROOT)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "Traceback" not in output
    assert "/.temporary" not in output
