"""Runs `python -m keras_resnet.classification` again and again in one process, as its standard input says.

Its flags cannot be defined beside those of train_main.py, which other tests import.
"""

import contextlib
import io
import json
import os
import sys
from unittest import mock

from absl.testing import flagsaver

from keras_resnet import cli
from keras_resnet.classification import EvaluationFailed
from keras_resnet.classification import __main__ as program


def run(request):
    """The exit status, standard output, and the lines on standard error."""
    os.chdir(request["folder"])
    lost = mock.patch.object(program, "evaluate", side_effect=EvaluationFailed(request["lost"]))
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", ["evaluation", *request["flags"]]))
        stack.enter_context(flagsaver.flagsaver())
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(errors))
        if request["lost"]:
            stack.enter_context(lost)
        try:
            cli.run(program.main)
        except SystemExit as end:
            status = end.code or 0
    return status, output.getvalue(), errors.getvalue().splitlines()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
