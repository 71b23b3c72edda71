"""L-BFGS and Adam on functions whose minima are known; rows that stop, leave and fail on their own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from oracles import random_spectrum_matrix
from scipy.optimize import minimize
from torch import Tensor

from riskaudit.attacks.optimise.descent import Descent
from riskaudit.attacks.optimise.lbfgs import LimitedMemoryBFGS
from riskaudit.attacks.optimise.minimisers import Function, Minimiser, Stagnation


@dataclass(frozen=True, eq=False)
class Quadratics(Function):
    """(x - c)^T A (x - c) / 2 + constant for each row; infinite beyond a radius, if there is one."""

    matrices: Tensor
    centres: Tensor
    constant: float = 0.0
    radius: float | None = None
    together: bool = False
    held: list[int] = field(default_factory=list)

    def evaluate(self, points: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        self.held.append(len(points))
        shift = points - self.centres
        gradient = torch.einsum("rij,rj->ri", self.matrices, shift)
        value = 0.5 * (shift * gradient).sum(-1).double() + self.constant
        if self.radius is not None:
            value = torch.where(points.norm(dim=-1) > self.radius, torch.nan, value)
        return value, gradient

    def select(self, rows: list[int]) -> Quadratics:
        return replace(self, matrices=self.matrices[rows], centres=self.centres[rows])

    def released_together(self, finished: Tensor) -> Tensor:
        return finished & finished.all() if self.together else finished


def quadratics(conditions: list[float], size: int = 12, seed: int = 0) -> Quadratics:
    """One row for each condition number; c is random."""
    rng = np.random.default_rng(seed)
    matrices = [random_spectrum_matrix(np.geomspace(1, condition, size), rng) for condition in conditions]
    return Quadratics(
        torch.from_numpy(np.stack(matrices)), torch.from_numpy(rng.standard_normal((len(matrices), size)))
    )


@dataclass(frozen=True)
class Rosenbrock(Function):
    def evaluate(self, points: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        x, y = points.unbind(-1)
        value = (1 - x).square() + 100 * (y - x.square()).square()
        slope = torch.stack([-2 * (1 - x) - 400 * x * (y - x.square()), 200 * (y - x.square())], dim=-1)
        return value, slope

    def select(self, rows: list[int]) -> Rosenbrock:
        return self

    def released_together(self, finished: Tensor) -> Tensor:
        return finished


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_lbfgs_agrees_with_scipy(condition: float) -> None:
    function = quadratics([condition])
    start = torch.zeros(1, 12, dtype=torch.float64)
    found = LimitedMemoryBFGS(steps=500).minimise(function, start)
    A, c = function.matrices[0].numpy(), function.centres[0].numpy()
    expected = minimize(
        lambda x: 0.5 * (x - c) @ A @ (x - c), np.zeros(12), jac=lambda x: A @ (x - c), method="L-BFGS-B",
        options={"maxcor": 20, "maxiter": 500, "ftol": 0, "gtol": 1e-12},
    )  # fmt: skip
    first = 0.5 * c @ A @ c
    assert float(found.value[0]) <= max(10 * expected.fun, 1e-20 * first)
    np.testing.assert_allclose(found.points[0].numpy(), c, atol=1e-6)


def test_lbfgs_stops_where_a_minimum_above_zero_is_reached() -> None:
    function = replace(quadratics([1.0, 1e2, 1e4]), constant=1.0)
    found = LimitedMemoryBFGS(steps=500).minimise(function, torch.zeros(3, 12).double())
    assert found.status == ("converged",) * 3
    torch.testing.assert_close(found.value, torch.ones(3).double(), rtol=1e-8, atol=0)
    assert found.steps.tolist() == sorted(found.steps.tolist())
    # The rows that were done first have left.
    assert 3 in function.held
    assert 1 in function.held


def test_lbfgs_in_a_curved_valley() -> None:
    start = torch.tensor([[-1.2, 1.0], [2.0, -3.0], [0.0, 0.0]]).double()
    found = LimitedMemoryBFGS(steps=200).minimise(Rosenbrock(), start)
    torch.testing.assert_close(found.points, torch.ones(3, 2).double(), rtol=0, atol=1e-5)


MINIMISERS: dict[str, Minimiser] = {
    "lbfgs": LimitedMemoryBFGS(steps=30),
    "adam": Descent(steps=30),
    "signed": Descent(steps=30, signed=True, schedule="steps", box=(-2.0, 2.0)),
    "cosine": Descent(steps=30, schedule="cosine", warm_up=5),
}


@pytest.mark.parametrize("name", MINIMISERS)
def test_rows_do_not_see_each_other(name: str) -> None:
    function = quadratics([1.0, 1e3, 10.0, 1e5])
    start = torch.full((4, 12), 0.3).double()
    together = MINIMISERS[name].minimise(function, start)
    assert bool((together.value < function.evaluate(start)[0]).all())
    for row in range(4):
        alone = MINIMISERS[name].minimise(function.select([row]), start[[row]])
        torch.testing.assert_close(alone.points[0], together.points[row], rtol=1e-9, atol=1e-9)
        assert alone.status[0] == together.status[row]
        assert alone.steps[0] == together.steps[row]


@pytest.mark.parametrize("name", MINIMISERS)
def test_used_up_steps_are_not_convergence(name: str) -> None:
    found = replace(MINIMISERS[name], steps=3).minimise(quadratics([1e5]), torch.zeros(1, 12).double())
    assert found.status == ("not_converged",)
    assert found.steps.tolist() == [3]


@pytest.mark.parametrize("name", MINIMISERS)
def test_no_steps_give_the_start(name: str) -> None:
    function, start = quadratics([10.0]), torch.full((1, 12), 0.5).double()
    found = replace(MINIMISERS[name], steps=0).minimise(function, start)
    assert torch.equal(found.points, start)
    torch.testing.assert_close(found.value, function.evaluate(start)[0])


@pytest.mark.parametrize("name", MINIMISERS)
def test_a_start_that_is_no_number_fails(name: str) -> None:
    function = replace(quadratics([10.0, 10.0]), radius=5.0)
    start = torch.zeros(2, 12).double()
    start[0, 0] = 100.0
    how = replace(MINIMISERS[name], box=None) if isinstance(MINIMISERS[name], Descent) else MINIMISERS[name]
    found = how.minimise(function, start)
    assert found.status[0] == "failed"
    assert float(found.value[0]) == float("inf")
    assert found.status[1] != "failed"


@pytest.mark.slow
def test_lbfgs_comes_back_from_where_there_are_no_numbers() -> None:
    function = replace(quadratics([1e4]), radius=6.0)
    start = torch.zeros(1, 12).double()
    found = LimitedMemoryBFGS(steps=200, rate=100.0).minimise(function, start)
    torch.testing.assert_close(found.points, function.centres, rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", [LimitedMemoryBFGS(steps=10), Descent(steps=10)], ids=["lbfgs", "adam"])
def test_a_start_at_the_minimum_has_converged(how: Minimiser) -> None:
    function = quadratics([10.0])
    found = how.minimise(function, function.centres)
    assert found.status == ("converged",)
    assert found.steps.tolist() == [0]


def test_adam_is_torchs() -> None:
    function, start = quadratics([10.0, 100.0]), torch.zeros(2, 12).double()
    point = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([point], lr=0.05)
    for _ in range(25):
        point.grad = function.evaluate(point.detach())[1]
        optimiser.step()
    found = Descent(steps=25, rate=0.05).minimise(function, start)
    torch.testing.assert_close(found.points, point.detach(), rtol=1e-9, atol=1e-9)


def test_the_step_size_falls_at_its_milestones() -> None:
    # Far from the minimum, signed steps have the length of the rate.
    function = replace(quadratics([1.0]), centres=torch.full((1, 12), 1e3).double())
    ends = [
        Descent(steps=steps, rate=1.0, signed=True).minimise(function, torch.zeros(1, 12).double()) for steps in (9, 10)
    ]
    torch.testing.assert_close(ends[1].points - ends[0].points, torch.ones(1, 12).double(), rtol=1e-6, atol=0)
    found = Descent(steps=80, rate=1.0, signed=True, schedule="steps").minimise(function, torch.zeros(1, 12).double())
    # Adam's average of constant signs is that sign.
    expected = 30 + 20 * 0.1 + 20 * 0.01 + 10 * 0.001
    assert float(found.points[0, 0]) == pytest.approx(expected, rel=1e-6)


def test_units_scale_the_steps_of_rows() -> None:
    function = replace(quadratics([1.0, 1.0]), centres=torch.full((2, 12), 1e3).double())
    found = Descent(steps=10, rate=1.0, signed=True).minimise(
        function, torch.zeros(2, 12).double(), torch.tensor([1.0, 0.5])
    )
    torch.testing.assert_close(found.points[0], 2 * found.points[1], rtol=1e-6, atol=0)


def test_the_box_is_never_left() -> None:
    function = replace(quadratics([10.0]), centres=torch.full((1, 12), 3.0).double())
    found = Descent(steps=200, box=(0.0, 1.0)).minimise(function, torch.full((1, 12), -5.0).double())
    assert float(found.points.min()) >= 0
    assert float(found.points.max()) <= 1


def test_stagnation_ends_a_row_at_its_smallest_step_only() -> None:
    function = replace(quadratics([1.0, 1.0]), constant=1.0)
    start = function.centres.clone()
    start[1] += 0.05
    plain = Descent(steps=1000, rate=1e-4, patience=10).minimise(function, start)
    assert plain.status[0] == "converged"
    assert plain.steps.tolist()[0] == 10
    falling = Descent(steps=1000, rate=1e-4, patience=10, schedule="steps").minimise(function, start)
    # Four step sizes, each for as long as the patience lasts.
    assert 40 <= falling.steps.tolist()[0] <= 44
    assert falling.status[0] == "converged"
    settled = Descent(steps=1000, rate=1e-4, patience=10, settled=0.5).minimise(function, start)
    assert 500 <= settled.steps.tolist()[0] <= 511


def test_rows_that_see_each_other_leave_together() -> None:
    function = replace(quadratics([1.0, 1.0, 1.0]), constant=1.0, together=True)
    start = function.centres.clone()
    start[1] += 0.02
    found = Descent(steps=1000, rate=1e-3, patience=10).minimise(function, start)
    assert len(set(found.steps.tolist())) == 1
    assert set(function.held) == {3}


def test_finished_rows_leave_by_halves() -> None:
    function = replace(quadratics([1.0] * 4), constant=1.0)
    start = function.centres.clone()
    start[3] += 0.5
    found = Descent(steps=300, rate=1e-2, patience=10).minimise(function, start)
    assert function.held[0] == 4
    assert function.held[-1] == 1
    assert set(function.held) == {4, 1}
    assert found.steps[3] > found.steps[0]


def test_stagnation_counts() -> None:
    watch = Stagnation(1, 0.1, 2, torch.device("cpu"))
    flags = [bool(watch.update(torch.tensor([value]).double())[0]) for value in (10.0, 8.0, 7.9, 7.8, 5.0)]
    assert flags == [False, False, False, True, False]
    # Negative objectives fall by a share of their size.
    watch = Stagnation(1, 0.1, 1, torch.device("cpu"))
    flags = [bool(watch.update(torch.tensor([value]).double())[0]) for value in (-10.0, -10.5, -12.0)]
    assert flags == [False, True, False]
