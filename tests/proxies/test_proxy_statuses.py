"""What a proxy says where it can't give the number, and that its intervals hold the number."""

from __future__ import annotations

import math
from functools import lru_cache

import cases
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riskaudit.jacobian import jacobian_maker
from riskaudit.proxies import PROXIES
from riskaudit.release import Batch, PerSampleRelease
from riskaudit.results import Estimate
from riskaudit.sensitivity import Clock, Linearisation
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator

NUM_SAMPLES = 20
SIGMA = 0.05
MODELS = {
    "lenet": lambda: (cases.lenet(8), cases.mnist(NUM_SAMPLES, 8)),
    "batch-norm": lambda: (cases.residual(), cases.mnist(NUM_SAMPLES, 8)),
    "mlp": lambda: (cases.mlp((64, 12, 10)), cases.mnist(NUM_SAMPLES, 8)),
}


@lru_cache
def truths(name: str) -> list[dict[str, float]]:
    """Every proxy of every sample by the oracle, with the noise that the package draws for seed 0."""
    model, batch = MODELS[name]()
    at = cases.linearise(model, batch, f"gaussian:{SIGMA}")
    rows = []
    for index, (x, target) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
        J = oracles.jacobian(model, F.cross_entropy, x, target)
        r = oracles.released_mean(model, F.cross_entropy, x, target).detach().numpy()
        delta = at.release.sample_noise(sample_generator(0, index, NOISE_STREAM)).numpy()
        rows.append(oracles.proxies(J, r, delta, x.flatten().numpy() - 0.5, SIGMA, cases.PRIOR.std))
    return rows


def scores(name: str, how) -> dict[str, tuple[Estimate, ...]]:
    model, batch = MODELS[name]()
    at = cases.linearise(model, batch, f"gaussian:{SIGMA}", how=how)
    return {proxy: PROXIES[proxy].score(at).estimates for proxy in PROXIES}


BRACKETED = [
    "i2f", "i2f_lower_bound", "expected_rmse", "posterior_rmse", "revealed_fraction", "map_rmse", "map_i2f",
    "lavp_l2_max", "lavp_l2_min", "lavp_cosine_max", "lavp_cosine_min",
]  # fmt: skip
LARGEST = ("i2f_lower_bound", "lavp_l2_max", "lavp_cosine_max")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("max_matvecs", [1, 4, 8, 100])
@pytest.mark.parametrize("name", MODELS)
def test_lanczos_brackets_hold_the_dense_truth(name: str, max_matvecs: int) -> None:
    found = scores(name, cases.plan("lanczos", "quadrature", max_matvecs=max_matvecs, failure=1e-4))
    for index, truth in enumerate(truths(name)):
        for proxy in BRACKETED:
            estimate = found[proxy][index]
            low = -math.inf if estimate.low is None else estimate.low
            high = math.inf if estimate.high is None else estimate.high
            assert (estimate.low, estimate.high) != (None, None)
            # Converged to the plan's tolerance: the interval is as wide as rounding there.
            assert low * (1 - 1e-7) <= truth[proxy] <= high * (1 + 1e-7), (proxy, index)
            if estimate.value is not None:
                assert low <= estimate.value <= high
            if estimate.status == "converged":
                assert estimate.value == pytest.approx(truth[proxy], rel=1e-5), (proxy, index)
        assert found["posterior_rmse"][index].high <= cases.PRIOR.std
        assert found["revealed_fraction"][index].high <= 1
    if max_matvecs == 100:
        assert {estimate.status for estimate in found["lavp_l2_max"]} == {"converged"}
        assert all(row.high <= 1.1 * row.low for row in found["map_i2f"])
        assert all(row.high <= row.low + 0.35 for row in found["revealed_fraction"])


