"""One run in a process of its own: reads its order from standard input, and ends when that does."""

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
from pathlib import Path

from keras_resnet.files import write_text
from keras_resnet.training import Preempted, Recipe, RunOptions, TrainingFailed, train


def main(path: Path) -> int:
    """Trains in the folder `path`; the exit status."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_the_parent, daemon=True).start()
    options = RunOptions(
        strategy="one_device",
        seed=order["seed"],
        data_dir=order["data_dir"],
        checkpoint_every=order["checkpoint_every"],
        keep=order["keep"],
    )
    with open(path / "lock", "w") as lock:
        # A worker whose parent was killed is about to leave a checkpoint here.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            train(Recipe.from_dict(order["recipe"]), path, options)
        except TrainingFailed as failure:
            write_text(path / "failure.txt", f"{failure}\n")
        except Preempted as stop:
            print(stop)
            return 143
    return 0


def _stop_with_the_parent() -> None:
    with contextlib.suppress(OSError):
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
