"""One step against a reference computation, on one device and on two."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.communication import sent_bytes, totals
from helpers.zoo_networks import zeros_for_weights

from keras_resnet import InputError, build_model, freeze
from keras_resnet.classification import ClassificationRecipe, ClassificationTask, mixing
from keras_resnet.training import distribution as distributions
from keras_resnet.training.step import Trainer

CLASSES = 5


def recipe(**changes):
    plain = {"model": "cifar_resnet20", "dataset": "digits", "weight_decay": 0, "momentum": 0.9}
    return ClassificationRecipe(**{**plain, **changes})


def tiny_model():
    return build_model(
        "cifar_resnet20",
        stage_depths=(1, 1),
        stage_filters=(4, 8),
        input_shape=(8, 8, 3),
        classes=CLASSES,
        classifier_activation=None,
    )


def make(
    strategy="one_device",
    policy="float32",
    frozen=False,
    upto=None,
    synchronized=False,
    accumulate=1,
    jit=False,
    remat=False,
    compress_gradients=False,
    **changes,
):
    distribution = distributions.create(strategy)
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    try:
        with distribution.scope():
            model = freeze(tiny_model(), upto)
    finally:
        keras.config.set_dtype_policy("float32")
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = layer.trainable and not frozen  # then statistics stay out of the arithmetic
            layer.synchronized = synchronized
    options = {"seed": 0, "accumulate": accumulate, "jit": jit, "remat": remat}
    options["compress_gradients"] = compress_gradients
    return Trainer(model, ClassificationTask(recipe(**changes)), distribution, **options), distribution


def batches(count=1, size=16, scale=1.0):
    random = np.random.default_rng(0)
    return [
        {
            "images": (scale * random.normal(size=(size, 8, 8, 3))).astype("float32"),
            "labels": random.integers(0, CLASSES, size).astype("int32"),
            "weights": np.ones(size, "float32"),
        }
        for _ in range(count)
    ]


def dataset(elements, replicas=1):
    """The batches of one worker's replicas, in turn."""
    stacked = {key: np.concatenate([e[key] for e in elements]) for key in elements[0]}
    size = len(elements[0]["labels"]) // replicas
    return tf.data.Dataset.from_tensor_slices(stacked).batch(size, drop_remainder=True)


def train(trainer, distribution, elements, rate=0.1, first=0):
    iterator = distribution.iterate(dataset(elements, distribution.replicas))
    rates = tf.constant([rate] * len(elements), tf.float32)
    rows = trainer.train(iterator, rates, tf.constant(first), tf.constant(0.0)).numpy()
    return [dict(zip(trainer.columns, row.tolist(), strict=True)) for row in rows]


def values(model):
    return {variable.path: variable.numpy() for variable in model.variables}


def reference_gradients(model, batch, label_smoothing=0.0):
    loss_function = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    with tf.GradientTape() as tape:
        logits = model(batch["images"], training=True)
        loss = loss_function(tf.one_hot(batch["labels"], CLASSES), logits)
    weights = [variable.value for variable in model.trainable_variables]
    return tape.gradient(loss, weights), float(loss)


def close(a, b, tolerance=2e-6):
    for name in a:
        scale = max(1.0, np.abs(a[name]).max())
        np.testing.assert_allclose(a[name], b[name], atol=tolerance * scale, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [{}, {"nesterov": True, "label_smoothing": 0.1, "clip_norm": 0.5, "weight_decay": 0.01}],
    ids=["plain", "all options"],
)
def test_two_steps_equal_keras_sgd(changes):
    """The gradient is clipped before the decay is added, which only kernels have."""
    trainer, distribution = make(**changes)
    reference = tiny_model()
    reference.set_weights(trainer.model.get_weights())
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=changes.get("nesterov", False))
    elements = batches(2)
    losses = []
    for batch in elements:
        gradients, loss = reference_gradients(reference, batch, changes.get("label_smoothing", 0))
        if changes:
            norm = tf.linalg.global_norm(gradients)
            assert norm > changes["clip_norm"]
            gradients = [gradient * changes["clip_norm"] / norm for gradient in gradients]
            gradients = [
                gradient + changes["weight_decay"] * variable if variable.name == "kernel" else gradient
                for gradient, variable in zip(gradients, reference.trainable_variables, strict=True)
            ]
        optimizer.apply(gradients, reference.trainable_variables)
        losses.append(loss)
    rows = train(trainer, distribution, elements)
    assert [row["loss"] / row["count"] for row in rows] == pytest.approx(losses, rel=1e-5)
    close(values(reference), values(trainer.model))