def test_a_narrower_interval_costs_more_products() -> None:
    model, batch = MODELS["lenet"]()
    widths, products = [], []
    for precision in (0.5, 0.1):
        how = cases.plan("lanczos", "quadrature", precision=precision, max_probes=128, max_matvecs=64)
        at = cases.linearise(model, batch.select([0, 1]), "gaussian:0.5", how=how)
        found = PROXIES["revealed_fraction"].score(at).estimates
        widths.append(max((row.high - row.low) / row.value for row in found))
        products.append(at.matvecs)
    assert widths[0] <= 0.5
    assert widths[1] < widths[0]
    assert products[1] > products[0]


def test_time_that_is_up_leaves_honest_intervals() -> None:
    """Nothing is known but what costs no product, and nothing claims to be."""
    model, batch = MODELS["lenet"]()
    jacobian = jacobian_maker(PerSampleRelease(model, F.cross_entropy, "gaussian:0.05"), batch)(batch)
    how = cases.plan("lanczos", "quadrature")
    at = Linearisation(jacobian, list(range(NUM_SAMPLES)), cases.PRIOR, how, 0, Clock(0.0))
    found = {proxy: PROXIES[proxy].score(at).estimates for proxy in PROXIES}
    assert at.matvecs == 0
    for proxy in BRACKETED:
        for estimate, truth in zip(found[proxy], truths("lenet"), strict=True):
            assert estimate.value is None, proxy
            assert estimate.status in ("not_converged", "bracketed")
            assert (estimate.low or 0.0) <= truth[proxy]
            assert estimate.high is None or truth[proxy] <= estimate.high
    assert {row.status for row in found["revealed_fraction"]} == {"not_converged"}
    assert {(row.low, row.high) for row in found["revealed_fraction"]} == {(0.0, 1.0)}
    assert all(row.status == "exact" for row in found["gradient_norm"])


def test_a_fully_connected_first_layer_bounds_errors_without_a_prior_from_above() -> None:
    """l_d >= ||b||^2 / (1 + ||x||^2), so that i2f and expected_rmse have an upper end."""
    found = scores("mlp", cases.plan("lanczos", "quadrature", max_matvecs=60))
    for proxy in ("i2f", "expected_rmse", "lavp_l2_min"):
        for estimate, truth in zip(found[proxy], truths("mlp"), strict=True):
            assert estimate.low * (1 - 1e-9) <= truth[proxy] <= estimate.high * (1 + 1e-9)
            assert estimate.low > 0


def test_quadrature_stays_open_where_the_smallest_eigenvalue_is_unknown() -> None:
    """A singular H has no finite error without a prior, and none is given."""
    model, batch = cases.mlp((64, 12, 10)), cases.mnist(3, 8)
    at = cases.linearise(model, batch, "prune:0.97,gaussian:0.01", how=cases.plan("lanczos", "quadrature"))
    for proxy in ("i2f", "expected_rmse"):
        outcome = PROXIES[proxy].score(at)
        assert [(row.value, row.high) for row in outcome.estimates] == [(None, None)] * 3
        assert "solver=dense" in outcome.reason


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", MODELS)
def test_power_iteration_brackets_the_largest(name: str) -> None:
    found = scores(name, cases.plan("power", "cg", max_matvecs=60))
    for index, truth in enumerate(truths(name)):
        for proxy in LARGEST:
            estimate = found[proxy][index]
            assert estimate.low * (1 - 1e-9) <= truth[proxy] <= estimate.high * (1 + 1e-9), (proxy, index)
        for proxy in ("lavp_l2_min", "lavp_cosine_min"):
            assert found[proxy][index] == Estimate(value=None, status="not_applicable")


@pytest.mark.parametrize("proxy", ["expected_rmse", "posterior_rmse", "revealed_fraction", "map_rmse"])
def test_proxies_of_the_whole_spectrum_say_that_they_need_it(proxy: str) -> None:
    model, batch = cases.residual(), cases.mnist(2, 8)
    outcome = PROXIES[proxy].score(cases.linearise(model, batch, how=cases.plan("power", "cg")))
    assert outcome.estimates == (Estimate(value=None, status="not_applicable"),) * 2
    assert "solver=lanczos" in outcome.reason


