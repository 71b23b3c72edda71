"""What single precision costs an audit by Lanczos iterations: wider intervals, no more products."""

from __future__ import annotations

import torch

import riskaudit
from riskaudit.inputs.architectures import get_architecture
from riskaudit.results import AuditResult

NOISE = 0.01


def audited(dtype: str) -> AuditResult:
    """An image of a network whose curvature lies many orders above the noise."""
    torch.manual_seed(0)
    model = get_architecture("lenet").build(channels=1, features=588, classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    samples = riskaudit.inputs.Samples.from_tensors(torch.rand(1, 1, 28, 28), torch.tensor([3]))
    return riskaudit.audit(model.eval(), samples, release=f"gaussian:{NOISE}", solver="lanczos", dtype=dtype)


def test_iterations_end_where_only_rounding_is_left() -> None:
    single, double = audited("float32"), audited("float64")
    assert single.cost.matvecs <= 1.2 * double.cost.matvecs
    for rows in zip(single.samples, double.samples, strict=True):
        for name in ("revealed_fraction", "posterior_rmse", "map_i2f"):
            (low, high), (double_low, double_high) = (row.proxies[name].ends for row in rows)
            assert None not in (low, double_low, double_high)
            # Both hold the truth, so that they overlap.
            assert low <= double_high
            assert high is None or high >= double_low
