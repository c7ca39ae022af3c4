"""Rematerialization: the same results, bit for bit, in less memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo_networks import ALL_SMALL, randomize

from experiments.step_cost import measure
from keras_resnet import build_model, build_resnet, freeze, load_model
from keras_resnet.classification import ClassificationRecipe, ClassificationTask, train
from keras_resnet.training import distribution as distributions
from keras_resnet.training.remat import Rematerialized
from keras_resnet.training.step import Trainer

CLASSES = 5
DEEP = ALL_SMALL["basic 1x1 B cifar"].replace(stage_depths=(2, 1), stage_filters=(8, 12))


def take_steps(
    config,
    remat,
    *,
    strategy="one_device",
    policy="float32",
    upto=None,
    synchronized=False,
    sizes=(8, 8),
    accumulate=1,
    jit=False,
):
    """The results of the steps, and all variables after them, by name."""
    distribution = distributions.create(strategy)
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    shape = (sizes[0], sizes[0], 3) if len(set(sizes)) == 1 else (None, None, 3)
    try:
        with distribution.scope():
            model = build_resnet(config, input_shape=shape, classifier_activation=None)
            freeze(randomize(model), upto)
    finally:
        keras.config.set_dtype_policy("float32")
    for layer in model.layers:
        if synchronized and isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
    recipe = ClassificationRecipe(model="cifar_resnet20", dataset="digits", ema_decay=0.9)
    trainer = Trainer(
        model, ClassificationTask(recipe), distribution, seed=0, accumulate=accumulate, jit=jit, remat=remat
    )
    rows = []
    for step, size in enumerate(sizes):
        random = np.random.default_rng(step)
        batch = {
            "images": random.normal(size=(8, size, size, 3)).astype("float32"),
            "labels": random.integers(0, CLASSES, 8).astype("int32"),
            "weights": np.ones(8, "float32"),
        }
        parts = tf.data.Dataset.from_tensor_slices(batch).batch(
            8 // distribution.replicas, drop_remainder=True
        )
        rows.append(
            trainer.train(
                distribution.iterate(parts), tf.constant([0.05]), tf.constant(step), tf.constant(0.0)
            ).numpy()[0]
        )
    assert rows[-1][trainer.columns.index("finite")] == 1
    return rows, {name: variable.numpy() for name, variable in trainer.named_variables().items()}


def assert_same(kept, recomputed, tolerance=0.0):
    """Compares two results of `take_steps`."""
    np.testing.assert_allclose(recomputed[0], kept[0], rtol=tolerance, atol=0)
    assert set(kept[1]) == set(recomputed[1])
    for name, value in kept[1].items():
        atol = tolerance * max(1.0, np.abs(value).max())
        np.testing.assert_allclose(recomputed[1][name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"strategy": "mirrored", "policy": "mixed_bfloat16", "accumulate": 2, "upto": "C1"},
            marks=pytest.mark.slow,
        ),
        {"upto": "C3"},
        pytest.param({"sizes": (8, 16)}, marks=pytest.mark.slow),
        pytest.param({"strategy": "mirrored", "synchronized": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_all_options_give_the_same_bits(options):
    assert_same(take_steps(DEEP, remat=False, **options), take_steps(DEEP, remat=True, **options))


# A network with a max pooling.
WITH_STEM = ALL_SMALL["basic 1x1 B imagenet"].replace(stage_depths=(1, 1), stage_filters=(8, 12))


@pytest.mark.parametrize("remat", [False, True])
def test_the_layers_before_the_max_pooling_are_always_recomputed(remat, monkeypatch):
    """They are recomputed with the same bits; the rest of the network is only with `remat`."""
    recomputed = {}
    call_twice = Rematerialized._call_twice

    def record(self, segment, x, with_input):
        recomputed[id(segment)] = segment
        return call_twice(self, segment, x, with_input)

    monkeypatch.setattr(Rematerialized, "_call_twice", record)
    result = take_steps(WITH_STEM, remat=remat, sizes=(32, 32))
    first, *others = recomputed.values()
    if not remat:
        assert isinstance(first.layers[-1], keras.layers.MaxPooling2D)
    assert bool(others) == remat
    monkeypatch.setattr(Rematerialized, "_call_twice", lambda self, segment, x, _: segment(x, training=True))
    assert_same(take_steps(WITH_STEM, remat=False, sizes=(32, 32)), result)


@pytest.mark.parametrize("options", [{"jit": True}, {"strategy": "mirrored", "synchronized": True}])
def test_nothing_is_recomputed_where_it_saves_nothing_or_communicates_twice(options, monkeypatch):
    monkeypatch.setattr(Rematerialized, "_call_twice", lambda *arguments: pytest.fail("it was recomputed"))
    take_steps(WITH_STEM, remat=False, sizes=(32,), **options)


def test_a_part_without_max_pooling_or_without_a_graph_is_called_as_a_whole():
    class Subclassed(keras.Model):
        def call(self, inputs, training=None):
            return inputs * 2.0

    for model in (build_resnet(DEEP, input_shape=(16, 16, 3)), Subclassed()):
        rematerialized = Rematerialized(model, stem_only=True)
        assert rematerialized.segments == [model]
    assert np.array_equal(rematerialized(images()), images() * 2.0)


@pytest.mark.slow
def test_xla_gives_the_same_but_for_the_order_of_its_sums():
    shallow = DEEP.replace(stage_depths=(1, 1))  # three segments
    kept = take_steps(shallow, remat=False, sizes=(8,))
    assert_same(kept, take_steps(shallow, remat=True, sizes=(8,), jit=True), 1e-5)


def images(size=16):
    return tf.constant(np.random.default_rng(0).normal(size=(4, size, size, 3)).astype("float32"))


def test_statistics_move_once_and_what_is_frozen_does_not():
    model = freeze(randomize(build_resnet(DEEP, input_shape=(16, 16, 3))), "C1")
    rematerialized = Rematerialized(model)
    assert len(rematerialized.segments) > 2
    before = [variable.numpy() for variable in model.non_trainable_variables]
    weights = [variable.value for variable in model.trainable_variables]

    @tf.function
    def differentiate(call, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(call(x) ** 2)
        return tape.gradient(loss, weights)

    def moved(call):
        for variable, value in zip(model.non_trainable_variables, before, strict=True):
            variable.assign(value)
        gradients = differentiate(call, images())
        assert all(gradient is not None for gradient in gradients)
        return {variable.path: variable.numpy() for variable in model.non_trainable_variables}

    expected = moved(lambda x: model(x, training=True))
    again = moved(rematerialized)
    for (name, value), first in zip(expected.items(), before, strict=True):
        np.testing.assert_array_equal(again[name], value, err_msg=name)
        assert np.array_equal(value, first) == name.startswith("conv1_"), name


@pytest.mark.parametrize(
    "family",
    [
        *("basic 1x1 A cifar", "basic 1x1 C cifar", "basic 1x1 None cifar", "bottleneck 3x3 C cifar"),
        *("d cifar", "v2 1x1 A", "v2 C", "v2 plain"),
    ],
)
def test_all_families_have_the_same_gradients_and_statistics_in_eager_mode(family):
    model = randomize(build_resnet(ALL_SMALL[family], input_shape=(16, 16, 3)))
    weights = [variable.value for variable in model.trainable_variables]
    start = model.get_weights()
    results = []
    for call in (Rematerialized(model), lambda x: model(x, training=True)):
        model.set_weights(start)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(call(images()) ** 2)
        results.append([*tape.gradient(loss, weights), *model.get_weights()])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        # Convolution, normalization and ReLU; behind a block's sum and its ReLU; pooling and classifier.
        ("cifar_resnet20", 3 + 2 * 9 + 2),
        # Besides, padding and maximum.
        ("resnet18", 6 + 2 * 8 + 2),
        ("resnet50", 6 + 2 * 16 + 2),
        # No shortcuts: three layers a convolution, two paddings.
        ("cifar_plain20", 3 * 19 + 2 + 2),
    ],
)
def test_there_are_as_many_segments_as_the_root_of_the_pieces(name, pieces):
    model = build_model(name, input_shape=(64, 64, 3))
    segments = Rematerialized(model).segments
    assert len(segments) == round(pieces**0.5)
    # Each layer is in one segment, with its variables, in the network's order.
    names = [
        layer.name
        for segment in segments
        for layer in segment.layers
        if not isinstance(layer, keras.layers.InputLayer)
    ]
    assert sorted(names) == sorted(layer.name for layer in model.layers[1:])
    variables = [id(variable) for segment in segments for variable in segment.trainable_variables]
    assert sorted(variables) == sorted(id(variable) for variable in model.trainable_variables)


def elements(segment):
    return sum(np.prod(layer.output.shape[1:]) for layer in segment.layers)


def test_segments_have_about_as_many_activations_not_layers():
    model = build_model("cifar_resnet56", input_shape=(32, 32, 3))
    segments = Rematerialized(model).segments
    shares = np.array([elements(segment) for segment in segments]) / sum(map(elements, segments))
    assert shares.max() < 1.5 / len(segments)
    layers = [len(segment.layers) for segment in segments]
    assert layers[-1] > 2 * layers[0]


def test_a_skip_from_start_to_end_leaves_one_segment():
    start = x = keras.Input((8, 8, 3))
    for _ in range(6):
        x = keras.layers.Conv2D(3, 3, padding="same", activation="relu")(x)
    model = keras.Model(start, keras.layers.Add()([start, x]))
    rematerialized = Rematerialized(model)
    assert rematerialized.segments == [model]
    np.testing.assert_array_equal(rematerialized(images(8)), model(images(8), training=True))
    # Without it there are six pieces.
    assert len(Rematerialized(keras.Model(start, x)).segments) == 2


def test_the_model_stays_as_it_was(tmp_path):
    model = build_resnet(DEEP, input_shape=(16, 16, 3))
    before = model.get_config(), [layer.output for layer in model.layers]
    Rematerialized(model)(images())
    assert model.get_config() == before[0]
    assert all(layer.output is output for layer, output in zip(model.layers, before[1], strict=True))
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images()), model(images()))


@pytest.mark.parametrize("upto", [None, "C2"])
def test_all_segments_but_the_last_and_the_frozen_are_computed_twice(upto):
    model = freeze(build_resnet(DEEP, input_shape=(16, 16, 3), classifier_activation=None), upto)
    rematerialized = Rematerialized(model)
    weights = [variable.value for variable in model.trainable_variables]

    @tf.function
    def differentiate(x):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            loss = tf.reduce_sum(rematerialized(x) ** 2)
        return tape.gradient(loss, weights)

    def convolutions(segment):
        return sum(isinstance(layer, keras.layers.Conv2D) for layer in segment.layers)

    nodes = [node.op for node in differentiate.get_concrete_function(images()).graph.as_graph_def().node]
    counts = [convolutions(segment) for segment in rematerialized.segments]
    again = [
        count
        for count, segment in zip(counts, rematerialized.segments, strict=True)
        if segment.trainable_variables
    ][:-1]
    assert sum(again) > 0
    assert nodes.count("Conv2D") == sum(counts) + sum(again)


@pytest.mark.slow
def test_a_run_ends_with_the_same_bytes(run_options, tiny, tmp_path):
    recipe = tiny.replace(steps=2)
    files = []
    for remat in (False, True):
        train(recipe, tmp_path / str(remat), run_options(remat=remat))
        files.append((tmp_path / str(remat) / "model.weights.h5").read_bytes())
    assert files[0] == files[1]


@pytest.mark.slow
def test_memory_grows_by_at_most_half():
    kept, remat = (measure("cifar_resnet56", 256, remat=remat) for remat in (False, True))
    growth = [result["peak_bytes"] - result["base_bytes"] for result in (kept, remat)]
    assert growth[1] <= growth[0] / 2
    assert remat["losses"] == kept["losses"]
