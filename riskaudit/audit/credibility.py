"""Whether a derivative can be believed: J v held against what r(x) itself does, and against what stands in r(x).

A derivative is blind to whatever it can't see: rounding, thresholds, ``detach``, layers that are flat at the sample
and steep a step away. Except for the last test, the tests need values only.

1. A tiny step, near x, where no two entries of a max-pooling tie: r(x + h v) - r(x) is h J v up to h^2, whatever the
   model. What moves more than J says, entry by entry, is what J leaves out. In double precision only.
2. Two steps to other inputs that the prior N(mu, C) holds likely: v = L z, z standard normal, and that plus
   2 m (mu - x), a random half m of the entries reflected at the mean (by at most four standard deviations), which for
   inputs of two values is the other value. Honest networks bend, and ReLU networks jump, but not by orders of
   magnitude: over networks of 16 kinds, untrained and trained on MNIST and CIFAR-10, under priors of std 0.1 to 0.5,
   |r(x + v) - r(x)| was at most 12 and 15 times |J v|. Growth of r alone doesn't count: a confident network's gradient
   grows exponentially towards another class. A straight-through estimator passes: J says what such a step does.
3. The norm of J v is no help where J sees part of the input only, and r shows the rest. But what enters a layer that
   no other layer's weights come before, a(x), stands in its gradient: dW = sum_t b_t a_t^T, so that one entry of a(x)
   is known up to noise of variance sigma^2 / |b|^2 (in a convolution, with the b_t of the windows that it lies in; a
   bias isn't needed: it only gives the scale of a(x)). In almost all networks a(x) is x, or affine in x, and Da v is
   a(x + v) - a(x) up to rounding, for a step of any size. Where an entry moves more than `FRONT_FACTOR` times as far
   as Da says, the rest u_j = |a_j(x + v) - a_j(x)| - 3 |(Da v)_j| is hidden from J though the release shows it, and
   with w_j = u_j^2 |b|^2 the share w_j / (w_j + sigma^2) of it is revealed. Its mean over all entries (no more than
   the layer's gradient has numbers for) is the revealed fraction that J leaves out; it may not exceed what was read
   off J.
4. Where a(x) is x, its error sigma / |b| is one that no claim may exceed (Phong et al., 2018).
5. <u, J v> = <J^T u, v> for random u: products with a derivative and with its transpose come from different code
   where a model has its own (``autograd.Function``), and eigenvalues of J^T J are none where that isn't J^T.

Steps to likely inputs are held against what is really released, the release's own steps included: one that is flat at
a sample (rounding, a saturated squashing) has a derivative near 0 and shows the input all the same. Where it is flat in
some entries only, what these show may be no more than what the derivative tells of the others. Only choices that a
step makes (which entries pruning keeps) are those at x, since they may change with any step. A tiny step is to find
what hides in the model, so that its difference is passed through the derivative of the release's steps.

A difference counts only where the noise doesn't cover it: for v with the prior's covariance, |J v|^2 / sigma^2 is on
average the trace of J C J^T / sigma^2, which bounds the revealed fraction times d (docs/theory.md, section 2).

Not seen: parts of the input that J leaves out behind a first layer (a layer of weights, then a threshold) unless
they are more than 20 times what it sees. A scan in single precision makes the tiny step in double precision for all
samples; a guard for four samples drawn at random before its first review, and for one in every eighth review, drawn
too, so that code which hides part of the input of some samples only, behind a first layer, is found in time, not at
once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from riskaudit.audit.evidence import Difference, Evidence, Hidden, Quotient
from riskaudit.copying import copy_model
from riskaudit.jacobian import Jacobian, JacobianMaker
from riskaudit.jacobian.base import CHUNK_ENTRIES, Draw
from riskaudit.jacobian.response import FrontLayer, StepResponse
from riskaudit.priors import BoundPrior
from riskaudit.release import Batch, PerSampleRelease

T = TypeVar("T")
# A tiny step in the prior's standard deviations per coordinate, and how far from x it is made.
TINY, ASIDE = 1e-7, 1e-2
# How often a tiny step is made where the first shows something.
TRIES = 3
# How many times what J says of an entry a tiny step's difference may be, and how much more, relative to what J says of
# all entries.
OWN_FACTOR, WHOLE_SHARE = 2.0, 0.1
# How many times what J says the difference of a step to another likely input may be.
LIKELY_FACTOR = 20.0
# How far an entry is moved at most when it is reflected, in standard deviations of the prior.
FARTHEST = 4.0
# How many times what its derivative says an entry of a front layer's input may move.
FRONT_FACTOR = 3.0
# Rounding of a difference of two releases, in units of the dtype's precision times the release's norm.
ROUNDING = 1e3
# Random numbers that u is made of; a prime, so that they lie differently in every sample.
DRAWN = 10007
# <u, J v> and <J^T u, v> agree to so many roots of the precision.
ADJOINT_ROOTS = 10.0


def examine(
    maker: JacobianMaker,
    batch: Batch,
    prior: BoundPrior,
    drawn: Tensor,
    *,
    apart: bool = False,
    jacobian: Jacobian | None = None,
    pushed: Tensor | None = None,
) -> list[Evidence]:
    """Evidence for or against the derivative at every sample of a batch.

    The tiny step is made in double precision only: in single precision rounding hides it (see `precise_differences`).

    Args:
        maker: makes the Jacobian.
        batch: samples whose losses and gradients are finite.
        prior: of the attacker, at the samples.
        drawn: a standard normal vector for every sample, [B, d].
        apart: whether the samples have to be worked out one by one, as their own Jacobian has told.
        jacobian: at the batch, if it is there already.
        pushed: |J z| / |z|, [B], of the vectors z that are drawn, where it is known already; a step is along z then.
    """
    with torch.no_grad():
        size, evidence = max(1, CHUNK_ENTRIES // maker.release.num_entries), list[Evidence]()
        steps, predicted = likely_steps(batch.inputs.flatten(1), prior, drawn), None
        if pushed is not None:
            along = prior.variance.sqrt()[:, None].to(drawn) * drawn
            steps, predicted = (along, steps[1]), along.norm(dim=1).double() * pushed.double()
        for first in range(0, len(batch), size):
            places = list(range(first, min(first + size, len(batch))))
            part = batch.select(places)
            at = jacobian if jacobian is not None and len(places) == len(batch) else maker.around(part, apart=apart)
            normal = normal_draw(torch.Generator().manual_seed(0))
            responses = [
                at.step(steps[1][places], normal),
                at.step(steps[0][places], predicted=None if predicted is None else predicted[places]),
            ]
            tiny = None
            if maker.release.dtype == torch.float64:
                tiny = _tiny(maker, part, steps[0][places], apart)
            evidence += _evidence(part, at.losses().detach(), responses, tiny, torch.finfo(maker.release.dtype).eps)
        return evidence


def check_code(maker: JacobianMaker, batch: Batch) -> str | None:
    """Whether the model's code has the derivative that it says, tried in double precision on a few samples.

    Args:
        maker: makes the Jacobian, in any precision.
        batch: the samples.

    Returns:
        Why its derivative isn't believed, if it isn't.
    """
    dimension = batch.inputs[0].numel()
    differences = precise_differences(maker, batch)
    doubts = (Evidence(dimension, (one,), ()).doubt(0.0) for one in differences if one is not None)
    return next((doubt for doubt in doubts if doubt is not None), None)


def precise_differences(maker: JacobianMaker, batch: Batch) -> list[Difference | None]:
    """A tiny step's differences in double precision, whatever precision the samples are audited in.

    Args:
        maker: makes the Jacobian, in any precision.
        batch: B samples.

    Returns:
        One for each sample; None where the model can't be run in double precision.
    """
    release = PerSampleRelease(copy_model(maker.release.model).double(), maker.release.loss)
    inputs = batch.inputs.double()
    spread = float(inputs.std()) if inputs.numel() > 1 else 0.0
    generator = torch.Generator().manual_seed(0)
    random = (spread or 1.0) * torch.randn(inputs.shape, generator=generator, dtype=torch.float64).to(inputs)
    targets = batch.targets.double() if batch.targets.is_floating_point() else batch.targets
    try:
        precise, maker = Batch(inputs, targets), replace(maker, release=release)
        # One sample keeps no company.
        differences = _tiny(maker, precise, random.flatten(1), len(batch) > 1 and maker(precise).separate)
    except Exception:  # code of one precision only; what else is wrong shows where the model is run as it is
        return [None] * len(batch)
    return [one if math.isfinite(one.unseen) else None for one in differences]


def likely_steps(own: Tensor, prior: BoundPrior, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """From inputs [B, d] to others that the prior holds likely: L z, and that with half of them reflected at mu."""
    random = prior.root(drawn.to(own))
    farthest = FARTHEST * prior.variance.sqrt()[:, None].to(own)
    reflection = (2 * (prior.mean - own)).clamp(-farthest, farthest)
    return random, random + torch.where(drawn.roll(1, 1).to(own) > 0, reflection, torch.zeros_like(own))


def normal_draw(generator: torch.Generator) -> Draw:
    """Standard normal numbers in the shape of a tensor; the same ones again and again where it is large."""
    numbers = torch.randn(DRAWN, generator=generator, dtype=torch.float32)

    def draw(like: Tensor) -> Tensor:
        repeated = numbers.repeat(-(-like.numel() // DRAWN))[: like.numel()]
        return repeated.to(like).reshape(like.shape)

    return draw


def _evidence(
    batch: Batch, losses: Tensor, responses: list[StepResponse], tiny: list[Difference] | None, eps: float
) -> list[Evidence]:
    """Of every sample of a batch: its losses [B], responses to likely steps, and a tiny step's differences."""
    norms, gap = responses[0].norms, responses[0].adjoint_gap
    assert gap is not None
    # Where the loss is tiny, the gradient is a difference of numbers near 1.
    cancelled = 1 + 1 / losses.double().abs().clamp_min(1e-300)
    rounding = ROUNDING * eps * norms * cancelled
    fits = (gap <= ADJOINT_ROOTS * eps**0.5 + ROUNDING * eps * cancelled).tolist()
    likely = [differences(1.0, one.change.norms, LIKELY_FACTOR * one.predicted + rounding) for one in responses]
    likely += [differences(1.0, one.change.unseen, one.change.seen + rounding) for one in responses]
    quotients = [_quotients(batch, layer) for layer in responses[0].front if layer.outer]
    hidden = [_hidden(layer) for one in responses for layer in one.front]
    return [
        Evidence(
            dimension=batch.inputs[0].numel(),
            tiny=() if tiny is None else (tiny[place],),
            likely=tuple(each[place] for each in likely),
            quotients=_known(quotients, place),
            hidden=_known(hidden, place),
            adjoint=fits[place],
        )
        for place in range(len(batch))
    ]


