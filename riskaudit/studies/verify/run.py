"""``riskaudit verify``: the proxies of an audit against full attack runs on the very release that was audited.

The audit is made first, at every noise level; then attacks run on the same draws of the noise; then the two are
held against each other per noise level, since pooling levels would inflate every correlation
(docs/theory.md, section 6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from riskaudit.attacks import Attack
from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_victim
from riskaudit.audit.client import Victim, make_victim
from riskaudit.engine.journal import TrialLog, fingerprint
from riskaudit.inputs import Checkpoint, Samples
from riskaudit.inputs.hashing import hash_tensors
from riskaudit.metrics import Metric, Subject, make_metrics, metric_notes, prior_only
from riskaudit.proxies import PROXIES
from riskaudit.results import (
    AttackerKnowledge,
    AttackRow,
    AuditResult,
    Control,
    Prediction,
    PriorOnly,
    ProxyInfo,
    VerifyStudy,
)
from riskaudit.sensitivity.success import PREDICTED_RMSE
from riskaudit.statistics.agreement import agreement_rows, loss_comparisons, reliability_records, timings
from riskaudit.studies.attacking import (
    Progress,
    Target,
    batches,
    hyper_parameters,
    input_range,
    recorded_rows,
    releases_by_noise,
    trial_key,
)
from riskaudit.studies.control import recorded_control
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.tuning import tuned
from riskaudit.version import __version__

METRICS = ("rmse", "mse", "psnr", "ssim", "lpips", "feature_mse")
# The proxy of each loss that attacks minimise (Hong et al., AAAI 2024).
MATCHING_PROXIES = {"l2": "lavp_l2_max", "cosine": "lavp_cosine_max"}


def verify(
    checkpoint: Checkpoint | nn.Module,
    samples: Samples,
    settings: AuditSettings | None = None,
    attacks: AttackSettings | None = None,
    *,
    noise_stds: Sequence[float] = (),
    tuning_samples: Samples | None = None,
    show_samples: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
    log: Path | None = None,
    resume: bool = False,
) -> AuditResult:
    """Audit a release, attack it, and say how well the proxies foresaw the attacks.

    Args:
        checkpoint: see `audit`.
        samples: see `audit`.
        settings: of the audit; its release's noise is replaced where noise levels are named.
        attacks: which, and what they know.
        noise_stds: Gaussian std per released entry of every noise level; 0 is undefended. The first is that of
            the audit itself. None named: the release's own.
        tuning_samples: other samples, on which hyper-parameters are chosen where the settings ask for it.
        show_samples: put private images and reconstructions into the result.
        command: see `audit`.
        progress: called as ``progress(done, total)``; every audit and every attack of a sample counts as one.
        log: file in which finished trials are kept, so that a killed study can be resumed.
        resume: take over what is in it.

    Returns:
        The audit with ``studies.verify``. An interrupt (KeyboardInterrupt) while attacks run ends the study with
        what is finished: ``complete`` is false then. The log stays: remove it once a complete result is safe.

    Raises:
        RiskauditError: as `audit`; or the attacks' settings don't fit.
    """
    settings, attacks = settings or AuditSettings(), attacks or AttackSettings()
    victim = make_victim(checkpoint, samples, settings)
    releases = releases_by_noise(victim.release, noise_stds)
    identity = identity_of(victim, attacks, list(releases), show_samples)
    trials = TrialLog(log, identity, resume)
    report = _Progress(progress, len(samples) * len(releases) * (1 + len(attacks.attacks())))
    audits = []
    for place, release in enumerate(releases.values()):
        after = report.after(place * len(samples))
        shown = show_samples and place == 0
        audits.append(audit_victim(victim.at(release), show_samples=shown, command=command, progress=after))
    study = _Study(victim, attacks, trials, show_samples)
    chosen = study.choose(tuning_samples)
    targets = [Target(victim, victim.jacobian(release), std, attacks.labels_known) for std, release in releases.items()]
    rows, checked, complete = study.run(chosen, targets, report.after(len(samples) * len(releases)))
    predictions = [
        prediction for std, result in zip(releases, audits, strict=True) for prediction in predictions_of(result, std)
    ]
    record = _record(study, chosen, rows, predictions, checked, complete)
    return audits[0].with_study(record)


def predictions_of(result: AuditResult, noise_std: float) -> list[Prediction]:
    """What an audit says of its samples, as a study records it; failed samples are left out."""
    share = result.cost.seconds / max(1, len(result.samples))
    return [
        Prediction(
            noise_std=noise_std,
            sample_id=row.id,
            proxies=row.proxies | ({"predicted_rmse": row.predicted_rmse} if row.predicted_rmse is not None else {}),
            success_probability=row.success_probability,
            calibrated=row.calibrated,
            seconds=share,
        )
        for row in result.samples
        if row.status != "failed"
    ]


@dataclass(frozen=True)
class _Progress:
    """One count over audits and attacks."""

    report: Progress | None
    total: int

    def after(self, before: int) -> Progress:
        """Progress of a part that follows ``before`` others; its own total doesn't matter."""

        def update(done: int, _: int) -> None:
            if self.report is not None:
                self.report(before + done, self.total)

        return update