def test_several_steps_in_one_call_equal_single_steps_and_the_average_is_of_all():
    trainer, distribution = make(ema_decay=0.5, mixup=0.2)
    variables = trainer.named_variables()
    start = {name: variable.numpy() for name, variable in variables.items()}
    average, rows, elements = values(trainer.model), [], batches(3)
    for step, batch in enumerate(elements):
        rows += train(trainer, distribution, [batch], first=step)
        now = values(trainer.model)
        average = {name: 0.5 * average[name] + 0.5 * now[name] for name in now}
    with trainer.averaged_weights():
        close(average, values(trainer.model))
    close(now, values(trainer.model), 0)
    end = {name: variable.numpy() for name, variable in variables.items()}
    for name, variable in variables.items():
        variable.assign(start[name])
    assert train(trainer, distribution, elements) == rows
    for name, variable in variables.items():
        np.testing.assert_array_equal(variable.numpy(), end[name], err_msg=name)


def close_rows(a, b):
    for row, other in zip(a, b, strict=True):
        assert row == pytest.approx(other, rel=1e-5)


def test_two_replicas_with_accumulation_equal_the_whole_batch_where_statistics_are_fixed():
    options = {"frozen": True, "weight_decay": 1e-3, "nesterov": True, "clip_norm": 1.0}
    one, alone = make(**options)
    two, mirrored = make("mirrored", accumulate=4, **options)
    assert mirrored.replicas == 2
    elements = batches(3)
    close_rows(train(one, alone, elements), train(two, mirrored, elements))
    close(values(one.model), values(two.model))


def test_replicas_hold_the_same_bytes_and_a_step_that_is_not_finite_changes_none():
    trainer, distribution = make("mirrored", ema_decay=0.9)
    batch = batches()[0]
    halves = [{key: value[i : i + 8] for key, value in batch.items()} for i in (0, 8)]
    single, alone = make()
    statistics = []
    for half in halves:
        single.model.set_weights(trainer.model.get_weights())
        train(single, alone, [half], rate=0.0)
        statistics.append([v.numpy() for v in single.model.non_trainable_variables])
    train(trainer, distribution, [batch])
    check_copies(trainer, distribution)
    for variable, a, b in zip(trainer.model.non_trainable_variables, *statistics, strict=True):
        np.testing.assert_allclose(variable.numpy(), (a + b) / 2, atol=1e-6)  # the mean of their statistics
    assert not_finite_changes_only(trainer, distribution, batches(scale=np.float32(np.inf))) == set()


def check_copies(trainer, distribution):
    """Both devices hold the same bytes."""
    for variable in trainer.named_variables().values():
        copies = [
            copy.numpy().tobytes() for copy in distribution._strategy.experimental_local_results(variable)
        ]
        assert len(copies) == 2
        assert copies[0] == copies[1], variable.name


