"""Do better classifiers make better detectors? Section 4.3, appendix A, tables 7 and 8."""

import itertools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import figures
from experiments.claims import FAILS, HOLDS, OPEN, Claim, Judgment, Sample, Verdict, above, not_above, welch
from experiments.experiment import KINDS, Experiment, Groups, diverged, per_seed
from experiments.page import Part, Picture, Table
from experiments.paper_results import TABLE_2, TABLE_7, TABLE_8
from experiments.runs import Outcome, Run
from experiments.settings import DETECTION_SETTINGS, Setting
from keras_resnet.detection import load_detector, open_detection_dataset
from keras_resnet.detection.drawing import draw_boxes, save_contact_sheet

# The targets were set after a pilot with another seed; docs/experiments.md has its numbers.
_GAIN = 10.0
"""The least gain in mAP at IoU .5, %, by which pretraining helps."""
_BEST = 80.0
"""The least mAP at IoU .5, %, of the best detector."""
_CORRELATION = 0.8
"""The least rank correlation of the classifiers' accuracy and the detectors' mAP."""

_SCENES = 4  # that are drawn
_SCORE = 0.5  # detections with lower scores are not drawn

# Roles of a run: a classifier, the detector with its weights, and the detector from random weights.
CLASSIFIER, PRETRAINED, SCRATCH = "classifier", "pretrained", "scratch"
Arm = tuple[str, str, int]
"""Role, kind ("plain", "resnet") and depth."""


def report(setting: Setting, groups: Groups) -> tuple[list[Claim], list[Part]]:
    """The detectors beside the classifiers that their backbones come from."""
    accuracies = {
        arm[1:]: _measured(found, "val_top1", 0.1) for arm, found in groups.items() if _is(arm, CLASSIFIER)
    }
    maps = {
        arm: _measured(found, "val_map50", 0) for arm, found in groups.items() if not _is(arm, CLASSIFIER)
    }
    seeds = "one seed" if setting.seeds == 1 else f"{setting.seeds} seeds"
    detector = setting.detector
    assert detector is not None
    body: list[Part] = [
        f"Classifiers are trained on {setting.dataset}. Faster R-CNN detectors (C4) with their weights are "
        f"then trained on the same scenes, {detector.train_split} of {detector.dataset}, and evaluated on "
        f"{detector.val_split}, with other objects and another photo as background. The detectors differ in "
        "their backbones and initial weights only. Unlike in appendix A, no layer is frozen, and batch "
        "normalization is trained, too, because scenes are far from the images of the classifiers.",
        Picture(
            "detection-curves",
            _curves(groups),
            "mAP at IoU .5 over epochs by backbone, and mAP against the accuracy of the classifier",
            f"Left: mAP at IoU .5 on test scenes over training, mean of {seeds}; the band is one standard "
            "deviation. Right: each detector against the classifier that its backbone comes from.",
        ),
        _table(setting, groups),
        *_drawn(setting, groups),
        _paper_table(),
        "The paper's images are photographs, and VGG-16 differs from ResNet-101 in more than its depth: "
        "compare the order of the backbones, not the mAP.",
        *diverged(groups, "count as guessing, or as mAP 0"),
    ]
    return claims(setting.depths, accuracies, maps), body


