"""Lower bounds of two-layer networks against formulas written out, and the laws that they follow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import two_layer
from riskaudit.errors import SettingsError
from riskaudit.theory import Problem, fit_slopes, lower_bounds
from riskaudit.theory.two_layer import TwoLayers

SIGMA = 0.01


def dense_jacobian(model: TwoLayers, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """d(mean gradient)/dx for tanh by hand, [m d + m, B d]: with h_j = tanh(w_j . x) and r = f(x) - y.

    dL/da_j = r h_j and dL/dw_j = r a_j (1 - h_j^2) x.
    """
    W, a = model.inner.detach().numpy(), model.outer.detach().numpy()
    m, d = W.shape
    blocks = []
    for x, y in zip(inputs, targets, strict=True):
        h = np.tanh(W @ x)
        slope = 1 - h**2
        r, dr = a @ h - y, (a * slope) @ W
        outer = r * slope[:, None] * W + h[:, None] * dr
        inner = np.empty((m, d, d))
        for j in range(m):
            bent = -2 * h[j] * slope[j] * W[j]
            inner[j] = a[j] * (slope[j] * np.outer(x, dr) + r * np.outer(x, bent) + r * slope[j] * np.eye(d))
        blocks.append(np.concatenate([inner.reshape(m * d, d), outer]))
    return np.concatenate(blocks, axis=1) / len(inputs)


def test_bounds_are_those_of_the_matrix() -> None:
    problem = Problem(width=12, dimension=3, samples=2, seed=3)
    model, batch = problem.draw()
    J = dense_jacobian(model, batch.inputs.numpy(), batch.targets.numpy())
    bounds = lower_bounds(problem, f"mean:2,gaussian:{SIGMA}")
    assert bounds.status == "exact"
    assert bounds.exact == pytest.approx(SIGMA * math.sqrt(np.trace(np.linalg.inv(J.T @ J)) / 2), rel=1e-9)
    assert bounds.loosened == pytest.approx(SIGMA * 6 / (np.linalg.norm(J) * math.sqrt(2)), rel=1e-9)
    assert bounds.law == pytest.approx(2 * SIGMA * math.sqrt(3 / 12))


@pytest.mark.parametrize("defence", ["", "clip:1e-3,", "prune:0.5,", "dropout:0.3,", "mask:0.3,"])
def test_what_is_loosened_lies_below(defence: str) -> None:
    bounds = lower_bounds(Problem(64, 5, 2, "sigmoid"), f"mean:2,{defence}gaussian:{SIGMA}")
    assert bounds.exact is not None
    assert 0 < bounds.loosened < bounds.exact


def test_defences_move_the_law_as_the_table_says() -> None:
    problem = Problem(64, 5)
    plain = lower_bounds(problem, f"mean:1,gaussian:{SIGMA}")
    model, batch = problem.draw()
    ((model(batch.inputs) - batch.targets).square().mean() / 2).backward()
    norm = math.hypot(*(float(each.grad.norm()) for each in model.parameters()))
    clipped = lower_bounds(problem, f"mean:1,clip:{norm / 4},gaussian:{SIGMA}")
    assert clipped.law == pytest.approx(4 * plain.law)
    # The same clip before the mean, as DP-SGD has it, of one sample.
    assert lower_bounds(problem, f"clip:{norm / 4},mean:1,gaussian:{SIGMA}").law == pytest.approx(4 * plain.law)
    assert lower_bounds(problem, f"mean:1,clip:{norm * 4},gaussian:{SIGMA}") == plain
    assert lower_bounds(problem, f"mean:1,dropout:0.75,gaussian:{SIGMA}").law == pytest.approx(2 * plain.law)
    # Small entries, whose derivatives are small, go first: half of them hold less than half of the law's change.
    pruned = lower_bounds(problem, f"mean:1,prune:0.5,gaussian:{SIGMA}")
    assert plain.law < pruned.law < math.sqrt(2) * plain.law
    assert pruned.law / plain.law == pytest.approx(pruned.loosened / plain.loosened)
    # Of local training what leaves is as long as its steps.
    training = lower_bounds(problem, f"local:epochs=2:batch=1:lr=0.1,gaussian:{SIGMA}")
    assert training.law == pytest.approx(10 * plain.law)
    assert training.exact is not None
    assert lower_bounds(problem, f"mean:1,share:outer,gaussian:{SIGMA}").law is None


def test_fewer_numbers_than_unknowns_are_singular() -> None:
    bounds = lower_bounds(Problem(width=1, dimension=4, samples=2), f"mean:2,gaussian:{SIGMA}")
    assert (bounds.exact, bounds.status) == (None, "singular")
    assert bounds.loosened > 0


def test_the_loosened_bound_scales_as_the_law() -> None:
    problems = [Problem(m, d, 1, "tanh", seed) for m in (100, 400) for d in (8, 32) for seed in range(4)]
    slopes = fit_slopes({each: lower_bounds(each, f"mean:1,gaussian:{SIGMA}").loosened for each in problems})
    assert slopes.num_seeds == 4
    assert slopes.dimension[0] == pytest.approx(0.5, abs=0.1)
    assert slopes.width[0] == pytest.approx(-0.5, abs=0.1)
    assert slopes.width[1] < slopes.width[0] < slopes.width[2]


def test_slopes_of_a_power_law_are_its_exponents() -> None:
    errors = {Problem(m, d, seed=seed): (seed + 1) * d**0.7 / m for m in (2, 4) for d in (3, 9) for seed in (0, 1)}
    slopes = fit_slopes(errors)
    assert slopes.dimension == pytest.approx((0.7, 0.7, 0.7))
    assert slopes.width == pytest.approx((-1, -1, -1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Problem(0, 3),
        lambda: Problem(3, 3, activation="gelu"),
        lambda: lower_bounds(Problem(3, 3, 2), "mean:2"),
        lambda: lower_bounds(Problem(3, 3, 2), "gaussian:1"),
        lambda: lower_bounds(Problem(3, 3, 4), "mean:2,gaussian:1"),
        lambda: fit_slopes({Problem(3, 3): 1.0}),
        lambda: fit_slopes({Problem(3, 3, seed=seed): 1.0 for seed in range(2)}),
    ],
)
def test_refused(make) -> None:
    with pytest.raises(SettingsError, match="expected"):
        make()


@pytest.mark.slow
def test_benchmark_quick(capsys) -> None:
    two_layer.main(["--quick", "--samples", "1", "--activations", "tanh"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(two_layer.DEFENCES)


def test_data_lie_on_the_sphere() -> None:
    model, batch = Problem(5, 7, 3, seed=1).draw()
    assert torch.allclose(batch.inputs.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert model.outer.abs().tolist() == pytest.approx([1 / 5] * 5)
    assert batch.upload_size == 3
