"""Inputs of few values, one of them common: one-hot codes, bags of words, sparse indicators.

A Gaussian prior is no picture of them. Of a one-hot code of V values the prior's variance is about 1 / V, while the
codes lie sqrt(2) apart, so that noise which leaves nearly all of the variance still lets an attacker who knows that
they are codes choose the right one: with V = 64 and a revealed fraction of 0.2, every one of 8. Where both values are
common, as in binary pictures, the distance is about the standard deviation and the Gaussian does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riskaudit.inputs.samples import Samples

# How often a value has to occur to be one of the two.
LEAST_COUNT = 3
# Share of coordinates that are codes, among those that don't always have one value.
DISCRETE_SHARE = 0.6
# Share of entries that don't have the common value from which on the Gaussian does.
RARE = 0.11
# Entries that are looked at.
MOST_ENTRIES = 10**7
SPARSE_CODES = (
    "the inputs take two values, one of them rarely, as one-hot codes do: an attacker who knows that reads them "
    "exactly where a Gaussian prior has little revealed, so nothing that protects is claimed of them"
)


def are_sparse_codes(inputs: Tensor) -> bool:
    """Whether inputs [B, ...] are mostly codes of two values, one of them rare.

    The two are the same everywhere, or, where there are enough samples to see it, each coordinate's own, as in codes
    that were standardised.
    """
    flat = inputs.detach().flatten(1).cpu()
    flat = flat[: max(1, MOST_ENTRIES // max(1, flat.shape[1]))]
    if flat.shape[1] < 2:
        return False
    return _have_two_values(flat) or _mostly_codes(*_own_codes(flat))


def are_undeclared_codes(samples: Samples) -> bool:
    """The same of inputs that no encoding of a table declares as categories, each of which is looked at by itself."""
    encoding = samples.encoding
    if encoding is None:
        return are_sparse_codes(samples.inputs)
    others = [number.position for number in encoding.numbers]
    return bool(others) and are_sparse_codes(samples.inputs.flatten(1)[:, others])


def _have_two_values(flat: Tensor) -> bool:
    """Whether entries [B, d] are mostly codes of the same two values."""
    # Where codes are most of the coordinates their common value has most of a sample's entries, so it is the median.
    common = flat == flat[0].median()
    if not flat.numel() < 2 * int(common.sum()) < 2 * flat.numel():
        return False
    values, counts = torch.unique(flat[~common], return_counts=True)
    index = int(counts.argmax())
    is_constant = common | (flat == values[index]) if len(values) == 1 or int(counts[index]) >= LEAST_COUNT else common
    return _mostly_codes(is_constant, common)


def _own_codes(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Which entries [B, d] have one of the two values of their coordinate, and which the more common one."""
    low, high = flat.amin(0), flat.amax(0)
    at_low, at_high = flat == low, flat == high
    often = torch.minimum(at_low.sum(0), at_high.sum(0)) >= LEAST_COUNT - 1
    return (at_low | at_high) & (often | (low == high)), torch.where(at_low.sum(0) >= at_high.sum(0), at_low, at_high)


def _mostly_codes(is_constant: Tensor, common: Tensor) -> bool:
    """Whether most coordinates of entries [B, d] that vary are codes, and their other value is rare."""
    used = ~common.all(0)
    codes = used & is_constant.all(0)
    if not codes.any() or int(codes.sum()) < DISCRETE_SHARE * int(used.sum()):
        return False
    # Coordinates that these samples never use belong to the codes as well.
    return float((~common[:, codes | ~used]).float().mean()) <= RARE
