"""The audit: a release, proxies, and samples in; an `AuditResult` out.

The package can be called: ``riskaudit.audit(checkpoint, samples)`` is the function of that name, which would otherwise
be hidden as soon as the package is imported. Settings are read without torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from riskaudit.audit.settings import AuditSettings

__all__ = ["AuditSettings"]


class _CallableModule(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from riskaudit.audit.audit import audit

        return audit(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule
