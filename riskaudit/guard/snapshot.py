"""Digests of everything that decides what a model and a loss compute: what is reviewed has to be what is used.

Weights are a part of it only. A gain in a dictionary, a tensor in a list, a method that was replaced, a variable that a
function closes over or reads from its module: whoever holds one of them can change the function after it was reviewed.
A snapshot holds a digest per leaf of the whole object, by its path, so that a change can be named.

Walked are modules, attributes and slots, containers, functions (code, defaults, closures, and the globals that they
read), classes, and whatever pickle would take apart. Code and classes of installed packages are taken by name: they
don't change in a process that means well. What shows none of its state (an open file, a generator, a handle of a C
library) can't be compared, and is refused by name.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riskaudit.copying import SHARED, attributes_of, is_installed
from riskaudit.errors import GuardError
from riskaudit.inputs.identifiers import hash_tensors

# More leaves than this is no configuration of a model, and would make every review slow.
MAX_LEAVES = 200_000
# Objects whose text says all that they are.
_BUILT_IN = (bool, int, float, complex, str, bytes, bytearray, type(None), type(Ellipsis), range, slice)
_SETTINGS = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, np.dtype, np.generic)
_PLAIN = (*_BUILT_IN, *_SETTINGS, PurePath, Enum, re.Pattern)
# Objects that decide nothing that a model computes.
_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, WrapperDescriptorType)
_INERT = (*set(SHARED).difference({ModuleType}), *_DESCRIPTORS, ClassMethodDescriptorType, logging.LoggerAdapter)
# What else there is to see of objects of these kinds.
_MEMBERS: dict[type, tuple[str, ...]] = {
    MethodType: ("__self__", "__func__"),
    functools.partial: ("func", "args", "keywords"),
    property: ("fget", "fset"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
}
# Of classes: nothing that decides what they do.
_BOOKKEEPING = frozenset(
    ("__dict__", "__slotnames__", "__weakref__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl")
)


@dataclass(frozen=True)
class Snapshot:
    """State of objects at one moment.

    Attributes:
        weights: digests of registered parameters and buffers, by path.
        rest: digests of everything else, by path: of weights their shape, dtype, device, and whether they are trained.
    """

    weights: Mapping[str, bytes]
    rest: Mapping[str, bytes]

    @property
    def model_digest(self) -> str:
        """Hex SHA-256 of the weights: parameters and buffers, those that a state dict leaves out included."""
        digest = hashlib.sha256()
        for path, leaf in self.weights.items():
            digest.update(path.encode() + b"\0" + leaf)
        return digest.hexdigest()

    @property
    def digest(self) -> bytes:
        """SHA-256 of weights and everything else."""
        digest = hashlib.sha256(self.model_digest.encode())
        for path, leaf in self.rest.items():
            digest.update(path.encode() + b"\0" + leaf)
        return digest.digest()

    def difference(self, other: Snapshot) -> str | None:
        """Path of a leaf that isn't the same in another snapshot; None where all are."""
        for leaves, others in ((self.weights, other.weights), (self.rest, other.rest)):
            for path in (*leaves, *others):
                if leaves.get(path) != others.get(path):
                    return path
        return None

    def refuse_change(self, now: Snapshot) -> None:
        """Refuse to go on where something has changed since.

        Raises:
            GuardError: something has.
        """
        path = self.difference(now)
        if path is not None:
            raise GuardError(f"{path} changed while the review went on; leave model and loss alone until it is done")


def take_snapshot(copies: dict[int, Tensor] | None = None, **objects: object) -> Snapshot:
    """The state of objects, whose names begin the paths.

    Args:
        copies: takes up a copy of every registered parameter and buffer by its ``id``, of the very bytes of its digest,
            whatever becomes of the tensor meanwhile; None for none.
        objects: by name.

    Raises:
        GuardError: something in them shows none of its state, or there is far too much.
    """
    return _Walk(copies).run(objects)


class _Walk:
    """One walk over objects; every object is taken once, and by its first path where it occurs again."""

    def __init__(self, copies: dict[int, Tensor] | None) -> None:
        self._copies = copies
        self.weights: dict[str, bytes] = {}
        self.rest: dict[str, bytes] = {}
        self._first: dict[int, str] = {}
        # Objects made on the way are held, since ids of objects that are gone are given out again.
        self._held: list[object] = []
        self._pending: list[tuple[str, object]] = []
        # Beginnings of paths that lead through installed code, whose own inner state is no business of a model.
        self._lenient: set[str] = set()

    def run(self, objects: Mapping[str, object]) -> Snapshot:
        self._pending = list(reversed(list(objects.items())))
        while self._pending:
            path, value = self._pending.pop()
            self._visit(path, value)
            if len(self.rest) > MAX_LEAVES:
                raise GuardError(
                    f"{re.split(r'[.:[({]', path)[0]} holds more than {MAX_LEAVES} values besides its weights, which "
                    "can't be compared at every review; keep data out of the model and the loss"
                )
        return Snapshot(self.weights, self.rest)

    def _visit(self, path: str, value: object) -> None:
        if isinstance(value, _INERT):
            self.rest[path] = _named(value)
            return
        if isinstance(value, _PLAIN):
            self.rest[path] = _digest(f"{type(value).__name__} {value!r}")
            return
        first = self._first.setdefault(id(value), path)
        if first != path:
            self.rest[path] = _digest(f"the same as {first}")
            return
        self._held.append(value)
        if isinstance(value, Tensor):
            self.rest[path] = self._tensor(path, value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self.rest[path] = _digest(f"{value.shape} {value.dtype.str}", np.ascontiguousarray(value).tobytes())
        else:
            # An object's kind, and what it consists of for later; it comes before its parts.
            self.rest[path] = b""
            parts = list(self._parts(path, value))
            self.rest[path] = _digest(_named(value).hex(), " ".join(name for name, _ in parts).encode())
            self._pending.extend(reversed(parts))

    def _parts(self, path: str, value: object) -> Iterator[tuple[str, object]]:
        """What an object consists of, with paths."""
        if isinstance(value, Mapping):
            yield from _items(path, value)
        elif isinstance(value, list | tuple):
            yield from ((f"{path}[{index}]", held) for index, held in enumerate(value))
        elif isinstance(value, set | frozenset):
            yield from ((f"{path}{{{index}}}", held) for index, held in enumerate(sorted(value, key=repr)))
        if isinstance(value, nn.Module):
            yield from self._module(path, value)
        elif isinstance(value, FunctionType):
            yield from self._function(path, value)
        elif isinstance(value, type):
            yield from _class_parts(path, value)
        elif isinstance(value, BuiltinFunctionType):
            if not isinstance(value.__self__, ModuleType | type | None):
                yield f"{path}.__self__", value.__self__
        elif isinstance(value, weakref.ReferenceType):
            yield f"{path}()", value()
        elif (names := next((names for kind, names in _MEMBERS.items() if isinstance(value, kind)), None)) is not None:
            yield from ((f"{path}.{name}", getattr(value, name)) for name in names)
        elif not isinstance(value, ModuleType):
            yield from self._object(path, value)

    def _module(self, path: str, module: nn.Module) -> Iterator[tuple[str, object]]:
        yield f"{path}.__class__", type(module)
        registered = ("_parameters", "_buffers", "_modules")
        # A module has a dozen dictionaries of hooks that are mostly empty: one leaf tells of all.
        empty = sorted(f"{name} {type(held).__name__}" for name, held in vars(module).items() if _is_empty(held))
        yield f"{path}.empty", ", ".join(empty)
        for name, held in sorted(vars(module).items()):
            if _is_empty(held):
                continue
            # The code of a traced graph is what it computes; its nodes point at each other without end.
            if name == "_graph" and isinstance(module, torch.fx.GraphModule):
                yield f"{path}.code", module.code
            elif name not in registered:
                yield f"{path}.{name}", held
        for name in registered:
            for key, value in getattr(module, name).items():
                if isinstance(value, Tensor) and id(value) not in self._first:
                    self._first[id(value)] = f"{path}.{key}"
                    self._held.append(value)
                    held = value if self._copies is None else value.detach().clone()
                    if self._copies is not None:
                        self._copies[id(value)] = held
                    self.weights[f"{path}.{key}"] = self._tensor(f"{path}.{key}", held, type(value))
                    kind = (tuple(value.shape), value.dtype, value.device, value.requires_grad)
                    self.rest[f"{path}.{key}"] = _digest(repr(kind))
                else:
                    yield f"{path}.{key}", value

    def _function(self, path: str, function: FunctionType) -> Iterator[tuple[str, object]]:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if is_installed(function.__module__):
                self._lenient.add(f"{path}:{name}")
            try:
                yield f"{path}:{name}", cell.cell_contents
            except ValueError:  # a cell that nothing was put into yet
                yield f"{path}:{name}", None
        if is_installed(function.__module__):
            return
        yield f"{path}.__code__", _code_text(function.__code__)
        yield f"{path}.__defaults__", function.__defaults__
        yield f"{path}.__kwdefaults__", function.__kwdefaults__
        yield f"{path}.__dict__", vars(function)
        names = _names_of(function.__code__)
        for name in sorted(names & set(function.__globals__)):
            value = function.__globals__[name]
            yield f"{path}:{name}", value
            if isinstance(value, ModuleType) and not is_installed(value.__name__):
                inner = sorted(names & set(vars(value)))
                yield from ((f"{path}:{name}.{attribute}", vars(value)[attribute]) for attribute in inner)

    def _object(self, path: str, value: object) -> Iterator[tuple[str, object]]:
        kind = type(value)
        if not is_installed(kind.__module__):
            yield f"{path}.__class__", kind
        yield from ((f"{path}.{name}", held) for name, held in sorted(attributes_of(value).items()))
        if isinstance(value, Mapping | list | tuple | set | frozenset) or not _hides_state(kind):
            return
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # pickle's own way to say that there is nothing to take
            if any(path.startswith(beginning) for beginning in self._lenient):
                return
            raise GuardError(
                f"{path} is a {kind.__name__}, whose state can't be compared from one moment to the next; keep it out "
                "of the model and the loss, or freeze what they need of it into plain attributes"
            ) from None
        if isinstance(reduced, str):
            yield f"{path}.__reduce__", reduced
            return
        if is_installed(kind.__module__):
            self._lenient.add(f"{path}.__reduce__[0]")
        for index, part in enumerate(reduced):
            yield f"{path}.__reduce__[{index}]", list(part) if index > 2 and part is not None else part

    def _tensor(self, path: str, tensor: Tensor, kind: type | None = None) -> bytes:
        digest = hashlib.sha256((kind or type(tensor)).__name__.encode())
        try:
            hash_tensors(digest, [("", tensor)])
        except Exception:  # sparse, quantised, on no device: their bytes can't be had this way
            raise GuardError(
                f"{path} is a tensor of layout {tensor.layout} and dtype {tensor.dtype} on {tensor.device}, which "
                "can't be compared; keep it as a dense tensor"
            ) from None
        return digest.digest()


def _digest(text: str, content: bytes = b"") -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") + b"\0" + content).digest()


def _named(value: object) -> bytes:
    named = value if isinstance(value, type | FunctionType | BuiltinFunctionType | ModuleType) else type(value)
    module, name = getattr(named, "__module__", ""), getattr(named, "__qualname__", getattr(named, "__name__", ""))
    return _digest(f"{type(value).__name__} {module} {name}")


def _is_empty(value: object) -> bool:
    return isinstance(value, dict | list | set) and not value


def _items(path: str, mapping: Mapping[Any, object]) -> Iterator[tuple[str, object]]:
    for index, (key, held) in enumerate(mapping.items()):
        if isinstance(key, str | int | float | bool | type(None)):
            yield f"{path}[{key!r}]", held
        else:
            yield f"{path}[key {index}]", held
            yield f"{path}.keys[{index}]", key


def _class_parts(path: str, kind: type) -> Iterator[tuple[str, object]]:
    """What a class and its bases define, as far as they aren't installed code."""
    for base in kind.__mro__:
        if not is_installed(base.__module__):
            members = ((name, value) for name, value in sorted(vars(base).items()) if name not in _BOOKKEEPING)
            yield from ((f"{path}.{base.__qualname__}.{name}", value) for name, value in members)


def _hides_state(kind: type) -> bool:
    """Whether objects of a class may have state besides attributes: written in C, or pickled in a way of their own."""
    if kind is object:
        return False
    in_c = not kind.__flags__ & (1 << 9)  # Py_TPFLAGS_HEAPTYPE
    return in_c or any(getattr(kind, name) is not getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))


def _code_text(code: CodeType) -> str:
    """All that code does, that of nested functions included."""
    constants = [_code_text(const) if isinstance(const, CodeType) else repr(const) for const in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants))


def _names_of(code: CodeType) -> set[str]:
    nested = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*map(_names_of, nested))
