"""Whether the derivative of a whole upload can be believed: `credibility`'s tests where several samples leave together.

What a step of all samples of an upload does to it is held against J v, and products with J against those with J^T. What
one sample hides may be little beside what the others show, so that steps of a few samples alone are made as well. A
doubt is one of all samples of the upload.

Steps of the release that act before the last aggregation, and are more than a choice of entries, are held against their
derivative by themselves, on the gradients or vectors that they are applied to. Which entries such a step chooses may
change with any step of the inputs, so that these choices are left out here.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import replace

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
from riskaudit.copying import copy_model
from riskaudit.jacobian import Jacobian, JointJacobianMaker
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.jacobian.response import pairing_gap, shrinking
from riskaudit.priors import BoundPrior, in_uploads
from riskaudit.release import Batch, PerSampleRelease, Release
from riskaudit.release.grammar import Part, ReleaseSpec
from riskaudit.release.joint import JointRelease
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.release.steps import Step

# Parts of an upload whose samples step alone, at most.
GROUPS = 16
# Rounding of a difference of weights, in units of the dtype's precision times their norm.
WEIGHT_ROUNDING = 10.0


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
    own_steps = _separate_steps(maker.release, batch)
    maker, jacobian = _without(maker, batch, jacobian, _chooses)
    shape = (batch.num_uploads, -1)
    inputs, vectors = batch.inputs.reshape(shape), drawn.reshape(shape)
    random, reflected = likely_steps(inputs, in_uploads(prior, batch.upload_size), vectors)
    # The whole by both, the parts by one of them.
    directions = torch.cat([_by_part(reflected, batch.upload_size), random[:, :, None]], dim=2)
    with torch.no_grad():
        cancelled = _cancelled(jacobian.losses(), batch)
        likely, pushed = _likely(jacobian, directions, cancelled)
        fits = _fits(jacobian, directions[..., 0], pushed, cancelled)
        for attempt in range(1, TRIES):
            if all(fits):
                break
            # At the kink of a unit (two equal values that a maximum is taken of) each of both products may be that of
            # another side; what doesn't fit because of code doesn't beside it either.
            aside = ASIDE * directions[..., 0].roll(attempt, 1).reshape(batch.inputs.shape)
            moved = maker(batch.with_inputs(batch.inputs + aside))
            beside = _fits(moved, directions[..., 0], moved.matvec(directions[..., 0]).detach(), cancelled)
            fits = [one or other for one, other in zip(fits, beside, strict=True)]
        for release, of_parts, scale in own_steps:
            likely += _likely_of_steps(release, of_parts, reflected.reshape(len(of_parts.inputs), -1), scale, batch)
        tiny = _precise(_without(maker, batch, jacobian, _hides)[0], batch, directions)
    return [
        Evidence(
            dimension=inputs.shape[1] // batch.upload_size,
            tiny=tuple(each[upload] for each in tiny),
            likely=tuple(each[upload] for each in likely),
            adjoint=fits[upload],
        )
        for upload in range(batch.num_uploads)
    ]


def check_upload_code(release: JointRelease, upload: Batch) -> str | None:
    """Whether a model's code has the derivative that it says, tried in double precision on one upload.

    Args:
        release: of the model, in any precision.
        upload: of a few samples.

    Returns:
        Why its derivative isn't believed, if it isn't.
    """
    targets = upload.targets.double() if upload.targets.is_floating_point() else upload.targets
    precise = replace(upload, inputs=upload.inputs.double(), targets=targets)
    normal, shape = normal_draw(torch.Generator().manual_seed(0)), (upload.num_uploads, -1)
    spread = float(precise.inputs.std()) if precise.inputs.numel() > 1 else 0.0
    directions = _by_part((spread or 1.0) * normal(precise.inputs).reshape(shape), upload.upload_size)
    # The whole, and one part that nobody can foresee.
    directions = directions[..., [0, secrets.randbelow(directions.shape[2])]]
    try:
        double = type(release)(copy_model(release.model).double(), release.loss, release.spec)
        maker = JointJacobianMaker(double, "", 0)
        tiny, jacobian = _tiny(maker, precise, directions), maker(precise)
        pushed = jacobian.matvec(directions[..., 0]).detach()
        cotangent = normal(pushed)
        gap = pairing_gap(cotangent * pushed, jacobian.rmatvec(cotangent).detach() * directions[..., 0])
        cancelled = _cancelled(jacobian.losses(), precise)
    except Exception:  # code of one precision only; what else is wrong shows where the model is run as it is
        return None
    fits = gap <= ADJOINT_ROOTS * torch.finfo(torch.float64).eps ** 0.5
    fits |= gap <= ROUNDING * torch.finfo(torch.float64).eps * cancelled
    evidence = Evidence(
        upload.inputs[0].numel(), tuple(one for row in tiny for one in row), (), adjoint=bool(fits.all())
    )
    return evidence.doubt(0.0)


def _by_part(direction: Tensor, upload_size: int) -> Tensor:
    """A direction [U, n d] as a whole, then of some samples each, the others at rest: [U, n d, 1 + G]."""
    if upload_size == 1:
        return direction[:, :, None]
    blocks = direction.reshape(len(direction), upload_size, -1)
    columns = [direction]
    for part in torch.arange(upload_size).chunk(GROUPS):
        alone = torch.zeros_like(blocks)
        alone[:, part] = blocks[:, part]
        columns.append(alone.reshape(direction.shape))
    return torch.stack(columns, dim=2)


def _cancelled(losses: Tensor, batch: Batch) -> Tensor:
    """How many times more rounding a gradient has where a loss is tiny, [U]: it is a difference of numbers near 1."""
    least = losses.detach().double().abs().reshape(batch.num_uploads, -1).amin(1)
    return 1 + 1 / least.clamp_min(1e-300)


def upload_rounding(release: Release, norms: Tensor, losses: Tensor, batch: Batch) -> Tensor:
    """Rounding of a difference of two releases whose norms [U] and whose samples' losses [U n] these are, [U]."""
    return _rounding(release, norms, _cancelled(losses, batch))


