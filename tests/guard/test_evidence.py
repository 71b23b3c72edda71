"""A sample whose derivative was doubted once stays doubted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from guard_cases import NOISE, gradient, guard_of, images, network

from riskaudit.audit.evidence import Difference
from riskaudit.guard import Policy, evidence

LENIENT = Policy(max_revealed=0.999)
REASONS = {
    "transpose": {"adjoint": False},
    "tiny step": {"tiny": (Difference(1.0, 1e3, 0.0),)},
    "likely input": {"likely": (Difference(1.0, 1e3, 0.0),)},
}


@pytest.fixture(autouse=True)
def nothing_remembered():
    evidence._doubts.clear()
    yield
    evidence._doubts.clear()


@pytest.fixture
def doubted_once(monkeypatch):
    """Evidence against the third sample of the first batch that is examined."""

    def patch(**changes):
        examine, pending = evidence.examine, [changes]

        def once(*args, **kwargs):
            examined = examine(*args, **kwargs)
            if pending:
                examined[2] = replace(examined[2], **pending.pop())
            return examined

        monkeypatch.setattr(evidence, "examine", once)
        # What a review may look at more precisely, in a sample that is drawn, would take the place of the evidence.
        monkeypatch.setattr(evidence, "precise_differences", lambda maker, batch: [None])

    return patch


def reviewed(guard, model, batch):
    return guard.review(batch, gradient(model, batch, NOISE))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("reason", sorted(REASONS))
@pytest.mark.parametrize("fresh", [False, True], ids=["same guard", "new guard"])
def test_a_doubted_sample_stays_doubted(reason, fresh, doubted_once) -> None:
    model, (inputs, targets) = network(), images()
    guard = guard_of(model, LENIENT)
    doubted_once(**REASONS[reason])
    first = reviewed(guard, model, (inputs, targets))
    assert first.action == "block"
    guard = guard_of(model, LENIENT) if fresh else guard
    again = reviewed(guard, model, (inputs, targets))
    assert (again.action, again.reasons[-1]) == ("block", first.reasons[-1])
    assert [exposure.revealed is None for exposure in again.exposures] == [place == 2 for place in range(6)]
    # In another batch and order it is the same sample; without it the others pass.
    assert reviewed(guard, model, (inputs[1:4].flip(0), targets[1:4].flip(0))).action == "block"
    others = [0, 1, 3, 4, 5]
    assert reviewed(guard, model, (inputs[others], targets[others])).action == "allow"


def test_doubt_is_of_one_model_and_ends_with_it(doubted_once) -> None:
    model, batch = network(), images()
    guard = guard_of(model, LENIENT)
    doubted_once(adjoint=False)
    assert reviewed(guard, model, batch).action == "block"
    with torch.no_grad():
        model[0].weight += 0.01
    assert reviewed(guard, model, batch).action == "allow"


def test_noise_that_covers_what_was_doubted_is_enough_later_too(doubted_once) -> None:
    model, batch = network(), images()
    # What is unseen is covered by noise of 10 per entry of a sample's own release, not by the client's.
    unseen = 10 * (1e-3 * 64) ** 0.5
    doubted_once(likely=(Difference(1.0, unseen, 0.0),))
    guard = guard_of(model, LENIENT)
    assert reviewed(guard, model, batch).action == "block"
    assert reviewed(guard, model, batch).action == "block"
    key = next(iter(evidence._doubts))
    (held,) = evidence._doubts[key]
    new = replace(held, likely=())
    assert evidence.lasting_doubt(new, key, None, 1.0) is not None
    assert evidence.lasting_doubt(new, key, None, 11.0) is None


def test_what_is_held_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(evidence, "SAMPLES", 3)
    bad = evidence.Evidence(4, (), (), adjoint=False)
    for place in range(5):
        for _ in range(20):
            assert evidence.lasting_doubt(replace(bad), bytes([place]), None, 1.0) is not None
    assert list(evidence._doubts) == [b"\2", b"\3", b"\4"]
    assert max(map(len, evidence._doubts.values())) <= evidence.EACH
