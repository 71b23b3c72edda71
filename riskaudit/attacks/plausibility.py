"""Whether a reconstruction explains what was observed: an attack that found nothing must not pass for a success.

Under the release's own noise law the residual obs - r(x) of the true input is the noise itself: ||residual||^2 /
sigma^2 is chi-square with as many degrees of freedom as entries carry noise, and for Laplace noise twice the sum of
|residual| / b is chi-square with twice as many. A reconstruction whose residual is larger than 99.9 % of all noise
is refuted. One within the bound needn't be near the truth: it is only consistent with the observation.
"""

from __future__ import annotations

import torch
from scipy.stats import chi2
from torch import Tensor

from riskaudit.attacks.base import Observation, Reconstruction

CONFIDENCE = 0.999
# Without noise: of the residual's norm relative to the observation's.
LARGEST_RELATIVE_RESIDUAL = 1e-2


def explains(observation: Observation, reconstruction: Reconstruction) -> list[bool]:
    """Whether each reconstruction's residual is as small as the noise law says; False where the attack failed."""
    labelled = observation.with_targets(reconstruction.targets)
    with torch.no_grad():
        inputs = reconstruction.inputs.to(observation.released)
        uploads = inputs.reshape(len(labelled), -1)
        alone = (labelled.select([index]).batch(uploads[[index]]) for index in range(len(labelled)))
        means = [labelled.jacobian(batch).mean()[0] for batch in alone]
    residuals = (observation.released - torch.stack(means)).double()
    within = _within(observation, residuals)
    return [fits and state != "failed" for fits, state in zip(within, reconstruction.status, strict=True)]


def _within(observation: Observation, residuals: Tensor) -> list[bool]:
    release = observation.release
    noise = release.noise
    if noise is None:
        norms = observation.released.double().norm(dim=-1)
        return [bool(flag) for flag in residuals.norm(dim=-1) <= LARGEST_RELATIVE_RESIDUAL * norms]
    noisy = release.noisy_entries.double()
    sizes = noise.size(residuals * noisy)
    return [bool(flag) for flag in sizes <= float(chi2.ppf(CONFIDENCE, noise.degrees(float(noisy.sum()))))]
