"""Findings for machines: results of audits, attestations and inspections as SARIF 2.1.0. Never loads torch."""