def claims(
    depths: Sequence[int],
    accuracies: Mapping[tuple[str, int], Sequence[float]],
    maps: Mapping[Arm, Sequence[float]],
) -> list[Claim]:
    """The claims about detectors.

    Args:
        depths: rising; the first and the last are compared.
        accuracies: top-1 accuracy of the classifiers, %, one per seed, by kind and depth.
        maps: mAP at IoU .5, %, one per seed, by role, kind and depth.
    """
    first, last = depths[0], depths[-1]
    samples = {arm: Sample.of(values) for arm, values in maps.items()}
    shallow, deep = samples[PRETRAINED, "resnet", first], samples[PRETRAINED, "resnet", last]
    plain, deep_plain = samples[PRETRAINED, "plain", first], samples[PRETRAINED, "plain", last]
    arms = [arm for arm in samples if _is(arm, PRETRAINED)]
    best = max(arms, key=lambda arm: samples[arm].mean)
    correlation = rank_correlation(
        [statistics.fmean(accuracies[arm[1:]]) for arm in arms], [samples[arm].mean for arm in arms]
    )
    several = shallow.count > 1
    coco, voc = ({net: row[0] for net, row in table.items()} for table in (TABLE_8, TABLE_7))
    return [
        Claim(
            f"pretraining helps: a classifier's weights raise ResNet-{first}'s mAP at IoU .5 by at least "
            f"{_GAIN:g} points, and each of its seeds above all from random weights",
            "not measured: all detectors start from classifiers of ImageNet (appendix A)",
            f"{shallow} % against {samples[SCRATCH, 'resnet', first]} %",
            *gains(maps[PRETRAINED, "resnet", first], maps[SCRATCH, "resnet", first], _GAIN),
        ),
        Claim(
            f"a deeper residual backbone detects at least as well: ResNet-{last} is not below ResNet-{first}",
            f"ResNet-101 against VGG-16: {voc['ResNet-101']} % against {voc['VGG-16']} % on VOC 2007 "
            f"(Table 7), {coco['ResNet-101']} % against {coco['VGG-16']} % on COCO, and +6.0 averaged over "
            "IoU .5 to .95 (Table 8)",
            f"{deep} % against {shallow} %",
            *not_above(shallow, deep),
        ),
        Claim(
            f"a deeper plain backbone does not: plain-{last} is below plain-{first}",
            f"not measured; plain-34 classifies worse than plain-18: top-1 error {TABLE_2['plain', 34]} % "
            f"against {TABLE_2['plain', 18]} % (Table 2)",
            f"{deep_plain} % against {plain} %",
            *above(plain, deep_plain),
        ),
        Claim(
            f"better classifiers make better detectors: the rank correlation of accuracy and mAP over "
            f"{len(arms)} backbones is at least {_CORRELATION:g}",
            "the gain on COCO is solely due to the learned representations (section 4.3)",
            f"{correlation:.2f}",
            _reaches(correlation, _CORRELATION, several),
        ),
        Claim(
            f"the best detector reaches an mAP of {_BEST:g} % at IoU .5",
            f"{coco['ResNet-101']} % with ResNet-101 on COCO (Table 8)",
            f"{samples[best]} % with {_name(best)}",
            _reaches(samples[best].mean, _BEST, several),
        ),
    ]


