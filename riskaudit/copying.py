"""Copies of models as they are used: after a pass, with whatever the pass left in their attributes, and with locks."""

from __future__ import annotations

import copy
import dis
import functools
import logging
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from riskaudit.errors import ArchitectureError

_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
Copied = TypeVar("Copied")
# Can't be copied and decide nothing that a model computes, so that a copy may use the same.
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Thread)
SHARED = (*_LOCKS, logging.Logger, logging.Handler, ModuleType, torch.cuda.Stream, torch.cuda.Event)


def copy_model(model: Copied, name: str = "model") -> Copied:
    """A deep copy of a model, or of a loss, with nothing in it that can be changed from outside.

    Tensors with a graph behind them, such as an activation in an attribute, which torch refuses to copy, are replaced
    by their values. Functions in attributes that close over parts of the model or read them from global variables, such
    as a lambda in the place of ``forward``, use the copy's parts in the copy. Locks, threads, handlers of logs, modules
    of Python and streams stay the same objects.

    Args:
        model: anything that holds attributes.
        name: of it, for messages.

    Raises:
        ArchitectureError: something in it can't be copied, by its path, or would go on using the original.
    """
    memo: dict[int, object] = {}
    for value in _held(model):
        if isinstance(value, Tensor) and value.grad_fn is not None:
            memo[id(value)] = value.detach().clone()
        elif isinstance(value, SHARED):
            memo[id(value)] = value
    shared, parts = dict(memo), _parts_of_model(model)
    rebuilt = [_RebuiltFunction(held, parts) for held in _held(model) if _uses(held, parts)]
    memo.update({id(function.original): function.copied for function in rebuilt})
    try:
        copied = copy.deepcopy(model, memo)
        for function in rebuilt:
            function.fill(memo)
    except Exception as error:
        path, kind = _culprit(model, name, shared, set())
        raise ArchitectureError(
            f"{path} is a {kind}, which can't be copied ({type(error).__name__}), and what is audited is a copy: make "
            "it when it is needed rather than keep it, or leave it out of copies by __deepcopy__"
        ) from error
    if any(id(value) in parts for value in _held(copied)):
        raise ArchitectureError(
            f"a copy of {name} would go on using parts of the original, which its code reaches by a global variable or "
            "by __deepcopy__, and what is audited is a copy: reach them by attributes of the module (self)"
        )
    if isinstance(copied, nn.Module):
        for layer in copied.modules():
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
                # The same gradient, in a layout that can be differentiated again.
                layer.sparse = False
    return copied


def _parts_of_model(model: object) -> set[int]:
    """Ids of the modules and weights of a model."""
    if not isinstance(model, nn.Module):
        return set()
    return {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}


def _uses(function: object, parts: set[int]) -> TypeGuard[FunctionType]:
    """Whether a function of the user's reaches parts of the model on its own."""
    return isinstance(function, FunctionType) and any(_reaches(value, parts) for _, value in _read(function))


def _reaches(value: object, parts: set[int]) -> bool:
    return any(id(held) in parts for held in _held(value))


class _RebuiltFunction:
    """A function like another one that uses the copy of a model where that one uses the model.

    Args:
        function: the other one.
        parts: ids of the model's parts.
    """

    def __init__(self, function: FunctionType, parts: set[int]) -> None:
        self.original, self._parts = function, parts
        self._cells = tuple(CellType() for _ in function.__closure__ or ())
        self._globals = dict(function.__globals__)
        self.copied = FunctionType(
            function.__code__, self._globals, function.__name__, function.__defaults__, self._cells or None
        )
        self.copied.__kwdefaults__ = function.__kwdefaults__
        self.copied.__dict__.update(vars(function))

    def fill(self, memo: dict[int, object]) -> None:
        """Give it the copies."""
        for cell, copied in zip(self.original.__closure__ or (), self._cells, strict=True):
            copied.cell_contents = self._copied(_contents(cell), memo)
        for name in _global_names(self.original.__code__) & set(self._globals):
            self._globals[name] = self._copied(self._globals[name], memo)

    def _copied(self, value: object, memo: dict[int, object]) -> object:
        return copy.deepcopy(value, memo) if _reaches(value, self._parts) else value


def _read(function: FunctionType) -> Iterator[tuple[str, object]]:
    """What a function of the user's closes over and reads from global variables."""
    if is_installed(function.__module__):
        return
    yield from ((f":{index}", _contents(cell)) for index, cell in enumerate(function.__closure__ or ()))
    for name in sorted(_global_names(function.__code__) & set(function.__globals__)):
        yield f":{name}", function.__globals__[name]


def _contents(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put into it yet
        return None


@functools.cache
def _global_names(code: CodeType) -> frozenset[str]:
    instructions = dis.get_instructions(code)
    names = {str(instruction.argval) for instruction in instructions if instruction.opname == "LOAD_GLOBAL"}
    return frozenset(names.union(*(_global_names(const) for const in code.co_consts if isinstance(const, CodeType))))


@functools.cache
def is_installed(module: str | None) -> bool:
    """Whether code of this module belongs to Python or to an installed package, not to whoever wrote the model."""
    root = (module or "").partition(".")[0]
    if root.startswith("_cython"):  # the made-up module of the functions of compiled packages
        return True
    if root in sys.stdlib_module_names or root in sys.builtin_module_names:
        return root != "__main__"
    file = getattr(sys.modules.get(root), "__file__", None)
    return root == "riskaudit" or (file is not None and str(Path(file).resolve()).startswith(_INSTALLED))


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
        yield from ((f"[{index}]", held) for index, held in enumerate(value))
    if isinstance(value, FunctionType):
        yield from _read(value)
    if isinstance(value, MethodType):
        yield ".__self__", value.__self__
        return
    if isinstance(value, nn.Module):
        forward = getattr(type(value), "forward", None)
        if isinstance(forward, FunctionType):
            yield ".forward", forward
        for registered in (value._parameters, value._buffers, value._modules):
            yield from ((f".{name}", held) for name, held in registered.items())
    yield from ((f".{name}", held) for name, held in attributes_of(value).items() if not _is_registry(value, name))


def _is_registry(value: object, name: str) -> bool:
    return isinstance(value, nn.Module) and name in ("_parameters", "_buffers", "_modules")


def attributes_of(value: object) -> dict[str, object]:
    """What an object holds in its dictionary and in slots of its classes, by name."""
    slots = [slot for kind in type(value).__mro__ for slot in _slots(kind) if hasattr(value, slot)]
    return {**getattr(value, "__dict__", {}), **{slot: getattr(value, slot) for slot in slots}}


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
