"""Do gradients vanish? Their norms by layer during training, with and without batch normalization."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from experiments import figures
from experiments.claims import FAILS, HOLDS, OPEN, Claim, Judgment, Sample, above, all_of
from experiments.experiment import Experiment, Groups, per_seed
from experiments.networks import initial_network, network_images, training_loss
from experiments.page import Part, Picture, Table
from experiments.runs import Outcome, Run, RunFailed, ladder_run
from experiments.settings import Setting
from keras_resnet.classification.recipe import ClassificationRecipe
from keras_resnet.data import open_dataset
from keras_resnet.training import checkpoints

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# By (kind, batch_norm): the name on the page.
NETWORKS = {
    ("plain", True): "plain with BN",
    ("plain", False): "plain without BN",
    ("resnet", True): "ResNet with BN",
    ("resnet", False): "ResNet without BN",
}
_HEALTHY = 0.1
"""Gradients are healthy if the first layers' norm is at least this fraction of the last layers'."""

_EPOCHS = 10
_SHOWN = (0, 1, 2, 5, 10)  # epochs
_IMAGES = 256
_KEPT = 1000  # checkpoints: more than a run writes
_WARMED = ", and a tenth of it until the training error is below 80 % (section 4.2)"
_LIMIT = 1e30  # norms are clipped to it before taking the logarithm


@dataclasses.dataclass(frozen=True)
class Moment:
    """After how many epochs a network was measured, and its `layer_norms` in the network's order."""

    epoch: float
    norms: Sequence[float]


# By network: one row of moments per seed.
Measured = Mapping[tuple[str, bool], Sequence[Sequence[Moment]]]


def report(setting: Setting, runs: Groups) -> tuple[list[Claim], list[Part]]:
    """The claims, and the norms by layer during training."""
    depth = setting.depths[-1]
    measured = _measure(setting, runs)
    errors = {network: [run.error("train") for run in found] for network, found in runs.items()}
    recipe = runs["plain", True][0].run.recipe
    body: list[Part] = [
        f"The first {recipe.epochs:g} epochs of the deepest networks on {recipe.train_split}, all at the "
        f"rate {recipe.learning_rate:g}{_WARMED if recipe.error_warmup_rate else ''}. At each moment the "
        f"gradient of the mean loss over the same {_IMAGES} training images is taken as training takes it: "
        "with the batch's statistics where there is normalization, and without weight decay.",
        "Gradients are called healthy here while the first third of the convolutions has at least "
        f"{_HEALTHY:g} of the last third's gradient norm, geometric means of both. What counts is a run's "
        f"worst moment: the start or the end of epoch {', '.join(map(str, _SHOWN[1:]))}, if any gradient is "
        "left then. Where no input gets through a network, all its convolutions' gradients are zero, which "
        "is no decay on the way back.",
    ]
    if any(measured.values()):
        body.append(
            Picture(
                "gradients-layers",
                _draw(measured),
                "Gradient norm against layer at several moments of training, and of the first layer over "
                "epochs",
                f"Norm of the gradient by layer ({depth} layers), mean of the logarithm over seeds; the band "
                "is one standard deviation. A run is shown as long as it has a gradient, and a finite loss.",
            )
        )
    body.append(_table(setting, measured, runs))
    failed = [run for found in runs.values() for run in found if run.failure is not None]
    if failed:
        reasons = " ".join(f"{run.run.name}: {(run.failure or '').split('; ')[0]}." for run in failed)
        body.append(f"Runs that diverged count as guessing in the training error. {reasons}")
    return claims(depth, measured, errors), body


