"""The command prints its table; a stand-in for the compiler, which is slow, leaves traces as they are."""

from __future__ import annotations

import json

import torch

from benchmarks import compiled


def test_compiled_quick(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    compiled.main(["--quick", "--json", str(tmp_path / "compiled.json")])
    assert "tiny, B = 3" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "compiled.json").read_text())["tables"]
    assert [row["contestant"] for row in table["rows"]] == ["not compiled", "compiled", "traced, compiled"]
    assert all(row["difference"] < 1e-6 for row in table["rows"])
    assert table["rows"][0]["ratio"] == 1