def gains(better: Sequence[float], worse: Sequence[float], least: float) -> Judgment:
    """Whether the means differ by at least `least`, and each value of `better` is above all of `worse`.

    `FAILS` if the means differ by less; `OPEN` if only the ranges overlap, and for single seeds.
    """
    apart = min(better) > max(worse) and len(better) > 1 < len(worse)
    is_less = statistics.fmean(better) - statistics.fmean(worse) < least
    verdict = FAILS if is_less else HOLDS if apart else OPEN
    return Judgment(verdict, (welch(Sample.of(better), Sample.of(worse)),))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank. NaN if all values of one are equal."""
    try:
        return statistics.correlation(_ranks(first), _ranks(second))
    except statistics.StatisticsError:
        return float("nan")


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def _reaches(value: float, target: float, several: bool) -> Verdict:
    """Whether a number reaches a target; `OPEN` for NaN and for single seeds."""
    return OPEN if value != value or not several else HOLDS if value >= target else FAILS


def _is(arm: Arm, role: str) -> bool:
    return arm[0] == role


def _name(arm: Arm) -> str:
    role, kind, depth = arm
    return f"{KINDS[kind]}-{depth}" + ", from scratch" * (role == SCRATCH)


def _measured(runs: Sequence[Outcome], column: str, guessed: float) -> list[float]:
    return [100 * run.last(column, guessed) for run in runs]


def _runs(setting: Setting) -> dict[Arm, list[Run]]:
    networks = list(itertools.product(KINDS, setting.depths))
    arms = [(role, *network) for role in (CLASSIFIER, PRETRAINED) for network in networks]
    return per_seed(setting, [*arms, (SCRATCH, "resnet", setting.depths[0])], _run)


def _run(setting: Setting, arm: Arm, seed: int) -> Run:
    role, kind, depth = arm
    network = f"cifar_{kind}{depth}"
    name = f"detection-{role}-{network}-seed{seed}"
    if role == CLASSIFIER:
        return Run(name, setting.recipe.replace(model=network), seed)
    assert setting.detector is not None
    overrides = dict(setting.detector.model_overrides)
    if setting.recipe.model_overrides:
        overrides["network"] = setting.recipe.model_overrides
    changes: dict[str, Any] = {"model": f"faster_rcnn_{network}_c4", "model_overrides": overrides}
    if role == SCRATCH:
        return Run(name, setting.detector.replace(**changes), seed)
    backbone = _run(setting, (CLASSIFIER, kind, depth), seed)
    changes["backbone_weights"] = f"{backbone.name}/model.weights.h5"
    return Run(name, setting.detector.replace(**changes), seed, after=backbone)


def _table(setting: Setting, groups: Groups) -> Table:
    rows = []
    for arm, found in groups.items():
        role, kind, depth = arm
        if role == CLASSIFIER:
            continue
        classifiers = groups[CLASSIFIER, kind, depth] if role == PRETRAINED else []
        seconds = statistics.fmean(run.seconds for run in found)
        rows.append(
            [
                _name(arm),
                str(Sample.of(_measured(classifiers, "val_top1", 0.1))) if classifiers else "random weights",
                *(str(Sample.of(_measured(found, column, 0))) for column in ("val_map50", "val_map")),
                f"{statistics.fmean(run.seconds for run in classifiers):,.0f}" if classifiers else "0",
                f"{seconds:,.0f}",
            ]
        )
    header = [
        "backbone",
        f"accuracy on {setting.dataset}, %",
        "mAP at IoU .5, %",
        "mAP, IoU .5 to .95, %",
        "classifier, s per run",
        "detector, s per run",
    ]
    return Table(header, rows, f"{setting.dataset}, {setting.budget}: mean ± standard deviation over seeds.")


def _paper_table() -> Table:
    rows = [[net, *(f"{value:.1f}" for value in (*TABLE_7[net], *TABLE_8[net]))] for net in TABLE_7]
    columns = zip(*(row[1:] for row in rows), strict=True)
    rows.append(["gain", *(f"+{float(b) - float(a):.1f}" for a, b in columns)])
    header = ["paper: backbone", "VOC 2007, %", "VOC 2012, %", "COCO, IoU .5, %", "COCO, IoU .5 to .95, %"]
    return Table(header, rows, "The paper's mAP of Faster R-CNN (Tables 7 and 8).")


def _curves(groups: Groups) -> bytes:
    figure = figures.new()
    left, right = figure.subplots(1, 2)
    detectors = [arm for arm in groups if not _is(arm, CLASSIFIER)]
    depths = sorted({depth for _, _, depth in detectors})
    colors = dict(zip(depths, figures.colors(len(depths)), strict=True))
    for arm in detectors:
        role, kind, depth = arm
        runs = [run for run in groups[arm] if run.history]
        epochs = max(([row["epoch"] for row in run.history] for run in runs), key=len, default=[])
        series = [[100 * row["val_map50"] for row in run.history] for run in runs]
        color = "C3" if role == SCRATCH else colors[depth]
        figures.band(left, epochs, series, "--" if kind == "plain" else "-", color, _name(arm))
        if role == PRETRAINED:
            x = _measured(groups[CLASSIFIER, kind, depth], "val_top1", 0.1)
            y = _measured(groups[arm], "val_map50", 0)
            right.plot(x, y, "s" if kind == "plain" else "o", color=color, label=_name(arm))
    left.set(xlabel="epoch", ylabel="mAP at IoU .5, %", ylim=(0, 100))
    right.set(xlabel="top-1 accuracy of the classifier, %", ylabel="mAP at IoU .5, %")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    return figures.png(figure)


def _drawn(setting: Setting, groups: Groups) -> list[Picture]:
    """The objects of some test scenes, and those that a pretrained and a scratch detector find."""
    assert setting.detector is not None
    network = ("resnet", setting.depths[0])
    outcomes = {"pretrained": groups[PRETRAINED, *network][0], "from scratch": groups[SCRATCH, *network][0]}
    if any(outcome.failure is not None for outcome in outcomes.values()):
        return []
    dataset = open_detection_dataset(setting.detector.dataset, setting.data_dir)
    split = dataset.split(setting.detector.val_split or "test")
    chosen = [index for index, objects in enumerate(split.objects) if len(objects)][:_SCENES]
    images = [split.read_image(index) for index in chosen]
    names = split.class_names
    pictures = [
        draw_boxes(image, split.objects[index].boxes, split.objects[index].labels, names)
        for image, index in zip(images, chosen, strict=True)
    ]
    captions = ["annotated"] * len(images)
    for caption, outcome in outcomes.items():
        for image, found in zip(images, load_detector(outcome.folder.weights).detect(images), strict=True):
            sure = found.above(_SCORE)
            pictures.append(draw_boxes(image, sure.boxes, sure.labels, names, sure.scores))
            captions.append(caption)
    name = _name((PRETRAINED, *network))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scenes.png")
        save_contact_sheet(pictures, captions, f"{name} on test scenes", path)
        content = path.read_bytes()
    text = f"Objects in test scenes, and detections of {name} with scores above {_SCORE:g}"
    caption = f"{text} (seed {setting.first_seed}), pretrained and from random weights."
    return [Picture("detection-scenes", content, text, caption)]


EXPERIMENT = Experiment(
    name="detection",
    title="Better classifiers make better detectors",
    intro="He et al., 2015: with ResNet-101 instead of VGG-16 as its backbone, and no other change, Faster "
    "R-CNN gains 28 % in relative terms on COCO, solely due to the learned representations.",
    runs=_runs,
    report=report,
    settings=DETECTION_SETTINGS,
)
