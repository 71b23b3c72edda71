"""A study: trials on a client, and what their results say together.

Every study is run alike. Finished trials are in the journal before the next one is waited for; an interrupt
(`KeyboardInterrupt`) ends the study, and the same study with ``resume`` takes over what is finished. Results depend
neither on where trials ran nor on where a study was interrupted.

Studies that compare models measure the same few numbers of every sample under one model after the other.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, final

import numpy as np
from typing_extensions import override

from riskaudit.audit.audit import AuditedSamples, audit_samples
from riskaudit.audit.client import Client
from riskaudit.engine import Engine, Journal, Progress, Trial, fingerprint
from riskaudit.errors import SettingsError
from riskaudit.inputs.identifiers import hash_tensors
from riskaudit.release.noise import Noise
from riskaudit.results import Estimate, Record, SampleRow
from riskaudit.results.subject import Attacker
from riskaudit.results.verdicts import error_of, headline_of
from riskaudit.statistics.summaries import of_known
from riskaudit.studies.attacking import attack_trials, batches, rows_of
from riskaudit.studies.budget import Budget
from riskaudit.studies.control import ControlTrial
from riskaudit.studies.rows import AttackRow, Forecast, Quartiles, SampleRisk, strongest
from riskaudit.studies.settings import AttackSettings
from riskaudit.version import __version__

RecordT_co = TypeVar("RecordT_co", bound=Record, covariant=True)
# What studies that compare models attack with.
ATTACKS = ("gauss-newton", "inverting-gradients")
KNOWS_THE_OTHERS = (
    "predictions are for an attacker who knows all other samples of an upload; attacks know none of them, so that "
    "their errors may be larger"
)


@dataclass(frozen=True)
class StudyRun:
    """How a study is run.

    Attributes:
        attacks: check its predictions by attacks too.
        attack_steps: of every attack; None for each one's own.
        log: file in which finished trials are kept; None for memory only.
        resume: take over what is in it.
        progress: called as ``progress(done, total)``, in trials.
        command: the command line that reproduces the result.
        show_samples: put private images into the result.
        workers: processes that trials are spread over; results don't depend on it.
        announce: called with what the run will take, before it begins; without, that isn't foretold.
        started: on the monotonic clock, where a budget of time counts what came before; None for when the study is
            called.
    """

    attacks: bool = False
    attack_steps: int | None = None
    log: Path | None = None
    resume: bool = False
    progress: Progress | None = None
    command: str | None = None
    show_samples: bool = False
    workers: int = 1
    announce: Callable[[Forecast], None] | None = None
    started: float | None = None

    def budget(self, seconds: float | None) -> Budget:
        """So many seconds from the start."""
        return Budget(seconds) if self.started is None else Budget(seconds, self.started)

    def journal(self, identity: Mapping[str, Any]) -> Journal:
        """The journal of a study with this identity.

        Raises:
            SettingsError: the log belongs to another study.
            OutputError: it can't be written.
        """
        return Journal(self.log, fingerprint(identity), self.resume)


class Study(ABC, Generic[RecordT_co]):
    """A question that trials answer; implementations are frozen dataclasses of what decides the trials."""

    @abstractmethod
    def trials(self, client: Client) -> Sequence[Trial[Client]]:
        """What there is to do, in the order of the record."""

    @abstractmethod
    def summarise(self, client: Client, results: Sequence[Any]) -> RecordT_co:
        """What the trials' results, in the trials' order, say together."""

    @final
    def answer(self, client: Client, engine: Engine, journal: Journal, progress: Progress | None = None) -> RecordT_co:
        """The record, from trials that are run now and those of the journal.

        Raises:
            Interrupted: see `Engine.map`.
        """
        return self.summarise(client, engine.map(self.trials(client), client, journal, progress))


def identity_of(
    client: Client, attacks: AttackSettings, noise_stds: Sequence[float], show_samples: bool
) -> dict[str, Any]:
    """Everything that decides a trial's result; a budget of time only decides which trials are run."""
    samples = client.samples
    data, weights = hashlib.sha256(), hashlib.sha256()
    hash_tensors(data, [("inputs", samples.inputs), ("targets", samples.targets)])
    hash_tensors(weights, client.release.model.state_dict().items())
    return {
        "version": __version__,
        "weights": weights.hexdigest(),
        "data": data.hexdigest(),
        "ids": list(samples.ids),
        # Which inputs belong to which column.
        "encoding": None if samples.encoding is None else samples.encoding.sha256,
        "settings": asdict(replace(client.settings, budget=None)),
        "attacks": asdict(attacks),
        "noise_stds": list(noise_stds),
        "show_samples": show_samples,
    }


