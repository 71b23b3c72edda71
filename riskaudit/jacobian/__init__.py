"""The Jacobian of a release as a linear operator: by layers (structured), or by automatic differentiation."""

from riskaudit.jacobian.base import Jacobian, JacobianFactory
from riskaudit.jacobian.choice import JacobianMaker, jacobian_maker
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.jacobian.obstacles import obstacle_of
from riskaudit.jacobian.sample_by_sample import SampleBySampleJacobian
from riskaudit.jacobian.structured import StructuredJacobian

__all__ = [
    "GenericJacobian",
    "Jacobian",
    "JacobianFactory",
    "JacobianMaker",
    "SampleBySampleJacobian",
    "StructuredJacobian",
    "jacobian_maker",
    "obstacle_of",
]