def _known(lists: Sequence[Sequence[T | None]], place: int) -> tuple[T, ...]:
    """What lists by sample have of one."""
    return tuple(one for each in lists if (one := each[place]) is not None)


def differences(step: float, unseen: Tensor, allowed: Tensor) -> list[Difference]:
    """Of every sample, from what J doesn't account for [B], and what may be [B]."""
    return [Difference(step, *numbers) for numbers in zip(unseen.tolist(), allowed.tolist(), strict=True)]


def _hidden(layer: FrontLayer) -> list[Hidden | None]:
    """Per sample, what moves in a layer's input that its derivative doesn't tell of, where anything does."""
    change, precision = layer.change.abs(), layer.precision
    # Rounding of a(x + v) - a(x).
    rounding = ROUNDING * torch.finfo(change.dtype).eps * layer.value.abs().amax(1, keepdim=True)
    unseen = (change - FRONT_FACTOR * layer.predicted.abs() - rounding).nan_to_num(math.inf).clamp_min(0.0)
    moves = unseen.any(1)
    weights = (unseen.double().square() * precision[:, None]).cpu()
    return [Hidden(weights[place].numpy(), layer.seen) if move else None for place, move in enumerate(moves.tolist())]


def _quotients(batch: Batch, layer: FrontLayer) -> list[Quotient | None]:
    """Per sample, what a fully connected layer tells of the input, where it has one entry for each coordinate."""
    flat = batch.inputs.flatten(1)
    if layer.value.shape != flat.shape:
        return [None] * len(flat)
    error = (layer.value - flat).double().square().mean(1)
    precision = layer.precision.clamp_min(torch.finfo(torch.float64).tiny)
    variance = (1 + layer.value.double().square().mean(1)) / precision
    numbers = zip(error.tolist(), variance.tolist(), layer.precision.sqrt().tolist(), strict=True)
    return [Quotient(*each) if all(map(math.isfinite, each)) else None for each in numbers]


