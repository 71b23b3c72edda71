"""Which Jacobian a model gets: by its layers where all of them are known, else by automatic differentiation.

The latter by torch.func transforms over a batch where they can run the model, else by plain autograd per sample.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.errors import ArchitectureError, CoupledReleaseError
from riskaudit.jacobian.agreement import Differences, described, layout_of
from riskaudit.jacobian.base import Jacobian, JacobianFactory, JacobianKind
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.jacobian.obstacles import NOT_DETERMINISTIC, obstacle_of
from riskaudit.jacobian.sample_by_sample import SampleBySampleJacobian
from riskaudit.jacobian.structured import (
    Layout,
    SeparateJacobian,
    StructuredJacobian,
    UnsupportedLayer,
    agree,
    by_layers,
)
from riskaudit.release import Batch, PerSampleRelease, Release, is_random

log = logging.getLogger(__name__)

# Samples that are compared with plain automatic differentiation; they see each other in one batch.
CHECKED_SAMPLES = 3
# Passes that are held against each other: two draws of one random number may be alike.
REPEATED_PASSES = 4
# Vectors of the released size that a generic product holds at once.
GENERIC_VECTORS = 16


@final
@dataclass(frozen=True)
class JacobianMaker(JacobianFactory):
    """Makes the Jacobian of batches of one release, in the way that suits its model.

    Attributes:
        release: what is differentiated.
        layout: of the model, or None without one.
        reason: why the Jacobian is what it is, for the report.
        sample_bytes: memory that one more sample in a batch takes, about.
        apart: work every sample out in a batch of its own.
        plain: without a layout, by plain autograd sample by sample, not by transforms.
    """

    release: PerSampleRelease
    layout: Layout | None
    reason: str
    sample_bytes: int
    apart: bool = False
    plain: bool = False

    @property
    def kind(self) -> JacobianKind:
        """Which of the three."""
        if self.layout is not None:
            return "structured"
        return "sample_by_sample" if self.plain else "generic"

    @override
    def of(self, release: Release) -> JacobianMaker:
        """The same for another release of this model, of single samples."""
        assert isinstance(release, PerSampleRelease)
        return replace(self, release=release)

    @override
    def __call__(self, batch: Batch) -> Jacobian:
        """J at a batch.

        Raises:
            CoupledReleaseError: a sample has another loss whenever it is computed.
        """
        if self.layout is None:
            return SampleBySampleJacobian(self.release, batch) if self.plain else GenericJacobian(self.release, batch)
        if self.apart:
            return SeparateJacobian(self.release, batch, self.layout)
        alone = losses_alone(self.release, batch)
        jacobian = by_layers(self.release, batch, self.layout, alone)
        if jacobian.separate and not agree(losses_alone(self.release, batch), alone):
            raise CoupledReleaseError(NOT_DETERMINISTIC)
        return jacobian

    def around(self, batch: Batch, *, apart: bool) -> Jacobian:
        """J at inputs near samples whose Jacobian was made before, without comparing each with itself alone again.

        Args:
            batch: the inputs.
            apart: whether those samples had to be worked out one by one.
        """
        if self.layout is None:
            return self(batch)
        if self.apart or apart:
            return SeparateJacobian(self.release, batch, self.layout)
        return StructuredJacobian(self.release, batch, self.layout)


def jacobian_maker(release: PerSampleRelease, batch: Batch, *, wordless: bool = False) -> JacobianMaker:
    """Choose for a model, tried on some samples of it.

    The structured Jacobian is held against plain automatic differentiation once, on the first samples;
    where a layer isn't known, or the two disagree, the generic one is used, or where transforms can't run the
    model, plain autograd sample by sample; one line of the log names the layer.

    Args:
        release: of the model.
        batch: some samples.
        wordless: of an error that the model raises, tell the kind only: its words may quote inputs.

    Raises:
        ArchitectureError: the model's gradient can't be differentiated, or is random.
    """
    if not is_repeatable(release, batch):
        raise ArchitectureError(NOT_DETERMINISTIC)
    try:
        with torch.enable_grad():
            layout = layout_of(release, batch)
            apart = _apart(release, batch, layout)
    except UnsupportedLayer as unsupported:
        reason = f"{described(release.model, unsupported)} is not known to the structured Jacobian"
        return _automatic(release, batch, reason)
    except Exception as error:  # third-party code may raise anything
        # Whatever is wrong with the model shows again, in its own words, in the generic Jacobian.
        words = [*([] if wordless else str(error).splitlines()), type(error).__name__]
        reason = f"the model can't be run on a batch by the structured Jacobian ({words[0][:200]})"
        return _automatic(release, batch, reason)
    layers = sorted({call.layer for call in layout.calls})
    reason = f"every layer is known ({', '.join(layers)})"
    held = StructuredJacobian(release, batch.select([0]), layout).held_bytes()
    return JacobianMaker(release, layout, reason, held, apart)


@torch.no_grad()
def losses_alone(release: Release, batch: Batch) -> Tensor:
    """The loss of every sample in a batch of its own, [B]."""
    try:
        # As if one by one: what looks at a sample can't look at the others, and is refused where it decides.
        return release.losses(batch)
    except Exception:  # third-party code may raise anything
        return torch.stack([release.function.sample_loss(inputs, target) for inputs, target in batch.pairs()])


def is_repeatable(release: Release, batch: Batch) -> bool:
    """Whether samples have the same losses whenever they are computed; True where they can't be computed."""
    try:
        first = losses_alone(release, batch)
        return all(agree(first, losses_alone(release, batch)) for _ in range(REPEATED_PASSES - 1))
    except Exception:  # it shows again, in its own words, where the model is used
        return True


