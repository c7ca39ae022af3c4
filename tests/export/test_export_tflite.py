"""TFLite files: what they compute in each precision, what is in them, and what they say about it."""

import collections
import functools
import json
import zipfile

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from helpers.export_networks import (
    LATER_EVEN,
    LATER_ODD,
    PER_PIXEL,
    SMALL,
    SMALL_CIFAR,
    photo_batches,
    serving,
    spec_of,
)

from keras_resnet import __version__
from keras_resnet.errors import InputError
from keras_resnet.export import graph
from keras_resnet.export.artifacts import IO_DTYPES, precisions
from keras_resnet.export.graph import fold
from keras_resnet.export.images import sample_photos
from keras_resnet.export.writers import tflite as module
from keras_resnet.export.writers.tensorflow_ops import weight_arrays
from keras_resnet.export.writers.tflite import to_tflite
from keras_resnet.export.writers.tflite_metadata import read_labels

PRECISIONS = precisions("tflite")
NETWORKS = {
    "basic A": ("resnet18", {**SMALL, "shortcut": "A"}, 48, None),
    "bottleneck v1": ("resnet50", SMALL, 48, None),
    "bottleneck v1.5": ("resnet50_v1_5", SMALL, 48, None),
    "plain": ("plain18", SMALL, 48, None),
    "cifar": ("cifar_resnet20", SMALL_CIFAR, None, None),
    "cifar per pixel": ("cifar_resnet20", SMALL_CIFAR, None, PER_PIXEL),
    "without batch normalization": ("cifar_resnet20", {**SMALL_CIFAR, "batch_norm": False}, None, None),
    **{name: (*row, None) for name, row in LATER_EVEN.items()},
    **{f"{name}, odd": (*row, None) for name, row in LATER_ODD.items()},
}
LABELS = ("zebra", "ant", "Bär", "dog, hot", "", "cat", "猫", " space ", "9", "last")
METADATA = {"model": "resnet50_v1_5", "labels": json.dumps(LABELS), "normalization": '{"inside": true}'}
BUILTINS = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
TYPES = {code: name for name, code in vars(schema.TensorType).items() if name.isupper()}


@functools.cache
def network(name):
    model, overrides, size, normalization = NETWORKS[name]
    spec = spec_of(model, overrides, size, normalization, classes=10)
    return spec, serving(spec)


def crops(height, width, count=40, low=0, high=255):
    """Calibration images: pieces of the photos, every second one mirrored; pixels low to high."""
    random, photos = np.random.default_rng(3), sample_photos(2 * height, 2 * width)
    images = []
    for index in range(count):
        top, left = random.integers(height), random.integers(width)
        image = photos[index % 8, top : top + height, left : left + width]
        images.append(image[:, :: 1 - 2 * (index % 2)])
    return low + np.stack(images) * np.float32((high - low) / 255)


def photos_of(spec):
    """Photos of whole-number pixels, so that bytes hold them."""
    return np.rint(np.concatenate([images for images, _ in photo_batches(spec)]))


def run(path, images):
    """The outputs as float32, dequantized."""
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    (details,) = runner.get_input_details().values()
    results = runner(images=images.astype(details["dtype"]))
    return {name: real(results[name], detail) for name, detail in runner.get_output_details().items()}


def real(values, details):
    scale, zero_point = details["quantization"]
    return (values.astype("float32") - zero_point) * scale if values.dtype != np.float32 else values.copy()


def read(path):
    return schema.ModelT.InitFromPackedBuf(path.read_bytes())


def operators(path):
    model = read(path)
    codes = [BUILTINS[code.builtinCode] for code in model.operatorCodes]
    return collections.Counter(codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators)


