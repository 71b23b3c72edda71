"""False alarms and power of the tests of attestations are what they state, by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

from riskaudit.guard.attestation.noise import pure_noise_test, residual_tests, size_test, small_entries_test
from riskaudit.guard.attestation.norms import noisy_norm_test, share_test
from riskaudit.guard.attestation.parts import Part
from riskaudit.release import Noise

LAWS = [Noise("gaussian", 0.1), Noise("laplace", 0.1)]
RATE, COUNT = 0.05, 600


def release(kind: str, length: float, generator: torch.Generator) -> torch.Tensor:
    """A vector [600] of this norm: nothing, one entry, or all of them."""
    vector = torch.zeros(COUNT, dtype=torch.float64)
    if kind == "one entry":
        vector[0] = length
    elif kind == "dense":
        vector = torch.randn(COUNT, generator=generator, dtype=torch.float64)
        vector *= length / vector.norm()
    return vector


def rejections(test, noise, kind, length, scale, draws) -> int:
    """How often a test of [600] entries rejects ``scale`` times the noise on a release."""
    generator = torch.Generator().manual_seed(1)
    number = 0
    for _ in range(draws):
        before = release(kind, length, generator)
        drawn = scale * noise.sample(COUNT, generator, torch.float64)
        number += any(row.status == "not_as_declared" for row in test(before, drawn))
    return number


def all_tests(noise: Noise, bound: float):
    return {
        "noisy-norm": lambda m, n: [noisy_norm_test(Part("", m + n), bound, noise, RATE)],
        "noise-size": lambda m, n: [size_test(split(m + n), noise, bound, RATE)],
        "small-entries": lambda m, n: [small_entries_test(split(m + n), noise, bound, RATE)],
        "masked-entries": lambda m, n: [pure_noise_test("masked-entries", Part("", n), noise, RATE, above=True)],
        "class-sums": lambda m, n: [pure_noise_test("class-sums", Part("", n), noise, RATE, above=False)],
        "residual": lambda m, n: residual_tests(split(n), noise, RATE),
        "clean-share": lambda m, n: [test for test in [share_test(n, m, noise, RATE)] if test is not None],
    }


def split(vector: torch.Tensor) -> list[Part]:
    return [Part("a", vector[:500]), Part("b", vector[500:]), Part("", vector)]


NAMES = list(all_tests(LAWS[0], 1.0))
# Below both, in so many draws, is a chance of 1e-6.
MOST = {draws: int(binom.isf(1e-6, draws, RATE)) for draws in (20, 2000)}


@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_false_alarms_are_rare(noise) -> None:
    for name, test in all_tests(noise, 1.0).items():
        assert rejections(test, noise, "dense", 1.0, 1.0, 20) <= MOST[20], name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nothing", "one entry", "dense"])
@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_false_alarms_are_at_most_what_is_stated(name, noise, kind) -> None:
    assert rejections(all_tests(noise, 1.0)[name], noise, kind, 1.0, 1.0, 2000) <= MOST[2000]


@pytest.mark.slow
@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize("name", ["masked-entries", "residual", "noise-size"])
def test_some_tests_use_up_their_false_alarms(name, noise) -> None:
    # So that the bound above isn't kept by tests that never reject.
    assert rejections(all_tests(noise, 1.0)[name], noise, "nothing", 1.0, 1.0, 2000) >= int(binom.ppf(1e-6, 2000, 0.02))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one entry", "dense"])
@pytest.mark.parametrize("bound", [0.1, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize("name", ["noise-size", "small-entries", "masked-entries", "class-sums"])
def test_half_the_noise_is_noticed_as_often_as_stated(name, noise, bound, kind) -> None:
    test = all_tests(noise, bound)[name]
    generator = torch.Generator().manual_seed(0)
    power = test(release(kind, bound, generator), noise.sample(COUNT, generator, torch.float64))[0].power
    noticed = rejections(test, noise, kind, bound, 0.5, 400)
    assert noticed >= binom.ppf(1e-6, 400, min(1.0, power))


@pytest.mark.slow
@pytest.mark.parametrize("bound", [0.5, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_twice_the_clip_norm_is_noticed_as_often_as_stated(noise, bound) -> None:
    test = all_tests(noise, bound)["noisy-norm"]
    power = test(torch.zeros(COUNT), torch.zeros(COUNT))[0].power
    noticed = rejections(test, noise, "dense", 2 * bound, 1.0, 400)
    assert noticed >= binom.ppf(1e-6, 400, power)
    if noise.law == "gaussian":
        assert noticed <= binom.isf(1e-6, 400, power)


def test_power_grows_from_nothing_to_certainty() -> None:
    noise = LAWS[0]
    powers = [size_test([Part("", torch.ones(COUNT))], noise, bound, RATE).power for bound in (10.0, 2.0, 0.1)]
    assert powers[0] < 1e-6 < powers[1] < powers[2]
    assert powers[2] > 0.999
    assert size_test([Part("", torch.ones(COUNT))], noise, None, RATE).power is None


@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_rounding_to_a_grid_makes_no_alarms(noise) -> None:
    # A grid of a quarter of the noise is the coarsest that uploads are rounded to.
    step, generator = 0.25 * noise.std, torch.Generator().manual_seed(0)
    for _ in range(5):
        drawn = torch.round(noise.sample(COUNT, generator, torch.float64) / step) * step
        part = Part("", drawn, 0.5 * step * np.sqrt(COUNT), step)
        rows = [
            size_test([part], noise, None, RATE),
            small_entries_test([part], noise, None, RATE),
            noisy_norm_test(part, 0.5, noise, RATE),
            *residual_tests([part], noise, RATE),
        ]
        assert [row.id for row in rows if row.status == "not_as_declared"] == []
