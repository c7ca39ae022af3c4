"""Writes small datasets for the tests."""

import tensorflow as tf
import tensorflow_datasets as tfds


def write_tfds(data_dir, name, splits, shards=1):
    """Writes a real, tiny TFDS dataset under the name and features of a known one.

    `splits` maps a split's name to its list of examples.
    """

    def _split_generators(self, dl_manager):
        return {name: list(enumerate(examples)) for name, examples in splits.items()}

    name, _, config = name.partition("/")
    builder_class = tfds.builder_cls(name)
    with tfds.core.registered.skip_registration():
        fake = type(
            builder_class.__name__,
            (builder_class,),
            # TFDS finds some names and label files by the module that a class is in.
            {
                "__module__": builder_class.__module__,
                "_split_generators": _split_generators,
                "MANUAL_DOWNLOAD_INSTRUCTIONS": None,
            },
        )
    fake(data_dir=str(data_dir), config=config or None).download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=shards)
    )
    return str(data_dir)


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = tf.io.encode_png if path.suffix == ".png" else tf.io.encode_jpeg
    path.write_bytes(encode(image).numpy())
