"""Tests of an upload's norm against the clip norm C that was declared.

Without noise the norm itself is compared. With Gaussian noise of std s on n entries, ||m + n||^2 / s^2 is noncentral
chi-square with n degrees of freedom and noncentrality ||m||^2 / s^2, at most C^2 / s^2 where the clip was applied. With
Laplace noise of scale b its mean is ||m||^2 + 2 n b^2 and its variance 20 n b^4 + 8 b^2 ||m||^2, and Cantelli's
inequality bounds its tail, less tightly. Power is at twice the clip norm.
"""

from __future__ import annotations

import math

from scipy.stats import ncx2, norm
from torch import Tensor

from riskaudit.guard.attestation.noise import LEAST_POWER
from riskaudit.guard.attestation.parts import Part
from riskaudit.guard.noise.law import normal_scores
from riskaudit.release import Noise
from riskaudit.results.attestation import AttestationTest, TestStatus

TWICE = "twice the clip norm"
TITLES = {
    "norm": "Norm at most the clip norm",
    "clean-norm": "Norm of the clean update at most the clip norm",
    "noisy-norm": "Norm as of a clipped update and noise",
    "clean-share": "The clean update is in it once",
}


def norm_test(name: str, vector: Tensor, bound: float, tolerance: float) -> AttestationTest:
    """Whether a vector [P] without noise is no longer than a bound, but for a share that rounding may add."""
    length, most = float(vector.norm()), bound * (1 + tolerance)
    rejects = not length <= most
    words = "is above" if rejects else "is within"
    return AttestationTest(
        id=name,
        title=TITLES[name],
        claim="norm",
        status="not_as_declared" if rejects else "as_declared",
        value=length if math.isfinite(length) else None,
        high=most,
        false_alarm=0.0,
        power=1.0,
        power_at=f"{tolerance:.2g} of the clip norm above it",
        reason=f"its norm {length:.6g} {words} the clip norm {bound:g}",
    )


def noisy_norm_test(part: Part, bound: float, noise: Noise, false_alarm: float) -> AttestationTest:
    """Whether an upload is longer than a clipped update with its noise would be."""
    count, scale = len(part.values), noise.scale
    squared = max(0.0, float(part.values.norm()) - part.error) ** 2 / scale**2
    if noise.law == "gaussian":
        most = float(ncx2.isf(false_alarm, count, max(1e-12, (bound / scale) ** 2)))
        # What rounding may have taken from the norm is taken from the power.
        noticed = (math.sqrt(most) + 2 * part.error / scale) ** 2
        power = float(ncx2.sf(noticed, count, max(1e-12, 4 * (bound / scale) ** 2)))
    else:
        mean, deviation = _moments(bound / scale, count)
        most = mean + deviation * math.sqrt(1 / false_alarm - 1)
        mean, deviation = _moments(2 * bound / scale, count)
        noticed = (math.sqrt(most) + 2 * part.error / scale) ** 2
        power = 0.0 if noticed >= mean else 1 - 1 / (1 + ((mean - noticed) / deviation) ** 2)
    status: TestStatus = "as_declared" if power >= LEAST_POWER else "could_not_tell"
    reason = f"its norm is no longer than a vector of norm {bound:g} with {noise.law}:{noise.scale:g} is"
    if squared > most:
        status, reason = "not_as_declared", reason.replace("is no longer", "is longer")
    elif status == "could_not_tell":
        reason += ", but the noise would hide twice the clip norm as well"
    return AttestationTest(
        id="noisy-norm",
        title=TITLES["noisy-norm"],
        claim="norm",
        status=status,
        value=math.sqrt(squared) * scale,
        high=math.sqrt(most) * scale,
        false_alarm=false_alarm,
        power=power,
        power_at=TWICE,
        reason=reason,
    )


def _moments(length: float, count: int) -> tuple[float, float]:
    """Mean and standard deviation of ||m + n||^2 for Laplace noise of scale 1 and ||m|| = length."""
    return length**2 + 2 * count, math.sqrt(20 * count + 8 * length**2)


def share_test(residual: Tensor, clean: Tensor, noise: Noise, false_alarm: float) -> AttestationTest | None:
    """Whether the noise beside a clean update [P] lies along it: more or less of the update than once."""
    length = float(clean.norm())
    if length == 0:
        return None
    along = float(normal_scores(residual, noise) @ clean) / length
    most = float(norm.isf(false_alarm / 2))
    # Laplace noise's scores aren't shifted by as much as its entries.
    power = float(norm.sf(most - length / noise.scale)) if noise.law == "gaussian" else 0.0
    rejects = not abs(along) <= most
    status: TestStatus = "as_declared" if power >= LEAST_POWER else "could_not_tell"
    return AttestationTest(
        id="clean-share",
        title=TITLES["clean-share"],
        claim="norm",
        status="not_as_declared" if rejects else status,
        value=along,
        low=-most,
        high=most,
        false_alarm=false_alarm,
        power=power,
        power_at="twice the clean update",
        reason="it holds too much or too little of the clean update" if rejects else "it holds the clean update once",
    )
