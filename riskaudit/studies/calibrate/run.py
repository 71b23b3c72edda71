"""``riskaudit calibrate``: attack a calibration set once, so that later scans carry intervals with stated coverage.

Split conformal prediction (docs/theory.md, section 6): the strongest attack's RMSE over its prediction, per noise
level, on samples that are not scanned later. Samples of one upload share its noise, so that those of few uploads say
less of the uploads to come than as many samples that leave alone: the coverage is that over samples of uploads alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn
from typing_extensions import override

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client
from riskaudit.audit.calibration import binding_of
from riskaudit.audit.client import Client, make_client
from riskaudit.engine import make_engine
from riskaudit.errors import SettingsError
from riskaudit.formatting import present_time
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.results import AuditResult, Calibration, CalibrationLevel, Tool
from riskaudit.statistics.conformal import conformal_factors, fewest_samples
from riskaudit.studies.adaptive import by_default
from riskaudit.studies.attacking import AttackTrial, attack_trials, noise_levels, refuse_several_draws, rows_of
from riskaudit.studies.base import Study, StudyRun, identity_of
from riskaudit.studies.budget import UNLIMITED, Budget, BudgetUsedUpError, refuse_budget_of_workers
from riskaudit.studies.control import ControlTrial
from riskaudit.studies.forecast import foretell_client
from riskaudit.studies.rows import AttackRow, Control, strongest
from riskaudit.studies.settings import AttackSettings
from riskaudit.version import __version__

Prediction = Literal["map_rmse", "posterior_rmse"]
PREDICTIONS: tuple[Prediction, ...] = ("map_rmse", "posterior_rmse")


def calibrate(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    attacks: AttackSettings | None = None,
    run: StudyRun | None = None,
    *,
    noise_stds: Sequence[float] = (),
    coverage: float = 0.9,
) -> Calibration:
    """Attack samples and store how far the strongest attack's RMSE strays from its prediction.

    Raises:
        SettingsError: a release without noise; too few samples; attacks that fail their positive control; a budget
            that ended before the last attack, without which nothing is calibrated (a log keeps the finished ones).
    """
    settings, run, chosen = settings or AuditSettings(), run or StudyRun(), attacks or AttackSettings()
    budget = run.budget(settings.budget)
    # Audits are needed whole: every sample's prediction is divided by.
    client = make_client(checkpoint, samples, replace(settings, budget=None))
    refuse_several_draws(client)
    levels = noise_levels(client.release, noise_stds)
    chosen = by_default(client, chosen, levels)
    if 0.0 in levels:
        raise SettingsError("calibrate needs noise, without which no error is predicted; give `noise_stds` above 0")
    if not 0 < coverage < 1:
        raise SettingsError(f"expected `coverage` between 0 and 1, found {coverage:g}")
    if len(samples) < fewest_samples(coverage):
        raise SettingsError(
            f"expected at least {fewest_samples(coverage)} samples for a coverage of {coverage:g}, found "
            f"{len(samples)}; raise `limit` or add data"
        )
    refuse_budget_of_workers(budget, run.workers)
    journal = run.journal({"calibrate": identity_of(client, chosen, list(levels), False)})
    foretold = None
    if run.announce is not None:
        foretold = foretell_client(client, chosen, levels, workers=run.workers, budget=budget)
    if run.announce is not None and foretold is not None:
        run.announce(foretold)
    with make_engine(run.workers) as engine, _within(budget):
        (checked,) = engine.map([ControlTrial(chosen.attacks(), budget)], client, journal)
        if Control.model_validate(checked).status != "passed":
            raise SettingsError(
                f"the attacks {', '.join(chosen.chosen)} don't reconstruct the positive control, so they can't "
                "calibrate anything; choose stronger attacks or more `steps`"
            )
        audits = {
            # An audit has no deadline that leaves it whole, but it can be stopped between its batches.
            level: audit_client(client, engine, noise_std=std, progress=lambda *_: budget.refuse_more())
            for level, std in levels.items()
        }
        for level, result in audits.items():
            # Before anything is attacked, samples are refused whose attacks nothing could be divided by.
            total = len(result.samples)
            failed = [row for row in result.samples if row.status == "failed"]
            if failed:
                raise SettingsError(
                    f"expected a prediction for every sample to calibrate, and {len(failed)} of {total} could not be "
                    f"assessed at noise {level:g} (the first: {failed[0].reason}); leave these samples out"
                )
            wide = [row for row in result.samples if any(row.proxies[proxy].value is None for proxy in PREDICTIONS)]
            if wide:
                raise SettingsError(
                    f"expected a point value for every sample to calibrate, and {len(wide)} of {total} have intervals "
                    f"at noise {level:g} that are too wide to hold one; narrow them with `solver=dense`, or "
                    "`precision=0.1` and more `max_matvecs`"
                )
        study = CalibrationStudy(chosen, levels, audits, coverage, run.command, budget)
        return study.answer(client, engine, journal, run.progress)


@contextmanager
def _within(budget: Budget) -> Iterator[None]:
    """Refuse to calibrate by a part of the attacks: the strongest one of a sample may be among the others."""
    try:
        yield
    except BudgetUsedUpError as end:
        raise SettingsError(
            f"the `budget` of {budget.seconds:g} seconds was used up before all audits and attacks had run, and a part "
            "of them calibrates nothing; `resume` with the same `log` goes on after those that are finished"
        ) from end


@dataclass(frozen=True)
class CalibrationStudy(Study[Calibration]):
    """Every attack at every noise level on every sample."""

    settings: AttackSettings
    levels: Mapping[float, float | None]
    audits: Mapping[float, AuditResult]
    coverage: float
    command: str | None
    budget: Budget = UNLIMITED

    @override
    def trials(self, client: Client) -> list[AttackTrial]:
        samples = range(len(client.samples))
        return attack_trials(
            self.settings.attacks(),
            self.levels,
            samples,
            labels_known=self.settings.labels_known,
            upload_size=client.upload_size,
            budget=self.budget,
            effort=self.settings.effort or "full",
        )

    @override
    def summarise(self, client: Client, results: Sequence[Any]) -> Calibration:
        rows, (*_, audited) = rows_of(results), self.audits.values()
        return Calibration(
            tool=Tool(version=__version__),
            created_at=present_time(),
            command=self.command,
            binding=binding_of(client),
            checkpoint=audited.checkpoint,
            data=audited.data,
            release=str(client.release.without_noise().spec),
            prior=audited.prior,
            coverage=self.coverage,
            attacks=list(self.settings.chosen),
            levels=[
                _level(level, proxy, result, rows, self.coverage)
                for level, result in self.audits.items()
                for proxy in PREDICTIONS
            ],
        )


def _level(
    noise_std: float, proxy: Prediction, audited: AuditResult, rows: list[AttackRow], coverage: float
) -> CalibrationLevel:
    """Factors of one prediction."""
    best = strongest(rows)
    attacked, predicted = [], []
    for row in audited.samples:
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
