"""Audits whose products are in single precision: as narrow, nearly as few products, and double where noise is small."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scan_cases import demo_model, demo_samples
from torch import Tensor, nn

import riskaudit
from riskaudit.audit import AuditSettings
from riskaudit.inputs import Samples
from riskaudit.inputs.architectures import get_architecture
from riskaudit.results import AuditResult


def audited(dtype: str, noise: float = 0.01) -> AuditResult:
    """An image of a network whose curvature lies many orders above the noise."""
    torch.manual_seed(0)
    model = get_architecture("lenet").build(channels=1, features=588, classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    samples = Samples.from_tensors(torch.rand(1, 1, 28, 28), torch.tensor([3]))
    return riskaudit.audit(model.eval(), samples, release=f"gaussian:{noise}", solver="lanczos", dtype=dtype)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_iterations_end_where_only_rounding_is_left(dtype: str) -> None:
    single, double = audited(dtype), audited("float64")
    assert single.cost.matvecs <= 1.2 * double.cost.matvecs
    for rows in zip(single.samples, double.samples, strict=True):
        for name in ("revealed_fraction", "posterior_rmse", "map_i2f"):
            (low, high), (double_low, double_high) = (row.proxies[name].ends for row in rows)
            assert None not in (low, double_low, double_high)
            # Both hold the truth, so that they overlap.
            assert low <= double_high
            assert high is None or high >= double_low
            if dtype == "mixed":
                assert high - low <= 1.3 * (double_high - double_low)


def dtypes(result: AuditResult) -> list[str | None]:
    return [row.solvers["largest_eigenvalue"].dtype for row in result.samples]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("noise", [0.05, 0.002])
def test_intervals_contain_the_dense_values(noise: float) -> None:
    """Of a trained network, which leaves tiny losses: single precision alone is off by up to 2000 roundings of H."""
    samples, release = demo_samples(8), f"gaussian:{noise}"
    mixed = riskaudit.audit(demo_model(), samples, release=release, solver="lanczos", dtype="mixed")
    dense = riskaudit.audit(demo_model(), samples, release=release, solver="dense")
    assert "float32" in dtypes(mixed)
    for row, exact in zip(mixed.samples, dense.samples, strict=True):
        assert row.proxies["gradient_norm"] == exact.proxies["gradient_norm"]
        for name, estimate in row.proxies.items():
            truth, (low, high) = exact.proxies[name].value, estimate.ends
            if truth is not None and estimate.status == "bracketed":
                assert low is None or low <= truth * (1 + 1e-9)
                assert high is None or high >= truth * (1 - 1e-9)


def test_samples_below_the_resolution_are_done_in_double_precision() -> None:
    """The first digit's curvature is 10,000 times that of the others."""
    result = riskaudit.audit(
        demo_model(), demo_samples(4), release="gaussian:0.02", solver="lanczos", dtype="mixed", prior_std=0.4
    )
    assert dtypes(result) == ["float64", "float32", "float32", "float32"]
    assert sum("float64" in warning and "1 of 4" in warning for warning in result.warnings) == 1
    double = riskaudit.audit(
        demo_model(), demo_samples(4), release="gaussian:0.02", solver="lanczos", dtype="float64", prior_std=0.4
    )
    assert dtypes(double) == ["float64"] * 4
    # The very products that float64 has, whatever company the sample keeps.
    mixed, plain = (each.samples[0].proxies for each in (result, double))
    for name in ("revealed_fraction", "lavp_l2_max", "map_i2f"):
        assert mixed[name].value == pytest.approx(plain[name].value, rel=1e-9)
        assert mixed[name].ends == pytest.approx(plain[name].ends, rel=1e-9)


@pytest.mark.slow
def test_uploads_of_several_samples() -> None:
    options = {"release": "mean:2,gaussian:0.05", "solver": "lanczos", "max_matvecs": 40}
    mixed, double = (
        riskaudit.audit(demo_model(), demo_samples(2), dtype=each, **options) for each in ("mixed", "float64")
    )
    for row, other in zip(mixed.samples, double.samples, strict=True):
        for name in ("revealed_fraction", "informed_revealed_fraction"):
            (low, high), (double_low, double_high) = (each.proxies[name].ends for each in (row, other))
            assert low <= double_high
            assert high >= double_low


def test_precision_that_a_device_gets() -> None:
    assert AuditSettings().chosen_dtype(torch.device("cuda")) == "mixed"
    assert AuditSettings().chosen_dtype(torch.device("cpu")) == "float64"
    assert AuditSettings(dtype="float32").chosen_dtype(torch.device("cuda")) == "float32"


class Tiny(nn.Module):
    """A network that notes what it is run in."""

    def __init__(self, double_only: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)
        self.double_only = double_only

    def forward(self, inputs: Tensor) -> Tensor:
        seen.append((inputs.dtype, torch.backends.cudnn.allow_tf32))
        out: Tensor = self.layer(inputs.flatten(1))
        return out @ torch.eye(4, dtype=torch.float64) if self.double_only else F.softplus(out)


seen: list[tuple[torch.dtype, bool]] = []


def tiny(double_only: bool = False) -> AuditResult:
    torch.manual_seed(0)
    samples = Samples.from_tensors(torch.rand(2, 1, 4, 4), torch.tensor([1, 3]))
    model = Tiny(double_only).eval()
    model = model.double() if double_only else model
    return riskaudit.audit(model, samples, release="gaussian:0.1", solver="lanczos", dtype="mixed")


def test_single_precision_is_never_cut_short() -> None:
    """TF32, which CUDA devices would use for convolutions, is off while samples are audited, and as before after it."""
    before = torch.backends.cudnn.allow_tf32
    seen.clear()
    result = tiny()
    assert result.settings.dtype == "mixed"
    single = [allowed for dtype, allowed in seen if dtype == torch.float32]
    assert single.count(False) > 1
    assert torch.backends.cudnn.allow_tf32 is before


def test_models_of_double_precision_only() -> None:
    result = tiny(double_only=True)
    assert dtypes(result) == ["float64", "float64"]
    assert any("can't be run in float32" in warning for warning in result.warnings)
