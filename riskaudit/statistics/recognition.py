"""How surely one of K candidates is recognised under Gaussian noise, when everything else is known.

The candidates' releases are r_0 ... r_K-1, of which r_0 is sent with noise of std sigma per entry; D_v = r_v - r_0. The
attacker who takes the likeliest is right where 2 D_v . noise < ||D_v||^2 for every v, so that

    1 - sum_v Q(||D_v|| / 2 sigma)  <=  P(right)  <=  min_v (1 - Q(||D_v|| / 2 sigma)),

and noise at which a draw goes wrong is ||D_v||^2 / (2 D_v . noise) at the least, for every sigma at once: the empirical
distribution of that over draws, which only need the Gram matrix of the D_v, gives P(right) as a function of sigma, with
a band that holds for all sigma together (Dvoretzky, Kiefer and Wolfowitz; Massart, Ann. Probab. 1990).

P(right) is that of the candidate that is there, which the likeliest one favours or not: with no information left it
isn't 1 / K. What a release reveals of a candidate is therefore measured by two numbers that fall to 0 as noise grows,
of which the larger counts: how far the mean over all candidates lies above 1 / K, as a share of the whole way; and the
total variation 2 Phi(||D_v|| / 2 sigma) - 1 to the nearest v, by which every other candidate can be excluded.

Exact for K = 2. Gaussian noise only: the law of the projections is what is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from riskaudit.results.base import Estimate

Values = NDArray[np.float64]
DRAWS = 1 << 14
# Quantiles of the draws that are kept.
LEVELS = 1 << 8


@final
@dataclass(frozen=True, eq=False)
class Recognition:
    """What noise hides of one of K candidates.

    Attributes:
        distances: ||D_v|| of the others, [K - 1].
        own: noise at which draws go wrong where the candidate that is there was sent, its `LEVELS` quantiles from the
            least on; None where the Gram matrix isn't known, or K is 2.
        mean: likewise with every candidate sent in turn.
        band: how far shares of draws may be from probabilities.
    """

    distances: Values
    own: Values | None
    mean: Values | None
    band: float

    @property
    def num_candidates(self) -> int:
        """K."""
        return len(self.distances) + 1

    def right(self, sigma: float) -> Estimate:
        """P(right) for the candidate that is there: exact for two, else an interval around the share of draws."""
        pairs = _pairs(self.distances, sigma)
        if len(pairs) == 1:
            return Estimate(value=float(pairs[0]), status="exact")
        low, high = max(0.0, 1.0 - float((1.0 - pairs).sum())), float(pairs.min())
        return self._between(self.own, sigma, low, high)

    def revealed(self, sigma: float) -> Estimate:
        """What is revealed of the candidate, from 0 to 1: see the module."""
        nearest = float(2.0 * _pairs(self.distances, sigma).min() - 1.0)
        if len(self.distances) == 1:
            return Estimate(value=nearest, status="exact")
        chance = 1.0 / self.num_candidates
        # A mixture is guessed no better than one candidate's release, and what the others' add to it.
        most = min(1.0, chance * (1.0 + float((2.0 * _pairs(self.distances, sigma) - 1.0).sum())))
        mean = self._between(self.mean, sigma, chance, most)
        ends = (
            max(nearest, (end - chance) / (1.0 - chance))
            for end in (mean.value, mean.low, mean.high)
            if end is not None
        )
        shares = [min(1.0, max(0.0, end)) for end in ends]
        if mean.value is None:
            return mean.model_copy(update={"low": shares[0], "high": shares[1]})
        return mean.model_copy(update={"value": shares[0], "low": shares[1], "high": shares[2]})

    def _between(self, quantiles: Values | None, sigma: float, low: float, high: float) -> Estimate:
        """The share of draws that go right, as far as ends that are proved allow."""
        high = max(low, high)
        if quantiles is None:
            return Estimate(value=None, low=low, high=high, status="bracketed")
        wrong = float(np.searchsorted(quantiles, sigma, side="right")) / len(quantiles)
        share, spacing = 1.0 - wrong, 1.0 / len(quantiles)
        least, most = max(low, share - self.band - spacing), min(high, share + self.band + spacing)
        if least > most:  # the band doesn't hold, which happens as seldom as was asked for
            least, most = low, high
        return Estimate(value=min(most, max(least, share)), low=least, high=most, status="bracketed")


def _pairs(distances: Values, sigma: float) -> Values:
    """P(the candidate that is there is likelier than v), [K - 1]."""
    with np.errstate(over="ignore", divide="ignore"):
        return np.asarray(ndtr(distances / (2.0 * sigma)))


def recognition(distances: Values, gram: Values | None, generator: np.random.Generator, failure: float) -> Recognition:
    """From the differences of the candidates' releases.

    Args:
        distances: ||D_v||, [K - 1], float64.
        gram: D_v . D_w, [K - 1, K - 1]; None where it isn't known.
        generator: of the draws.
        failure: with which the band may not hold.
    """
    if gram is None or len(distances) < 2:
        return Recognition(distances, None, None, 0.0)
    # The candidate that is there is the origin.
    whole = np.pad(gram, ((1, 0), (1, 0)))
    values, vectors = np.linalg.eigh(whole)
    points = vectors * np.sqrt(np.clip(values, 0.0, None))
    count = len(points)
    own = _critical(points, 0, DRAWS, generator)
    each = [_critical(points, sent, -(-DRAWS // count), generator) for sent in range(count)]
    # Draws that aren't alike take a factor e more (Bretagnolle, 1980).
    band = math.sqrt(math.log(4.0 * math.e / failure) / (2.0 * DRAWS))
    return Recognition(distances, _levels(own), _levels(np.concatenate(each)), band)


def _critical(points: Values, sent: int, draws: int, generator: np.random.Generator) -> Values:
    """`critical_noise` where one of the candidates [K, r] is sent, [draws]."""
    others = np.delete(points, sent, axis=0) - points[sent]
    return critical_noise(others, np.square(others).sum(axis=1), draws, generator)


def critical_noise(others: Values, squares: Values, draws: int, generator: np.random.Generator) -> Values:
    """The least std of noise at which each draw goes wrong, [draws]; infinite where none does.

    Args:
        others: D_v of the candidates that aren't there, in coordinates that keep inner products, [K - 1, r].
        squares: ||D_v||^2, [K - 1]; candidates of 0 have the release that was sent, and are chosen among by lot.
        draws: how many.
        generator: of the draws.
    """
    products = generator.standard_normal((draws, others.shape[1])) @ others.T
    with np.errstate(divide="ignore", invalid="ignore"):
        critical = np.where(products > 0, squares / (2.0 * products), np.inf)
    critical = critical.min(axis=1, initial=np.inf)
    ties = int((squares == 0).sum())
    critical[generator.random(draws) > 1.0 / (1 + ties)] = 0.0
    return np.asarray(critical)


def _levels(critical: Values) -> Values:
    return np.asarray(np.quantile(critical, (np.arange(LEVELS) + 0.5) / LEVELS, method="inverted_cdf"))