def relative_errors(results, reference):
    """The logits' (largest error over the largest logit, rms error over their spread across images)."""
    error = results["logits"] - reference["logits"]
    spread = reference["logits"].std(0).mean()
    return np.abs(error).max() / np.abs(reference["logits"]).max(), np.sqrt(np.square(error).mean()) / spread


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.endswith("odd") and name != "cifar"])
def test_float32_is_equal_and_lean(name, tmp_path):
    spec, model = network(name)
    images = photos_of(spec)
    reference = {key: value.numpy() for key, value in model(images).items()}
    path = to_tflite(model, tmp_path / "model.tflite")
    results = run(path, images)
    assert relative_errors(results, reference)[0] <= 1e-5
    np.testing.assert_allclose(results["probabilities"], reference["probabilities"], atol=1e-5)

    folded = fold(model)
    kinds = collections.Counter(type(node) for node in folded.nodes)
    # Zeros before a stride stay an operation of their own; around other convolutions they are "SAME".
    pads = kinds[graph.Pad] + sum(
        getattr(node, "padding", graph.NO_PADDING) != graph.NO_PADDING and max(node.strides) > 1
        for node in folded.nodes
        if not isinstance(node, graph.Pad)
    )
    found = operators(path)
    assert found.pop("STRIDED_SLICE", 0) + found.pop("MAX_POOL_2D", 0) == kinds[graph.MaxPool]
    assert found == collections.Counter(
        {
            # The per-pixel normalization has a std of 1, which needs no multiplication.
            "MUL": kinds[graph.Affine] - (spec.normalization is PER_PIXEL),
            "ADD": kinds[graph.Add] + kinds[graph.Affine],
            "CONV_2D": kinds[graph.Conv],
            "PAD": pads,
            "AVERAGE_POOL_2D": kinds[graph.AveragePool],
            "MEAN": 1,
            "FULLY_CONNECTED": 1,
            "SOFTMAX": 1,
        }
    )
    weights = sum(array.nbytes for array in weight_arrays(folded.nodes).values())
    extra = np.prod(spec.input_shape) * 4 if spec.normalization is PER_PIXEL else 0
    assert weights < path.stat().st_size < weights + extra + 25_000


# Float16 and dynamic files differ from float32 ones in the bytes of their weights.
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param("D", "float32", marks=pytest.mark.slow),
        *((name, "int8") for name in LATER_ODD),
        pytest.param("grouped", "dynamic", marks=pytest.mark.slow),
    ],
)
def test_later_families_at_odd_sizes(name, precision, tmp_path):
    spec, model = network(f"{name}, odd")
    images = photos_of(spec)
    path = to_tflite(
        model,
        tmp_path / "model.tflite",
        precision=precision,
        calibration=[crops(*spec.input_shape[:2])] if precision == "int8" else None,
    )
    results = run(path, images)
    reference = {key: value.numpy() for key, value in model(images).items()}
    assert relative_errors(results, reference)[0] <= BOUNDS[precision][0]

    # A grouped convolution is one operator, with a scale per channel if it is quantized.
    convolutions = [node for node in fold(model).nodes if isinstance(node, graph.Conv)]
    kernels = [kernel for kernel, _ in weights_of(path, "CONV_2D")]
    assert len(kernels) == len(convolutions)
    found = collections.Counter(tuple(kernel.shape) for kernel in kernels)
    assert found == collections.Counter(op.kernel.transpose(3, 0, 1, 2).shape for op in convolutions)
    if precision in ("dynamic", "int8"):
        shapes = {op.kernel.transpose(3, 0, 1, 2).shape for op in convolutions if op.groups > 1}
        assert bool(shapes) == (name == "grouped")
        for kernel in kernels:
            if tuple(kernel.shape) not in shapes:
                continue
            assert TYPES[kernel.type] == "INT8"
            assert len(kernel.quantization.scale) == kernel.shape[0]
    assert not any(code.customCode for code in read(path).operatorCodes)
    assert not {operator for operator in operators(path) if operator.startswith("SPLIT")}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """(spec, model, images, reference, files by precision and input type)."""
    folder = tmp_path_factory.mktemp("tflite")
    spec, model = network("bottleneck v1.5")
    images = photos_of(spec)
    reference = {name: value.numpy() for name, value in model(images).items()}
    calibration = np.split(crops(*spec.input_shape[:2]), [7, 30])
    files = {}
    for precision in PRECISIONS:
        for io_dtype in IO_DTYPES:
            files[precision, io_dtype] = to_tflite(
                model,
                folder / f"{precision}_{io_dtype}.tflite",
                METADATA,
                precision=precision,
                io_dtype=io_dtype,
                calibration=iter(calibration),
                labels=LABELS,
            )
    return spec, model, images, reference, files


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("io_dtype", IO_DTYPES)
def test_inputs_and_outputs(sample, precision, io_dtype):
    spec, _, _, _, files = sample
    path = files[precision, io_dtype]
    assert not any(code.customCode for code in read(path).operatorCodes)
    interpreter = Interpreter(str(path))
    assert list(interpreter.get_signature_list()) == ["serving_default"]
    runner = interpreter.get_signature_runner("serving_default")
    (given,), results = runner.get_input_details().values(), runner.get_output_details()
    assert list(runner.get_input_details()) == [given["name"]] == ["images"]
    assert given["dtype"] == np.dtype(io_dtype)
    assert given["shape_signature"].tolist() == [-1, *spec.input_shape]
    assert {name: detail["name"] for name, detail in results.items()} == {
        "logits": "logits",
        "probabilities": "probabilities",
    }
    for detail in results.values():
        assert detail["dtype"] == np.dtype(io_dtype if precision == "int8" else "float32")
        assert detail["shape_signature"].tolist() == [-1, 10]


