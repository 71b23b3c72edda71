"""``local``: least squares on the release, started at the truth. Evidence on the theory, not an attack.

No attacker can start there. What it ends with is the error of an unbiased attacker whose optimisation never
fails, which is what I2F predicts to first order (Zhang et al., NeurIPS 2023, Eq. 3). Noise of another law than
the normal one is weighed as the Gaussian noise of the same Fisher information.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.attacks.base import EARLIEST_END, Attack, Effort, Observation, Reconstruction, register
from riskaudit.attacks.labels import with_labels
from riskaudit.attacks.optimise.levenberg_marquardt import (
    PROBED_PRODUCTS,
    PROBED_REST,
    MatchingProblem,
    StoppingRule,
    status_of,
)
from riskaudit.errors import SettingsError
from riskaudit.priors import white_prior


@register
@final
@dataclass(frozen=True)
class Local(Attack):
    """Levenberg-Marquardt without prior from a given start.

    Attributes:
        start: the truth, [B n, *S], from the caller, since an observation doesn't hold it; SettingsError without.
        steps: Levenberg-Marquardt steps per sample.
        restarts: there is one start only.
        products: of conjugate gradient per step at most.
        forcing: largest relative residual of a step's linear system: small, since directions in which the
            release says little count as much as the others.
        tolerance: see `StoppingRule`.
    """

    name: ClassVar[str] = "local"
    title: ClassVar[str] = "Local least squares (oracle start)"
    source: ClassVar[str] = "derived: the error that Zhang et al., NeurIPS 2023, Eq. 3, predict to first order"
    summary: ClassVar[str] = "Started at the truth, which no attacker has: what the linearised theory predicts."
    oracle_start: ClassVar[bool] = True

    start: Tensor | None = None
    steps: int = 20
    restarts: int = 1
    products: int = 400
    forcing: float = 1e-3
    tolerance: float = 1e-6

    @property
    @override
    def effort(self) -> Effort:
        """In products with the Jacobian."""
        probe = replace(self, steps=1, products=min(PROBED_PRODUCTS, self.products), forcing=0.0)
        most = self.steps * (self.products + PROBED_REST)
        return Effort(probe, probe.products + PROBED_REST, EARLIEST_END * most, most, most)

    @override
    def run(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        if self.start is None or len(self.start) != len(observation) * observation.upload_size:
            raise SettingsError("expected a start for every sample; the attack local begins at the truth")
        started = time.perf_counter()
        observation = with_labels(observation)
        weights = torch.zeros(len(observation), dtype=torch.float64, device=observation.released.device)
        problem = MatchingProblem(
            observation, white_prior(self.start.reshape(len(observation), -1).to(observation.released)), weights
        )
        state = problem.start(torch.zeros_like(problem.prior.mean))
        state = problem.minimise(state, StoppingRule(self.steps, self.products, self.forcing, self.tolerance))
        scale = problem.sigma * problem.sigma if problem.sigma > 0 else 1.0
        return Reconstruction(
            inputs=observation.images(problem.inputs(state.point)),
            objective=2 * state.value / scale,
            status=tuple(status_of(state, row) for row in range(len(observation))),
            steps=state.steps,
            restarts=1,
            seconds=time.perf_counter() - started,
            targets=observation.known_targets,
        )
