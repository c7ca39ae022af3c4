"""Converts a TFDS dataset from TFRecord to ArrayRecord files, whose records can be read in any order."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

from keras_resnet.data.examples import prefetched
from keras_resnet.data.records import INDEX_SUFFIX, array_record
from keras_resnet.data.sources import open_builder, tfrecords, unreadable
from keras_resnet.errors import InputError, one_line
from keras_resnet.files import replacing
from keras_resnet.progress import ProgressBar

_INFO = "dataset_info.json"
_WRITER_OPTIONS = "group_size:1"  # each record is compressed by itself


def convert(name: str, output_dir: str | os.PathLike, data_dir: str | os.PathLike | None = None) -> Path:
    """Writes the ArrayRecord version of a prepared TFDS dataset, with the same records in the same order.

    Args:
        name: a TFDS name.
        output_dir: the folder of prepared datasets to write to, which is then passed as `data_dir`.
        data_dir: folder of prepared TFDS datasets; None for the default of TFDS.

    Returns:
        The folder of the new dataset.

    Raises:
        InputError: the dataset does not exist, is not stored as TFRecord files or cannot be read; or the
            folder to write exists or cannot be written.
    """
    builder, _ = open_builder(name, data_dir, lambda name, info: None)
    source = Path(builder.data_dir)
    target = Path(output_dir).expanduser() / source.relative_to(builder.data_dir_root)
    if target.exists():
        raise InputError(f"{target} exists; delete it, or choose another --output_dir")
    files = [
        (Path(file), count)
        for split in builder.info.splits
        for file, _, count in tfrecords(name, builder.info, split)
    ]
    records = {file for file, _ in files}
    with replacing(target, lambda path: False) as folder:
        folder.mkdir(parents=True)
        for path in source.iterdir():
            if path.is_file() and path not in records and not path.name.endswith(INDEX_SUFFIX):
                shutil.copy(path, folder)
        values = json.loads((source / _INFO).read_text(encoding="utf-8"))
        values["fileFormat"] = tfds.core.FileFormat.ARRAY_RECORD.value
        (folder / _INFO).write_text(json.dumps(values, indent=2), encoding="utf-8")
        with ProgressBar(sum(count for _, count in files), "records", "converting") as bar:
            for file, count in files:
                converted = folder / file.name.replace(".tfrecord-", ".array_record-")
                _convert_file(name, file, converted, count, bar)
    return target


def _convert_file(name: str, file: Path, target: Path, count: int, bar: ProgressBar) -> None:
    written = 0
    try:
        writer = array_record("array_record_module").ArrayRecordWriter(str(target), _WRITER_OPTIONS)
        with contextlib.closing(writer):
            for record in prefetched(tf.data.TFRecordDataset(str(file))).as_numpy_iterator():
                writer.write(record)
                written += 1
                bar.update()
    except tf.errors.OpError as error:
        raise unreadable(name, error) from None
    except (RuntimeError, IndexError) as error:
        raise InputError(f"{target.name} cannot be written: {one_line(error)}") from None
    if written != count:
        raise InputError(f"{file} holds {written} records, not {count}: it is damaged")
