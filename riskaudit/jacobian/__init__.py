"""The Jacobian of a release as a linear operator: by layers (structured), or by automatic differentiation."""

from typing import TypeAlias

from riskaudit.jacobian.base import Jacobian, JacobianFactory, loss_rounding
from riskaudit.jacobian.choice import JacobianMaker, jacobian_maker
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.jacobian.informed import InformedJacobian
from riskaudit.jacobian.joint import JointJacobianMaker, joint_jacobian_maker
from riskaudit.jacobian.obstacles import obstacle_of
from riskaudit.jacobian.sample_by_sample import SampleBySampleJacobian
from riskaudit.jacobian.structured import StructuredJacobian

AnyJacobianMaker: TypeAlias = JacobianMaker | JointJacobianMaker

__all__ = [
    "AnyJacobianMaker",
    "GenericJacobian",
    "InformedJacobian",
    "Jacobian",
    "JacobianFactory",
    "JacobianMaker",
    "JointJacobianMaker",
    "SampleBySampleJacobian",
    "StructuredJacobian",
    "jacobian_maker",
    "joint_jacobian_maker",
    "loss_rounding",
    "obstacle_of",
]
