"""Fresh weights for any architecture, by the initializations that the literature compares.

Layers are found by what they hold, not by their type. What each initialization sets:

- ``uniform``: U(-0.5, 0.5), weights and biases, as in the gradient-inversion papers (Zhu et al., NeurIPS 2019);
- ``normal``: N(0, 1/12), the same variance, weights and biases;
- ``kaiming_*`` (He et al., ICCV 2015, for ReLU, fan in), ``xavier_*`` (Glorot and Bengio, AISTATS 2010), and
  ``orthogonal`` (Saxe et al., ICLR 2014): every parameter of two or more dimensions; biases are 0;
- ``default``: each layer's own ``reset_parameters``.

Normalisation layers get their own start in every one of them: scale 1, shift 0, running statistics 0 and 1. A
parameter that belongs to none of this (of a user's module without ``reset_parameters``) keeps its value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from riskaudit.statistics.seeding import derived_seed

Fill = Callable[[Tensor], object]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
# Bound of the uniform distribution; its variance is BOUND^2 / 3.
BOUND = 0.5


@dataclass(frozen=True)
class Initialization:
    """How a network's parameters are drawn: ``weights`` fills one of two or more dimensions, ``biases`` others.

    None leaves the layer's own reset.
    """

    name: str
    description: str
    weights: Fill | None
    biases: Fill | None


def _uniform(tensor: Tensor) -> object:
    return nn.init.uniform_(tensor, -BOUND, BOUND)


def _normal(tensor: Tensor) -> object:
    return nn.init.normal_(tensor, 0.0, BOUND / 3**0.5)


INITIALIZATIONS = {
    each.name: each
    for each in (
        Initialization("uniform", "weights and biases uniform (-0.5, 0.5)", _uniform, _uniform),
        Initialization("normal", "weights and biases normal (0, 1/12), the variance of uniform", _normal, _normal),
        Initialization(
            "kaiming_uniform",
            "Kaiming uniform for ReLU, biases 0",
            partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
            nn.init.zeros_,
        ),
        Initialization(
            "kaiming_normal",
            "Kaiming normal for ReLU, biases 0",
            partial(nn.init.kaiming_normal_, nonlinearity="relu"),
            nn.init.zeros_,
        ),
        Initialization("xavier_uniform", "Xavier uniform, biases 0", nn.init.xavier_uniform_, nn.init.zeros_),
        Initialization("xavier_normal", "Xavier normal, biases 0", nn.init.xavier_normal_, nn.init.zeros_),
        Initialization("orthogonal", "orthogonal, biases 0", nn.init.orthogonal_, nn.init.zeros_),
        Initialization("default", "PyTorch's default of every layer", None, None),
    )
}


def initialize(model: nn.Module, name: str, seed: int, number: int) -> list[str]:
    """Draw a model's parameters anew, in place; returns the names of those that keep their value."""
    chosen = INITIALIZATIONS[name]
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    kept: list[str] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derived_seed(seed, word, number))
        for path, module in model.named_modules():
            kept += [f"{path}.{own}".removeprefix(".") for own in _initialize_module(module, chosen)]
    return kept


def _initialize_module(module: nn.Module, chosen: Initialization) -> list[str]:
    own = dict(module.named_parameters(recurse=False))
    is_norm = isinstance(module, _NORMS) or _looks_like_norm(module)
    if not own and not is_norm:
        return []
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()
    if is_norm:
        return [] if callable(reset) else list(own)
    kept = []
    for name, parameter in own.items():
        if not parameter.is_floating_point():
            continue
        fill = chosen.weights if parameter.ndim >= 2 else chosen.biases if "bias" in name else None
        if fill is not None:
            fill(parameter)
        elif not callable(reset):
            kept.append(name)
    return kept


def _looks_like_norm(module: nn.Module) -> bool:
    """Norm layers of other libraries: one-dimensional parameters only, and a name that says so."""
    parameters = list(module.parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and all(parameter.ndim < 2 for parameter in parameters)