def layer_norms(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The Euclidean norm of `training_loss`'s gradient for each convolution's kernel, in the model's order.

    The model outputs logits of preprocessed images, and is not changed.
    """
    convolutions: list[Any] = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    kernels = {layer.name: layer.kernel.value for layer in convolutions}
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(kernels.values()))
        loss = training_loss(model, images, labels)
    gradients: Any = tape.gradient(loss, kernels)
    return {name: float(tf.norm(tf.cast(gradient, tf.float64))) for name, gradient in gradients.items()}


def decay(norms: Sequence[float]) -> float:
    """The log10 of the first third's geometric mean over the last third's; negative for a decay backwards."""
    return reach(norms) - reach(norms[::-1])


def reach(norms: Sequence[float]) -> float:
    """The log10 of the geometric mean of the first third of the layers."""
    return float(np.mean(_logarithms(norms[: max(1, len(norms) // 3)])))


def claims(depth: int, measured: Measured, errors: Mapping[tuple[str, bool], Sequence[float]]) -> list[Claim]:
    """The claims about gradients, judged by each run's worst moment and last training error in %."""
    worst = {network: _least(decay, rows) for network, rows in measured.items()}
    first = {network: _least(reach, rows) for network, rows in measured.items()}
    least = Sample(float(np.log10(_HEALTHY)), 0.0, 1)
    error = {network: Sample.of(values) for network, values in errors.items()}
    with_bn, without, residual = ("plain", True), ("plain", False), ("resnet", True)
    untrained = any(len(row) < 2 for row in measured[with_bn])  # only the start is known
    lasting = FAILS if _lost(measured[with_bn]) else OPEN if untrained else HOLDS
    healthy = all_of([above(worst[with_bn], least, "decay, logarithm"), Judgment(lasting)])
    return [
        Claim(
            f"with batch normalization the gradients of plain-{depth} do not vanish",
            "checked, and found healthy (section 4.1)",
            _worst(measured[with_bn]),
            *healthy,
        ),
        Claim(
            f"so vanishing gradients are not why plain-{depth} trains worse than ResNet-{depth}",
            "the difficulty is unlikely to come from vanishing gradients (section 4.1)",
            f"training error {error[with_bn]} % against {error[residual]} %, with gradients as above",
            *all_of([healthy, above(error[with_bn], error[residual], "training error")]),
        ),
        Claim(
            f"without batch normalization the gradients of plain-{depth} vanish on their way to the first "
            "layers",
            "not measured; the usual account of why deep plain networks fail (section 1)",
            _worst(measured[without]),
            *above(least, worst[without], "decay, logarithm"),
        ),
        Claim(
            f"the gradient that reaches plain-{depth}'s first layers is smaller without batch normalization",
            "not measured",
            f"at worst: {_factor(first[without])} against {_factor(first[with_bn])} with it",
            *above(first[with_bn], first[without], "norm, logarithm"),
        ),
        Claim(
            f"without batch normalization plain-{depth} trains worse than with it",
            "not measured; all networks are normalized (section 3.4)",
            f"training error {error[without]} % against {error[with_bn]} %",
            *above(error[without], error[with_bn]),
        ),
    ]


def _run(setting: Setting, network: tuple[str, bool], seed: int) -> Run:
    """The ladder's run, but short, with a constant rate and a checkpoint of every epoch."""
    kind, batch_norm = network
    recipe = ladder_run(setting.short, kind, setting.depths[-1], seed).recipe
    overrides = recipe.model_overrides if batch_norm else {**recipe.model_overrides, "batch_norm": False}
    epochs = _EPOCHS if recipe.steps or setting.short_split else min(_EPOCHS, recipe.epochs)
    recipe = recipe.replace(model_overrides=overrides, steps=None, epochs=epochs, schedule="constant")
    name = f"gradients-{recipe.model}{'' if batch_norm else '-no_bn'}-seed{seed}"
    return Run(name, recipe, seed, keep=_KEPT)


def _measure(setting: Setting, runs: Groups) -> Measured:
    finished = [run for found in runs.values() for run in found if run.failure is None]
    if not finished:
        return {network: [] for network in runs}  # no weight file says how images were normalized
    # All runs have the same images, for they have the same dataset and preprocessing.
    dataset = open_dataset(setting.dataset, setting.data_dir)
    images, labels = network_images(finished[0], dataset, setting.recipe.train_split, _IMAGES)
    return {network: [_moments(run, images, labels) for run in found] for network, found in runs.items()}


def _moments(outcome: Outcome, images: np.ndarray, labels: np.ndarray) -> list[Moment]:
    """The gradient norms at initialization and at each shown epoch whose checkpoint exists."""
    recipe = outcome.run.recipe
    assert isinstance(recipe, ClassificationRecipe)
    model = initial_network(recipe, outcome.run.seed)
    moments = [Moment(0.0, list(layer_norms(model, images, labels).values()))]
    epochs = {row["step"]: row["epoch"] for row in outcome.history}
    for path in checkpoints.list_checkpoints(outcome.folder.checkpoints):
        try:
            checkpoint = checkpoints.load(path)
        except checkpoints.BrokenCheckpoint as error:
            raise RunFailed(f"{outcome.run.name}: {error}; delete its folder to train it again") from None
        if epochs.get(checkpoint.step) in _SHOWN:
            for variable in model.variables:
                variable.assign(checkpoint.arrays[f"weights/{variable.path}"])
            moments.append(Moment(epochs[checkpoint.step], list(layer_norms(model, images, labels).values())))
    return moments


def _logarithms(norms: Sequence[float]) -> np.ndarray:
    """Logarithms to base 10; zeros and overflowed norms are clipped."""
    known = np.nan_to_num(np.asarray(norms, "float64"), nan=_LIMIT, posinf=_LIMIT)
    return np.log10(np.clip(known, 1 / _LIMIT, _LIMIT))


def _living(row: Sequence[Moment]) -> list[Moment]:
    """The moments of a run at which any gradient is not zero."""
    return [moment for moment in row if np.any(moment.norms)]


def _lost(rows: Sequence[Sequence[Moment]]) -> int:
    """The number of runs with a moment at which all gradients are zero."""
    return sum(len(_living(row)) < len(row) for row in rows)


def _least(quantity: Callable[[Sequence[float]], float], rows: Sequence[Sequence[Moment]]) -> Sample:
    """The lowest value in each run, over the seeds."""
    return Sample.of(min(quantity(moment.norms) for moment in _living(row)) for row in rows if _living(row))


def _worst(rows: Sequence[Sequence[Moment]]) -> str:
    """The worst decay over the runs, in words."""
    lost = _lost(rows)
    ending = f"; in {lost} of {len(rows)} runs no layer gets any gradient at some moment" if lost else ""
    return f"first layers over last layers, at worst: {_factor(_least(decay, rows))}{ending}"


def _factor(sample: Sample) -> str:
    if not sample.count:
        return "not measured"
    spread = "" if np.isnan(sample.std) else f" ×/÷ {10**sample.std:.2g}"
    return f"{10**sample.mean:.2g}{spread}"


def _table(setting: Setting, measured: Measured, runs: Groups) -> Table:
    rows = []
    for network, name in NETWORKS.items():
        found = [living for living in map(_living, measured[network]) if living]
        starts = Sample.of(decay(row[0].norms) for row in found)
        ends = Sample.of(decay(row[-1].norms) for row in found)
        firsts = [Sample.of(_logarithms(row[i].norms)[0] for row in found) for i in (0, -1)]
        factors = map(_factor, (starts, _least(decay, found), ends, *firsts))
        error = Sample.of(run.error("train") for run in runs[network])
        diverged = f"{sum(run.failure is not None for run in runs[network])} of {len(runs[network])}"
        lost = f"{_lost(measured[network])} of {len(measured[network])}"
        rows.append([name, *factors, str(error), diverged, lost])
    header = [
        "network",
        "first over last layers: at the start",
        "at worst",
        "at the end",
        "first layer's norm: at the start",
        "at the end",
        "training error, %",
        "diverged",
        "lost all gradients",
    ]
    return Table(
        header,
        rows,
        f"{setting.dataset}, {setting.budget}: geometric means over seeds, with the factor of one standard "
        "deviation (×/÷). The end is the last measured moment at which there is any gradient.",
    )


def _draw(measured: Measured) -> bytes:
    figure = figures.new(height=9)
    grid = figure.add_gridspec(3, 2)
    first = None
    for place, (network, name) in enumerate(NETWORKS.items()):
        axes = first = figure.add_subplot(grid[place // 2, place % 2], sharey=first)
        for epoch, color in zip(_SHOWN, figures.colors(len(_SHOWN)), strict=True):
            living = [moment for row in measured[network] for moment in _living(row)]
            series = [_logarithms(moment.norms) for moment in living if moment.epoch == epoch]
            label = "at the start" if epoch == 0 else f"epoch {epoch}"
            figures.band(axes, range(1, len(series[0]) + 1 if series else 1), series, "-", color, label)
        axes.set(title=name, xlabel="convolution")
        _powers_of_ten(axes)
    figure.axes[0].legend(ncols=2)
    below = figure.add_subplot(grid[2, :])
    for (kind, batch_norm), name in NETWORKS.items():
        rows = [_living(row) for row in measured[kind, batch_norm]]
        epochs = sorted({moment.epoch for row in rows for moment in row})
        first_norms = [{moment.epoch: _logarithms(moment.norms)[0] for moment in row} for row in rows]
        series = [[norms.get(epoch, np.nan) for epoch in epochs] for norms in first_norms]
        color = "tab:blue" if kind == "plain" else "tab:orange"
        figures.band(below, epochs, series, "o-" if batch_norm else "s--", color, name)
    below.set(title="the first convolution over training", xlabel="epoch")
    _powers_of_ten(below)
    below.legend(ncols=4, loc="upper center")
    return figures.png(figure)


def _powers_of_ten(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"$10^{{{value:g}}}$")
    axes.set_ylabel("gradient norm")
    axes.grid(alpha=0.3)


EXPERIMENT = Experiment(
    name="gradients",
    title="Do gradients vanish in a deep plain network?",
    intro="Deep plain networks are said to fail because gradients weaken on their way to the first "
    "layers. He et al., 2015, say that with batch normalization they do not. Here are both, measured.",
    runs=lambda setting: per_seed(setting, NETWORKS, _run),
    report=report,
)
