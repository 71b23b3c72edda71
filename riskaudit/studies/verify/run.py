"""``riskaudit verify``: the proxies of an audit against full attack runs on the very release that was audited.

The audit is made first, at every noise level; then attacks run on the same draws of the noise; then the two are
held against each other per noise level, since pooling levels would inflate every correlation
(docs/theory.md, section 6).

Where asked for, an attack's hyper-parameters are first chosen from its small grid, on samples that are not reported:
the candidate with the least mean RMSE wins. Choosing by the truth is the auditor's privilege, on samples of which
nothing is claimed. It makes attacks stronger, so predictions have to hold against more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from riskaudit.attacks import Attack, AttackNotApplicable
from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client
from riskaudit.audit.client import Client, make_client
from riskaudit.audit.transformed import transformed
from riskaudit.engine import Engine, Interrupted, Journal, Trial, make_engine, progress_after
from riskaudit.errors import SettingsError
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.metrics import Metric, metric_notes, prior_only, reported_metrics
from riskaudit.metrics.pixels import mean_squared_error
from riskaudit.proxies import PROXIES
from riskaudit.results import AuditResult
from riskaudit.results.verdicts import attacker_of
from riskaudit.sensitivity.success import PREDICTED_RMSE
from riskaudit.studies.adaptive import by_default
from riskaudit.studies.attacking import (
    AttackTrial,
    Target,
    attack_trials,
    batches,
    hyper_parameters,
    matched_order,
    metrics_of,
    noise_levels,
    reconstruct,
    refuse_several_draws,
    rows_of,
)
from riskaudit.studies.base import Study, StudyRun, identity_of
from riskaudit.studies.budget import UNLIMITED, Budget, BudgetUsedUpError, refuse_budget_of_workers
from riskaudit.studies.control import ControlTrial
from riskaudit.studies.forecast import foretell_client
from riskaudit.studies.rows import AttackRow, AttackStatus, Control, Forecast
from riskaudit.studies.settings import AttackSettings, with_fields
from riskaudit.studies.verify.agreement import agreement_rows, loss_comparisons, reliability_records, timings
from riskaudit.studies.verify.record import AttackerKnowledge, Prediction, PriorOnly, VerifyStudy

# The proxy of each loss that attacks minimise (Hong et al., AAAI 2024).
MATCHING_PROXIES = {"l2": "lavp_l2_max", "cosine": "lavp_cosine_max"}
# Samples that are looked at beyond the reported ones.
NUM_SAMPLES = 8


def verify(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    attacks: AttackSettings | None = None,
    run: StudyRun | None = None,
    *,
    noise_stds: Sequence[float] = (),
    tuning_samples: Samples | None = None,
) -> AuditResult:
    """Audit a release, attack it, and say how well the proxies foresaw the attacks.

    Args:
        checkpoint: see `audit`.
        samples: see `audit`.
        settings: of the audit; its release's noise is replaced where noise levels are named.
        attacks: which, and what they know.
        run: how the study is run; every audit and every attack of a sample counts as one step of its progress. With a
            ``budget`` in the settings audits get half of it at most and attacks what is left; those that don't fit
            have rows that say so, and a resumed study begins with them.
        noise_stds: Gaussian std per released entry of every level; 0 is undefended. The audit itself is at the first.
        tuning_samples: other samples, on which hyper-parameters are chosen where the settings ask for it.

    Returns:
        The audit with ``studies.verify``. An interrupt (KeyboardInterrupt) while attacks run ends the study with
        what is finished, and so does the budget: ``complete`` is false then. The log stays: remove it once a
        complete result is safe.

    Raises:
        RiskauditError: as `audit`; or the attacks' settings don't fit.
    """
    settings, run, chosen = settings or AuditSettings(), run or StudyRun(), attacks or AttackSettings()
    budget = run.budget(settings.budget)
    client = make_client(checkpoint, samples, settings)
    refuse_several_draws(client)
    levels = noise_levels(client.release, noise_stds)
    chosen = by_default(client, chosen, levels)
    refuse_budget_of_workers(budget, run.workers)
    journal = run.journal(identity_of(client, chosen, list(levels), run.show_samples))
    foretold = None
    if run.announce is not None:
        foretold = foretell_client(client, chosen, levels, workers=run.workers, budget=budget)
    if run.announce is not None and foretold is not None:
        run.announce(foretold)
    client = replace(client, settings=replace(settings, budget=budget.per_audit(len(levels))))
    num_audits = len(samples) * len(levels)
    total = num_audits * (1 + len(chosen.attacks()))
    with make_engine(run.workers) as engine:
        audits = [
            audit_client(
                client, engine, noise_std=noise_std, show_samples=run.show_samples and number == 0,
                command=run.command, progress=progress_after(run.progress, number * len(samples), total),
            )
            for number, noise_std in enumerate(levels.values())
        ]  # fmt: skip
        predictions = [row for std, result in zip(levels, audits, strict=True) for row in predictions_of(result, std)]
        study = Verification(chosen, chosen.attacks(), levels, predictions, run.show_samples, budget, foretold)
        try:
            if chosen.tune:
                study = replace(study, attacks=tuned(study.attacks, client, tuning_samples, engine, journal, budget))
                study = replace(study, is_tuned=True)
            record = study.answer(client, engine, journal, progress_after(run.progress, num_audits, total))
        except Interrupted as interrupt:
            record = study.part(client, interrupt.finished)
        except BudgetUsedUpError as end:
            record = study.within_budget(client, journal, end.key)
    return _with_budget(audits[0], settings.budget).with_study(record)


def _with_budget(result: AuditResult, seconds: float | None) -> AuditResult:
    """The audit with the budget of the whole study, of which it had a part."""
    return result.model_copy(update={"settings": result.settings.model_copy(update={"budget_seconds": seconds})})


def predictions_of(result: AuditResult, noise_std: float) -> list[Prediction]:
    """What an audit says of its samples, as a study records it; failed samples are left out."""
    seconds = result.cost.seconds
    share = None if seconds is None else seconds / max(1, len(result.samples))
    # Attacks know no other sample of an upload, so that what an informed attacker's law foretells isn't theirs.
    theirs = attacker_of(result.release) != "informed"
    return [
        Prediction(
            noise_std=noise_std,
            sample_id=row.id,
            proxies=row.proxies | ({"predicted_rmse": row.predicted_rmse} if theirs and row.predicted_rmse else {}),
            success_probability=row.success_probability if theirs else [],
            calibrated=row.calibrated,
            seconds=share,
        )
        for row in result.samples
        if row.status != "failed"
    ]


@dataclass(frozen=True)
class Verification(Study[VerifyStudy]):
    """Every attack at every noise level, the control first."""

    settings: AttackSettings
    attacks: Mapping[str, Attack]
    levels: Mapping[float, float | None]
    predictions: Sequence[Prediction]
    show_samples: bool
    budget: Budget = UNLIMITED
    foretold: Forecast | None = None
    is_tuned: bool = False

    @override
    def trials(self, client: Client) -> list[Trial[Client]]:
        attacked = attack_trials(
            self.attacks,
            self.levels,
            # Noise makes no gradient finite or infinite.
            usable_samples(client),
            labels_known=self.settings.labels_known,
            metrics=_metrics(client),
            show_samples=self.show_samples,
            upload_size=client.upload_size,
            budget=self.budget,
            effort=self.settings.effort or "adaptive",
        )
        return [ControlTrial(self.attacks, self.budget), *attacked]

    @override
    def summarise(self, client: Client, results: Sequence[Any]) -> VerifyStudy:
        checked, *attacked = results
        return self._record(client, Control.model_validate(checked), rows_of(attacked), None)

    def part(self, client: Client, finished: Mapping[str, Any]) -> VerifyStudy:
        """The record of an interrupted study, from what is finished by key."""
        control, *attacks = self.trials(client)
        checked = Control(status="skipped", rmse=None, reason="the study was interrupted before the control")
        if control.key in finished:
            checked = Control.model_validate(finished[control.key])
        rows = rows_of([finished[trial.key] for trial in attacks if trial.key in finished])
        return self._record(client, checked, rows, "interrupt")

    def within_budget(self, client: Client, finished: Journal, stopped: str | None) -> VerifyStudy:
        """The record of a study whose budget was used up: the attacks that don't fit are there, without results.

        Args:
            client: that was attacked.
            finished: with the trials that fitted.
            stopped: key of the trial that had begun.
        """
        reason = "the budget of time was used up before the positive control's end"
        checked, rows = Control(status="skipped", rmse=None, reason=reason), list[AttackRow]()
        for trial in self.trials(client):
            if isinstance(trial, AttackTrial):
                status: AttackStatus = "stopped" if trial.key == stopped else "not_run"
                done = trial.key in finished
                rows += rows_of([finished[trial.key]]) if done else trial.without_result(client, status)
            elif trial.key in finished:
                checked = Control.model_validate(finished[trial.key])
        return self._record(client, checked, rows, "budget")

    def _record(
        self, client: Client, checked: Control, rows: list[AttackRow], stopped_by: Literal["interrupt", "budget"] | None
    ) -> VerifyStudy:
        metrics, predictions, seed = (
            metrics_of(client, _metrics(client)),
            list(self.predictions),
            client.settings.seed,
        )
        listed = {name for prediction in predictions for name in prediction.proxies}
        described = [*(proxy.info() for proxy in PROXIES.values()), PREDICTED_RMSE]
        predicted = sorted((info for info in described if info.id in listed), key=lambda info: info.order)
        notes = []
        statistics_known = not client.mixes_samples or bool(Target.of(client, None, True).layer_statistics(1))
        if any(prediction.noise_std == 0 for prediction in self.predictions):
            notes.append(
                "at noise 0 the predictions are those at the reference noise of "
                f"{client.settings.reference_noise:g}, which ranks samples; attacks saw no noise at all"
            )
        tokens = client.samples.tokens
        if tokens is not None and tokens.task != "classification" and self.settings.labels_known:
            notes.append(
                "attacks were told the targets, which are tokens of the texts: what they found they found beside them"
            )
        if not self.settings.tune:
            notes.append("hyper-parameters are the published defaults, tuned on nothing")
        elif not self.is_tuned:
            notes.append("the study ended while hyper-parameters were chosen; no attack was run")
        return VerifyStudy(
            control=checked,
            knowledge=AttackerKnowledge(
                labels_known=self.settings.labels_known,
                batch_norm_statistics_known=statistics_known,
                rest_of_batch_known=not client.is_joint,
                prior=client.chosen.info.kind,
                input_range_known=client.input_range is not None,
            ),
            attacks=rows,
            agreement=agreement_rows(
                rows,
                predictions,
                higher_is_better=[metric.name for metric in metrics if metric.higher_is_better],
                predicts_rmse=[info.id for info in predicted if info.predicts_rmse],
                seed=seed,
            ),
            predictions=predictions,
            prior_only=_prior_only(client, metrics, {row.sample_id for row in rows}),
            reliability=reliability_records(rows, predictions),
            loss_comparisons=loss_comparisons(rows, predictions, _own_and_other(self.attacks), seed=seed),
            timings=timings(rows, predictions),
            metric_notes=metric_notes(metrics),
            attack_settings={name: hyper_parameters(attack) for name, attack in self.attacks.items()},
            attack_info=[attack.info() for attack in self.attacks.values()],
            metric_info=[metric.info() for metric in metrics],
            prediction_info=predicted,
            complete=stopped_by is None,
            stopped_by=stopped_by,
            foretold=self.foretold,
            notes=notes,
        )


def _metrics(client: Client) -> tuple[str, ...]:
    return reported_metrics(tables=client.samples.encoding is not None, texts=client.samples.tokens is not None)


def usable_samples(client: Client) -> list[int]:
    """Samples of uploads whose losses and release are finite; the others have failed rows in the audit."""
    maker, size = client.jacobian(client.release), client.upload_size
    usable: list[int] = []
    for numbers in batches(len(client.uploads)):
        jacobian = maker(client.upload_batch(numbers))
        finite = torch.isfinite(jacobian.losses()).reshape(-1, size).all(1) & torch.isfinite(jacobian.norms)
        for number, is_finite in zip(numbers, finite.tolist(), strict=True):
            usable += client.uploads[number].positions if is_finite else ()
    return usable


def _prior_only(client: Client, metrics: Sequence[Metric], sample_ids: set[str]) -> list[PriorOnly]:
    """What the prior's mean alone comes to, for the samples that were attacked."""
    indices = [index for index, name in enumerate(client.samples.ids) if name in sample_ids]
    if not indices:
        return []
    batch = client.batch(indices)
    mean = client.chosen.prior.bind(batch.targets, batch.inputs.flatten(1), batch.lengths).mean
    guesses = prior_only(metrics, mean, batch.inputs)
    return [
        PriorOnly(sample_id=client.samples.ids[index], metrics=guess)
        for index, guess in zip(indices, guesses, strict=True)
    ]


