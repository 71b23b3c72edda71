"""``span``: the subspace that a fully connected layer's gradient pins the samples' inputs to.

The rows of dW = D^T X [m, a] are combinations of the samples' inputs, so that while fewer samples than units and
coordinates are in the batch, every input lies in the row span of what leaves. Under noise of std sigma a singular
value s of dW stands out of it iff s > sigma (m a)^(1/4), and the squared cosine between its right singular vector and
the true one is (s^4 - m a sigma^4) / (s^4 + s^2 a sigma^2): Benaych-Georges and Nadakuditi, J. Multivariate Anal.
2012.
"""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.checks.base import Check, Finding, not_judged, nothing_to_read, register
from riskaudit.checks.upload import FullyConnected, SentUpload
from riskaudit.results.checks import Detail, Exactness, Recovery

# Share of an input's squared norm in the directions that stand out of the noise from which on it is pinned.
PINNED = 0.9


@register
@final
class Span(Check):
    """See the module."""

    id: ClassVar[str] = "span"
    title: ClassVar[str] = "Subspace of the inputs"
    summary: ClassVar[str] = "The inputs are known up to which combinations of a few directions they are."
    remedy: ClassVar[str] = "Add noise, or send batches of more samples than the layer has units."
    source: ClassVar[str] = "Petrov et al. (DAGER), NeurIPS 2024; Benaych-Georges and Nadakuditi, 2012"
    recovers: ClassVar[Recovery] = "subspace"

    @override
    def run(self, upload: SentUpload) -> list[Finding]:
        layers = [layer for layer in upload.fully_connected if layer.weight is not None]
        if not layers:
            return nothing_to_read(upload, "no fully connected layer's weight leaves as it is")
        return [*(_finding(upload, layer) for layer in layers), *not_judged(upload)]


def _finding(upload: SentUpload, layer: FullyConnected) -> Finding:
    assert layer.weight is not None
    values, rows = directions(layer.weight, layer.inputs)
    width, features = layer.weight.shape
    resolution = values[0] * max(width, features) * torch.finfo(values.dtype).eps
    cosines = alignment(values, width, features, upload.noise_std)
    standing = (values > resolution) & (cosines > 0)
    details: dict[str, Detail] = {"rank": int((values > resolution).sum()), "standing_out": int(standing.sum())}
    if upload.noise_std > 0:
        details["squared_cosines"] = [round(value, 6) for value in cosines[standing].tolist()]
    shares = _shares(layer.inputs, rows[standing], cosines[standing])
    limit = 1 - upload.agreement**2 if upload.noise_std == 0 else PINNED
    pinned = sorted(set(layer.owners[shares >= limit].tolist()))
    exactness: Exactness = "exact" if upload.noise_std == 0 else "predicted"
    filled = int((layer.weight != 0).any(0).sum())
    enough = _enough_noise(layer.inputs, values, rows, width)
    if int(standing.sum()) >= filled:
        reason = f"the rows span all {filled} coordinates that aren't 0, so that they rule nothing out"
        # Where noise hides some of the directions, the others may do.
        return Finding("clear", layer.name, exactness=exactness, clear_from_std=enough, details=details, reason=reason)
    if not pinned:
        reason = (
            f"no singular value stands out of the noise far enough to hold {PINNED:.0%} of an input"
            if upload.noise_std > 0
            else "no sample's input lies in the span of what leaves: it mixes more of them than it has units"
        )
        return Finding("clear", layer.name, exactness=exactness, details=details, reason=reason)
    return Finding("leak", layer.name, pinned, exactness, details=details, clear_from_std=enough)


def _enough_noise(inputs: Tensor, values: Tensor, rows: Tensor, width: int) -> float:
    """Std from which on the directions [k, a] that stand out hold too little of every input, to a thousandth."""
    features = rows.shape[1]
    # Beyond the threshold no direction stands out; below it cosines only fall.
    low, high = 0.0, float(values[0]) / math.sqrt(math.sqrt(width * features)) * (1 + 1e-9)
    while high - low > 1e-3 * high and high > torch.finfo(values.dtype).tiny:
        middle = (low + high) / 2
        shares = _shares(inputs, rows, alignment(values, width, features, middle))
        low, high = (middle, high) if bool((shares >= PINNED).any()) else (low, middle)
    return high


def directions(weight: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, descending, and right singular vectors [k, a] of what leaves for a layer [m, a].

    A sum of R outer products with its inputs has no direction outside their span. Where it is one, as found and not
    assumed, the matrix that is decomposed has R columns in place of a; what is left out is rounding. Entries that were
    removed, or steps of Adam, make it another matrix, which is decomposed as it is.

    Args:
        weight: [m, a].
        inputs: of the layer, [R, a].
    """
    if len(inputs) == 1:
        # Rows of a single outer product are one direction.
        largest = weight[weight.norm(dim=1).argmax()]
        return weight.norm()[None], (largest / largest.norm().clamp_min(torch.finfo(weight.dtype).tiny))[None]
    if len(inputs) < min(weight.shape):
        basis = torch.linalg.qr(inputs.mT).Q.mT
        inside = weight @ basis.mT
        rounding = max(weight.shape) * torch.finfo(weight.dtype).eps
        if bool((weight - inside @ basis).norm() <= rounding * inside.norm() / len(inputs) ** 0.5):
            _, values, rows = torch.linalg.svd(inside, full_matrices=False)
            return values, rows @ basis
    _, values, rows = torch.linalg.svd(weight, full_matrices=False)
    return values, rows


def alignment(values: Tensor, width: int, features: int, noise_std: float) -> Tensor:
    """Squared cosine of every right singular vector after noise with that before; 0 where it is lost.

    Args:
        values: s, singular values before noise, [r].
        width: m, rows of the matrix.
        features: a, its columns.
        noise_std: sigma, of every entry.
    """
    if noise_std == 0:
        return torch.ones_like(values)
    # In units of the noise, so that no fourth power overflows.
    squared = (values / noise_std).square()
    cosines = (squared - width * features / squared.clamp_min(1e-300)) / (squared + features)
    return torch.where(squared > (width * features) ** 0.5, cosines, 0.0)


def _shares(inputs: Tensor, directions: Tensor, cosines: Tensor) -> Tensor:
    """Of every row's squared norm, in the orthonormal directions [k, a] weighed by their squared cosines; [R]."""
    projected = (inputs @ directions.mT).square() @ cosines
    squared = inputs.square().sum(-1)
    return torch.where(squared > 0, projected / squared.clamp_min(1e-300), 0.0)