# (largest error over the largest logit, rms error over the logits' spread across images).
# Measured here: float16 0.0007, 0.002; dynamic 0.015, 0.08; int8 0.016, 0.08.
BOUNDS = {"float32": (1e-5, 1e-4), "float16": (0.01, 0.02), "dynamic": (0.04, 0.2), "int8": (0.05, 0.25)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("io_dtype", IO_DTYPES)
def test_errors_are_bounded(sample, precision, io_dtype):
    _, _, images, reference, files = sample
    results = run(files[precision, io_dtype], images)
    largest, to_spread = relative_errors(results, reference)
    assert largest <= BOUNDS[precision][0]
    assert to_spread <= BOUNDS[precision][1]
    np.testing.assert_allclose(
        results["probabilities"].sum(-1), 1, atol=0.03 if precision == "int8" else 1e-5
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes_are_the_same_images(sample, precision):
    _, _, images, _, files = sample
    as_float, as_bytes = (run(files[precision, io_dtype], images) for io_dtype in ("float32", "uint8"))
    # The outputs of the integer file are rounded to 8 bits.
    largest = np.abs(as_float["logits"]).max()
    atol = {"logits": 0.02 * largest, "probabilities": 0.1} if precision == "int8" else {}
    for name, values in as_float.items():
        np.testing.assert_allclose(as_bytes[name], values, rtol=1e-6, atol=atol.get(name, 1e-6))


def test_sizes(sample):
    files = sample[-1]
    sizes = {precision: files[precision, "float32"].stat().st_size for precision in PRECISIONS}
    assert 0.48 < sizes["float16"] / sizes["float32"] < 0.53
    assert 0.24 < sizes["dynamic"] / sizes["float32"] < 0.32
    assert 0.24 < sizes["int8"] / sizes["float32"] < 0.32


def weights_of(path, operator):
    """The filter and bias tensors of all operators of a kind."""
    model = read(path)
    (graph,) = model.subgraphs
    for entry in graph.operators:
        if BUILTINS[model.operatorCodes[entry.opcodeIndex].builtinCode] == operator:
            yield tuple(graph.tensors[index] for index in entry.inputs[1:])


@pytest.mark.parametrize("precision", ["dynamic", "int8"])
def test_quantized_weights_have_a_scale_per_channel(sample, precision):
    found = 0
    for kernel, bias in weights_of(sample[-1][precision, "float32"], "CONV_2D"):
        assert TYPES[kernel.type] == "INT8"
        assert len(kernel.quantization.scale) == kernel.shape[0]
        assert kernel.quantization.quantizedDimension == 0
        assert len(set(kernel.quantization.scale)) > 1
        assert TYPES[bias.type] == ("INT32" if precision == "int8" else "FLOAT32")
        found += 1
    assert found == 9


@pytest.mark.parametrize("io_dtype", IO_DTYPES)
def test_int8_files_compute_in_integers(sample, io_dtype):
    """All of a file for bytes; of a file for float32, all but the classifier and the softmax."""
    model = read(sample[-1]["int8", io_dtype])
    (graph,) = model.subgraphs
    expected = {"QUANTIZE": {"INT8"}}
    if io_dtype == "uint8":
        expected["QUANTIZE"] = {"INT8", "UINT8"}
    else:
        expected |= {kind: {"FLOAT32"} for kind in ("DEQUANTIZE", "FULLY_CONNECTED", "SOFTMAX")}
    for entry in graph.operators:
        kind = BUILTINS[model.operatorCodes[entry.opcodeIndex].builtinCode]
        types = {TYPES[graph.tensors[index].type] for index in entry.outputs}
        assert types <= expected.get(kind, {"INT8"}), kind
    assert {TYPES[graph.tensors[index].type] for index in (*graph.inputs, *graph.outputs)} == {
        io_dtype.upper()
    }


def test_close_logits_are_told_apart_in_int8(tmp_path):
    """Where one scale holds for all logits, 600 / 255 is the least difference."""
    spec = spec_of("cifar_resnet20", SMALL_CIFAR)
    model = serving(spec)
    classifier = model.get_layer(spec.model).get_layer("predictions")
    kernel, bias = classifier.kernel.numpy(), np.linspace(-300, 300, 10, dtype="float32")
    kernel[:, 1], bias[1] = kernel[:, 0], bias[0] + 0.5
    classifier.kernel.assign(kernel)
    classifier.bias.assign(bias)
    path = to_tflite(model, tmp_path / "model.tflite", precision="int8", calibration=[crops(32, 32)])
    results = run(path, photos_of(spec))
    np.testing.assert_allclose(results["logits"][:, 1] - results["logits"][:, 0], 0.5, atol=1e-3)
    powers = np.exp(results["logits"] - results["logits"].max(-1, keepdims=True))
    probabilities = powers / powers.sum(-1, keepdims=True)
    np.testing.assert_allclose(results["probabilities"], probabilities, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (60, 200), (-20, 300)])
def test_a_raw_byte_is_its_own_code(low, high, tmp_path):
    _, model = network("cifar")
    path = to_tflite(
        model,
        tmp_path / "model.tflite",
        precision="int8",
        io_dtype="uint8",
        calibration=[crops(32, 32, low=low, high=high)],
    )
    (details,) = Interpreter(str(path)).get_input_details()
    scale, zero_point = details["quantization"]
    assert scale == pytest.approx(1, rel=1e-6)
    assert zero_point == 0


def test_calibration_images_are_left_alone(tmp_path):
    _, model = network("cifar")
    images = crops(32, 32, 32).astype("uint8")
    before = images.copy()
    to_tflite(model, tmp_path / "model.tflite", precision="int8", calibration=[images])
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("key", [("float32", "float32"), ("float16", "uint8"), ("int8", "uint8")])
def test_any_batch_by_resizing(sample, key):
    _, _, images, _, files = sample
    expected = run(files[key], images)
    interpreter = Interpreter(str(files[key]))
    (given,) = interpreter.get_input_details()
    for batch in (5, 1):
        interpreter.resize_tensor_input(given["index"], (batch, *images.shape[1:]))
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], images[:batch].astype(given["dtype"]))
        interpreter.invoke()
        for detail in interpreter.get_output_details():
            values = real(interpreter.get_tensor(detail["index"]), detail)
            np.testing.assert_allclose(values, expected[detail["name"]][:batch], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key", [("float32", "float32"), ("int8", "uint8")])
def test_the_same_model_gives_the_same_bytes(sample, key, tmp_path):
    spec, model, _, _, files = sample
    path = to_tflite(
        model,
        tmp_path / "other name",
        METADATA,
        precision=key[0],
        io_dtype=key[1],
        calibration=[crops(*spec.input_shape[:2])],
        labels=LABELS,
    )
    assert path.read_bytes() == files[key].read_bytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_aligned(sample, precision):
    model = schema.Model.GetRootAs(sample[-1][precision, "float32"].read_bytes(), 0)
    places = []
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        if buffer.DataLength():
            places.append(buffer._tab.Vector(buffer._tab.Offset(4)))
    assert len(places) == len(set(places)) > 20
    assert all(place % 16 == 0 for place in places)


def test_the_archive_behind_the_model(sample):
    for path in sample[-1].values():
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == ["metadata.json", "labels.txt"]
            assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
            assert archive.read("labels.txt").decode().split("\n") == [*LABELS, ""]
            assert json.loads(archive.read("metadata.json")) == {**METADATA, "classes": "10"}
        assert read_labels(path) == LABELS


class Table:
    """A table of a flatbuffer, read by the numbers of its fields."""

    def __init__(self, content, position):
        self._table = flatbuffers.table.Table(content, position)

    @classmethod
    def root(cls, content):
        return cls(content, int.from_bytes(content[:4], "little"))

    def _place(self, field):
        offset = self._table.Offset(4 + 2 * field)
        return offset and offset + self._table.Pos

    def text(self, field):
        return self._table.String(self._place(field)).decode()

    def byte(self, field):
        place = self._place(field)
        return self._table.Bytes[place] if place else 0

    def table(self, field):
        return Table(self._table.Bytes, self._table.Indirect(self._place(field)))

    def tables(self, field):
        place = self._place(field)
        if not place:
            return []
        offset = place - self._table.Pos
        start = self._table.Vector(offset)
        places = [start + 4 * index for index in range(self._table.VectorLen(offset))]
        return [Table(self._table.Bytes, self._table.Indirect(place)) for place in places]

    def floats(self, field):
        offset = self._place(field) - self._table.Pos
        return np.frombuffer(
            self._table.Bytes, "<f4", self._table.VectorLen(offset), self._table.Vector(offset)
        ).tolist()


def metadata_of(path):
    model = read(path)
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    content = bytes(model.buffers[entry.buffer].data)
    assert content[4:8] == b"M001"
    return Table.root(content)


@pytest.mark.parametrize("key", [("float32", "float32"), ("int8", "uint8")])
def test_metadata_describes_the_tensors(sample, key):
    """The field numbers are those of metadata_schema.fbs; MediaPipe's reader reads the same values."""
    path = sample[-1][key]
    root = metadata_of(path)
    assert root.text(0) == "resnet50_v1_5"
    assert "10 classes" in root.text(1)
    assert [root.text(field) for field in (2, 4, 5, 7)] == [
        __version__,
        "keras_resnet",
        "Apache-2.0",
        "1.0.0",
    ]
    assert [file.text(0) for file in root.tables(6)] == ["metadata.json"]
    (graph,) = root.tables(3)
    (images,), outputs = graph.tables(2), graph.tables(3)
    assert images.text(0) == "images"
    assert "0-255" in images.text(1)
    content = images.table(3)
    assert (content.byte(0), content.table(1).byte(0)) == (2, 1)  # ImageProperties, RGB
    (unit,) = images.tables(4)
    assert unit.byte(0) == 1  # NormalizationOptions
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([0], [1])
    assert (images.table(5).floats(0), images.table(5).floats(1)) == ([255], [0])
    # Readers identify outputs by their order in the file.
    (subgraph,) = read(path).subgraphs
    names = [subgraph.tensors[index].name.decode() for index in subgraph.outputs]
    assert [output.text(0) for output in outputs] == names
    for output in outputs:
        assert output.table(3).byte(0) == 1  # FeatureProperties
        (file,) = output.tables(6)
        assert (file.text(0), file.byte(2)) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS


def test_metadata_of_a_bare_call(tmp_path):
    _, model = network("cifar")
    path = to_tflite(model, tmp_path / "model.tflite")
    root = metadata_of(path)
    assert root.text(0) == model.name
    assert all(not output.tables(6) for output in root.tables(3)[0].tables(3))
    assert zipfile.ZipFile(path).namelist() == ["metadata.json"]
    assert read_labels(path) == ()


def test_labels_of_files_without_metadata(tmp_path):
    path = tmp_path / "model.tflite"
    for content in (b"", b"\x1c\0\0\0TFL3" + bytes(100)):
        path.write_bytes(content)
        assert read_labels(path) == ()
    with pytest.raises(InputError, match=r"cannot read .*none\.tflite: No such file"):
        read_labels(tmp_path / "none.tflite")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int4"}, "unknown precision 'int4'; did you mean int8"),
        ({"precision": "float61"}, "unknown precision 'float61'; did you mean float16"),
        ({"io_dtype": "int8"}, "unknown io_dtype 'int8'; did you mean uint8"),
        ({"precision": "int8"}, "int8 needs at least 32 calibration images; got 0"),
        (
            {"precision": "int8", "calibration": [np.zeros((3, 32, 32, 3)), np.zeros((2, 32, 32, 3))]},
            "int8 needs at least 32 calibration images; got 5",
        ),
        (
            {"precision": "int8", "calibration": [np.zeros((40, 24, 32, 3))]},
            r"calibration batches must be \(n, 32, 32, 3\); got \(40, 24, 32, 3\)",
        ),
        (
            {"precision": "int8", "calibration": np.zeros((40, 32, 32, 3))},
            r"calibration batches must be \(n, 32, 32, 3\); got \(32, 32, 3\)",
        ),
        ({"labels": ("cat", "dog")}, "2 labels do not fit 10 classes"),
        ({"labels": ("two\nlines", *LABELS[1:])}, "has a line break"),
    ],
)
def test_errors(arguments, message, tmp_path):
    _, model = network("cifar")
    with pytest.raises(InputError, match=message) as caught:
        to_tflite(model, tmp_path / "model.tflite", **arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_tflite_lacks(tmp_path, monkeypatch):
    def compute(network, images, weights):
        import tensorflow as tf

        values = tf.linalg.inv(images[:, :, :, 0])[:, 0]
        return {"logits": values, "probabilities": values}

    _, model = network("cifar")
    monkeypatch.setattr(module, "compute", compute)
    with pytest.raises(InputError, match="operator that TFLite lacks") as caught:
        to_tflite(model, tmp_path / "model.tflite")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
