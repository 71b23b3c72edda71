"""What proxies are read off: the linearised release at each sample, its spectrum, and what that tells of the input."""

from riskaudit.sensitivity.concentration import Concentration, concentrations, num_reached, reached_note
from riskaudit.sensitivity.few_products import FewProducts, few_products
from riskaudit.sensitivity.information import BracketedInformation, Information, posterior_rmse, revealed_fraction
from riskaudit.sensitivity.linearisation import Linearisation
from riskaudit.sensitivity.plan import Clock, Plan

__all__ = [
    "BracketedInformation",
    "Clock",
    "Concentration",
    "FewProducts",
    "Information",
    "Linearisation",
    "Plan",
    "concentrations",
    "few_products",
    "num_reached",
    "posterior_rmse",
    "reached_note",
    "revealed_fraction",
]