def _rounding(release: Release, norms: Tensor, cancelled: Tensor) -> Tensor:
    """Of a difference of two releases whose norms these are, [U]."""
    eps = torch.finfo(release.dtype).eps
    rounding = ROUNDING * eps * norms.double() * cancelled
    if isinstance(release, LocalTrainingRelease):
        weights = torch.stack([value.norm() for value in release.parameters.values()]).norm()
        rounding = rounding + WEIGHT_ROUNDING * eps * float(weights) * len(release.training.mini_batches(1)) ** 0.5
    return rounding


def _likely(jacobian: Jacobian, directions: Tensor, cancelled: Tensor) -> tuple[list[list[Difference]], Tensor]:
    """Differences at steps along directions [U, n d, C], and J's product with the first direction, [U, P']."""
    release, batch = jacobian.release, jacobian.batch
    plain = release.before_steps()
    before, rows = plain.mean(batch).detach(), list[list[Difference]]()
    released = before.norm(dim=1).double() if plain is release else jacobian.norms
    pushed = jacobian.matmat(directions).detach()
    for direction, predicted in zip(directions.unbind(2), pushed.unbind(2), strict=True):
        step = direction.reshape(batch.inputs.shape)
        after = plain.mean(batch.with_inputs(batch.inputs + step)).detach()
        change = after - before - growth_alone(plain, batch, step, before, after)
        found, rounding = release.released_change(before, change, batch), _rounding(release, released, cancelled)
        rows.append(differences(1.0, found.norms, LIKELY_FACTOR * predicted.norm(dim=1).double() + rounding))
        rows.append(differences(1.0, found.unseen, found.seen + rounding))
    return rows, pushed[..., 0]


