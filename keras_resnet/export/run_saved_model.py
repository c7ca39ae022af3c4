"""Runs a SavedModel in a process of its own, as a deployment without our Python would.

A script, not a module of the package: it is started by its path, imports neither Keras nor anything
of this project, and sees to it that nothing else can. Argument: the SavedModel's folder. It says hello
with one line of JSON, then answers each line of its input, a JSON object of a signature's name and the
paths of its inputs and outputs (.npz), with one line when it has written the outputs.
"""

import json
import os
import sys

BLOCKED = ("keras", "keras_resnet", "tf_keras", "export")


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

    (path,) = sys.argv[1:]
    sys.setrecursionlimit(20_000)
    try:
        signatures = tf.saved_model.load(path).signatures
    except Exception as error:
        answer(error=_first_line(error))
        return
    answer(
        signatures={
            name: {
                "inputs": _describe(function.structured_input_signature[1]),
                "outputs": _describe(function.structured_outputs),
            }
            for name, function in signatures.items()
        },
        version=f"tensorflow {tf.__version__}",
    )
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with np.load(request["inputs"]) as inputs:
                tensors = {name: tf.constant(value) for name, value in inputs.items()}
            results = signatures[request["signature"]](**tensors)
            arrays = {name: value.numpy() for name, value in results.items()}
            # NumPy writes Python's byte strings only as pickles.
            texts = {name: a for name, a in arrays.items() if a.dtype == object}
            for name, a in texts.items():
                arrays[name] = np.array([text.decode() for text in a.flat], str).reshape(a.shape)
            np.savez(request["outputs"], **arrays)
        except Exception as error:
            answer(error=_first_line(error))
        else:
            answer(done=request["outputs"])


if __name__ == "__main__":
    main()
