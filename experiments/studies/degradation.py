"""Deeper plain networks get worse, residual networks do not: figures 1, 4 and 6, tables 2 and 6."""

import itertools
import statistics
from collections.abc import Sequence

import numpy as np

from experiments import figures
from experiments.claims import Claim, Sample, above, all_of, not_above
from experiments.experiment import KINDS, Experiment, Groups, diverged, ladder
from experiments.page import Part, Picture, Table
from experiments.paper_results import FIGURE_6_PLAIN_110, TABLE_2, TABLE_6, TABLE_6_110
from experiments.runs import WARMED_DEPTH
from experiments.settings import Setting
from keras_resnet import build_model
from keras_resnet.models.complexity import complexity

# By kind ("plain", "resnet") and depth.
Errors = dict[tuple[str, int], Sample]

# What the paper measured on CIFAR-10, where it does not only show it in figure 6.
_PAPER = {("resnet", depth): f"{error:.2f}" for depth, error in TABLE_6.items()}
_PAPER["resnet", 110] += f" ({TABLE_6_110})"
_PAPER["plain", 110] = f"> {FIGURE_6_PLAIN_110}"


def report(setting: Setting, runs: Groups) -> tuple[list[Claim], list[Part]]:
    """The claims, the curves and the table."""
    errors = {
        split: {key: Sample.of(run.error(split) for run in found) for key, found in runs.items()}
        for split in ("train", "val")
    }
    seeds = "one seed" if setting.seeds == 1 else f"{setting.seeds} seeds"
    body: list[Part] = [
        Picture(
            "degradation",
            _talk(setting, errors["val"]),
            "Test error against depth: plain nets and residual nets here, and the paper's residual nets",
            f"Test error on {setting.dataset} against depth, mean of {seeds} (the bars are one standard "
            "deviation). In gray, at its own scale on the right: the paper's residual nets on CIFAR-10 "
            "(Table 6). The paper prints no errors of its plain nets on CIFAR-10; Figure 6 shows them rise "
            "with depth.",
        ),
        "A plain net and its residual twin (shortcut option A) have the same parameters. With the same seed "
        "they start from the same weights and see the same images in the same order at the same rates.",
        Picture(
            "degradation-curves",
            _curves(runs),
            "Training and test error over epochs, plain nets on the left, residual nets on the right",
            f"Error over training, mean of {seeds} (the band is one standard deviation). Dashed: training "
            "error, solid: test error. Compare with figures 4 and 6 of the paper.",
        ),
        Picture(
            "degradation-depth",
            _by_depth(setting.depths, errors),
            "Last training and test error against depth, for plain and residual nets",
            "The last epoch's error against depth.",
        ),
        _table(setting, runs, errors),
        *_remarks(setting, runs),
    ]
    return claims(setting.depths, errors["train"], errors["val"]), body


def claims(depths: Sequence[int], train: Errors, test: Errors) -> list[Claim]:
    """The paper's claims about plain and residual networks of rising depths, judged by errors in %."""
    first, last = depths[0], depths[-1]
    plain, deep_plain = train["plain", first], train["plain", last]
    resnet, deep_resnet = train["resnet", first], train["resnet", last]
    return [
        Claim(
            f"plain-{last}'s training error is higher than plain-{first}'s: depth alone makes training fail",
            "ImageNet: plain-34 above plain-18 throughout (Fig. 4; top-1 error on validation "
            f"{TABLE_2['plain', 34]} % against {TABLE_2['plain', 18]} %, Table 2); CIFAR-10: Fig. 6, left",
            f"{deep_plain} % against {plain} %",
            *above(deep_plain, plain),
        ),
        Claim(
            f"ResNet-{last}'s training error is not higher than ResNet-{first}'s",
            f"ImageNet: ResNet-34 below ResNet-18 (Fig. 4; {TABLE_2['resnet', 34]} % against "
            f"{TABLE_2['resnet', 18]} %, Table 2); CIFAR-10: Fig. 6, middle",
            f"{deep_resnet} % against {resnet} %",
            *not_above(deep_resnet, resnet),
        ),
        Claim(
            f"at {last} layers the residual net's training error is lower than its plain twin's, with not "
            "one parameter more",
            "Fig. 4; Fig. 6, left and middle",
            f"{deep_resnet} % against {deep_plain} %",
            *above(deep_plain, deep_resnet),
        ),
        Claim(
            f"the gain carries over to test images: ResNet-{last}'s test error is lower than plain-{last}'s",
            f"ImageNet, 34 layers: {TABLE_2['resnet', 34]} % against {TABLE_2['plain', 34]} % (Table 2); "
            f"CIFAR-10: plain-110 above {FIGURE_6_PLAIN_110} % (Fig. 6), ResNet-110 {TABLE_6[110]} % (Table "
            "6)",
            f"{test['resnet', last]} % against {test['plain', last]} %",
            *above(test["plain", last], test["resnet", last]),
        ),
        Claim(
            "the deeper the residual net, the lower its test error",
            "CIFAR-10: "
            + ", ".join(f"{depth}: {TABLE_6[depth]} %" for depth in (20, 32, 44, 56, 110))
            + " (Table 6)",
            ", ".join(f"{depth}: {test['resnet', depth]} %" for depth in depths),
            *all_of(
                above(test["resnet", a], test["resnet", b], f"{a} and {b} layers")
                for a, b in itertools.combinations(depths, 2)
            ),
        ),
    ]


