"""Which layers' gradients carry the risk: the effective dimension of each layer's rows of J, and of all others.

    d_eff(H) = tr H (H + eps)^-1 = d - eps tr (H + eps)^-1,  eps = sigma^2 / tau^2,  H = sum over layers of J_g^T J_g

A layer is the module that owns the parameters; its rows are the released entries of its parameters, so clipping,
pruning and masks count as they are released. d_eff of a layer alone and d_eff that all others add up to more than
the whole wherever layers say the same. Needs all rows of J: for a larger model only tr H_g / tr H is estimated,
from Rademacher probes z by E ||J_g z||^2 = tr H_g (Hutchinson, 1990).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile

import torch
from torch import Tensor

from riskaudit.jacobian import Jacobian
from riskaudit.release import Release
from riskaudit.studies.directions.record import LayerRow

Places = Mapping[str, Tensor]

# Rademacher probes where J is too large to be held.
NUM_PROBES = 16


def layer_places(release: Release) -> dict[str, Tensor]:
    """Positions in the released vector by layer, in the model's order."""
    found: dict[str, list[Tensor]] = {}
    first = 0
    for name, parameter in release.parameters.items():
        # A parametrised weight belongs to the layer that has it, not to what computes it.
        path = takewhile(lambda part: part != "parametrizations", name.split(".")[:-1])
        layer = ".".join(path) or "the model"
        found.setdefault(layer, []).append(torch.arange(first, first + parameter.numel(), device=release.device))
        first += parameter.numel()
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def effective_dimension(gram: Tensor, shift: float) -> float:
    """d_eff of a symmetric positive semidefinite matrix [n, n], float64, at shift > 0."""
    n = len(gram)
    shifted = gram + shift * torch.eye(n, dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if bool(failed):
        values = torch.linalg.eigvalsh(gram).clamp_min(0.0)
        return float((values / (values + shift)).sum())
    return min(float(n), max(0.0, n - shift * float(torch.cholesky_inverse(factor).diagonal().sum())))


def exact_rows(sample_id: str, rows: Tensor, hessian: Tensor, places: Places, shift: float) -> list[LayerRow]:
    """Every layer from J itself.

    Args:
        sample_id: for the record.
        rows: J, [P, d], float64.
        hessian: J^T J, [d, d].
        places: of the layers' entries.
        shift: eps.
    """
    d = rows.shape[1]
    total = float(hessian.diagonal().sum())
    found = []
    for layer, entries in places.items():
        own = rows[entries]
        gram = own.mT @ own
        # The nonzero eigenvalues are those of the smaller product.
        alone = effective_dimension(gram if len(own) >= d else own @ own.mT, shift)
        found.append(
            LayerRow(
                sample_id=sample_id,
                layer=layer,
                num_entries=len(own),
                revealed=alone / d,
                revealed_without=effective_dimension(hessian - gram, shift) / d,
                information_share=float(gram.diagonal().sum()) / total if total > 0 else None,
                status="exact",
            )
        )
    return found


def probed_rows(sample_id: str, jacobian: Jacobian, places: Places, generator: torch.Generator) -> list[LayerRow]:
    """Shares of the trace alone, from probes of one sample's J."""
    d = jacobian.shape[1]
    traces = dict.fromkeys(places, 0.0)
    for _ in range(NUM_PROBES):
        signs = 2.0 * torch.randint(2, (1, d), generator=generator, dtype=torch.float64) - 1
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
