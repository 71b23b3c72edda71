"""The command prints its table; a stand-in for the compiler, which is slow, leaves traces as they are."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks import compiled
from benchmarks.contestants import structured
from benchmarks.models import normal_vectors
from benchmarks.options import Settings
from benchmarks.work import load


def test_compiled_quick(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    compiled.main(["--quick", "--json", str(tmp_path / "compiled.json")])
    assert "tiny, B = 3" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "compiled.json").read_text())["tables"]
    assert [row["contestant"] for row in table["rows"]] == ["not compiled", "compiled", "traced, compiled"]
    assert all(row["difference"] < 1e-6 for row in table["rows"])
    assert table["rows"][0]["ratio"] == 1


def test_a_compiler_that_fails_leaves_the_other_ways(capsys, tmp_path, monkeypatch) -> None:
    def compiler(function: Callable[..., object], dynamic: bool) -> Callable[..., object]:
        if isinstance(function, torch.fx.GraphModule):
            raise OSError("no compiler here")
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    compiled.main(["--quick", "--json", str(tmp_path / "compiled.json")])
    (table,) = json.loads((tmp_path / "compiled.json").read_text())["tables"]
    assert [row["contestant"] for row in table["rows"]] == ["not compiled", "compiled"]
    assert ["no compiler here" in note for note in table["notes"]] == [True]


@pytest.mark.parametrize(
    "name", ["lenet-28", "mlp", *(pytest.param(each, marks=pytest.mark.slow) for each in ("vit", "resnet18"))]
)
def test_traced_products_are_the_eager_ones_for_other_vectors(name: str) -> None:
    release, batch, _ = load(name, 2, Settings(dtype="float64"))
    operator = structured(release, batch)(batch)
    vectors = normal_vectors(2, operator.shape[1], operator.dtype, operator.device)
    with torch.no_grad():
        traced = make_fx(compiled.product_of(operator))(vectors)
        for columns in (vectors.flip(1), 1e3 * vectors):
            expected = operator.matvec(columns)
            assert float((traced(columns) - expected).norm() / expected.norm()) < 1e-12
