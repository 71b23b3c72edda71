"""Copies reveal of their one input what the sum of their Jacobians does, whatever steps and targets they have."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from guard_cases import NOISE, PRIOR_STD, gradient, guard_of, images, network
from torch import Tensor, nn

from riskaudit.guard import Guard, Policy
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.release import Batch, make_release

LIMIT, RATE = 0.3, 0.5
# Three of the first input: one in each of three mini-batches, or with other targets.
PATTERN = [0, 1, 0, 2, 0, 3]


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))


def batch_of(same_targets: bool) -> tuple[Tensor, Tensor]:
    inputs, targets = images(4)
    targets = targets[PATTERN].clone()
    if not same_targets:
        targets[2] = (targets[2] + 3) % 10
    return inputs[PATTERN], targets


def tied_information(model: nn.Module, spec: str, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """(sum J_j)^T (sum J_j) [d, d] over all copies of every sample's input, in double precision."""
    release = make_release(copy.deepcopy(model).double(), F.cross_entropy, spec)
    J = GenericJacobian(release, Batch(inputs.double(), targets, len(inputs)))
    blocks = torch.stack(J.matmat(torch.eye(J.shape[1], dtype=torch.float64)[None])[0].split(64, dim=1))
    same = torch.tensor(PATTERN)[:, None] == torch.tensor(PATTERN)
    sums = [blocks[row].sum(0) for row in same]
    return [each.mT @ each for each in sums]


def revealed(information: Tensor, noise_std: float) -> float:
    posterior = torch.linalg.inv(information / noise_std**2 + torch.eye(64, dtype=torch.float64) / PRIOR_STD**2)
    return 1 - float(posterior.trace()) / 64 / PRIOR_STD**2


@pytest.mark.parametrize("same_targets", [True, False])
@pytest.mark.parametrize("cheaply", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_sanitised_rounds_keep_the_limit_for_copies_in_different_steps(same_targets: bool, cheaply: bool) -> None:
    model, (inputs, targets) = small(), batch_of(same_targets)
    spec = f"local:epochs=1:batch=2:lr={RATE}"
    trained = copy.deepcopy(model)
    for part in torch.arange(6).split(2):
        loss = F.cross_entropy(trained(inputs[part]), targets[part])
        for value, slope in zip(
            trained.parameters(), torch.autograd.grad(loss, list(trained.parameters())), strict=True
        ):
            value.data -= RATE * slope
    update = [old.detach() - new.detach() for old, new in zip(model.parameters(), trained.parameters(), strict=True)]
    policy = Policy(max_revealed=LIMIT, on_violation="sanitise", **({} if cheaply else {"max_trainings": None}))
    guard = Guard(model, "cross-entropy", policy, prior_std=PRIOR_STD, release=spec)
    decision = guard.review((inputs, targets), update)
    assert decision.action == "sanitise", decision.reasons
    information = tied_information(model, spec, inputs, targets)
    truth = [revealed(each, decision.noise_std) for each in information]
    for exposure, exact in zip(decision.exposures, truth, strict=True):
        assert exposure.revealed.low - 1e-6 <= exact <= exposure.revealed.high + 1e-6
    assert max(truth) <= LIMIT
    assert cheaply or max(truth) > 0.8 * LIMIT


def test_copies_with_different_targets_in_a_gradient_reveal_what_their_sum_does() -> None:
    model, (inputs, targets) = network(), batch_of(same_targets=False)
    policy = Policy(max_revealed=1.0, max_gradients=None)
    decision = guard_of(model, policy).review((inputs, targets), gradient(model, (inputs, targets), NOISE))
    information = tied_information(model, "mean:all", inputs, targets)
    for exposure, each in zip(decision.exposures, information, strict=True):
        assert revealed(each, NOISE) <= exposure.revealed.high + 1e-6
