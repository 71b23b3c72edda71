"""``riskaudit study directions``: how the spectrum of H = J^T J shapes the risk, and which noise makes use of it.

Per sample: the spectrum; perturbations of one norm along singular directions, at random, by pruning and by isotropic
noise, with the error that each should force on an attacker and, where asked for, the error that attacks reach;
what each layer's gradient reveals alone and without it; and noise of equal power in better shapes. To first order
an attacker's squared error along u_i is c^2 / (l_i d), so it grows with 1 / l_i with slope 1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client
from riskaudit.audit.client import Client, make_client
from riskaudit.audit.plan import choose_plan
from riskaudit.engine import Trial, make_engine, progress_after
from riskaudit.errors import SettingsError
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.jacobian import JacobianMaker
from riskaudit.results import AuditResult, Record, Status
from riskaudit.sensitivity import Plan
from riskaudit.sensitivity.linearisation import sample_generator
from riskaudit.statistics.rank_correlation import scaling
from riskaudit.statistics.summaries import of_known
from riskaudit.studies.base import Study, StudyRun, identity_of
from riskaudit.studies.directions.decomposition import (
    QUANTILE_SHARES,
    Decomposition,
    Places,
    decompose,
    layer_places,
    layer_rows,
)
from riskaudit.studies.directions.perturbations import attacked, perturbations
from riskaudit.studies.directions.record import (
    DirectionAgreement,
    DirectionRow,
    DirectionsStudy,
    LayerRow,
    LayerSummary,
    Scheme,
    ShapingRow,
    ShapingSummary,
    SpectrumRow,
)
from riskaudit.studies.directions.shaped_noise import MOST_FOR_LAYERS, Budget, ShapedNoise
from riskaudit.studies.settings import AttackSettings, DirectionSettings

# Streams of the samples' random draws, far from those of the audit.
DIRECTION_STREAM, ATTACK_STREAM, PROBE_STREAM, SHAPING_STREAM = 1001, 1002, 1003, 1004
SCHEMES: tuple[Scheme, ...] = ("isotropic", "in_range", "water_filled_in_range", "water_filled", "per_layer")
LEAK = (
    "shaped noise depends on the private input: whoever learns its covariance, from repeated uploads say, learns of "
    "the input; it is not differentially private"
)


class SampleRecord(Record):
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

    Returns:
        The audit with ``studies.directions``. A sample whose loss or gradient isn't finite is left out.

    Raises:
        RiskauditError: as `audit`; or the settings don't fit.
    """
    run, looked_at = run or StudyRun(), looked_at or DirectionSettings()
    attacks = AttackSettings(looked_at.attack_names if run.attacks else ("local",), run.attack_steps)
    client = make_client(checkpoint, samples, settings or AuditSettings())
    if client.is_joint:
        raise SettingsError(
            f"directions are worked out for samples that leave alone, found `release` {client.release.spec}; "
            "leave out mean, secagg and local"
        )
    identity = identity_of(client, attacks, [], run.show_samples)
    journal = run.journal({"directions": identity, "at": asdict(looked_at), "attacks": run.attacks})
    total = 2 * len(samples)
    with make_engine(run.workers) as engine:
        result = audit_client(
            client, engine, show_samples=run.show_samples, command=run.command,
            progress=progress_after(run.progress, 0, total), budget_started=run.started,
        )  # fmt: skip
        started = time.perf_counter()
        usable = tuple(index for index, row in enumerate(result.samples) if row.status != "failed")
        study = Directions(looked_at, attacks if run.attacks else None, usable)
        record = study.answer(client, engine, journal, progress_after(run.progress, total - len(usable), total))
    return result.with_study(record.model_copy(update={"seconds": time.perf_counter() - started}))