def _tiny(maker: JacobianMaker, batch: Batch, direction: Tensor, apart: bool) -> list[Difference]:
    """Differences at a tiny step, of every sample the least of several tries.

    A step may cross the kink of a unit, where the gradient jumps; what is hidden from J moves at every try.
    """
    best: dict[int, Difference] = {}
    for attempt in range(TRIES):
        places = [place for place in range(len(batch)) if place not in best or best[place].counts(0.0, 1)]
        if not places:
            break
        part, along = batch.select(places), direction[places].roll(2 * attempt, 1)
        aside = part.inputs + ASIDE * along.roll(1, 1).reshape(part.inputs.shape)
        tried = _tiny_from(maker, Batch(aside, part.targets), along, apart)
        for place, one in zip(places, tried, strict=True):
            if place not in best or not one.counts(0.0, 1):
                best[place] = one
    return [best[place] for place in range(len(batch))]


def _tiny_from(maker: JacobianMaker, batch: Batch, direction: Tensor, apart: bool) -> list[Difference]:
    """Differences at a tiny step along directions [B, d] that starts at these inputs, entry by entry."""
    release = maker.release
    bare = replace(maker, release=PerSampleRelease(release.model, release.loss)) if release.changes_gradient else maker
    moved = Batch(batch.inputs + TINY * direction.reshape(batch.inputs.shape), batch.targets)
    at = maker.around(batch, apart=apart)
    gradient = (at if bare is maker else bare.around(batch, apart=apart)).mean().detach()
    change = bare.around(moved, apart=apart).mean().detach() - gradient
    if release.changes_gradient:
        change = release.derivative(gradient, batch).apply(change)
    predicted = TINY * at.matvec(direction).detach()
    unseen = (change.abs_() - OWN_FACTOR * predicted.abs()).clamp_min_(0.0).norm(dim=1)
    unseen = (unseen - WHOLE_SHARE * predicted.norm(dim=1)).clamp_min_(0.0)
    norms, losses = gradient.norm(dim=1), at.losses().detach().abs()
    rounding = ROUNDING * torch.finfo(release.dtype).eps * norms * (1 + 1 / losses.clamp_min(1e-300))
    return differences(TINY, unseen, rounding)
