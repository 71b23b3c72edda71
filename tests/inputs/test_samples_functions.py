from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from riskaudit.errors import SamplesError, UserCodeError
from riskaudit.inputs import Samples, load_samples

FUNCTIONS = """
import torch
from riskaudit.inputs import Samples
def pair(): return torch.ones(3, 2), torch.tensor([0, 1, 0])
def mapping(): return {"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "y": [1, 0], "ids": ["a", "b"]}
def samples(): return Samples.from_tensors(torch.ones(1, 2), torch.tensor([1]), class_names=["no", "yes"])
def lists(): return [[1.0, 2.0]], [1]
def wrong(): return 3
def three(): return 1, 2, 3
def fails(): raise OSError("gone")
def ragged(): return [[1.0], [1.0, 2.0]], [1, 2]
"""


@pytest.fixture
def functions(tmp_path: Path) -> str:
    (tmp_path / "data.py").write_text(FUNCTIONS)
    return f"{tmp_path}/data.py"


@pytest.mark.parametrize(
    ("name", "shape"), [("pair", (3, 2)), ("mapping", (2, 1, 4, 4)), ("samples", (1, 2)), ("lists", (1, 2))]
)
def test_function(functions: str, name: str, shape) -> None:
    samples = load_samples(f"{functions}:{name}")
    assert samples.inputs.shape == shape
    assert samples.sha256 is None
    assert samples.name == f"data.py:{name}"
    assert len(load_samples(f"{functions}:{name}", limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("wrong", "a int"), ("three", "3 values"), ("fails", "OSError: gone"), ("absent", "no 'absent'")],
)
def test_function_refused(functions: str, refused, name: str, words: str) -> None:
    assert words in refused(UserCodeError, load_samples, f"{functions}:{name}")


def test_function_with_ragged_lists(functions: str, refused) -> None:
    refused(SamplesError, load_samples, f"{functions}:ragged")


def test_from_tensors(refused) -> None:
    samples = Samples.from_tensors(
        torch.full((2, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0, 1]), ids=["a", "b"], class_names=["x", "y"]
    )
    assert samples.inputs.max() == 1
    assert samples.ids == ("a", "b")
    assert samples.class_names == ("x", "y")
    assert samples.name == "samples"
    message = refused(SamplesError, Samples.from_tensors, torch.ones(2, 2), torch.tensor([1]))
    assert "2 inputs but 1 targets" in message
    assert "ids" in refused(SamplesError, Samples.from_tensors, torch.ones(2, 2), torch.tensor([1, 1]), ids=["a"])


def test_npy_is_no_archive(tmp_path: Path, refused) -> None:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    (tmp_path / "d.npz").write_bytes(stream.getvalue())
    assert "numpy.savez" in refused(SamplesError, load_samples, tmp_path / "d.npz")