@dataclass(frozen=True)
class Setting:
    """What stays the same over all samples of a client."""

    sigma: float
    quiet: JacobianMaker
    layers: Places
    budget: Budget
    norm: float
    plan: Plan

    @classmethod
    def of(cls, client: Client, looked_at: DirectionSettings) -> Setting:
        """That of a client."""
        release, noisy = client.release, client.noisy
        assert noisy.noise is not None
        quiet = client.jacobian(release.without_noise())
        assert isinstance(quiet, JacobianMaker)
        sigma, dimension = noisy.noise.fisher_std, client.samples.inputs[0].numel()
        # Directions need the spectrum whatever proxies were asked for.
        settings = replace(client.settings, proxies=None)
        return cls(
            sigma,
            quiet,
            layer_places(release),
            Budget(noisy.noise.std, noisy.noisy_entries.double(), client.chosen.info.std),
            looked_at.norm or sigma * dimension**0.5,
            choose_plan(settings, dimension, release.num_entries, 1, 1, client.device),
        )


@dataclass(frozen=True)
class SampleTrial(Trial[Client]):
    """One sample; gives a `SampleRecord` as plain data."""

    key: str
    index: int
    looked_at: DirectionSettings
    attacks: AttackSettings | None

    @override
    def run(self, client: Client) -> dict[str, Any]:
        setting = Setting.of(client, self.looked_at)
        jacobian = setting.quiet(client.batch([self.index]))
        plan, probes = setting.plan, self._generator(client, PROBE_STREAM)
        decomposition = decompose(jacobian, plan.solver, plan.solver_reason, probes)
        sample_id, shift = client.samples.ids[self.index], (setting.sigma / setting.budget.prior_std) ** 2
        layer_probes = self._generator(client, PROBE_STREAM)
        looked_at, generator = self.looked_at, self._generator(client, DIRECTION_STREAM)
        tried = perturbations(decomposition, setting.norm, looked_at.shares, looked_at.prune_ratio, generator)
        predicted = {each.name: each.delta for each in tried if each.delta is not None and each.predicted is not None}
        reached: dict[str, dict[str, tuple[float | None, Status]]] = {}
        if self.attacks is not None and predicted:
            attacks, draws = self.attacks.attacks(), self._generator(client, ATTACK_STREAM)
            reached = attacked(attacks, client, setting.quiet, self.index, predicted, draws)
        return SampleRecord(
            spectrum=decomposition.row(sample_id),
            directions=[each.row(client.samples.ids[self.index], reached.get(each.name, {})) for each in tried],
            layers=layer_rows(sample_id, decomposition, setting.layers, shift, layer_probes),
            shaping=self._shaping(client, setting, decomposition) if self.looked_at.shaping else None,
        ).model_dump(mode="json")

    def _generator(self, client: Client, stream: int) -> torch.Generator:
        return sample_generator(client.settings.seed, self.index, stream)

    def _shaping(self, client: Client, setting: Setting, decomposition: Decomposition) -> ShapingRow:
        noise = ShapedNoise(decomposition, setting.layers, setting.budget)
        row = noise.predictions(client.samples.ids[self.index])
        if self.attacks is None or row.status != "exact":
            return row
        draws, steps = self._generator(client, SHAPING_STREAM), self.attacks.steps
        return row.model_copy(update={"attacks": noise.attacks(client, setting.quiet, self.index, draws, steps)})


