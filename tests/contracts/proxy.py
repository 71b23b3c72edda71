"""What every `Proxy` must do. Inherit, and give what it should be by an oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import cases
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riskaudit.inputs import Samples
from riskaudit.priors import ClassPrior, GaussianPrior, IsotropicPrior, Prior, fit_prior
from riskaudit.proxies import PROXIES, Proxy
from riskaudit.release import Batch
from riskaudit.results import Estimate, ProxyInfo
from riskaudit.sensitivity import Linearisation, Plan
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator

SIGMA = 0.05
STATUSES = {"exact", "converged", "bracketed", "not_converged", "singular", "not_applicable", "failed"}
VALUELESS = {"singular", "not_applicable", "failed"}
PLANS: dict[str, Callable[[], Plan]] = {
    "dense": cases.plan,
    "dense-cg": lambda: cases.plan("dense", "cg"),
    "one-product": lambda: cases.plan("lanczos", "quadrature", max_matvecs=1),
    "four-products": lambda: cases.plan("lanczos", "quadrature", max_matvecs=4),
    "lanczos": lambda: cases.plan("lanczos", "quadrature", max_matvecs=40),
    "lanczos-cg": lambda: cases.plan("lanczos", "cg", max_matvecs=60),
    "power": lambda: cases.plan("power", "cg", max_matvecs=60),
}


@dataclass(frozen=True)
class Sample:
    """One sample as an oracle needs it: r [P], J [P, d], the drawn noise delta [P], x - mu [d], sigma and C [d, d]."""

    r: oracles.Array
    J: oracles.Array
    delta: oracles.Array
    displacement: oracles.Array
    sigma: float
    C: oracles.Array


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


@lru_cache
def prior_of(kind: str) -> Prior:
    if kind == "isotropic":
        return cases.PRIOR
    known = cases.digits(250)
    return fit_prior(Samples.from_tensors(known.inputs[..., 2:6, 2:6], known.targets), kind)


def moments(prior: Prior, target: Tensor, dimension: int) -> tuple[oracles.Array, oracles.Array]:
    """mu and C by numpy from what the prior holds."""
    if isinstance(prior, IsotropicPrior):
        return np.full(dimension, prior.mean), prior.std**2 * np.eye(dimension)
    gaussian = prior.classes.get(int(target), prior.everything) if isinstance(prior, ClassPrior) else prior
    assert isinstance(gaussian, GaussianPrior)
    components = gaussian.components.numpy()
    C = (components * gaussian.variances.numpy()) @ components.T + gaussian.remainder * np.eye(dimension)
    return gaussian.mean.numpy(), C


@dataclass(frozen=True, eq=False)
class Case:
    """A linearisation, and its samples as an oracle needs them, in float64."""

    at: Linearisation
    prior: Prior
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    changes: tuple[oracles.Change, ...] = ()

    @cached_property
    def samples(self) -> list[Sample]:
        return [self._sample(index) for index in range(len(self.at))]

    def _sample(self, index: int) -> Sample:
        x, target, model = self.at.batch.inputs[index], self.at.batch.targets[index], self.at.release.model
        mean, C = moments(self.prior, target, x.numel())
        J = oracles.jacobian(model, self.loss, x, target, self.changes)
        r = oracles.released_mean(model, self.loss, x, target, self.changes).detach().numpy()
        delta = self.at.release.sample_noise(sample_generator(0, self.at.indices[index], NOISE_STREAM)).numpy()
        return Sample(r, J, delta, x.flatten().numpy() - mean, self.at.sigma, C)


@lru_cache
def case_of(
    how: str = "dense", prior: str = "isotropic", text: str = f"gaussian:{SIGMA}", rows: tuple[int, ...] = (0, 1, 2)
) -> Case:
    """Shared by all proxies, as in an audit."""
    model, batch = cases.mlp((16, 8, 10)), cases.mnist(3, 4).select(list(rows))
    at = cases.linearise(model, batch, text, prior=prior_of(prior), how=PLANS[how](), indices=list(rows))
    return Case(at, prior_of(prior), changes=(oracles.pruned(0.97),) if text.startswith("prune") else ())


@lru_cache
def single_precision() -> Linearisation:
    batch = cases.mnist(3, 4)
    model, single = cases.mlp((16, 8, 10)).float(), Batch(batch.inputs.float(), batch.targets)
    return cases.linearise(model, single, f"gaussian:{SIGMA}", prior=prior_of("data"))


@lru_cache
def fitted(how: str) -> Case:
    """The second sample is fitted perfectly: r = 0 there, but r still depends on x."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        model[1].bias.zero_()
        model[3].bias.zero_()
    inputs = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    inputs[1] = 0
    batch = Batch(inputs, torch.zeros(2, 2, dtype=torch.float64))
    at = cases.linearise(model, batch, f"gaussian:{SIGMA}", loss=squared_error, how=PLANS[how]())
    return Case(at, cases.PRIOR, squared_error)


