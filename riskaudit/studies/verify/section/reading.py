"""What ``studies.verify`` of an audit says, computed once for the corridor and for the evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from riskaudit.document.blocks import Cell
from riskaudit.document.cells import number_cell
from riskaudit.formatting import count, given, short
from riskaudit.results import Estimate, SampleRow
from riskaudit.results.facts import Facts
from riskaudit.results.words import sign_mark
from riskaudit.studies.rows import AttackRow, strongest
from riskaudit.studies.verify.record import STRONGEST, AgreementRow, Prediction, Reliability, VerifyStudy

# The best stand-in first: what an attack's RMSE is laid beside.
_PREDICTED = ("map_rmse", "predicted_rmse", "posterior_rmse", "map_i2f", "i2f")
REFERENCE_NOTE = (
    "Without noise the predictions are those of the reference noise: they rank samples and foresee no error."
)
UNFINISHED = "not converged: the attack may get nearer still"
# Fields of an agreement row that say nothing without noise: all but the correlations.
_NEEDS_NOISE = [
    name
    for name in AgreementRow.model_fields
    if name.startswith(("tightness", "share", "validity", "coverage", "calibrated"))
]


def read_attack_study(facts: Facts) -> AttackStudy | None:
    """The attack study of an audit; None where there is none, or none that can be read."""
    record = facts.result.studies.get(VerifyStudy)
    return None if record is None else AttackStudy(replace(facts, more_words=tuple(record.prediction_info)), record)


@dataclass(frozen=True)
class AttackedSample:
    """One sample at one noise level, with errors in data units, None where unknown.

    ``oracle`` is that of the attack that is started at the truth, ``prior_only`` that of guessing the prior mean;
    ``low`` is the corridor's lower end.
    """

    level: float
    row: SampleRow
    prediction: Estimate | None
    attacked: float | None
    attack: AttackRow | None
    oracle: float | None
    prior_only: float | None
    low: float | None = None

    @property
    def predicted(self) -> float | None:
        """The prediction's value."""
        return self.prediction.value if self.prediction is not None else None


