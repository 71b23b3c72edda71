"""After a few plain products J v comes from a traced linearisation: same numbers, or the plain product again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from riskaudit.jacobian import GenericJacobian, generic
from riskaudit.release import Batch, PerSampleRelease

NUM_SAMPLES = 3


def jacobian() -> GenericJacobian:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(36, 5))
    release = PerSampleRelease(model.double().eval(), F.cross_entropy, "clip:0.5,prune:0.3,mask:0.2,gaussian:0.1")
    batch = Batch(torch.rand(NUM_SAMPLES, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 4, 2]))
    return GenericJacobian(release, batch)


def products(operator: GenericJacobian, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (NUM_SAMPLES, operator.shape[1])
    return [operator.matvec(torch.randn(shape, generator=generator, dtype=torch.float64)) for _ in range(count)]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("indices", [[0, 1, 2], [1]], ids=["batch", "one sample"])
def test_traced_products_are_the_plain_ones(monkeypatch, indices) -> None:
    count = generic.PLAIN_PUSHES + 3
    whole = torch.eye(64, dtype=torch.float64).expand(len(indices), 64, 64)
    operator = jacobian().select(indices)
    dense = operator.matmat(whole)  # several columns never go through the linearisation
    vectors = torch.randn(count, len(indices), 64, dtype=torch.float64)
    found = [operator.matvec(vector) for vector in vectors]
    assert "_linearised" in operator.__dict__
    for vector, product in zip(vectors, found, strict=True):
        torch.testing.assert_close(product, torch.einsum("bpd,bd->bp", dense, vector), rtol=1e-10, atol=1e-12)


def test_a_model_that_can_not_be_traced_keeps_the_plain_product(monkeypatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise TypeError("not traceable")

    expected = products(jacobian(), generic.PLAIN_PUSHES + 2)
    monkeypatch.setattr(generic, "linearize", refuse)
    for product, known in zip(products(jacobian(), generic.PLAIN_PUSHES + 2), expected, strict=True):
        torch.testing.assert_close(product, known, rtol=1e-10, atol=1e-12)
