"""A batch's graphs are gone with the batch, without waiting for the garbage collector: memory doesn't grow."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import cases
import pytest

from riskaudit.inputs import Samples
from riskaudit.jacobian import StructuredJacobian
from riskaudit.priors import Prior, fit_prior
from riskaudit.proxies import PROXIES
from riskaudit.sensitivity import Linearisation, Plan

PLANS: dict[str, Callable[[], Plan]] = {
    "dense": cases.plan,
    "lanczos": lambda: cases.plan("lanczos", "quadrature", max_matvecs=8),
    "power": lambda: cases.plan("power", "cg", max_matvecs=8),
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def correlated() -> Prior:
    known = cases.digits(60)
    return fit_prior(Samples.from_tensors(known.inputs, known.targets), "class")


def scored(how: Plan, prior: Prior) -> Linearisation:
    at = cases.linearise(cases.lenet(8), cases.mnist(3, 8), "clip:1,gaussian:0.01", how=how, prior=prior)
    for proxy in PROXIES.values():
        proxy.score(at)
    return at


@pytest.mark.slow
@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("prior", [lambda: cases.PRIOR, correlated], ids=["isotropic", "class"])
@pytest.mark.parametrize("name", PLANS)
def test_nothing_of_a_batch_outlives_it(name: str, prior: Callable[[], Prior]) -> None:
    # The first use of all imports modules and keeps frames of its own.
    scored(PLANS[name](), prior())
    at = scored(PLANS[name](), prior())
    assert isinstance(at.jacobian, StructuredJacobian)
    information = at.information
    held = [weakref.ref(at), weakref.ref(at.jacobian), weakref.ref(at.jacobian._signals)]
    held += [weakref.ref(part) for part in at.jacobian._signals.parts]
    del at
    assert [one() for one in held] == [None] * len(held)
    # What is kept for the noise curve says something still.
    assert information is None or information[0].revealed(0.01).high > 0