@dataclass(frozen=True)
class ModelComparison(Study[RecordT_co]):
    """Models compared on a client's samples, one trial each, after the positive control of their attacks."""

    attacks: AttackSettings | None

    @abstractmethod
    def models(self, client: Client) -> Sequence[Trial[Client]]:
        """A trial per model, in the order of the record."""

    @abstractmethod
    def compare(self, client: Client, results: Sequence[Any], shared: dict[str, Any]) -> RecordT_co:
        """What the models' results say together; ``shared`` are the fields of `ModelsStudy`."""

    @final
    @override
    def trials(self, client: Client) -> list[Trial[Client]]:
        checked = [] if self.attacks is None else [ControlTrial(self.attacks.attacks())]
        return [*checked, *self.models(client)]

    @final
    @override
    def summarise(self, client: Client, results: Sequence[Any]) -> RecordT_co:
        std, reference = noise_level(client)
        checked, models = (None, results) if self.attacks is None else (results[0], results[1:])
        shared = {
            "architecture": client.checkpoint.architecture,
            "noise_std": std,
            "reference_noise": reference,
            "prior_rmse": client.chosen.info.std,
            "attacks": [] if self.attacks is None else list(self.attacks.chosen),
            "control": checked,
        }
        return self.compare(client, models, shared)


@dataclass(frozen=True)
class Measured:
    """One model: its samples in the data's order, and what attacks could not do."""

    samples: list[SampleRisk]
    attack_notes: list[str]


def measure(client: Client, attacks: AttackSettings | None) -> Measured:
    """Audit a client, and attack it at the noise of the audit where attacks are given.

    Of the settings, the proxies are `proxies_of` it and there is no calibration, which belongs to one model.

    Raises:
        RiskauditError: as `audit`; a model none of whose samples has a finite gradient among others.
    """
    return measured(audit_samples(compared(client)).rows, client, attacks)


def compared(client: Client) -> Client:
    """The client with the proxies that models are compared by, and no calibration, which belongs to one model."""
    return replace(client, settings=replace(client.settings, proxies=proxies_of(client), calibration=None))


def measured(rows: Sequence[SampleRow], client: Client, attacks: AttackSettings | None) -> Measured:
    """Likewise from an audit's rows, which have all of `proxies_of` it."""
    attacked = [] if attacks is None else attack(rows, client, attacks)
    best = {sample: value for (_, sample), (value, _) in strongest(attacked).items()}
    errors: dict[str, dict[str, float]] = {}
    for row in attacked:
        if not row.oracle_start and (error := row.metrics.get("rmse")) is not None:
            errors.setdefault(row.sample_id, {})[row.attack] = error
    oracle = {row.sample_id: row.metrics.get("rmse") for row in attacked if row.oracle_start}
    attacker = _attacker_of(client)
    solved = [{name: evidence.value for name, evidence in row.solvers.items()} for row in rows]
    samples = [
        SampleRisk(
            sample_id=row.id,
            status=row.status,
            reason=row.reason,
            loss=row.loss,
            largest_eigenvalue=values.get("largest_eigenvalue"),
            trace=values.get("trace"),
            attack_rmse=best.get(row.id),
            attack_errors=errors.get(row.id, {}),
            oracle_rmse=oracle.get(row.id),
            gradient_norm=row.proxies["gradient_norm"].value,
            expected_rmse=row.proxies["expected_rmse"],
            posterior_rmse=row.proxies[error_of(attacker)],
            revealed_fraction=row.proxies[headline_of(attacker)],
        )
        for row, values in zip(rows, solved, strict=True)
    ]
    return Measured(samples, attack_notes(attacked, client))


def attack(rows: Sequence[SampleRow], client: Client, attacks: AttackSettings) -> list[AttackRow]:
    """Attacks at the noise of the audit whose rows are given, on every upload that was assessed whole."""
    std, undefended = noise_level(client)
    return attack_at({std: std if undefended else None}, rows, client, attacks)


