"""Weight files and checkpoints with damaged structures are refused in one line, or read."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_damaged_structures_do_no_harm(tmp_path):
    """5,000 files: none crashes, hangs, takes over 1 GB, runs code, or ends in another exception."""
    done = subprocess.run(
        [sys.executable, "-m", "helpers.damage_files", str(tmp_path), "5000"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "KERAS_BACKEND": "numpy"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["wrong"] == []
    assert sum(facts["results"].values()) == 5000
    readers = {kind.split()[0] for kind in facts["results"]}
    assert readers == {"m.weights.h5", "m.h5", "m.safetensors", "m.pth", "checkpoint"}
    # Every kind of damage gets through to a reader; without torch no .pth file is read.
    for reader in readers - {"m.pth"}:
        assert sum(n for kind, n in facts["results"].items() if kind.split()[::2] == [reader, "read"]) > 10, (
            reader
        )
