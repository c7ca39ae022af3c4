"""Residual functions respond less than plain layers, and less the deeper the network: figure 7."""

import itertools
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from experiments import figures
from experiments.claims import Claim, Sample, above, all_of
from experiments.experiment import KINDS, Experiment, Groups, diverged, ladder
from experiments.networks import load_network, network_images
from experiments.page import Part, Picture, Table
from experiments.settings import Setting
from keras_resnet.data import open_dataset
from keras_resnet.errors import InputError
from keras_resnet.models.graph import recursion_limit

# By kind and depth: the responses of the layers in their order, one row per seed.
Responses = Mapping[tuple[str, int], Sequence[Sequence[float]]]

_IMAGES = 1000
_BATCH = 50


def report(setting: Setting, runs: Groups) -> tuple[list[Claim], list[Part]]:
    """Figure 7 with the networks of the ladder."""
    dataset = open_dataset(setting.dataset, setting.data_dir)
    measured: dict[tuple[str, int], list[list[float]]] = {key: [] for key in runs}
    for key, found in runs.items():
        for outcome in found:
            if outcome.failure is None:
                images, _ = network_images(outcome, dataset, dataset.test_split, _IMAGES)
                measured[key].append(list(responses(load_network(outcome), images).values()))
    body: list[Part] = [
        "A layer's response is the standard deviation of what a 3x3 convolution gives, after batch "
        "normalization and before the ReLU or the addition, over all positions and channels and up to "
        f"{_IMAGES:,} test images. In a residual network it says how much a block changes what it is given.",
        "Normalization gives every channel the deviation and mean that it has learned, 1 and 0 at the start. "
        "So before training all responses are near 1.",
        Picture(
            "layer-responses",
            _picture(measured),
            "Standard deviation of each layer's response, in the layers' order and sorted by size",
            "Responses of the trained networks' 3x3 layers; above in their order, below sorted by size. Mean "
            "over the seeds; the band is one standard deviation. Dashed: plain, solid: residual. Compare "
            "with figure 7 of the paper.",
        ),
        _table(setting, measured),
        *diverged(runs, "are left out"),
    ]
    return claims(setting.depths, measured), body


def responses(model: keras.Model, images: np.ndarray) -> dict[str, float]:
    """The response of each 3x3 convolution to preprocessed images (figure 7).

    Returns:
        The standard deviation of each batch normalization's output in inference, over all images, positions
        and channels, by layer name in the network's order.

    Raises:
        InputError: a 3x3 convolution is not followed by batch normalization.
    """
    layers = {layer.name: layer for layer in model.layers}
    outputs = {}
    for layer in layers.values():
        if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (3, 3):
            name = f"{layer.name.removesuffix('_conv')}_bn"
            if name not in layers:
                raise InputError(f"responses are measured behind batch normalization; {layer.name} has none")
            outputs[name] = layers[name].output
    with recursion_limit():
        inner = keras.Model(model.input, outputs)
    sums = {name: np.zeros(3) for name in outputs}  # of values and of their squares; their number
    for start in range(0, len(images), _BATCH):
        for name, values in inner(images[start : start + _BATCH], training=False).items():
            values = tf.cast(values, tf.float64)
            squares = tf.square(values)
            sums[name] += np.array([tf.reduce_sum(values), tf.reduce_sum(squares), tf.size(values)], float)
    means = {name: (total / count, squares / count) for name, (total, squares, count) in sums.items()}
    return {name: float(np.sqrt(max(0.0, square - mean**2))) for name, (mean, square) in means.items()}


def claims(depths: Sequence[int], measured: Responses) -> list[Claim]:
    """The claims of section 4.2 about figure 7, judged by the mean over a network's layers."""
    means = {key: Sample.of(map(np.mean, rows)) for key, rows in measured.items()}
    text = {key: _text(sample) for key, sample in means.items()}
    return [
        Claim(
            "residual networks have smaller responses than their plain twins, at every depth",
            "CIFAR-10: ResNets' responses are generally smaller (Fig. 7)",
            "mean over the layers, residual against plain: "
            + ", ".join(
                f"{depth}: {text['resnet', depth]} against {text['plain', depth]}" for depth in depths
            ),
            *all_of(
                above(means["plain", depth], means["resnet", depth], f"{depth} layers") for depth in depths
            ),
        ),
        Claim(
            "the deeper a residual network, the smaller its layers' responses",
            "CIFAR-10: ResNet-20, 56 and 110, in this order (Fig. 7)",
            "mean over the layers: " + ", ".join(f"{depth}: {text['resnet', depth]}" for depth in depths),
            *all_of(
                above(means["resnet", a], means["resnet", b], f"{a} and {b} layers")
                for a, b in itertools.combinations(depths, 2)
            ),
        ),
    ]


def _text(sample: Sample) -> str:
    # Responses start at 1, and a short training moves them by some percent.
    return f"{sample.mean:.3f}" if np.isnan(sample.std) else f"{sample.mean:.3f} ± {sample.std:.3f}"


def _table(setting: Setting, measured: Responses) -> Table:
    rows = []
    for (kind, depth), found in measured.items():
        samples = [Sample.of(map(statistic, found)) for statistic in (np.mean, np.median, np.min, np.max)]
        rows.append([f"{KINDS[kind]}-{depth}", *map(_text, samples)])
    header = ["network", "mean of the layers", "median", "smallest", "largest"]
    return Table(header, rows, f"{setting.dataset}, {setting.budget}: mean ± standard deviation over seeds.")


def _picture(measured: Responses) -> bytes:
    from matplotlib.ticker import LogLocator, NullLocator

    figure = figures.new(height=7)
    panels = figure.subplots(2, 1)
    depths = sorted({depth for _, depth in measured})
    colors = dict(zip(depths, figures.colors(len(depths)), strict=True))
    titles = ("layers in their order", "layers sorted by their response")
    for axes, title in zip(panels, titles, strict=True):
        for (kind, depth), found in measured.items():
            series = [sorted(row, reverse=True) if axes is panels[1] else row for row in found]
            x = range(1, len(series[0]) + 1) if series else []
            style = "--" if kind == "plain" else "-"
            figures.band(axes, x, series, style, colors[depth], f"{KINDS[kind]}-{depth}")
        axes.set(title=title, xlabel="layer", ylabel="standard deviation")
        values = [value for found in measured.values() for row in found for value in row]
        if values and 0 < 3 * min(values) < max(values):
            # The first layers of deep plain nets can dwarf all others.
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.9 * min(values))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    panels[0].legend(ncols=2)
    return figures.png(figure)


EXPERIMENT = Experiment(
    name="layer_responses",
    title="Residual layers respond less than plain ones",
    intro="He et al., 2015: if what a network needs is near the identity, its residual functions should "
    "be small, and the smaller the more of them there are.",
    runs=ladder,
    report=report,
)
