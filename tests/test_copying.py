"""Copies of models and losses: whole, apart from the original, and named where something in them can't be copied."""

from __future__ import annotations

import collections
import contextvars
import copy
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from riskaudit.copying import copy_model
from riskaudit.errors import ArchitectureError, CheckpointError
from riskaudit.inputs import Checkpoint


class Slotted:
    __slots__ = ("lock", "values")

    def __init__(self) -> None:
        self.lock, self.values = threading.Lock(), [1.0]


class Holding(nn.Module):
    def __init__(self, held: object) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.inner = nn.Sequential(nn.Identity())
        self.inner.config = {"deep": [held]}

    def forward(self, x):
        return self.layer(x)


COPIED: dict[str, Callable[[], object]] = {
    "lock": threading.Lock, "reentrant lock": threading.RLock, "condition": threading.Condition,
    "event": threading.Event, "semaphore": threading.Semaphore, "barrier": lambda: threading.Barrier(2),
    "logger": lambda: logging.getLogger("x"), "handler": logging.StreamHandler, "queue": queue.Queue,
    "thread": threading.Thread, "module": lambda: torch, "slots": Slotted,
    "deque": lambda: collections.deque([Slotted()]),
    "bound method": lambda: threading.Lock().acquire, "graph": lambda: torch.ones(2, requires_grad=True) * 2,
    "generator of numbers": torch.Generator,
}  # fmt: skip
REFUSED: dict[str, Callable[[], object]] = {
    "generator": lambda: (one for one in ()), "simple queue": queue.SimpleQueue,
    "context variable": lambda: contextvars.ContextVar("v"), "database": lambda: sqlite3.connect(":memory:"),
    "thread's own": threading.local, "memory": lambda: memoryview(b"a"),
}  # fmt: skip


@pytest.mark.parametrize("name", COPIED)
def test_what_a_forward_pass_does_not_read_is_shared(name) -> None:
    model = Holding(COPIED[name]())
    copied = copy_model(model)
    assert copied is not model
    assert copied.layer.weight is not model.layer.weight
    assert copied.inner.config is not model.inner.config
    assert torch.equal(copied(torch.ones(1, 2)), model(torch.ones(1, 2)))
    assert Checkpoint.from_model(model).num_parameters == 6


def test_the_state_of_an_event_is_the_copys_own() -> None:
    model = Holding(threading.Event())
    copied = copy_model(model)
    model.inner.config["deep"][0].set()
    assert not copied.inner.config["deep"][0].is_set()


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_copied_is_named(name) -> None:
    held = REFUSED[name]()
    expected = rf"model\.inner\.config\['deep'\]\[0\] is a {type(held).__name__}, which can't be copied"
    with pytest.raises(ArchitectureError, match=expected):
        copy_model(Holding(held))
    with pytest.raises(CheckpointError, match=expected):
        Checkpoint.from_model(Holding(held))


def test_the_advice_works(tmp_path) -> None:
    class Lazy(Holding):
        def __deepcopy__(self, memo):
            other = memo[id(self)] = Lazy.__new__(Lazy)
            vars(other).update(copy.deepcopy({name: held for name, held in vars(self).items() if name != "file"}, memo))
            return other

    (tmp_path / "f").touch()
    with (tmp_path / "f").open() as file:
        plain, lazy = Holding(None), Lazy(None)
        plain.file = lazy.file = file
        with pytest.raises(ArchitectureError, match=r"model.file is a TextIOWrapper.*leave it out .* __deepcopy__"):
            copy_model(plain)
        assert torch.equal(copy_model(lazy)(torch.ones(1, 2)), lazy(torch.ones(1, 2)))


structures = st.recursive(
    st.integers() | st.just(threading.Lock),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def _made(value: object) -> object:
    if isinstance(value, list):
        return [_made(one) for one in value]
    if isinstance(value, dict):
        return {name: _made(one) for name, one in value.items()}
    return value() if callable(value) else value


@settings(max_examples=50, deadline=None)
@given(structures)
def test_locks_anywhere(structure) -> None:
    held = _made(structure)
    copied = copy_model(Holding(held)).inner.config["deep"][0]
    assert copied == held
    assert not isinstance(held, list | dict) or copied is not held