def _table(setting: Setting, runs: Groups, errors: dict[str, Errors]) -> Table:
    rows = []
    for (kind, depth), found in runs.items():
        cost = complexity(build_model(f"cifar_{kind}{depth}", input_shape=(32, 32, 3)))
        rows.append(
            [
                f"{KINDS[kind]}-{depth}",
                f"{cost.parameters:,}",
                *(str(errors[split][kind, depth]) for split in ("train", "val")),
                _PAPER.get((kind, depth), "Fig. 6"),
                f"{statistics.fmean(run.seconds for run in found):,.0f}",
            ]
        )
    header = [
        "network",
        "parameters",
        "training error, %",
        "test error, %",
        "paper: CIFAR-10 test, %",
        "training, s per run",
    ]
    return Table(header, rows, f"{setting.dataset}, {setting.budget}: mean ± standard deviation over seeds.")


def _remarks(setting: Setting, runs: Groups) -> list[str]:
    remarks = diverged(runs, "count as guessing")
    if max(setting.depths) >= WARMED_DEPTH:
        remarks.append(
            f"Networks of {WARMED_DEPTH} layers begin at a tenth of the rate until the training error is "
            "below 80 %, as in section 4.2."
        )
    if setting.dataset != "cifar10":
        remarks.append(
            "The paper's numbers are for CIFAR-10 and ImageNet: compare the order of the networks, not their "
            "errors."
        )
    return remarks


def _curves(runs: Groups) -> bytes:
    figure = figures.new()
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("plain nets", "residual nets")
    colors = figures.colors(len({depth for _, depth in runs}))
    for axes, title, (kind, name) in zip(panels, titles, KINDS.items(), strict=True):
        depths = [depth for found, depth in runs if found == kind]
        for depth, color in zip(depths, colors, strict=True):
            figures.error_curves(axes, runs[kind, depth], "train", "--", color, None)
            figures.error_curves(axes, runs[kind, depth], "val", "-", color, f"{name}-{depth}")
        axes.set(title=title, xlabel="epoch")
        axes.legend(loc="upper right")
    panels[0].set(ylabel="error, %", ylim=(0, 100))
    return figures.png(figure)


def _talk(setting: Setting, test: Errors) -> bytes:
    """One picture for a talk: what depth does to both kinds of networks, and the paper's curve behind it."""
    from matplotlib.patheffects import withStroke

    figure = figures.new(height=5)
    axes = figure.subplots()
    behind = axes.twinx()
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    depths = setting.depths
    theirs = {depth: error for depth, error in TABLE_6.items() if depth <= max(56, depths[-1])}
    name = "He et al.'s residual nets on CIFAR-10 (right scale)"
    behind.plot(*zip(*theirs.items(), strict=True), "D--", color="0.75", linewidth=2, label=name)
    behind.set(ylim=(-0.9, 9))
    behind.set_ylabel("the paper's test error (Table 6), %", color="0.5")
    behind.tick_params(axis="y", colors="0.5")
    styles = {"plain": ("plain nets", "s", "C3", 12), "resnet": ("residual nets", "o", "C0", -20)}
    for kind, (name, marker, color, offset) in styles.items():
        samples = [test[kind, depth] for depth in depths]
        means, spreads = [s.mean for s in samples], np.nan_to_num([s.std for s in samples])
        line = {"marker": marker, "color": color, "linewidth": 3, "markersize": 9, "capsize": 5}
        axes.errorbar(depths, means, spreads, label=name, **line)
        for depth, mean in zip(depths, means, strict=True):
            # The last plain net's bar is long.
            shift, side = (-12, "right") if (kind, depth) == ("plain", depths[-1]) else (0, "center")
            text = axes.annotate(
                f"{mean:.1f} %", (depth, mean), (shift, offset), textcoords="offset points", ha=side
            )
            text.set(
                color=color,
                fontsize=12,
                weight="bold",
                path_effects=[withStroke(linewidth=4, foreground="white")],
            )
    axes.margins(x=0.08, y=0.2)
    axes.set_ylim(bottom=-0.1 * axes.get_ylim()[1])  # room for the labels; both axes have the same zero
    axes.set_xlabel("weighted layers", fontsize=12)
    axes.set_ylabel(f"test error on {setting.dataset}, %", fontsize=12)
    axes.set_title("The same layers, the same parameters: only the shortcuts differ", fontsize=14)
    axes.set_xticks(depths)
    handles = [*axes.get_legend_handles_labels()[0], *behind.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=11, loc="center left", bbox_to_anchor=(0.03, 0.55), frameon=False)
    return figures.png(figure)


def _by_depth(depths: Sequence[int], errors: dict[str, Errors]) -> bytes:
    figure = figures.new(height=3.5)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"train": "training error", "val": "test error"}
    for axes, (split, title) in zip(panels, titles.items(), strict=True):
        for (kind, name), marker in zip(KINDS.items(), "so", strict=True):
            samples = [errors[split][kind, depth] for depth in depths]
            means, spreads = [s.mean for s in samples], np.nan_to_num([s.std for s in samples])
            axes.errorbar(depths, means, spreads, marker=marker, capsize=4, label=name)
        axes.set(title=title, xlabel="weighted layers", xticks=depths)
        axes.legend()
    panels[0].set(ylabel="error, %", ylim=(0, None))
    return figures.png(figure)


EXPERIMENT = Experiment(
    name="degradation",
    title="Deeper plain nets get worse; residual nets do not",
    intro="He et al., 2015: stacking more layers makes a plain network train worse, and it is not "
    "overfitting, for the training error rises. With shortcuts the same stacks train.",
    runs=ladder,
    report=report,
)
