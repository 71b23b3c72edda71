"""Evidence for and against the derivative at the samples of a review, from products that it has made already."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import replace

import torch

from riskaudit.audit.credibility import examine, precise_differences
from riskaudit.guard.client import Client
from riskaudit.guard.doubts import KnownEvidence, with_earlier
from riskaudit.jacobian import Jacobian
from riskaudit.linalg import KrylovSpace
from riskaudit.priors import Prior
from riskaudit.release import Batch

# One in so many batches has a sample that is looked at in double precision.
PRECISE_REVIEWS = 8


def gather_evidence(
    client: Client, prior: Prior, batch: Batch, spaces: Sequence[KrylovSpace], jacobian: Jacobian | None
) -> list[KnownEvidence]:
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
    found = examine(maker, batch, bound, math.sqrt(flat.shape[1]) * units, jacobian=jacobian, pushed=pushed)
    if flat.dtype != torch.float64 and not secrets.randbelow(PRECISE_REVIEWS):
        # Of one sample that nobody can foresee, what single precision doesn't show.
        place = secrets.randbelow(len(batch))
        (tiny,) = precise_differences(maker, batch.select([place]))
        found[place] = found[place] if tiny is None else replace(found[place], tiny=(tiny,))
    return with_earlier(found, batch, client.state + prior.info().model_dump_json().encode())
