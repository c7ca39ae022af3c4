"""The results of runs, for comparisons."""

from keras_resnet.run_folder import RunFolder


def history(path):
    """The rows of history.csv without speeds."""
    rows = RunFolder(path).read_history()
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]
