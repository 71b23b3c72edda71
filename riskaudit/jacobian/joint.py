"""Which Jacobian an upload of several samples gets: through its steps of training, or of the whole at once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import final

import torch
from typing_extensions import override

from riskaudit.errors import ArchitectureError
from riskaudit.jacobian.base import Jacobian, JacobianFactory, JacobianKind
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.jacobian.obstacles import obstacle_of
from riskaudit.jacobian.sample_by_sample import SampleBySampleJacobian
from riskaudit.jacobian.unrolled import UnrolledJacobian
from riskaudit.release import Batch, Release, is_random
from riskaudit.release.joint import JointRelease
from riskaudit.release.local_training import LocalTrainingRelease

log = logging.getLogger(__name__)

# Vectors of the released size that a product holds at once, for every upload.
VECTORS = 16


@final
@dataclass(frozen=True)
class JointJacobianMaker(JacobianFactory):
    """Makes the Jacobian of uploads of one release.

    Attributes:
        release: what is differentiated.
        reason: why the Jacobian is what it is, for the report.
        sample_bytes: memory that one more upload in a batch takes, about.
        plain: by plain autograd, upload by upload, not by transforms.
    """

    release: JointRelease
    reason: str
    sample_bytes: int
    plain: bool = False

    @property
    def kind(self) -> JacobianKind:
        """Which of the three."""
        if self.plain:
            return "sample_by_sample"
        return "unrolled" if isinstance(self.release, LocalTrainingRelease) else "generic"

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
        return GenericJacobian(self.release, batch)


def joint_jacobian_maker(release: JointRelease, upload: Batch) -> JointJacobianMaker:
    """By torch.func transforms where they can run the model on an upload, else by plain autograd.

    Args:
        release: of the model.
        upload: one of its uploads.

    Raises:
        ArchitectureError: the release can't be differentiated, or is random.
    """
    held = VECTORS * release.context.num_entries * release.dtype.itemsize
    reason = "several samples leave together"
    maker = JointJacobianMaker(release, f"{reason}: the whole upload is differentiated", held)
    if maker.kind == "unrolled":
        maker = replace(maker, reason=f"{reason}: derivatives go through every step of the training")
    refusal = _attempt(maker, upload)
    if refusal is None:
        return maker
    if is_random(refusal):
        raise ArchitectureError(obstacle_of(refusal)) from refusal
    plain = replace(maker, plain=True, reason="torch.func transforms can't run the model; plain autograd does")
    failure = _attempt(plain, upload)
    if failure is None:
        log.warning("%s, which is slower", plain.reason)
        return plain
    obstacle = obstacle_of(failure)
    if obstacle is not None:
        raise ArchitectureError(obstacle) from failure
    # It is the model's own, and shows where it is run.
    return maker


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
