"""Our batch normalization equals that of Keras, except for TensorFlow's kernel."""

import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo_networks import images

from keras_resnet.models.layers import BatchNormalization

FUSED = "FusedBatchNormV3"
SHAPES = [(8, 6, 6, 4), (3, 5, 7, 6), (1, 3, 3, 1), (7, 1, 1, 5), (2, 1, 9, 3)]


def pair(shape, trainable=True, **kwargs):
    """One layer of each kind with the same random variables."""
    random = np.random.default_rng(5)
    layers = [BatchNormalization(**kwargs), keras.layers.BatchNormalization(**kwargs)]
    for layer in layers:
        layer.build(shape)
        layer.trainable = trainable
    values = [random.uniform(0.5, 1.5, weight.shape) for weight in layers[0].weights]
    for layer in layers:
        layer.set_weights(values)
    return layers


def run(layer, x, training, graph=False):
    """Outputs, gradients of a random projection of them, and the variables afterwards."""
    variables = [weight.value for weight in layer.trainable_weights]

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            loss = tf.reduce_sum(tf.cast(y, "float32") * images(*y.shape, seed=9))
        return y, *tape.gradient(loss, [x, *variables])

    results = (tf.function(step) if graph else step)(tf.constant(x))
    assert results[0].dtype == layer.compute_dtype
    return [tf.cast(value, "float32").numpy() for value in results] + layer.get_weights()


def equal(ours, theirs, tolerance):
    assert len(ours) == len(theirs)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        scale = np.abs(b).max() or 1
        assert a.shape == b.shape
        assert np.abs(a - b).max() / scale <= tolerance, index


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "frozen"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_in_float32(shape, training, trainable, graph):
    ours, theirs = pair(shape, trainable, momentum=0.9, epsilon=1e-5)
    x = images(*shape) + 0.5
    before = ours.get_weights()
    results = run(ours, x, training, graph)
    equal(results, run(theirs, x, training, graph), 1e-6)
    moved = any(not np.array_equal(a, b) for a, b in zip(before, ours.get_weights(), strict=True))
    assert moved == (training and trainable)


def test_equal_over_many_steps():
    ours, theirs = pair((6, 5, 5, 4), momentum=0.9)
    for step in range(20):
        x = images(6, 5, 5, 4, seed=step) * 3 + step
        ours(x, training=True)
        theirs(x, training=True)
    equal(ours.get_weights(), theirs.get_weights(), 1e-6)


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 1.6e-2), ("mixed_float16", 2e-3)])
@pytest.mark.parametrize("training", [True, False])
def test_equal_in_mixed_precision(policy, tolerance, training):
    """Outputs and input gradients are rounded to 16 bits; variables and their gradients are not."""
    ours, theirs = pair((6, 5, 7, 4), momentum=0.9, epsilon=1e-5, dtype=policy)
    x = keras.ops.cast(images(6, 5, 7, 4), ours.compute_dtype)
    ours_results, theirs_results = run(ours, x, training), run(theirs, x, training)
    equal(ours_results[:2], theirs_results[:2], tolerance)
    equal(ours_results[2:], theirs_results[2:], 1e-5)
    assert all(weight.dtype == "float32" for weight in ours.weights)


def operations(layer, *shape, training=True, dtype="float32", **kwargs):
    """The types of operations in the graph of a call."""

    @tf.function
    def call(x):
        return layer(x, training=training, **kwargs)

    graph = call.get_concrete_function(tf.TensorSpec(shape, dtype)).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("axis", [-1, 3])
def test_fused_kernel_runs(axis, policy, training):
    layer = BatchNormalization(axis=axis, dtype=policy)
    assert FUSED in operations(layer, None, None, None, 4, training=training)


def test_keras_layer_has_no_fused_kernel():
    """If this fails, Keras uses the fused kernel, too, and our layer can be removed."""
    assert FUSED not in operations(keras.layers.BatchNormalization(), None, None, None, 4)


