"""Every contraction with the functions that it is registered for, and the registry."""

from __future__ import annotations

import doctest
import sys
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from contracts.completeness import cases_of
from contracts.contraction import ContractionContract, LayerCase
from contracts.same_jacobian import check_products, random_batch
from torch import Tensor, nn

from riskaudit.jacobian import structured
from riskaudit.jacobian.structured.contraction import Contraction, FormedContraction
from riskaudit.jacobian.structured.layers.arithmetic import ScaleShiftContraction, ShiftContraction
from riskaudit.jacobian.structured.layers.convolution import ConvolutionContraction, SharedConvolutionContraction
from riskaudit.jacobian.structured.layers.embedding import EmbeddingContraction
from riskaudit.jacobian.structured.layers.linear import BilinearContraction, LinearContraction
from riskaudit.jacobian.structured.registry import COMPOSITES, LAYERS, register, register_composite


class TestLinear(ContractionContract):
    contraction = LinearContraction
    cases: ClassVar = {
        "one position": LayerCase(F.linear, (4,), {"weight": (3, 4), "bias": (3,)}),
        "without bias": LayerCase(F.linear, (4,), {"weight": (3, 4)}),
        "positions, Gram matrices": LayerCase(F.linear, (2, 12), {"weight": (12, 12), "bias": (12,)}),
        "positions, weight": LayerCase(F.linear, (9, 2), {"weight": (2, 2), "bias": (2,)}),
        "two axes of positions": LayerCase(F.linear, (2, 3, 4), {"weight": (3, 4)}),
        "matmul": LayerCase(lambda x, weight: x @ weight, (4,), {"weight": (4, 3)}),
        "matmul, Gram matrices": LayerCase(lambda x, weight: x @ weight, (2, 12), {"weight": (12, 10)}),
        "matmul, weight": LayerCase(lambda x, weight: x @ weight, (9, 2), {"weight": (2, 3)}),
        "addmm": LayerCase(
            lambda x, weight, bias: torch.addmm(bias, x, weight), (4,), {"weight": (4, 3), "bias": (3,)}
        ),
    }


class TestBilinear(ContractionContract):
    contraction = BilinearContraction
    cases: ClassVar = {
        "bias": LayerCase(
            lambda x, weight, bias: torch.bilinear(x[..., :2], x[..., 2:], weight, bias),
            (5,),
            {"weight": (4, 2, 3), "bias": (4,)},
        ),
        "with itself": LayerCase(lambda x, weight: torch.bilinear(x, x, weight, None), (2, 3), {"weight": (4, 3, 3)}),
    }


class TestConvolution(ContractionContract):
    contraction = ConvolutionContraction
    cases: ClassVar = {
        "Gram matrices": LayerCase(F.conv2d, (3, 3, 3), {"weight": (8, 3, 3, 3), "bias": (8,)}),
        "many places": LayerCase(F.conv2d, (1, 6, 6), {"weight": (2, 1, 2, 2), "bias": (2,)}),
        "1d without bias": LayerCase(F.conv1d, (2, 6), {"weight": (3, 2, 2)}),
        "3d": LayerCase(F.conv3d, (1, 3, 3, 4), {"weight": (2, 1, 2, 2, 2), "bias": (2,)}),
        "strided, padded, dilated": LayerCase(
            lambda x, weight, bias: F.conv2d(x, weight, bias, 2, 1, 2),
            (2, 7, 7),
            {"weight": (3, 2, 3, 3), "bias": (3,)},
        ),
        "groups": LayerCase(
            lambda x, weight, bias: F.conv2d(x, weight, bias, groups=2),
            (4, 4, 4),
            {"weight": (6, 2, 2, 2), "bias": (6,)},
        ),
        "same": LayerCase(lambda x, weight: F.conv1d(x, weight, padding="same"), (2, 6), {"weight": (3, 2, 3)}),
    }


def batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    mean, var = torch.linspace(-1, 1, x.shape[1]).double(), torch.linspace(0.5, 2, x.shape[1]).double()
    return F.batch_norm(x, mean, var, weight, bias)