@dataclass(frozen=True)
class AttackStudy:
    """An attack study with what follows from it."""

    facts: Facts
    record: VerifyStudy

    @cached_property
    def noise_levels(self) -> tuple[float, ...]:
        """Levels at which attacks ran, least first."""
        return tuple(sorted({row.noise_std for row in self.record.attacks}))

    @cached_property
    def attack_names(self) -> tuple[str, ...]:
        """Attacks in the order of the study, those with an oracle start last."""
        names = dict.fromkeys(row.attack for row in self.record.attacks)
        return tuple(sorted(names, key=lambda name: name in self.oracle_names))

    @cached_property
    def oracle_names(self) -> frozenset[str]:
        """Attacks that are started at the truth."""
        return frozenset(row.attack for row in self.record.attacks if row.oracle_start)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Metrics with a value somewhere, in the report's order."""
        computed = {name for row in self.record.attacks for name, value in row.metrics.items() if value is not None}
        described = [info.id for info in self.record.metric_info if info.id in computed]
        return (*described, *sorted(computed - set(described)))

    @cached_property
    def audited_level(self) -> float | None:
        """The noise level of the audit itself, else the least one: that of an undefended release is 0."""
        std = self.facts.noise_std
        matching = [level for level in self.noise_levels if std is not None and math.isclose(level, std, rel_tol=1e-6)]
        return next(iter((*matching, *self.noise_levels)), None)

    @cached_property
    def best(self) -> dict[tuple[float, str], tuple[float, AttackRow]]:
        """Least RMSE over the attacks without oracle start, and its row, per noise level and sample id."""
        return strongest(self.record.attacks)

    @cached_property
    def oracle_errors(self) -> dict[tuple[float, str], float]:
        """RMSE of the attack that is started at the truth, per noise level and sample id."""
        rows = [row for row in self.record.attacks if row.oracle_start]
        errors = {(row.noise_std, row.sample_id): row.metrics.get("rmse") for row in rows}
        return {key: error for key, error in errors.items() if error is not None}

    @cached_property
    def predictions(self) -> dict[tuple[float, str], Prediction]:
        """Predictions per noise level above 0 and sample id: without noise nothing foresees an error."""
        return {(row.noise_std, row.sample_id): row for row in self.record.predictions if row.noise_std > 0}

    @cached_property
    def agreement(self) -> tuple[AgreementRow, ...]:
        """Predictions against attacks; without noise only their ranks."""
        nothing = dict.fromkeys(_NEEDS_NOISE)
        rows = sorted(self.record.agreement, key=lambda row: row.noise_std)
        return tuple(row if row.noise_std > 0 else row.model_copy(update=nothing) for row in rows)

    @cached_property
    def headline_agreement(self) -> tuple[AgreementRow, ...]:
        """The headline prediction against the strongest attack's RMSE, per noise level."""
        headline = (STRONGEST, "rmse", self.predicted_proxy)
        return tuple(row for row in self.agreement if (row.attack, row.metric, row.proxy) == headline)

    @cached_property
    def reliability(self) -> tuple[Reliability, ...]:
        """Success probabilities against outcomes, where there is noise."""
        return tuple(row for row in self.record.reliability if row.noise_std > 0)

    @cached_property
    def prior_only(self) -> dict[str, float]:
        """RMSE of guessing the prior mean, per sample id."""
        errors = {row.sample_id: row.metrics.get("rmse") for row in self.record.prior_only}
        return {sample: error for sample, error in errors.items() if error is not None}

    @cached_property
    def predicted_proxy(self) -> str | None:
        """The proxy that an attack's RMSE is laid beside."""
        valued = {
            proxy
            for prediction in self.record.predictions
            for proxy, estimate in prediction.proxies.items()
            if estimate.value is not None
        }
        return next((proxy for proxy in _PREDICTED if proxy in valued), None)

    def predicted(self, noise_std: float, sample: str, proxy: str | None = None) -> Estimate | None:
        """A proxy's estimate of one sample at one level."""
        prediction = self.predictions.get((noise_std, sample))
        proxy = proxy or self.predicted_proxy
        return prediction.proxies.get(proxy) if prediction is not None and proxy is not None else None

    def samples(self, level: float) -> list[AttackedSample]:
        """All samples at one noise level, in the order of the data."""
        samples = []
        for row in self.facts.result.samples:
            attacked, attack = self.best.get((level, row.id), (None, None))
            oracle, guess = self.oracle_errors.get((level, row.id)), self.prior_only.get(row.id)
            samples.append(AttackedSample(level, row, self.predicted(level, row.id), attacked, attack, oracle, guess))
        return samples

    def predicted_title(self) -> str:
        """The name of the proxy that an attack's RMSE is laid beside."""
        return self.facts.title(self.predicted_proxy) if self.predicted_proxy else "no prediction"

    def attack_title(self, name: str) -> str:
        """An attack's name; one that starts at the truth says so."""
        return f"{short(name, 32)} (oracle start)" if name in self.oracle_names else short(name, 32)

    def metric_title(self, name: str) -> str:
        """A metric for readers."""
        return short(next((info.title for info in self.record.metric_info if info.id == name), name), 24)

    def sign_mark(
        self, proxy: str, metric: str, value: float | None, low: float | None = None, high: float | None = None
    ) -> str:
        """What to write behind a rank correlation that contradicts what the proxy says of itself, else nothing."""
        info = self.facts.info(proxy)
        better = next((each.higher_is_better for each in self.record.metric_info if each.id == metric), None)
        if info is None or better is None or value is None:
            return ""
        return sign_mark(value, low, high, info.riskier, better)

    def control_words(self) -> str:
        """The positive control in a few words."""
        attacks = [name for name in self.attack_names if name not in self.oracle_names]
        broken = " (the attacks are broken)" if self.record.control.status == "failed" else ""
        return f"{count(len(attacks), 'attack')} run, positive control {self.record.control.status}{broken}"


def noise_words(noise_std: float) -> str:
    """A noise level for readers."""
    return f"noise std {given(noise_std)}" if noise_std else "no noise"


def at_noise(noise_std: float) -> str:
    """A noise level inside a sentence."""
    return f"at {noise_words(noise_std)}" if noise_std else "without noise"


def attacked_cell(error: float | None, row: AttackRow | None) -> Cell:
    """What an attack reached. An unfinished one was measured all the same, and proves at least so much."""
    # Type checkers tell statuses apart by single comparisons only.
    status = None if row is None or row.status == "stopped" or row.status == "not_run" else row.status  # noqa: PLR1714
    cell = number_cell(error, status, missing="no result")
    unfinished = error is not None and row is not None and row.status == "not_converged"
    return replace(cell, word=UNFINISHED) if unfinished else cell
