"""A trained network made deeper by blocks that start as identities: what it loses (section 1)."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from experiments import command
from experiments.claims import Claim, Sample, above, all_of, not_above
from experiments.page import Section, Table
from experiments.runs import Outcomes, Run, ladder_run, load_network, network_images, open_data
from experiments.settings import Setting
from keras_resnet import InputError, build_resnet
from keras_resnet.models.config import ResNetConfig, get_config

NAME = "identity"
TITLE = "Deepened by blocks that begin as identities"

# (kind, how the new blocks start): what a page calls it.
CASES = {
    ("resnet", "zero"): "ResNet, last normalization's scale zero",
    ("resnet", "he"): "ResNet, He initialization",
    ("plain", "zero"): "plain, last normalization's scale zero",
    ("plain", "he"): "plain, He initialization",
    ("plain", "dirac"): "plain, kernels that pass on what they get",
}

_IMAGES = 1000


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A trained network and the deeper one made of it, on the same images.

    Attributes:
        before: test error of the trained network, %.
        after: of the deeper one, %.
        loss_before: mean cross entropy of training images, normalized with the batch's statistics.
        loss_after: of the deeper one.
        equal: whether the logits of the test images are equal to the last bit.
    """

    before: float
    after: float
    loss_before: float
    loss_after: float
    equal: bool


# By (kind, start): one a seed.
Measured = Mapping[tuple[str, str], Sequence[Measurement]]


def plan(setting: Setting) -> list[Run]:
    """The ladder's shallowest networks."""
    return [_run(setting, kind, seed) for seed in range(setting.seeds) for kind in ("plain", "resnet")]


def report(setting: Setting, outcomes: Outcomes, folder: Path) -> Section:
    """The errors right after deepening, without any further training."""
    del folder
    shallow, deep = setting.depths[0], setting.depths[-1]
    measured, failed = {case: [] for case in CASES}, []
    dataset = open_data(setting)
    for seed in range(setting.seeds):
        for kind in ("resnet", "plain"):
            outcome = outcomes[_run(setting, kind, seed)]
            if outcome.failure is not None:
                failed.append(outcome.run.name)
                continue
            model = load_network(outcome)
            test = network_images(outcome, dataset, dataset.test_split, _IMAGES)
            train = network_images(outcome, dataset, setting.recipe.train_split, setting.recipe.batch_size)
            config = get_config(outcome.run.recipe.model, **outcome.run.recipe.model_overrides)
            depths = get_config(f"cifar_{kind}{deep}").stage_depths
            keras.utils.set_random_seed(seed)
            for case in CASES:
                if case[0] == kind:
                    deeper = deepen(config, model, depths, case[1])
                    measured[case].append(measure(model, deeper, test, train))
    body = [
        f"Trained networks of {shallow} layers become networks of {deep}: every stage gets more blocks at "
        "its end, the trained ones are copied, and nothing is trained any further. A residual block whose "
        "last normalization has scale and shift zero adds nothing, so the identity is what it starts from. "
        "A plain block has to be built as one, with kernels that have a single one in the middle. That "
        "solution exists, too, but no usual initialization is near it, and it is one only with the "
        "moving statistics: in training, normalization takes the batch's.",
        _table(setting, measured),
    ]
    if failed:
        body.append(
            f"Runs whose loss was not finite have no network to deepen and are left out: {', '.join(failed)}."
        )
    return Section(TITLE, claims(shallow, deep, measured), body, NAME)


def deepen(config: ResNetConfig, model: keras.Model, depths: Sequence[int], start: str) -> keras.Model:
    """A deeper network that has the trained one's blocks, and new ones at the end of each stage.

    Args:
        config: of the model; with basic blocks or bottlenecks.
        model: of `build_resnet(config)`, with its classifier.
        depths: blocks in each stage of the deeper network.
        start: of the new blocks. "he": as `build_resnet` leaves them; "zero": the last layer before the
            addition or the last ReLU gives zeros, which makes a residual block the identity; "dirac": both
            convolutions and normalizations of a plain basic block pass on what they get.

    Returns:
        The deeper network, which gives logits. Normalization in the new blocks has seen no image: its moving
        statistics are those of `build_resnet`, but for "dirac".

    Raises:
        InputError: a stage would lose blocks, or there is no such start for such blocks.
    """
    depths = tuple(depths)
    if len(depths) != len(config.stage_depths) or any(
        new < old for new, old in zip(depths, config.stage_depths, strict=True)
    ):
        raise InputError(f"stages of {config.stage_depths} blocks cannot be deepened to {depths}")
    if config.block == "preactivation":
        raise InputError("a pre-activation stage ends in its stride; blocks cannot be added behind it")
    if config.shortcut == "C" and start == "zero":
        raise InputError("with shortcut option C every shortcut is a projection, and no block an identity")
    if start == "dirac" and not (config.block == "basic" and config.shortcut is None and config.batch_norm):
        raise InputError("'dirac' is a start of plain basic blocks with batch normalization")
    if start not in ("he", "zero", "dirac"):
        raise InputError(f"start is 'he', 'zero' or 'dirac'; got {start!r}")
    deeper = build_resnet(
        config.replace(stage_depths=depths),
        input_shape=model.input_shape[1:],
        classes=model.output_shape[-1],
        classifier_activation=None,
    )
    trained = {layer.name: layer for layer in model.layers}
    for layer in deeper.layers:
        if layer.name in trained:
            layer.set_weights(trained[layer.name].get_weights())
    for stage, (old, new) in enumerate(zip(config.stage_depths, depths, strict=True)):
        for index in range(old, new):
            _initialize(deeper, config, f"conv{stage + 2}_block{index + 1}", start)
    return deeper


