"""What an attacker is taken to know of the input beforehand: a mean and a symmetric root of the covariance."""

from riskaudit.priors.base import BoundPrior, Prior, WhitenedOperator, in_white_coordinates, white_prior
from riskaudit.priors.fitting import FITTED_KINDS, MIN_IMAGES, fit_prior
from riskaudit.priors.gaussian import ClassPrior, GaussianPrior, Origin
from riskaudit.priors.isotropic import IsotropicPrior
from riskaudit.priors.storage import load_prior, save_prior
from riskaudit.priors.uploads import in_uploads
from riskaudit.priors.vocabulary import VocabularyPrior

__all__ = [
    "FITTED_KINDS",
    "MIN_IMAGES",
    "BoundPrior",
    "ClassPrior",
    "GaussianPrior",
    "IsotropicPrior",
    "Origin",
    "Prior",
    "VocabularyPrior",
    "WhitenedOperator",
    "fit_prior",
    "in_uploads",
    "in_white_coordinates",
    "load_prior",
    "save_prior",
    "white_prior",
]
