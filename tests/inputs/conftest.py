"""Small checkpoints and samples, and the check that every refusal is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from input_cases import check_sentence, random_module
from torch import nn

from riskaudit.errors import RiskauditError
from riskaudit.inputs.architectures.convolutional import LeNet


@pytest.fixture
def lenet() -> nn.Module:
    return random_module(LeNet())


@pytest.fixture
def lenet_file(tmp_path: Path, lenet: nn.Module) -> Path:
    path = tmp_path / "lenet.pt"
    torch.save(lenet.state_dict(), path)
    return path


@pytest.fixture
def refused() -> Callable[..., str]:
    """Call something that must refuse; returns its message after checking that it is one sentence."""

    def check(kind: type[RiskauditError], function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
        with pytest.raises(kind) as caught:
            function(*arguments, **options)
        check_sentence(caught.value)
        return str(caught.value)

    return check