def measure(
    model: keras.Model,
    deeper: keras.Model,
    test: tuple[np.ndarray, np.ndarray],
    train: tuple[np.ndarray, np.ndarray],
) -> Measurement:
    """Compares two networks that give logits.

    Args:
        model: the first.
        deeper: the second. Its moving statistics, like the first's, are as before afterwards.
        test: images as the networks take them, and their classes.
        train: likewise; one batch.
    """
    images, labels = test
    before, after = (_logits(network, images) for network in (model, deeper))
    return Measurement(
        *(100 * float(np.mean(logits.argmax(-1) != labels)) for logits in (before, after)),
        *(_training_loss(network, *train) for network in (model, deeper)),
        equal=bool(np.array_equal(before, after)),
    )


def claims(shallow: int, deep: int, measured: Measured) -> list[Claim]:
    """What deepening costs, judged by test errors.

    Args:
        shallow: layers of the trained networks.
        deep: layers after deepening.
        measured: by case.
    """
    errors = {
        case: (Sample.of(m.before for m in found), Sample.of(m.after for m in found))
        for case, found in measured.items()
    }
    residual = measured["resnet", "zero"]
    equal = sum(m.equal for m in residual)
    before, after = errors["resnet", "zero"]
    return [
        Claim(
            f"a residual network of {shallow} layers loses nothing when blocks that start as identities make "
            f"it {deep} layers deep",
            "a deeper network has a solution by construction: the added layers are identities (section 1)",
            f"test error {before} % before, {after} % after; logits equal to the last bit in {equal} of "
            f"{len(residual)}",
            not_above(after, before),
        ),
        Claim(
            "a plain network with new blocks that start in the same way, or as blocks usually do, loses",
            "not measured; solvers do not find that solution (section 1)",
            "; ".join(
                f"{name}: {errors['plain', start][0]} % before, {errors['plain', start][1]} % after"
                for start, name in (("zero", "scale zero"), ("he", "He"))
            ),
            all_of(above(*reversed(errors["plain", start])) for start in ("zero", "he")),
        ),
    ]


def _run(setting: Setting, kind: str, seed: int) -> Run:
    return ladder_run(setting, kind, setting.depths[0], seed)


def _initialize(model: keras.Model, config: ResNetConfig, block: str, start: str) -> None:
    convolutions = 2 if config.block == "basic" else 3
    if start == "zero":
        last = model.get_layer(f"{block}_{convolutions}_{'bn' if config.batch_norm else 'conv'}")
        for variable in last.trainable_variables:
            variable.assign(np.zeros(variable.shape, "float32"))
    if start == "dirac":
        for number in range(1, convolutions + 1):
            kernel = model.get_layer(f"{block}_{number}_conv").kernel
            values = np.zeros(kernel.shape, "float32")
            values[1, 1] = np.eye(kernel.shape[-1])
            kernel.assign(values)
            layer = model.get_layer(f"{block}_{number}_bn")
            # So that what it divides by is one.
            layer.moving_variance.assign(np.full(layer.gamma.shape, 1 - layer.epsilon, "float32"))


def _logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    parts = [
        model(images[start : start + 100], training=False).numpy() for start in range(0, len(images), 100)
    ]
    return np.concatenate(parts)


def _training_loss(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    kept = [(variable, variable.numpy()) for variable in model.non_trainable_variables]
    logits = model(images, training=True)
    for variable, value in kept:
        variable.assign(value)
    return float(tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)))


def _table(setting: Setting, measured: Measured) -> Table:
    rows = []
    for case, name in CASES.items():
        found = measured[case]
        columns = ("before", "after", "loss_before", "loss_after")
        samples = [str(Sample.of(getattr(m, column) for m in found)) for column in columns]
        rows.append([name, *samples])
    header = ["new blocks", "test error before, %", "after, %", "training loss before", "after"]
    return Table(
        header,
        rows,
        f"{setting.dataset}, {setting.budget}: mean ± standard deviation over seeds. The training loss is "
        "that of one batch, normalized with its own statistics, as the next training step would see it.",
    )


if __name__ == "__main__":
    command.run(
        sys.modules[__name__],
        name=NAME,
        title=TITLE,
        lead="He et al., 2015: a deeper network should never be worse than a shallower one, because its "
        "added layers could be identities. Here a trained network gets such layers.",
    )
