"""Proxies: numbers per sample that foretell a reconstruction. Importing the package registers all of them."""

from riskaudit.proxies import gradient_norm as _gradient_norm  # noqa: F401  # isort: skip
from riskaudit.proxies import i2f as _i2f  # noqa: F401  # isort: skip
from riskaudit.proxies import posterior as _posterior  # noqa: F401  # isort: skip
from riskaudit.proxies import lavp as _lavp  # noqa: F401  # isort: skip
from riskaudit.proxies.base import PROXIES, Proxy, ProxyScores

__all__ = ["PROXIES", "Proxy", "ProxyScores"]