def _automatic(release: PerSampleRelease, batch: Batch, reason: str) -> JacobianMaker:
    """By transforms where they can run the model on the first samples and on one alone, else by plain autograd."""
    # Several vectors [P] per sample, at every stage of a product.
    maker = JacobianMaker(release, None, reason, GENERIC_VECTORS * release.num_entries * release.dtype.itemsize)
    refusal = _attempt(maker, batch)
    if refusal is None:
        log.warning("%s; using automatic differentiation of the whole model, which is slower", reason)
        return maker
    if is_random(refusal):
        raise ArchitectureError(obstacle_of(refusal)) from refusal
    plain = replace(maker, plain=True)
    failure = _attempt(plain, batch)
    if failure is None:
        log.warning("%s; differentiating sample by sample without transforms, which is slower still", reason)
        return plain
    obstacle = obstacle_of(failure)
    if obstacle is not None:
        raise ArchitectureError(obstacle) from failure
    # It is the model's own, and shows where it is run.
    log.warning("%s; using automatic differentiation of the whole model, which is slower", reason)
    return maker


def _attempt(maker: JacobianMaker, batch: Batch) -> Exception | None:
    """What keeps a Jacobian from being used on some samples, if anything does."""
    try:
        with torch.enable_grad():
            # One sample repeats: what can run it alone may not run two together, and later batches are larger.
            for part in (batch if len(batch) > 1 else batch.select([0, 0]), batch.select([0])):
                jacobian = maker(part)
                if isinstance(jacobian, SampleBySampleJacobian):
                    jacobian.refuse_gaps()
                jacobian.losses()
                jacobian.mean()
                columns = part.inputs.flatten(1).unsqueeze(-1).detach()
                pushed = jacobian.matmat(torch.cat([columns, columns], -1) if len(part) == 1 else columns)
                jacobian.rmatvec(pushed[..., 0].detach())
    except Exception as error:  # third-party code may raise anything
        return error
    return None


def _apart(release: PerSampleRelease, batch: Batch, layout: Layout) -> bool:
    """Whether the first samples have to be worked out one by one.

    Raises:
        UnsupportedLayer: see `_check`.
    """
    try:
        _check(release, batch, layout, StructuredJacobian)
    except UnsupportedLayer:
        _check(release, batch, layout, SeparateJacobian)
        return True
    return False


def _check(
    release: PerSampleRelease, batch: Batch, layout: Layout, kind: type[StructuredJacobian] | type[SeparateJacobian]
) -> None:
    """Hold gradients and products of the first samples against plain automatic differentiation.

    The steps after the gradient are left out: where entries are equal, pruning may keep any of them.

    Raises:
        UnsupportedLayer: they differ, for one parameter at least, or can't be compared.
    """
    plain = PerSampleRelease(release.model, release.loss)
    # Samples repeat where there are few: in a batch of its own, none could be mixed up with another.
    structured = kind(plain, batch.select([k % len(batch) for k in range(CHECKED_SAMPLES)]), layout)
    reference = GenericJacobian(plain, batch.select([0]))
    differences = Differences(plain)
    gradients = plain.gradient(batch.select(list(range(min(len(batch), CHECKED_SAMPLES)))))
    differences.check("per-sample gradients", structured.gradients()[: len(gradients)], gradients)
    generator = torch.Generator().manual_seed(0)
    P, d = structured.shape
    u, v = (torch.randn(size, generator=generator, dtype=torch.float64).to(gradients) for size in (P, d))
    pushed, pulled = reference.matvec(v[None]).detach(), reference.rmatvec(u[None]).detach()
    differences.check("second derivatives", structured.matvec(v.expand(CHECKED_SAMPLES, -1))[:1], pushed)
    differences.check("second derivatives", structured.rmatvec(u.expand(CHECKED_SAMPLES, -1))[:1], pulled)
    product = structured.hessian().matvec(v.expand(CHECKED_SAMPLES, -1))[:1]
    differences.check("second derivatives", product, reference.rmatvec(pushed).detach())
