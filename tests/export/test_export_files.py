"""Artifacts are written atomically, and no other program's files are replaced."""

import hashlib

import keras
import pytest

from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import ARTIFACTS, FORMATS, Options, check_formats
from keras_resnet.export.pipeline import write_artifact
from keras_resnet.files import replacing, sha256, size, write_json


@pytest.fixture(scope="module")
def tiny():
    """A model with the serving model's signature and hardly any weights."""
    images = keras.Input((4, 4, 3), name="images")
    logits = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(images))
    return keras.Model(images, {"logits": logits, "probabilities": keras.layers.Softmax()(logits)})


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_our_artifact_is_replaced(tiny, name, tmp_path):
    path = tmp_path / ARTIFACTS[name].file_name
    assert write_artifact(name, tiny, path, Options()) == path
    first = tree(tmp_path)
    tiny.layers[-2].bias.assign_add([1.0, 1.0])
    write_artifact(name, tiny, path, Options())
    second = tree(tmp_path)
    assert sorted(first) == sorted(second)
    assert first != second
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_new_saved_model_lies_beside_the_old(tiny, tmp_path):
    path = tmp_path / "saved_model"
    assert write_artifact("saved_model", tiny, path, Options()) == path / "1"
    first = tree(path / "1")
    (path / "7").mkdir()  # another version, which another program wrote
    assert write_artifact("saved_model", tiny, path, Options()) == path / "8"
    assert sorted(entry.name for entry in path.iterdir()) == ["1", "7", "8"]
    assert tree(path / "1") == first


def put_folder(path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def put_file(path):
    path.write_text("another program's file")


def put_saved_model_with_notes(path):
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"")
    (path / "notes.txt").write_text("mine")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("put", [put_folder, put_file, put_saved_model_with_notes])
def test_other_files_are_not_replaced(tiny, name, put, tmp_path):
    path = tmp_path / ARTIFACTS[name].file_name
    put(path)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"was not written by an export|is not a folder of model versions"):
        write_artifact(name, tiny, path, Options())
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", FORMATS)
def test_a_path_that_cannot_be_written(tiny, name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_artifact(name, tiny, tmp_path / "file" / "model", Options())


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.bin"
    path.write_text("old")

    def disk_fills():
        with replacing(path, lambda _: True) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*No space left"):
        disk_fills()
    assert tree(tmp_path) == {"model.bin": b"old"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_leaves_nothing(tiny, name, tmp_path):
    """A limit on file sizes simulates the full disk: writing fails in the middle of a file."""
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write"):
            write_artifact(name, tiny, tmp_path / "out" / "model", Options())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "out").iterdir()) == []


def test_digest_of_a_folder_follows_names_and_contents(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"12")
    (tmp_path / "a").write_bytes(b"3")
    digest = sha256(tmp_path)
    lines = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in [("a", b"3"), ("b/x", b"12")]
    )
    assert digest == hashlib.sha256(lines.encode()).hexdigest()
    assert size(tmp_path) == 3
    (tmp_path / "a").rename(tmp_path / "c")
    assert sha256(tmp_path) != digest


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_operators_that_a_format_lacks_are_refused(tmp_path):
    images = keras.Input((4, 4, 1), name="images")
    matrices = keras.ops.squeeze(images, -1) + keras.ops.eye(4)
    logits = keras.layers.Dense(2)(keras.layers.Flatten()(keras.ops.inv(matrices)))
    model = keras.Model(images, {"logits": logits, "probabilities": keras.layers.Softmax()(logits)})
    for name in ("tflite", "onnx"):
        with pytest.raises(InputError, match=r"needs (an operator|operators) that (TFLite|ONNX) lacks: "):
            write_artifact(name, model, tmp_path / name, Options())
    assert list(tmp_path.iterdir()) == []


def test_flex_operators_are_noticed(tmp_path):
    import tensorflow as tf

    from keras_resnet.export.runtimes import open_artifact

    function = tf.function(
        lambda images: {"logits": tf.linalg.inv(images)[:, 0]},
        input_signature=[tf.TensorSpec((None, 4, 4), name="images")],
    )
    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path / "source"), {"serving_default": function})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "source"))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    (tmp_path / "model.tflite").write_bytes(converter.convert())
    with open_artifact("tflite", tmp_path / "model.tflite") as artifact:
        assert "Flex" in artifact.problems[0]


def test_check_formats():
    assert check_formats("onnx, saved_model,onnx") == ("saved_model", "onnx")
    assert check_formats(["tflite"]) == ("tflite",)
    with pytest.raises(InputError, match="unknown format 'onx'; did you mean onnx"):
        check_formats("tflite,onx")
    with pytest.raises(InputError, match="no format given"):
        check_formats(" , ")


def test_check_precisions():
    assert check_formats("onnx,tflite", "int8,float32") == ("tflite", "tflite_int8", "onnx", "onnx_int8")
    assert check_formats("saved_model,tflite", "bfloat16,dynamic") == (
        "saved_model_bfloat16",
        "tflite_dynamic",
    )
    with pytest.raises(InputError, match="saved_model has no precision int8; choose from float32, bfloat16"):
        check_formats("saved_model,onnx", "int8")
    with pytest.raises(InputError, match="onnx in dynamic does not exist; it exists for tflite"):
        check_formats("onnx", "float32,dynamic")
    with pytest.raises(InputError, match="unknown precision 'int4'"):
        check_formats("onnx", "int4")
