from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_cases import Attack, check_sentence
from safetensors.torch import save_file
from torch import nn

from riskaudit.errors import ArchitectureError, CheckpointError, InputError, RiskauditError
from riskaudit.inputs import load_checkpoint


def same_outputs(model: nn.Module, other: nn.Module) -> None:
    x = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    assert torch.equal(model(x), other(x))


WRAPPINGS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {
        "state_dict": state,
        "epoch": 3,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    },
    "model": lambda state: {"model": state, "best": 0.5},
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state},
    "net": lambda state: {"net": state, "acc": 91.0},
    "nested": lambda state: {"model": {"state_dict": state}},
    "beside a config called model": lambda state: {"model": {"name": {"kind": "lenet"}}, **state},
    "extra": lambda state: {**state, "epoch": 4, "note": "hello"},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_wrapped_and_prefixed(tmp_path: Path, lenet: nn.Module, wrapping: str, prefix: str) -> None:
    path = tmp_path / "w.pth"
    torch.save(WRAPPINGS[wrapping]({prefix + key: value for key, value in lenet.state_dict().items()}), path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.architecture == "lenet"
    assert checkpoint.recognised
    assert checkpoint.num_parameters == 17038
    assert checkpoint.name == "w.pth"
    assert len(checkpoint.sha256 or "") == 64
    assert not checkpoint.model.training
    same_outputs(checkpoint.model, lenet)


def test_prefix_only_on_some_keys_stays(tmp_path: Path, lenet: nn.Module, refused) -> None:
    state = lenet.state_dict()
    state["module.fc.0.bias"] = state.pop("fc.0.bias")
    torch.save(state, tmp_path / "p.pt")
    assert "lenet: fc.0.bias is missing; module.fc.0.bias is unexpected" in refused(
        ArchitectureError, load_checkpoint, tmp_path / "p.pt"
    )


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".weights", ""])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_format_by_content(tmp_path: Path, lenet: nn.Module, suffix: str, kind: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if kind == "safetensors":
        save_file(lenet.state_dict(), path)
    else:
        torch.save(lenet.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    same_outputs(load_checkpoint(path).model, lenet)


def test_safetensors(tmp_path: Path, lenet: nn.Module) -> None:
    save_file({f"module.{key}": value for key, value in lenet.state_dict().items()}, tmp_path / "l.safetensors")
    same_outputs(load_checkpoint(tmp_path / "l.safetensors").model, lenet)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(tmp_path: Path, lenet: nn.Module, dtype: torch.dtype) -> None:
    torch.save(lenet.to(dtype).state_dict(), tmp_path / "d.pt")
    loaded = load_checkpoint(tmp_path / "d.pt").model
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert torch.equal(next(loaded.parameters()), next(lenet.parameters()).to(expected))


def test_loaded_weights_are_independent_of_the_file(lenet_file: Path) -> None:
    model = load_checkpoint(lenet_file).model
    before = [parameter.clone() for parameter in model.parameters()]
    lenet_file.write_bytes(b"\0" * lenet_file.stat().st_size)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_loading_leaves_the_random_state(lenet_file: Path) -> None:
    before = torch.random.get_rng_state()
    load_checkpoint(lenet_file)
    assert torch.equal(before, torch.random.get_rng_state())


# Refusals


@pytest.mark.parametrize("name", ["no.pt", "dir", "empty.pt", "long" * 80 + ".pt", "new\nline.pt"])
def test_missing_directory_empty(tmp_path: Path, refused, name: str) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "empty.pt").touch()
    message = refused(CheckpointError, load_checkpoint, tmp_path / name)
    assert name in message or "long" in message or "line" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "empty dict"),
        (torch.ones(3), "bare tensor"),
        ([torch.ones(3)], "list"),
        ({"epoch": 3, "optimizer": {"lr": 1.0}}, "epoch, optimizer"),
        ({1: torch.ones(2)}, "the keys 1"),
        ({"a.weight": torch.ones(2, dtype=torch.int64)}, "integers only"),
        ({"a.weight": torch.tensor([1.0, float("nan")])}, "a.weight in w.pt holds NaN or infinite"),
        (
            {"a.weight": torch.tensor([1.0, float("inf")], dtype=torch.float16)},
            "a.weight in w.pt holds NaN or infinite",
        ),
        ({"a.weight": torch.ones(2, dtype=torch.complex64), "b": torch.ones(1)}, "a.weight in w.pt isn't a plain"),
        ({"a.weight": torch.ones(2, 2).to_sparse()}, "a.weight in w.pt isn't a plain"),
        ({"a.weight": torch.ones(1).expand(10**6, 10**6)}, "claims more values than are stored"),
        ({"a.weight": torch.ones(2, device="meta")}, "w.pt"),
    ],
)
def test_wrong_content(tmp_path: Path, refused, content: object, words: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert words in refused(CheckpointError, load_checkpoint, tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle", "data.pkl in .safetensors name"])
def test_malicious_pickle_is_not_run(tmp_path: Path, refused, kind: str) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / ("evil.safetensors" if "safetensors" in kind else "evil.pt")
    content = {"a.weight": torch.ones(2), "x": Attack(marker)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Attack(marker)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    message = refused(CheckpointError, load_checkpoint, path)
    assert "io.open" in message
    assert "state_dict()" in message
    assert not marker.exists()


@pytest.mark.parametrize("new", [True, False])
def test_pickled_module_is_refused(tmp_path: Path, refused, new: bool) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "m.pt", _use_new_zipfile_serialization=new)
    message = refused(CheckpointError, load_checkpoint, tmp_path / "m.pt")
    assert "torch.nn.modules" in message
    assert "model.state_dict()" in message


def test_torchscript_is_refused(tmp_path: Path, refused) -> None:
    with zipfile.ZipFile(tmp_path / "s.pt", "w") as archive:
        archive.writestr("s/data.pkl", b"\x80\x02}.")
        archive.writestr("s/constants.pkl", b"\x80\x02).")
        archive.writestr("s/code/__torch__.py", "class X: pass")
    assert "TorchScript" in refused(CheckpointError, load_checkpoint, tmp_path / "s.pt")


def test_tar_from_before_zip(tmp_path: Path, refused) -> None:
    with tarfile.open(tmp_path / "t.pt", "w") as archive:
        entry = tarfile.TarInfo("storages")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    assert "tar archive" in refused(CheckpointError, load_checkpoint, tmp_path / "t.pt")


def resized_pickle(path: Path, num_items: int) -> None:
    """Rewrite a saved one-tensor file so that its pickle claims another number of items."""
    old = b"X\x03\x00\x00\x00cpuq\x06K\x04t"
    new = b"X\x03\x00\x00\x00cpuq\x06" + b"\x8a\x08" + struct.pack("<q", num_items) + b"t"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    assert old in members[pickled]
    members[pickled] = members[pickled].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("num_items", [5, 10**12, -1, 2**62])
def test_storage_that_claims_too_much(tmp_path: Path, refused, num_items: int) -> None:
    torch.save({"a": torch.randn(4)}, tmp_path / "c.pt")
    resized_pickle(tmp_path / "c.pt", num_items)
    assert "claims a tensor of" in refused(CheckpointError, load_checkpoint, tmp_path / "c.pt")


def test_legacy_storage_that_claims_too_much(tmp_path: Path, refused) -> None:
    torch.save({"a": torch.randn(4)}, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "c.pt").read_bytes()
    mark = content.index(b"X\x03\x00\x00\x00cpu")
    place = content.index(b"K\x04", mark)
    claim = b"\x8a\x08" + struct.pack("<q", 10**12)
    (tmp_path / "c.pt").write_bytes(content[:place] + claim + content[place + 2 :])
    assert "claims 4000000000000 bytes" in refused(CheckpointError, load_checkpoint, tmp_path / "c.pt")


def test_compressed_zip_bomb(tmp_path: Path, refused) -> None:
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/data.pkl", b"\x80\x02}.")
        archive.writestr("b/data/0", bytes(10**7))
    assert "compressed" in refused(CheckpointError, load_checkpoint, tmp_path / "b.pt")


def test_zip_that_claims_more_than_the_file(tmp_path: Path, refused) -> None:
    torch.save({"a": torch.randn(1000)}, tmp_path / "b.pt")
    content = (tmp_path / "b.pt").read_bytes()
    central = content.rindex(b"PK\x01\x02")
    claimed = content[: central + 20] + struct.pack("<II", 2**31, 2**31) + content[central + 28 :]
    (tmp_path / "b.pt").write_bytes(claimed)
    assert "claims" in refused(CheckpointError, load_checkpoint, tmp_path / "b.pt")


@pytest.mark.parametrize("length", [100 * 2**30, 2**63, 0, 1])
def test_safetensors_header_length(tmp_path: Path, refused, length: int) -> None:
    (tmp_path / "h.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a":1}')
    message = refused(CheckpointError, load_checkpoint, tmp_path / "h.safetensors")
    assert "h.safetensors" in message
    assert "damaged" in message


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        b"[" * 5000,
        b"{]",
        b'"text"',
        b"\xff\xfe",
    ],
)
def test_safetensors_broken_header(tmp_path: Path, refused, header: bytes) -> None:
    (tmp_path / "h.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    assert "h.safetensors" in refused(CheckpointError, load_checkpoint, tmp_path / "h.safetensors")


def test_unknown_format_lists_the_accepted(tmp_path: Path, refused) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x08\x07\x12\x04text")
    message = refused(CheckpointError, load_checkpoint, tmp_path / "a.onnx")
    assert ".pt" in message
    assert ".safetensors" in message


def test_npz_of_something_else(tmp_path: Path, refused) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    assert "no registered architecture" in refused(ArchitectureError, load_checkpoint, tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0005, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_truncated(tmp_path: Path, refused, lenet: nn.Module, kind: str, share: float) -> None:
    path = tmp_path / ("t.safetensors" if kind == "safetensors" else "t.pt")
    if kind == "safetensors":
        save_file(lenet.state_dict(), path)
    else:
        torch.save(lenet.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(share * len(content)))])
    assert path.name in refused(CheckpointError, load_checkpoint, path)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_or_flipped_anywhere(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("f.safetensors" if kind == "safetensors" else "f.pt")
    state = {"layers.0.weight": torch.ones(3, 4), "layers.0.bias": torch.ones(3), "layers.2.weight": torch.ones(2, 3)}
    state["layers.2.bias"] = torch.ones(2)
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(cut=st.integers(1, len(whole) - 1))
    def truncated(cut: int) -> None:
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError):
            load_checkpoint(path)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(place=st.integers(0, len(whole) - 1), value=st.integers(0, 255))
    def flipped(place: int, value: int) -> None:
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        try:
            load_checkpoint(path)
        except RiskauditError as error:
            check_sentence(error)

    truncated()
    flipped()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".pt2", ".xyz"])
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(min_size=1, max_size=80),
    start=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x10" + bytes(7)]),
)
def test_random_bytes(tmp_path: Path, suffix: str, content: bytes, start: bytes) -> None:
    (tmp_path / f"r{suffix}").write_bytes(start + content)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / f"r{suffix}")