def test_the_division_into_buckets_changes_nothing(monkeypatch):
    """What is not a gradient is sent first; then the gradients, the last layer's first."""
    found, counts = [], []
    for size in (2**62, 1000, 1):
        monkeypatch.setattr("keras_resnet.training.step._BUCKET", size)
        trainer, distribution = make("mirrored")
        with sent_bytes() as sent:
            rows = train(trainer, distribution, batches(2))
        check_copies(trainer, distribution)
        found.append((rows, {name: value.tobytes() for name, value in values(trainer.model).items()}))
        counts.append(len(sent) // 2)
    assert found[0] == found[1] == found[2]
    weights = trainer.model.trainable_variables
    assert counts[0] == 2 < counts[1] < counts[2] == 1 + len(weights)
    sizes = [size for _, size in sent]
    for replica in (sizes[::2], sizes[1::2]):  # they take turns
        assert replica[1:] == [4 * np.prod(weight.shape) for weight in reversed(weights)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"jit": True, "policy": "mixed_float16"},
        pytest.param({"accumulate": 2, "remat": True}, marks=pytest.mark.slow),
        pytest.param({"accumulate": 2, "jit": True, "remat": True}, marks=pytest.mark.slow),
        pytest.param({"synchronized": True, "policy": "mixed_bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_gradients_in_bfloat16_are_half_the_bytes_and_come_near(options):
    results, sent = [], []
    for compress in (False, True):
        trainer, distribution = make("mirrored", compress_gradients=compress, **options)
        with sent_bytes() as found:
            results.append(train(trainer, distribution, batches(3), rate=0.01))
        sent.append(totals(found))
        check_copies(trainer, distribution)
    exact, compressed = results
    count = sum(np.prod(weight.shape) for weight in trainer.model.trainable_variables)
    assert sent[1]["bfloat16"] == 2 * 2 * count  # of two replicas
    assert sent[1]["float32"] == sent[0]["float32"] - 2 * 4 * count
    assert compressed[0] == exact[0]  # the first step's loss is that of the initial weights
    assert compressed[2]["loss"] != exact[2]["loss"]
    assert [row["finite"] for row in compressed] == [1, 1, 1]
    for row, other in zip(compressed, exact, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3 if "policy" not in options else 1e-2)


def test_one_device_sends_no_gradients_in_any_dtype():
    found = []
    for compress in (False, True):
        trainer, distribution = make(compress_gradients=compress)
        found.append((train(trainer, distribution, batches(2)), values(trainer.model)))
    assert found[0][0] == found[1][0]
    close(found[0][1], found[1][1], 0)


def not_finite_changes_only(trainer, distribution, elements):
    """The names of the variables that a step without finite gradients changes."""
    before = {name: variable.numpy() for name, variable in trainer.named_variables().items()}
    (row,) = train(trainer, distribution, elements)
    assert row["finite"] == 0.0
    after = trainer.named_variables()
    return {name for name, value in before.items() if not np.array_equal(value, after[name].numpy())}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_reduced_precision_keeps_float32_weights_and_comes_near(policy):
    reduced, distribution = make(policy=policy)
    exact = tiny_model()
    exact.set_weights(reduced.model.get_weights())
    assert {v.dtype for v in reduced.model.variables} == {"float32"}
    elements = batches()
    _, loss = reference_gradients(exact, elements[0])
    (row,) = train(reduced, distribution, elements)
    assert row["loss"] / row["count"] == pytest.approx(loss, rel=0.02)
    assert row["loss"] / row["count"] != pytest.approx(loss, rel=1e-6)


def test_the_loss_scale_halves_on_overflow_changes_nothing_and_grows_again(monkeypatch):
    monkeypatch.setattr("keras_resnet.training.step._LOSS_SCALE_GROWTH_STEPS", 2)
    trainer, distribution = make(policy="mixed_float16")
    variables = trainer.named_variables()
    variables["loss_scale"].assign(2.0**40)  # too large for float16
    assert not_finite_changes_only(trainer, distribution, batches()) == {"loss_scale"}
    assert variables["loss_scale"].numpy() == 2.0**39
    variables["loss_scale"].assign(8.0)
    assert [row["finite"] for row in train(trainer, distribution, batches(2))] == [1.0, 1.0]
    assert variables["loss_scale"].numpy() == 16.0


FROZEN = {"C1": ("conv1",), "C2": ("conv1", "conv2"), "C3": ("conv1", "conv2", "conv3")}


@pytest.mark.parametrize(
    ("upto", "options"),
    [
        ("C1", {}),
        pytest.param(
            "C2",
            {"strategy": "mirrored", "policy": "mixed_bfloat16", "accumulate": 2},
            marks=pytest.mark.slow,
        ),
        ("C3", {"strategy": "mirrored"}),
    ],
    ids=str,
)
def test_what_is_frozen_keeps_its_bits_and_all_else_is_trained(upto, options):
    trainer, distribution = make(upto=upto, ema_decay=0.9, weight_decay=0.1, **options)
    # In float32 the sum of two such numbers is infinite, so that a mean over replicas would be seen.
    variance = np.float32([3e38, 1, 1, 1])
    for kind in ("weights", "average"):
        trainer.named_variables()[f"{kind}/conv1_bn/moving_variance"].assign(variance)
    before = values(trainer.model)
    train(trainer, distribution, batches(3))
    after = values(trainer.model)
    with trainer.averaged_weights():
        averages = values(trainer.model)
    frozen = {name for name in before if name.startswith(FROZEN[upto])}
    assert 0 < len(frozen) < len(before)
    for name, value in before.items():
        same = np.array_equal(value, after[name]), np.array_equal(value, averages[name])
        assert same == ((True, True) if name in frozen else (False, False)), name
    velocities = [name for name in trainer.named_variables() if name.startswith("velocity/")]
    assert not [name for name in velocities if name.removeprefix("velocity/") in frozen]


def test_frozen_batch_normalization_is_in_inference_mode():
    trainer, distribution = make(upto="C3")
    batch = batches()[0]
    whole = tiny_model()
    whole.set_weights(trainer.model.get_weights())
    _, other_loss = reference_gradients(whole, batch)
    loss = trainer.evaluate(distribution.iterate(dataset([batch])), tf.constant(0.0))[0].numpy()[0]
    assert train(trainer, distribution, [batch])[0]["loss"] == pytest.approx(loss, rel=1e-6)
    assert loss / len(batch["labels"]) != pytest.approx(other_loss, rel=1e-3)


@pytest.mark.parametrize(("upto", "convolutions"), [("C2", 2), ("C3", 0)])
def test_frozen_layers_have_no_gradient(upto, convolutions):
    trainer, distribution = make(upto=upto)
    graph = (
        tf.function(trainer._train)
        .get_concrete_function(
            distribution.iterate(dataset(batches())), tf.constant([0.1]), tf.constant(0), tf.constant(0.0)
        )
        .graph.as_graph_def()
    )
    nodes = [node.op for function in graph.library.function for node in function.node_def]
    assert nodes.count("Conv2D") == 5
    assert nodes.count("Conv2DBackpropFilter") == convolutions


def test_xla_agrees_and_keeps_what_is_frozen():
    plain, distribution = make(upto="C2")
    compiled, _ = make(upto="C2", jit=True)
    before = values(compiled.model)
    elements = batches(1)
    close_rows(train(plain, distribution, elements), train(compiled, distribution, elements))
    after = values(compiled.model)
    close(values(plain.model), after, 1e-5)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(FROZEN["C2"])}


def tolerance(policy):
    return 1e-5 if policy == "float32" else 0.02


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"accumulate": 2, "policy": "mixed_bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"remat": True, "policy": "mixed_float16"}, marks=pytest.mark.slow),
        pytest.param({"accumulate": 2, "remat": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_xla_agrees_on_two_devices(options):
    """The devices' communication is not compiled; each has a graph of its own."""
    plain, distribution = make("mirrored", ema_decay=0.9, clip_norm=1.0, **options)
    compiled, _ = make("mirrored", ema_decay=0.9, clip_norm=1.0, jit=True, **options)
    limit = tolerance(options.get("policy", "float32"))
    for row, other in zip(
        *(train(trainer, distribution, batches(2)) for trainer in (plain, compiled)), strict=True
    ):
        assert row == pytest.approx(other, rel=limit, abs=1.0 if limit > 1e-3 else 0)
    assert len(compiled._compute._graphs) == distribution.replicas == 2
    close(values(plain.model), values(compiled.model), limit)
    evaluated = [
        trainer.evaluate(distribution.iterate(dataset(batches(), 2)), tf.constant(0.0))[0].numpy()
        for trainer in (plain, compiled)
    ]
    np.testing.assert_allclose(*evaluated, rtol=limit, atol=1.0 if limit > 1e-3 else 0)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 2},
        pytest.param({"accumulate": 2, "policy": "mixed_bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"accumulate": 2, "remat": True}, marks=pytest.mark.slow),
        pytest.param({"remat": True, "policy": "mixed_float16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_synchronized_statistics_on_two_devices_are_those_of_the_whole_batch(options):
    """With accumulation, those of the same part of all devices."""
    one, alone = make(**options)
    two, mirrored = make("mirrored", synchronized=True, **options)
    elements = batches(2)
    parts = mirrored.replicas * options.get("accumulate", 1)
    # The order in which one device has the parts of all devices together.
    order = np.arange(16).reshape(mirrored.replicas, -1, 16 // parts).swapaxes(0, 1).ravel()
    reordered = [{key: value[order] for key, value in batch.items()} for batch in elements]
    limit = tolerance(options.get("policy", "float32"))
    for row, other in zip(train(one, alone, reordered), train(two, mirrored, elements), strict=True):
        assert row == pytest.approx(other, rel=limit, abs=1.0 if limit > 1e-3 else 0)
    close(values(one.model), values(two.model), limit)


def test_xla_cannot_compile_synchronized_statistics():
    with pytest.raises(InputError, match="--jit and --sync_batch_norm exclude each other"):
        make("mirrored", jit=True, synchronized=True)
    make(jit=True, synchronized=True)  # one device has nothing to communicate


def test_evaluation_leaves_padding_out():
    trainer, distribution = make("mirrored")
    batch = batches()[0]
    weights = np.where(np.arange(16) < 5, 1, 0).astype("float32")  # the second replica has nothing
    iterator = distribution.iterate(dataset([{**batch, "weights": weights}], 2))
    sums, _, stop = trainer.evaluate(iterator, tf.constant(1.0))
    assert stop.numpy() > 0
    logits = trainer.model(batch["images"][:5], training=False).numpy()
    log_likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -log_likelihood[np.arange(5), batch["labels"][:5]].sum()
    correct = (logits.argmax(-1) == batch["labels"][:5]).sum()
    np.testing.assert_allclose(sums.numpy(), [loss, correct, 5], rtol=1e-5)


def test_overfits_32_images():
    trainer, distribution = make(momentum=0.9)
    elements = batches(1, size=32) * 60
    rows = train(trainer, distribution, elements, rate=0.1)
    assert rows[0]["top1"] < 20
    assert rows[-1]["top1"] == 32
    assert rows[-1]["loss"] / 32 < 0.05


def one_hot(count=8):
    return tf.one_hot(np.arange(count) % CLASSES, CLASSES)


def test_mixup_is_one_blend_of_images_and_targets():
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype("float32")
    mixed, targets = mixing.mix(images, one_hot(), 0.4, 0.0, (0, 1, 2))
    share = float(targets[0, 0])
    assert 0 < share < 1
    np.testing.assert_allclose(mixed, images * share + images[::-1] * (1 - share), atol=1e-6)
    np.testing.assert_allclose(np.sum(targets, -1), 1, atol=1e-6)


def test_cutmix_pastes_a_box_and_shares_by_its_area():
    images = np.zeros((8, 10, 12, 3), "float32")
    images[4:] = 1
    boxes = set()
    for step in range(20):
        mixed, targets = mixing.mix(images, one_hot(), 0.0, 1.0, (0, step, 0))
        box = np.asarray(mixed[0, :, :, 0])
        rows, columns = box.any(1).sum(), box.any(0).sum()
        assert box.sum() == rows * columns  # a rectangle
        # Image 0 has class 0, its partner, image 7, class 2.
        assert float(targets[0, 2]) == pytest.approx(box.mean(), abs=1e-6)
        boxes.add((rows, columns))
    assert len(boxes) > 5


def test_mixing_depends_on_seed_step_and_part_alone():
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype("float32")

    def mixed(*key):
        return mixing.mix(images, one_hot(), 1.0, 0.0, key)[0].numpy().tobytes()

    assert mixed(0, 1, 2) == mixed(0, 1, 2)
    assert len({mixed(0, 1, 2), mixed(1, 1, 2), mixed(0, 2, 2), mixed(0, 1, 3)}) == 4


@pytest.mark.parametrize(("value", "filters", "refused"), [("1", 6, True), ("1", 8, False), ("0", 6, False)])
def test_what_onednn_computes_wrongly_is_refused(monkeypatch, value, filters, refused):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", value)
    model = build_model(
        "cifar_resnet20",
        shortcut="B",
        stage_depths=(1, 1),
        stage_filters=(filters, 8),
        input_shape=(8, 8, 3),
        classes=CLASSES,
    )
    create = functools.partial(
        Trainer, model, ClassificationTask(recipe()), distributions.create("one_device"), seed=0
    )
    if refused:
        with pytest.raises(InputError, match=r"conv3_block1_0_conv is a 1x1 .* and 6 input .*at least 8"):
            create()
    else:
        create()
    model.trainable = False
    create()  # it has no gradient


def test_no_network_of_the_zoo_is_refused_because_of_onednn(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    task = ClassificationTask(recipe())
    for name in ("cifar_resnet20", "resnet18", "resnet50", "resnet50_v2", "resnet50d", "resnext50_32x4d"):
        with zeros_for_weights():
            Trainer(build_model(name), task, distributions.create("one_device"), seed=0)