FALLBACKS = {
    "channels first": ({"axis": 1}, (4, 3, 5, 6)),
    "middle axis": ({"axis": 2}, (4, 3, 5, 6)),
    "vectors": ({}, (8, 6)),
    "sequences": ({}, (4, 5, 6)),
    "volumes": ({}, (2, 3, 2, 3, 4)),
    "synchronized": ({"synchronized": True}, (4, 3, 5, 6)),
    "without scale": ({"scale": False}, (4, 3, 5, 6)),
    "without center": ({"center": False}, (4, 3, 5, 6)),
    "float64": ({"dtype": "float64"}, (4, 3, 5, 6)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", FALLBACKS)
def test_falls_back_to_keras_code(kind, training):
    arguments, shape = FALLBACKS[kind]
    dtype = arguments.get("dtype", "float32")
    ours, theirs = pair(shape, momentum=0.9, **arguments)
    assert FUSED not in operations(ours, *shape, training=training, dtype=dtype)
    x = images(*shape).astype(dtype)
    equal([ours(x, training=training).numpy()], [theirs(x, training=training).numpy()], 0)
    equal(ours.get_weights(), theirs.get_weights(), 0)


def test_falls_back_with_a_mask():
    ours, theirs = pair((4, 5, 6, 3))
    mask = images(4, 5, 6) > 0
    assert FUSED not in operations(ours, 4, 5, 6, 3, mask=tf.constant(mask))
    x = images(4, 5, 6, 3, seed=2)
    equal([ours(x, training=True, mask=mask).numpy()], [theirs(x, training=True, mask=mask).numpy()], 0)
    equal(ours.get_weights(), theirs.get_weights(), 0)


def test_output_dtype_without_autocast():
    x = tf.cast(images(2, 3, 3, 4), "float16")
    for dtype in ("float32", "mixed_bfloat16"):
        ours, theirs = pair((2, 3, 3, 4), dtype=dtype, autocast=False)
        assert ours(x).dtype == theirs(x).dtype == ours.compute_dtype
        equal([tf.cast(ours(x), "float32").numpy()], [tf.cast(theirs(x), "float32").numpy()], 0)


def network(layer):
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize("saver", [0, 1])
def test_same_variables_and_weight_files(saver, tmp_path):
    layers = [cls(momentum=0.9, name="bn") for cls in (BatchNormalization, keras.layers.BatchNormalization)]
    models = [network(layer) for layer in layers]
    names = [[(weight.name, weight.dtype, weight.trainable) for weight in layer.weights] for layer in layers]
    assert names[0] == names[1]
    models[saver].set_weights([np.full(3, value, "float32") for value in (1, 2, 3, 4)])
    models[saver].save_weights(tmp_path / "m.weights.h5")
    models[1 - saver].load_weights(tmp_path / "m.weights.h5")
    equal(models[0].get_weights(), models[1].get_weights(), 0)


def test_unnamed_layers_have_the_same_weight_files(tmp_path):
    def sequence(cls):
        return keras.Sequential([keras.Input((4, 4, 3)), cls(), keras.layers.Conv2D(2, 1), cls()])

    ours, theirs = sequence(BatchNormalization), sequence(keras.layers.BatchNormalization)
    ours.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in ours.weights])
    ours.save_weights(tmp_path / "m.weights.h5")
    theirs.load_weights(tmp_path / "m.weights.h5")
    equal(ours.get_weights(), theirs.get_weights(), 0)


def test_same_configuration():
    arguments = {"axis": 3, "momentum": 0.7, "epsilon": 1e-4, "name": "bn", "gamma_initializer": "zeros"}
    ours, theirs = BatchNormalization(**arguments), keras.layers.BatchNormalization(**arguments)
    assert ours.get_config() == theirs.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ours))
    assert type(again) is keras.layers.BatchNormalization  # saved models need no package but Keras
    assert again.get_config() == ours.get_config()


def test_pickles_contain_the_layer_of_keras():
    layer, _ = pair((2, 3, 3, 4))
    again = pickle.loads(pickle.dumps(layer))
    assert type(again) is keras.layers.BatchNormalization
    assert again.get_config() == layer.get_config()
    equal(again.get_weights(), layer.get_weights(), 0)


def test_symbolic_shapes_are_those_of_keras():
    for shape in [(None, None, None, 3), (2, 5, None, 3)]:
        inputs = keras.KerasTensor(shape)
        outputs = [cls()(inputs) for cls in (BatchNormalization, keras.layers.BatchNormalization)]
        assert outputs[0].shape == outputs[1].shape == shape
        assert outputs[0].dtype == outputs[1].dtype
