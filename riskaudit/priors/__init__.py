"""What an attacker is taken to know of the input beforehand."""

from riskaudit.priors.isotropic import IsotropicPrior

__all__ = ["IsotropicPrior"]
