"""Which solver an audit takes, decided from sizes alone, and why."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from riskaudit.audit import AuditSettings
from riskaudit.audit import plan as planning
from riskaudit.audit.plan import DENSE_DIMENSION, UploadShape, choose_plan, samples_at_once
from riskaudit.linalg import EIGENVALUE_SOLVERS, INVERSE_SOLVERS
from riskaudit.linalg.solvers.dense import JACOBIAN_BYTES

CPU = torch.device("cpu")
LARGEST_DIMENSION = DENSE_DIMENSION["cpu"]
LARGEST_ENTRIES = JACOBIAN_BYTES // (8 * 784)


@pytest.mark.parametrize(
    ("dimension", "entries", "solver", "inverse", "reason"),
    [
        (64, 11_638, "dense", "dense", "all eigenvalues are affordable"),
        (784, LARGEST_ENTRIES, "dense", "dense", "all eigenvalues are affordable"),
        (784, LARGEST_ENTRIES + 1, "lanczos", "quadrature", "more than the"),
        (LARGEST_DIMENSION, 100, "dense", "dense", "all eigenvalues are affordable"),
        (LARGEST_DIMENSION + 1, 100, "lanczos", "quadrature", f"above the {LARGEST_DIMENSION:,}"),
    ],
    ids=["demo", "memory-just-enough", "memory-just-not", "largest-d", "d-too-large"],
)
def test_auto(dimension, entries, solver, inverse, reason) -> None:
    plan = choose_plan(AuditSettings(), dimension, entries, 4, 1, CPU)
    assert (plan.solver, plan.inverse) == (solver, inverse)
    assert reason in plan.solver_reason
    assert f"d = {dimension:,}" in plan.solver_reason
    assert plan.max_matvecs == 50


@pytest.mark.parametrize("solver", sorted(EIGENVALUE_SOLVERS))
def test_a_named_solver_is_taken_whatever_it_costs(solver) -> None:
    plan = choose_plan(AuditSettings(solver=solver), 10**6, 10**8, 4, 1, CPU)
    assert (plan.solver, plan.solver_reason) == (solver, "named by the user")
    assert plan.inverse == {"dense": "dense", "lanczos": "quadrature"}.get(solver, "cg")
    assert plan.max_matvecs == (50 if solver == "dense" else 1000)


@pytest.mark.parametrize("inverse", sorted(INVERSE_SOLVERS))
def test_a_named_inverse_is_taken_whatever_it_costs(inverse) -> None:
    plan = choose_plan(AuditSettings(inverse=inverse), 10**6, 10**8, 4, 1, CPU)
    assert (plan.inverse, plan.inverse_reason) == (inverse, "named by the user")
    assert plan.solver == ("dense" if inverse == "dense" else "lanczos")
    assert plan.max_matvecs == 1000


def test_the_limit_on_products_that_the_user_gives_holds() -> None:
    assert choose_plan(AuditSettings(max_matvecs=7), 64, 100, 1, 1, CPU).max_matvecs == 7
    assert choose_plan(AuditSettings(max_matvecs=7, solver="power"), 64, 100, 1, 1, CPU).max_matvecs == 7


@pytest.mark.parametrize(
    ("proxies", "solver"),
    [
        (("gradient_norm", "lavp_l2_max"), "lanczos"),
        (("i2f_lower_bound",), "lanczos"),
        (("revealed_fraction",), "dense"),
        (("lavp_l2_min", "gradient_norm"), "dense"),
    ],
)
def test_proxies_that_need_no_spectrum_do_not_pay_for_one(proxies, solver) -> None:
    plan = choose_plan(AuditSettings(proxies=proxies), 64, 100, 1, 1, CPU)
    assert plan.solver == solver
    assert {name.removeprefix("informed_") for name in plan.proxies} == set(proxies)


def test_a_budget_needs_iterations_that_can_stop() -> None:
    plan = choose_plan(AuditSettings(budget=3.0), 64, 100, 1, 1, CPU)
    assert plan.solver == "lanczos"
    assert "budget" in plan.solver_reason


@pytest.mark.parametrize(
    ("sample_bytes", "batch_size", "expected"),
    [
        (1, None, 64),
        (1, 100, 100),
        (2**30, None, 4),
        (2**30, 3, 3),
        (2**30, 1, 1),
        (2**40, None, 1),
        (3 * 2**28, None, 4),
    ],
)
def test_batches_are_what_the_free_memory_takes(monkeypatch, sample_bytes, batch_size, expected) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda device: 10 * 2**30)
    assert samples_at_once(batch_size, sample_bytes, CPU) == expected


def test_free_memory_is_less_than_all_of_it() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < planning.free_memory(CPU) < total


def test_confidence_is_shared_out_over_the_samples() -> None:
    plan = choose_plan(AuditSettings(confidence=0.95), 64, 100, 10, 1, CPU)
    assert plan.failure == pytest.approx(0.005)


def test_limits_decide_how_coarse_intervals_may_be() -> None:
    def thresholds(**settings: float) -> tuple[float, ...]:
        return choose_plan(AuditSettings(**settings), 64, 100, 10, 1, CPU).thresholds_at(tau=0.5)

    assert thresholds() == ()
    assert thresholds(max_revealed=0.3, high=0.6, medium=0.2) == (0.3, 0.6, 0.2)
    # An error of 0.3 beside a prior of 0.5 leaves 0.36 of its variance.
    assert thresholds(min_rmse=0.3, high=0.6, medium=0.2) == pytest.approx((0.6, 0.2, 0.64))
    assert thresholds(max_revealed=0.3, min_rmse=0.3, precision=0.1) == ()


@given(
    dimension=st.integers(1, 10**7),
    entries=st.integers(1, 10**9),
    samples=st.integers(1, 10**6),
    solver=st.sampled_from(["auto", *EIGENVALUE_SOLVERS]),
    inverse=st.sampled_from(["auto", *INVERSE_SOLVERS]),
)
def test_every_plan_can_be_carried_out(dimension, entries, samples, solver, inverse) -> None:
    if inverse == "dense" and solver not in ("auto", "dense"):
        return
    plan = choose_plan(AuditSettings(solver=solver, inverse=inverse), dimension, entries, samples, 1, CPU)
    assert plan.solver in EIGENVALUE_SOLVERS
    assert plan.inverse in {*INVERSE_SOLVERS, "quadrature"}
    assert plan.inverse != "quadrature" or plan.solver == "lanczos"
    assert plan.inverse != "dense" or plan.solver == "dense"
    assert plan.solver_reason
    assert plan.inverse_reason
    assert 0 < plan.failure < 1


def test_samples_of_an_upload_by_themselves_are_exact_where_that_is_affordable() -> None:
    mean = choose_plan(AuditSettings(), 32 * 784, 17038, 32, 1, CPU, UploadShape(32, separable=True))
    assert mean.solver == "lanczos"
    assert mean.of_samples is not None
    assert mean.of_samples.solver == "dense"
    small = choose_plan(AuditSettings(), 4 * 784, 17038, 32, 1, CPU, UploadShape(4, 5))
    assert (small.solver, small.of_samples) == ("dense", None)


def test_products_of_an_upload_are_those_that_its_training_affords() -> None:
    short, long = (
        choose_plan(AuditSettings(), 32 * 784, 17038, 32, 1, CPU, UploadShape(32, epochs)) for epochs in (5, 50)
    )
    for plan in (short, long):
        assert plan.solver == "lanczos"
        assert plan.max_probe_products is not None
        assert plan.of_samples is not None
        assert plan.of_samples.max_probe_products is not None
    assert (short.max_probe_products, short.of_samples.max_probe_products) == (128, 13)
    assert long.max_probe_products < short.max_probe_products
    # All columns through many epochs are too many, few as they are.
    many = choose_plan(AuditSettings(), 4 * 784, 17038, 4, 1, CPU, UploadShape(4, 50))
    assert many.solver == "lanczos"
    assert "50 epochs of training" in many.solver_reason
    # What is asked for is done.
    named = choose_plan(AuditSettings(precision=0.1), 32 * 784, 17038, 32, 1, CPU, UploadShape(32, 50))
    assert (named.max_matvecs, named.max_probe_products) == (1000, None)
    assert choose_plan(AuditSettings(max_matvecs=7), 32 * 784, 17038, 32, 1, CPU, UploadShape(32)).max_matvecs == 7
