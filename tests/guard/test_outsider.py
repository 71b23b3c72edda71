"""Policies that go by who knows none of the other samples of an upload, in reviews of whole rounds."""

from __future__ import annotations

import copy
import math
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from guard_cases import CLASSES, PRIOR_STD, images
from torch import Tensor, nn

from riskaudit.guard import Decision, Guard, Policy, outsider
from riskaudit.guard.outsider import TOO_FEW
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.release import Batch, make_release
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.training import LocalTraining

COUNT, STEPS, NOISE = 4, ((0, 1), (2, 3), (1, 2)), 0.02


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, CLASSES)).train()


def samples(copies: bool = False) -> tuple[Tensor, Tensor]:
    inputs, targets = images(COUNT)
    # One input under two labels.
    return (inputs[[0, 1, 2, 1]], (targets + torch.tensor([0, 0, 0, 1])) % CLASSES) if copies else (inputs, targets)


def reviewed(policy: Policy, noise: float | None = NOISE, copies: bool = False) -> Decision:
    model = network()
    guard = Guard(
        model, "cross-entropy", policy, prior_std=PRIOR_STD,
        release="gradient" if noise is None else f"gaussian:{noise}",
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    recording = guard.record(optimizer)
    inputs, targets = samples(copies)
    for step in STEPS:
        optimizer.zero_grad()
        recording.loss(inputs[list(step)], targets[list(step)]).backward()
        optimizer.step()
    if noise is not None:
        recording.add_noise()
    return recording.review()


@lru_cache
def jacobian(copies: bool = False) -> Tensor:
    """Of the difference of the weights with respect to all samples, [P, n d], in double precision."""
    training = LocalTraining(epochs=1, batch=None, recorded=STEPS, lr=0.5)
    release = make_release(copy.deepcopy(network()).double(), F.cross_entropy, ReleaseSpec(training=training))
    inputs, targets = samples(copies)
    identity = torch.eye(COUNT * 64, dtype=torch.float64)[None]
    return GenericJacobian(release, Batch(inputs.double(), targets, COUNT)).matmat(identity)[0]


def truth(noise: float) -> tuple[list[float], list[float]]:
    """Revealed fractions of all samples from the definition: the others unknown, and known."""
    return revealed(jacobian() / noise)


def revealed(J: Tensor) -> tuple[list[float], list[float]]:
    """The same of blocks of 64 columns, at noise of std 1."""
    prior = torch.eye(J.shape[1], dtype=torch.float64) / PRIOR_STD**2
    whole = torch.linalg.inv(J.mT @ J + prior)
    blocks = [slice(first, first + 64) for first in range(0, J.shape[1], 64)]
    alone = [torch.linalg.inv(J[:, block].mT @ J[:, block] + prior[block, block]) for block in blocks]
    return tuple(  # type: ignore[return-value]
        [1 - float(each.trace()) / 64 / PRIOR_STD**2 for each in covariances]
        for covariances in ([whole[block, block] for block in blocks], alone)
    )


def test_limits_are_held_against_the_outsider_and_both_are_told() -> None:
    outside, inside = truth(NOISE)
    assert max(outside) < 0.95 * max(inside)
    limit = 0.5 * (max(outside) + max(inside))
    decision = reviewed(Policy(max_revealed=limit, attacker="outsider", max_trainings=None))
    assert decision.action == "allow", decision.reasons
    assert any("outsider attacker" in reason for reason in decision.reasons)
    for exposure, out, known in zip(decision.exposures, outside, inside, strict=True):
        assert exposure.revealed.low - 1e-4 <= out <= exposure.revealed.high + 1e-4
        assert exposure.informed_revealed.low <= known <= exposure.informed_revealed.high
    entry = decision.log_entry({})["samples"][0]
    assert entry["informed_revealed"][1] > entry["revealed"][1]
    informed = reviewed(Policy(max_revealed=limit, max_trainings=None))
    assert informed.action == "block"
    assert informed.exposures[0].informed_revealed is None


@pytest.mark.parametrize(
    ("trainings", "column", "width"),
    [(600.0, outsider.COLUMN, 1e-6), (4000.0, math.inf, 0.25), (370.0, outsider.COLUMN, 1.0)],
    ids=["all columns", "many probes", "few probes"],
)
def test_what_a_bounded_review_says_holds(
    trainings: float, column: float, width: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outsider, "COLUMN", column)
    outside, _ = truth(NOISE)
    decision = reviewed(Policy(max_revealed=1.0, attacker="outsider", max_trainings=trainings))
    for exposure, out in zip(decision.exposures, outside, strict=True):
        assert exposure.revealed.low - 1e-4 <= out <= exposure.revealed.high + 1e-4
        assert exposure.revealed.high <= exposure.informed_revealed.high
    widths = [exposure.revealed.high - exposure.revealed.low for exposure in decision.exposures]
    assert max(widths) < width
    assert TOO_FEW not in decision.warnings


def test_where_trainings_are_too_few_the_informed_numbers_count_and_it_is_said() -> None:
    decision = reviewed(Policy(max_revealed=max(truth(NOISE)[0]) * 1.01, attacker="outsider"))
    assert decision.action == "block"
    assert TOO_FEW in decision.warnings
    (attacker,) = [reason for reason in decision.reasons if reason.startswith("limits are held against")]
    assert "informed attacker" in attacker


def test_sanitising_adds_what_the_outsider_asks_for() -> None:
    policy = Policy(max_revealed=0.2, on_violation="sanitise", attacker="outsider", max_trainings=None)
    decision = reviewed(policy, noise=None)
    assert decision.action == "sanitise", decision.reasons
    outside, inside = truth(decision.noise_std)
    assert max(outside) <= 0.2 < max(inside)
    assert max(truth(decision.noise_std / 1.1)[0]) > 0.2


def test_copies_of_one_sample_are_one_unknown() -> None:
    """Whoever takes them for two would find that they hide each other."""
    decision = reviewed(Policy(max_revealed=1.0, attacker="outsider", max_trainings=None), copies=True)
    assert decision.exposures[1].revealed == decision.exposures[3].revealed
    blocks = jacobian(copies=True).split(64, dim=1)
    outside, _ = revealed(torch.cat([blocks[0], blocks[1] + blocks[3], blocks[2]], dim=1) / NOISE)
    for exposure, out in zip(decision.exposures, outside, strict=False):
        assert exposure.revealed.high == pytest.approx(out, abs=1e-4)


@pytest.mark.parametrize("release", ["gaussian:0.01", "clip:1,gaussian:0.01"])
def test_who_reviews_samples_one_by_one_knows_no_outsider(release: str) -> None:
    model = network()
    policy = Policy(max_revealed=1.0, attacker="outsider", on_violation="warn")
    guard = Guard(model, "cross-entropy", policy, prior_std=PRIOR_STD, release=release, local_steps=1)
    inputs, targets = samples()
    gradients = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
    for decision in (guard.review((inputs, targets), gradients), guard.assess((inputs, targets))):
        assert decision.action == "block"
    assert guard.assess((inputs, targets)).reasons[0].startswith('expected attacker = "outsider"')


def test_a_mean_that_is_reviewed_as_a_whole_has_an_outsider() -> None:
    model = network()
    policy = Policy(max_revealed=1.0, attacker="outsider", max_trainings=None)
    guard = Guard(model, "cross-entropy", policy, prior_std=PRIOR_STD, release="mean:all,gaussian:0.01", local_steps=1)
    inputs, targets = samples()
    gradients = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
    noisy = [part + 0.01 * torch.randn(part.shape, generator=torch.Generator().manual_seed(1)) for part in gradients]
    decision = guard.review((inputs, targets), noisy)
    assert decision.action == "allow", decision.reasons
    assert all(each.revealed.high < each.informed_revealed.high for each in decision.exposures)