def attack_at(
    levels: Mapping[float, float | None], rows: Sequence[SampleRow], client: Client, attacks: AttackSettings
) -> list[AttackRow]:
    """Likewise at the given noise; ``levels`` as `noise_levels` gives them."""
    assessed = [row.status != "failed" for row in rows]
    # Uploads are attacked whole.
    whole = [upload.positions for upload in client.uploads if all(assessed[place] for place in upload.positions)]
    usable = [place for positions in whole for place in positions]
    trials = attack_trials(
        attacks.attacks(),
        levels,
        usable,
        labels_known=attacks.labels_known,
        upload_size=client.upload_size,
        effort=attacks.effort or "adaptive",
    )
    return rows_of([trial.run(client) for trial in trials])


def attack_notes(attacked: Sequence[AttackRow], client: Client) -> list[str]:
    """What attacks could not do."""
    notes = dict.fromkeys(f"{row.attack}: {row.reason}" for row in attacked if row.reason)
    if attacked and _attacker_of(client) == "informed":
        notes[KNOWS_THE_OTHERS] = None
    return list(notes)


def proxies_of(client: Client) -> tuple[str, ...]:
    """Ids of the proxies that models are compared by: of the attacker by whom verdicts go, and the outsider's.

    Reading them off the spectrum costs next to nothing beside the spectrum itself.
    """
    attacker = _attacker_of(client)
    names = ("gradient_norm", "expected_rmse", "posterior_rmse", "revealed_fraction")
    return tuple(dict.fromkeys((*names, error_of(attacker), headline_of(attacker))))


def _attacker_of(client: Client) -> Attacker | None:
    return client.settings.attacker if client.is_joint else None


def noise_level(client: Client) -> tuple[float, bool]:
    """Std of the release's noise, or of the reference noise where it has none, and whether it is that."""
    noise = client.release.noise
    return (client.settings.reference_noise, True) if noise is None else (noise.std, False)


def with_noise_times(client: Client, factor: float) -> Client:
    """The client with so many times its noise, or its reference noise, of the same law."""
    noise = client.release.noise
    if noise is None:
        reference = client.settings.reference_noise * factor
        return replace(client, settings=replace(client.settings, reference_noise=reference))
    spec = replace(client.release.spec, noise=Noise(noise.law, noise.scale * factor))
    return replace(client, release=client.release.with_spec(spec))


def errors_at_noise_times(client: Client, audited: AuditedSamples, factor: float) -> list[Estimate | None]:
    """The posterior error at so many times a client's noise, of the attacker by whom verdicts go.

    Read off the audit's own spectra, unless these are too coarse for a number at the other noise.

    Args:
        client: that was audited.
        audited: at its own noise.
        factor: above 0.
    """
    name, found = error_of(_attacker_of(client)), audited.posterior_errors(factor)
    lost = any(
        row.proxies[name].reliable is not None and (other is None or other.reliable is None)
        for row, other in zip(audited.rows, found, strict=True)
    )
    return [row.proxies[name] for row in audit_samples(with_noise_times(client, factor)).rows] if lost else found


def released_norm(client: Client) -> float | None:
    """Median over uploads of the norm of what leaves, before noise; None where none is finite.

    Comes without an audit.
    """
    maker, norms = client.jacobian(client.release), list[float]()
    for numbers in batches(len(client.uploads)):
        norms += maker(client.upload_batch(numbers)).norms.tolist()
    return of_known(statistics.median, (norm for norm in norms if math.isfinite(norm)))


def quartiles(numbers: Iterable[float | None]) -> Quartiles | None:
    """Of the known numbers, which may be infinite; None without any."""
    values = [number for number in numbers if number is not None]
    if not values:
        return None
    # "nearest" order statistics: between a number and infinity nothing can be interpolated.
    infinite = sum(math.isinf(value) for value in values)
    method = "nearest" if infinite else "linear"
    ends = [float(end) for end in np.quantile(np.array(values), [0.25, 0.5, 0.75], method=method)]  # type: ignore[call-overload]
    lower, median, upper = (end if math.isfinite(end) else None for end in ends)
    return Quartiles(lower=lower, median=median, upper=upper, num_values=len(values), num_infinite=infinite)


def attack_settings(wanted: bool, names: Sequence[str], steps: int | None) -> AttackSettings | None:
    """What a study's attacks are given, or None.

    Raises:
        SettingsError: an unknown attack, or steps without attacks.
    """
    if not wanted and steps is not None:
        raise SettingsError("`attack_steps` belongs to `attacks`; give that as well")
    return AttackSettings(tuple(names), steps) if wanted else None
