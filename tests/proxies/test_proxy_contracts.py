"""The contract of every proxy, against the formulas of `oracles`."""

from __future__ import annotations

import math

import cases
import numpy as np
import oracles
import pytest
import torch
from contracts.completeness import cases_of
from contracts.proxy import ProxyContract, Sample

from riskaudit.proxies import PROXIES, Proxy, ProxyScores
from riskaudit.proxies.base import exact, not_applicable
from riskaudit.proxies.gradient_norm import GradientNorm
from riskaudit.proxies.i2f import I2F, ExpectedRmse, I2FLowerBound
from riskaudit.proxies.informed import InformedPosteriorRmse, InformedRevealedFraction
from riskaudit.proxies.lavp import LavpCosineMax, LavpCosineMin, LavpL2Max, LavpL2Min
from riskaudit.proxies.posterior import MapI2F, MapRmse, PosteriorRmse, RevealedFraction
from riskaudit.sensitivity import Linearisation


class OracleContract(ProxyContract):
    """Of a proxy that `oracles` has a formula for."""

    def expected(self, sample: Sample) -> float:
        posterior = oracles.correlated_posterior(sample.J, sample.delta, sample.displacement, sample.sigma, sample.C)
        if self.covers.id in posterior:
            return posterior[self.covers.id]
        tau = math.sqrt(np.trace(sample.C) / len(sample.C))
        values = oracles.proxies(sample.J, sample.r, sample.delta, sample.displacement, sample.sigma, tau)
        return values[self.covers.id]


class TestGradientNorm(OracleContract):
    covers = GradientNorm


class TestI2F(OracleContract):
    covers, needs_full_rank = I2F, True


class TestI2FLowerBound(OracleContract):
    covers = I2FLowerBound


class TestExpectedRmse(OracleContract):
    covers, needs_full_rank = ExpectedRmse, True


class TestPosteriorRmse(OracleContract):
    covers = PosteriorRmse


class TestRevealedFraction(OracleContract):
    covers = RevealedFraction


class InformedContract(OracleContract):
    """Of a sample that leaves alone: there are no others to know."""

    alone: str

    def expected(self, sample: Sample) -> float:
        posterior = oracles.correlated_posterior(sample.J, sample.delta, sample.displacement, sample.sigma, sample.C)
        return posterior[self.alone]


class TestInformedPosteriorRmse(InformedContract):
    covers, alone = InformedPosteriorRmse, "posterior_rmse"


class TestInformedRevealedFraction(InformedContract):
    covers, alone = InformedRevealedFraction, "revealed_fraction"


class TestMapRmse(OracleContract):
    covers = MapRmse


class TestMapI2F(OracleContract):
    covers = MapI2F


class TestLavpL2Max(OracleContract):
    covers = LavpL2Max


class TestLavpL2Min(OracleContract):
    covers, needs_full_rank = LavpL2Min, True


class TestLavpCosineMax(OracleContract):
    covers, needs_gradient = LavpCosineMax, True


class TestLavpCosineMin(OracleContract):
    covers, needs_full_rank, needs_gradient = LavpCosineMin, True, True


class Participation(Proxy):
    """(tr H)^2 / tr H^2, where all eigenvalues of H are there."""

    id = "participation"
    title = "Participation ratio"
    short_title = "Participation"
    units = "directions, 0 to d"
    source = "participation ratio of a spectrum (Bell and Dean, 1970)"
    riskier = "higher"
    summary = "Along how many directions of the input the released vector changes about equally."
    formula = "(Σ λᵢ)² / Σ λᵢ²"
    order = 1000

    def score(self, linearisation: Linearisation) -> ProxyScores:
        if linearisation.spectrum is None:
            return not_applicable(linearisation, "needs all eigenvalues; solver=dense computes them")
        values = linearisation.spectrum.values
        scaled = values / values.amax(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
        return exact(scaled.sum(1).square() / scaled.square().sum(1).clamp_min(torch.finfo(values.dtype).tiny))


class TestNotApplicableUnderSomeSolvers(ProxyContract):
    covers = Participation

    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PROXIES, Participation.id, Participation())

    def expected(self, sample: Sample) -> float:
        H = sample.J.T @ sample.J
        return float(np.trace(H) ** 2 / np.trace(H @ H)) if H.any() else 0.0


def test_every_proxy_has_a_contract() -> None:
    # The contract of a proxy that only this file has comes on top; those of texts are held against an attacker in
    # tests/sensitivity/test_tokens.py.
    covered = {case.covers for case in cases_of(ProxyContract, __file__)}
    assert {type(proxy) for proxy in PROXIES.values() if not proxy.text_only} <= covered


def test_proxies_of_texts_say_that_other_inputs_are_none() -> None:
    at = cases.linearise(cases.mlp((16, 8, 10)), cases.mnist(2, 4))
    for proxy in (each for each in PROXIES.values() if each.text_only):
        scores = proxy.score(at)
        assert [row.status for row in scores.estimates] == ["not_applicable"] * 2
        assert scores.reason is not None


def test_the_oracle_of_correlated_priors_is_that_of_isotropic_ones() -> None:
    rng = np.random.default_rng(0)
    J, r, delta, displacement = (rng.standard_normal(shape) for shape in ((20, 6), 20, 20, 6))
    plain = oracles.proxies(J, r, delta, displacement, 0.1, 0.3)
    correlated = oracles.correlated_posterior(J, delta, displacement, 0.1, 0.09 * np.eye(6))
    assert {name: plain[name] for name in correlated} == pytest.approx(correlated, rel=1e-9)
