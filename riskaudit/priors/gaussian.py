"""N(mu, C) with C = U diag(s) U^T + rho I: principal components and a remainder that is alike everywhere.

With orthonormal U [d, k] the symmetric root is as cheap as U itself:

    L = U diag(sqrt(s + rho) - sqrt(rho)) U^T + sqrt(rho) I,

and L^-1 likewise with reciprocals of the roots. Shrunk covariances have this form exactly (`fitting`).

One Gaussian per class is what an attacker knows who has read the label off the gradient. The label usually can be read
there, so that conditioning on it is fair to the attacker (docs/theory.md, section 2). A class of which too few images
are known has what is known of all images together instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.priors.base import BoundPrior, Prior
from riskaudit.results import PriorInfo


@dataclass(frozen=True)
class Origin:
    """What a prior was fitted to; ``class_counts`` by class number, empty where targets aren't classes."""

    source: str | None = None
    sha256: str | None = None
    num_images: int | None = None
    class_counts: dict[int, int] = field(default_factory=dict)


@final
@dataclass(frozen=True, eq=False)
class GaussianPrior(Prior):
    """One Gaussian for every sample, whatever its class.

    Attributes:
        mean: mu, [d], float64, data units.
        components: U, orthonormal columns, [d, k], float64; k may be 0.
        variances: s >= 0, [k], float64: variance along each component beyond the remainder.
        remainder: rho > 0, variance in every direction.
        input_shape: *S of one input, d numbers.
        origin: what it was fitted to.
    """

    mean: Tensor
    components: Tensor
    variances: Tensor
    remainder: float
    input_shape: tuple[int, ...]
    origin: Origin = Origin()

    kind: ClassVar[str] = "data"

    @property
    def dimension(self) -> int:
        """Number of input coordinates, d."""
        return len(self.mean)

    @property
    def variance(self) -> float:
        """tr C / d."""
        return float(self.variances.sum()) / self.dimension + self.remainder

    @property
    def largest(self) -> float:
        """The largest eigenvalue of C."""
        return float(self.variances.max()) + self.remainder if len(self.variances) else self.remainder

    def leading(self, count: int, like: Tensor) -> tuple[list[float], Tensor]:
        """As `BoundPrior.leading`; vectors in dtype and device of ``like``."""
        order = torch.argsort(self.variances, descending=True)
        eigenvalues = [*(self.variances[order] + self.remainder).tolist(), self.remainder]
        count = min(count, len(order), self.dimension - 1)
        return eigenvalues[: count + 1], self.components[:, order[:count]].mT.to(like)

    @override
    def bind(self, targets: Tensor, like: Tensor, lengths: Tensor | None = None) -> BoundPrior:
        return bind_gaussians([self] * len(targets), like)

    @override
    def info(self) -> PriorInfo:
        return described(self.kind, float(self.mean.mean()), self.variance, self.origin)


def described(kind: str, mean: float, variance: float, origin: Origin) -> PriorInfo:
    """What audit.json says of a fitted prior with this mean and variance of one coordinate."""
    counts = {str(target): count for target, count in sorted(origin.class_counts.items())}
    return PriorInfo(kind=kind, mean=mean, std=variance**0.5, **vars(origin) | {"class_counts": counts or None})


class _Roots:
    """L and L^-1 of samples that may have different Gaussians; each Gaussian is applied once to all its samples."""

    def __init__(self, gaussians: Sequence[GaussianPrior], like: Tensor) -> None:
        rows_of: dict[int, list[int]] = {}
        for row, gaussian in enumerate(gaussians):
            rows_of.setdefault(id(gaussian), []).append(row)
        self._groups = [(gaussians[rows[0]], rows) for rows in rows_of.values()]
        self._matrices = [gaussian.components.to(like) for gaussian, _ in self._groups]

    def apply(self, vector: Tensor, power: float) -> Tensor:
        """C^power v for v [B, d]."""
        if len(self._groups) == 1:
            return self._applied(0, vector, power)
        result = torch.empty_like(vector)
        for group, (_, rows) in enumerate(self._groups):
            result[rows] = self._applied(group, vector[rows], power)
        return result

    def _applied(self, group: int, vector: Tensor, power: float) -> Tensor:
        gaussian, components = self._groups[group][0], self._matrices[group]
        rest: float = gaussian.remainder**power
        gain = ((gaussian.variances + gaussian.remainder) ** power - rest).to(components)
        applied: Tensor = rest * vector + ((vector @ components) * gain) @ components.mT
        return applied


def bind_gaussians(gaussians: Sequence[GaussianPrior], like: Tensor) -> BoundPrior:
    """The prior at B samples of which each has its own Gaussian, in dtype and device of ``like`` [B, d]."""
    roots, device, anchor = _Roots(gaussians, like), like.device, like.new_empty(0)
    return BoundPrior(
        mean=torch.stack([gaussian.mean for gaussian in gaussians]).to(like),
        root=lambda vector: roots.apply(vector, 0.5),
        inverse_root=lambda vector: roots.apply(vector, -0.5),
        variance=torch.tensor([each.variance for each in gaussians], dtype=torch.float64, device=device),
        largest=torch.tensor([each.largest for each in gaussians], dtype=torch.float64, device=device),
        select=lambda indices: bind_gaussians([gaussians[index] for index in indices], anchor),
        leading=lambda index, count: gaussians[index].leading(count, anchor),
    )


@final
@dataclass(frozen=True, eq=False)
class ClassPrior(Prior):
    """A Gaussian for every class that has enough images; the other classes have that of all images together."""

    everything: GaussianPrior
    classes: Mapping[int, GaussianPrior]

    kind: ClassVar[str] = "class"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """*S of one input."""
        return self.everything.input_shape

    @override
    def bind(self, targets: Tensor, like: Tensor, lengths: Tensor | None = None) -> BoundPrior:
        return bind_gaussians(
            [
                (self.everything if target is None else self.classes.get(target, self.everything))
                for target in _class_numbers(targets)
            ],
            like,
        )

    def fallback_classes(self, targets: Tensor) -> list[int]:
        """The classes among these targets [N, ...] that have no Gaussian of their own, ascending."""
        classes = {target for target in _class_numbers(targets) if target is not None}
        return sorted(classes - set(self.classes))

    @override
    def info(self) -> PriorInfo:
        # Averages over all images, each with the Gaussian of its class.
        counts = self.everything.origin.class_counts
        gaussians = [(self.classes.get(target, self.everything), count) for target, count in counts.items()]
        total = sum(count for _, count in gaussians)
        variance = sum(gaussian.variance * count for gaussian, count in gaussians) / total
        mean = sum(float(gaussian.mean.mean()) * count for gaussian, count in gaussians) / total
        return described(self.kind, mean, variance, self.everything.origin)


def _class_numbers(targets: Tensor) -> list[int | None]:
    """Class numbers; None for targets that are no class."""
    if targets.ndim != 1 or targets.is_floating_point() or targets.dtype == torch.bool:
        return [None] * len(targets)
    return [int(target) for target in targets.tolist()]
