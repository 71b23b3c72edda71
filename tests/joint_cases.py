"""Joint uploads that tests share: releases, models, and what they are by the dense oracle."""

from __future__ import annotations

import cases
import joint_oracles
import oracles
import torch
from correlated_cases import prior_for
from torch import nn

from riskaudit.priors import Prior
from riskaudit.release import with_batch_statistics

SIGMA = 0.01


def network() -> nn.Module:
    """For digits of 8 x 8: 3 convolution channels, 1,072 parameters, float64."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(96, 10),
    ).double().eval()  # fmt: skip


def batch_norm_network() -> nn.Module:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(96, 10),
    ).double().eval()  # fmt: skip
    return with_batch_statistics(model)


def two_layers() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double().eval()


def head_mask() -> oracles.Change:
    count = sum(value.numel() for value in network().parameters())
    return lambda released: released[count - 970 :]


LOCAL = "local:epochs=2:batch=2:lr=0.2:momentum=0.5:weight_decay=0.1"
# Text without noise, model, and the same by the oracle.
CASES = {
    "mean of 4": ("mean:4", network, joint_oracles.mean_gradient),
    "clip, then mean": ("clip:1.0,mean:4", network, joint_oracles.mean_of(oracles.clipped(1.0))),
    "clip of the mean": (
        "mean:4,clip:0.5",
        network,
        joint_oracles.then(joint_oracles.mean_gradient, oracles.clipped(0.5)),
    ),
    "batch norm in train mode": ("mean:4", batch_norm_network, joint_oracles.mean_gradient),
    "momentum": (LOCAL, network, joint_oracles.trained(2, 2, 0.2, 0.5, 0.1)),
    "momentum of two steps": (
        "local:epochs=1:batch=2:lr=0.2:momentum=0.5",
        two_layers,
        joint_oracles.trained(1, 2, 0.2, 0.5),
    ),
    "local batch norm": ("local:epochs=2:batch=2:lr=0.2", batch_norm_network, joint_oracles.trained(2, 2, 0.2)),
    "Adam": (
        "local:epochs=1:batch=2:lr=0.01:optimizer=adam",
        network,
        joint_oracles.trained(1, 2, 0.01, optimizer="adam"),
    ),
    "shared head": ("mean:4,share:5.*", network, joint_oracles.then(joint_oracles.mean_gradient, head_mask())),
    "secure aggregation": (
        "local:epochs=2:batch=1:lr=0.2,secagg:2",
        network,
        joint_oracles.of_clients(2, joint_oracles.trained(2, 1, 0.2)),
    ),
}


def prior_named(name: str) -> Prior:
    return cases.PRIOR if name == "isotropic" else prior_for("lenet", name)
