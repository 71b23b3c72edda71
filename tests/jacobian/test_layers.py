"""Both modes against plain autograd, layer by layer: torch's transforms are wrong, silently, for some."""

from __future__ import annotations

import cases
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from contracts.linear_operator import normal
from oracles import relative_difference
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from riskaudit.jacobian import GenericJacobian, generic
from riskaudit.release import PerSampleRelease


class Tokens(nn.Module):
    """The 6x6x3 image as 9 tokens of 12 features, one encoder block, mean over tokens."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.head = block, nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x.reshape(-1, 9, 12)).mean(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(12), nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.attention(normed, normed, normed, need_weights=False)[0]


class ExportedLayerNorm(nn.Module):
    """The operator as a torch.export program calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(12)), nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.layer_norm.default(x, [12], self.weight, self.bias)


def between(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Tanh(), nn.Flatten(), nn.LazyLinear(10))


LAYERS = {
    "layer-norm": lambda: between(nn.LayerNorm([8, 4, 4])),
    "layer-norm-without-weights": lambda: between(nn.LayerNorm([8, 4, 4], elementwise_affine=False)),
    "layer-norm-without-bias": lambda: between(nn.LayerNorm([8, 4, 4], bias=False)),
    "exported-layer-norm": lambda: Tokens(ExportedLayerNorm()),
    "instance-norm": lambda: between(nn.InstanceNorm2d(8, affine=True)),
    "instance-norm-running": lambda: between(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    "group-norm": lambda: between(nn.GroupNorm(2, 8)),
    "rms-norm": lambda: Tokens(nn.RMSNorm(12)),
    "batch-norm": lambda: between(nn.BatchNorm2d(8)),
    "attention": lambda: Tokens(Attention()),
    "transformer": lambda: Tokens(nn.TransformerEncoderLayer(12, 2, 16, activation="gelu", batch_first=True)),
    "gelu": lambda: between(nn.GELU()),
    "silu": lambda: between(nn.SiLU()),
    "softplus": lambda: between(nn.Softplus()),
    "prelu": lambda: between(nn.PReLU(8)),
    "leaky-relu": lambda: between(nn.LeakyReLU()),
    "hardswish": lambda: between(nn.Hardswish()),
    "max-pool": lambda: between(nn.MaxPool2d(2)),
    "avg-pool": lambda: between(nn.AvgPool2d(2)),
    "adaptive-pool": lambda: between(nn.AdaptiveAvgPool2d(3)),
    "strided": lambda: between(nn.Conv2d(8, 4, 3, stride=2, padding=1)),
    "grouped": lambda: between(nn.Conv2d(8, 8, 3, groups=4)),
    "dilated": lambda: between(nn.Conv2d(8, 8, 2, dilation=2)),
    "transposed": lambda: between(nn.ConvTranspose2d(8, 4, 3)),
    "upsampled": lambda: between(nn.Upsample(scale_factor=2, mode="bilinear")),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_differentiated_rightly(name: str) -> None:
    torch.manual_seed(7)
    model, batch = LAYERS[name]().double().eval(), cases.cifar(2, 6)
    model(batch.inputs)
    for parameter in model.parameters():
        # Weights of one and biases of zero hide mistakes.
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    pairs = zip(batch.inputs, batch.targets, strict=True)
    with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel with the second derivatives that the oracle takes
        expected = np.stack([oracles.jacobian(model, F.cross_entropy, x, target) for x, target in pairs])
    release = PerSampleRelease(model, F.cross_entropy)
    u = normal(2, expected.shape[1], seed=1)
    for forward in (True, False):
        operator = GenericJacobian(release, batch, forward)
        # The first products are made one by one, later ones by a linearisation that was traced.
        for number in range(generic.PLAIN_PUSHES + 2):
            v = normal(2, expected.shape[2], seed=number)
            assert relative_difference(operator.matvec(v).detach(), np.einsum("bmn,bn->bm", expected, v)) < 1e-10
        assert relative_difference(operator.rmatvec(u).detach(), np.einsum("bmn,bm->bn", expected, u)) < 1e-10