@pytest.mark.sampled(1)
@pytest.mark.parametrize("inverse", ["cg", "neumann"])
def test_iterative_inverses_agree_with_dense(inverse: str) -> None:
    found = scores("mlp", cases.plan("lanczos", inverse, tolerance=1e-7, max_matvecs=3000))
    for index, truth in enumerate(truths("mlp")):
        for proxy in ("i2f", "map_i2f"):
            estimate = found[proxy][index]
            assert estimate.status == "converged"
            assert estimate.value == pytest.approx(truth[proxy], rel=1e-6)
        bracket = found["map_i2f"][index]
        assert bracket.low <= truth["map_i2f"] * (1 + 1e-12)
        assert truth["map_i2f"] <= bracket.high * (1 + 1e-12)
        # Without a shift nothing is certified.
        assert (found["i2f"][index].low, found["i2f"][index].high) == (None, None)


@pytest.mark.parametrize("inverse", ["cg", "neumann", "least-squares"])
def test_unconverged_inverse_says_so(inverse: str) -> None:
    model, batch = MODELS["batch-norm"]()
    at = cases.linearise(
        model, batch.select([0, 1]), "gaussian:0.0001", how=cases.plan("lanczos", inverse, max_matvecs=4)
    )
    for proxy in ("i2f", "map_i2f"):
        outcome = PROXIES[proxy].score(at)
        assert [estimate.status for estimate in outcome.estimates] == ["not_converged"] * 2
        for evidence in outcome.evidence:
            assert (evidence.method, evidence.status) == (inverse, "not_converged")
            assert evidence.residual > 1e-7
            assert 0 < evidence.matvecs <= 5


@pytest.mark.parametrize("text", ["prune:0.97,gaussian:0.01", "mask:0.97:1,gaussian:0.01"])
def test_fewer_released_entries_than_coordinates_is_singular(text: str) -> None:
    """P = 922 and 28 entries are kept; the input has 64 coordinates."""
    model, batch = cases.mlp((64, 12, 10)), cases.mnist(3, 8)
    at = cases.linearise(model, batch, text)
    assert (at.jacobian.mean() != 0).sum(1).max() < 64
    found = {proxy: PROXIES[proxy].score(at) for proxy in PROXIES}
    for proxy in ("i2f", "expected_rmse"):
        assert found[proxy].estimates == (Estimate(value=None, status="singular"),) * 3
    hidden = 1 - 28 / 64
    for index in range(3):
        assert found["posterior_rmse"].estimates[index].value >= cases.PRIOR.std * math.sqrt(hidden) * (1 - 1e-9)
        assert found["revealed_fraction"].estimates[index].value <= 1 - hidden + 1e-9
        least = found["lavp_l2_min"].estimates[index]
        assert (least.status, least.value, least.low) == ("bracketed", None, 0.0)
        assert least.high < 1e-10


@pytest.mark.sampled(2)
@pytest.mark.parametrize("inverse", ["cg", "neumann", "least-squares"])
@pytest.mark.parametrize("text", ["prune:0.97,gaussian:0.01", "mask:0.97:1,gaussian:0.01"])
def test_no_iteration_takes_a_singular_solve_for_a_finite_error(text: str, inverse: str) -> None:
    """J^T delta lies in H's range, so the residual alone would look fine."""
    model, batch = cases.mlp((64, 12, 10)), cases.mnist(3, 8)
    at = cases.linearise(model, batch, text, how=cases.plan("lanczos", inverse, max_matvecs=400))
    found = PROXIES["i2f"].score(at).estimates
    assert {estimate.status for estimate in found} <= {"singular", "not_converged"}
    if inverse == "cg":
        assert found == (Estimate(value=None, status="singular"),) * 3


