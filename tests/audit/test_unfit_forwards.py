"""Models whose forward differs from call to call, or works in a precision of its own, are told so."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import riskaudit
from riskaudit.errors import ArchitectureError, RiskauditError
from riskaudit.guard import Guard, Policy


class Net(nn.Module):
    """Two layers with something between or before them."""

    def __init__(self, change: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.change, self.calls = change, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(torch.tanh(self.change(self, self.first(x))))


UNREPEATABLE: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "normal": lambda net, h: h + 0.1 * torch.randn_like(h),
    "dropout": lambda net, h: F.dropout(h),
    "numpy": lambda net, h: h + torch.as_tensor(np.random.default_rng().normal(size=16)).to(h),
    "python": lambda net, h: h * random.random(),
    "time": lambda net, h: h * (2 + math.sin(1e6 * time.perf_counter())),
    "counter": lambda net, h: h * (1 + 0.1 * net.calls),
}


def batch(count: int) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 8, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 3


def scan(model: nn.Module, count: int = 3, dtype: str = "float64") -> riskaudit.AuditResult:
    samples = riskaudit.Samples.from_tensors(*batch(count))
    return riskaudit.audit(model.eval(), samples, release="gaussian:0.01", prior_std=0.3, dtype=dtype)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", UNREPEATABLE)
def test_scan_names_a_forward_that_differs_from_call_to_call(name: str, count: int) -> None:
    with pytest.raises(RiskauditError, match="two passes of the model at the same sample differ"):
        scan(Net(UNREPEATABLE[name]), count)


@pytest.mark.parametrize("name", UNREPEATABLE)
def test_guard_names_a_forward_that_differs_from_call_to_call(name: str) -> None:
    model, (inputs, targets) = Net(UNREPEATABLE[name]).eval(), batch(3)
    gradients = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
    policy = Policy(max_revealed=1.0, unknown_layers="differentiate")
    guard = Guard(model, F.cross_entropy, policy, prior_std=0.3, release="gaussian:1", local_steps=1)
    decision = guard.review((inputs, targets), [each + torch.randn_like(each) for each in gradients])
    assert decision.action == "block"
    assert any("two passes of the model" in reason for reason in decision.reasons), decision.reasons


# A forward that only works in single precision, and what it becomes when the advice is followed.
PRECISIONS: dict[str, tuple[Callable[[Net, Tensor], Tensor], Callable[[Net, Tensor], Tensor]]] = {
    "matrix": (lambda net, h: h @ torch.eye(16), lambda net, h: h @ torch.eye(16).to(h.dtype)),
    "convolution": (
        lambda net, h: F.conv1d(h[:, None], torch.ones(1, 1, 1))[:, 0],
        lambda net, h: F.conv1d(h[:, None], torch.ones(1, 1, 1).to(h.dtype))[:, 0],
    ),
}


def test_a_forward_that_converts_to_single_precision_is_audited_in_double() -> None:
    converted, plain = (scan(Net(forward)) for forward in (lambda net, h: h.float(), lambda net, h: h))
    values = [[row.proxies["posterior_rmse"].value for row in result.samples] for result in (converted, plain)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize("name", PRECISIONS)
def test_advice_on_precisions_leads_to_a_result(name: str) -> None:
    fixed, following = PRECISIONS[name]
    with pytest.raises(ArchitectureError, match=r"write \.to\(x\.dtype\) there, or audit in .*dtype=float32"):
        scan(Net(fixed))
    for result in (scan(Net(fixed), dtype="float32"), scan(Net(following))):
        assert {row.status for row in result.samples} == {"exact"}
