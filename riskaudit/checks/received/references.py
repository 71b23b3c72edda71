"""The same architecture freshly initialised, as the schemes in use do it.

    pytorch   every layer's own `reset_parameters`
    kaiming   normal, variance 2 / fan_in (He et al., ICCV 2015)
    xavier    uniform, variance 2 / (fan_in + fan_out) (Glorot and Bengio, AISTATS 2010)
    lecun     normal, variance 1 / fan_in (LeCun et al., 1998)

Biases are 0 but for ``pytorch``'s, norms pass on what they get. The same seed gives the same models on every machine
with this version of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from riskaudit.copying import copy_model

SEEDS = 3


def _pytorch(weight: Tensor) -> None:
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def _kaiming(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _xavier(weight: Tensor) -> None:
    nn.init.xavier_uniform_(weight)


def _lecun(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="linear")


SCHEMES: dict[str, Callable[[Tensor], None]] = {
    "pytorch": _pytorch,
    "kaiming": _kaiming,
    "xavier": _xavier,
    "lecun": _lecun,
}


def fresh_models(model: nn.Module, seed: int, seeds: int = SEEDS) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a model with weights drawn anew, by scheme; the model itself stays as it is.

    Args:
        model: in eval mode.
        seed: of the draws; nobody else's random state moves.
        seeds: draws per scheme.

    Raises:
        ArchitectureError: the model can't be copied.
    """
    for number in range(seeds):
        for scheme, draw in SCHEMES.items():
            copied = copy_model(model)
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                # The CPU's generator alone.
                torch.default_generator.manual_seed(seed + number)
                _initialise(copied, scheme, draw)
            yield scheme, copied


def _drawn(value: Tensor, draw: Callable[[Tensor], None]) -> Tensor:
    """New numbers for a parameter, the same on every device."""
    drawn = torch.empty(value.shape, dtype=value.dtype)
    draw(drawn)
    return drawn


def _initialise(model: nn.Module, scheme: str, draw: Callable[[Tensor], None]) -> None:
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        held = list(module.parameters(recurse=False))
        # Layers draw where their weights are; on a GPU that would move the random state of whoever trains there.
        if scheme == "pytorch" and callable(reset) and held and not any(value.is_cuda for value in held):
            try:
                reset()
                continue
            except Exception:  # third-party code may ask for arguments, or fail
                pass
        norm = hasattr(module, "running_mean") or isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for name, value in module.named_parameters(recurse=False):
            if not value.is_floating_point() or not value.numel():
                continue
            if value.ndim >= 2:
                value.copy_(_drawn(value, draw))
            elif "bias" in name:
                value.zero_()
            elif norm or name.endswith("weight"):
                value.fill_(1.0)
        for name, buffer in module.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.zero_()
            elif name == "running_var":
                buffer.fill_(1.0)
