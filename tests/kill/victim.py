"""Runs a program of this project and announces when it reaches a planned point.

python victim.py --recipe=digits ...    train_main.py with these flags
python victim.py export --workdir=...   python -m export with these flags

The plan is the environment variable KILL_PLAN, see `attack.py`. The signal itself comes from outside: a
thread of this process could not send one while C code holds Python's lock.
"""

import atexit
import collections
import functools
import json
import os
import runpy
import sys
import time

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Points:
    """Counts how often this process reaches each point, and announces the planned one."""

    def __init__(self, plan):
        self._plan = plan
        self._counts = collections.Counter()
        self._first_write = self._last_write = 0.0
        if plan["counts"]:
            atexit.register(self._save)

    def reached(self, point):
        self._counts[point] += 1
        if (point, self._counts[point]) == (self._plan["point"], self._plan["count"]):
            channel = os.open(self._plan["channel"], os.O_WRONLY)
            os.write(channel, b"%d\n" % os.getpid())
            os.close(channel)

    def audit(self, event, arguments):
        """An audit hook: changes to files in the planned folder are the point "write"."""
        is_change = event in _CHANGES or (event == "open" and (arguments[2] or 0) & _WRITING)
        is_path = is_change and not isinstance(arguments[0], int)
        if is_path and os.fsdecode(arguments[0]).startswith(self._plan["folder"]):
            self._last_write = time.monotonic()
            self._first_write = self._first_write or self._last_write
            self.reached("write")

    def count_calls(self, kind, name):
        """Makes every call of a method the point of its name."""
        method = getattr(kind, name)

        @functools.wraps(method)
        def counted(instance, *arguments):
            self.reached(name)
            return method.__get__(instance, kind)(*arguments)

        setattr(kind, name, counted)

    def _save(self):
        counts = {**self._counts, "writing_seconds": self._last_write - self._first_write}
        with open(self._plan["counts"], "w") as file:
            json.dump(counts, file)


def main(arguments):
    plan = json.loads(os.environ["KILL_PLAN"])
    worker = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    trains = arguments[0].startswith("-")
    if worker == plan["worker"]:
        points = Points(plan)
        sys.addaudithook(points.audit)
        if trains:
            from keras_resnet.training.step import Trainer

            points.count_calls(Trainer, "train")
            points.count_calls(Trainer, "evaluate")
    if trains:
        sys.argv = ["train_main.py", *arguments]
        runpy.run_path("train_main.py", run_name="__main__")
    else:
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
