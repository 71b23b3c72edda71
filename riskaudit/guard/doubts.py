"""Samples whose derivative was doubted once: tests of it are drawn, and nobody shall ask until they happen to pass."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from riskaudit.audit.evidence import Evidence, Hidden, Quotient
from riskaudit.guard.contents import sample_digest
from riskaudit.release import Batch

# Samples that are held, and evidence of each.
SAMPLES, EACH = 4096, 8
_held: OrderedDict[bytes, list[Evidence]] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class KnownEvidence:
    """Evidence at one sample, with what was reason for doubt at the same sample and model before in this process.

    Attributes:
        own: evidence of this review.
        key: of sample, model, loss, release and prior.
    """

    own: Evidence
    key: bytes

    @property
    def quotients(self) -> list[Quotient]:
        """See `Evidence`."""
        return [quotient for one in self._every() for quotient in one.quotients]

    @property
    def hidden(self) -> list[Hidden]:
        """See `Evidence`."""
        return [hidden for one in self._every() for hidden in one.hidden]

    def doubt(
        self, noise_std: float, claimed_rmse: float | None = None, claimed_fraction: float | None = None
    ) -> str | None:
        """See `Evidence.doubt`; own evidence that is reason for doubt is kept for later reviews."""
        for one in self._every():
            doubt = one.doubt(noise_std, claimed_rmse, claimed_fraction)
            if doubt is not None:
                _remember(self.key, one)
                return doubt
        return None

    def _every(self) -> list[Evidence]:
        with _lock:
            return [*_held.get(self.key, ()), self.own]


def with_earlier(evidence: Sequence[Evidence], batch: Batch, setting: bytes) -> list[KnownEvidence]:
    """Evidence at B samples with earlier reasons for doubt.

    Args:
        evidence: of this review, B.
        batch: the samples.
        setting: what else than the sample the evidence depends on: digests of model, loss, release and prior.
    """
    pairs = zip(evidence, batch.inputs, batch.targets, strict=True)
    return [
        KnownEvidence(one, hashlib.sha256(setting + sample_digest(inputs, target)).digest())
        for one, inputs, target in pairs
    ]


def _remember(key: bytes, evidence: Evidence) -> None:
    with _lock:
        held = _held.setdefault(key, [])
        _held.move_to_end(key)
        if len(held) < EACH and not any(one is evidence for one in held):
            held.append(evidence)
        while len(_held) > SAMPLES:
            _held.popitem(last=False)
