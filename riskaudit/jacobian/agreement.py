"""What a structured Jacobian is held against, and what is said of a model that has none."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from riskaudit.jacobian.structured import Layout, UnsupportedLayer, find_layout
from riskaudit.release import Batch, Release

# Sizes of the two batches in which samples are looked for, and others for a model that happens to have such
# sizes of its own.
TRACE_SIZES = ((5, 7), (11, 13))
# Both Jacobians agree to this many roots of the precision, for every parameter by itself, or else to this many
# times the precision of all parameters together.
TOLERANCE = 10
ROUNDING = 1e3


def layout_of(release: Release, batch: Batch) -> Layout:
    """The layout by the first sizes that it can be found with.

    Raises:
        UnsupportedLayer: as with the last sizes.
    """
    *first, last = TRACE_SIZES
    for sizes in first:
        with suppress(Exception):  # it shows again with the last sizes
            return find_layout(release, batch, sizes)
    return find_layout(release, batch, last)


@dataclass(frozen=True)
class Differences:
    """Compares rows of the parameters' size parameter by parameter: a small one may be all wrong unnoticed."""

    release: Release

    def check(self, what: str, actual: Tensor, expected: Tensor) -> None:
        """Compare rows.

        Raises:
            UnsupportedLayer: they differ, for one parameter at least.
        """
        if not bool(torch.isfinite(expected).all()):
            raise UnsupportedLayer(f"a sample whose {what} aren't finite")
        sizes = {name: parameter.numel() for name, parameter in self.release.parameters.items()}
        if expected.shape[1] != self.release.num_entries:
            sizes = {"": expected.shape[1]}
        eps = torch.finfo(expected.dtype).eps
        rounding = ROUNDING * eps * expected.norm(dim=1)
        parts = [torch.split_with_sizes(tensor, list(sizes.values()), 1) for tensor in (actual, expected)]
        pieces = zip(sizes, *parts, strict=True)
        for name, part, expected_part in pieces:
            allowed = torch.maximum(TOLERANCE * eps**0.5 * expected_part.norm(dim=1), rounding)
            # NaN must fail the check.
            if not bool(((part - expected_part).norm(dim=1) <= allowed).all()):
                raise UnsupportedLayer(f"a model whose {what} don't follow from its layers", name or None)


def described(model: nn.Module, unsupported: UnsupportedLayer) -> str:
    """The layer's type where the parameter belongs to one, else what was found."""
    if unsupported.parameter is None:
        return unsupported.what
    # A parametrised weight belongs to the layer that has it, not to what computes it.
    path = ".".join(takewhile(lambda part: part != "parametrizations", unsupported.parameter.split(".")[:-1]))
    layer = type(model.get_submodule(path)).__name__ if path else type(model).__name__
    return f"the layer {layer} ({path or 'the model itself'}: {unsupported.what})"
