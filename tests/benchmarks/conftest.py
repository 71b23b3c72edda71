"""Benchmarks set PyTorch's own switches; the next test finds them as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _keep_torch_settings() -> Iterator[None]:
    threads, rounding = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = rounding
