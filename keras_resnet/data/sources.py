"""Datasets by name: TFDS, the embedded digits, and folders of images, behind one interface."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_resnet.data import folder
from keras_resnet.data.digits import Digits
from keras_resnet.data.records import (
    ARRAY_RECORD_ERRORS,
    ArrayRecords,
    TFRecords,
    UnreadableRecord,
    open_tfrecords,
    reason_of,
)
from keras_resnet.errors import InputError, TryAgain, unknown_name
from keras_resnet.images.decode import decode_error

INDEXED_BYTES = 512 * 2**20
"""Largest TFDS dataset that is kept in memory."""

_Keys = TypeVar("_Keys")
_DOWNLOAD_RETRIES = 4
_FOLDER = "folder:"
_DETECTION_FOLDERS = ("coco", "voc")
_SLICE = re.compile(r"\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\]")


@dataclasses.dataclass(frozen=True, eq=False)
class IndexedSplit:
    """Examples that can be read in any order.

    Attributes:
        name: the split's spec, e.g. "train[:45000]".
        images: uint8 (examples, height, width, channels), or strings (examples,): encoded images
            or, if `files` is set, file names.
        classes: int32 (examples,), the labels.
        skipped_files: `(path, reason)` of entries in the folders that are not examples.
    """

    name: str
    images: np.ndarray
    classes: np.ndarray
    files: bool = False
    skipped_files: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def decoded(self) -> bool:
        """Whether the images are pixels of the same size, which `fetch` reads in batches, too."""
        return self.images.ndim == 4

    @functools.cached_property
    def tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """`(images, classes)` as constants in host memory, shared by all pipelines."""
        with tf.init_scope(), tf.device("CPU:0"):
            return tf.constant(self.images), tf.constant(self.classes)

    def fetch(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The image, encoded as string () or decoded as `images`, and the label, int32 (), of an example."""
        images, classes = self.tensors
        image = tf.gather(images, index)
        return tf.io.read_file(image) if self.files else image, tf.gather(classes, index)

    def decode_error(self, index: int) -> tuple[str, str | None]:
        """The name of an example, and why it cannot be decoded, or None if it can."""
        image = self.images[index]
        if self.files:
            return os.fsdecode(image), file_error(image)
        return f"record {index}", decode_error(image)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSplit:
    """Examples of TFRecord or ArrayRecord files, read in any order.

    `parse` converts a serialized record to the encoded image and its label.
    """

    name: str
    records: TFRecords | ArrayRecords
    parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

    decoded = False

    def __len__(self) -> int:
        return len(self.records)

    def fetch(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The encoded image, string (), and the label, int32 (), of an example."""
        image, label = self.parse(self.records.fetch(index))
        return image, tf.cast(label, tf.int32)

    def record(self, index: int) -> bytes:
        """A serialized record.

        Raises:
            InputError: the record is damaged, or its file is missing or too short.
            TryAgain: the file cannot be read for a reason that may pass.
        """
        try:
            return self.records[index]
        except UnreadableRecord as error:
            raise InputError(f"record {index} of {self.name!r} is {error}") from None

    def decode_error(self, index: int) -> tuple[str, str | None]:
        """The name of an example, and why it cannot be read and decoded, or None if it can.

        Raises:
            InputError: its file is missing or too short.
            TryAgain: its file cannot be read for a reason that may pass.
        """
        name = f"record {index}"
        try:
            encoded = cast(Any, self.parse(tf.constant(self.records[index]))[0]).numpy()
        except UnreadableRecord as error:
            return name, str(error)
        except tf.errors.InvalidArgumentError:
            return name, "without a valid label"
        return name, decode_error(encoded)


@contextlib.contextmanager
def pipeline_errors() -> Iterator[None]:
    """Turns TensorFlow's error about an `InputError` or `TryAgain` in a pipeline back into the latter."""
    try:
        yield
    except tf.errors.OpError as error:
        for kind in (InputError, TryAgain):
            if found := re.search(rf"\b{kind.__name__}: (.+)", error.message):
                raise kind(found[1]) from None
        raise


def file_error(path: str | bytes) -> str | None:
    """Why a file cannot be read or decoded, or None if it can."""
    try:
        if reason := folder.entry_error(os.stat(path)):
            return reason
        with open(path, "rb") as file:
            return decode_error(file.read())
    except OSError as error:
        return f"unreadable: {error.strerror}"


Split = IndexedSplit | RecordSplit


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """An image classification dataset, by the name passed to `open_dataset`.

    Attributes:
        class_names: in the order of the labels.
        sizes: number of examples by split name.
        load: opens a split from (spec, split name, start, stop); use `split` instead.
        files: TFDS' full name with its version, or a digest of the relative paths in a folder.
        held_out: whether `test` was selected from a folder without such a split.
    """

    name: str
    class_names: tuple[str, ...]
    sizes: dict[str, int]
    load: Callable[[str, str, int, int], Split] = dataclasses.field(repr=False)
    files: str = ""
    held_out: bool = False

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def identity(self, *specs: str) -> dict:
        """What a run with these splits is bound to, as JSON values; `data_changes` compares two of them."""
        is_sliced = any(stop - start < self.sizes[name] for name, start, stop in map(self._bounds, specs))
        has_rule = self.held_out or (is_sliced and self.name.startswith(_FOLDER))
        return {
            "class_names": list(self.class_names),
            "split_sizes": self.sizes,
            "files": self.files,
            "split_rule": folder.SPLIT_RULE if has_rule else "",
        }

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names of the whole splits."""
        return tuple(self.sizes)

    @functools.cached_property
    def test_split(self) -> str:
        """The split to evaluate on: the first of test, validation and val that has labels."""
        for name in folder.HELD_OUT_SPLITS:
            # ImageNet's test split, for one, has no labels.
            with contextlib.suppress(InputError):
                self.split(name)
                return name
        raise InputError(f"dataset {self.name!r} has no labeled {' or '.join(folder.HELD_OUT_SPLITS)} split")

    def split(self, spec: str) -> Split:
        """Opens a split or a slice of one: "train", "train[:45000]", "train[:10%]", "train[-500:]".

        Raises:
            InputError: the split is unknown or has no labels, or the slice is malformed or empty.
        """
        return self.load(spec, *self._bounds(spec))

    def _bounds(self, spec: str) -> tuple[str, int, int]:
        """The name of a split, and the start and the stop of the slice."""
        name = spec.partition("[")[0]
        if name not in self.sizes:
            raise unknown_name(f"split of {self.name}", name, self.sizes)
        return name, *slice_bounds(spec, self.name, self.sizes[name])


def slice_bounds(spec: str, dataset: str, size: int) -> tuple[int, int]:
    """Returns the first and the last index + 1 of a spec such as "train[:10%]" of a split of `size` examples.

    Raises:
        InputError: the slice is malformed or empty.
    """
    name, bracket, rest = spec.partition("[")
    match = _SLICE.fullmatch(bracket + rest or "[:]")
    if not match:
        raise InputError(f"cannot read the split {spec!r}; write it as {name}[:45000] or {name}[:10%]")
    start, stop = (
        default if bound is None else _boundary(bound, size)
        for bound, default in zip(match.groups(), (0, size), strict=True)
    )
    if start >= stop:
        raise InputError(f"the split {spec!r} of {dataset} is empty; {name} has {size} examples")
    return start, stop


def _boundary(bound: str, size: int) -> int:
    """Converts a slice boundary to an index in [0, size]; percentages are rounded as in TFDS."""
    number = round(int(bound[:-1]) * size / 100) if bound.endswith("%") else int(bound)
    return min(max(number + size if number < 0 else number, 0), size)


def open_dataset(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Opens a dataset, downloading and preparing it if necessary.

    Args:
        name: "digits", a TFDS name ("cifar10", "name/config"), or "folder:PATH".
        data_dir: folder of prepared TFDS datasets; None for the default of TFDS.

    Raises:
        InputError: the dataset does not exist, is not for image classification, or cannot be prepared.
    """
    if name.startswith(_FOLDER):
        return _open_folder(name)
    if names_detection_dataset(name):
        raise _of_detection(name)
    return _open_tfds(name, data_dir)


def names_detection_dataset(name: str) -> bool:
    """Whether a dataset is for object detection, judging by its name alone."""
    kind = re.split("[:/]", name)[0]
    return kind == "scenes" or (kind in _DETECTION_FOLDERS and kind != name)


def _of_detection(name: str) -> InputError:
    return InputError(
        f"dataset {name!r} is for object detection, not for image classification; train on it with"
        " --recipe=detect_scenes (or another recipe of a detector), and use"
        " `python -m keras_resnet detection evaluate`, `detection check` or `detection preview`"
    )


def is_prepared(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Whether a TFDS dataset can be read without being downloaded; arguments as in `open_dataset`."""
    path = None if data_dir is None else os.path.expanduser(os.fspath(data_dir))
    return tfds.builder(name, data_dir=path).is_prepared()


def _open_folder(name: str) -> Dataset:
    path = os.path.expanduser(name.removeprefix(_FOLDER))
    class_names, splits, held_out = folder.scan(path)

    def load(spec: str, split: str, start: int, stop: int) -> IndexedSplit:
        files = splits[split]
        skipped = () if start else files.skipped  # once, even if the split is sliced
        chosen = files.select(start, stop)
        return IndexedSplit(spec, files.paths[chosen], files.labels[chosen], True, skipped)

    sizes = {split: len(files.paths) for split, files in splits.items()}
    return Dataset(name, class_names, sizes, load, _digest_of_names(path, splits), held_out)


def _digest_of_names(root: str, splits: dict[str, folder.Files]) -> str:
    """A digest of the relative paths of all files, by split and in order."""
    digest, start = hashlib.sha256(), len(os.fsencode(root))
    for split, files in sorted(splits.items()):
        for path in files.paths:
            digest.update(b"%s/%s\0" % (split.encode(), path[start:].lstrip(b"/")))
    return f"paths-sha256:{digest.hexdigest()[:16]}"


def open_builder(
    name: str, data_dir: str | os.PathLike | None, find_keys: Callable[[str, tfds.core.DatasetInfo], _Keys]
) -> tuple[Any, _Keys]:
    """Opens a TFDS dataset, downloading and preparing it if necessary.

    Args:
        find_keys: returns the names of the features to use; raises `InputError` for a dataset of another
            kind, which is not downloaded then.

    Returns:
        The prepared `tfds.core.DatasetBuilder`, and what `find_keys` returned.
    """
    path = None if data_dir is None else os.path.expanduser(os.fspath(data_dir))
    base = re.split("[/:]", name)[0]
    # Community datasets are left out: merely listing them asks the network.
    known = {"digits", *tfds.list_builders(with_community_datasets=False)}
    if base not in known and not (path and base and os.path.isdir(os.path.join(path, base))):
        raise unknown_name("dataset", name, known)
    make = Digits if name == "digits" else functools.partial(tfds.builder, name)
    make = functools.partial(make, data_dir=path)
    try:
        builder = make()
    except Exception as error:
        raise InputError(f"cannot open dataset {name!r}: {reason_of(error)}") from None
    keys = find_keys(name, builder.info)
    return builder if builder.is_prepared() else _prepare(name, builder, make), keys


def _open_tfds(name: str, data_dir: str | os.PathLike | None) -> Dataset:
    builder, (image_key, label_key) = open_builder(name, data_dir, _feature_keys)
    return Dataset(
        name=name,
        class_names=tuple(builder.info.features[label_key].names),
        sizes={split: info.num_examples for split, info in builder.info.splits.items()},
        load=_Loader(name, builder, image_key, label_key),
        files=builder.info.full_name,
    )


def unreadable(name: str, error: Exception) -> InputError:
    """The error for a TFDS dataset whose files cannot be read."""
    return InputError(f"the files of dataset {name!r} cannot be read: {reason_of(error)}")


def _feature_keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """The names of the image and label features, or `InputError`."""
    keys = cast(tuple, info.supervised_keys or ())
    image, label = keys if len(keys) == 2 else ("image", "label")
    features = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    kinds = [features.get(key) if isinstance(key, str) else None for key in (image, label)]
    if not (
        isinstance(kinds[0], tfds.features.Image)
        and kinds[0].np_dtype == np.uint8
        and isinstance(kinds[1], tfds.features.ClassLabel)
    ):
        objects = getattr(features.get("objects"), "feature", None)
        if isinstance(objects, tfds.features.FeaturesDict) and {"bbox", "label"} <= set(objects.keys()):
            raise _of_detection(name)
        has = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise InputError(
            f"dataset {name!r} is not for image classification: it needs a uint8 image and a class label,"
            f" it has {has or 'neither'}"
        )
    return image, label


def _prepare(name: str, builder: tfds.core.DatasetBuilder, make: Callable) -> tfds.core.DatasetBuilder:
    """Downloads and prepares a dataset; returns a builder that reads it."""
    from tensorflow_datasets.core.download import downloader

    # TFDS retries for minutes without a network.
    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, _DOWNLOAD_RETRIES
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        return builder
    except Exception as error:
        # Another process may have prepared it meanwhile: TFDS renames a finished folder, which
        # fails for the second process.
        winner = make()
        if winner.is_prepared():
            return winner
        root = os.fspath(builder.data_dir_root)
        hint = f"run `tfds build {name} --data_dir={root}` where its files are available, and copy the result"
        if name == "digits":
            hint = "install scikit-learn and choose a data_dir that can be written to"
        raise InputError(
            f"dataset {name!r} is not prepared in {root} and cannot be prepared here"
            f" ({reason_of(error)}); {hint}"
        ) from None
    finally:
        downloader.MAX_RETRIES = retries


@dataclasses.dataclass(frozen=True, eq=False)
class _Loader:
    """Opens slices of a prepared TFDS dataset: `Dataset.load`."""

    name: str
    builder: Any  # a tfds.core.DatasetBuilder; its annotations are wider than what a prepared one has
    image_key: str
    label_key: str

    def __call__(self, spec: str, split: str, start: int, stop: int) -> Split:
        if self._is_large:
            opened = RecordSplit(spec, self._records(split, start, stop), self._parse)
            try:
                low = high = int(self._example(tf.constant(opened.records[0]))[1])
            except (UnreadableRecord, tf.errors.OpError) as error:
                raise unreadable(self.name, error) from None
        else:
            images, classes = self._arrays(split)
            opened = IndexedSplit(spec, images[start:stop], classes[start:stop])
            low, high = classes.min(), classes.max()
        if low < 0:
            raise InputError(f"the split {split!r} of {self.name} has no labels; use another split")
        if high >= self._classes:
            raise InputError(
                f"the split {split!r} of {self.name} has the label {high}; it has {self._classes} classes,"
                " numbered from 0"
            )
        return opened

    @property
    def _classes(self) -> int:
        return self.builder.info.features[self.label_key].num_classes

    @functools.lru_cache(maxsize=8)  # noqa: B019 (a loader lives as long as its dataset)
    def _arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images, decoded if they are of one size and fit `INDEXED_BYTES`, and labels of a whole split."""
        info = self.builder.info
        shape, count = info.features[self.image_key].shape, info.splits[split].num_examples
        # A fourth channel (alpha) or an unknown number of them is left to the decoder.
        decoded = None not in shape and shape[-1] in (1, 3) and count * np.prod(shape) <= INDEXED_BYTES
        if self._is_array_record:
            records = RecordSplit(split, self._records(split, 0, count), self._example)
            decode = info.features[self.image_key].decode_example if decoded else lambda image: image
            dataset = tf.data.Dataset.range(count).map(records.fetch)
            dataset = cast(Any, dataset).map(lambda image, label: (decode(image), label))
        else:
            dataset = self.builder.as_dataset(
                split=split,
                shuffle_files=False,
                decoders=None if decoded else {self.image_key: tfds.decode.SkipDecoding()},
                read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
            )
            dataset = dataset.map(lambda example: (example[self.image_key], example[self.label_key]))
        try:
            images, classes = dataset.batch(count).get_single_element()
        except tf.errors.OpError as error:
            raise unreadable(self.name, error) from None
        return images.numpy(), classes.numpy().astype("int32")

    @property
    def _is_large(self) -> bool:
        """Whether the dataset is not kept in memory."""
        return self.builder.info.dataset_size > INDEXED_BYTES

    @property
    def _is_array_record(self) -> bool:
        """Whether the dataset is stored as ArrayRecord files."""
        return self.builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD

    def _records(self, split: str, start: int, stop: int) -> TFRecords | ArrayRecords:
        info = self.builder.info
        if self._is_array_record:
            try:
                return ArrayRecords(info.splits[f"{split}[{start}:{stop}]"].file_instructions)
            except ARRAY_RECORD_ERRORS as error:
                raise unreadable(self.name, error) from None
        files, _, counts = zip(*tfrecords(self.name, info, split), strict=True)
        return open_tfrecords(f"{info.name}-{split}", files, counts, start, stop)

    def _parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = self._example(record)
        # The first record is checked when the split is opened; later ones are listed as bad images.
        valid = tf.debugging.Assert((label >= 0) & (label < self._classes), [label])
        with tf.control_dependencies([valid]):
            return image, tf.identity(label)

    def _example(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The encoded image and the label of a record."""
        decoders = {self.image_key: tfds.decode.SkipDecoding()}
        example = self.builder.info.features.deserialize_example(record, decoders=decoders)
        return example[self.image_key], example[self.label_key]


def tfrecords(name: str, info: Any, spec: str) -> tuple[tuple[str, int, int], ...]:
    """`(file, records to skip, records to take)` of each file of a TFDS split, which must be TFRecords."""
    if info.file_format != tfds.core.FileFormat.TFRECORD:
        raise InputError(f"dataset {name!r} is stored as {info.file_format.value}; prepare it as tfrecord")
    return tuple((str(file.filename), file.skip, file.take) for file in info.splits[spec].file_instructions)
