"""A descent without a prior's term in coordinates that are alike everywhere, for inputs that the release determines.

With the prior's term, its coordinates w = L^-1 (x - mu) are the right ones: K + sigma^2 has no eigenvalue below
sigma^2. Without it the eigenvalues of K = L H L lie as far apart as those of H and of C together: pixels at the edge
of handwritten digits hardly vary, so that on a lenet's gradients conjugate gradient took 7 times as many products as
in w = (x - mu) / tau, where it solves with H itself, and the search didn't finish. (A factor of an earlier K mends
that too, where there is room for one.)

Where a release determines x, both end at the same point. Where it doesn't, the prior's coordinates lead to a likely
one among inputs of equal release, and plain ones to a worse. So a point counts only where the search comes back to it
from beside it in a random direction: of a direction that the release doesn't see, the displacement would stay.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from riskaudit.attacks.optimise.curvature import most_matrices
from riskaudit.attacks.optimise.levenberg_marquardt import MatchingProblem, State, StoppingRule

# How far beside it the search begins again, in the prior's standard deviations per coordinate.
DISPLACEMENT = 0.03
# What may be left of the displacement, as a share of what a single direction that isn't seen would leave.
LEFT_SHARE = 0.1


def needs_plain_coordinates(problem: MatchingProblem) -> bool:
    """Whether the prior's coordinates would make products stall, and no earlier curvature can help all samples."""
    count, dimension = problem.point_shape
    return not problem.prior.isotropic and not bool(problem.weights.any()) and most_matrices(dimension) < count


def determined(
    problem: MatchingProblem, start: Tensor, explained: Tensor, limits: StoppingRule
) -> tuple[list[int], State]:
    """Samples that plain coordinates reconstruct and that the release determines, with their run in the prior's own.

    Args:
        problem: without a prior's term.
        start: w, [B, d], in standard deviations of either coordinates.
        explained: F up to which a point matches what was observed, [B], float64.
        limits: of each of the two descents.
    """
    plain = replace(problem, prior=problem.prior.alike_everywhere())
    state = plain.minimise(plain.start(start), limits)
    rows = torch.nonzero(state.converged & (state.value <= explained)).flatten().tolist()
    if rows:
        rows = [
            row
            for row, same in zip(rows, _comes_back(plain.select(rows), state.select(rows), limits), strict=True)
            if same
        ]
    found = state.select(rows)
    if rows:
        prior = problem.prior.select(rows)
        found.point = prior.inverse_root(plain.select(rows).inputs(found.point) - prior.mean)
    return rows, found


def _comes_back(plain: MatchingProblem, state: State, limits: StoppingRule) -> list[bool]:
    # Draws of its own: what others draw doesn't depend on whether this was asked.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(state.point.shape, generator=generator, dtype=torch.float64).to(state.point)
    again = plain.minimise(plain.start(state.point + DISPLACEMENT * drawn), limits)
    left: Tensor = (again.point - state.point).double().norm(dim=-1)
    return (left <= LEFT_SHARE * DISPLACEMENT).tolist()
