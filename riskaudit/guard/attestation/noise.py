"""Tests of the noise on an upload, with and without the update before noise.

Of m + n with m unknown and n of a declared law, symmetric and log-concave, P(m + n in A) <= P(n in A) for every convex
A that is symmetric about 0 (Anderson, Proc. AMS 6, 1955). So neither a small size nor many small entries can come of m:
both tests below have their false alarms at m = 0 exactly, and fewer elsewhere. With the update m before noise given, n
itself is tested, from both sides.

Power is at half the declared noise. Without m it is a lower bound over all m with ||m|| <= C, the declared clip norm:
nothing is said where none is declared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom, chi2, kstwo, laplace, ncx2, norm
from torch import Tensor

from riskaudit.guard.attestation.parts import Part
from riskaudit.guard.noise.law import normal_scores, size_limits
from riskaudit.release import Noise
from riskaudit.results.attestation import AttestationTest, TestStatus

# A test that would notice less often than this tells nothing by not rejecting.
LEAST_POWER = 0.8
HALF = "half the declared noise on every entry"
# So many scores show a law as well as more do.
MANY = 2**18
# Sizes of entries, in scales of the noise, up to which they are counted.
RUNGS = (1e-6, 1e-3, 0.03, 0.5)
TITLES = {
    "noise-size": "The upload isn't too small for its noise",
    "small-entries": "Not too many entries are too small for the noise",
    "masked-entries": "Entries that hold noise alone",
    "class-sums": "Sums over classes, which hold noise alone",
    "residual-size": "Size of the noise beside the clean update",
    "residual-law": "Law of the noise beside the clean update",
    "residual": "Nothing beside the clean update",
}


def row(
    name: str,
    reason: str,
    rejects: bool,
    *,
    power: float | None = None,
    false_alarm: float = 0.0,
    deviation: str | None = HALF,
    **numbers: float | str | None,
) -> AttestationTest:
    """A test of the noise; what it says where it doesn't reject depends on its power."""
    notices = power is not None and power >= LEAST_POWER
    status: TestStatus = "not_as_declared" if rejects else "as_declared" if notices else "could_not_tell"
    if status == "could_not_tell" and "value" in numbers:
        reason += f"; half the noise wouldn't be noticed {'for sure' if power is None else 'often enough'}"
    return AttestationTest(
        id=name,
        title=TITLES[name],
        claim="noise",
        status=status,
        reason=reason,
        false_alarm=false_alarm,
        power=power,
        power_at=deviation,
        **numbers,  # type: ignore[arg-type]
    )


def untested_noise(reason: str) -> AttestationTest:
    """What stands for the tests of the noise where none is possible."""
    return row("noise-size", reason, False)


def size_test(parts: Sequence[Part], noise: Noise, bound: float | None, false_alarm: float) -> AttestationTest:
    """Whether an upload, or one of its tensors, is smaller than its noise alone would be."""
    limits = [float(chi2.ppf(false_alarm / len(parts), noise.degrees(len(part.values)))) for part in parts]
    sizes = [part.sizes(noise)[1] for part in parts]
    index = _first(size < low for size, low in zip(sizes, limits, strict=True))
    value, low = (_per_degree(each, parts[index], noise) for each in (sizes[index], limits[index]))
    rejects = sizes[index] < limits[index]
    words = "is smaller" if rejects else "isn't smaller"
    return row(
        "noise-size",
        f"{_of(parts[index])} {words} than noise of {noise.law}:{noise.scale:g} alone would be",
        rejects,
        power=_size_power(parts[-1], noise, bound, limits[-1]),
        false_alarm=false_alarm,
        tensor=parts[index].name or None,
        value=value,
        low=low,
    )


