"""A study: trials on a client, and what their results say together.

Every study is run alike. Finished trials are in the journal before the next one is waited for; an interrupt
(`KeyboardInterrupt`) ends the study, and the same study with ``resume`` takes over what is finished. Results depend
neither on where trials ran nor on where a study was interrupted.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, final

from riskaudit.audit.client import Client
from riskaudit.engine import Engine, Journal, Progress, Trial, fingerprint
from riskaudit.inputs.identifiers import hash_tensors
from riskaudit.results import Record
from riskaudit.studies.settings import AttackSettings
from riskaudit.version import __version__

RecordT_co = TypeVar("RecordT_co", bound=Record, covariant=True)


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
    """

    attacks: bool = False
    attack_steps: int | None = None
    log: Path | None = None
    resume: bool = False
    progress: Progress | None = None
    command: str | None = None
    show_samples: bool = False
    workers: int = 1

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
    """Everything that decides a trial's result."""
    samples = client.samples
    data, weights = hashlib.sha256(), hashlib.sha256()
    hash_tensors(data, [("inputs", samples.inputs), ("targets", samples.targets)])
    hash_tensors(weights, client.release.model.state_dict().items())
    return {
        "version": __version__,
        "weights": weights.hexdigest(),
        "data": data.hexdigest(),
        "ids": list(samples.ids),
        "settings": asdict(client.settings),
        "attacks": asdict(attacks),
        "noise_stds": list(noise_stds),
        "show_samples": show_samples,
    }
