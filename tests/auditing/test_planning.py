"""Which solver an audit takes, decided from sizes alone, and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskaudit.auditing import AuditSettings
from riskaudit.auditing.planning import DENSE_DIMENSION, choose_plan
from riskaudit.linalg import EIGENVALUE_SOLVERS, INVERSE_SOLVERS
from riskaudit.linalg.dense import JACOBIAN_BYTES

LARGEST_ENTRIES = JACOBIAN_BYTES // (8 * 784)


@pytest.mark.parametrize(
    ("dimension", "entries", "solver", "inverse", "reason"),
    [
        (64, 11_638, "dense", "dense", "all eigenvalues are affordable"),
        (784, LARGEST_ENTRIES, "dense", "dense", "all eigenvalues are affordable"),
        (784, LARGEST_ENTRIES + 1, "lanczos", "cg", "more than the"),
        (DENSE_DIMENSION, 100, "dense", "dense", "all eigenvalues are affordable"),
        (DENSE_DIMENSION + 1, 100, "lanczos", "cg", f"above the {DENSE_DIMENSION:,}"),
    ],
    ids=["demo", "memory-just-enough", "memory-just-not", "largest-d", "d-too-large"],
)
def test_auto(dimension, entries, solver, inverse, reason) -> None:
    plan = choose_plan(AuditSettings(), dimension, entries, 4)
    assert (plan.solver, plan.inverse) == (solver, inverse)
    assert reason in plan.solver_reason
    assert f"d = {dimension:,}" in plan.solver_reason
    assert not plan.inverse_chosen
    assert plan.max_matvecs == 50


@pytest.mark.parametrize("solver", sorted(EIGENVALUE_SOLVERS))
def test_a_named_solver_is_taken_whatever_it_costs(solver) -> None:
    plan = choose_plan(AuditSettings(solver=solver), 10**6, 10**8, 4)
    assert (plan.solver, plan.solver_reason) == (solver, "named by the user")
    assert plan.inverse == ("dense" if solver == "dense" else "cg")
    assert plan.max_matvecs == (50 if solver == "dense" else 1000)


@pytest.mark.parametrize("inverse", sorted(INVERSE_SOLVERS))
def test_a_named_inverse_is_taken_whatever_it_costs(inverse) -> None:
    plan = choose_plan(AuditSettings(inverse=inverse), 10**6, 10**8, 4)
    assert (plan.inverse, plan.inverse_reason) == (inverse, "named by the user")
    assert plan.solver == ("dense" if inverse == "dense" else "lanczos")
    assert plan.inverse_chosen
    assert plan.max_matvecs == 1000


def test_the_limit_on_products_that_the_user_gives_holds() -> None:
    assert choose_plan(AuditSettings(max_matvecs=7), 64, 100, 1).max_matvecs == 7
    assert choose_plan(AuditSettings(max_matvecs=7, solver="power"), 64, 100, 1).max_matvecs == 7


def test_confidence_is_shared_out_over_the_samples() -> None:
    plan = choose_plan(AuditSettings(confidence=0.95), 64, 100, 10)
    assert plan.failure == pytest.approx(0.005)


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
    plan = choose_plan(AuditSettings(solver=solver, inverse=inverse), dimension, entries, samples)
    assert plan.solver in EIGENVALUE_SOLVERS
    assert plan.inverse in INVERSE_SOLVERS
    assert plan.inverse != "dense" or plan.solver == "dense"
    assert plan.solver_reason
    assert plan.inverse_reason
    assert 0 < plan.failure < 1
