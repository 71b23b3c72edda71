"""Models that convert to single precision in between are audited in double precision throughout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riskaudit.release import Batch, PerSampleRelease, make_release


class Rounding(nn.Module):
    """A softmax and a mean square in single precision whatever comes in, as Hugging Face's models have."""

    def __init__(self, to: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.last, self.to_dtype = nn.Linear(5, 4), nn.Linear(4, 3), to

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        weights = F.softmax(hidden, dim=-1, dtype=self.to_dtype).to(x.dtype)
        single = hidden.to(self.to_dtype)
        single = single * torch.rsqrt(single.float().pow(2).mean(-1, keepdim=True) + 1)
        return self.last(weights * single.to(x.dtype))


class Exact(Rounding):
    """The same in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        normal = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1)
        return self.last(F.softmax(hidden, dim=-1) * normal)


def models(to: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    rounding, exact = Rounding(to).double().eval(), Exact().double().eval()
    exact.load_state_dict(rounding.state_dict())
    return rounding, exact


def batch(count: int = 2) -> Batch:
    inputs = torch.randn(count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(inputs, torch.arange(count) % 3, count)


@pytest.mark.parametrize("text", ["gradient", "mean:2"])
def test_double_precision_is_kept(text: str) -> None:
    given = batch()
    samples = given if text == "mean:2" else Batch(given.inputs, given.targets)
    found, expected = (make_release(model, F.cross_entropy, text).mean(samples) for model in models())
    assert float((found - expected).norm()) < 1e-14 * float(expected.norm())


def test_half_precision_stays() -> None:
    """It is part of the model: the gradient that leaves has its rounding."""
    rounding, exact = models(torch.bfloat16)
    samples = Batch(batch().inputs, batch().targets)
    found, expected = (PerSampleRelease(model, F.cross_entropy).mean(samples) for model in (rounding, exact))
    assert 1e-4 < float((found - expected).norm() / expected.norm()) < 0.1


def test_single_precision_is_what_it_was() -> None:
    rounding, exact = (model.float() for model in models())
    samples = Batch(batch().inputs.float(), batch().targets)
    found, expected = (PerSampleRelease(model, F.cross_entropy).mean(samples) for model in (rounding, exact))
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
