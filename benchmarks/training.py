"""Small networks trained on real images within minutes, the same ones in every run on one machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riskaudit.inputs import Samples
from riskaudit.inputs.architectures.convolutional import WIDTH

BATCH_SIZE = 64


def lenet(shape: tuple[int, int, int], activation: type[nn.Module] = nn.Sigmoid, seed: int = 0) -> nn.Sequential:
    """The registered lenet's layers with another activation where wanted; weights uniform(-0.5, 0.5) for sigmoid.

    ReLU networks keep PyTorch's initialization, since they explode with the other.
    """
    torch.manual_seed(seed)
    channels, height, width = shape
    layers: list[nn.Module] = []
    for position, stride in enumerate((2, 2, 1, 1)):
        layers += [nn.Conv2d(channels if position == 0 else WIDTH, WIDTH, 5, stride, padding=2), activation()]
    features = WIDTH * -(-height // 4) * -(-width // 4)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 10))
    if activation is nn.Sigmoid:
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model.eval()


def train(
    model: nn.Module,
    samples: Samples,
    epochs: int,
    rate: float = 1e-3,
    seed: int = 0,
    optimiser_type: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    is_done: Callable[[nn.Module], bool] = lambda model: False,
) -> None:
    """By cross-entropy, in place, until a step after which ``is_done`` or the last epoch's."""
    optimiser = optimiser_type(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for places in torch.randperm(len(samples), generator=generator).split(BATCH_SIZE):
            optimiser.zero_grad()
            F.cross_entropy(model(samples.inputs[places].float()), samples.targets[places]).backward()
            optimiser.step()
            if is_done(model):
                model.eval()
                return
    model.eval()


def accuracy(model: nn.Module, samples: Samples) -> float:
    """Share of samples whose class the model finds."""
    with torch.no_grad():
        found: Tensor = model(samples.inputs.float()).argmax(-1) == samples.targets
    return float(found.double().mean())
