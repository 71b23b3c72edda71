"""What values of a release tell of its derivative at one sample, and when that is reason for doubt.

The tests and their mathematics are in `riskaudit.audit.credibility`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# A revealed fraction that doesn't matter, and one that needn't be told from what it is claimed to be.
NEGLIGIBLE, NEGLIGIBLE_HIDDEN = 1e-3, 1e-2
# An error that is claimed may be this many times the error of the quotient.
RATIO_FACTOR = 1.5
# The bias's gradient counts as known where it is this many times the noise.
KNOWN = 5.0


@dataclass(frozen=True)
class Difference:
    """r(x + step v) - r(x) of one sample, v with about the prior's standard deviation per coordinate.

    Attributes:
        step: its size.
        unseen: norm of what J doesn't account for.
        allowed: what it may be without any noise.
    """

    step: float
    unseen: float
    allowed: float

    def counts(self, noise_std: float, dimension: int) -> bool:
        """Whether more is unseen than noise of this std covers."""
        covered = self.step * noise_std * math.sqrt(NEGLIGIBLE * dimension)
        # Not "above": what isn't a number isn't small.
        return not self.unseen <= self.allowed + covered


@dataclass(frozen=True)
class Quotient:
    """What a front layer's gradient b a^T tells of one sample's input.

    Attributes:
        bias: mean square error without noise, data units squared.
        variance: mean square error per squared noise std.
        strength: norm of b.
    """

    bias: float
    variance: float
    strength: float

    def error(self, noise_std: float) -> float:
        """RMSE per coordinate at noise of this std; infinity where the noise covers b."""
        if not self.strength > KNOWN * noise_std:
            return math.inf
        return math.sqrt(self.bias + noise_std**2 * self.variance)


@dataclass(frozen=True, eq=False)
class Hidden:
    """What a front layer's gradient shows of one sample and the derivative doesn't see.

    Attributes:
        weights: w_j = u_j^2 |b|^2, [n], of entries that move unseen.
        share: factor to their mean that makes it a revealed fraction.
    """

    weights: np.ndarray
    share: float

    def fraction(self, noise_std: float) -> float:
        """The revealed fraction of it at noise of this std."""
        return self.share * float((self.weights / np.maximum(self.weights + noise_std**2, 1e-300)).mean())


@dataclass(frozen=True)
class Evidence:
    """What values of r tell about the derivative at one sample.

    Attributes:
        dimension: of the input.
        tiny: differences at a tiny step.
        likely: differences at steps to other likely inputs.
        quotients: of layers that see the input.
        hidden: of layers in front, one for each step that shows any.
        adjoint: whether products with J and with J^T fit together.
    """

    dimension: int
    tiny: tuple[Difference, ...]
    likely: tuple[Difference, ...]
    quotients: tuple[Quotient, ...] = ()
    hidden: tuple[Hidden, ...] = ()
    adjoint: bool = True

    def doubt(
        self, noise_std: float, claimed_rmse: float | None = None, claimed_fraction: float | None = None
    ) -> str | None:
        """Why the derivative isn't believed at noise of this std (Fisher-equivalent, per entry of r), if it isn't.

        Args:
            noise_std: 0 for none.
            claimed_rmse: the posterior error that was read off the derivative.
            claimed_fraction: the revealed fraction that was.
        """
        if not self.adjoint:
            return (
                "products with the gradient's derivative and with its transpose don't fit together (a custom backward "
                "or jvp that isn't the derivative of its forward), so nothing read off the derivative can be believed; "
                "correct or remove the custom function"
            )
        if any(one.counts(noise_std, self.dimension) for one in self.tiny):
            return (
                "the gradient changes with the input where its derivative says that it doesn't (detach, no_grad, "
                "rounding, a custom backward), so nothing read off the derivative can be believed; remove what hides "
                "the input from the derivative"
            )
        if any(one.counts(noise_std, self.dimension) for one in self.likely):
            return (
                "a visible change of the input changes the gradient far more than its derivative says (rounding, "
                "thresholds, a saturated or very steep layer), so nothing read off the derivative can be believed; "
                "remove such steps or add noise"
            )
        if claimed_fraction is not None:
            unseen = max((one.fraction(noise_std) for one in self.hidden), default=0.0)
            if not unseen <= max(NEGLIGIBLE_HIDDEN, claimed_fraction):
                return (
                    "the first layer's gradient shows more of the input than the derivative says (thresholds, "
                    "clamping, saturation or detach before it), so nothing read off the derivative can be believed; "
                    "remove such steps or add noise"
                )
        if claimed_rmse is not None:
            best = min((one.error(noise_std) for one in self.quotients), default=math.inf)
            if not claimed_rmse <= RATIO_FACTOR * best:
                return (
                    "the gradient of a layer that sees the input gives it more precisely than its derivative says, so "
                    "nothing read off the derivative can be believed"
                )
        return None
