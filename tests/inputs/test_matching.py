"""One matcher: whatever a framework did to names, the same weights are found, or nothing is."""

from __future__ import annotations

import argparse
import copy
import functools
import pathlib
import types
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_cases import random_module
from safetensors.torch import save_file
from torch import Tensor, nn

from riskaudit.errors import ArchitectureError, CheckpointError
from riskaudit.inputs import load_checkpoint

NETS = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 3)
    def forward(self, x):
        return self.head(self.norm(self.encoder(x)))
class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Net()
    def forward(self, x):
        return self.model(x)
class Tied(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        if tied:
            self.last.weight = self.first.weight
    def forward(self, x):
        return self.last(self.first(x).tanh())
def untied():
    return Tied(False)
class Lora(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = nn.Linear(4, 3), nn.Linear(4, 1, False), nn.Linear(1, 3, False)
    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))
def two():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
def one():
    return nn.Sequential(nn.Linear(6, 5))
"""
WRAPPERS = ["_orig_mod", "module", "_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]


@pytest.fixture
def nets(tmp_path: Path) -> types.SimpleNamespace:
    (tmp_path / "nets.py").write_text(NETS)
    space: dict[str, object] = {}
    exec(NETS, space)
    return types.SimpleNamespace(file=f"{tmp_path}/nets.py", path=tmp_path / "w.pt", **space)


def outputs(model: nn.Module, width: int = 6) -> Tensor:
    return model(torch.rand(3, width, generator=torch.Generator().manual_seed(5)))


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value / 2 if value.is_floating_point() else value for key, value in state.items()}


LAYOUTS = {
    "Lightning": lambda w: {
        "epoch": 3,
        "state_dict": {f"model.{k}": v for k, v in w.items()}
        | {"criterion.weight": torch.ones(3), "val_acc.correct": torch.tensor(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5, 6)}}, "param_groups": [{"lr": 1e-3}]}],
        "callbacks": {"best": {"score": torch.tensor(float("inf"))}},
    },
    "compiled inside": lambda w: {k.replace("encoder.", "encoder._orig_mod."): v for k, v in w.items()},
    "DDP around compile": lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()},
    "Opacus": lambda w: {f"_module.{k}": v for k, v in w.items()},
    "FSDP all over": lambda w: {
        "_fsdp_wrapped_module." + k.replace("head.", "head._fsdp_wrapped_module."): v for k, v in w.items()
    },
    "parts": lambda w: {
        part: {k.partition(".")[2]: v for k, v in w.items() if k.startswith(part)}
        for part in ("encoder", "norm", "head")
    },
    "own key": lambda w: {"round": 7, "global_weights": w, "adam": {"state": {}, "param_groups": []}},
    "twice the same": lambda w: {"last": w, "best": {k: v.clone() for k, v in w.items()}},
    "without counters": lambda w: {k: v for k, v in w.items() if "num_batches" not in k},
    "NumPy": lambda w: {k: v.numpy() for k, v in w.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("factory", ["Net", "Wrapped"])
def test_layouts_of_frameworks(nets, layout: str, factory: str) -> None:
    net = random_module(nets.Net())
    torch.save(LAYOUTS[layout](net.state_dict()), nets.path)
    checkpoint = load_checkpoint(nets.path, arch=f"{nets.file}:{factory}")
    assert torch.equal(outputs(checkpoint.model), outputs(net))
    ignored = [note for note in checkpoint.notes if note.startswith("not part of the model")]
    assert len(ignored) == (layout in ("Lightning", "own key", "twice the same"))
    if layout == "Lightning":
        assert "state_dict.criterion.weight" in ignored[0]


@st.composite
def disguises(draw):
    """How a training framework may have stored a net: a prefix, wrappers inside names, dictionaries around, company."""
    words = st.sampled_from([*WRAPPERS, "model", "net", "student", "backbone", "a.b"])
    return {
        "prefix": draw(st.lists(words, max_size=3)),
        "inside": {part: draw(st.sampled_from(["", *WRAPPERS])) for part in ("encoder", "norm", "head")},
        "outside": draw(st.lists(st.sampled_from(["state_dict", "model", "weights", "ema"]), max_size=3)),
        "foreign": draw(
            st.dictionaries(
                st.sampled_from(["criterion.weight", "train_loss", "optimizer.m", "step", "best", "extra.weight"]),
                st.sampled_from([(), (3,), (5, 6)]),
                max_size=3,
            )
        ),
        "copy": draw(st.sampled_from(["none", "same", "other", "beside", "misshapen"])),
        "factory": draw(st.sampled_from(["Net", "Wrapped"])),
    }


def stored(state: dict[str, Tensor], how: dict[str, object]) -> dict[str, object]:
    def disguised(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        changed = {}
        for key, value in weights.items():
            part, _, rest = key.partition(".")
            inner = how["inside"][part]
            changed[".".join([*how["prefix"], part, *([inner] if inner else []), rest])] = value
        return changed

    content: dict[str, object] = disguised(state)
    if how["copy"] == "beside":
        content |= {f"teacher.{key}": value for key, value in halved(state).items()}
    for name in reversed(how["outside"]):
        content = {name: content}
    if how["outside"]:
        content |= {key: torch.ones(shape) for key, shape in how["foreign"].items()}
    if how["copy"] == "same":
        content = {"last": content, "first": copy.deepcopy(content)}
    if how["copy"] == "other":
        content = {"last": content, "averaged": halved(state)}
    if how["copy"] == "misshapen":
        content = {"last": content, "wide": {key: torch.ones(*value.shape, 2) for key, value in state.items()}}
    return content


@pytest.mark.slow
@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(how=disguises())
def test_the_same_weights_or_none(nets, how: dict[str, object]) -> None:
    net = random_module(nets.Net())
    torch.save(stored(net.state_dict(), how), nets.path)
    arch = f"{nets.file}:{how['factory']}"
    doubtful = how["copy"] in ("other", "beside", "misshapen") or (how["outside"] and (5, 6) in how["foreign"].values())
    message = None
    try:
        model = load_checkpoint(nets.path, arch=arch).model
    except ArchitectureError as error:
        message = str(error)
    if message is not None:
        assert doubtful
        assert "`weights=" in message
        key = message.rpartition("`weights=")[2].rstrip("`")
        chosen = load_checkpoint(nets.path, arch=arch, weights=key).model
        same = torch.equal(outputs(chosen), outputs(net))
        small = copy.deepcopy(net)
        small.load_state_dict(halved(net.state_dict()))
        assert same or (how["copy"] in ("other", "beside") and torch.equal(outputs(chosen), outputs(small)))
        return
    assert how["copy"] not in ("other", "beside")
    assert torch.equal(outputs(model), outputs(net))


@pytest.mark.parametrize("key", ["student", "state_dict.student", "ema", "state_dict.ema"])
def test_the_user_chooses_between_student_and_average(nets, refused, key: str) -> None:
    net = random_module(nets.Net())
    state = net.state_dict()
    both = {f"student.{k}": v for k, v in state.items()} | {f"ema.{k}": v for k, v in halved(state).items()}
    torch.save({"state_dict": both}, nets.path)
    arch = f"{nets.file}:Net"
    message = refused(ArchitectureError, load_checkpoint, nets.path, arch=arch)
    assert "state_dict.student, state_dict.ema" in message
    assert message.endswith("`weights=student`")
    if "ema" in key:
        net.load_state_dict(halved(state))
    assert torch.equal(outputs(load_checkpoint(nets.path, arch=arch, weights=key).model), outputs(net))
    assert "wrong" in refused(ArchitectureError, load_checkpoint, nets.path, arch=arch, weights="wrong")


def test_averaged_weights_beside_bare_ones(nets, refused) -> None:
    net = random_module(nets.two())
    state = net.state_dict()
    torch.save({**state, **{f"module.{k}": v for k, v in halved(state).items()}}, nets.path)
    arch = f"{nets.file}:two"
    assert "`weights=.`" in refused(ArchitectureError, load_checkpoint, nets.path, arch=arch)
    assert torch.equal(outputs(load_checkpoint(nets.path, arch=arch, weights=".").model), outputs(net))
    net.load_state_dict(halved(state))
    assert torch.equal(outputs(load_checkpoint(nets.path, arch=arch, weights="module").model), outputs(net))


def test_registered_architectures_are_chosen_likewise(nets, refused) -> None:
    state = random_module(nets.two()).state_dict()
    torch.save({"epoch": 9, "state_dict": state, "state_dict_ema": halved(state)}, nets.path)
    assert "`arch=mlp`" in refused(ArchitectureError, load_checkpoint, nets.path)
    assert "state_dict, state_dict_ema" in refused(ArchitectureError, load_checkpoint, nets.path, arch="mlp")
    for key, scale in (("state_dict", 1), ("state_dict_ema", 2)):
        model = load_checkpoint(nets.path, arch="mlp", weights=key).model
        assert torch.equal(model.layers[0].weight * scale, state["0.weight"])


@pytest.mark.parametrize(
    "change",
    [
        {"norm.extra": torch.ones(5)},
        {"encoder.2.weight": torch.ones(5, 5)},
        {"last.weight": torch.ones(3, 3)},
        {"temperature": torch.tensor(2.0)},
    ],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_layer_that_the_model_lacks_is_never_left_out(nets, refused, change, prefix: str) -> None:
    state = random_module(nets.Net()).state_dict() | change
    torch.save({prefix + key: value for key, value in state.items()}, nets.path)
    message = refused(ArchitectureError, load_checkpoint, nets.path, arch=f"{nets.file}:Net")
    assert next(iter(change)) in message


def test_part_of_a_net_is_taken_only_on_request(nets, refused) -> None:
    state = random_module(nets.two()).state_dict()
    torch.save(
        {"backbone": {k: v for k, v in state.items() if k[0] == "0"}, "top": {"weight": torch.ones(3, 5)}}, nets.path
    )
    arch = f"{nets.file}:one"
    message = refused(ArchitectureError, load_checkpoint, nets.path, arch=arch)
    assert "top.weight" in message
    key = message.rpartition("`weights=")[2].rstrip("`")
    assert torch.equal(load_checkpoint(nets.path, arch=arch, weights=key).model[0].weight, state["0.weight"])
    # One layer of the same dictionary is never a net by itself.
    torch.save(state, nets.path)
    refused(ArchitectureError, load_checkpoint, nets.path, arch=arch)


def test_ties(nets, refused) -> None:
    weight, other = torch.rand(4, 4), torch.rand(4, 4)
    arch = f"{nets.file}:Tied"
    for names in (["first"], ["last"], ["first", "last"]):
        torch.save({f"{name}.weight": weight.clone() for name in names}, nets.path)
        model = load_checkpoint(nets.path, arch=arch).model
        assert torch.equal(model.first.weight, weight)
        assert torch.equal(model.last.weight, weight)
    assert "last.weight" in refused(
        ArchitectureError, load_checkpoint, _saved(nets, {"first.weight": weight}), arch=f"{nets.file}:untied"
    )
    path = _saved(nets, {"first.weight": weight, "last.weight": other})
    assert "without tying" in refused(ArchitectureError, load_checkpoint, path, arch=arch)
    assert torch.equal(load_checkpoint(path, arch=f"{nets.file}:untied").model.last.weight, other)


def _saved(nets, content: object) -> Path:
    torch.save(content, nets.path)
    return nets.path


def test_adapters_alone_are_refused_and_the_whole_net_is_read(nets, tmp_path: Path, refused) -> None:
    net = random_module(nets.Lora())
    adapters = {f"base_model.model.{key}": value for key, value in net.state_dict().items() if "lora_" in key}
    save_file(adapters, tmp_path / "adapter_model.safetensors")
    arch = f"{nets.file}:Lora"
    message = refused(ArchitectureError, load_checkpoint, tmp_path / "adapter_model.safetensors", arch=arch)
    assert "adapters only" in message
    assert "state_dict()" in message
    model = load_checkpoint(_saved(nets, net.state_dict()), arch=arch).model
    assert torch.equal(outputs(model, 4), outputs(net, 4))


# Weights without names


@pytest.mark.parametrize("kind", ["npz", "list", "tuple under a key", "without counters"])
def test_rows_of_arrays(nets, tmp_path: Path, kind: str, refused) -> None:
    net = random_module(nets.Net())
    row = [v for k, v in net.state_dict().items() if kind != "without counters" or "num_batches" not in k]
    path = tmp_path / "round-3-weights.npz"
    if kind in ("npz", "without counters"):
        np.savez(path, *[value.numpy() for value in row])
    else:
        path = _saved(nets, row if kind == "list" else {"round": 3, "parameters": tuple(row)})
    checkpoint = load_checkpoint(path, arch=f"{nets.file}:Net")
    assert torch.equal(outputs(checkpoint.model), outputs(net))
    assert "in order" in checkpoint.notes[0]
    assert "`arch=file.py:factory`" in refused(ArchitectureError, load_checkpoint, path)
    assert "has shape (5, 6)" not in refused(ArchitectureError, load_checkpoint, path, arch=f"{nets.file}:one")


def test_rows_in_another_order_are_refused(nets, tmp_path: Path, refused) -> None:
    row = [value.numpy() for value in random_module(nets.Net()).state_dict().values()]
    np.savez(tmp_path / "r.npz", *reversed(row))
    message = refused(ArchitectureError, load_checkpoint, tmp_path / "r.npz", arch=f"{nets.file}:Net")
    assert "array 0 has shape (3), where encoder.0.weight has (5, 6)" in message


def test_npz_with_names(nets, tmp_path: Path) -> None:
    net = random_module(nets.Net())
    np.savez(tmp_path / "named.npz", **{key: value.numpy() for key, value in net.state_dict().items()})
    model = load_checkpoint(tmp_path / "named.npz", arch=f"{nets.file}:Net").model
    assert torch.equal(outputs(model), outputs(net))


# Foreign objects beside weights


class Settings(dict):
    """A dictionary of the user's own, with attributes."""


