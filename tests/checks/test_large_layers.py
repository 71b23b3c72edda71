"""Checks on layers with many units, features or tokens: what they decompose is no larger than it must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.check import Tokens, mlp, samples, send, sentences
from torch import Tensor

from riskaudit.attacks.labels import _leading_left, _rank_one
from riskaudit.checks import CHECKS
from riskaudit.checks.run import check_upload
from riskaudit.checks.span import directions

# The largest matrix by both of its sides that a check may decompose here.
SIDE = 256


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of all matrices that are decomposed."""
    shapes: list[tuple[int, int]] = []

    def noting(function: Any) -> Any:
        def noted(matrix: Tensor, *arguments: Any, **named: Any) -> Any:
            shapes.append((matrix.shape[-2], matrix.shape[-1]))
            return function(matrix, *arguments, **named)

        return noted

    for name in ("svd", "eigh", "qr"):
        monkeypatch.setattr(torch.linalg, name, noting(getattr(torch.linalg, name)))
    return shapes


@pytest.mark.parametrize("release", ["gradient", "mean:all", "mean:all,prune:0.5"])
@pytest.mark.parametrize(("features", "classes"), [(20, 1500), (1500, 4)], ids=["classes", "features"])
def test_nothing_of_both_sides_of_a_large_layer_is_decomposed(
    release: str, features: int, classes: int, decomposed: list[tuple[int, int]]
) -> None:
    inputs, targets = samples(1 if release == "gradient" else 3, features, classes)
    upload = send(mlp(features, 60, classes), inputs, targets * (classes // 4), release)
    rows = check_upload(upload, [str(number) for number in range(len(inputs))])
    assert decomposed
    assert max(min(shape) for shape in decomposed) <= SIDE
    if "prune" not in release:
        assert {row.status for row in rows if row.id == "span"} == {"leak"}


def test_directions_of_a_sum_of_outer_products_are_those_of_the_whole_matrix(decomposed: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    signals, inputs = (torch.randn(5, size, generator=generator, dtype=torch.float64) for size in (90, 70))
    inputs[4] = inputs[3]  # one direction less than inputs
    weight = signals.mT @ inputs
    _, values, rows = torch.linalg.svd(weight, full_matrices=False)
    decomposed.clear()
    found, basis = directions(weight, inputs)
    assert all(min(shape) <= 5 for shape in decomposed)
    assert torch.allclose(found[:4], values[:4])
    assert float(found[4]) < 1e-12 * float(values[0])
    assert torch.allclose(basis[:4].mT @ basis[:4], rows[:4].mT @ rows[:4], atol=1e-10)


def test_directions_of_another_matrix_are_its_own() -> None:
    """Entries that were removed leave directions outside the span of the inputs."""
    generator = torch.Generator().manual_seed(0)
    signals, inputs = (torch.randn(3, size, generator=generator, dtype=torch.float64) for size in (9, 7))
    weight = signals.mT @ inputs * (torch.rand(9, 7, generator=generator) < 0.6)
    found, basis = directions(weight, inputs)
    _, values, rows = torch.linalg.svd(weight, full_matrices=False)
    assert torch.equal(found, values)
    assert torch.equal(basis, rows)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (300, 280)], ids=["classes", "features", "both"])
def test_the_leading_singular_vector_by_the_smaller_side(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    signal, features = (torch.randn(size, generator=generator, dtype=torch.float64) for size in shape)
    matrix = torch.outer(signal, features) / 20 + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    expected = torch.linalg.svd(matrix)[0][:, 0]
    assert abs(float(_leading_left(matrix) @ expected)) == pytest.approx(1, abs=1e-9)


def test_rows_and_columns_of_zeros_have_no_part_in_the_signal() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, features = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (12, 9))
    signal[3], features[[1, 4]] = 0, 0
    found = _rank_one(torch.outer(signal, features))
    assert float(found[3]) == 0
    assert abs(float(found @ signal)) == pytest.approx(float(signal.norm()))
    assert torch.equal(_rank_one(torch.zeros(3, 4, dtype=torch.float64)), torch.zeros(3, dtype=torch.float64))


def test_layers_behind_the_projection_are_not_run_for_every_token() -> None:
    """Of a vocabulary, only what enters the first projection is computed."""
    model = Tokens(vocabulary=600)
    upload = send(model, *sentences(vocabulary=600))
    seen: list[int] = []
    handle = model.head.register_forward_hook(lambda layer, arguments, output: seen.append(len(output)))
    try:
        (finding,) = CHECKS["token-span"].run(upload)
    finally:
        handle.remove()
    assert (finding.status, finding.details["false_tokens"]) == ("leak", 0)
    assert max(seen, default=0) <= len(upload.batch)
