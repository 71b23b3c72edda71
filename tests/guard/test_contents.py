"""One sample in any dtype and form of target, and what was sanitised once, in whatever form it comes again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from guard_cases import CLASSES, gradient, guard_of, images, network
from hypothesis import given, settings
from hypothesis import strategies as st

from riskaudit.guard import Policy
from riskaudit.guard.identifiers import sample_digest
from riskaudit.guard.noise.memory import NoiseMemory

SANITISE = Policy(max_revealed=0.01, on_violation="sanitise")


def one_hot(targets: torch.Tensor) -> torch.Tensor:
    return F.one_hot(targets, CLASSES).float()


FORMS = {
    "int32": lambda x, y: (x, y.int()),
    "int16": lambda x, y: (x, y.short()),
    "int8": lambda x, y: (x, y.to(torch.int8)),
    "uint8": lambda x, y: (x, y.to(torch.uint8)),
    "one-hot": lambda x, y: (x, one_hot(y)),
    "one-hot in double": lambda x, y: (x, one_hot(y).double()),
    "nearly one-hot": lambda x, y: (x, one_hot(y) * (1 - 1e-6) + 1e-7),
    "smoothed a little": lambda x, y: (x, one_hot(y) * (1 - 1e-3) + 1e-3 / CLASSES),
    "double inputs": lambda x, y: (x.double(), y),
    "negative zeros": lambda x, y: (torch.where(x == 0, -x, x), y),
    "nearly the inputs": lambda x, y: (x + 1e-6, y),
    "another order": lambda x, y: (x.flip(0), y.flip(0)),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("first", ["as it is", "one-hot"])
def test_a_form_makes_no_second_draw(first) -> None:
    model, (inputs, targets) = network(), images()
    inputs[:, :, 0] = 0.0
    guard = guard_of(model, SANITISE, None, ledger=None)
    update = gradient(model, (inputs, targets))
    begun = (inputs, targets if first == "as it is" else one_hot(targets))
    decision = guard.review(begun, update)
    assert decision.action == "sanitise", decision.reasons
    draws = [decision.update]
    for name, form in FORMS.items():
        again = guard.review(form(inputs, targets), update)
        assert again.update is None or "sanitised before" in again.reasons[-1], (name, again.reasons)
        draws += [] if again.update is None else [again.update]
    assert len(draws) > len(FORMS) / 2
    assert all(torch.equal(one, own) for draw in draws for one, own in zip(draw, draws[0], strict=True))


def test_other_labels_and_weights_are_another_update() -> None:
    model, (inputs, targets) = network(), images()
    guard = guard_of(model, SANITISE, None)
    draws = []
    for labels in (targets, targets.flip(0), one_hot(targets) * 0.8 + 0.05):
        loss = F.cross_entropy(model(inputs), labels)
        update = list(torch.autograd.grad(loss, list(model.parameters())))
        draws.append(guard.review((inputs, labels), update))
    with torch.no_grad():
        model[0].weight += 0.01
    draws.append(guard.review((inputs, targets), gradient(model, (inputs, targets))))
    assert not any("sanitised before" in decision.reasons[-1] for decision in draws)
    assert len({float(decision.update[0].sum()) for decision in draws}) == len(draws)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 7]), st.booleans())
def test_digests_are_of_values(seed, classes, mapped) -> None:
    random = torch.Generator().manual_seed(seed)
    sample = torch.randn(2, 3, generator=random).half()
    label = torch.randint(classes, (4, 5) if mapped else (), generator=random)
    dense = F.one_hot(label, classes).movedim(-1, 0)
    floats, integers = (torch.float16, torch.float64), (torch.uint8, torch.float32)
    digests = {sample_digest(sample.to(one), label.to(other)) for one in floats for other in integers}
    digests |= {sample_digest(sample, dense.to(other)) for other in (torch.bool, torch.int32, torch.float64)}
    assert len(digests) == 1
    assert sample_digest(sample, (label + 1) % classes) not in digests
    assert sample_digest(sample + 1, label) not in digests


@pytest.mark.parametrize("size", [3, 100, 10_000])
def test_nearly_equal_updates_at_the_same_weights_are_one(size) -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        held, mean, other = NoiseMemory(), *map(torch.tensor, random.standard_normal((2, size)))
        away = other * (mean.norm() / other.norm())
        assert held.key_of_similar(mean, "w", "own") == "own"
        held.remember_clean(mean, "w", "first")
        assert held.key_of_similar(mean, "w", "own") == held.key_of_similar(mean + 5e-3 * away, "w", "own") == "first"
        assert held.key_of_similar(mean + 3e-2 * away, "w", "own") == held.key_of_similar(-mean, "w", "own") == "own"
        assert held.key_of_similar(mean, "other weights", "own") == "own"
