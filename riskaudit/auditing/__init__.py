"""The audit: a release, proxies, and samples in; an `AuditResult` out."""

from riskaudit.auditing.audit import audit, audit_victim
from riskaudit.auditing.settings import AuditSettings

__all__ = ["AuditSettings", "audit", "audit_victim"]