@lru_cache
def silent(how: str) -> Linearisation:
    """A dead layer: r and J are zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
    with torch.no_grad():
        model[1].bias.fill_(-100)
    inputs = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    return cases.linearise(model, Batch(inputs, torch.tensor([0, 1])), how=PLANS[how]())


class ProxyContract:
    """Attributes say where no finite number is asked for."""

    covers: type[Proxy]
    needs_full_rank: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = False

    def expected(self, sample: Sample) -> float:
        """The proxy by an oracle in float64."""
        raise NotImplementedError

    def scored(self, at: Linearisation) -> tuple[Estimate, ...]:
        scores = PROXIES[self.covers.id].score(at)
        assert len(scores.estimates) == len(at)
        assert scores.evidence is None or len(scores.evidence) == len(at)
        for estimate in scores.estimates:
            assert estimate.status in STATUSES
            assert estimate.value is None or estimate.status not in VALUELESS
            numbers = [end for end in (estimate.low, estimate.value, estimate.high) if end is not None]
            assert np.isfinite(numbers).all()
            assert numbers == sorted(numbers)
            if estimate.status == "exact":
                assert (estimate.low, estimate.high) == (None, None)
            if estimate.status == "not_applicable":
                assert scores.reason
        return scores.estimates

    def truths(self, case: Case) -> list[float]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return [self.expected(sample) for sample in case.samples]

    def test_says_what_it_is(self) -> None:
        proxy = PROXIES[self.covers.id]
        assert type(proxy) is self.covers
        info = proxy.info("why")
        assert isinstance(info, ProxyInfo)
        assert (info.id, info.reason) == (self.covers.id, "why")
        assert info.riskier in ("higher", "lower")
        assert all((info.title, info.short_title, info.units, info.source, info.summary, info.formula))

    @pytest.mark.parametrize("prior", ["isotropic", "data", "class"])
    def test_dense_is_the_oracle(self, prior: str) -> None:
        case = case_of(prior=prior)
        estimates = self.scored(case.at)
        assert {estimate.status for estimate in estimates} == {"exact"}
        assert [estimate.value for estimate in estimates] == pytest.approx(self.truths(case), rel=1e-6)

    @pytest.mark.parametrize("prior", ["isotropic", "class"])
    @pytest.mark.parametrize("how", PLANS)
    def test_intervals_hold_the_oracle(self, how: str, prior: str) -> None:
        case = case_of(how, prior)
        for estimate, truth in zip(self.scored(case.at), self.truths(case), strict=True):
            assert_holds(estimate, truth)

    def test_float32(self) -> None:
        for estimate, truth in zip(self.scored(single_precision()), self.truths(case_of(prior="data")), strict=True):
            # The drawn noise is rounded too.
            assert estimate.value == pytest.approx(truth, rel=1e-3)

    @pytest.mark.parametrize("how", ["dense", "lanczos", "lanczos-cg", "power"])
    def test_fewer_entries_than_coordinates(self, how: str) -> None:
        """7 entries are released, of 16 coordinates: H is singular."""
        case = case_of(how, text=f"prune:0.97,gaussian:{SIGMA}")
        assert (case.at.jacobian.mean() != 0).sum(1).max() < 16
        estimates = self.scored(case.at)
        if self.needs_full_rank:
            assert not {estimate.status for estimate in estimates} & {"exact", "converged"}
            return
        for estimate, truth in zip(estimates, self.truths(case), strict=True):
            assert_holds(estimate, truth)

    @pytest.mark.parametrize("how", ["dense", "lanczos", "power"])
    def test_zero_gradient(self, how: str) -> None:
        case = fitted(how)
        estimate, truth = self.scored(case.at)[1], self.truths(case)[1]
        if self.needs_gradient:
            assert estimate.value is None
        elif not self.needs_full_rank:
            assert_holds(estimate, truth)

    @pytest.mark.parametrize("how", ["dense", "lanczos", "power"])
    def test_nothing_released(self, how: str) -> None:
        estimates = self.scored(silent(how))
        if self.needs_full_rank or self.needs_gradient:
            assert not {estimate.status for estimate in estimates} & {"exact", "converged"}

    @pytest.mark.parametrize("how", ["dense", "lanczos"])
    def test_samples_do_not_see_each_other(self, how: str) -> None:
        whole = self.scored(case_of(how, "class").at)
        for rows in ((2, 0), (1,)):
            for row, estimate in zip(rows, self.scored(case_of(how, "class", rows=rows).at), strict=True):
                together = whole[row]
                assert (estimate.status, estimate.value is None) == (together.status, together.value is None)
                assert [end is None for end in estimate.ends] == [end is None for end in together.ends]
                for end, other in zip(estimate.ends, together.ends, strict=True):
                    assert end is None or end == pytest.approx(other, rel=1e-6)
                if together.value is not None:
                    assert estimate.value == pytest.approx(together.value, rel=1e-6)

    @pytest.mark.parametrize("text", ["gaussian:1e-300", "gaussian:1e300"])
    @pytest.mark.parametrize("how", ["dense", "four-products", "lanczos-cg", "power"])
    @pytest.mark.parametrize("prior", ["isotropic", "data"])
    def test_every_number_is_finite_or_absent(self, prior: str, how: str, text: str) -> None:
        self.scored(case_of(how, prior, text).at)


def assert_holds(estimate: Estimate, truth: float) -> None:
    """An interval, or a value that claims to be right, does hold the truth."""
    assert estimate.low is None or estimate.low * (1 - 1e-7) <= truth
    assert estimate.high is None or truth <= estimate.high * (1 + 1e-7)
    if estimate.status in ("exact", "converged"):
        assert estimate.value == pytest.approx(truth, rel=1e-5, abs=1e-12)
