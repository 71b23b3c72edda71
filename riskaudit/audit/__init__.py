"""The audit: a release, proxies, and samples in; an `AuditResult` out."""

from riskaudit.audit.audit import audit, audit_victim
from riskaudit.audit.settings import AuditSettings

__all__ = ["AuditSettings", "audit", "audit_victim"]
