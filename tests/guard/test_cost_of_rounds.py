"""What a review of a round computes: no training that can't change what is decided."""

from __future__ import annotations

import secrets

import pytest
import torch
import torch.nn.functional as F
from guard_cases import CLASSES, PRIOR_STD, images
from torch import nn

from riskaudit.guard import Guard, Policy, joint_estimation
from riskaudit.guard.decision import Decision


def reviewed(model: nn.Module) -> Decision:
    guard = Guard(
        model.train(), "cross-entropy", Policy(max_revealed=1.0, buffers="reset"), prior_std=PRIOR_STD,
        release="gaussian:0.2",
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    recording = guard.record(optimizer)
    recording.loss(*images(8)).backward()
    optimizer.step()
    recording.add_noise()
    return recording.review()


@pytest.mark.parametrize("knows_samples", [False, True], ids=["untrained", "sure of its samples"])
def test_growth_is_worked_out_only_where_it_may_explain_a_doubt(
    knows_samples: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    growth_alone = joint_estimation.growth_alone
    monkeypatch.setattr(
        joint_estimation, "growth_alone", lambda *arguments: calls.append(1) or growth_alone(*arguments)
    )
    # Some samples alone are moved, which costs the most.
    monkeypatch.setattr(secrets, "randbelow", lambda below: below - 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, CLASSES))
    if knows_samples:
        inputs, targets = images(8)
        fitting = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(300):
            fitting.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            fitting.step()
    decision = reviewed(model)
    assert decision.update is not None, decision.reasons
    assert bool(calls) == knows_samples