class Color:
    def __init__(self) -> None:
        self.shade = 3


BESIDE = {
    "Namespace": lambda: argparse.Namespace(lr=0.1, device=torch.device("cpu")),
    "NumPy scalar": lambda: np.float64(0.93),
    "NumPy array": lambda: np.arange(3),
    "array of objects": lambda: np.array([1, "a", None], dtype=object),
    "path": lambda: pathlib.PurePosixPath("a/b"),
    "partial": lambda: functools.partial(dict, a=1),
    "defaultdict": lambda: defaultdict(list, {"a": [1]}),
    "own class": Color,
    "own dictionary": lambda: Settings(a=Settings(b=1)),
    "scheduler": lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 3),
    "set": lambda: {1, 2},
    # Of the old format, torch reads no whole modules.
    "module": lambda: nn.Linear(2, 2),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "new"), [(kind, new) for kind in BESIDE for new in (True, False)][:-1])
def test_objects_beside_the_weights_do_nothing(nets, kind: str, new: bool) -> None:
    net = random_module(nets.Net())
    content = {"args": BESIDE[kind](), "state_dict": net.state_dict(), "more": OrderedDict(deep=[BESIDE[kind]()])}
    torch.save(content, nets.path, _use_new_zipfile_serialization=new)
    assert torch.equal(outputs(load_checkpoint(nets.path, arch=f"{nets.file}:Net").model), outputs(net))


