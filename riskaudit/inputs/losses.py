"""Losses on a batch of one, differentiable under torch.func (grad, jvp, vmap).

Each takes outputs [1, ...] and targets [1, ...] and returns a scalar. No data-dependent control flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from riskaudit.errors import SettingsError, UserCodeError
from riskaudit.inputs.text import clean
from riskaudit.inputs.user_code import is_user_spec, load_user_function

LossKind: TypeAlias = Literal["classification", "binary", "regression", "custom"]


@dataclass(frozen=True)
class Loss:
    """A loss with its name; ``kind`` says what targets it takes."""

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    kind: LossKind
    description: str = ""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs [1, ...] against targets [1, ...], a scalar."""
        return self.function(outputs, targets)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.shape == outputs.shape:
        # One probability per class; numbers 0 and 1 where one class is certain.
        return F.cross_entropy(outputs, targets.to(outputs.dtype))
    return F.cross_entropy(outputs, targets.long())


def _binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, _paired(targets, outputs))


def _mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    # Not F.mse_loss: its backward fails under jvp of grad ("ZeroTensors are immutable", torch 2.13).
    return (outputs - _paired(targets, outputs)).square().mean()


def _without_trailing_one(tensor: Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    return shape[:-1] if len(shape) > 1 and shape[-1] == 1 else shape


def _paired(targets: Tensor, outputs: Tensor) -> Tensor:
    """Targets in the dtype and shape of the outputs.

    Only a trailing 1 may differ: broadcasting any further would pair outputs with the wrong targets.
    """
    targets = targets.to(outputs.dtype)
    if targets.shape == outputs.shape:
        return targets
    if _without_trailing_one(targets) != _without_trailing_one(outputs):
        raise ValueError(f"targets of shape {tuple(targets.shape)} beside outputs of {tuple(outputs.shape)}")
    return targets.reshape(outputs.shape)


LOSSES = {
    loss.name: loss
    for loss in (
        Loss(
            "cross-entropy",
            _cross_entropy,
            "classification",
            "classes or their probabilities against logits",
        ),
        Loss("bce", _binary_cross_entropy, "binary", "0/1 targets against logits (alias bce-with-logits)"),
        Loss("mse", _mean_squared_error, "regression", "mean squared error of float targets"),
    )
}
_ALIASES = {"bce-with-logits": "bce"}


def load_loss(name: str) -> Loss:
    """The registered loss ``name``, or the user's ``file.py:function``.

    Raises:
        SettingsError: unknown; the message lists the known.
        UserCodeError: the file or function can't be loaded.
    """
    if is_user_spec(name):
        function = load_user_function(name)
        return Loss(name.replace("\\", "/").rpartition("/")[2], _checked(function, name), "custom", "the user's own")
    loss = LOSSES.get(_ALIASES.get(name, name))
    if loss is None:
        raise SettingsError(f"unknown loss {clean(name, 50)!r}; known are {', '.join(LOSSES)} and file.py:function")
    return loss


def _checked(function: Callable[..., object], spec: str) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = function(outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            actual = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UserCodeError(f"{clean(spec)} returned {actual}, expected a scalar tensor; reduce it with .mean()")
        return value.reshape(())

    return loss
