"""How far a batch of an audit is, by the products that it has made of those that it is foreseen to make."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from riskaudit.audit.plan import SPECTRAL_PROXIES, UploadShape
from riskaudit.jacobian import Jacobian
from riskaudit.linalg import LinearOperator
from riskaudit.sensitivity import Plan

# Products of a sample that iterations without a precision asked for usually take (benchmarks/RESULTS.md), and those
# that do with l_1 alone.
USUAL_PRODUCTS, FEW_PRODUCTS = 125, 10
# A relative precision below which the number of products depends on the spectrum alone.
FORESEEN_PRECISION = 0.1
# The share at which a batch stays until it is done, however many products it makes.
NEARLY = 0.95


@final
class BatchProgress:
    """Counts passes over a sample, which is what products cost: a watch for `watching_products`.

    Args:
        expected: passes of the whole batch.
        tell: told the share of them that was made.
    """

    def __init__(self, expected: float, tell: Callable[[float], None]) -> None:
        self._expected, self._tell, self._passes = expected, tell, 0.0

    def __call__(self, operator: LinearOperator, columns: float) -> None:
        """Count ``columns`` products with each of an operator's maps."""
        if isinstance(operator, Jacobian):
            self._passes += operator.num_samples * columns * operator.passes
            self._tell(min(NEARLY, self._passes / self._expected))


def expected_passes(plan: Plan, dimension: int, uploads: int, shape: UploadShape | None) -> float | None:
    """Passes over a sample that the products of a batch are foreseen to take; None where nothing is foreseen.

    Args:
        plan: of the audit.
        dimension: of what leaves together, n d.
        uploads: of the batch.
        shape: of the uploads, where several samples leave together.
    """
    size, epochs = (1, 1) if shape is None else (shape.size, shape.epochs)
    if plan.solver == "dense":
        # A column of J is half a product.
        return uploads * size * epochs * dimension / 2
    of_whole = _expected_products(plan)
    if of_whole is None:
        return None
    passes = of_whole * size * epochs
    if plan.of_samples is not None and shape is not None:
        of_sample = _expected_products(plan.of_samples)
        if of_sample is None:
            return None
        passes += of_sample * size * (1 if shape.separable else size * epochs)
    return uploads * passes


def _expected_products(plan: Plan) -> float | None:
    if plan.precision is not None and plan.precision < FORESEEN_PRECISION:
        return None
    if plan.max_probe_products is not None:
        # Limits that are mostly reached.
        return plan.max_matvecs + plan.max_probe_products
    return USUAL_PRODUCTS if plan.proxies & SPECTRAL_PROXIES else FEW_PRODUCTS