def _size_power(part: Part, noise: Noise, bound: float | None, low: float) -> float | None:
    """Least probability of a size below ``low`` at half the noise, over all updates within the bound."""
    if bound is None:
        return None
    count = len(part.values)
    if noise.law == "laplace":
        # ||m + n / 2||_1 <= sqrt(n) ||m||_2 + ||n||_1 / 2, and what rounding may have added.
        taken = 2 * math.sqrt(count) * (bound + 2 * part.error) / noise.scale
        return float(chi2.cdf(2 * max(0.0, low - taken), noise.degrees(count)))
    # What rounding may have added is given to the upload.
    length = max(0.0, math.sqrt(low) - 2 * part.error / noise.scale)
    return float(ncx2.cdf(4 * length**2, count, max(1e-12, 4 * (bound / noise.scale) ** 2)))


def small_entries_test(parts: Sequence[Part], noise: Noise, bound: float | None, false_alarm: float) -> AttestationTest:
    """Whether more entries are near 0 than noise leaves there: units, padding or whole tensors without it."""
    each = false_alarm / (len(parts) * len(RUNGS))
    found: list[tuple[Part, float, int, int]] = []
    for part in parts:
        for rung in RUNGS:
            most = int(binom.isf(each, len(part.values), _inside(rung + part.step / noise.scale, noise)))
            count = int((part.values.abs() <= rung * noise.scale).sum())
            found.append((part, rung, count, most))
    index = _first(count > most for _, _, count, most in found)
    rejects = found[index][2] > found[index][3]
    part, rung, count, most = found[index] if rejects else found[-1]
    share = f"{count} of {len(part.values)} entries of {_of(part)} are within {rung:g} times the noise's scale of 0"
    return row(
        "small-entries",
        f"{share}, where noise on all of them leaves at most {most}" if rejects else f"{share}, as noise leaves them",
        rejects,
        power=_small_power(found[-1], noise, bound),
        false_alarm=false_alarm,
        tensor=part.name or None,
        value=count,
        high=most,
    )


def _small_power(last: tuple[Part, float, int, int], noise: Noise, bound: float | None) -> float | None:
    """Least probability of too many small entries at half the noise: few entries of m can be large within a bound."""
    if bound is None:
        return None
    part, rung, _, most = last
    powers = [0.0]
    for size in np.linspace(0.02, 0.4, 20):
        count = math.floor(len(part.values) - (bound / (size * noise.scale)) ** 2)
        if count > 0:
            # |size + n / 2| <= rung, on a grid too.
            reach = max(0.0, rung - part.step / noise.scale)
            law = norm if noise.law == "gaussian" else laplace
            inside = float(law.cdf(2 * (reach - size)) - law.cdf(2 * (-reach - size)))
            powers.append(float(binom.sf(most, count, max(0.0, inside))))
    return max(powers)


def pure_noise_test(name: str, part: Part, noise: Noise, false_alarm: float, *, above: bool) -> AttestationTest:
    """Whether entries that hold nothing but noise have its size; ``above`` says whether they may not be too large."""
    degrees = noise.degrees(len(part.values))
    low = float(chi2.ppf(false_alarm / (1 + above), degrees))
    high = float(chi2.isf(false_alarm / 2, degrees)) if above else math.inf
    least, most = part.sizes(noise)
    rejects = most < low or least > high
    words = "too small" if most < low else "too large" if rejects else "right"
    return row(
        name,
        f"{len(part.values)} numbers that hold noise alone are {words} for {noise.law}:{noise.scale:g}",
        rejects,
        power=_half_size(low, part, noise),
        false_alarm=false_alarm,
        value=_per_degree(least if least > high else most, part, noise),
        low=_per_degree(low, part, noise),
        high=_per_degree(high, part, noise) if above else None,
    )


