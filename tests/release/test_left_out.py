"""Samples whose own losses train nothing: what the others make of the upload without them."""

from __future__ import annotations

from dataclasses import replace

import cases
import joint_oracles
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from riskaudit.release import Batch, make_release, with_batch_statistics


def network(normalised: bool = False) -> nn.Module:
    torch.manual_seed(3)
    norm = nn.BatchNorm1d(6) if normalised else nn.Identity()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), norm, nn.Tanh(), nn.Linear(6, 10)).double().eval()
    return with_batch_statistics(model) if normalised else model


def uploads(release, left_out: list[bool]) -> tuple[Batch, Batch]:
    data = cases.digits(4)
    batch = data.in_uploads(release.uploads(4))
    return batch, replace(batch, left_out=torch.tensor(left_out))


@pytest.mark.parametrize("text", ["mean:4", "clip:0.5,mean:4"])
def test_the_mean_is_of_the_others_shares(text: str) -> None:
    release = make_release(network(), F.cross_entropy, text)
    batch, without = uploads(release, [True, False, False, True])
    others = make_release(network(), F.cross_entropy, text.replace("4", "2"))
    rest = Batch(batch.inputs[1:3], batch.targets[1:3], 2)
    torch.testing.assert_close(release.mean(without), others.mean(rest) / 2, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(release.plain_mean(without), others.mean(rest) / 2, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("normalised", [False, True])
def test_training_sees_their_inputs_and_not_their_losses(normalised: bool) -> None:
    release = make_release(network(normalised), F.cross_entropy, "local:epochs=2:batch=2:lr=0.3:momentum=0.5")
    batch, without = uploads(release, [False, True, True, True])
    model = network(normalised)
    theta = start = joint_oracles.weights_of(model)
    velocity: dict[str, torch.Tensor] = {}
    for first in (0, 2, 0, 2):
        part = slice(first, first + 2)
        losses = F.cross_entropy(
            torch.func.functional_call(model, theta, (batch.inputs[part],)), batch.targets[part], reduction="none"
        )
        kept = (losses * ~without.left_out[part]).mean()
        slopes = dict(zip(theta, torch.autograd.grad(kept, list(theta.values()), create_graph=True), strict=True))
        velocity = {name: 0.5 * velocity[name] + slopes[name] for name in theta} if velocity else slopes
        theta = {name: theta[name] - 0.3 * velocity[name] for name in theta}
    expected = (joint_oracles.flat(start) - joint_oracles.flat(theta)).detach()
    torch.testing.assert_close(release.mean(without)[0], expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(release.plain_mean(without)[0], expected, rtol=1e-12, atol=1e-14)
    assert float((release.mean(batch)[0] - expected).norm()) > 0.1 * float(expected.norm())
