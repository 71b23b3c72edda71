"""``riskaudit calibrate``: attack a calibration set once, so that later scans carry intervals with stated coverage.

Split conformal prediction (docs/theory.md, section 6): the strongest attack's RMSE over its prediction, per noise
level, on samples that are not scanned later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from torch import nn

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_victim
from riskaudit.audit.calibration import binding_of
from riskaudit.audit.client import Victim, make_victim
from riskaudit.engine.journal import TrialLog, fingerprint
from riskaudit.errors import SettingsError
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.metrics import Subject, make_metrics
from riskaudit.results import AttackRow, AuditResult, Calibration, CalibrationLevel, Tool
from riskaudit.statistics.conformal import conformal_factors, fewest_samples
from riskaudit.statistics.strongest import strongest
from riskaudit.studies.attacking import Progress, Target, batches, recorded_rows, releases_by_noise
from riskaudit.studies.control import recorded_control
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.run import identity_of
from riskaudit.version import __version__

Prediction = Literal["map_rmse", "posterior_rmse"]
PREDICTIONS: tuple[Prediction, ...] = ("map_rmse", "posterior_rmse")


def calibrate(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    attacks: AttackSettings | None = None,
    *,
    noise_stds: Sequence[float] = (),
    coverage: float = 0.9,
    command: str | None = None,
    progress: Progress | None = None,
    log: Path | None = None,
    resume: bool = False,
) -> Calibration:
    """Attack samples and store how far the strongest attack's RMSE strays from its prediction.

    Args:
        checkpoint: see `audit`.
        samples: the calibration set; at least `fewest_samples` of the coverage for both ends.
        settings: of the audit.
        attacks: which, and what they know.
        noise_stds: see `verify`; every one above 0.
        coverage: of the intervals.
        command: for the record.
        progress: see `verify`.
        log: see `verify`.
        resume: see `verify`.

    Raises:
        SettingsError: a release without noise; too few samples; attacks that fail their positive control.
    """
    settings, attacks = settings or AuditSettings(), attacks or AttackSettings()
    victim = make_victim(checkpoint, samples, settings)
    releases = releases_by_noise(victim.release, noise_stds)
    if 0.0 in releases:
        raise SettingsError("calibrate needs noise, without which no error is predicted; give --noise-std above 0")
    if not 0 < coverage < 1:
        raise SettingsError(f"expected --coverage between 0 and 1, found {coverage:g}")
    if len(samples) < fewest_samples(coverage):
        raise SettingsError(
            f"expected at least {fewest_samples(coverage)} samples for a coverage of {coverage:g}, found "
            f"{len(samples)}; raise --limit or add data"
        )
    identity = fingerprint({"calibrate": identity_of(victim, attacks, list(releases), False)})
    trials = TrialLog(log, identity, resume)
    levels: list[CalibrationLevel] = []
    checked = recorded_control(attacks.attacks(), settings, trials)
    if checked.status != "passed":
        raise SettingsError(
            f"the attacks {', '.join(attacks.names)} don't reconstruct the positive control, so they can't "
            "calibrate anything; choose stronger attacks or more --attack-steps"
        )
    done, total = 0, len(samples) * len(releases) * len(attacks.names)
    for std, release in releases.items():
        found = audit_victim(victim.at(release))
        _refuse_missing_predictions(found, std)
        rows: list[AttackRow] = []
        for part in _attacked(
            victim, attacks, Target(victim, victim.jacobian(release), std, attacks.labels_known), trials
        ):
            rows += part
            done += len(part)
            if progress is not None:
                progress(done, total)
        levels += [_level(std, proxy, found, rows, coverage) for proxy in PREDICTIONS]
    return Calibration(
        tool=Tool(version=__version__),
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        command=command,
        binding=binding_of(victim),
        checkpoint=found.checkpoint,
        data=found.data,
        release=str(victim.release.without_noise().spec),
        prior=found.prior,
        coverage=coverage,
        attacks=list(attacks.names),
        levels=levels,
    )


def _attacked(victim: Victim, settings: AttackSettings, target: Target, trials: TrialLog) -> Iterator[list[AttackRow]]:
    """Rows of one attack on one batch after the other."""
    metrics = make_metrics(Subject(tuple(victim.samples.inputs.shape[1:])), ("rmse",))
    for name, attack in settings.attacks().items():
        for indices in batches(len(victim.samples)):
            yield recorded_rows(trials, name, attack, target, indices, metrics, show=False)


def _refuse_missing_predictions(found: AuditResult, noise_std: float) -> None:
    """Before anything is attacked, refuse samples whose attacks nothing could be divided by.

    Raises:
        SettingsError: some sample has no prediction.
    """
    total = len(found.samples)
    failed = [row for row in found.samples if row.status == "failed"]
    if failed:
        raise SettingsError(
            f"expected a prediction for every sample to calibrate, and {len(failed)} of {total} could not be assessed "
            f"at noise {noise_std:g} (the first: {failed[0].reason}); leave these samples out"
        )
    wide = [row for row in found.samples if any(row.proxies[proxy].value is None for proxy in PREDICTIONS)]
    if wide:
        raise SettingsError(
            f"expected a point value for every sample to calibrate, and {len(wide)} of {total} have intervals at noise "
            f"{noise_std:g} that are too wide to hold one; narrow them with --solver dense, or --precision 0.1 and "
            "more --max-matvecs"
        )


def _level(
    noise_std: float, proxy: Prediction, found: AuditResult, rows: list[AttackRow], coverage: float
) -> CalibrationLevel:
    """Factors of one prediction.

    Raises:
        SettingsError: some sample has no attack.
    """
    best = strongest(rows)
    attacked, predicted = [], []
    for row in found.samples:
        value = row.proxies[proxy].value
        assert value is not None
        if (noise_std, row.id) not in best:
            raise SettingsError(
                f"sample {row.id} has no attack result, so the set can't be calibrated on; choose other attacks, or "
                "samples whose gradients are finite"
            )
        attacked.append(best[noise_std, row.id][0])
        predicted.append(value)
    factors = conformal_factors(attacked, predicted, coverage=coverage)
    return CalibrationLevel(
        noise_std=noise_std,
        proxy=proxy,
        num_samples=len(attacked),
        low_factor=factors.low,
        high_factor=factors.high,
        ratios=sorted(error / guess for error, guess in zip(attacked, predicted, strict=True) if guess > 0),
    )