class TestScaleShift(ContractionContract):
    contraction = ScaleShiftContraction
    cases: ClassVar = {
        "batch norm": LayerCase(batch_norm, (3, 4, 4), {"weight": (3,), "bias": (3,)}),
        "layer norm": LayerCase(
            lambda x, weight, bias: F.layer_norm(x, (5,), weight, bias), (3, 5), {"weight": (5,), "bias": (5,)}
        ),
        "layer norm without bias": LayerCase(lambda x, weight: F.layer_norm(x, (5,), weight), (5,), {"weight": (5,)}),
        "rms norm": LayerCase(lambda x, weight: F.rms_norm(x, (3, 4), weight), (2, 3, 4), {"weight": (3, 4)}),
        "group norm": LayerCase(
            lambda x, weight, bias: F.group_norm(x, 2, weight, bias), (4, 3), {"weight": (4,), "bias": (4,)}
        ),
        "instance norm": LayerCase(
            lambda x, weight, bias: F.instance_norm(x, None, None, weight, bias),
            (3, 3, 4),
            {"weight": (3,), "bias": (3,)},
        ),
        "product": LayerCase(lambda x, weight: x * weight, (3, 4), {"weight": (4,)}),
    }


class TestShift(ContractionContract):
    contraction = ShiftContraction
    cases: ClassVar = {
        "sum": LayerCase(lambda x, value: x + value, (3, 4), {"value": (1, 4)}),
        "one for all positions": LayerCase(lambda x, value: x + value, (4,), {"value": (4,)}),
        "expanded": LayerCase(lambda x, value: value.expand(len(x), -1, -1), (2,), {"value": (1, 2, 3)}),
        "repeated": LayerCase(lambda x, value: value.repeat(len(x), 1), (2,), {"value": (1, 3)}),
    }


class TestEmbedding(ContractionContract):
    contraction = EmbeddingContraction
    cases: ClassVar = {
        "rows": LayerCase(F.embedding, (6,), {"weight": (4, 3)}, integers=4),
        "padding": LayerCase(lambda x, weight: F.embedding(x, weight, 1), (6,), {"weight": (4, 3)}, integers=4),
        "one number": LayerCase(F.embedding, (), {"weight": (4, 3)}, integers=4),
    }


def test_every_contraction_has_its_contract() -> None:
    tested = {case.contraction for case in cases_of(ContractionContract, __file__)}
    known = {*Contraction.__subclasses__(), *FormedContraction.__subclasses__()} - {FormedContraction}
    # Examples in docstrings aren't members of the modules that they stand in.
    members = {each for each in known if getattr(sys.modules[each.__module__], each.__name__, None) is each}
    assert {each for each in members if each.__module__.startswith("riskaudit.")} == tested | {
        SharedConvolutionContraction  # of uploads only, in test_structured_uploads
    }


def test_a_function_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        register(F.linear)(F.linear)
    for function in (F.linear, F.multi_head_attention_forward):
        with pytest.raises(ValueError, match="registered twice"):
            register_composite(function)


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(5, 4), nn.Parameter(torch.linspace(-1, 1, 4))
        self.last = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.mv(torch.tanh(self.first(x)), self.weight)[:, None])


def test_worked_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example at the head of the package runs, and its layer gives the products that autograd gives."""
    for registry in (LAYERS, COMPOSITES):
        for function in (torch.mv, Tensor.mv):
            monkeypatch.delitem(registry, function, raising=False)
    try:
        (example,) = doctest.DocTestFinder(recurse=False).find(structured, "structured")
        # What it defines is still there afterwards.
        assert doctest.DocTestRunner().run(example, clear_globs=False) == (0, 5)
        jacobian = check_products(Products().double().eval(), random_batch(3, 5))
        assert "Dot" in {call.layer for call in jacobian.layout.calls}
    finally:
        for function in (torch.mv, Tensor.mv):
            LAYERS.pop(function, None)
