"""Choosing the samples before there is an update, and updates that are sums."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from riskaudit.errors import SettingsError
from riskaudit.guard import AuditLog, Guard, Policy
from riskaudit.guard.identifiers import hidden_id

CLIP, STD = 0.5, 0.25
# The first half of the batch keeps it (at most 0.01 in a review), the other doesn't (at least 0.1).
DROP = Policy(max_revealed=0.05, on_violation="sanitise", sanitiser="drop")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Of which the first half is hidden by clipping: large inputs have large gradients."""
    inputs = torch.rand(count, 16, generator=torch.Generator().manual_seed(1))
    inputs[: count // 2] *= 100
    return inputs, torch.arange(count) % 3


def guard(net: nn.Module, policy: Policy, reduction: str = "sum", std: float = STD, **options) -> Guard:
    release = f"clip:{CLIP},gaussian:{std}"
    return Guard(
        net, "cross-entropy", policy, prior_std=0.3, release=release, reduction=reduction, local_steps=1, **options
    )


def summed(net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Sum of clipped gradients, without noise."""
    total = [torch.zeros_like(value) for value in net.parameters()]
    for one, target in zip(inputs, targets, strict=True):
        parts = torch.autograd.grad(F.cross_entropy(net(one[None]), target[None]), list(net.parameters()))
        norm = torch.cat([part.reshape(-1) for part in parts]).norm()
        scale = min(1.0, CLIP / float(norm))
        total = [held + scale * part for held, part in zip(total, parts, strict=True)]
    return total


def noised(tensors: list[torch.Tensor], std: float = STD) -> list[torch.Tensor]:
    return [tensor + std * torch.randn_like(tensor) for tensor in tensors]


def test_a_sum_reveals_what_the_mean_with_as_much_less_noise_does() -> None:
    net, policy = model(), Policy(max_revealed=1.0)
    of_sum = guard(net, policy).assess(batch())
    of_mean = guard(net, policy, "mean", STD / 6).assess(batch())
    # Intervals are from random probes: they overlap, since both hold the same number.
    for one, other in zip(of_sum.exposures, of_mean.exposures, strict=True):
        assert one.revealed.low <= other.revealed.high
        assert other.revealed.low <= one.revealed.high


@pytest.mark.parametrize("release", ["", "clip:0.5,"], ids=["gradient", "clipped"])
def test_a_sum_is_reviewed_as_a_sum(release) -> None:
    net = model()
    inputs, targets = batch()
    if release:
        total = summed(net, inputs, targets)
    else:
        loss = F.cross_entropy(net(inputs), targets, reduction="sum")
        total = list(torch.autograd.grad(loss, list(net.parameters())))
    actions = {}
    for reduction in ("sum", "mean"):
        one = Guard(
            net, "cross-entropy", Policy(max_revealed=1.0), prior_std=0.3, release=f"{release}gaussian:0.01",
            reduction=reduction, local_steps=1,
        )  # fmt: skip
        actions[reduction] = one.review((inputs, targets), noised(total, 0.01)).action
    assert actions == {"sum": "allow", "mean": "block"}


def test_noise_on_a_sum_is_the_least_for_its_samples() -> None:
    net = model()
    inputs, targets = batch()
    policy = Policy(max_revealed=0.05, on_violation="sanitise")
    of_sum = guard(net, policy).review((inputs, targets), noised(summed(net, inputs, targets)))
    mean = noised([tensor / 6 for tensor in summed(net, inputs, targets)], STD / 6)
    of_mean = guard(net, policy, "mean", STD / 6).review((inputs, targets), mean)
    assert of_sum.action == of_mean.action == "sanitise"
    # Each is at most a few per cent above the least.
    assert of_sum.noise_std == pytest.approx(6 * of_mean.noise_std, rel=0.15)


def test_the_samples_kept_are_reviewed_as_assessed(tmp_path) -> None:
    net, log = model(), AuditLog(tmp_path / "log")
    one = guard(net, DROP, log=log)
    inputs, targets = batch()
    assessed = one.assess((inputs, targets))
    assert assessed.action == "sanitise"
    assert assessed.kept == [0, 1, 2]
    assert not log.path.exists()
    update = noised(summed(net, inputs[assessed.kept], targets[assessed.kept]))
    decision = one.review((inputs, targets), update, assessment=assessed)
    assert decision.action == "sanitise", decision.reasons
    assert decision.dropped == 6 - len(assessed.kept)
    assert all(torch.equal(sent, given) for sent, given in zip(decision.update, update, strict=True))
    assert [exposure.revealed for exposure in decision.exposures] == [
        exposure.revealed for exposure in assessed.exposures
    ]
    (entry,) = log.entries()
    assert (entry["decision"], entry["dropped"]) == ("sanitise", decision.dropped)


def test_an_update_with_the_dropped_samples_in_it_is_blocked() -> None:
    # Hardly any noise beside the gradients, so that it shows which samples are in.
    net = model()
    inputs, targets = batch()
    every = guard(net, Policy(max_revealed=1.0), std=1e-3).assess((inputs, targets))
    ends = sorted(one.revealed.high for one in every.exposures)
    gaps = [after - before for before, after in itertools.pairwise(ends)]
    limit = ends[gaps.index(max(gaps))] + max(gaps) / 2
    one = guard(net, replace(DROP, max_revealed=limit), std=1e-3)
    assessed = one.assess((inputs, targets))
    assert 0 < len(assessed.kept) < 6
    decision = one.review((inputs, targets), noised(summed(net, inputs, targets), 1e-3), assessment=assessed)
    assert decision.action == "block"
    assert "isn't noise" in decision.reasons[0]


def test_an_assessment_is_of_one_batch_and_one_model() -> None:
    net = model()
    one = guard(net, Policy(max_revealed=0.999))
    inputs, targets = batch()
    assessed = one.assess((inputs, targets))
    other = noised(summed(net, inputs.flip(0), targets.flip(0)))
    decision = one.review((inputs.flip(0), targets.flip(0)), other, assessment=assessed)
    assert "the one that was assessed" in decision.reasons[0]
    with torch.no_grad():
        net[0].weight += 0.1
    decision = one.review((inputs, targets), noised(summed(net, inputs, targets)), assessment=assessed)
    assert "the one that was assessed" in decision.reasons[0]


@pytest.mark.parametrize("sanitiser", ["block", "noise", "drop"])
def test_a_batch_over_the_limit_is_blocked_and_logged(sanitiser, tmp_path) -> None:
    strict = Policy(max_revealed=1e-9)
    if sanitiser != "block":
        strict = replace(strict, on_violation="sanitise", sanitiser=sanitiser)
    log = AuditLog(tmp_path / "log")
    assessed = guard(model(), strict, log=log).assess(batch())
    assert assessed.action == "block"
    assert assessed.kept == []
    assert [entry["decision"] for entry in log.entries()] == ["block"]


def test_whatever_goes_wrong_blocks_without_its_words() -> None:
    def secret(outputs, targets):
        raise ValueError("a row of the private table")

    one = Guard(model(), secret, Policy(max_revealed=0.5), prior_std=0.3, release="gaussian:0.1")
    assessed = one.assess(batch())
    assert assessed.action == "block"
    assert "ValueError" in assessed.reasons[0]
    assert "private" not in assessed.reasons[0]
    assert guard(model(), DROP).assess((torch.zeros(0, 16), torch.zeros(0))).action == "block"


def test_what_an_assessment_blocked_can_not_be_reviewed() -> None:
    net = model()
    one = guard(net, Policy(max_revealed=1e-9))
    inputs, targets = batch()
    assessed = one.assess((inputs, targets))
    decision = one.review((inputs, targets), noised(summed(net, inputs, targets)), assessment=assessed)
    assert ["no sample" in reason for reason in decision.reasons] == [True]


def test_with_a_ledger_the_samples_kept_are_counted(tmp_path) -> None:
    net = model()
    one = guard(net, replace(DROP, max_total_revealed=1.0), ledger=tmp_path / "ledger")
    inputs, targets = batch()
    names = [f"sample {place}" for place in range(6)]
    expected = dict.fromkeys(names, 0)
    for _ in range(2):
        assessed = one.assess((inputs, targets), ids=names)
        update = noised(summed(net, inputs[assessed.kept], targets[assessed.kept]))
        decision = one.review((inputs, targets), update, ids=names, assessment=assessed)
        assert decision.action in ("allow", "sanitise"), decision.reasons
        for place in assessed.kept:
            expected[names[place]] += 1
    counted = {name: account.rounds for name, account in one.ledger.every_account()}
    assert counted == {hidden_id(name, one.ledger.salt): count for name, count in expected.items() if count}
    one.close()


ONE_EACH, ALL_ONE, PAIRS = list("abcdef"), ["z"] * 6, list("aabbcc")


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("first", "then"),
    [(None, ALL_ONE), (ONE_EACH, ALL_ONE), (ALL_ONE, ONE_EACH), (ALL_ONE, None), (PAIRS, list("abbcca"))],
    ids=["named later", "joined", "split", "unnamed", "other pairs"],
)
@pytest.mark.parametrize("counted", [False, True], ids=["alone", "ledger"])
def test_an_assessment_holds_for_those_who_count_together_as_then(first, then, counted, tmp_path) -> None:
    net, (inputs, targets) = model(), batch()
    torch.manual_seed(0)
    totals = {}
    for way in ("assessed", "direct"):
        options = {"ledger": tmp_path / way} if counted else {}
        one = guard(net, Policy(max_revealed=1.0), **options)
        assessed = one.assess((inputs, targets), ids=first) if way == "assessed" else None
        update = noised(summed(net, inputs, targets))
        decision = one.review((inputs, targets), update, ids=then, assessment=assessed)
        assert decision.update is not None, decision.reasons
        totals[way] = [exposure.total_revealed if counted else exposure.revealed for exposure in decision.exposures]
        one.close()
    for one, other in zip(totals["assessed"], totals["direct"], strict=True):
        # Six that count as one have 36 times the small numbers. Upper ends are from random probes, lower ones nearly
        # the same whatever they are; a ledger adds up the upper ends alone.
        left, right = (one.high, other.high) if counted else (one.low, other.low)
        assert right / 15 < left < 15 * right
        assert max(one.low, other.low) <= min(one.high, other.high)


def test_an_assessment_under_other_names_charges_the_accounts_of_the_review(tmp_path) -> None:
    net, (inputs, targets) = model(), batch()
    one = guard(net, Policy(max_revealed=1.0), ledger=tmp_path / "ledger")
    for then in (ONE_EACH, list("pqrstu"), ONE_EACH):
        assessed = one.assess((inputs, targets), ids=list("uvwxyz"))
        decision = one.review(
            (inputs, targets), noised(summed(net, inputs, targets)), ids=then, assessment=assessed
        )  # fmt: skip
        assert decision.update is not None, decision.reasons
    rounds = {name: account.rounds for name, account in one.ledger.every_account()}
    assert [rounds[hidden_id(name, one.ledger.salt)] for name in "afpu"] == [2, 2, 1, 1]
    one.close()


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(SettingsError, match="mean or sum"):
        guard(model(), DROP, "max")


def test_withhold_logs_an_exception_without_its_words(tmp_path) -> None:
    log = AuditLog(tmp_path / "log")
    decision = guard(model(), DROP, log=log).withhold(ValueError("a private row"))
    assert decision.update is None
    assert "ValueError" in decision.reasons[0]
    assert "private" not in decision.reasons[0]
    assert len(list(log.entries())) == 1
