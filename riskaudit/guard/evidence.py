"""Evidence for and against the derivative at the samples of a review, from products that it has made already.

Tests of a derivative are drawn, and nobody shall ask until they happen to pass: what was reason for doubt at a sample
is kept for later reviews of the same sample, model, loss, release and prior in this process.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch

from riskaudit.audit.credibility import examine, precise_differences
from riskaudit.audit.evidence import Evidence
from riskaudit.guard.client import Client
from riskaudit.guard.identifiers import sample_digest
from riskaudit.jacobian import Jacobian
from riskaudit.linalg import KrylovSpace
from riskaudit.priors import Prior
from riskaudit.release import Batch
from riskaudit.sensitivity import Information

# One in so many batches has a sample that is looked at in double precision.
PRECISE_REVIEWS = 8
# Samples whose doubts are kept, and how many of each.
SAMPLES, EACH = 4096, 8
_doubts: OrderedDict[bytes, list[Evidence]] = OrderedDict()


def lasting_doubt(new: Evidence, key: bytes, information: Information | None, noise_std: float) -> str | None:
    """The first reason for doubt at one sample, see `Evidence.doubt`; its evidence is kept for later reviews.

    ``key`` is a digest of sample, model, loss, release and prior. ``information`` is claimed of the sample's own
    release, which has noise of this Fisher-equivalent std; None for no claim.
    """
    gathered: list[Evidence] = [*_doubts.get(key, ()), new]
    error = revealed = None
    if information is not None and any(evidence.quotients for evidence in gathered):
        error = information.error(noise_std).low
    if information is not None and any(evidence.hidden for evidence in gathered):
        revealed = information.revealed(noise_std).high
    for evidence in gathered:
        doubt = evidence.doubt(noise_std, error, revealed)
        if doubt is not None:
            doubts = _doubts.setdefault(key, [])
            _doubts.move_to_end(key)
            if len(doubts) < EACH and not any(other is evidence for other in doubts):
                doubts.append(evidence)
            while len(_doubts) > SAMPLES:
                _doubts.popitem(last=False)
            return doubt
    return None


def gather_evidence(
    client: Client, prior: Prior, batch: Batch, spaces: Sequence[KrylovSpace], jacobian: Jacobian | None
) -> list[tuple[Evidence, bytes]]:
    """Evidence at B samples, each with the key of what was reason for doubt there before.

    ``spaces`` are those of the samples' first products with H, each from a random vector that nobody can foresee.
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
    keys = (hashlib.sha256(setting + sample_digest(*pair)) for pair in batch.pairs())
    return [(new, key.digest()) for new, key in zip(evidence, keys, strict=True)]