def _own_and_other(attacks: Mapping[str, Attack]) -> dict[str, tuple[str, str]]:
    """Per attack the proxy of its own matching loss, and that of the other one."""
    pairs = {}
    for name, attack in attacks.items():
        if attack.matching is not None:
            other = next(loss for loss in MATCHING_PROXIES if loss != attack.matching)
            pairs[name] = (MATCHING_PROXIES[attack.matching], MATCHING_PROXIES[other])
    return pairs


def split_for_tuning(samples: Samples, limit: int | None) -> tuple[Samples, Samples]:
    """The samples to report, and those after them to tune on.

    Raises:
        SettingsError: none are left over.
    """
    if limit is None or len(samples) <= limit:
        raise SettingsError(
            f"`tune` needs samples beyond those reported; give a `limit` below the {len(samples)} of {samples.name}"
        )
    return samples.select(list(range(limit))), samples.select(list(range(limit, len(samples))))


def tuned(
    attacks: Mapping[str, Attack], client: Client, tuning_samples: Samples | None, engine: Engine, journal: Journal,
    budget: Budget = UNLIMITED,
) -> dict[str, Attack]:  # fmt: skip
    """Every attack with the candidate of its grid that did best.

    Raises:
        SettingsError: there are no samples to tune on, or they are among those reported.
        BudgetUsedUpError: time was over before all candidates had been tried.
    """
    if tuning_samples is None or not len(tuning_samples):
        raise SettingsError("`tune` needs samples beyond those reported; lower `limit` or add data")
    # Whole uploads of the reported ones' size, where there are so many.
    count = len(tuning_samples) // client.upload_size * client.upload_size or len(tuning_samples)
    others = tuning_samples.select(list(range(count)))
    trials = [TuningTrial(f"tuning {name}", attack, others, budget) for name, attack in attacks.items()]
    best = engine.map(trials, client, journal)
    return {
        name: with_fields(attack, dict(attack.grid[position]))
        for (name, attack), position in zip(attacks.items(), best, strict=True)
    }


