"""Broken and hostile checkpoints and samples: exit 2, one sentence, and nothing written."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scan_cases import CHECKPOINT, DATA, demo_model, save_arrays, save_digits, save_images, save_mlp, words


class RunsCode:
    """Unpickles to a call that creates the file ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.marker), "w"))


def entries(folder: Path) -> set[Path]:
    """Everything below a folder, hidden files included."""
    return set(folder.rglob("*"))


@pytest.fixture
def refuse(command, tmp_path) -> Callable[..., str]:
    """Run a scan that must be refused; returns its sentence after checking that nothing was left behind."""

    def check(*options: str, **sources) -> str:
        before = entries(tmp_path)
        outcome = command(*words(*options, **sources))
        assert outcome.code == 2, outcome
        assert outcome.err.startswith("riskaudit: ")
        assert outcome.err.count("\n") == 1
        assert outcome.err.endswith("\n")
        assert outcome.out == ""
        assert len(outcome.err) < 600
        assert "Traceback" not in outcome.err
        assert "unexpected" not in outcome.err.split(":")[1], outcome.err
        assert entries(tmp_path) == before
        return outcome.err

    return check


def _truncated(path: Path) -> Path:
    whole = path.with_name("whole.pt")
    torch.save(demo_model().state_dict(), whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


def _runs_code(path: Path) -> Path:
    path.write_bytes(pickle.dumps(RunsCode(path.with_name("marker"))))
    return path


def _runs_code_zipped(path: Path) -> Path:
    torch.save({"weight": torch.zeros(2), "bomb": RunsCode(path.with_name("marker"))}, path)
    return path


def _module(path: Path) -> Path:
    torch.save(demo_model(), path)
    return path


def _unknown(path: Path) -> Path:
    torch.save({"encoder.weight": torch.zeros(3, 3), "decoder.weight": torch.zeros(3, 3)}, path)
    return path


def _near_miss(path: Path) -> Path:
    state = load_file(CHECKPOINT)
    last = next(name for name in reversed(state) if name.endswith("weight"))
    torch.save({name: value for name, value in state.items() if name != last}, path)
    return path


def _not_a_number(path: Path) -> Path:
    state = {name: value.clone() for name, value in load_file(CHECKPOINT).items()}
    next(iter(state.values())).flatten()[0] = float("nan")
    torch.save(state, path)
    return path


def _huge_header(path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    path.write_bytes(struct.pack("<Q", 100 * 10**9) + b'{"weight":')
    return path


def _huge_tensor(path: Path) -> Path:
    header = b'{"weight":{"dtype":"F32","shape":[25000000000],"data_offsets":[0,100000000000]}}'
    path = path.with_suffix(".safetensors")
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    return path


def _empty(path: Path) -> Path:
    path.touch()
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda path: path, "model.pt"),
    "folder": (_folder, "found the folder"),
    "empty": (_empty, "empty"),
    "truncated": (_truncated, "model.pt"),
    "pickle-runs-code": (_runs_code, "model.pt"),
    "zip-runs-code": (_runs_code_zipped, "model.pt"),
    "pickled-module": (_module, "state_dict"),
    "unknown-architecture": (_unknown, "nearest: "),
    "lenet-without-its-last-layer": (_near_miss, "nearest: lenet"),
    "nan-weights": (_not_a_number, "NaN"),
    "header-of-100-gb": (_huge_header, "model.safetensors"),
    "tensor-of-100-gb": (_huge_tensor, "model.safetensors"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoint(refuse, tmp_path, case) -> None:
    make, expected = CHECKPOINTS[case]
    message = refuse(checkpoint=make(tmp_path / "model.pt"))
    assert expected in message
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("make", [_runs_code, _runs_code_zipped], ids=["pickle", "zip"])
def test_samples_that_would_run_code(refuse, tmp_path, make) -> None:
    assert "data.pt" in refuse(data=make(tmp_path / "data.pt"))
    assert not (tmp_path / "marker").exists()


def _images(count: int = 2, channels: int = 3, size: int = 32) -> np.ndarray:
    return np.zeros((count, channels, size, size), dtype=np.uint8)


def _nan_pixels() -> np.ndarray:
    pixels = np.zeros((2, 8, 8), dtype=np.float32)
    pixels[1, 3, 3] = np.nan
    return pixels


SAMPLES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda path: path, "data.npz"),
    "empty": (_empty, "data.npz"),
    "folder-without-classes": (_folder, "folder per class"),
    "nan-pixels": (lambda path: save_digits(path, images=_nan_pixels()), "NaN"),
    "labels-out-of-range": (lambda path: save_digits(path, labels=np.array([3, 10])), "10 classes (0 to 9)"),
    "negative-label": (lambda path: save_digits(path, labels=np.array([3, -1])), "label -1"),
    "no-samples": (lambda path: save_digits(path, 0), "no samples"),
    "fewer-labels": (lambda path: save_digits(path, labels=np.array([3])), "2 images, 1 labels"),
    "other-shape": (lambda path: save_digits(path, images=_images()), "channels"),
    "objects": (lambda path: save_digits(path, labels=np.array([RunsCode(path), {}], dtype=object)), "objects"),
    "unknown-format": (lambda path: save_mlp(path.with_suffix(".xyz"), (4, 2)), "data.xyz"),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_samples(refuse, tmp_path, case) -> None:
    make, expected = SAMPLES[case]
    assert expected in refuse(data=make(tmp_path / "data.npz"))


def test_lenet_for_mnist_on_cifar_images(refuse, tmp_path) -> None:
    from riskaudit.inputs.architectures.convolutional import LeNet

    torch.save(LeNet().state_dict(), tmp_path / "lenet.pt")
    data = save_arrays(tmp_path / "cifar.npz", images=_images(), labels=np.zeros(2, dtype=np.int64))
    message = refuse(checkpoint=tmp_path / "lenet.pt", data=data)
    assert "takes 1 channels" in message
    assert "3, 32, 32" in message


def test_a_folder_of_images_of_another_size(refuse, tmp_path) -> None:
    data = save_images(tmp_path / "faces", {"a": ["x.png"], "b": ["y.png"]}, size=9)
    assert "(1, 9, 9)" in refuse(data=data)


def test_a_name_of_several_lines_stays_one_line(refuse, tmp_path) -> None:
    message = refuse("--policy", str(tmp_path / "no\nsuch\x1b[31m.toml"))
    assert "no such[31m.toml" in message


def test_infinite_weights_in_safetensors(refuse, tmp_path) -> None:
    state = {name: value.clone() for name, value in load_file(CHECKPOINT).items()}
    next(iter(state.values())).flatten()[0] = float("inf")
    save_file(state, tmp_path / "model.safetensors")
    assert "infinite" in refuse(checkpoint=tmp_path / "model.safetensors")


def test_the_good_case_is_accepted(command) -> None:
    assert command(*words(checkpoint=CHECKPOINT, data=DATA)).code == 0
