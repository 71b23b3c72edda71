"""What leaves the client: gradients, their means or differences of weights, with steps and noise.

Names are imported on first use, so that `riskaudit.release.grammar` loads without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from riskaudit.release.base import Batch, Release, Upload
    from riskaudit.release.choice import make_release
    from riskaudit.release.grammar import ReleaseSpec
    from riskaudit.release.model import batch_norm_layers, is_random, mixes_samples, with_batch_statistics
    from riskaudit.release.noise import Noise
    from riskaudit.release.per_sample import PerSampleRelease

_HOMES = {
    "Batch": "base",
    "Noise": "noise",
    "PerSampleRelease": "per_sample",
    "Release": "base",
    "ReleaseSpec": "grammar",
    "Upload": "base",
    "batch_norm_layers": "model",
    "is_random": "model",
    "make_release": "choice",
    "mixes_samples": "model",
    "with_batch_statistics": "model",
}

__all__ = [
    "Batch",
    "Noise",
    "PerSampleRelease",
    "Release",
    "ReleaseSpec",
    "Upload",
    "batch_norm_layers",
    "is_random",
    "make_release",
    "mixes_samples",
    "with_batch_statistics",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
