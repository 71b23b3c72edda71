"""Copies of models as they are used: after a pass, and with whatever the pass left in their attributes."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy in which tensors with a graph behind them are replaced by their values.

    Models that keep an activation in an attribute hold such tensors, which torch refuses to copy.
    """
    memo: dict[int, object] = {id(tensor): tensor.detach().clone() for tensor in _derived(model)}
    return copy.deepcopy(model, memo)


def _derived(model: nn.Module) -> list[Tensor]:
    """Tensors with a graph among attributes, however deep."""
    derived: list[Tensor] = []
    seen: set[int] = set()
    pending: list[object] = [model]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            derived += [value] if value.grad_fn is not None else []
        elif isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            pending.extend(value)
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            pending.extend(vars(value).values())
    return derived
