"""Every family of layers inside a small model, against plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contracts.same_jacobian import check_float32, check_products, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import built, checked, headed
from torch import Tensor, nn

drawn = settings(max_examples=12, deadline=None, derandomize=True, database=None)


# Drawn shapes.


@drawn
@given(
    positions=st.lists(st.integers(1, 4), max_size=2),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    bias=st.booleans(),
    count=st.integers(1, 3),
)
def test_linear(positions: list[int], widths: tuple[int, int], bias: bool, count: int) -> None:
    a, c = widths
    checked(headed(nn.Linear(a, c, bias=bias)), (*positions, a), count)


@pytest.mark.parametrize(("positions", "width"), [(1, 8), (2, 12), (9, 2)], ids=["one", "positions", "weight"])
def test_both_forms_of_a_linear_layer_occur(positions: int, width: int) -> None:
    """Gram matrices over positions where they are cheaper, else the tangent of the weight."""
    jacobian = checked(headed(nn.Linear(width, width)), (positions, width), 3)
    first = jacobian._signals.calls[0].contraction
    assert (first._gram_of_inputs is None) == (positions == 9)


@drawn
@given(data=st.data())
def test_convolution(data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, 3))
    groups = data.draw(st.integers(1, 3))
    inputs, outputs = groups * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(dimensions))

    kernel, stride, dilation, padding = each(1, 3), each(1, 2), each(1, 2), each(0, 1)
    # Large enough for the window, and for reflected borders.
    size = tuple(d * (k - 1) + 1 + extra for k, d, extra in zip(kernel, dilation, each(1, 2), strict=True))
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=data.draw(st.booleans()),
        padding_mode=data.draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
    )
    model = built(headed(convolution), (inputs, *size))
    batch = random_batch(data.draw(st.integers(1, 3)), inputs, *size)
    check_products(model, batch)
    check_float32(model, batch)


CONVOLUTIONS = {
    "same, even kernel": (nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 4, 5)),
    "same, even dilated kernel": (nn.Conv2d(2, 3, 2, padding="same", dilation=3), (2, 4, 5)),
    "same, circular": (nn.Conv2d(2, 3, (2, 3), padding="same", padding_mode="circular"), (2, 4, 5)),
    "same, 1d": (nn.Conv1d(2, 3, 4, padding="same"), (2, 6)),
    "valid": (nn.Conv2d(2, 3, 2, padding="valid"), (2, 4, 4)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 4, 4)),
    "depthwise with multiplier": (nn.Conv1d(2, 6, 2, groups=2, bias=False), (2, 6)),
    "many places, small weight": (nn.Conv2d(1, 2, 2), (1, 6, 6)),
    "one place, large weight": (nn.Conv2d(3, 8, 3), (3, 3, 3)),
    "border not reached": (nn.Conv2d(2, 2, 3, stride=2), (2, 6, 6)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_by_example(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    model = built(headed(layer), shape)
    batch = random_batch(2, *shape)
    check_products(model, batch)
    check_float32(model, batch)


def test_both_forms_of_a_convolution_occur() -> None:
    forms = set()
    for channels, size in ((2, 6), (8, 3)):
        jacobian = checked(headed(nn.Conv2d(2, channels, 3)), (2, size, size))
        forms.add(jacobian._signals.calls[0].contraction._gram_of_inputs is None)
    assert forms == {True, False}


NORMS = {
    "batch 1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch 1d of a sequence": (lambda: nn.BatchNorm1d(3), (3, 5)),
    "batch 2d": (lambda: nn.BatchNorm2d(3), (3, 3, 3)),
    "batch 3d": (lambda: nn.BatchNorm3d(2), (2, 2, 2, 3)),
    "batch without weights": (lambda: nn.BatchNorm2d(3, affine=False), (3, 3, 3)),
    "layer": (lambda: nn.LayerNorm(5), (3, 5)),
    "layer over two axes": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "layer without bias": (lambda: nn.LayerNorm(5, bias=False), (5,)),
    "layer without weights": (lambda: nn.LayerNorm(5, elementwise_affine=False), (3, 5)),
    "group": (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "group of a sequence": (lambda: nn.GroupNorm(2, 4), (4, 3)),
    "group without weights": (lambda: nn.GroupNorm(2, 4, affine=False), (4, 3)),
    "instance 1d": (lambda: nn.InstanceNorm1d(3, affine=True), (3, 5)),
    "instance 2d": (lambda: nn.InstanceNorm2d(3, affine=True), (3, 3, 4)),
    "instance 3d": (lambda: nn.InstanceNorm3d(2, affine=True), (2, 2, 2, 3)),
    "instance with statistics": (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (3, 3, 3)),
    "instance without weights": (lambda: nn.InstanceNorm2d(3), (3, 3, 4)),
    "rms": (lambda: nn.RMSNorm(5), (3, 5)),
    "rms over two axes": (lambda: nn.RMSNorm((3, 4)), (3, 4)),
    "rms without weights": (lambda: nn.RMSNorm(5, elementwise_affine=False), (3, 5)),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("trained", ["all", "weight", "bias", "none"])
@pytest.mark.parametrize("name", NORMS)
def test_normalisation(name: str, trained: str) -> None:
    make, shape = NORMS[name]
    norm = make()
    own = dict(norm.named_parameters())
    if trained != "all" and (len(own) < 2 or trained not in (*own, "none")):
        pytest.skip("no such weights")
    for role, weight in own.items():
        weight.requires_grad_(trained in ("all", role))
    mixing = nn.Conv1d if len(shape) == 2 else nn.Conv2d if len(shape) == 3 else nn.Conv3d
    first = nn.Linear(shape[0], shape[0]) if len(shape) == 1 else mixing(shape[0], shape[0], 1)
    jacobian = checked(headed(first, nn.Softplus(), norm), shape)
    assert len(jacobian._signals.calls) == 2 + bool(own and trained != "none")


class Attended(nn.Module):
    """x [B, T, E], attention to itself or to other values, and a head."""

    def __init__(self, attend: Callable[[nn.MultiheadAttention, Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2, **options), nn.Linear(6, 4)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.attend(self.attention, x)).mean(1))


def self_attention(need_weights: bool) -> Callable[[nn.MultiheadAttention, Tensor], Tensor]:
    def attend(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
        x = x if attention.batch_first else x.transpose(0, 1)
        result = attention(x, x, x, need_weights=need_weights)[0]
        return result if attention.batch_first else result.transpose(0, 1)

    return attend


def attention_and_its_weights(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    result, weights = attention(x, x, x, need_weights=True)
    return result + weights.sum(2, keepdim=True).square() * x.sin()


def cross_attention(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    memory = torch.sin(x[:, 1:])
    return attention(x, memory, memory, need_weights=False)[0]


def three_way_attention(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    return attention(x, x.sin(), x.cos())[0]


def narrow_attention(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    return attention(x, x[..., :3].sin(), x[..., :5].cos())[0]


def causal_attention(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    hidden = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype).triu(1)
    return attention(x, x, x, attn_mask=hidden, need_weights=False)[0]


ATTENTION = {
    "self": lambda: Attended(self_attention(False), batch_first=True),
    "self with weights": lambda: Attended(self_attention(True), batch_first=True),
    "self, sequence first": lambda: Attended(self_attention(False)),
    "self with weights, sequence first": lambda: Attended(self_attention(True)),
    "weights used": lambda: Attended(attention_and_its_weights, batch_first=True),
    "cross": lambda: Attended(cross_attention, batch_first=True),
    "three activations": lambda: Attended(three_way_attention, batch_first=True),
    "without bias": lambda: Attended(three_way_attention, batch_first=True, bias=False),
    "keys of other widths": lambda: Attended(narrow_attention, batch_first=True, kdim=3, vdim=5),
    "causal": lambda: Attended(causal_attention, batch_first=True),
    "with a zero": lambda: Attended(self_attention(False), batch_first=True, add_zero_attn=True),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("count", [1, 3])
def test_attention(name: str, count: int) -> None:
    # As many samples as positions, so that a mix-up of the two has the right shapes.
    checked(ATTENTION[name](), (3, 6), count, generic=True)
