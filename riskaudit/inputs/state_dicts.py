"""A checkpoint's content to a clean state dict: unwrapped, prefixes stripped, every value usable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from riskaudit.errors import CheckpointError
from riskaudit.inputs.text import clean, listing

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
PREFIXES = ("module.", "model.", "_orig_mod.")
_MAX_NESTING = 4


def unwrap(content: Any, name: str) -> dict[str, Tensor]:
    """The tensors of a state dict, bare or under one of `WRAPPERS`; what isn't a tensor is left out.

    Args:
        content: what the file held.
        name: the file's name, for messages.

    Raises:
        CheckpointError: there are no named tensors.
    """
    for _ in range(_MAX_NESTING):
        inner = next((content[key] for key in WRAPPERS if _has_tensors(content, key)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        found = "a bare tensor" if isinstance(content, Tensor) else f"a {type(content).__name__}"
        raise CheckpointError(f"expected a state dict in {name}, found {found}; save `model.state_dict()`")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        keys = f"the keys {listing(content)}" if content else "an empty dict"
        raise CheckpointError(
            f"expected weights in {name}, bare or under {', '.join(WRAPPERS[:3])}, found {keys}; "
            "save `model.state_dict()`"
        )
    return tensors


def _has_tensors(content: Any, key: str, depth: int = 1) -> bool:
    inner = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(inner, Mapping):
        return False
    return any(isinstance(value, Tensor) for value in inner.values()) or (
        depth < _MAX_NESTING and any(_has_tensors(inner, wrapper, depth + 1) for wrapper in WRAPPERS)
    )


def check_weights(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same weights with half-precision values as float32, all of one floating dtype.

    float32 unless some weight is float64. Integer tensors (counters) stay.

    Raises:
        CheckpointError: a tensor that isn't dense and finite, or no floating-point tensor at all.
    """
    if not any(value.is_floating_point() for value in state.values()):
        raise CheckpointError(f"{name} holds integers only, expected floating-point weights; save `model.state_dict()`")
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


def prefix_candidates(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state dict as it is, then with each prefix stripped that all its keys share, one after the other."""
    current = dict(state)
    yield current
    while prefix := next((item for item in PREFIXES if all(key.startswith(item) for key in current)), None):
        current = {key[len(prefix) :]: value for key, value in current.items()}
        if "" in current:
            return
        yield current
