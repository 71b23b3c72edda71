"""One Gaussian per class: what an attacker knows who has read the label off the gradient.

The label usually can be read there, so that conditioning on it is fair to the attacker (docs/theory.md,
section 2). A class of which too few images are known has what is known of all images together instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.priors.base import BoundPrior, Prior
from riskaudit.priors.gaussian import GaussianPrior, bind_gaussians, described
from riskaudit.results import PriorInfo


@final
@dataclass(frozen=True, eq=False)
class ClassPrior(Prior):
    """A Gaussian for every class that has enough images.

    Attributes:
        everything: of all images together, for the other classes; its origin is the whole prior's.
        classes: by class number.
    """

    everything: GaussianPrior
    classes: Mapping[int, GaussianPrior]

    kind: ClassVar[str] = "class"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """*S of one input."""
        return self.everything.input_shape

    @override
    def bind(self, targets: Tensor, like: Tensor) -> BoundPrior:
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
