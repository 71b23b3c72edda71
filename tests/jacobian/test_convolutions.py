"""Convolutions as matrix products against torch's kernels, and which of them are taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jvp, vjp, vmap

from riskaudit.jacobian import convolutions
from riskaudit.jacobian.convolutions import Geometry, MatrixConvolutions, input_gradient, weight_gradient

GEOMETRIES = [
    Geometry((7, 7), (5, 5), (1, 1), (2, 2), (1, 1)),
    Geometry((14, 14), (5, 5), (2, 2), (2, 2), (1, 1)),
    Geometry((8, 9), (3, 2), (2, 1), (1, 0), (1, 1)),
    Geometry((9, 10), (3, 3), (3, 2), (0, 2), (1, 2)),
    Geometry((5, 5), (1, 1), (2, 2), (0, 0), (1, 1)),
    Geometry((6, 6), (3, 3), (1, 1), (3, 3), (1, 1)),
    Geometry((9, 9), (2, 2), (3, 3), (1, 1), (2, 2)),
]


@pytest.fixture
def calls(monkeypatch):
    """Which forms were taken, with the dense one allowed for images of any size."""
    made = []
    for name in ("_matrix", "_signal_windows"):
        original = getattr(convolutions, name)

        def counted(*args, name=name, original=original):
            made.append(name)
            return original(*args)

        monkeypatch.setattr(convolutions, name, counted)
    monkeypatch.setattr(convolutions, "MOST_DENSE", 1000)
    return made


def kernels(inputs, weights, signals, geometry):
    """Convolution and both gradients by torch's kernels."""
    gradients = torch.ops.aten.convolution_backward(
        signals, inputs, weights, None, *geometry[2:], False, (0, 0), 1, (True, True, False)
    )
    return [torch.conv2d(inputs, weights, None, *geometry[2:]), *gradients[:2]]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("count", "channels"), [(600, 2), (3, 300)], ids=["many images", "many channels"])
def test_every_form_is_the_kernel(calls, geometry, count, channels):
    torch.manual_seed(0)
    inputs = torch.randn(count, channels, *geometry.size, dtype=torch.float64)
    weights = torch.randn(3, channels, *geometry.kernel, dtype=torch.float64)
    signals = torch.randn(count, 3, *geometry.output, dtype=torch.float64)
    expected = kernels(inputs, weights, signals, geometry)
    with MatrixConvolutions():
        made = [
            torch.conv2d(inputs, weights, None, *geometry[2:]),
            torch.conv_transpose2d(
                signals,
                weights,
                None,
                geometry.stride,
                geometry.padding,
                [
                    size - ((out - 1) * step - 2 * pad + apart * (window - 1) + 1)
                    for out, size, window, step, pad, apart in zip(geometry.output, *geometry, strict=True)
                ],
                1,
                geometry.dilation,
            ),
            weight_gradient(signals, inputs, geometry),
        ]
    if channels == 2:
        assert calls == ["_matrix", "_matrix"]
        assert weight_gradient(signals, inputs, geometry) is None
    else:
        assert calls == ["_signal_windows", "_signal_windows"]
    for of_matrix, of_kernel in zip(made, expected, strict=True):
        if of_matrix is not None:
            torch.testing.assert_close(of_matrix, of_kernel, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(input_gradient(signals, weights, geometry), expected[1], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
def test_tangents_of_gradients(calls, stride):
    torch.manual_seed(0)
    inputs, weights = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 8, 8), (4, 3, 3, 3)))
    tangents = [torch.randn(40, *value.shape, dtype=torch.float64) for value in (weights, inputs)]

    def gradient(weights, inputs):
        return grad(lambda weights: F.conv2d(inputs, weights, None, stride, 1).tanh().square().sum())(weights)

    def products():
        pushed = vmap(lambda *moved: jvp(gradient, (weights, inputs), moved)[1])(*tangents)
        return [pushed, *vmap(vjp(gradient, weights, inputs)[1])(tangents[0])]

    expected = products()
    assert not calls
    with MatrixConvolutions():
        made = products()
    assert set(calls) == {"_matrix", "_signal_windows"}
    for of_matrix, of_kernel in zip(made, expected, strict=True):
        torch.testing.assert_close(of_matrix, of_kernel, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    ("inputs", "weights", "groups"),
    [
        (torch.randn(600, 2, 7, 7), torch.randn(3, 2, 5, 5), 1),
        (torch.randn(600, 2, 7, 7, dtype=torch.float64), torch.randn(2, 1, 5, 5, dtype=torch.float64), 2),
        (torch.randn(600, 2, 7, dtype=torch.float64), torch.randn(3, 2, 5, dtype=torch.float64), 1),
        (torch.randn(600, 2, 7, 7, 1, dtype=torch.float64), torch.randn(3, 2, 5, 5, 1, dtype=torch.float64), 1),
        (torch.randn(8, 2, 7, 7, dtype=torch.float64), torch.randn(3, 2, 5, 5, dtype=torch.float64), 1),
        (torch.randn(0, 2, 7, 7, dtype=torch.float64), torch.randn(3, 2, 5, 5, dtype=torch.float64), 1),
    ],
    ids=["float32", "groups", "sequences", "volumes", "few images", "no image"],
)
def test_what_the_kernels_do_well_is_left_to_them(calls, inputs, weights, groups):
    expected = torch.convolution(
        inputs, weights, None, *[[1] * (inputs.ndim - 2), [0] * (inputs.ndim - 2), [1] * (inputs.ndim - 2)],
        False, [0] * (inputs.ndim - 2), groups,
    )  # fmt: skip
    with MatrixConvolutions():
        made = torch.convolution(
            inputs, weights, None, *[[1] * (inputs.ndim - 2), [0] * (inputs.ndim - 2), [1] * (inputs.ndim - 2)],
            False, [0] * (inputs.ndim - 2), groups,
        )  # fmt: skip
    assert not calls
    assert torch.equal(made, expected)
