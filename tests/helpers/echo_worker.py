"""A worker for the tests of `keras_resnet.processes`."""

import os
import sys
import time

from keras_resnet import processes


def prepare(spec):
    if "fail" in spec:
        raise ValueError(spec["fail"])
    print("a library prints this")
    return {"spec": spec}, {"double": lambda number: 2 * number, "end": lambda status: os._exit(status)}


if __name__ == "__main__":
    if "folder" in processes.read_spec():
        processes.stop_with_parent()
        print("started", flush=True)
        time.sleep(60)
        sys.exit(1)
    processes.serve(prepare)
