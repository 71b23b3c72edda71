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
from riskaudit.inputs.user_code import load_user_function


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


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, pixel_values):
        return {"logits": self.body(pixel_values)}


def _by_lambda(model):
    forward = model.forward
    model.forward = lambda x: forward(pixel_values=x)["logits"]


def _by_method(model):
    model.forward = (lambda self, x: self.body(x)).__get__(model)


def _by_default(model):
    body = model.body

    def forward(x, *, scale=1.0):
        def inner():
            return body(x) * scale

        return inner()

    model.forward = forward


def _by_weight(model):
    weight, bias = model.body.weight, model.body.bias
    model.forward = lambda x: nn.functional.linear(x, weight, bias)


def _by_hook(model):
    model.register_forward_hook(lambda *_: model.body.bias.sum() + _[2]["logits"])
    model.scale = torch.ones(1)


def _in_a_dictionary(model):
    model.steps = {"first": [lambda x: model.body(x) * 2]}
    model.forward = lambda x: model.steps["first"][0](x) / 2


@pytest.mark.parametrize("wrap", [_by_lambda, _by_method, _by_default, _by_weight, _by_hook, _in_a_dictionary])
def test_functions_around_the_model_are_the_copys_own(wrap) -> None:
    torch.manual_seed(0)
    model, x = Body(), torch.rand(4, 3)
    wrap(model)
    expected = model(x)
    copied = copy_model(model).double()
    assert torch.allclose(copied(x.double()), expected.double(), atol=1e-6)
    with torch.no_grad():
        model.body.weight.zero_()
        model.body.bias.zero_()
    assert torch.allclose(copied(x.double()), expected.double(), atol=1e-6)
    gradients = torch.autograd.grad(copied(x.double()).sum(), list(copied.parameters()), allow_unused=True)
    assert all(one is not None for one in gradients)


def _script(folder, text: str):
    """What a file of the user's defines."""
    (folder / "script.py").write_text(f"import torch\nfrom torch import nn\n{text}")
    return load_user_function(f"{folder / 'script.py'}:make")()


def test_a_global_variable_that_holds_the_old_forward(tmp_path) -> None:
    model = _script(
        tmp_path,
        "net = nn.Linear(3, 2)\nold = net.forward\ndef helper(x):\n    return old(x)\n"
        "def make():\n    net.forward = lambda x: helper(x) * 2\n    return net\n",
    )
    copied, x = copy_model(model).double(), torch.rand(4, 3)
    expected = model(x)
    with torch.no_grad():
        model.weight.zero_()
    assert torch.allclose(copied(x.double()), expected.double(), atol=1e-6)


def test_a_class_that_uses_the_original_is_refused(tmp_path) -> None:
    model = _script(
        tmp_path,
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layer = nn.Linear(3, 2)\n"
        "    def forward(self, x):\n        return net.layer(x)\nnet = Net()\ndef make():\n    return net\n",
    )
    with pytest.raises(ArchitectureError, match=r"would go on using parts of the original.*attributes of the module"):
        copy_model(model)


def test_an_attribute_may_be_called_like_a_global_variable(tmp_path) -> None:
    model = _script(
        tmp_path,
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.net = nn.Linear(3, 2)\n"
        "    def forward(self, x):\n        return self.net(x)\nnet = Net()\ndef make():\n    return net\n",
    )
    assert torch.equal(copy_model(model)(torch.ones(1, 3)), model(torch.ones(1, 3)))


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
