"""Targets that aren't class numbers may be the private input: they are written only where samples are shown."""

from __future__ import annotations

import pytest
import torch

from riskaudit.audit.audit import audit
from riskaudit.audit.company import is_class_number
from riskaudit.inputs import Samples
from riskaudit.report import render


def _audit(targets: torch.Tensor, outputs: int, loss: str, *, shown: bool):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, outputs))
    samples = Samples.from_tensors(torch.rand(3, 6), targets)
    return audit(model, samples, release="gaussian:0.1", loss=loss, show_samples=shown)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("targets", "outputs", "loss"),
    [
        (torch.full((3, 6), 0.123456789), 6, "mse"),
        (torch.full((3,), 0.123456789), 1, "mse"),
        (torch.full((3, 4), 0.123456789), 4, "bce"),
    ],
)
def test_private_targets_stay_out(targets: torch.Tensor, outputs: int, loss: str) -> None:
    result = _audit(targets, outputs, loss, shown=False)
    assert [row.target for row in result.samples] == [None] * 3
    assert result.data.target_kind is not None
    assert result.data.target_kind.startswith("float")
    for content in render(result, ["json", "csv", "md", "html"]).values():
        assert b"0.1234" not in content
    shown = _audit(targets, outputs, loss, shown=True)
    assert all(row.target is not None for row in shown.samples)


def test_class_numbers_are_written() -> None:
    result = _audit(torch.tensor([2, 0, 1]), 3, "cross-entropy", shown=False)
    assert [row.target for row in result.samples] == [2, 0, 1]
    assert result.data.target_kind == "class numbers"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (torch.tensor(3), True),
        (torch.tensor(True), True),
        (torch.tensor(3.0), False),
        (torch.tensor([3]), False),
        (torch.tensor(3j), False),
    ],
)
def test_what_a_class_number_is(target: torch.Tensor, expected: bool) -> None:
    assert is_class_number(target) == expected
