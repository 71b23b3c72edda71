"""``riskaudit study directions``: how the spectrum of H = J^T J shapes the risk, and which noise makes use of it.

Per sample: the spectrum; perturbations of one norm along singular directions, at random, by pruning and by isotropic
noise, with the error that each should force on an attacker and, where asked for, the error that attacks reach;
what each layer's gradient reveals alone and without it; and noise of equal power in better shapes. To first order
an attacker's squared error along u_i is c^2 / (l_i d), so it grows with 1 / l_i with slope 1.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from statistics import median

import torch
from torch import nn

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_victim
from riskaudit.audit.client import Victim, make_victim
from riskaudit.audit.plan import choose_plan
from riskaudit.engine.journal import TrialLog, fingerprint
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.jacobian import JacobianMaker
from riskaudit.results import (
    AuditResult,
    DirectionAgreement,
    DirectionRow,
    DirectionsStudy,
    LayerRow,
    LayerSummary,
    Record,
    ShapingRow,
    ShapingSummary,
    SpectrumRow,
)
from riskaudit.results.directions import Scheme
from riskaudit.sensitivity.linearisation import sample_generator
from riskaudit.statistics.slopes import scaling
from riskaudit.studies.directions.decomposition import QUANTILE_SHARES, decompose
from riskaudit.studies.directions.layers import exact_rows, layer_places, probed_rows
from riskaudit.studies.directions.perturbations import attacked, perturbations
from riskaudit.studies.directions.shaped_noise import MOST_FOR_LAYERS, Budget, shaping_row, with_attacks
from riskaudit.studies.running import StudyRun
from riskaudit.studies.settings import AttackSettings, DirectionSettings
from riskaudit.studies.verify.run import identity_of

# Streams of the samples' random draws, far from those of the audit.
DIRECTION_STREAM, ATTACK_STREAM, PROBE_STREAM, SHAPING_STREAM = 1001, 1002, 1003, 1004
SCHEMES: tuple[Scheme, ...] = ("isotropic", "in_range", "water_filled_in_range", "water_filled", "per_layer")
LEAK = (
    "shaped noise depends on the private input: whoever learns its covariance, from repeated uploads say, learns of "
    "the input; it is not differentially private"
)


class _Trial(Record):
    """Everything of one sample."""

    spectrum: SpectrumRow
    directions: list[DirectionRow]
    layers: list[LayerRow]
    shaping: ShapingRow | None


def directions_study(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    run: StudyRun | None = None,
    looked_at: DirectionSettings | None = None,
) -> AuditResult:
    """Audit, then take every sample's Jacobian apart.

    Args:
        checkpoint: see `audit`.
        samples: see `audit`.
        settings: of the audit.
        run: how the study is run; attacks check the predictions where it says so.
        looked_at: perturbations and shapes.

    Returns:
        The audit with ``studies.directions``. A sample whose loss or gradient isn't finite is left out.

    Raises:
        RiskauditError: as `audit`; or the settings don't fit.
    """
    settings, run, looked_at = settings or AuditSettings(), run or StudyRun(), looked_at or DirectionSettings()
    attacks = AttackSettings(looked_at.attack_names if run.attacks else ("local",), run.attack_steps)
    victim = make_victim(checkpoint, samples, settings)
    identity = identity_of(victim, attacks, [], run.show_samples)
    trials = TrialLog(
        run.log, fingerprint({"directions": identity, "at": asdict(looked_at), "attacks": run.attacks}), run.resume
    )
    total = 2 * len(samples)

    def audited(done: int, _: int) -> None:
        if run.progress is not None:
            run.progress(done, total)

    result = audit_victim(victim, show_samples=run.show_samples, command=run.command, progress=audited)
    started = time.perf_counter()
    study = _Study(victim, settings, looked_at, attacks, run.attacks)
    found: list[_Trial] = []
    for index, row in enumerate(result.samples):
        key = f"sample {index}"
        if row.status != "failed":
            found.append(trials.record(key, _Trial, partial(study.trial, index)))
        audited(len(samples) + index + 1, total)
    record = study.record(found, len(samples) - len(found), time.perf_counter() - started)
    return result.with_study(record)


class _Study:
    """What stays the same over all samples."""

    def __init__(
        self,
        victim: Victim,
        settings: AuditSettings,
        looked_at: DirectionSettings,
        attacks: AttackSettings,
        check: bool,
    ) -> None:
        self.victim, self.settings, self.looked_at = victim, settings, looked_at
        self.attacks = attacks.attacks() if check else {}
        self.steps = attacks.steps
        release = victim.release
        noisy = victim.noisy
        assert noisy.noise is not None
        self.sigma = noisy.noise.fisher_std
        self.quiet: JacobianMaker = victim.jacobian(release.without_noise())
        self.places = layer_places(release)
        self.budget = Budget(noisy.noise.std, noisy.noisy_entries.double(), victim.chosen.info.std)
        self.dimension = victim.samples.inputs[0].numel()
        self.norm = looked_at.norm or self.sigma * self.dimension**0.5
        # Directions need the spectrum whatever proxies were asked for.
        every = replace(settings, proxies=None)
        self.plan = choose_plan(every, self.dimension, release.num_entries, 1, 1, victim.device)

    def trial(self, index: int) -> _Trial:
        """One sample."""
        sample = self.victim.samples.ids[index]
        jacobian = self.quiet(self.victim.batch([index]))
        at = decompose(jacobian, self.plan.solver, self.plan.solver_reason, self._generator(index, PROBE_STREAM))
        made = perturbations(
            at, self.norm, self.looked_at.shares, self.looked_at.prune_ratio, self._generator(index, DIRECTION_STREAM)
        )
        used = [one for one in made if one.delta is not None and one.predicted is not None]
        hits = {}
        if self.attacks and used:
            deltas = [one.delta for one in used if one.delta is not None]
            found = attacked(
                self.attacks, self.victim, self.quiet, index, deltas, self._generator(index, ATTACK_STREAM)
            )
            hits = {one.name: {name: rows[k] for name, rows in found.items()} for k, one in enumerate(used)}
        if at.rows is not None and at.hessian is not None:
            shift = (self.sigma / self.budget.prior_std) ** 2
            layers = exact_rows(sample, at.rows, at.hessian, self.places, shift)
        else:
            layers = probed_rows(sample, jacobian, self.places, self._generator(index, PROBE_STREAM))
        shaping = None
        if self.looked_at.shaping:
            shaping, filled, variances = shaping_row(sample, at, self.places, self.budget)
            if self.attacks:
                shaping = with_attacks(
                    shaping, filled, variances, at, self.places, self.budget, self.victim, self.quiet, index,
                    self._generator(index, SHAPING_STREAM), self.steps,
                )  # fmt: skip
        return _Trial(
            spectrum=at.row(sample),
            directions=[one.row(sample, hits.get(one.name, {})) for one in made],
            layers=layers,
            shaping=shaping,
        )

    def _generator(self, index: int, stream: int) -> torch.Generator:
        return sample_generator(self.settings.seed, index, stream)

    def record(self, trials: list[_Trial], failed: int, seconds: float) -> DirectionsStudy:
        """Everything, with what the samples say together."""
        rows = [row for trial in trials for row in trial.directions]
        layer_rows = [row for trial in trials for row in trial.layers]
        shaping = [trial.shaping for trial in trials if trial.shaping is not None]
        exact = all(trial.spectrum.status == "exact" for trial in trials)
        return DirectionsStudy(
            norm=self.norm,
            noise_std=self.budget.noise_std,
            reference=self.victim.release.noise is None,
            prior_std=self.budget.prior_std,
            num_entries=self.victim.release.num_entries,
            dimension=self.dimension,
            power=self.budget.power,
            prune_ratio=self.looked_at.prune_ratio,
            attacks=list(self.attacks),
            quantile_shares=list(QUANTILE_SHARES),
            spectra=[trial.spectrum for trial in trials],
            directions=rows,
            agreement=[_agreement(name, rows, self.settings.seed) for name in self.attacks],
            layers=_layer_summaries(layer_rows),
            layer_rows=layer_rows,
            shaping=shaping,
            shaping_summary=_shaping_summaries(shaping),
            layers_reason=None if all(row.status == "exact" for row in layer_rows) else self._layers_reason(),
            shaping_reason=None if exact else self.plan.solver_reason,
            seconds=seconds,
            notes=self._notes(failed),
        )

    def _layers_reason(self) -> str:
        return (
            "what a layer reveals needs all rows of J, which are not held here "
            f"({self.plan.solver_reason}); shares of the trace are estimated by random probes"
        )

    def _notes(self, failed: int) -> list[str]:
        notes = []
        if failed:
            notes.append(f"{failed} samples have no finite gradient and are left out")
        if self.victim.chosen.info.kind != "isotropic":
            notes.append(
                f"layers and shapes take an isotropic prior of std {self.budget.prior_std:.3g} per coordinate instead "
                f"of the audit's {self.victim.chosen.info.kind} prior"
            )
        if self.looked_at.shaping:
            notes.append(LEAK)
            if self.dimension > MOST_FOR_LAYERS:
                notes.append(
                    f"noise scaled per layer is not optimised for inputs of more than {MOST_FOR_LAYERS} coordinates"
                )
        return notes


def _agreement(name: str, rows: list[DirectionRow], seed: int) -> DirectionAgreement:
    pairs: dict[str, list[tuple[float, float]]] = {}
    ratios = []
    for row in rows:
        error = row.attacked.get(name)
        if error and row.predicted_rmse:
            ratios.append(error / row.predicted_rmse)
            if row.eigenvalue is not None:
                pairs.setdefault(row.sample_id, []).append((1 / row.eigenvalue, error**2))
    found = scaling(pairs, seed=seed)
    return DirectionAgreement(
        attack=name,
        **asdict(found),
        tightness_median=median(ratios) if ratios else None,
    )


def _layer_summaries(rows: list[LayerRow]) -> list[LayerSummary]:
    groups: dict[str, list[LayerRow]] = {}
    for row in rows:
        groups.setdefault(row.layer, []).append(row)
    return [_layer_summary(own) for own in groups.values()]


def _layer_summary(own: list[LayerRow]) -> LayerSummary:
    revealed = [row.revealed for row in own if row.revealed is not None]
    return LayerSummary(
        layer=own[0].layer,
        num_entries=own[0].num_entries,
        num_samples=len(own),
        revealed=_mean(revealed),
        revealed_low=min(revealed, default=None),
        revealed_high=max(revealed, default=None),
        revealed_without=_mean([row.revealed_without for row in own]),
        information_share=_mean([row.information_share for row in own]),
    )


def _shaping_summaries(rows: list[ShapingRow]) -> list[ShapingSummary]:
    found = []
    for scheme in SCHEMES:
        own = [row for row in rows if scheme in row.predicted]
        predicted = _mean([row.predicted[scheme] for row in own])
        if predicted is None:
            continue
        better = [row.predicted[scheme] > row.predicted["isotropic"] for row in own]
        attacks = {
            attacker: _mean(
                [hit.rmse for row in own for hit in row.attacks if (hit.scheme, hit.attacker) == (scheme, attacker)]
            )
            for attacker in ("ignores", "knows")
        }
        found.append(
            ShapingSummary(
                scheme=scheme,
                num_samples=len(own),
                predicted=predicted,
                share_better=None if scheme == "isotropic" else sum(better) / len(better),
                attacked={name: value for name, value in attacks.items() if value is not None},
            )
        )
    return found


def _mean(values: list[float] | list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
