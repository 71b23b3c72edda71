"""Copies of models as they are used: after a pass, with whatever the pass left in their attributes, and with locks."""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

from riskaudit.errors import ArchitectureError

Copied = TypeVar("Copied")
# Can't be copied and decide nothing that a model computes, so that a copy may use the same.
SHARED = (
    type(threading.Lock()), type(threading.RLock()), threading.Thread, logging.Logger, logging.Handler, ModuleType,
    torch.cuda.Stream, torch.cuda.Event,
)  # fmt: skip


def copy_model(model: Copied, name: str = "model") -> Copied:
    """A deep copy of a model, or of a loss, with nothing in it that can be changed from outside.

    Tensors with a graph behind them, such as an activation in an attribute, which torch refuses to copy, are replaced
    by their values. Locks, threads, handlers of logs, modules of Python and streams stay the same objects.

    Args:
        model: anything that holds attributes.
        name: of it, for messages.

    Raises:
        ArchitectureError: something in it can't be copied, by its path.
    """
    memo: dict[int, object] = {}
    for value in _held(model):
        if isinstance(value, Tensor) and value.grad_fn is not None:
            memo[id(value)] = value.detach().clone()
        elif isinstance(value, SHARED):
            memo[id(value)] = value
    known = dict(memo)
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        path, kind = _culprit(model, name, known, set())
        raise ArchitectureError(
            f"{path} is a {kind}, which can't be copied ({type(error).__name__}), and what is audited is a copy: make "
            "it when it is needed rather than keep it, or leave it out of copies by __deepcopy__"
        ) from error
    if isinstance(copied, nn.Module):
        for layer in copied.modules():
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
                # The same gradient, in a layout that can be differentiated again.
                layer.sparse = False
    return copied


def _held(value: object) -> Iterator[object]:
    """Everything among attributes and in containers, however deep, once each."""
    seen: set[int] = set()
    pending = [value]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if not isinstance(value, SHARED):
            pending.extend(part for _, part in _parts(value))


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """What something holds that is copied with it, by the ends of its paths."""
    if isinstance(value, Tensor | type):
        return
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]" if isinstance(key, str | int) else "[...]", held) for key, held in value.items())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from ((f"[{place}]", held) for place, held in enumerate(value))
    if isinstance(value, nn.Module):
        for registered in (value._parameters, value._buffers, value._modules):
            yield from ((f".{name}", held) for name, held in registered.items())
    slots = [slot for kind in type(value).__mro__ for slot in _slots(kind) if hasattr(value, slot)]
    attributes = {**getattr(value, "__dict__", {}), **{slot: getattr(value, slot) for slot in slots}}
    yield from ((f".{name}", held) for name, held in attributes.items() if not _is_registry(value, name))


def _is_registry(value: object, name: str) -> bool:
    return isinstance(value, nn.Module) and name in ("_parameters", "_buffers", "_modules")


def _slots(kind: type) -> tuple[str, ...]:
    named = vars(kind).get("__slots__", ())
    return tuple(name for name in ((named,) if isinstance(named, str) else named) if not name.startswith("__"))


def _culprit(value: object, path: str, memo: Mapping[int, object], seen: set[int]) -> tuple[str, str]:
    """Path and kind of the innermost part that can't be copied."""
    seen.add(id(value))
    for end, part in _parts(value):
        if id(part) in seen or id(part) in memo:
            continue
        try:
            copy.deepcopy(part, dict(memo))
        except Exception:  # what is looked for
            return _culprit(part, path + end, memo, seen)
    return path, type(value).__name__
