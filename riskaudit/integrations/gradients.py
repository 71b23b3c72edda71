"""A model's gradients as an update, and back into their places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riskaudit.guard.noise.randomness import SecureNoise


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an update has a tensor for, in its order."""
    return [value for value in model.parameters() if value.requires_grad]


def gradients(model: nn.Module) -> list[Tensor]:
    """Gradients of all trainable parameters, as an update; zeros where a parameter has none."""
    return [torch.zeros_like(value) if value.grad is None else value.grad.detach() for value in trainable(model)]


def write(model: nn.Module, update: Sequence[Any] | Mapping[str, Any]) -> None:
    """Put an update in the gradients' places; a parameter without a gradient keeps none where the update has zeros.

    Raises:
        ValueError: not as many tensors as trainable parameters.
    """
    values = list(update.values() if isinstance(update, Mapping) else update)
    for parameter, value in zip(trainable(model), values, strict=True):
        tensor = torch.as_tensor(value).to(parameter).reshape(parameter.shape)
        if parameter.grad is not None or bool(tensor.any()):
            parameter.grad = tensor.clone()


def clear(parameters: Iterable[Tensor]) -> None:
    """Leave no gradient, so that an optimizer's step changes neither weights nor its own state."""
    for parameter in parameters:
        parameter.grad = None


def add_noise(model: nn.Module, std: float) -> None:
    """Add Gaussian noise to every entry of every trainable parameter's gradient, in place.

    It comes from the system's randomness: seeded alike, the processes of one training would add the same noise, and
    whoever knows the seed could take it off again. What results is rounded to a grid, see `SecureNoise`.

    Args:
        model: after its backward pass.
        std: per entry of the mean gradient, as in the guard's ``release="gaussian:STD"``.

    Raises:
        GuardError: gradients in a short dtype that are much larger than the noise; nothing is changed then.
    """
    noise = SecureNoise("gaussian", std)
    # All of them before the first is changed, since one may be refused.
    noisy = [noise.added(gradient) for gradient in gradients(model)]
    for parameter, gradient in zip(trainable(model), noisy, strict=True):
        parameter.grad = gradient
