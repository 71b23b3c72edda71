"""Whether the derivative of a whole upload can be believed: `credibility`'s tests where several samples leave together.

What a step of all samples of an upload does to it is held against J v, and products with J against those with J^T. A
doubt is one of all its samples. Which entries pruning keeps may change with any step, so that it is left out here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riskaudit.audit.credibility import (
    ADJOINT_ROOTS,
    ASIDE,
    LIKELY_FACTOR,
    OWN_FACTOR,
    ROUNDING,
    TINY,
    TRIES,
    WHOLE_SHARE,
    differences,
    likely_steps,
    normal_draw,
)
from riskaudit.audit.evidence import Difference, Evidence
from riskaudit.jacobian import Jacobian, JointJacobianMaker
from riskaudit.priors import BoundPrior, in_uploads
from riskaudit.release import Batch
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.release.steps import Step


def examine_uploads(
    maker: JointJacobianMaker, batch: Batch, prior: BoundPrior, drawn: Tensor, jacobian: Jacobian
) -> list[Evidence]:
    """Evidence for or against the derivative at every upload.

    Args:
        maker: makes the Jacobian.
        batch: U uploads of n samples, whose losses and means are finite.
        prior: of the attacker, at the samples.
        drawn: a standard normal vector for every sample, [U n, d].
        jacobian: at the batch.
    """
    maker, jacobian = _without_choices(maker, batch, jacobian)
    shape = (batch.num_uploads, -1)
    own, vectors = batch.inputs.reshape(shape), drawn.reshape(shape)
    steps = likely_steps(own, in_uploads(prior, batch.upload_size), vectors)
    with torch.no_grad():
        normal = normal_draw(torch.Generator().manual_seed(0))
        responses = [jacobian.step(steps[1], normal), jacobian.step(steps[0])]
        norms, gap = responses[0].norms, responses[0].adjoint_gap
        assert gap is not None
        eps = torch.finfo(maker.release.dtype).eps
        losses = jacobian.losses().detach().double().abs().reshape(shape).amin(1)
        # Where a loss is tiny, the gradient is a difference of numbers near 1.
        cancelled = 1 + 1 / losses.clamp_min(1e-300)
        rounding = ROUNDING * eps * norms * cancelled
        fits = (gap <= ADJOINT_ROOTS * eps**0.5 + ROUNDING * eps * cancelled).tolist()
        likely = [differences(1.0, one.change.norms, LIKELY_FACTOR * one.predicted + rounding) for one in responses]
        likely += [differences(1.0, one.change.unseen, one.change.seen + rounding) for one in responses]
        tiny = None if maker.release.dtype != torch.float64 else _tiny(maker, batch, steps[0], cancelled)
    return [
        Evidence(
            dimension=own.shape[1],
            tiny=() if tiny is None else (tiny[upload],),
            likely=tuple(each[upload] for each in likely),
            adjoint=fits[upload],
        )
        for upload in range(batch.num_uploads)
    ]


def _without_choices(
    maker: JointJacobianMaker, batch: Batch, jacobian: Jacobian
) -> tuple[JointJacobianMaker, Jacobian]:
    """The same without steps that choose entries, and without noise."""
    spec = maker.release.spec
    steps = tuple(part for part in spec.steps if not (isinstance(part, Step) and part.chooses))
    if len(steps) == len(spec.steps):
        return maker, jacobian
    maker = maker.of(maker.release.with_spec(type(spec)(steps, training=spec.training)))
    return maker, maker(batch)


def _tiny(maker: JointJacobianMaker, batch: Batch, direction: Tensor, cancelled: Tensor) -> list[Difference]:
    """Differences at a tiny step, the least of several tries: one may cross the kink of a unit."""
    best: list[Difference] | None = None
    for attempt in range(TRIES):
        along = direction.roll(2 * attempt, 1)
        tried = _tiny_from(maker, batch, along, cancelled)
        pairs = zip(best or tried, tried, strict=True)
        best = [other if old.counts(0.0, 1) else old for old, other in pairs]
        if not any(one.counts(0.0, 1) for one in best):
            break
    assert best is not None
    return best


def _tiny_from(maker: JointJacobianMaker, batch: Batch, direction: Tensor, cancelled: Tensor) -> list[Difference]:
    """Differences at a tiny step along directions [U, n d], beside the samples, entry by entry."""
    step = direction.reshape(batch.inputs.shape)
    aside = batch.with_inputs(batch.inputs + ASIDE * direction.roll(1, 1).reshape(batch.inputs.shape))
    at = maker(aside)
    before = at.mean().detach()
    change = maker.release.mean(aside.with_inputs(aside.inputs + TINY * step)).detach() - before
    predicted = TINY * at.matvec(direction).detach()
    unseen = (change.abs() - OWN_FACTOR * predicted.abs()).clamp_min(0.0).norm(dim=1)
    unseen = (unseen - WHOLE_SHARE * predicted.norm(dim=1)).clamp_min(0.0)
    size = before.norm(dim=1)
    if isinstance(maker.release, LocalTrainingRelease):
        # A difference of weights has their rounding.
        size = size + torch.stack([value.norm() for value in maker.release.parameters.values()]).norm()
    rounding = ROUNDING * torch.finfo(maker.release.dtype).eps * size * cancelled
    return differences(TINY, unseen, rounding)