@dataclass(frozen=True)
class Directions(Study[DirectionsStudy]):
    """Every sample's J taken apart."""

    looked_at: DirectionSettings
    attacks: AttackSettings | None
    usable: tuple[int, ...]

    @override
    def trials(self, client: Client) -> list[SampleTrial]:
        return [SampleTrial(f"sample {index}", index, self.looked_at, self.attacks) for index in self.usable]

    @override
    def summarise(self, client: Client, results: Sequence[Any]) -> DirectionsStudy:
        samples = [SampleRecord.model_validate(result) for result in results]
        setting = Setting.of(client, self.looked_at)
        rows = [row for sample in samples for row in sample.directions]
        layers = [row for sample in samples for row in sample.layers]
        shaping = [sample.shaping for sample in samples if sample.shaping is not None]
        all_exact = all(sample.spectrum.status == "exact" for sample in samples)
        all_layers_exact = all(row.status == "exact" for row in layers)
        attacks = [] if self.attacks is None else list(self.attacks.attacks())
        summaries = [
            _shaping_summary(scheme, [row for row in shaping if scheme in row.predicted]) for scheme in SCHEMES
        ]
        notes, prior = [], client.chosen.info
        num_failed = len(client.samples) - len(self.usable)
        if num_failed:
            notes.append(f"{num_failed} samples have no finite gradient and are left out")
        if prior.kind != "isotropic":
            notes.append(
                f"layers and shapes take an isotropic prior of std {prior.std:.3g} per coordinate instead of the "
                f"audit's {prior.kind} prior"
            )
        if self.looked_at.shaping:
            notes.append(LEAK)
            if client.samples.inputs[0].numel() > MOST_FOR_LAYERS:
                notes.append(
                    f"noise scaled per layer is not optimised for inputs of more than {MOST_FOR_LAYERS} coordinates"
                )
        return DirectionsStudy(
            norm=setting.norm,
            noise_std=setting.budget.noise_std,
            reference=client.release.noise is None,
            prior_std=setting.budget.prior_std,
            num_entries=client.release.num_entries,
            dimension=client.samples.inputs[0].numel(),
            power=setting.budget.power,
            prune_ratio=self.looked_at.prune_ratio,
            attacks=attacks,
            quantile_shares=list(QUANTILE_SHARES),
            spectra=[sample.spectrum for sample in samples],
            directions=rows,
            agreement=[_agreement(name, rows, client.settings.seed) for name in attacks],
            layers=_layer_summaries(layers),
            layer_rows=layers,
            shaping=shaping,
            shaping_summary=[summary for summary in summaries if summary is not None],
            layers_reason=None
            if all_layers_exact
            else f"what a layer reveals needs all rows of J, which are not held here ({setting.plan.solver_reason}); "
            "shares of the trace are estimated by random probes",
            shaping_reason=None if all_exact else setting.plan.solver_reason,
            seconds=0.0,
            notes=notes,
        )


def _agreement(name: str, rows: list[DirectionRow], seed: int) -> DirectionAgreement:
    pairs: dict[str, list[tuple[float, float]]] = {}
    ratios = []
    for row in rows:
        error = row.attacked.get(name)
        if error and row.predicted_rmse:
            ratios.append(error / row.predicted_rmse)
            if row.eigenvalue is not None:
                pairs.setdefault(row.sample_id, []).append((1 / row.eigenvalue, error**2))
    return DirectionAgreement(
        attack=name,
        **scaling(pairs, seed=seed).model_dump(),
        tightness_median=median(ratios) if ratios else None,
    )


def _layer_summaries(rows: list[LayerRow]) -> list[LayerSummary]:
    groups: dict[str, list[LayerRow]] = {}
    for row in rows:
        groups.setdefault(row.layer, []).append(row)
    return [_layer_summary(members) for members in groups.values()]


def _layer_summary(rows: list[LayerRow]) -> LayerSummary:
    revealed = [row.revealed for row in rows if row.revealed is not None]
    return LayerSummary(
        layer=rows[0].layer,
        num_entries=rows[0].num_entries,
        num_samples=len(rows),
        revealed=of_known(fmean, revealed),
        revealed_low=min(revealed, default=None),
        revealed_high=max(revealed, default=None),
        revealed_without=of_known(fmean, (row.revealed_without for row in rows)),
        information_share=of_known(fmean, (row.information_share for row in rows)),
    )


def _shaping_summary(scheme: Scheme, rows: list[ShapingRow]) -> ShapingSummary | None:
    predicted = of_known(fmean, (row.predicted[scheme] for row in rows))
    if predicted is None:
        return None
    better = [row.predicted[scheme] > row.predicted["isotropic"] for row in rows]
    attacks = [attack for row in rows for attack in row.attacks if attack.scheme == scheme]
    errors = {
        attacker: of_known(fmean, (attack.rmse for attack in attacks if attack.attacker == attacker))
        for attacker in ("ignores", "knows")
    }
    return ShapingSummary(
        scheme=scheme,
        num_samples=len(rows),
        predicted=predicted,
        share_better=None if scheme == "isotropic" else sum(better) / len(better),
        attacked={attacker: error for attacker, error in errors.items() if error is not None},
    )
