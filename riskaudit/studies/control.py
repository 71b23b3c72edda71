"""The positive control: attacks must reconstruct what is known to be reconstructible, else they prove nothing.

An undefended lenet with weights uniform in (-0.5, 0.5), the network and initialization on which gradient inversion
was shown first (Zhu et al., NeurIPS 2019), on handwritten digits that come with the package.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from torch import nn

from riskaudit.attacks import Attack, AttackNotApplicable
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import make_victim
from riskaudit.engine.journal import TrialLog
from riskaudit.inputs import Samples, load_samples
from riskaudit.inputs.architectures.lenet import WIDTH, LeNet
from riskaudit.results import Control
from riskaudit.studies.attacking import Target, reconstruct

NUM_SAMPLES = 4
# Median RMSE of pixels in [0, 1] that the best attack has to reach: far below the 0.3 of a blind guess.
LIMIT = 0.05
# Strongest first, so that the others need not run.
ORDER = ("gauss-newton", "inverting-gradients", "dlg")


def control(attacks: Mapping[str, Attack], settings: AuditSettings) -> Control:
    """Whether one of the attacks reconstructs; those started at the truth don't count."""
    names = sorted(
        (name for name, attack in attacks.items() if not attack.oracle_start),
        key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER),
    )
    if not names:
        return Control(status="skipped", rmse=None, reason="every attack chosen is started at the truth")
    plain = AuditSettings(dtype=settings.dtype, device=settings.device, seed=settings.seed, loss="cross-entropy")
    samples = _digits()
    victim = make_victim(_network(settings.seed), samples, plain)
    target = Target(victim, victim.jacobian(victim.release), 0.0, labels_known=True)
    indices = list(range(len(samples)))
    best: tuple[float, str] | None = None
    for name in names:
        try:
            found = reconstruct(attacks[name], target, indices)
        except AttackNotApplicable:
            continue
        errors = (found.inputs - victim.batch(indices).inputs).flatten(1).square().mean(1).sqrt().tolist()
        median = statistics.median(errors)
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


def recorded_control(attacks: Mapping[str, Attack], settings: AuditSettings, trials: TrialLog) -> Control:
    """The control of a study, run once."""
    return trials.record("control", Control, partial(control, attacks, settings))


def _network(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    # 8 x 8 digits leave a quarter of each side after the strides.
    model = LeNet(channels=1, features=WIDTH * 4, classes=10)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return model.eval()


def _digits() -> Samples:
    path = Path(str(files("riskaudit").joinpath("demo", "digits.npz")))
    return replace(load_samples(path, channels=1, limit=NUM_SAMPLES), name="digits")
