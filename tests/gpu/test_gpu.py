"""What a GPU could compute differently from a CPU. `make test-gpu` runs it."""

import contextlib
import os
import subprocess
import sys

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from helpers.export_detectors import C4, FPN, RETINANET, scenes
from helpers.export_detectors import build as build_detector
from helpers.export_networks import randomize

from keras_resnet import build_model
from keras_resnet.classification import ClassificationRecipe, ClassificationTask
from keras_resnet.detection.boxes import iou
from keras_resnet.detection.roi_align import roi_align
from keras_resnet.export import serving_model, to_onnx, to_saved_model
from keras_resnet.images.preprocessing import Normalization
from keras_resnet.models.layers import BatchNormalization
from keras_resnet.training import distribution as distributions
from keras_resnet.training.step import Trainer

pytestmark = pytest.mark.gpu

CPU = "CPU:0"
CLASSES = 7
# One block per stage, with the widths of the zoo, for which cuDNN chooses its kernels.
NETWORKS = {
    "cifar_resnet20": ({"stage_depths": (1, 1, 1)}, 32),  # shortcut A
    "resnet18": ({"stage_depths": (1, 1, 1, 1)}, 64),
    "resnet50_v1_5": ({"stage_depths": (1, 1, 1, 1)}, 64),
    "resnet50_v2": ({"stage_depths": (1, 1, 1, 1)}, 64),
    "resnext50_32x4d": ({"stage_depths": (1, 1, 1, 1)}, 64),
}


@contextlib.contextmanager
def policy_scope(policy):
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


def build(name, policy="float32", **options):
    overrides, size = NETWORKS[name]
    keras.utils.set_random_seed(0)
    with policy_scope(policy):
        model = build_model(
            name,
            input_shape=(size, size, 3),
            classes=CLASSES,
            classifier_activation=None,
            **overrides,
            **options,
        )
    randomize(model)
    return model


def batch(name, count=8):
    size, random = NETWORKS[name][1], np.random.default_rng(0)
    images = random.normal(size=(count, size, size, 3)).astype("float32")
    return images, np.arange(count, dtype="int32") % CLASSES


def computed_on(device, name, weights=None, policy="float32"):
    """Logits in inference, and the loss, the gradients and the new statistics of a training step."""
    images, labels = batch(name)
    with tf.device(device):
        model = build(name, policy)
        if weights is not None:
            model.set_weights(weights)
        start = model.get_weights()
        logits = model(images, training=False)
        with tf.GradientTape() as tape:
            outputs = tf.cast(model(images, training=True), tf.float32)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs))
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    statistics = [variable.numpy() for variable in model.non_trainable_variables]
    return logits.numpy(), float(loss), [gradient.numpy() for gradient in gradients], statistics, start


def distance(a, b):
    """The relative distance of two lists of arrays, taken as one vector."""
    a, b = (np.concatenate([np.ravel(each).astype("float64") for each in some]) for some in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("tf32", [False, True], ids=["float32", "tf32"])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_those_of_a_cpu(gpu, name, tf32):
    logits, loss, gradients, statistics, start = computed_on(CPU, name)
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    found = computed_on(gpu, name, start)
    limit = 2e-2 if tf32 else 1e-4
    assert distance([found[0]], [logits]) < limit
    assert found[1] == pytest.approx(loss, rel=limit)
    assert distance(found[2], gradients) < 5 * limit
    assert distance(found[3], statistics) < limit


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_comes_near_float32(gpu, policy):
    logits, loss, gradients, _, start = computed_on(CPU, "resnet18")
    found = computed_on(gpu, "resnet18", start, policy)
    assert distance([found[0]], [logits]) < 0.05
    assert found[1] == pytest.approx(loss, rel=0.05)
    # Without loss scaling, small gradients of float16 are lost: the direction is what counts.
    assert distance(found[2], gradients) < 0.3


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_fused_kernel_computes_keras_batch_normalization(gpu, policy):
    x = np.random.default_rng(0).normal(3, 2, (8, 9, 9, 32)).astype("float32")
    with policy_scope(policy), tf.device(gpu):
        own = BatchNormalization(epsilon=1e-5)
        found = [tf.cast(own(x, training=training), tf.float32).numpy() for training in (True, False)]
    with tf.device(CPU):
        keras_layer = keras.layers.BatchNormalization(epsilon=1e-5)
        expected = [keras_layer(x, training=training).numpy() for training in (True, False)]
    limit = 1e-5 if policy == "float32" else 2e-2
    assert distance(found, expected) < limit
    statistics = [[v.numpy() for v in layer.non_trainable_variables] for layer in (own, keras_layer)]
    assert distance(*statistics) < (1e-5 if policy == "float32" else 5e-3)


def test_shortcut_a_subsamples_exactly(gpu):
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 16, 16, 8)).astype("float32"))
    with tf.device(gpu), tf.GradientTape() as tape:
        tape.watch(x)
        y = keras.layers.MaxPooling2D(1, 2)(x)
    np.testing.assert_array_equal(y, x[:, ::2, ::2])
    expected = np.zeros(x.shape, "float32")
    expected[:, ::2, ::2] = 1
    np.testing.assert_array_equal(tape.gradient(y, x), expected)