@dataclass(frozen=True, eq=False)
class TuningTrial(Trial[Client]):
    """The choice for one attack, on samples of its own; gives a position in the attack's grid."""

    key: str
    attack: Attack
    samples: Samples
    budget: Budget = UNLIMITED

    size = 0

    @override
    def run(self, client: Client) -> int:
        with self.budget.of_trial(self.key):
            return self._best(client)

    def _best(self, client: Client) -> int:
        grid = self.attack.grid
        if len(grid) == 1 or self.attack.oracle_start:
            return 0
        transformation = client.release.spec.transformation
        samples = self.samples if transformation is None else transformed(self.samples, transformation)
        client = client.with_samples(samples)
        target = Target.of(client, None, labels_known=True, deadline=self.budget.deadline)
        indices = list(range(len(self.samples)))
        truth = target.client.batch(indices).inputs
        errors = []
        for candidate in grid:
            try:
                reconstruction = reconstruct(with_fields(self.attack, dict(candidate)), target, indices)
            except AttackNotApplicable:
                return 0
            order = matched_order(reconstruction.inputs, truth, target.client.upload_size)
            squared = mean_squared_error(reconstruction.inputs[order], truth, texts=samples.tokens is not None)
            errors.append(float(squared.sqrt().mean()))
        return min(range(len(errors)), key=errors.__getitem__)