def residual_tests(parts: Sequence[Part], noise: Noise, false_alarm: float) -> list[AttestationTest]:
    """Whether an upload minus the update before noise, by tensors and as a whole, has the noise's size and law."""
    failure = false_alarm / (4 * len(parts))
    limits = [size_limits(noise.degrees(len(part.values)), failure) for part in parts]
    sizes = [part.sizes(noise) for part in parts]
    index = _first(most < low or least > high for (least, most), (low, high) in zip(sizes, limits, strict=True))
    (least, most), (low, high), part = sizes[index], limits[index], parts[index]
    rejects = most < low or least > high
    times = float(part.values.norm()) / math.sqrt(len(part.values)) / noise.std
    size = row(
        "residual-size",
        f"beside the clean update, {_of(part)} holds {times:.3g} times the noise of {noise.law}:{noise.scale:g}",
        rejects,
        power=_half_size(limits[-1][0], parts[-1], noise),
        false_alarm=false_alarm / 2,
        tensor=part.name or None,
        value=_per_degree(least if least > high else most, part, noise),
        low=_per_degree(low, part, noise),
        high=_per_degree(high, part, noise),
    )
    return [size, _law_test(parts[-1], noise, false_alarm / 2)]


def _law_test(part: Part, noise: Noise, false_alarm: float) -> AttestationTest:
    """Kolmogorov and Smirnov's test of the normal scores, some of them where there are many."""
    some = part.values[:: max(1, len(part.values) // MANY)]
    scores, count = np.sort(normal_scores(some, noise).numpy()), len(some)
    expected = norm.cdf(scores)
    ranks = np.arange(count + 1) / count
    distance = float(max((ranks[1:] - expected).max(), (expected - ranks[:-1]).max()))
    # A step moves no more than the density's height times it, on either side.
    most = float(kstwo.isf(false_alarm, count)) + 0.5 * part.step / noise.scale
    # Half the noise moves the distribution by this much where it does most; Massart's bound on the rest.
    gap = float(np.max(norm.cdf(2 * np.linspace(0, 2, 201)) - norm.cdf(np.linspace(0, 2, 201)))) - most
    power = max(0.0, 1 - 2 * math.exp(-2 * count * gap**2)) if gap > 0 else 0.0
    rejects = distance > most
    return row(
        "residual-law",
        f"the noise beside the clean update {'does not follow' if rejects else 'follows'} the {noise.law} law",
        rejects,
        power=power if noise.law == "gaussian" else None,
        false_alarm=false_alarm,
        value=distance,
        high=most,
    )


def equality_test(update: Tensor, clean: Tensor, tolerance: float) -> AttestationTest:
    """Whether an upload without noise is the clean update, within a share of its norm."""
    distance, length = float((update - clean).norm()), float(clean.norm())
    rejects = not distance <= tolerance * length
    words = "differs from the clean update" if rejects else "is the clean update"
    return row(
        "residual",
        f"without noise declared, the upload {words}: their distance is {distance:.3g}, its norm {length:.3g}",
        rejects,
        power=1.0,
        deviation="any difference above the rounding of the dtype",
        value=distance,
        high=tolerance * length,
    )


def _half_size(low: float, part: Part, noise: Noise) -> float:
    """Probability of a size below ``low`` at half the noise, of entries that hold nothing else."""
    slack = 2 * part.error / noise.scale
    if noise.law == "gaussian":
        return float(chi2.cdf(4 * max(0.0, math.sqrt(low) - slack) ** 2, noise.degrees(len(part.values))))
    least = max(0.0, low - 2 * slack * math.sqrt(len(part.values)))
    return float(chi2.cdf(2 * least, noise.degrees(len(part.values))))


def _inside(reach: float, noise: Noise) -> float:
    """Probability of noise within so many scales of 0."""
    return math.erf(reach / math.sqrt(2)) if noise.law == "gaussian" else -math.expm1(-reach)


def _per_degree(size: float, part: Part, noise: Noise) -> float:
    return size / noise.degrees(len(part.values))


def _first(rejections: object) -> int:
    """Position of the first true one; of the last where none is."""
    positions = list(rejections)  # type: ignore[call-overload]
    return positions.index(True) if True in positions else len(positions) - 1


def _of(part: Part) -> str:
    return part.name or "the whole upload"
