"""The Jacobian of a release as a linear operator: by layers (structured), or by automatic differentiation."""

from riskaudit.jacobian.base import Jacobian
from riskaudit.jacobian.choice import JacobianMaker, jacobian_maker
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.jacobian.structured import StructuredJacobian

__all__ = ["GenericJacobian", "Jacobian", "JacobianMaker", "StructuredJacobian", "jacobian_maker"]