def _fits(jacobian: Jacobian, direction: Tensor, pushed: Tensor, cancelled: Tensor) -> list[bool]:
    """Whether products with J and J^T fit together along a direction [U, n d] of which J's is [U, P'], [U]."""
    eps = torch.finfo(jacobian.release.dtype).eps
    cotangent = normal_draw(torch.Generator().manual_seed(0))(pushed[:1]).expand_as(pushed)
    gap = pairing_gap(cotangent * pushed, jacobian.rmatvec(cotangent).detach() * direction)
    fits: list[bool] = (gap <= ADJOINT_ROOTS * eps**0.5 + ROUNDING * eps * cancelled).tolist()
    return fits


def growth_alone(plain: Release, batch: Batch, step: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What of a change of uploads is growth alone of what the moved samples add to them, [U, P'].

    Samples add to an upload what it is without their losses less than with them. That may grow by orders of magnitude
    where a confident network sees another class, however small the share of those samples was; it is counted as far as
    it has turned (`credibility`, 2).

    Args:
        plain: the release.
        batch: U uploads of n samples.
        step: of the inputs, [U n, *S]; samples that don't move are 0 in it.
        before: the uploads, [U, P'].
        after: the same with the step made, [U, P'].
    """
    moved = step.flatten(1).any(1)
    added, added_after = before, after
    if not bool(moved.all()):
        rest = replace(batch, left_out=moved)
        rest_before = rest_after = plain.mean(rest).detach()
        if not isinstance(plain, JointRelease) or plain.mixes_samples:
            # Samples without a loss have a part in the others' activations.
            rest_after = plain.mean(rest.with_inputs(batch.inputs + step)).detach()
        added, added_after = before - rest_before, after - rest_after
    kept = shrinking(added.norm(dim=1).double(), added_after.norm(dim=1).double())
    return (1 - kept)[:, None].to(after) * added_after


def _likely_of_steps(
    release: Release, parts: Batch, directions: Tensor, scale: float, batch: Batch
) -> list[list[Difference]]:
    """The same for steps before the last aggregation, on uploads of their own; the largest of each whole upload.

    Args:
        release: that ends with the steps.
        parts: its uploads.
        directions: of every sample, [U n, d].
        scale: of one of them in the whole upload.
        batch: the whole uploads.
    """
    directions = directions.reshape(parts.num_uploads, -1, 1)
    found, _ = _likely(GenericJacobian(release, parts), directions, _cancelled(release.losses(parts), parts))
    count = parts.num_uploads // batch.num_uploads
    worst = []
    for row in found:
        scaled = [replace(one, unseen=scale * one.unseen, allowed=scale * one.allowed) for one in row]
        uploads = [scaled[first : first + count] for first in range(0, len(scaled), count)]
        # What isn't finite comes first.
        worst.append(
            [max(each, key=lambda one: (one.unseen != one.unseen, one.unseen - one.allowed)) for each in uploads]
        )
    return worst


def _excess(one: Difference) -> float:
    """What is unseen over what may be; what isn't a number isn't small."""
    excess = one.unseen - one.allowed
    return math.inf if math.isnan(excess) else excess


def _separate_steps(release: JointRelease, batch: Batch) -> list[tuple[Release, Batch, float]]:
    """Releases that end with steps before the last aggregation, their uploads, and the share of one in the whole."""
    spec, found = release.spec, list[tuple[Release, Batch, float]]()
    if any(map(_hides, spec.sample_steps)):
        alone = PerSampleRelease(release.model, release.loss, ReleaseSpec(spec.sample_steps))
        found.append((alone, Batch(batch.inputs, batch.targets), 1 / batch.upload_size))
    if spec.num_clients > 1 and any(map(_hides, spec.client_steps)):
        size = batch.upload_size // spec.num_clients
        numbers = tuple(
            number + client * size
            for number in batch.numbers or (0,) * batch.num_uploads
            for client in range(spec.num_clients)
        )
        client = release.with_spec(ReleaseSpec(spec.steps[: spec.aggregated], training=spec.training))
        found.append((client, Batch(batch.inputs, batch.targets, size, numbers), 1 / spec.num_clients))
    return found


def _hides(step: Step) -> bool:
    """Whether a step may do more than its derivative says."""
    return not (step.chooses or step.keeps_noise or step.redrawn)


def _without(
    maker: JointJacobianMaker, batch: Batch, jacobian: Jacobian, left_out: Callable[[Step], bool]
) -> tuple[JointJacobianMaker, Jacobian]:
    """The same without some of the steps before the last aggregation."""
    spec, last = maker.release.spec, len(maker.release.outermost)
    inner: tuple[Part, ...] = spec.steps[: len(spec.steps) - last]
    left = tuple(part for part in inner if not (isinstance(part, Step) and left_out(part)))
    if len(left) == len(inner):
        return maker, jacobian
    maker = maker.of(maker.release.with_spec(replace(spec, steps=(*left, *spec.steps[len(inner) :]))))
    return maker, maker(batch)


def _chooses(step: Step) -> bool:
    return step.chooses


def _precise(maker: JointJacobianMaker, batch: Batch, directions: Tensor) -> list[list[Difference]]:
    """Differences at tiny steps in double precision; none where the model can't be run in it."""
    release = maker.release
    if release.dtype == torch.float64:
        return _tiny(maker, batch, directions)
    targets = batch.targets.double() if batch.targets.is_floating_point() else batch.targets
    try:
        double = type(release)(copy_model(release.model).double(), release.loss, release.spec)
        found = _tiny(
            maker.of(double), replace(batch, inputs=batch.inputs.double(), targets=targets), directions.double()
        )
    except Exception:  # code of one precision only; what else is wrong shows where the model is run as it is
        return []
    # What isn't finite in double precision shows nothing of the derivative in single precision.
    return [row for row in found if all(one.unseen < math.inf for one in row)]


def _tiny(maker: JointJacobianMaker, batch: Batch, directions: Tensor) -> list[list[Difference]]:
    """Differences at tiny steps along directions [U, n d, C], the least of several tries: one may cross a kink."""
    best: list[list[Difference]] | None = None
    for attempt in range(TRIES):
        tried = _tiny_from(maker, batch, _rolled(directions, 2 * attempt, batch.upload_size))
        best = [
            [other if old.counts(0.0, 1) else old for old, other in zip(*rows, strict=True)]
            for rows in zip(best or tried, tried, strict=True)
        ]
        if not any(one.counts(0.0, 1) for row in best for one in row):
            break
    assert best is not None
    return best


def _rolled(directions: Tensor, shift: int, upload_size: int) -> Tensor:
    """Directions [U, n d, C] rolled within every sample."""
    blocks = directions.reshape(len(directions), upload_size, -1, directions.shape[2])
    return blocks.roll(shift, 2).reshape(directions.shape)


def _tiny_from(maker: JointJacobianMaker, batch: Batch, directions: Tensor) -> list[list[Difference]]:
    """Differences at tiny steps along directions [U, n d, C], beside the samples, entry by entry."""
    release = maker.release
    plain, shape = release.before_steps(), batch.inputs.shape
    aside = batch.with_inputs(batch.inputs + ASIDE * _rolled(directions, 1, batch.upload_size)[..., 0].reshape(shape))
    at, before = maker(aside), plain.mean(aside).detach()
    derivative = None if plain is release else release.derivative(before, aside)
    rounding = _rounding(release, before.norm(dim=1), _cancelled(at.losses(), batch))
    predictions, rows = TINY * at.matmat(directions).detach(), []
    for direction, predicted in zip(directions.unbind(2), predictions.unbind(2), strict=True):
        change = plain.mean(aside.with_inputs(aside.inputs + TINY * direction.reshape(shape))).detach() - before
        change = change if derivative is None else derivative.apply(change)
        unseen = (change.abs() - OWN_FACTOR * predicted.abs()).clamp_min(0.0).norm(dim=1)
        unseen = (unseen - WHOLE_SHARE * predicted.norm(dim=1)).clamp_min(0.0)
        rows.append(differences(TINY, unseen, rounding))
    return rows
