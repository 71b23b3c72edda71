"""Gradient-inversion attacks: a batch of samples at once beside the same attacks one sample at a time.

    python -m benchmarks.attacks --models lenet-28 --data mnist_test.npz

Both do the same steps from the same starts; seconds are per sample, the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.models import Case
from benchmarks.options import Printer, Settings, make_parser, read_settings
from benchmarks.tables import Spread, Table
from benchmarks.timing import median_ratio, take_turns
from benchmarks.work import load
from riskaudit.attacks import ATTACKS, Attack, Observation, Reconstruction
from riskaudit.jacobian import jacobian_maker
from riskaudit.priors import IsotropicPrior
from riskaudit.release import ReleaseSpec

COLUMNS = {
    "attack": "attack",
    "steps": "steps",
    "batch": "at once, s per sample",
    "single": "one at a time, s per sample",
    "ratio": "times faster at once",
    "difference": "largest difference of inputs",
}
DEFAULT_MODELS = ("lenet-28",)
# Attacks by one optimisation of all samples; their starts can be made the same in any batch.
DEFAULT_ATTACKS = ("dlg", "inverting-gradients", "bayes")
STEPS, QUICK_STEPS = 50, 3


@dataclass(frozen=True)
class Work:
    """What is measured of one model.

    Attributes:
        observation: of all samples.
        attack: with its settings.
    """

    observation: Observation
    attack: Attack

    def at_once(self) -> Reconstruction:
        """One run on all samples."""
        return self.attack.run(self.observation, torch.Generator().manual_seed(0))

    def one_at_a_time(self) -> list[Reconstruction]:
        """One run for each sample."""
        parts = [self.observation.select([index]) for index in range(len(self.observation))]
        return [self.attack.run(part, torch.Generator().manual_seed(0)) for part in parts]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--attacks", nargs="+", choices=DEFAULT_ATTACKS, default=list(DEFAULT_ATTACKS))
    parser.add_argument("--steps", type=int, help=f"of every attack (default: {STEPS})")
    options = parser.parse_args(arguments)
    if not options.models and not options.quick:
        options.models = list(DEFAULT_MODELS)
    settings, cases = read_settings(options)
    printer = Printer("Attacks on a batch", settings)
    for case in cases:
        printer.add(compare(case, settings, options))
    printer.finish(options.json)


def compare(case: Case, settings: Settings, options: argparse.Namespace) -> Table:
    """The table of one model."""
    size = settings.size(case)
    steps = options.steps or (QUICK_STEPS if settings.quick else STEPS)
    observation, source = observe(case, size, settings)
    table = Table(f"{case.name}, B = {size}, {source}", COLUMNS)
    for name in options.attacks:
        settings_of_attack: dict[str, Any] = {"steps": steps, "restarts": 1, "start": "mean"}
        attack = replace(ATTACKS[name](), **settings_of_attack)  # type: ignore[type-var]
        table.rows.append(_row(Work(observation, attack), steps, settings))
    table.notes.append("Undefended gradients, labels known; every attack starts at the prior's mean.")
    return table


def observe(case: Case, size: int, settings: Settings, description: str = "gradient") -> tuple[Observation, str]:
    """What the attacker sees of a release, and where the inputs come from."""
    release, batch, source = load(case.name, size, settings)
    release = release.with_spec(ReleaseSpec.parse(description))
    observation = Observation(
        released=release.observe(batch, torch.Generator().manual_seed(0)).detach(),
        jacobian=jacobian_maker(release, batch),
        input_shape=case.shape,
        prior=IsotropicPrior.fit(batch.inputs),
        targets=batch.targets,
        input_range=(0.0, 1.0),
    )
    return observation, source


def _row(work: Work, steps: int, settings: Settings) -> dict[str, Any]:
    functions = {"batch": work.at_once, "single": work.one_at_a_time}
    times = take_turns(functions, settings.repeats, settings.torch_device)
    count = len(work.observation)
    seconds = {name: [time / count for time in values] for name, values in times.items()}
    together, alone = work.at_once(), work.one_at_a_time()
    difference = (together.inputs - torch.cat([part.inputs for part in alone])).abs().max()
    return {
        "attack": work.attack.name,
        "steps": steps,
        **{name: Spread.of(values) for name, values in seconds.items()},
        "seconds per sample": seconds,
        "ratio": median_ratio(seconds["single"], seconds["batch"]),
        "difference": float(difference),
    }


if __name__ == "__main__":
    main()
