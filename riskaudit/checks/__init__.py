"""Exact leak checks: what is in the clear in an upload, without a spectrum, an attack or a doubt.

``base`` says what a check is; ``upload`` what it is given. A new check is one file here, with ``@register``. What a
received model shows before anything is computed with it stands apart, in ``received``.
"""

from importlib import import_module
from pkgutil import iter_modules

from riskaudit.checks.base import CHECKS, Check, Finding
from riskaudit.checks.upload import SentUpload

__all__ = ["CHECKS", "Check", "Finding", "SentUpload"]

for _module in iter_modules(__path__):
    if not _module.ispkg:
        import_module(f"{__name__}.{_module.name}")
