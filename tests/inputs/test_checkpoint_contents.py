"""Files that hold more than float tensors by name, and folders that hold files."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from riskaudit.errors import CheckpointError
from riskaudit.inputs import load_checkpoint


def test_numpy_state_dict(tmp_path: Path, lenet: nn.Module) -> None:
    arrays = {name: value.numpy() for name, value in lenet.state_dict().items()}
    for new in (True, False):
        torch.save(arrays, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
        loaded = load_checkpoint(tmp_path / "w.pt").model.state_dict()
        assert all(np.array_equal(loaded[name].numpy(), value) for name, value in arrays.items())


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("other", ["module", "namespace", "path"])
def test_objects_beside_the_weights(tmp_path: Path, lenet: nn.Module, refused, new: bool, other: str) -> None:
    beside = {"module": nn.Sequential(nn.Linear(2, 2)), "namespace": Namespace(lr=0.1), "path": tmp_path}[other]
    content = {"state_dict": lenet.state_dict(), "other": beside}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    if other == "module" and not new:
        # The format of before torch 1.6 records the module's source, which weights_only refuses.
        assert "model.state_dict()" in refused(CheckpointError, load_checkpoint, tmp_path / "w.pt")
        return
    loaded = load_checkpoint(tmp_path / "w.pt").model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in lenet.state_dict().items())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["qint8", "int8", "uint8"])
def test_quantised_weights_are_named(tmp_path: Path, lenet: nn.Module, refused, kind: str) -> None:
    state = lenet.state_dict()
    for name, value in state.items():
        if name.endswith("weight"):
            whole = torch.quantize_per_tensor(value, 0.01, 0, torch.qint8)
            state[name] = whole if kind == "qint8" else whole.int_repr().to(getattr(torch, kind))
    torch.save(state, tmp_path / "w.pt")
    assert "quantised" in refused(CheckpointError, load_checkpoint, tmp_path / "w.pt", arch="lenet")


FOLDERS = {
    "one file": (("readme.md", "model.safetensors"), "hand in its file {folder}/model.safetensors"),
    "beside a trainer's": (("optimizer.pt", "model.bin", "training_args.bin"), "file {folder}/model.bin"),
    "several": (("a.pt", "b.pth"), "hand in one of its files a.pt, b.pth"),
    "adapters": (("adapter_config.json", "adapter_model.safetensors"), "name its folder with `base`"),
    "none": (("readme.md",), "none of its files holds weights"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_folder_names_its_file(tmp_path: Path, lenet: nn.Module, refused, kind: str) -> None:
    names, advice = FOLDERS[kind]
    for name in names:
        save_file(lenet.state_dict(), tmp_path / name)
    message = refused(CheckpointError, load_checkpoint, tmp_path)
    assert advice.format(folder=tmp_path) in message
    # What is named works.
    if kind == "one file":
        assert load_checkpoint(message.rpartition("file ")[2]).architecture == "lenet"
