"""Numbers per sample that foretell how well an attacker reconstructs it. Ids are those of audit.json."""

from importlib import import_module
from pkgutil import iter_modules

# Importing a file registers its proxies; the order here is the order in audit.json, others follow by name.
from riskaudit.proxies import gradient_norm as _gradient_norm  # noqa: F401  # isort: skip
from riskaudit.proxies import i2f as _i2f  # noqa: F401  # isort: skip
from riskaudit.proxies import posterior as _posterior  # noqa: F401  # isort: skip
from riskaudit.proxies import lavp as _lavp  # noqa: F401  # isort: skip
from riskaudit.proxies.base import PROXIES, Proxy, ProxyScores, proxies_for

__all__ = ["PROXIES", "Proxy", "ProxyScores", "proxies_for"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
