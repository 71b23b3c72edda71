"""How long an audit with attacks will take on this machine, foretold from an audit of a sample and a few timed steps.

An attack's steps cost the same throughout, and so do a search's products; how many a sample takes isn't known before it
has been attacked (`Effort`). So this is a range, and beside it what it takes at most, should every search get stuck.
Samples that are timed together are fewer than those attacked together, which makes the range too high rather than low.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from torch import nn

from riskaudit.attacks import Attack, AttackNotApplicable
from riskaudit.attacks.base import OutOfTimeError
from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client
from riskaudit.audit.client import Client, make_client
from riskaudit.errors import RiskauditError
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.linalg import Deadline
from riskaudit.studies.adaptive import by_default
from riskaudit.studies.attacking import Target, noise_levels, reconstruct
from riskaudit.studies.budget import UNLIMITED, Budget
from riskaudit.studies.control import control_order, control_target
from riskaudit.studies.rows import AttackForecast, Forecast
from riskaudit.studies.settings import AttackSettings, with_fields

# Samples that are timed, of the whole: few beside all, and never many.
TIMED_SHARE, MOST_TIMED = 1 / 8, 4
# Many samples at once cost down to this share of what a few cost each.
BATCH_GAIN = 0.5
Seconds = Callable[[], float]


def foretell(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    attacks: AttackSettings | None = None,
    *,
    noise_stds: Sequence[float] = (),
) -> Forecast:
    """How long `verify` or `calibrate` with these arguments will take.

    Raises:
        RiskauditError: as they do.
    """
    client = make_client(checkpoint, samples, settings or AuditSettings())
    levels = noise_levels(client.release, noise_stds)
    chosen = by_default(client, attacks or AttackSettings(), levels)
    return _foretold(client, chosen, levels, 1, time.perf_counter, UNLIMITED)


def foretell_client(
    client: Client,
    settings: AttackSettings,
    levels: Mapping[float, float | None],
    *,
    workers: int = 1,
    clock: Seconds = time.perf_counter,
    budget: Budget = UNLIMITED,
) -> Forecast | None:
    """Likewise of a client that was checked already; None where the study's budget of time was over before it ended.

    Args:
        client: what is audited and attacked.
        settings: of the attacks.
        levels: noise, as `noise_levels` has it.
        workers: processes that the work is spread over.
        clock: seconds.
        budget: of the study, timed steps included.
    """
    try:
        return _foretold(client, settings, levels, workers, clock, budget)
    except OutOfTimeError:
        return None


def _foretold(
    client: Client, settings: AttackSettings, levels: Mapping[float, float | None], workers: int, clock: Seconds,
    budget: Budget,
) -> Forecast:  # fmt: skip
    attacks, count = settings.attacks(), len(client.samples)
    timed = _timed(client, budget)
    scale = len(levels) * count / len(timed.samples) / workers
    audit = scale * _audit_seconds(timed, clock)
    attacked = []
    for name, attack in attacks.items():
        target = Target.of(timed, next(iter(levels.values())), settings.labels_known, budget.deadline)
        low, high, most = (scale * seconds for seconds in _attack_seconds(attack, target, clock))
        attacked.append(AttackForecast(attack=name, low=BATCH_GAIN * low, high=high, most=most))
    checked = _control_seconds(attacks, client.settings, clock, budget.deadline)
    return Forecast(
        low=BATCH_GAIN * audit + checked[0] + sum(row.low for row in attacked),
        high=audit + checked[1] + sum(row.high for row in attacked),
        most=audit + checked[2] + sum(row.most for row in attacked),
        audit=audit,
        num_timed=len(timed.samples),
        attacks=attacked,
    )


def _timed(client: Client, budget: Budget) -> Client:
    """The client with a few of its first uploads."""
    size, uploads = client.upload_size, len(client.uploads)
    count = max(1, min(round(TIMED_SHARE * uploads), MOST_TIMED // size))
    # A budget is for all samples; these few may take the audits' share of it.
    settings = replace(client.settings, calibration=None, budget=budget.per_audit(1))
    return replace(client.with_samples(client.samples.select(list(range(count * size)))), settings=settings)


def _audit_seconds(client: Client, clock: Seconds) -> float:
    began = clock()
    # Of these few samples none may be finite; the audit of all will say what is wrong.
    with suppress(RiskauditError):
        audit_client(client)
    return clock() - began


def _attack_seconds(attack: Attack, target: Target, clock: Seconds) -> tuple[float, float, float]:
    """Least, largest and most seconds of an attack on all of a target's samples; 0 where it can't be run."""
    effort, indices = attack.effort, list(range(len(target.client.samples)))
    # The first steps of a kind load what all others use.
    first = with_fields(effort.probe, {"steps": 1})
    try:
        if effort.done > 1:
            reconstruct(first, target, indices)
        began = clock()
        reconstruct(effort.probe, target, indices)
    except AttackNotApplicable:
        return 0.0, 0.0, 0.0
    unit = (clock() - began) / effort.done
    # What gets stuck at a noise level is tried without noise too, and begun anew with all starts.
    again = 2 * effort.high if target.noise_std > 0 and attack.first != attack else 0.0
    return unit * effort.low, unit * effort.high, unit * (effort.most + again)


def _control_seconds(
    attacks: Mapping[str, Attack], settings: AuditSettings, clock: Seconds, deadline: Deadline | None
) -> tuple[float, float, float]:
    """Of the control, for the first attack that it tries: of the control's few samples most get stuck nowhere."""
    names = control_order(attacks)
    if not names:
        return 0.0, 0.0, 0.0
    return _attack_seconds(attacks[names[0]], control_target(settings, deadline), clock)
