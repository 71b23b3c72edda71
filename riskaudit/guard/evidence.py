"""Evidence for and against the derivative at the samples of a review, from products that it has made already.

Tests of a derivative are drawn, and nobody shall ask until they happen to pass: what was reason for doubt at a sample
is kept for later reviews of the same sample, model, loss, release and prior in this process.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from riskaudit.audit.credibility import examine, precise_differences
from riskaudit.audit.evidence import Evidence, Hidden, Quotient
from riskaudit.guard.client import Client
from riskaudit.guard.identifiers import sample_digest
from riskaudit.jacobian import Jacobian
from riskaudit.linalg import KrylovSpace
from riskaudit.priors import Prior
from riskaudit.release import Batch

# One in so many batches has a sample that is looked at in double precision.
PRECISE_REVIEWS = 8
# Samples whose doubts are kept, and how many of each.
SAMPLES, EACH = 4096, 8
_doubts: OrderedDict[bytes, list[Evidence]] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class LastingEvidence:
    """Evidence at one sample, with what was reason for doubt at the same sample and model before in this process.

    Attributes:
        new: evidence of this review.
        key: digest of sample, model, loss, release and prior.
    """

    new: Evidence
    key: bytes

    @property
    def quotients(self) -> list[Quotient]:
        """What quotients of all evidence, old and new, tell of the input."""
        return [quotient for evidence in self._every() for quotient in evidence.quotients]

    @property
    def hidden(self) -> list[Hidden]:
        """What all evidence, old and new, shows to be hidden from the derivative."""
        return [hidden for evidence in self._every() for hidden in evidence.hidden]

    def doubt(
        self, noise_std: float, claimed_rmse: float | None = None, claimed_fraction: float | None = None
    ) -> str | None:
        """The first reason for doubt, see `Evidence.doubt`; its evidence is kept for later reviews."""
        for evidence in self._every():
            doubt = evidence.doubt(noise_std, claimed_rmse, claimed_fraction)
            if doubt is not None:
                _remember(self.key, evidence)
                return doubt
        return None

    def _every(self) -> list[Evidence]:
        with _lock:
            return [*_doubts.get(self.key, ()), self.new]


def gather_evidence(
    client: Client, prior: Prior, batch: Batch, spaces: Sequence[KrylovSpace], jacobian: Jacobian | None
) -> list[LastingEvidence]:
    """Evidence at B samples, with what was reason for doubt at them before.

    Args:
        client: whose release it is.
        prior: of the attacker.
        batch: the samples.
        spaces: of their first products with H, each from a random vector that nobody can foresee.
        jacobian: at the batch, if it is there already.
    """
    flat = batch.inputs.flatten(1)
    # H's quadratic form in the unit vector that a space begins with is |J q|^2.
    first = torch.tensor([space.tridiagonal.diagonal[0] for space in spaces], device=flat.device)
    units, pushed = torch.stack([space.basis[0] for space in spaces]), first.clamp_min(0.0).sqrt()
    maker, bound = client.jacobian_maker(batch), prior.bind(batch.targets, flat)
    evidence = examine(maker, batch, bound, math.sqrt(flat.shape[1]) * units, jacobian=jacobian, pushed=pushed)
    if flat.dtype != torch.float64 and not secrets.randbelow(PRECISE_REVIEWS):
        # Of one sample that nobody can foresee, what single precision doesn't show.
        index = secrets.randbelow(len(batch))
        (tiny,) = precise_differences(maker, batch.select([index]))
        evidence[index] = evidence[index] if tiny is None else replace(evidence[index], tiny=(tiny,))
    setting = client.state + prior.info().model_dump_json().encode()
    keys = (hashlib.sha256(setting + sample_digest(*pair)) for pair in zip(batch.inputs, batch.targets, strict=True))
    return [LastingEvidence(new, key.digest()) for new, key in zip(evidence, keys, strict=True)]


def _remember(key: bytes, evidence: Evidence) -> None:
    with _lock:
        doubts = _doubts.setdefault(key, [])
        _doubts.move_to_end(key)
        if len(doubts) < EACH and not any(other is evidence for other in doubts):
            doubts.append(evidence)
        while len(_doubts) > SAMPLES:
            _doubts.popitem(last=False)
