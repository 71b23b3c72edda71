"""Networks as a server that wants to read its users' data changes them."""

from __future__ import annotations

import cases
import torch
from torch import Tensor, nn

from riskaudit.inputs.architectures.registry import ARCHITECTURES

CLASSES = 10


def inputs(count: int = 64) -> Tensor:
    """Digits, [count, 1, 8, 8], float32: a user's data; an attacker has others."""
    return cases.digits(count).inputs.float()


def public(count: int = 400) -> Tensor:
    """Other digits, which an attacker has."""
    return cases.digits(64 + count).inputs[64:].float()


def mlp(seed: int = 0, widths: tuple[int, ...] = (64, 96, 64, CLASSES)) -> nn.Module:
    torch.manual_seed(seed)
    return ARCHITECTURES["mlp"].build(widths=widths).eval()


def convnet(seed: int = 0) -> nn.Sequential:
    """Two convolutions, and three fully connected layers; x [B, 1, 8, 8]."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    ).eval()


def normalised(seed: int = 0) -> nn.Sequential:
    """Two convolutions with batch norm, whose statistics are those of the public digits."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6, momentum=1.0),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.BatchNorm2d(6, momentum=1.0),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, CLASSES),
    )
    with torch.no_grad():
        model(public())
    return model.eval()


def transformer(seed: int = 0) -> nn.Sequential:
    """A block with attention between two layers, on 8 rows of 8 pixels."""
    torch.manual_seed(seed)
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
    return nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 16), block, nn.Flatten(), nn.Linear(128, CLASSES)).eval()


@torch.no_grad()
def trained(model: nn.Module, epochs: int = 5, rate: float = 2e-3) -> nn.Module:
    """By Adam on the public digits."""
    with torch.enable_grad():
        data = cases.digits(464)
        images, labels = data.inputs[64:].float(), data.targets[64:]
        optimiser = torch.optim.Adam(model.parameters(), rate)
        generator = torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for places in torch.randperm(len(images), generator=generator).split(32):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(images[places]), labels[places]).backward()
                optimiser.step()
    return model


@torch.no_grad()
def entering(model: nn.Module, layer: nn.Linear) -> Tensor:
    """What a layer is given of the attacker's own data, [N, a]."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    model(public())
    handle.remove()
    return seen[0].reshape(-1, layer.in_features)


@torch.no_grad()
def plant_imprint(model: nn.Module, layer: nn.Linear, units: int | None = None, rescaled: bool = False) -> None:
    """Equal rows (or multiples) with biases at the quantiles of w . x: Robbing the Fed."""
    units = layer.out_features if units is None else units
    thresholds = torch.quantile(entering(model, layer).mean(1), torch.linspace(0, 1, units + 2)[1:-1])
    lengths = torch.linspace(0.5, 2.0, units) if rescaled else torch.ones(units)
    layer.weight[:units] = lengths.unsqueeze(1) / layer.in_features
    layer.bias[:units] = -thresholds * lengths


@torch.no_grad()
def plant_quantile_biases(model: nn.Module, layer: nn.Linear, batch_size: int) -> None:
    """Random rows, biases at the quantile 1 - 1/B: QBI."""
    layer.weight.normal_(generator=torch.Generator().manual_seed(1))
    layer.bias.copy_(-torch.quantile(entering(model, layer) @ layer.weight.T, 1 - 1 / batch_size, dim=0))


@torch.no_grad()
def plant_trap_weights(layer: nn.Linear, scale: float = 0.5) -> None:
    """Half of each row negative, half positive and smaller by a factor: Curious Abandon Honesty."""
    generator = torch.Generator().manual_seed(2)
    half = layer.in_features // 2
    for row in layer.weight:
        order = torch.randperm(layer.in_features, generator=generator)
        sizes = 0.1 * torch.randn(half, generator=generator).abs()
        row.zero_()
        row[order[:half]] = -sizes
        row[order[half : 2 * half]] = scale * sizes
    layer.bias.zero_()


@torch.no_grad()
def plant_identity(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    """Every input channel passed on at the middle of the kernel."""
    kernels = layer.weight.flatten(2) if layer.weight.ndim > 2 else layer.weight.unsqueeze(2)
    kernels.zero_()
    for channel in range(min(kernels.shape[:2])):
        kernels[channel, channel, kernels.shape[2] // 2] = gain


@torch.no_grad()
def plant_small_variances(model: nn.Module, factor: float = 1e-4) -> None:
    """Statistics of batch norms as of data that hardly varies, which multiply what passes by 1/sqrt(factor) each."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var *= factor


@torch.no_grad()
def plant_class_fishing(head: nn.Linear, target: int = 3) -> None:
    """Only one class keeps weights, the biases of all others are lifted: Fishing."""
    bias = head.bias[target].clone()
    head.weight.zero_()
    head.weight[target] = 0.5
    head.bias.fill_(1000.0)
    head.bias[target] = bias


@torch.no_grad()
def imprint_mlp(size: int = 64, units: int = 64, seed: int = 0) -> nn.Module:
    """One imprint layer on the whole input, whose units the head treats alike; float64, x [B, ...] of ``size``."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, units), nn.ReLU(), nn.Linear(units, CLASSES)).double().eval()
    imprint, head = model[1], model[3]
    assert isinstance(imprint, nn.Linear)
    assert isinstance(head, nn.Linear)
    imprint.weight.fill_(1 / size)
    imprint.bias.copy_(-torch.linspace(0.1, 0.6, units))
    head.weight.copy_(0.1 * head.weight[:, :1].expand(-1, units) * units**0.5)
    return model
