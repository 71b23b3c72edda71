"""Numbers per sample that foretell how well an attacker reconstructs it. Ids are those of audit.json."""

# Importing a file registers its proxies; the order here is the order in audit.json.
from riskaudit.proxies import gradient_norm as _gradient_norm  # noqa: F401  # isort: skip
from riskaudit.proxies import i2f as _i2f  # noqa: F401  # isort: skip
from riskaudit.proxies import posterior as _posterior  # noqa: F401  # isort: skip
from riskaudit.proxies import lavp as _lavp  # noqa: F401  # isort: skip
from riskaudit.proxies.base import PROXIES, Proxy, ProxyScores
from riskaudit.proxies.concentration import Concentration, concentrations, num_reached, reached_note
from riskaudit.proxies.few_products import FewProducts, few_products
from riskaudit.proxies.information import Information, posterior_rmse, revealed_fraction
from riskaudit.proxies.linearisation import Linearisation
from riskaudit.proxies.plan import Clock, Plan

__all__ = [
    "PROXIES",
    "Clock",
    "Concentration",
    "FewProducts",
    "Information",
    "Linearisation",
    "Plan",
    "Proxy",
    "ProxyScores",
    "concentrations",
    "few_products",
    "num_reached",
    "posterior_rmse",
    "reached_note",
    "revealed_fraction",
]