@dataclass(frozen=True, eq=False)
class _Study:
    """What stays the same over all trials."""

    victim: Victim
    settings: AttackSettings
    trials: TrialLog
    show_samples: bool

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        samples = self.victim.samples
        subject = Subject(
            tuple(samples.inputs.shape[1:]),
            input_range(self.victim) or (float(samples.inputs.min()), float(samples.inputs.max())),
            self.victim.release.model,
        )
        return make_metrics(subject, METRICS)

    def choose(self, tuning_samples: Samples | None) -> dict[str, Attack]:
        """The attacks, tuned on other samples where asked for."""
        attacks = self.settings.attacks()
        if not self.settings.tune:
            return attacks
        return tuned(attacks, self.victim, tuning_samples, self.trials)

    def run(
        self, attacks: dict[str, Attack], targets: list[Target], progress: Progress
    ) -> tuple[list[AttackRow], Control, bool]:
        """Every attack at every noise level, the control first; what is finished, and whether that is all."""
        checked = Control(status="skipped", rmse=None, reason="the study was interrupted before the control")
        metrics, done, complete = self.metrics, 0, False
        planned: list[str] = []
        try:
            checked = recorded_control(attacks, self.victim.settings, self.trials)
            for name, target, indices in self._plan(attacks, targets):
                planned.append(trial_key(name, target, indices))
                recorded_rows(self.trials, name, attacks[name], target, indices, metrics, self.show_samples)
                done += len(indices)
                progress(done, 0)
            complete = True
        except KeyboardInterrupt:
            pass
        # Read back, since an interrupt may come at any moment.
        rows = [AttackRow.model_validate(row) for key in planned if key in self.trials for row in self.trials[key]]
        return rows, checked, complete

    def _plan(self, attacks: dict[str, Attack], targets: list[Target]) -> Iterator[tuple[str, Target, list[int]]]:
        # Noise makes no gradient finite or infinite.
        usable = self._finite(targets[0])
        for target in targets:
            for name in attacks:
                for places in batches(len(usable)):
                    yield name, target, [usable[place] for place in places]

    def _finite(self, target: Target) -> list[int]:
        """Samples whose loss and release are finite; the others have failed rows in the audit."""
        usable: list[int] = []
        for indices in batches(len(self.victim.samples)):
            jacobian = target.jacobian(self.victim.batch(indices))
            fine = torch.isfinite(jacobian.losses()) & torch.isfinite(jacobian.norms)
            usable += [index for index, good in zip(indices, fine.tolist(), strict=True) if good]
        return usable


def _record(
    study: _Study, attacks: dict[str, Attack], rows: list[AttackRow], predictions: list[Prediction], checked: Control,
    complete: bool,
) -> VerifyStudy:  # fmt: skip
    victim, seed = study.victim, study.victim.settings.seed
    metrics = study.metrics
    predicted = _prediction_info(predictions)
    ids = {row.sample_id for row in rows}
    usable = [index for index, name in enumerate(victim.samples.ids) if name in ids]
    batch = victim.batch(usable) if usable else None
    guesses: list[dict[str, float | None]] = []
    if batch is not None:
        mean = victim.chosen.prior.bind(batch.targets, batch.inputs.flatten(1)).mean
        guesses = prior_only(metrics, mean, batch.inputs)
    return VerifyStudy(
        control=checked,
        knowledge=AttackerKnowledge(
            labels_known=study.settings.labels_known,
            batch_norm_statistics_known=True,
            rest_of_batch_known=True,
            prior=victim.chosen.info.kind,
            input_range_known=input_range(victim) is not None,
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
        prior_only=[
            PriorOnly(sample_id=victim.samples.ids[index], metrics=guess)
            for index, guess in zip(usable, guesses, strict=True)
        ],
        reliability=reliability_records(rows, predictions),
        loss_comparisons=loss_comparisons(rows, predictions, _own_and_other(attacks), seed=seed),
        timings=timings(rows, predictions),
        metric_notes=metric_notes(metrics),
        attack_settings={name: hyper_parameters(attack) for name, attack in attacks.items()},
        attack_info=[attack.info() for attack in attacks.values()],
        metric_info=[metric.info() for metric in metrics],
        prediction_info=predicted,
        complete=complete,
        notes=_notes(study, predictions),
    )


def _prediction_info(predictions: Sequence[Prediction]) -> list[ProxyInfo]:
    """What stands in predictions, in the order of tables."""
    listed = {name for prediction in predictions for name in prediction.proxies}
    known = [*(proxy.info() for proxy in PROXIES.values()), PREDICTED_RMSE]
    return sorted((info for info in known if info.id in listed), key=lambda info: info.order)


def _own_and_other(attacks: Mapping[str, Attack]) -> dict[str, tuple[str, str]]:
    """Per attack the proxy of its own matching loss, and that of the other one."""
    pairs = {}
    for name, attack in attacks.items():
        if attack.matching is not None:
            other = next(loss for loss in MATCHING_PROXIES if loss != attack.matching)
            pairs[name] = (MATCHING_PROXIES[attack.matching], MATCHING_PROXIES[other])
    return pairs


def _notes(study: _Study, predictions: list[Prediction]) -> list[str]:
    notes = []
    if any(prediction.noise_std == 0 for prediction in predictions):
        notes.append(
            "at noise 0 the predictions are those at the reference noise of "
            f"{study.victim.settings.reference_noise:g}, which ranks samples; attacks saw no noise at all"
        )
    if not study.settings.tune:
        notes.append("hyper-parameters are the published defaults, tuned on nothing")
    return notes


def identity_of(victim: Victim, attacks: AttackSettings, noise_stds: list[float], show_samples: bool) -> str:
    """Everything that decides a trial's result."""
    samples = victim.samples
    data = hashlib.sha256()
    hash_tensors(data, [("inputs", samples.inputs), ("targets", samples.targets)])
    weights = hashlib.sha256()
    hash_tensors(weights, victim.release.model.state_dict().items())
    return fingerprint(
        {
            "version": __version__,
            "weights": weights.hexdigest(),
            "data": data.hexdigest(),
            "ids": list(samples.ids),
            "settings": asdict(victim.settings),
            "attacks": asdict(attacks),
            "noise_stds": noise_stds,
            "show_samples": show_samples,
        }
    )
