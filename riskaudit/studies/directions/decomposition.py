"""One sample's J taken apart: H = J^T J = V diag(l) V^T, left singular vectors u_i = J v_i / sqrt(l_i).

Dense in float64 where that is affordable, with J itself where it can be held. Else Lanczos from a random start:
its converged Ritz pairs are the largest eigenpairs, and nothing is known of the others.

Which layers' gradients carry the risk: the effective dimension of each layer's rows of J, and of all others.

    d_eff(H) = tr H (H + eps)^-1 = d - eps tr (H + eps)^-1,  eps = sigma^2 / tau^2,  H = sum over layers of J_g^T J_g

A layer is the module that owns the parameters; its rows are the released entries of its parameters, so clipping,
pruning and masks count as they are released. d_eff of a layer alone and d_eff that all others add up to more than
the whole wherever layers say the same. Needs all rows of J: for a larger model only tr H_g / tr H is estimated,
from Rademacher probes z by E ||J_g z||^2 = tr H_g (Hutchinson, 1990).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from riskaudit.jacobian import Jacobian
from riskaudit.linalg import Spectrum, lanczos
from riskaudit.linalg.solvers.dense import JACOBIAN_BYTES
from riskaudit.release import Release
from riskaudit.studies.directions.record import LayerRow, SpectrumRow

# Shares of the spectrum at which eigenvalues are recorded; 0 is the smallest.
QUANTILE_SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
# Columns of J made at once.
COLUMNS = 64
# Products of a Lanczos run, and the relative residual at which a Ritz pair counts as an eigenpair.
NUM_PRODUCTS, RITZ_TOLERANCE = 40, 1e-6
# Eigenvalues this many times above what can be told from zero have eigenvectors to rely on.
RESOLVED = 10
Places = Mapping[str, Tensor]
# Rademacher probes where J is too large to be held.
NUM_PROBES = 16


@dataclass(frozen=True, eq=False)
class Decomposition:
    """J of one sample.

    Attributes:
        jacobian: of one sample.
        values: known eigenvalues of H above zero, ascending, [k], float64.
        vectors: their eigenvectors, [d, k].
        status: "exact" with all eigenvalues, "bracketed" with the largest alone.
        reason: why not all, or what of H is singular.
        rows: J, [P, d], float64, where it is held.
        hessian: H, [d, d], float64, where it is held.
    """

    jacobian: Jacobian
    values: Tensor
    vectors: Tensor
    status: Literal["exact", "bracketed"]
    reason: str | None = None
    rows: Tensor | None = None
    hessian: Tensor | None = None

    @property
    def dimension(self) -> int:
        """Coordinates of the input, d."""
        return self.jacobian.shape[1]

    @property
    def is_regular(self) -> bool:
        """Whether all eigenvalues are known and none is zero."""
        return self.status == "exact" and len(self.values) == self.dimension

    def push(self, directions: Tensor) -> Tensor:
        """J times directions [d, K], [P, K], float64."""
        if self.rows is not None:
            return self.rows @ directions
        jacobian = self.jacobian
        return jacobian.matmat(directions.to(jacobian.dtype)[None])[0].double()

    def left(self, places: list[int]) -> Tensor:
        """Left singular vectors as columns, [P, K]."""
        pushed = self.push(self.vectors[:, places])
        left: Tensor = pushed / pushed.norm(dim=0)
        return left

    def pull(self, released: Tensor) -> Tensor:
        """J^T times one released vector [P], [d], float64."""
        return self.jacobian.rmatvec(released.to(self.jacobian.dtype)[None])[0].double()

    def solve(self, pulled: Tensor) -> Tensor:
        """H^-1 times [d]; H must be regular."""
        return self.vectors @ ((self.vectors.mT @ pulled) / self.values)

    def row(self, sample_id: str) -> SpectrumRow:
        """The record of the spectrum."""
        values = self.values.cpu().numpy()
        exact = self.status == "exact"
        every = np.concatenate([np.zeros(self.dimension - len(values)), values]) if exact else values
        total = float(values.sum())
        shares = values / total if total > 0 else values
        whole = exact and total > 0
        return SpectrumRow(
            sample_id=sample_id,
            dimension=self.dimension,
            num_known=len(every),
            rank=len(values) if exact else None,
            largest=float(values[-1]) if len(values) else 0.0 if exact else None,
            smallest=float(every[0]) if exact else None,
            spread=float(values[-1] / values[0]) if whole else None,
            effective_rank=float(1 / (shares**2).sum()) if whole else None,
            entropy_rank=float(np.exp(-(shares * np.log(shares)).sum())) if whole else None,
            values=[float(value) for value in (np.quantile(every, QUANTILE_SHARES) if exact else every)],
            status=self.status,
            reason=self.reason,
        )


def decompose(jacobian: Jacobian, solver: str, solver_reason: str, generator: torch.Generator) -> Decomposition:
    """Take one sample's J apart."""
    if solver != "dense":
        return _largest(jacobian, solver_reason, generator)
    if 8 * jacobian.shape[0] * jacobian.shape[1] > JACOBIAN_BYTES:
        spectrum = Spectrum.of(jacobian.hessian())
        return _resolved(jacobian, spectrum.values[0], spectrum.vectors[0], spectrum.rounding)
    size, d = jacobian.shape
    rows = torch.empty(size, d, dtype=torch.float64, device=jacobian.device)
    for first in range(0, d, COLUMNS):
        width = min(COLUMNS, d - first)
        columns = torch.zeros(1, d, width, dtype=jacobian.dtype, device=jacobian.device)
        columns[0, first : first + width] = torch.eye(width, dtype=jacobian.dtype, device=jacobian.device)
        rows[:, first : first + width] = jacobian.matmat(columns)[0]
    hessian = rows.mT @ rows
    hessian = (hessian + hessian.mT) / 2
    values, vectors = torch.linalg.eigh(hessian)
    # Squared in float64, J's own rounding reaches the eigenvalues only as its square.
    rounding = max(torch.finfo(torch.float64).eps, torch.finfo(jacobian.dtype).eps ** 2)
    return _resolved(jacobian, values, vectors, rounding, rows, hessian)


