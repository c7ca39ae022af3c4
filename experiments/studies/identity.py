"""A trained network made deeper by blocks that start as identities: what it loses (section 1)."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from experiments.claims import Claim, Sample, above, all_of, not_above
from experiments.experiment import KINDS, Experiment, Groups, diverged, per_seed
from experiments.networks import load_network, network_images, training_loss
from experiments.page import Part, Table
from experiments.runs import Outcome, Run, ladder_run
from experiments.settings import Setting
from keras_resnet.applications import build_resnet
from keras_resnet.data import Dataset, open_dataset
from keras_resnet.errors import InputError
from keras_resnet.models.config import ResNetConfig, get_config

# By (kind, initialization of the new blocks): the name on the page.
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
    """A trained network before and after it was deepened, on the same images.

    The test errors are in %. The losses are mean cross-entropies of training images, normalized with the
    batch's statistics. `equal` says whether all logits of the test images are equal to the last bit.
    """

    before: float
    after: float
    loss_before: float
    loss_after: float
    equal: bool


# By (kind, start), with an entry per seed.
Measured = Mapping[tuple[str, str], Sequence[Measurement]]


def report(setting: Setting, runs: Groups) -> tuple[list[Claim], list[Part]]:
    """The errors right after deepening, without any further training."""
    shallow, deep = setting.depths[0], setting.depths[-1]
    dataset = open_dataset(setting.dataset, setting.data_dir)
    measured: dict[tuple[str, str], list[Measurement]] = {case: [] for case in CASES}
    for kind, found in runs.items():
        for outcome in found:
            if outcome.failure is None:
                for start, measurement in _deepened(setting, dataset, kind, outcome).items():
                    measured[kind, start].append(measurement)
    body: list[Part] = [
        f"Trained networks of {shallow} layers become networks of {deep}: every stage gets more blocks at "
        "its end, the trained ones are copied, and nothing is trained any further. A residual block whose "
        "last normalization has scale and shift zero adds nothing, so the identity is what it starts from. "
        "A plain block has to be built as one, with kernels whose only weight that is not zero is a 1 in the "
        "middle. That solution exists, too, but no usual initialization is near it, and it is one only "
        "with the moving statistics: in training, normalization takes the batch's. Errors are those of at "
        f"most {_IMAGES:,} test images.",
        _table(setting, measured),
        *diverged(runs, "are left out"),
    ]
    return claims(shallow, deep, measured), body


def _deepened(setting: Setting, dataset: Dataset, kind: str, outcome: Outcome) -> dict[str, Measurement]:
    """The measurements of a trained network by the initialization of the new blocks."""
    recipe = outcome.run.recipe
    model = load_network(outcome)
    test = network_images(outcome, dataset, dataset.test_split, _IMAGES)
    train = network_images(outcome, dataset, setting.recipe.train_split, setting.recipe.batch_size)
    config = get_config(recipe.model, **recipe.model_overrides)
    depths = get_config(f"cifar_{kind}{setting.depths[-1]}").stage_depths
    keras.utils.set_random_seed(outcome.run.seed)
    starts = [start for case, start in CASES if case == kind]
    return {start: measure(model, deepen(config, model, depths, start), test, train) for start in starts}


def deepen(config: ResNetConfig, model: keras.Model, depths: Sequence[int], start: str) -> keras.Model:
    """A deeper network with the trained one's blocks and new ones at the end of each stage.

    Args:
        config: configuration of the model, with basic blocks or bottlenecks.
        model: a network of `build_resnet(config)` with its classifier.
        depths: number of blocks in each stage of the deeper network, which outputs logits.
        start: initialization of the new blocks. "he": that of `build_resnet`; "zero": the last layer before
            the addition or the last ReLU outputs zeros, which makes a residual block the identity; "dirac":
            both convolutions and normalizations of a plain basic block are identities.

    Raises:
        InputError: a stage would lose blocks, or the blocks cannot be initialized in this way.
    """
    depths, stages = tuple(depths), len(config.stage_depths)
    if len(depths) != stages or any(map(operator.lt, depths, config.stage_depths)):
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
    """Compares two networks that output logits, on preprocessed images and their classes; changes neither."""
    images, labels = test
    before, after = (_logits(network, images) for network in (model, deeper))
    return Measurement(
        *(100 * float(np.mean(logits.argmax(-1) != labels)) for logits in (before, after)),
        *(float(training_loss(network, *train)) for network in (model, deeper)),
        equal=bool(np.array_equal(before, after)),
    )


def claims(shallow: int, deep: int, measured: Measured) -> list[Claim]:
    """The claims about deepening from `shallow` to `deep` layers, judged by test errors."""
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
            *not_above(after, before),
        ),
        Claim(
            "a plain network with new blocks that start in the same way, or as blocks usually do, loses",
            "not measured; solvers do not find that solution (section 1)",
            "; ".join(
                "{}: {} % before, {} % after".format(name, *errors["plain", start])
                for start, name in (("zero", "scale zero"), ("he", "He"))
            ),
            *all_of(
                above(errors["plain", start][1], errors["plain", start][0], name)
                for start, name in (("zero", "scale zero"), ("he", "He"))
            ),
        ),
    ]


def _initialize(model: keras.Model, config: ResNetConfig, block: str, start: str) -> None:
    if start == "zero":
        convolutions = 2 if config.block == "basic" else 3
        last = model.get_layer(f"{block}_{convolutions}_{'bn' if config.batch_norm else 'conv'}")
        for variable in last.trainable_variables:
            variable.assign(np.zeros(variable.shape, "float32"))
    if start == "dirac":
        for number in (1, 2):
            kernel = model.get_layer(f"{block}_{number}_conv").kernel
            values = np.zeros(kernel.shape, "float32")
            values[1, 1] = np.eye(kernel.shape[-1])
            kernel.assign(values)
            layer = model.get_layer(f"{block}_{number}_bn")
            # Normalization divides by the root of variance and epsilon, which is then one.
            layer.moving_variance.assign(np.full(layer.gamma.shape, 1 - layer.epsilon, "float32"))


def _logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    batches = np.split(images, range(100, len(images), 100))
    return np.concatenate([model(batch, training=False).numpy() for batch in batches])


def _table(setting: Setting, measured: Measured) -> Table:
    columns = ("before", "after", "loss_before", "loss_after")
    samples = {
        case: [Sample.of(getattr(m, column) for m in found) for column in columns]
        for case, found in measured.items()
    }
    return Table(
        ["new blocks", "test error before, %", "after, %", "training loss before", "after"],
        [[name, *map(str, samples[case])] for case, name in CASES.items()],
        f"{setting.dataset}, {setting.budget}: mean ± standard deviation over seeds. The training loss is "
        "that of one batch, normalized with its own statistics, as the next training step would see it.",
    )


def _run(setting: Setting, kind: str, seed: int) -> Run:
    """A run of the ladder's shallowest network."""
    return ladder_run(setting, kind, setting.depths[0], seed)


EXPERIMENT = Experiment(
    name="identity",
    title="Deepened by blocks that begin as identities",
    intro="He et al., 2015: a deeper network should never be worse than a shallower one, because its "
    "added layers could be identities. Here a trained network gets such layers.",
    runs=lambda setting: per_seed(setting, KINDS, _run),
    report=report,
)
