"""Runs a SavedModel in a process of its own, as a deployment without our Python would.

A script, not a module of the package: it is started by its path, imports neither Keras nor anything
of this project, and sees to it that nothing else can. Arguments: the SavedModel's folder, and the name
of a signature. It says hello with one line of JSON, then answers each line of its input, a JSON list
[images.npy, outputs.npz], with one line when it has written the outputs.
"""

import importlib
import json
import os
import sys

BLOCKED = ("keras", "keras_resnet", "tf_keras", "export")


def _importable(names):
    found = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        found.append(name)
    return found


def _describe(specs):
    return {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in specs.items()}


def _first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


def main():
    """Loads, says hello, and serves until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not disturb the answers

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    sys.modules.update(dict.fromkeys(BLOCKED))  # None makes an import fail
    import numpy as np
    import tensorflow as tf

    path, signature = sys.argv[1:]
    sys.setrecursionlimit(20_000)
    try:
        loaded = tf.saved_model.load(path)
        function = loaded.signatures[signature]
    except Exception as error:
        answer(error=_first_line(error))
        return
    inputs = function.structured_input_signature[1]
    answer(
        inputs=_describe(inputs),
        outputs=_describe(function.structured_outputs),
        importable=_importable(BLOCKED),
        version=f"tensorflow {tf.__version__}",
    )
    name = next(iter(inputs))
    for line in sys.stdin:
        images, outputs = json.loads(line)
        try:
            results = function(**{name: tf.constant(np.load(images))})
            np.savez(outputs, **{key: value.numpy() for key, value in results.items()})
        except Exception as error:
            answer(error=_first_line(error))
        else:
            answer(done=outputs)


if __name__ == "__main__":
    main()