def take_steps(
    strategy="one_device",
    name="resnet18",
    policy="float32",
    steps=3,
    synchronized=False,
    loss_scale=None,
    **options,
):
    """Returns rows of results, all variables afterwards, and the peak memory in bytes, None on a CPU."""
    distribution = distributions.create(strategy)
    with distribution.scope():
        model = build(name, policy)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = synchronized
    recipe = ClassificationRecipe(name, "digits", learning_rate=0.01)
    trainer = Trainer(model, ClassificationTask(recipe), distribution, seed=0, **options)
    images, labels = batch(name, 16)
    values = {"images": images, "labels": labels, "weights": np.ones(16, "float32")}
    local = tf.data.Dataset.from_tensor_slices(values).batch(16 // distribution.replicas).repeat()
    iterator = distribution.iterate(local)
    device = distribution.devices[0]
    is_gpu = "GPU" in device
    if is_gpu:
        tf.config.experimental.reset_memory_stats(device)
    if loss_scale is not None:
        trainer.named_variables()["loss_scale"].assign(loss_scale)
    rates = tf.constant([0.01] * steps)
    rows = trainer.train(iterator, rates, tf.constant(0), tf.constant(0.0)).numpy()
    peak = tf.config.experimental.get_memory_info(device)["peak"] if is_gpu else None
    return rows, [variable.numpy() for variable in trainer.named_variables().values()], peak


def test_rematerialization_saves_memory_and_changes_little(gpu):
    deep = {"name": "cifar_resnet20"}
    rows, variables, peak = take_steps(**deep)
    again, found, less = take_steps(**deep, remat=True)
    np.testing.assert_allclose(again[:, 0], rows[:, 0], rtol=1e-3)
    assert distance(found, variables) < 1e-3
    if peak is not None:
        assert less < peak


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_xla_agrees(gpu, policy):
    # With the initial scale of float16, rounding decides which steps are left out.
    scale = 1.0 if policy == "mixed_float16" else None
    rows, variables, _ = take_steps(policy=policy, loss_scale=scale)
    compiled, found, _ = take_steps(policy=policy, loss_scale=scale, jit=True)
    limit = 1e-3 if policy == "float32" else 0.05
    np.testing.assert_allclose(compiled[:, 0], rows[:, 0], rtol=limit)
    assert distance(found, variables) < limit


def test_the_loss_scale_of_float16_finds_finite_gradients(gpu):
    rows, _, _ = take_steps(policy="mixed_float16", steps=6)
    columns = (*ClassificationTask.train_metrics, "count", "finite", "stopping", "loss_scale")
    assert rows[-1][columns.index("finite")] == 1
    assert rows[-1][columns.index("loss_scale")] >= 1


def test_all_gpus_train_as_one(gpus):
    one, expected, _ = take_steps()
    several, found, _ = take_steps("mirrored", synchronized=True)
    np.testing.assert_allclose(several[:, 0], one[:, 0], rtol=1e-3)
    assert distance(found, expected) < 1e-3


RUN = """
import sys
from keras_resnet.classification import get_recipe, train
from keras_resnet.training import RunOptions
recipe = get_recipe("digits").replace(image_size=16, steps=6, batch_size=64)
train(recipe, sys.argv[1], RunOptions(data_dir=sys.argv[2], seed=1))
"""


def test_deterministic_operations_give_the_same_bytes(gpu, tmp_path):
    environment = {**os.environ, "TF_DETERMINISTIC_OPS": "1"}
    for name in ("a", "b"):
        command = [sys.executable, "-c", RUN, str(tmp_path / name), str(tmp_path / "data")]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    files = [(tmp_path / name / "model.weights.h5").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_two_processes_share_a_gpu(gpu, tmp_path):
    """With TF_FORCE_GPU_ALLOW_GROWTH, which the commands set: otherwise the first takes all of its memory."""
    command = [sys.executable, "-m", "keras_resnet", "train", "--recipe=digits", "--set=steps=5"]
    command += ["--set=image_size=16", f"--data_dir={tmp_path / 'data'}"]
    subprocess.run([*command, f"--workdir={tmp_path / 'first'}"], check=True, capture_output=True)
    running = [
        subprocess.Popen([*command, f"--workdir={tmp_path / name}"], stderr=subprocess.PIPE, text=True)
        for name in ("second", "third")
    ]
    for process in running:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    model = serving_model(build("resnet18"), Normalization.imagenet())
    images = np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype("float32")
    with tf.device(CPU):
        return model, images, model(images)["logits"].numpy(), tmp_path_factory.mktemp("served")


def test_a_saved_model_on_a_gpu(gpu, served):
    model, images, logits, folder = served
    version = to_saved_model(model, folder / "saved_model")
    with tf.device(gpu):
        loaded = tf.saved_model.load(str(version))
        found = loaded.signatures["serving_default"](images=tf.constant(images))["logits"]
    assert distance([found.numpy()], [logits]) < 1e-4


def test_an_onnx_file_on_a_gpu(gpu, served):
    model, images, logits, folder = served
    path = to_onnx(model, folder / "model.onnx")
    provider = "CUDAExecutionProvider" if "GPU" in gpu else "CPUExecutionProvider"
    assert provider in onnxruntime.get_available_providers(), "pip install onnxruntime-gpu"
    session = onnxruntime.InferenceSession(str(path), providers=[provider])
    assert session.get_providers()[0] == provider
    (found,) = session.run(["logits"], {"images": images})
    assert distance([found], [logits]) < (2e-2 if "GPU" in gpu else 1e-4)  # CUDA's convolutions use TF32


@pytest.mark.parametrize("name", [C4, FPN, RETINANET])
def test_detections_are_those_of_a_cpu(gpu, name):
    images = scenes(2)
    results = []
    for device in (CPU, gpu):
        with tf.device(device):
            results.append(build_detector(name).detect(images))
    for expected, found in zip(*results, strict=True):
        assert len(found) == len(expected)
        best = iou(tf.constant(expected.boxes), tf.constant(found.boxes)).numpy().max(1)
        assert best.min(initial=1.0) > 0.99
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)


def test_the_gradient_of_roi_align_is_reproducible(gpu):
    random = np.random.default_rng(0)
    features = tf.constant(random.normal(size=(1, 16, 16, 8)).astype("float32"))
    corners = random.uniform(0, 100, (1, 64, 2))
    sides = random.uniform(8, 100, (1, 64, 2))
    boxes = tf.constant(np.concatenate([corners, corners + sides], -1), tf.float32)

    def gradient(device):
        with tf.device(device), tf.GradientTape() as tape:
            tape.watch(features)
            loss = tf.reduce_sum(tf.square(roi_align(features, boxes, 7, 8)))
        return tape.gradient(loss, features).numpy()

    assert gradient(gpu).tobytes() == gradient(gpu).tobytes()
    assert distance([gradient(gpu)], [gradient(CPU)]) < 1e-4
