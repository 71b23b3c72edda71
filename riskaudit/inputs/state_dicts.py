"""A file's content to named tensors, and named tensors to weights that a model can hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riskaudit.errors import CheckpointError
from riskaudit.inputs.readers.pickles import Inert
from riskaudit.inputs.text import clean, listing

_MAX_NESTING = 8
_LOSSES = ("loss", "train_loss", "best_loss", "val_loss", "best_val_loss")
_NUMBERED_ARRAY = re.compile(r"arr_\d{1,6}")
_SAVE_WEIGHTS = "save `model.state_dict()`"


@dataclass
class Entries:
    """The tensors of a file by dotted name: nested dictionaries are joined by dots.

    Attributes:
        tensors: all that have names.
        rows: tensors that have an order instead of names, by the dotted name of their list.
        optimizers: dotted names of the optimizers' states, whose tensors are left out.
        losses: finite numbers that training loops keep as their loss.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    optimizers: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _container: dict[str, str] = field(default_factory=dict)

    def add(self, container: str, key: str, tensor: Tensor) -> None:
        """Add the tensor that a dictionary holds under ``key``."""
        whole = f"{container}.{key}" if container else key
        self.tensors[whole] = tensor
        self._container[whole] = container

    def container_of(self, name: str) -> str:
        """The dotted name of the dictionary in which a tensor lies."""
        return self._container[name]


def read_entries(content: Any, name: str) -> Entries:
    """All tensors of a checkpoint, wherever they lie; what isn't a tensor or an array of numbers is left out.

    Raises:
        CheckpointError: there are no tensors, or two entries have one name.
    """
    entries = Entries()
    _collect(content, "", entries, name, 0)
    if entries.tensors or entries.rows:
        return entries
    objects = [content] if isinstance(content, Inert) else []
    if isinstance(content, Mapping):
        objects = [value for value in content.values() if isinstance(value, Inert)]
    if objects:
        raise CheckpointError(
            f"{name} holds objects ({listing({stub.qualified_name: None for stub in objects}, 2)}), a whole model "
            f"perhaps, and no weights that can be read without running its code; where you trust it, load it yourself, "
            f"{_SAVE_WEIGHTS} and hand in that file"
        )
    if not isinstance(content, Mapping):
        actual = "a bare tensor" if isinstance(content, Tensor) else f"a {type(content).__name__}"
        raise CheckpointError(f"expected a state dict in {name}, found {actual}; {_SAVE_WEIGHTS}")
    keys = f"the keys {listing(content)}" if content else "an empty dict"
    raise CheckpointError(f"expected weights in {name}, found {keys} and no named tensors; {_SAVE_WEIGHTS}")


def _collect(content: Any, prefix: str, entries: Entries, name: str, depth: int) -> None:
    if depth > _MAX_NESTING:
        return
    if isinstance(content, Mapping):
        if "param_groups" in content and "state" in content:
            entries.optimizers.append(prefix)
            return
        named = {key: value for key, value in content.items() if isinstance(key, str)}
        entries.losses += [loss for key in _LOSSES if (loss := _number(named.get(key))) is not None]
        tensors = {key: tensor for key, value in named.items() if (tensor := as_tensor(value)) is not None}
        if tensors and all(_NUMBERED_ARRAY.fullmatch(key) for key in tensors):
            # What numpy.savez makes of arrays without names.
            entries.rows[prefix] = [tensors[key] for key in sorted(tensors, key=lambda key: int(key[4:]))]
            return
        for key, value in named.items():
            whole = f"{prefix}.{key}" if prefix else key
            if key not in tensors:
                _collect(value, whole, entries, name, depth + 1)
            elif whole in entries.tensors:
                raise CheckpointError(f"{name} holds two entries named {clean(whole, 60)}; save it again without one")
            else:
                entries.add(prefix, key, tensors[key])
    elif isinstance(content, list | tuple):
        _collect_row(content, prefix, entries, name, depth)


def _collect_row(content: Sequence[Any], prefix: str, entries: Entries, name: str, depth: int) -> None:
    tensors = [tensor for value in content if (tensor := as_tensor(value)) is not None]
    if content and len(tensors) == len(content):
        if len(tensors) > 1 or prefix:
            entries.rows[prefix] = tensors
        return
    for position, value in enumerate(content):
        if isinstance(value, Mapping | list | tuple):
            _collect(value, f"{prefix}.{position}" if prefix else str(position), entries, name, depth + 1)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.item() if np.prod(value.shape) == 1 and not getattr(value, "is_meta", False) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def as_tensor(value: Any) -> Tensor | None:
    """A tensor, or a copy of an array of numbers as one; None for anything else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufb":
        native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(native.astype(np.int64) if native.dtype.kind == "u" else native)
    return None


def check_weights(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same weights with half-precision values as float32, all of one floating dtype.

    float32 unless some weight is float64. Integer tensors (counters) stay.

    Raises:
        CheckpointError: a tensor that isn't dense and finite, or no floating-point tensor at all.
    """
    if not any(value.is_floating_point() or value.is_complex() for value in state.values()):
        raise CheckpointError(f"{name} holds integers only, expected floating-point weights; {_SAVE_WEIGHTS}")
    double = any(value.dtype == torch.float64 for value in state.values())
    dtype = torch.float64 if double else torch.float32
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        shown = clean(key, 60)
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
            raise CheckpointError(f"{shown} in {name} isn't a plain real tensor; save a float32 state dict")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{shown} in {name} claims more values than are stored; save it again")
        weight = value.detach()
        if weight.is_floating_point():
            weight = weight.to(dtype)
            if not bool(torch.isfinite(weight).all()):
                raise CheckpointError(
                    f"{shown} in {name} holds NaN or infinite weights; use a checkpoint that didn't diverge"
                )
        result[key] = weight
    return result
