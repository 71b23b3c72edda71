"""Features as a penalty: what guesses are at one layer, against what is known of the truth there.

    1 - |Q^T f(z)|^2 / |f(z)|^2

with an orthonormal basis Q of what is known of a sample's features: one direction, up to its sign, where samples are
told apart, else the span of an upload's (Liu, Wang and Lei, "Data reconstruction attacks and defenses", section 4.2:
the squared cosine, and the distance from the span for large batches).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import Observation
from riskaudit.attacks.optimise.regularisers import Penalty, Regulariser
from riskaudit.release import Release, mixes_samples


@final
@dataclass(frozen=True, eq=False)
class FeatureDistance(Regulariser):
    """Share of the squared length of a guess's features that lies outside what is known of its sample's.

    Attributes:
        layer: whose inputs the features are, by its name in the model.
        bases: of every sample, orthonormal rows [k, D]; where nothing is known, k = 0, the penalty is 1.
    """

    layer: str
    bases: tuple[Tensor, ...]

    @override
    def bind(self, observation: Observation, samples: Tensor) -> Penalty:
        release, size = observation.release, observation.upload_size
        bases = [self.bases[sample] for sample in samples.tolist()]

        def outside(inputs: Tensor) -> Tensor:
            features = entering(release, self.layer, inputs, size).flatten(1).double()
            told = torch.stack([(basis @ row).square().sum() for basis, row in zip(bases, features, strict=True)])
            return 1 - told / features.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)

        return outside


def entering(release: Release, layer: str, inputs: Tensor, size: int) -> Tensor:
    """What enters a layer where the model sees inputs [G size, *S], in batches of ``size`` where it mixes them."""
    seen: list[Tensor] = []

    def note(_: Any, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])

    parts = torch.split(inputs, size) if release.coupling == "joint" and mixes_samples(release.model) else (inputs,)
    handle = release.model.get_submodule(layer).register_forward_pre_hook(note)
    try:
        for part in parts:
            release.run(release.parameters, part)
    finally:
        handle.remove()
    return torch.cat(seen)