def test_an_iteration_that_reaches_every_direction_has_converged() -> None:
    """A regular H: the iteration's i2f is the dense one."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 30), nn.Tanh(), nn.Linear(30, 4)).double()
    batch = Batch(torch.rand(2, 1, 3, 3, dtype=torch.float64), torch.tensor([1, 3]))
    how = cases.plan("lanczos", "cg", max_matvecs=400)
    found = PROXIES["i2f"].score(cases.linearise(model, batch, "gaussian:0.01", how=how)).estimates
    dense = PROXIES["i2f"].score(cases.linearise(model, batch, "gaussian:0.01")).estimates
    assert {estimate.status for estimate in found} == {"converged"}
    assert [row.value for row in found] == pytest.approx([row.value for row in dense], rel=1e-6)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def test_zero_gradient_has_no_cosine_curvature() -> None:
    """The second sample is fitted perfectly: r = 0 there, but r still depends on x."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        model[1].bias.zero_()
        model[3].bias.zero_()
    inputs = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    inputs[1] = 0
    targets = torch.zeros(2, 2, dtype=torch.float64)
    at = cases.linearise(model, Batch(inputs, targets), loss=squared_error)
    found = {proxy: PROXIES[proxy].score(at).estimates for proxy in PROXIES}
    assert found["gradient_norm"][1].value == 0
    assert found["lavp_l2_max"][1].value > 0
    assert found["lavp_cosine_max"][0].status == "exact"
    assert found["lavp_cosine_max"][1] == Estimate(value=None, status="singular")
    assert found["lavp_cosine_min"][1].value is None
    assert found["revealed_fraction"][1].status == "exact"


@pytest.mark.parametrize(
    "how", [cases.plan(), cases.plan("lanczos", "quadrature"), cases.plan("power", "cg")], ids=lambda how: how.solver
)
def test_nothing_released_tells_nothing(how) -> None:
    """A dead ReLU layer and a zero last layer: r and J are zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
    with torch.no_grad():
        model[1].bias.fill_(-100)
    at = cases.linearise(model, Batch(torch.rand(2, 1, 4, 4).double(), torch.tensor([0, 1])), how=how)
    found = {proxy: PROXIES[proxy].score(at).estimates[0] for proxy in PROXIES}
    assert found["gradient_norm"].value == 0
    assert found["i2f_lower_bound"] == Estimate(value=None, status="singular")
    assert found["lavp_l2_max"].value == 0
    assert found["lavp_cosine_max"].value is None
    if how.solver == "dense":
        assert found["i2f"] == found["expected_rmse"] == Estimate(value=None, status="singular")
        assert found["posterior_rmse"].value == pytest.approx(cases.PRIOR.std)
        assert found["revealed_fraction"].value == 0


@pytest.mark.sampled(10)
@pytest.mark.parametrize("solver", ["dense", "lanczos", "power"])
@pytest.mark.parametrize("max_matvecs", [1, 3])
@pytest.mark.parametrize(
    "text", ["gaussian:1e-300", "gaussian:1e-8", "gaussian:1e8", "gaussian:1e300", "clip:1e-12,gaussian:1"]
)
def test_every_value_is_finite_or_absent(solver: str, max_matvecs: int, text: str) -> None:
    model, batch = cases.mlp((16, 8, 10)), cases.mnist(1, 4)
    inverses = {"dense": ["dense"], "lanczos": ["quadrature", "cg"], "power": ["cg", "neumann", "least-squares"]}
    for inverse in inverses[solver]:
        at = cases.linearise(model, batch, text, how=cases.plan(solver, inverse, max_matvecs=max_matvecs))
        for proxy in PROXIES.values():
            for estimate in proxy.score(at).estimates:
                numbers = [number for number in (estimate.value, estimate.low, estimate.high) if number is not None]
                assert np.isfinite(numbers).all()
                assert estimate.value is None or estimate.status not in ("singular", "not_applicable")
