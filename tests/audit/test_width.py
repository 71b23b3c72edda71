"""Adam's steps bend over the width of the error that is read off their derivative: such numbers are none."""

from __future__ import annotations

import pytest
import torch
from scan_cases import demo_samples
from torch import nn

import riskaudit
from riskaudit.errors import SamplesError
from riskaudit.results import AuditResult

RATE = 0.01
ADAM, SGD = f"local:epochs=1:batch=4:lr={RATE}:optimizer=adam", "local:epochs=1:batch=4:lr=0.1"


def network(activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), activation(), nn.Linear(32, 10))


def audited(release: str, noise: float, model: nn.Module | None = None, **options: object) -> AuditResult:
    return riskaudit.audit(
        network() if model is None else model, demo_samples(4), release=f"{release},gaussian:{noise}", **options
    )


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize(
    ("factor", "solver", "words"),
    [
        (0.01, "dense", "it tells more than that"),
        (30.0, "dense", "it tells less than that"),
        (100.0, "lanczos", "it tells less than that"),
    ],
)
def test_adam_is_not_assessed_where_its_derivative_does_not_hold(
    factor: float, solver: str, words: str, activation: type[nn.Module]
) -> None:
    with pytest.raises(SamplesError, match=words) as caught:
        audited(ADAM, factor * RATE, network(activation), solver=solver)
    assert "optimizer=sgd" in str(caught.value)


def test_iterations_that_resolve_nothing_claim_no_protection() -> None:
    for row in audited(ADAM, 0.01 * RATE, solver="lanczos").samples:
        assert row.verdict == "high"
        assert row.proxies["revealed_fraction"].high > 0.99


@pytest.mark.parametrize(("release", "noise"), [(ADAM, RATE), (SGD, 0.3 * RATE), (SGD, 30 * RATE), ("mean:4", 0.01)])
def test_others_are_as_before(release: str, noise: float) -> None:
    assert {row.status for row in audited(release, noise).samples} == {"exact"}