class Witness:
    """Tells whether a class named by a file was built, called or filled."""

    touched = False

    def __new__(cls, *_: object) -> Witness:
        Witness.touched = True
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        Witness.touched = True

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


def test_classes_named_by_a_file_are_not_built(nets) -> None:
    net = random_module(nets.Net())
    torch.save({"w": Witness(), "state_dict": net.state_dict()}, nets.path)
    Witness.touched = False
    load_checkpoint(nets.path, arch=f"{nets.file}:Net")
    assert not Witness.touched


def test_whole_module_and_what_to_do(nets, refused) -> None:
    net = random_module(nets.two())
    message = refused(CheckpointError, load_checkpoint, _saved(nets, {"model": net, "epoch": 3}), arch="mlp")
    assert "torch.nn.modules.container.Sequential" in message
    assert "model.state_dict()" in message
    path = _saved(nets, net.state_dict())
    assert torch.equal(outputs(load_checkpoint(path, arch="mlp").model), outputs(net))


def test_plain_pickle_and_what_to_do(nets, refused) -> None:
    import pickle

    net = random_module(nets.two())
    nets.path.write_bytes(pickle.dumps(OrderedDict(net.state_dict())))
    message = refused(CheckpointError, load_checkpoint, nets.path, arch="mlp")
    assert "save the state dict with torch.save" in message
    path = _saved(nets, pickle.loads(nets.path.read_bytes()))
    assert torch.equal(outputs(load_checkpoint(path, arch="mlp").model), outputs(net))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_and_what_to_do(nets, refused) -> None:
    net = random_module(nets.two())
    torch.jit.save(torch.jit.trace(net, torch.rand(1, 6)), nets.path)
    message = refused(CheckpointError, load_checkpoint, nets.path, arch="mlp")
    assert "TorchScript" in message
    assert "state_dict()" in message
    path = _saved(nets, torch.jit.load(nets.path).state_dict())
    assert torch.equal(outputs(load_checkpoint(path, arch="mlp").model), outputs(net))


def test_integers_where_the_model_has_fractions(nets, refused) -> None:
    state = random_module(nets.two()).state_dict()
    state["0.weight"] = (state["0.weight"] * 100).to(torch.int8)
    message = refused(CheckpointError, load_checkpoint, _saved(nets, state), arch="mlp")
    assert "0.weight in w.pt holds int8" in message