def _resolved(
    jacobian: Jacobian,
    values: Tensor,
    vectors: Tensor,
    rounding: float,
    rows: Tensor | None = None,
    hessian: Tensor | None = None,
) -> Decomposition:
    """Without the eigenvalues that can't be told from zero."""
    above = values > RESOLVED * len(values) * rounding * values[-1]
    lost = len(values) - int(above.sum())
    reason = f"{lost} of {len(values)} eigenvalues can't be told from zero" if lost else None
    return Decomposition(jacobian, values[above], vectors[:, above], "exact", reason, rows, hessian)


def _largest(jacobian: Jacobian, reason: str, generator: torch.Generator) -> Decomposition:
    start = torch.randn(1, jacobian.shape[1], generator=generator, dtype=torch.float64)
    start = start.to(dtype=jacobian.dtype, device=jacobian.device)
    (space,) = lanczos(jacobian.hessian(), start, lambda _, __: False, min(NUM_PRODUCTS, jacobian.shape[1]))
    pairs = space.tridiagonal.ritz()
    # From the top down to the first pair that hasn't converged: below it an eigenvalue might have been missed.
    converged = pairs.residuals <= RITZ_TOLERANCE * pairs.values
    count = len(converged) if converged.all() else int(np.argmin(converged[::-1]))
    places = list(range(len(converged) - count, len(converged)))
    words = f"not all eigenvalues were computed ({reason}): {count} converged Ritz values stand for the largest"
    vectors = space.ritz_vectors(places).double().mT
    values = torch.from_numpy(pairs.values[places]).to(vectors)
    return Decomposition(jacobian, values, vectors, "bracketed", words)


def layer_places(release: Release) -> dict[str, Tensor]:
    """Positions in the released vector by layer, in the model's order."""
    parts_of: dict[str, list[Tensor]] = {}
    first = 0
    for name, parameter in release.parameters.items():
        # A parametrised weight belongs to the layer that has it, not to what computes it.
        path = takewhile(lambda part: part != "parametrizations", name.split(".")[:-1])
        layer = ".".join(path) or "the model"
        parts_of.setdefault(layer, []).append(torch.arange(first, first + parameter.numel(), device=release.device))
        first += parameter.numel()
    return {layer: torch.cat(parts) for layer, parts in parts_of.items()}


def effective_dimension(gram: Tensor, shift: float) -> float:
    """d_eff of a symmetric positive semidefinite matrix [n, n], float64, at shift > 0."""
    n = len(gram)
    shifted = gram + shift * torch.eye(n, dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if bool(failed):
        values = torch.linalg.eigvalsh(gram).clamp_min(0.0)
        return float((values / (values + shift)).sum())
    return min(float(n), max(0.0, n - shift * float(torch.cholesky_inverse(factor).diagonal().sum())))


def layer_rows(
    sample_id: str, decomposition: Decomposition, places: Places, shift: float, generator: torch.Generator
) -> list[LayerRow]:
    """Every layer from J itself at shift eps; where J isn't held, shares of the trace alone, from probes."""
    if decomposition.rows is None or decomposition.hessian is None:
        return _probed_rows(sample_id, decomposition.jacobian, places, generator)
    d, total = decomposition.dimension, float(decomposition.hessian.diagonal().sum())
    rows = []
    for layer, entries in places.items():
        part = decomposition.rows[entries]
        gram = part.mT @ part
        # The nonzero eigenvalues are those of the smaller product.
        alone = effective_dimension(gram if len(part) >= d else part @ part.mT, shift)
        rows.append(
            LayerRow(
                sample_id=sample_id,
                layer=layer,
                num_entries=len(part),
                revealed=alone / d,
                revealed_without=effective_dimension(decomposition.hessian - gram, shift) / d,
                information_share=float(gram.diagonal().sum()) / total if total > 0 else None,
                status="exact",
            )
        )
    return rows


def _probed_rows(sample_id: str, jacobian: Jacobian, places: Places, generator: torch.Generator) -> list[LayerRow]:
    traces = dict.fromkeys(places, 0.0)
    for _ in range(NUM_PROBES):
        signs = 2.0 * torch.randint(2, (1, jacobian.shape[1]), generator=generator, dtype=torch.float64) - 1
        pushed = jacobian.matvec(signs.to(dtype=jacobian.dtype, device=jacobian.device))[0].double()
        for layer, entries in places.items():
            traces[layer] += float(pushed[entries].square().sum())
    total = sum(traces.values())
    return [
        LayerRow(
            sample_id=sample_id,
            layer=layer,
            num_entries=len(entries),
            revealed=None,
            revealed_without=None,
            information_share=traces[layer] / total if total > 0 else None,
            status="not_applicable",
        )
        for layer, entries in places.items()
    ]
