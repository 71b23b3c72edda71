"""Steps of a release on a whole round: the recording makes them of what leaves, or the release is refused."""

from __future__ import annotations

import pytest
import torch
from guard_cases import CLASSES, PRIOR_STD, images
from torch import nn

from riskaudit.errors import RiskauditError
from riskaudit.guard import Guard, Policy
from riskaudit.guard.recording import Recording

NORM = 0.05


def recorded(release: str, policy: Policy | None = None) -> tuple[nn.Module, Recording]:
    """A round of two steps whose difference of the weights is some ten times as long as `NORM`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, CLASSES)).train()
    guard = Guard(model, "cross-entropy", policy or Policy(max_revealed=1.0), prior_std=PRIOR_STD, release=release)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    recording = guard.record(optimizer)
    inputs, targets = images(4)
    for part in (slice(0, 2), slice(2, 4)):
        optimizer.zero_grad()
        recording.loss(inputs[part], targets[part]).backward()
        optimizer.step()
    return model, recording


def difference(model: nn.Module, recording: Recording) -> torch.Tensor:
    parts = [recording.start[name] - value.detach() for name, value in model.named_parameters()]
    return torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("release", [f"clip:{NORM}", f"clip:{NORM},gaussian:1e-6"])
def test_the_difference_is_clipped_before_the_noise(release: str) -> None:
    """The noise would hide that it wasn't, and the numbers are those of a clipped one."""
    model, recording = recorded(release)
    assert float(difference(model, recording).norm()) > 4 * NORM
    recording.add_noise()
    assert float(difference(model, recording).norm()) == pytest.approx(NORM, rel=1e-3)
    decision = recording.review()
    assert decision.action == "allow", decision.reasons


@pytest.mark.parametrize("release", ["mask:0.5,gaussian:1e-6", "local:epochs=1:batch=2:lr=0.5,prune:0.5,gaussian:1e-6"])
def test_entries_are_removed_before_the_noise(release: str) -> None:
    model, recording = recorded(release)
    recording.add_noise()
    left = difference(model, recording).abs() > 1e-4
    assert 0.3 < float(left.float().mean()) < 0.6
    decision = recording.review()
    assert decision.action == "allow", decision.reasons


def test_a_difference_that_noise_does_not_hide_is_withheld_unless_it_is_clipped() -> None:
    _, recording = recorded(f"clip:{NORM}")
    decision = recording.review()
    assert decision.update is None
    assert "isn't what this training makes" in decision.reasons[0]


def test_sanitising_adds_its_noise_to_the_clipped_difference() -> None:
    model, recording = recorded(f"clip:{NORM},gaussian:1e-4", Policy(max_revealed=0.3, on_violation="sanitise"))
    recording.add_noise()
    clipped = difference(model, recording)
    decision = recording.review()
    assert decision.action == "sanitise", decision.reasons
    sent = [recording.start[name] - value for name, value in decision.update.items()]
    noise = torch.cat([part.reshape(-1) for part in sent]) - clipped
    assert float(noise.std()) == pytest.approx(decision.noise_std, rel=0.2)


@pytest.mark.parametrize(
    "release",
    [
        "dropout:0.5,gaussian:0.1",
        "local:epochs=1:batch=2:lr=0.5,dropout:0.5,gaussian:0.1",
        "clip:1,local:epochs=1:batch=2:lr=0.5,gaussian:0.1",
        "local:epochs=1:batch=2:lr=0.5,gaussian:0.1,clip:1",
        "soteria:50,gaussian:0.1",
        "mean:all,clip:1,gaussian:0.1",
    ],
)
def test_steps_that_no_review_can_follow_are_refused(release: str) -> None:
    with pytest.raises(RiskauditError) as caught:
        recorded(release)
    assert str(caught.value).count(". ") == 0
    assert any(name in str(caught.value) for name in ("dropout", "local", "clip", "soteria", "mean"))
