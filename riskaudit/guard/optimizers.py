"""What an optimizer does in a step, as far as a training with it can be repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from riskaudit.errors import GuardError
from riskaudit.release.local_training import BETAS, EPSILON

# What has to be at its default, by optimizer: nobody repeats anything else.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"dampening": 0, "nesterov": False, "maximize": False},
    "adam": {"betas": BETAS, "eps": EPSILON, "amsgrad": False, "maximize": False, "decoupled_weight_decay": False},
}


@dataclass(frozen=True)
class StepSettings:
    """How one step is made.

    Attributes:
        optimizer: SGD or Adam.
        lr: the learning rate.
        momentum: of SGD.
        weight_decay: added to the gradient, times the weights.
    """

    optimizer: Literal["sgd", "adam"]
    lr: float
    momentum: float
    weight_decay: float


def settings_of(optimizer: torch.optim.Optimizer) -> StepSettings:
    """The settings of an optimizer as they are now, the same for all parameters.

    Raises:
        GuardError: another optimizer than torch's SGD and Adam, or settings that can't be repeated.
    """
    kind = type(optimizer)
    name: Literal["sgd", "adam"] = "sgd" if kind is torch.optim.SGD else "adam"
    if kind not in (torch.optim.SGD, torch.optim.Adam):
        raise GuardError(f"expected torch.optim.SGD or torch.optim.Adam, found {kind.__name__}; train with one of them")
    settings: list[StepSettings] = []
    for group in optimizer.param_groups:
        for key, default in _DEFAULTS[name].items():
            if key in group and not _is(group[key], default):
                raise GuardError(
                    f"expected {key} = {default!r} of {kind.__name__}, found {group[key]!r}; leave it at that"
                )
        momentum = float(group.get("momentum", 0.0))
        settings.append(StepSettings(name, float(group["lr"]), momentum, float(group["weight_decay"])))
    if len(set(settings)) != 1:
        raise GuardError("expected one lr, momentum and weight_decay for all parameters, found groups that differ")
    if not (settings[0].lr > 0 and 0 <= settings[0].momentum < 1 and settings[0].weight_decay >= 0):
        raise GuardError(
            "expected lr > 0, 0 <= momentum < 1 and weight_decay >= 0, found "
            f"lr = {settings[0].lr:g}, momentum = {settings[0].momentum:g} and "
            f"weight_decay = {settings[0].weight_decay:g}; correct the optimizer's settings"
        )
    return settings[0]


def holds_exactly(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Whether the trained parameters of an optimizer are the model's trainable ones."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    optimized = {id(parameter) for parameter in parameters if parameter.requires_grad}
    return optimized == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def _is(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return len(value) == len(default) and all(map(_is, value, default))
    return bool(float(value) == float(default))
