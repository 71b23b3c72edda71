"""How unevenly the coordinates of an input are revealed.

The revealed fraction is a mean over all d coordinates. Coordinates that the release doesn't depend on (columns of J
that are 0) reveal nothing and count in it, so that a model that reads 8 of 200 numbers reveals these whole at a
fraction of 0.04. With all eigenvalues l_k and eigenvectors v_k of H, coordinate p alone has the share
sum_k v_pk^2 l_k / (l_k + eps) of its prior variance revealed, whose mean is the revealed fraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riskaudit.formatting import count
from riskaudit.linalg import KrylovSpace
from riskaudit.sensitivity.linearisation import Linearisation

# A product with H of a random vector has smaller entries than this, relative to the mean eigenvalue's, only where H has
# a row of zeros, or next to none.
LEAST_PRODUCT = 1e-4


@dataclass(frozen=True)
class Concentration:
    """Of one sample.

    Attributes:
        reached: number of coordinates that the release depends on.
        dimension: number of all coordinates.
        largest: the largest share of a single coordinate's prior variance that is revealed; None where only a mean is
            known.
    """

    reached: int
    dimension: int
    largest: float | None = None

    @classmethod
    def of(cls, space: KrylovSpace, num_blocks: int = 1) -> list[Concentration]:
        """Of every sample of an upload of n, from the upload's iteration."""
        dimension = space.tridiagonal.dimension // num_blocks
        return [cls(reached, dimension) for reached in num_reached(space, num_blocks)]

    @classmethod
    def of_pulls(cls, pulled: Tensor) -> Concentration:
        """Of one sample, from J^T u [d, k] for standard normal u: entry p has the variance |J e_p|^2."""
        squares = pulled.double().square().mean(1)
        return cls(int((squares > LEAST_PRODUCT * squares.mean()).sum()), len(pulled))

    @property
    def factor(self) -> float:
        """A mean over the coordinates that the release depends on, over that over all; 1 where they are half or more.

        Images have borders that no stride reaches, so that a few left out are no reason to count others.
        """
        return self.dimension / self.reached if 0 < 2 * self.reached < self.dimension else 1.0


def num_reached(space: KrylovSpace, num_blocks: int = 1) -> list[int]:
    """How many coordinates of each block the release depends on, by the first product H q_1 = alpha q_1 + beta q_2.

    All of them where no product was made.
    """
    tridiagonal, basis = space.tridiagonal, space.basis[:2].double()
    if not tridiagonal.num_products:
        return [tridiagonal.dimension // num_blocks] * num_blocks
    mean = float(tridiagonal.diagonal[0])
    product = mean * basis[0]
    if len(basis) > 1:
        product = product + float(tridiagonal.off_diagonal[0]) * basis[1]
    typical = mean / tridiagonal.dimension**0.5
    reached: list[int] = (product.abs() > LEAST_PRODUCT * typical).reshape(num_blocks, -1).sum(1).tolist()
    return reached


def concentrations(linearisation: Linearisation) -> list[Concentration]:
    """Of every sample of a linearisation whose information was asked for; none where the solver shows nothing of it."""
    own = linearisation.dimensions.tolist()
    return [
        replace(each, dimension=round(count)) for each, count in zip(_all_coordinates(linearisation), own, strict=False)
    ]


def _all_coordinates(linearisation: Linearisation) -> list[Concentration]:
    """The same over the coordinates of padding too."""
    spectrum = linearisation.spectrum
    if spectrum is not None:
        isotropic, eps = linearisation.prior.isotropic, linearisation.eps.tolist()
        triples = zip(spectrum.values, spectrum.vectors, eps, strict=True)
        return [
            _of_spectrum(values, rows, shift if isotropic else None)
            for values, vectors, shift in triples
            for rows in vectors.chunk(linearisation.upload_size)
        ]
    if linearisation.plan.solver == "lanczos":
        spaces = linearisation.ends.spaces
        return [each for space in spaces for each in Concentration.of(space, linearisation.upload_size)]
    return []


def _of_spectrum(values: Tensor, vectors: Tensor, eps: float | None) -> Concentration:
    """Of d coordinates, from eigenvalues [n d] and their rows of eigenvectors [d, n d]; eps of an isotropic prior."""
    weights = vectors.square()
    diagonal = weights @ values
    reached = int((diagonal > LEAST_PRODUCT**2 * diagonal.mean()).sum())
    if eps is None:
        return Concentration(reached, len(vectors))
    shares = torch.where(values > 0, values / (values + eps), torch.zeros_like(values))
    return Concentration(reached, len(vectors), min(1.0, float((weights @ shares).max())))


def reached_note(samples: Sequence[tuple[Concentration, float]], total: int, consequence: str) -> list[str]:
    """That a mean over all coordinates hides those of the release, where they are fewer than half.

    Args:
        samples: of samples, with the upper end of what the coordinates of the release reveal on
            average.
        total: number of all samples.
        consequence: what that means for the numbers.
    """
    few = [(each, revealed) for each, revealed in samples if each.factor > 1]
    if not few:
        return []
    least, most = min(each.reached for each, _ in few), max(revealed for _, revealed in few)
    return [
        f"in {len(few)} of {count(total, 'sample')} the release depends on fewer than half of the "
        f"{few[0][0].dimension} input coordinates (on {least} at the least): these reveal up to "
        f"{most:.2g} on average, and {consequence}"
    ]
