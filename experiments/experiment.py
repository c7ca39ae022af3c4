"""`Experiment`: the runs that a group of claims needs, and how they are reported."""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from experiments.claims import Claim
from experiments.page import Part, Section
from experiments.runs import Outcome, Outcomes, Run, ladder_run
from experiments.settings import SETTINGS, Setting, Settings

KINDS = {"plain": "plain", "resnet": "ResNet"}
"""The two kinds of networks, and how a page names them."""

# What a report measures, by network or option: one outcome per seed.
Groups = Mapping[Any, Sequence[Outcome]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A group of claims.

    Attributes:
        name: name of its page's folder, and the anchor of its section.
        runs: returns the training runs of a setting in groups, usually one per network with a run per seed.
        report: returns the claims and the body of the section, from the outcomes in the same groups.
        settings: its settings by dataset and budget.
    """

    name: str
    title: str
    intro: str
    runs: Callable[[Setting], Mapping[Any, Sequence[Run]]]
    report: Callable[[Setting, Groups], tuple[Sequence[Claim], Sequence[Part]]]
    settings: Settings = dataclasses.field(default_factory=lambda: SETTINGS)

    def plan(self, setting: Setting) -> list[Run]:
        """All runs that the setting needs."""
        return [run for group in self.runs(setting).values() for run in group]

    def section(self, setting: Setting, outcomes: Outcomes) -> Section:
        """The section of the page, from the outcomes of `plan`."""
        groups = {key: [outcomes[run] for run in group] for key, group in self.runs(setting).items()}
        claims, body = self.report(setting, groups)
        return Section(self.title, claims, body, self.name)


def per_seed(
    setting: Setting, keys: Iterable[Hashable], run: Callable[[Setting, Any, int], Run]
) -> dict[Any, list[Run]]:
    """Groups of runs: for each key, `run(setting, key, seed)` for every seed."""
    seeds = range(setting.first_seed, setting.first_seed + setting.seeds)
    return {key: [run(setting, key, seed) for seed in seeds] for key in keys}


def ladder(setting: Setting) -> dict[tuple[str, int], list[Run]]:
    """The ladder's runs by kind ("plain", "resnet") and depth."""
    keys = itertools.product(KINDS, setting.depths)
    return per_seed(setting, keys, lambda setting, key, seed: ladder_run(setting, key[0], key[1], seed))


def diverged(groups: Groups, consequence: str) -> list[str]:
    """A sentence about the runs whose loss was not finite, and the consequence; none without such runs."""
    names = [run.run.name for group in groups.values() for run in group if run.failure is not None]
    sentence = f"These runs stopped because the loss was not finite, and {consequence}: "
    return [f"{sentence}{', '.join(names)}."] if names else []
