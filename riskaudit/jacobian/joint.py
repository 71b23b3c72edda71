"""Which Jacobian an upload of several samples gets: by layers, through its steps of training, or of the whole at once.

A mean's is by layers where all of them are known and it agrees with automatic differentiation on an upload.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import final

import torch
from typing_extensions import override

from riskaudit.errors import ArchitectureError
from riskaudit.jacobian.agreement import Differences, described, layout_of
from riskaudit.jacobian.base import Jacobian, JacobianFactory, JacobianKind
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.jacobian.obstacles import obstacle_of
from riskaudit.jacobian.sample_by_sample import SampleBySampleJacobian
from riskaudit.jacobian.structured import Layout, UnsupportedLayer, UploadJacobian
from riskaudit.jacobian.unrolled import UnrolledJacobian
from riskaudit.release import Batch, Release, is_random
from riskaudit.release.aggregation import Mean
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.joint import JointRelease
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.release.mean import MeanRelease

log = logging.getLogger(__name__)

# Vectors of the released size that a product holds at once, for every upload.
VECTORS = 16
TOGETHER = "several samples leave together"
PLAINLY = "by plain autograd, since torch.func transforms can't run the model"


@final
@dataclass(frozen=True)
class JointJacobianMaker(JacobianFactory):
    """Makes the Jacobian of uploads of one release.

    Attributes:
        release: what is differentiated.
        reason: why the Jacobian is what it is, for the report.
        sample_bytes: memory that one more upload in a batch takes, about.
        layout: of the model, or None without one.
        plain: by plain autograd, upload by upload, not by transforms.
    """

    release: JointRelease
    reason: str
    sample_bytes: int
    layout: Layout | None = None
    plain: bool = False

    @property
    def kind(self) -> JacobianKind:
        """Which of the four."""
        if self.plain:
            return "sample_by_sample"
        if isinstance(self.release, LocalTrainingRelease):
            return "unrolled"
        return "generic" if self.layout is None else "structured"

    @override
    def of(self, release: Release) -> JointJacobianMaker:
        """The same for another release of this model, of the same samples together."""
        assert isinstance(release, JointRelease)
        return replace(self, release=release)

    @override
    def __call__(self, batch: Batch) -> Jacobian:
        if self.plain:
            return SampleBySampleJacobian(self.release, batch)
        if isinstance(self.release, LocalTrainingRelease):
            return UnrolledJacobian(self.release, batch)
        if self.layout is None or not isinstance(self.release, MeanRelease):
            return GenericJacobian(self.release, batch)
        return UploadJacobian(self.release, batch, self.layout)


def joint_jacobian_maker(release: JointRelease, upload: Batch) -> JointJacobianMaker:
    """By layers where all are known, else by torch.func transforms where those run the model, else by plain autograd.

    Args:
        release: of the model.
        upload: one of its uploads.

    Raises:
        ArchitectureError: the release can't be differentiated, or is random.
    """
    held = VECTORS * release.context.num_entries * release.dtype.itemsize
    maker = JointJacobianMaker(release, f"{TOGETHER}: derivatives go through every step of the training", held)
    if isinstance(release, MeanRelease):
        try:
            with torch.enable_grad():
                return _by_layers(release, upload)
        except UnsupportedLayer as unsupported:
            why = f"{described(release.model, unsupported)} is not known to the structured Jacobian"
        except Exception as error:  # third-party code may raise anything; it shows again, in its own words, below
            why = f"the model can't be run on a batch by the structured Jacobian ({type(error).__name__})"
        maker = replace(maker, reason=f"{TOGETHER}, and {why}: the whole upload is differentiated")
    refusal = _attempt(maker, upload)
    if refusal is None:
        return maker
    if is_random(refusal):
        raise ArchitectureError(obstacle_of(refusal)) from refusal
    # What keeps the layers from being used is still told.
    plain = replace(maker, plain=True, reason=f"{maker.reason}, {PLAINLY}")
    failure = _attempt(plain, upload)
    if failure is None:
        log.warning("%s, which is slower", plain.reason)
        return plain
    obstacle = obstacle_of(failure)
    if obstacle is not None:
        raise ArchitectureError(obstacle) from failure
    # It is the model's own, and shows where it is run.
    return maker


def _by_layers(release: MeanRelease, upload: Batch) -> JointJacobianMaker:
    """The structured Jacobian, held against automatic differentiation on an upload.

    The steps are left out: where entries are equal, pruning may keep any of them.

    Raises:
        UnsupportedLayer: a layer isn't known, or the two differ, for one parameter at least.
    """
    layout = layout_of(release, upload)
    size = len(upload) // release.spec.num_clients
    plain = release.with_spec(ReleaseSpec((Mean(size),)))
    client = upload.samples(range(size))
    structured, reference = UploadJacobian(plain, client, layout), GenericJacobian(plain, client)
    differences = Differences(plain)
    mean = reference.mean().detach()
    differences.check("gradients", structured.mean(), mean)
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(1, size, generator=generator, dtype=torch.float64).to(mean) for size in structured.shape)
    pushed = reference.matvec(v).detach()
    differences.check("second derivatives", structured.matvec(v), pushed)
    differences.check("second derivatives", structured.rmatvec(u), reference.rmatvec(u).detach())
    differences.check("second derivatives", structured.hessian().matvec(v), reference.rmatvec(pushed).detach())
    layers = ", ".join(sorted({call.layer for call in layout.calls}))
    held = UploadJacobian(release, upload, layout).held_bytes()
    return JointJacobianMaker(release, f"{TOGETHER}, and every layer is known ({layers})", held, layout)


def _attempt(maker: JointJacobianMaker, upload: Batch) -> Exception | None:
    """What keeps a Jacobian from being used on an upload, if anything does."""
    try:
        with torch.enable_grad():
            jacobian = maker(upload)
            if isinstance(jacobian, SampleBySampleJacobian):
                jacobian.refuse_gaps()
            jacobian.losses()
            column = upload.inputs.detach().reshape(1, -1, 1)
            pushed = jacobian.matmat(torch.cat([column, column], -1))
            jacobian.rmatvec(pushed[..., 0].detach())
    except Exception as error:  # third-party code may raise anything
        return error
    return None
