"""The positive control of attacks.

Attacks must reconstruct what is known to be reconstructible, else they prove nothing: their positive control is an
undefended lenet with weights uniform in (-0.5, 0.5), the network and initialization on which gradient inversion was
shown first (Zhu et al., NeurIPS 2019), on handwritten digits that come with the package.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from riskaudit.attacks import Attack, AttackNotApplicable
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import Client, make_client
from riskaudit.engine import Trial
from riskaudit.inputs import load_samples
from riskaudit.inputs.architectures.convolutional import WIDTH, LeNet
from riskaudit.linalg import Deadline
from riskaudit.metrics.pixels import mean_squared_error
from riskaudit.studies.attacking import Target, reconstruct
from riskaudit.studies.budget import UNLIMITED, Budget
from riskaudit.studies.rows import Control

NUM_SAMPLES = 4
# Median RMSE of pixels in [0, 1] that the best attack has to reach: far below the 0.3 of a blind guess.
LIMIT = 0.05
# Strongest first, so that the others need not run.
ORDER = ("gauss-newton", "inverting-gradients", "dlg")


def control_order(attacks: Mapping[str, Attack]) -> list[str]:
    """The attacks that the control tries, in order, until one passes; those started at the truth don't count."""
    return sorted(
        (name for name, attack in attacks.items() if not attack.oracle_start),
        key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER),
    )


def control_target(settings: AuditSettings, deadline: Deadline | None = None) -> Target:
    """The control's undefended network and digits."""
    plain = AuditSettings(dtype=settings.dtype, device=settings.device, seed=settings.seed, loss="cross-entropy")
    path = Path(str(files("riskaudit").joinpath("demo", "digits.npz")))
    samples = replace(load_samples(path, channels=1, limit=NUM_SAMPLES), name="digits")
    generator = torch.Generator().manual_seed(settings.seed)
    # 8 x 8 digits leave a quarter of each side after the strides.
    model = LeNet(channels=1, features=WIDTH * 4, classes=10)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return Target.of(make_client(model.eval(), samples, plain), None, labels_known=True, deadline=deadline)


def control(attacks: Mapping[str, Attack], settings: AuditSettings, deadline: Deadline | None = None) -> Control:
    """Whether one of the attacks reconstructs; those started at the truth don't count.

    Raises:
        OutOfTimeError: the deadline came first.
    """
    names = control_order(attacks)
    if not names:
        return Control(status="skipped", rmse=None, reason="every attack chosen is started at the truth")
    target = control_target(settings, deadline)
    samples = target.client.samples
    indices = list(range(len(samples)))
    best: tuple[float, str] | None = None
    for name in names:
        try:
            reconstruction = reconstruct(attacks[name], target, indices)
        except AttackNotApplicable:
            continue
        errors = mean_squared_error(reconstruction.inputs, target.client.batch(indices).inputs).sqrt()
        median = statistics.median(errors.tolist())
        if best is None or median < best[0]:
            best = (median, name)
        if median <= LIMIT:
            break
    if best is None:
        reason = "none of the attacks chosen can be run on the control's network"
        return Control(status="skipped", rmse=None, limit=LIMIT, num_samples=len(samples), reason=reason)
    return Control(
        status="passed" if best[0] <= LIMIT else "failed",
        rmse=best[0],
        limit=LIMIT,
        attack=best[1],
        num_samples=len(samples),
    )


@dataclass(frozen=True)
class ControlTrial(Trial[Client]):
    """The control of a study; gives a `Control` as plain data."""

    attacks: Mapping[str, Attack]
    budget: Budget = UNLIMITED

    key, size = "control", 0

    @override
    def run(self, client: Client) -> dict[str, Any]:
        with self.budget.of_trial(self.key):
            return control(self.attacks, client.settings, self.budget.deadline).model_dump(mode="json")
