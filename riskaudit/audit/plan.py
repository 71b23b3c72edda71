"""What an audit can afford, decided from sizes alone so that the same input gives the same plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from riskaudit.audit.settings import AuditSettings
from riskaudit.linalg.solvers.dense import JACOBIAN_BYTES
from riskaudit.proxies import PROXIES
from riskaudit.sensitivity import Plan
from riskaudit.sensitivity.probing import FIRST_BLOCK_PROBES, FIRST_PROBES

# H itself, its eigenvectors and eigh's workspace grow as d^2, its time as d^3.
DENSE_DIMENSION = {"cpu": 4096, "cuda": 8192}
# Passes over a client's samples for all columns of J.
DENSE_PASSES = 2**15
# Products per sample and iteration, by default and where the user named a solver, an inverse or a precision.
AUTO_MAX_MATVECS, CHOSEN_MAX_MATVECS = 50, 1000
# Random probes per sample for traces, at most; a power of two.
MAX_PROBES = 32
# Passes over one sample that the products of a whole upload, and those for one sample of it, may take for each sample
# by default: local training over 5 epochs of 32 samples has 128 products for the upload's probes, 19 for each sample.
WORK, WORK_OF_SAMPLE = 640, 3072
# What they take at least: all probes of the whole, one solution, and all iterations for a sample.
LEAST_PRODUCTS, LEAST_SINGLE, LEAST_PRODUCTS_OF_SAMPLE = 64, 8, 15
# Proxies that need more than a few products for the largest eigenvalue.
SPECTRAL_PROXIES = frozenset(name for name, proxy in PROXIES.items() if not proxy.few_products)
# The share of the free memory that one batch may fill, and samples beyond which a batch gains nothing.
MEMORY_SHARE = 0.5
MAX_SAMPLES = {"cpu": 64, "cuda": 1024}


@dataclass(frozen=True)
class UploadShape:
    """What products with the Jacobian of an upload of several samples cost.

    Attributes:
        size: n, its samples.
        epochs: passes over them in one product.
        separable: whether a sample's block of the Jacobian is the sample's own, so that it costs one sample's pass.
    """

    size: int
    epochs: int = 1
    separable: bool = False

    def of_whole(self, plan: Plan) -> Plan:
        """A plan with limits for the whole upload: a few probes that go far, since blocks take converged solutions."""
        products = max(WORK // self.epochs, LEAST_PRODUCTS)
        depth = min(AUTO_MAX_MATVECS, products // FIRST_BLOCK_PROBES)
        single = min(AUTO_MAX_MATVECS, max(LEAST_SINGLE, products // 10))
        return replace(plan, max_matvecs=single, max_probe_matvecs=depth, max_probe_products=products)

    def of_samples(self, plan: Plan) -> Plan:
        """The same for one sample of it, whose first iteration is as long as those of the first probes."""
        if self.separable:
            return plan
        products = max(WORK_OF_SAMPLE // (self.size * self.epochs), LEAST_PRODUCTS_OF_SAMPLE)
        depth = min(AUTO_MAX_MATVECS, products // (1 + FIRST_PROBES))
        return replace(plan, max_matvecs=depth, max_probe_products=products - depth)


def choose_plan(
    settings: AuditSettings,
    dimension: int,
    num_entries: int,
    num_samples: int,
    width: int,
    device: torch.device,
    upload: UploadShape | None = None,
) -> Plan:
    """Solvers for samples (or uploads) of d = ``dimension`` numbers and P = ``num_entries`` released entries.

    Args:
        settings: of the audit.
        dimension: of what leaves together, n d.
        num_entries: P'.
        num_samples: of the whole audit.
        width: samples (or uploads) in memory at once.
        device: where.
        upload: of several samples, where several leave together.
    """
    epochs = 1 if upload is None else upload.epochs
    whole = _plan(settings, dimension, num_entries, num_samples, width, device, epochs)
    if upload is None or upload.size == 1 or whole.solver != "lanczos":
        return whole
    alone = whole
    if upload.separable:
        alone = _plan(settings, dimension // upload.size, num_entries, num_samples, width, device)
    if _is_named(settings) or settings.max_matvecs is not None:
        return replace(whole, of_samples=alone)
    return replace(upload.of_whole(whole), of_samples=upload.of_samples(alone))


def _is_named(settings: AuditSettings) -> bool:
    return settings.inverse != "auto" or settings.solver in ("lanczos", "power") or settings.precision is not None


def _plan(
    settings: AuditSettings,
    dimension: int,
    num_entries: int,
    num_samples: int,
    width: int,
    device: torch.device,
    epochs: int = 1,
) -> Plan:
    solver, reason = _solver(settings, dimension, num_entries, device, epochs)
    if settings.inverse != "auto":
        inverse, inverse_reason = settings.inverse, "named by the user"
    elif solver == "dense":
        inverse, inverse_reason = "dense", "all eigenvalues are known"
    elif solver == "lanczos":
        inverse, inverse_reason = "quadrature", "brackets norms of solutions without solving"
    else:
        inverse, inverse_reason = "cg", "the fewest products"
    return Plan(
        solver=solver,
        solver_reason=reason,
        inverse=inverse,
        inverse_reason=inverse_reason,
        tolerance=settings.solver_tolerance,
        max_matvecs=settings.max_matvecs or (CHOSEN_MAX_MATVECS if _is_named(settings) else AUTO_MAX_MATVECS),
        precision=settings.precision,
        max_probes=MAX_PROBES,
        failure=(1 - settings.confidence) / num_samples,
        width=width,
        proxies=settings.wanted(),
        thresholds=_thresholds(settings),
        least_error=settings.min_rmse if settings.precision is None else None,
    )


def _thresholds(settings: AuditSettings) -> tuple[float, ...]:
    """Revealed fractions that decide: the limit and those of verdicts, once there is a limit and no precision."""
    if settings.precision is not None or (settings.max_revealed is None and settings.min_rmse is None):
        return ()
    limits = () if settings.max_revealed is None else (settings.max_revealed,)
    return *limits, settings.high, settings.medium


def _solver(
    settings: AuditSettings, dimension: int, num_entries: int, device: torch.device, epochs: int
) -> tuple[str, str]:
    if settings.solver != "auto":
        return settings.solver, "named by the user"
    if settings.inverse == "dense":
        return "dense", "the dense inverse named by the user needs all eigenvalues"
    if not settings.wanted() & SPECTRAL_PROXIES:
        return "lanczos", "none of the proxies asked for needs more than the largest eigenvalue"
    if settings.budget is not None:
        return "lanczos", "a budget of time was given, and brackets can stop at any moment"
    if dimension * epochs > DENSE_PASSES:
        return "lanczos", (
            f"a product for each of d = {dimension:,} columns goes through {epochs:,} epochs of training: more than "
            f"the {DENSE_PASSES:,} passes over the data affordable for all eigenvalues"
        )
    return _affordable(dimension, num_entries, device)


def _affordable(dimension: int, num_entries: int, device: torch.device) -> tuple[str, str]:
    """Dense where it is affordable, since it is exact."""
    jacobian_bytes, most = 8 * dimension * num_entries, DENSE_DIMENSION[device.type]
    sizes = f"d = {dimension:,} and P = {num_entries:,}: one Jacobian takes {jacobian_bytes / 1e9:.3g} GB"
    if dimension > most:
        return "lanczos", f"{sizes}, and d is above the {most:,} for which all eigenvalues are affordable"
    if jacobian_bytes > JACOBIAN_BYTES:
        return "lanczos", f"{sizes}, more than the {JACOBIAN_BYTES / 1e9:.3g} GB affordable for all eigenvalues"
    return "dense", f"{sizes}, so all eigenvalues are affordable"


def samples_at_once(batch_size: int | None, sample_bytes: int, device: torch.device, upload_size: int = 1) -> int:
    """Uploads in memory at once: what fits in the free memory, and no more samples than the user's bound.

    A power of two, so that a little more or less free memory doesn't change the numbers.
    """
    fitting = fitting_samples(sample_bytes, device)
    batch_size = None if batch_size is None else max(1, batch_size // upload_size)
    most = max(1, min(fitting, MAX_SAMPLES[device.type] // upload_size if batch_size is None else batch_size))
    return most if most == batch_size else 2 ** (most.bit_length() - 1)


def fitting_samples(sample_bytes: int, device: torch.device) -> int:
    """Samples of so many bytes that one batch may hold; 0 where not even one fits."""
    return int(MEMORY_SHARE * free_memory(device) // max(1, sample_bytes))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(1024 * int(line.split()[1]), _group_limit())
    return 4 * 2**30


def _group_limit() -> int:
    """What a container's own limit leaves."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text().strip()
        return 2**63 if text == "max" else max(0, int(text) - int(used.read_text()))
    except (OSError, ValueError):
        return 2**63
