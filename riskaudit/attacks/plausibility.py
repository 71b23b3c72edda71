"""Whether a reconstruction explains what was observed: an attack that found nothing must not pass for a success.

Under the release's own noise law the residual obs - r(x) of the true input is the noise itself: ||residual||^2 /
sigma^2 is chi-square with as many degrees of freedom as entries carry noise, and for Laplace noise twice the sum of
|residual| / b is chi-square with twice as many. A reconstruction whose residual is larger than 99.9 % of all noise
is refuted. One within the bound needn't be near the truth: it is only consistent with the observation.

A search may end sooner than that: at the noise floor, where the residual is no larger than noise is on average, a
further start could only fit the noise better.
"""

from __future__ import annotations

import torch
from scipy.special import gammaincinv
from torch import Tensor

from riskaudit.attacks.base import Observation, Reconstruction

CONFIDENCE = 0.999
# Without noise: of the residual's norm relative to the observation's.
LARGEST_RELATIVE_RESIDUAL = 1e-2
# The floor lies so many standard deviations of ||noise||^2 above its mean. The residual of a fit lies below that of the
# truth, so this asks for little.
FLOOR_DEVIATIONS = 1.0
# Without noise: of the residual's norm relative to the observation's.
FLOOR_SHARE = 1e-6


def explains(observation: Observation, reconstruction: Reconstruction) -> list[bool]:
    """Whether each reconstruction's residual is as small as the noise law says; False where the attack failed."""
    within = _within(observation, _residuals(observation.with_targets(reconstruction.targets), reconstruction.inputs))
    return [fits and state != "failed" for fits, state in zip(within, reconstruction.status, strict=True)]


def noise_floor(observation: Observation) -> Tensor:
    """The largest ||residual||^2 of each upload that is no reason to search on, [B], float64.

    Laplace noise counts as the Gaussian noise of the same Fisher information, as in the attacks that ask.
    """
    noise = observation.release.noise
    if noise is None:
        return FLOOR_SHARE**2 * observation.released.double().square().sum(-1)
    entries = float(observation.release.noisy_entries.sum())
    limit = noise.fisher_std**2 * (entries + FLOOR_DEVIATIONS * (2 * entries) ** 0.5)
    return observation.released.new_full((len(observation),), limit, dtype=torch.float64)


def at_noise_floor(observation: Observation, inputs: Tensor) -> Tensor:
    """Whether guesses [B n, ...] leave a residual at the noise floor, [B], bool; the targets must be known."""
    return _residuals(observation, inputs).square().sum(-1) <= noise_floor(observation)


def _residuals(labelled: Observation, inputs: Tensor) -> Tensor:
    """What guesses [B n, ...] leave unexplained, [B, P'], float64; one upload after the other, to spare memory."""
    with torch.no_grad():
        uploads = inputs.to(labelled.released).reshape(len(labelled), -1)
        alone = (labelled.select([index]).batch(uploads[[index]]) for index in range(len(labelled)))
        means = [labelled.jacobian(batch).mean()[0] for batch in alone]
        return (labelled.released - torch.stack(means)).double()


def _within(observation: Observation, residuals: Tensor) -> list[bool]:
    release = observation.release
    noise = release.noise
    if noise is None:
        norms = observation.released.double().norm(dim=-1)
        return [bool(flag) for flag in residuals.norm(dim=-1) <= LARGEST_RELATIVE_RESIDUAL * norms]
    noisy = release.noisy_entries.double()
    sizes = noise.size(residuals * noisy)
    # Of the chi-square distribution; its own module in scipy takes a second to load.
    largest = 2 * float(gammaincinv(noise.degrees(float(noisy.sum())) / 2, CONFIDENCE))
    return [bool(flag) for flag in sizes <= largest]
