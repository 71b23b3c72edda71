"""The Jacobian of a release at each sample, as an operator of linalg."""

from riskaudit.jacobian.generic import GenericJacobian

__all__ = ["GenericJacobian"]
