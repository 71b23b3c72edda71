"""Which solver an audit can afford, decided from sizes alone so that the same input gives the same plan."""

from __future__ import annotations

import torch

from riskaudit.auditing.settings import AUTO_MAX_MATVECS, CHOSEN_MAX_MATVECS, AuditSettings
from riskaudit.linalg.dense import JACOBIAN_BYTES
from riskaudit.proxies import Plan

# H itself, its eigenvectors and eigh's workspace grow as d^2, its time as d^3.
DENSE_DIMENSION = 4096
# Released entries of all samples in memory at once: 128 MB and 2 GB per vector in float64.
CPU_BATCH_ENTRIES = 2**24
CUDA_BATCH_ENTRIES = 2**28


def choose_plan(settings: AuditSettings, dimension: int, num_entries: int, num_samples: int) -> Plan:
    """Solvers for samples of d = ``dimension`` and P = ``num_entries`` released entries."""
    jacobian_bytes = 8 * dimension * num_entries
    sizes = f"d = {dimension:,} and P = {num_entries:,}: one sample's Jacobian takes {jacobian_bytes / 1e9:.3g} GB"
    if settings.solver != "auto":
        solver, reason = settings.solver, "named by the user"
    elif settings.inverse == "dense":
        solver, reason = "dense", "the dense inverse named by the user needs all eigenvalues"
    elif dimension <= DENSE_DIMENSION and jacobian_bytes <= JACOBIAN_BYTES:
        solver, reason = "dense", f"{sizes}, so all eigenvalues are affordable"
    elif dimension > DENSE_DIMENSION:
        solver, reason = "lanczos", f"{sizes}, and d is above the {DENSE_DIMENSION:,} for which all are affordable"
    else:
        solver, reason = "lanczos", f"{sizes}, more than the {JACOBIAN_BYTES / 1e9:.3g} GB affordable for all"
    if settings.inverse != "auto":
        inverse, inverse_reason = settings.inverse, "named by the user"
    elif solver == "dense":
        inverse, inverse_reason = "dense", "all eigenvalues are known"
    else:
        inverse, inverse_reason = "cg", "where its products are foretold to stay within the limit"
    named = settings.inverse != "auto" or settings.solver in ("lanczos", "power")
    return Plan(
        solver=solver,
        solver_reason=reason,
        inverse=inverse,
        inverse_reason=inverse_reason,
        inverse_chosen=settings.inverse != "auto",
        tolerance=settings.tolerance,
        max_matvecs=settings.max_matvecs or (CHOSEN_MAX_MATVECS if named else AUTO_MAX_MATVECS),
        failure=(1 - settings.confidence) / num_samples,
    )


def samples_at_once(batch_size: int, num_entries: int, device: torch.device) -> int:
    """Samples in memory at once: the user's bound, and fewer where one vector per sample is large.

    Every product holds several vectors [P] per sample; the samples of a large model gain nothing from
    company.
    """
    entries = CUDA_BATCH_ENTRIES if device.type == "cuda" else CPU_BATCH_ENTRIES
    return max(1, min(batch_size, entries // num_entries))
