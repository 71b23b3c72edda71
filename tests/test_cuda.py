"""On a CUDA device an audit gives the numbers that it gives on the CPU."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch

import riskaudit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Eigenvalues near zero carry float32's rounding, so float32 is held against the headline only.
CASES = {
    "float64 dense": ("float64", "dense", 1e-9, None),
    "float64 lanczos": ("float64", "lanczos", 1e-6, None),
    "float32 dense": ("float32", "dense", 1e-3, {"gradient_norm", "revealed_fraction", "posterior_rmse"}),
}


@pytest.mark.parametrize(("dtype", "solver", "tolerance", "only"), CASES.values(), ids=list(CASES))
def test_same_numbers_as_on_the_cpu(dtype: str, solver: str, tolerance: float, only: set[str] | None) -> None:
    folder = Path(str(files("riskaudit"))) / "demo"
    checkpoint = riskaudit.load_checkpoint(folder / "digits-lenet.safetensors")
    samples = riskaudit.load_samples(folder / "digits.npz", channels=1, limit=12)
    options = {"release": "clip:0.5,gaussian:0.01", "solver": solver}
    expected = riskaudit.audit(checkpoint, samples, device="cpu", dtype="float64", **options)
    found = riskaudit.audit(checkpoint, samples, device="cuda", dtype=dtype, **options)
    assert found.settings.device.startswith("cuda")
    for there, here in zip(found.samples, expected.samples, strict=True):
        for name, estimate in here.proxies.items():
            if only is None or name in only:
                assert there.proxies[name].value == pytest.approx(estimate.value, rel=tolerance), name
