"""Snapshots notice whatever changes what a model or a loss computes, wherever it is held."""

from __future__ import annotations

import collections
import functools
import io
import random
import threading
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from riskaudit.errors import GuardError
from riskaudit.guard.snapshot import take_snapshot

GAIN = {"value": 1.0}


@dataclass
class Scaling:
    gain: float = 1.0


class Slotted:
    __slots__ = ("gain",)

    def __init__(self) -> None:
        self.gain = 1.0


class Net(nn.Module):
    offset = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.cfg = {"gain": 1.0, "inner": {"deep": [1, (2, {"deeper": 3})]}}
        self.items = [torch.ones(2), {"a": torch.zeros(1)}]
        self.plain = torch.ones(3)
        self.array = np.ones(3)
        self.objects = np.array([Scaling()], dtype=object)
        self.scaling, self.slotted = Scaling(), Slotted()
        self.space = types.SimpleNamespace(gain=1.0)
        self.names = {"a", "b"}
        self.queue = collections.deque([1, 2])
        self.random = random.Random(0)
        self.generator = torch.Generator().manual_seed(0)
        self.numpy_random = np.random.default_rng(0)
        self.partial = functools.partial(torch.mul, other=2.0)
        self.lock = threading.Lock()
        self.cycle = self.cfg
        gain = [1.0]
        self.closure = lambda value: value * gain[0]

    def forward(self, x):
        return self.layer(x * self.cfg["gain"] * GAIN["value"] + self.offset)


def set_class_attribute(net) -> None:
    type(net).offset = type(net).offset + 1.0


def replace_method(net) -> None:
    net.forward = lambda x: net.layer(2 * x)


def replace_method_of_class(net) -> None:
    Net.helper = lambda self: 1


CHANGES = {
    "weight": lambda net: net.layer.weight.data.add_(1),
    "weight's gradient flag": lambda net: net.layer.weight.requires_grad_(False),
    "buffer that no state dict holds": lambda net: net.mask.add_(1),
    "mode": lambda net: net.layer.eval(),
    "dict": lambda net: net.cfg.update(gain=2.0),
    "deep container": lambda net: net.cfg["inner"]["deep"][1][1].update(deeper=4),
    "tensor in a list": lambda net: net.items[0].add_(1),
    "tensor in a dict in a list": lambda net: net.items[1]["a"].add_(1),
    "plain tensor": lambda net: net.plain.add_(1),
    "array": lambda net: net.array.__setitem__(0, 2),
    "array of objects": lambda net: setattr(net.objects[0], "gain", 2.0),
    "dataclass": lambda net: setattr(net.scaling, "gain", 2.0),
    "slot": lambda net: setattr(net.slotted, "gain", 2.0),
    "namespace": lambda net: setattr(net.space, "gain", 2.0),
    "set": lambda net: net.names.add("c"),
    "queue": lambda net: net.queue.append(3),
    "random numbers of Python": lambda net: net.random.random(),
    "random numbers of torch": lambda net: torch.rand(1, generator=net.generator),
    "random numbers of numpy": lambda net: net.numpy_random.random(),
    "partial": lambda net: net.partial.keywords.update(other=3.0),
    "closure": lambda net: net.closure.__closure__[0].cell_contents.__setitem__(0, 2.0),
    "function": lambda net: setattr(net, "closure", lambda value: value + 1),
    "code": lambda net: setattr(net.closure, "__defaults__", (1.0,)),
    "global of the method": lambda net: GAIN.update(value=GAIN["value"] + 1),
    "class attribute": set_class_attribute,
    "method of the object": replace_method,
    "method of the class": replace_method_of_class,
    "hook": lambda net: net.layer.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],)),
    "layer": lambda net: setattr(net, "layer", nn.Linear(3, 2)),
    "tie": lambda net: setattr(net, "plain", net.layer.bias),
    "type": lambda net: setattr(net, "cfg", collections.OrderedDict(net.cfg)),
}


@pytest.fixture(autouse=True)
def _restored():
    yield
    GAIN["value"], Net.offset = 1.0, 0.0
    if "helper" in vars(Net):
        del Net.helper


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed_and_named(name) -> None:
    net = Net()
    before = take_snapshot(model=net)
    assert before.difference(take_snapshot(model=net)) is None
    CHANGES[name](net)
    path = before.difference(take_snapshot(model=net))
    assert path is not None
    assert path.startswith("model")


def test_the_path_names_what_has_changed() -> None:
    net = Net()
    before = take_snapshot(model=net)
    net.cfg["inner"]["deep"][1][1]["deeper"] = 5
    assert before.difference(take_snapshot(model=net)) == "model.cfg['inner']['deep'][1][1]['deeper']"


def weighted(weights):
    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, weight=weights)

    return loss


@pytest.mark.parametrize("kind", ["module", "closure", "partial", "method"])
def test_what_a_loss_holds_is_a_part_of_it(kind) -> None:
    weights = torch.ones(2)
    module = nn.CrossEntropyLoss(weight=weights)
    loss = {
        "module": module,
        "closure": weighted(weights),
        "partial": functools.partial(F.cross_entropy, weight=weights),
        "method": module.forward,
    }[kind]
    before = take_snapshot(loss=loss)
    assert before.difference(take_snapshot(loss=loss)) is None
    weights[1] = 100.0
    assert before.difference(take_snapshot(loss=loss)) is not None


@pytest.mark.parametrize("hidden", ["file", "generator", "iterator of a generator"])
def test_what_shows_no_state_is_refused_by_its_path(hidden, tmp_path) -> None:
    net = Net()
    (tmp_path / "file").write_text("text")
    with (tmp_path / "file").open() as file:
        net.layer.source = {
            "file": file,
            "generator": (value for value in range(3)),
            "iterator of a generator": map(str, (value for value in range(3))),
        }[hidden]
        with pytest.raises(GuardError, match=r"model\.layer\.source.* can't be compared"):
            take_snapshot(model=net)


def test_weights_alone_decide_the_digest_of_the_model() -> None:
    net = Net()
    before = take_snapshot(model=net)
    net.cfg["gain"] = 2.0
    assert take_snapshot(model=net).model_digest == before.model_digest
    net.layer.bias.data += 1
    assert take_snapshot(model=net).model_digest != before.model_digest


@pytest.mark.slow
def test_a_model_full_of_data_is_refused() -> None:
    net = Net()
    net.cfg["data"] = [[number] for number in range(150_000)]
    with pytest.raises(GuardError, match="data out of the model"):
        take_snapshot(model=net)


values = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False, width=16), st.text(max_size=3), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(first=values, second=values)
def test_containers_are_equal_where_their_text_is(first, second) -> None:
    one, other = take_snapshot(value=first), take_snapshot(value=second)
    assert (one == other) == (repr(first) == repr(second))


def test_a_buffer_in_memory_is_compared_by_its_content() -> None:
    stream = io.BytesIO(b"one")
    before = take_snapshot(value=stream)
    stream.write(b"two")
    assert before.difference(take_snapshot(value=stream)) is not None
