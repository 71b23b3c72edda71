"""The benchmark of texts runs end to end, and goes on from its rows."""

from __future__ import annotations

import json

import pytest
import text_cases

from benchmarks import texts


def test_finished_rows_are_kept(tmp_path) -> None:
    path, made = tmp_path / "rows.jsonl", []

    def make() -> dict[str, int]:
        made.append(1)
        return {"value": len(made)}

    assert [texts.kept(path, key, make)["value"] for key in ("a", "b", "a")] == [1, 2, 1]
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.slow
def test_agreement_quick(capsys, tmp_path) -> None:
    rows, tables = tmp_path / "rows.jsonl", tmp_path / "tables.json"
    texts.main(["agreement", "--rows", str(rows), "--json", str(tables), "--quick"])
    (table,) = json.loads(tables.read_text())["tables"]
    assert [row["measured"] for row in table["rows"]] == list(texts.MEASURED)
    before = rows.read_text()
    texts.main(["agreement", "--rows", str(rows), "--quick"])
    assert rows.read_text() == before
    assert "TAG on 4 sentences" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_of_a_folder(tmp_path) -> None:
    """Words that the small tokenizer doesn't know are one token each, so that both ways count alike."""
    rows, tables = tmp_path / "rows.jsonl", tmp_path / "tables.json"
    texts.main(
        ["model", "--model", str(text_cases.saved("bert")), "--rows", str(rows), "--json", str(tables), "--told", "1",
         "--sentences", "1", "--noise-std", "1e-6", "1e3"]
    )  # fmt: skip
    recovered, _ = json.loads(tables.read_text())["tables"]
    quiet, loud = recovered["rows"]
    assert quiet["predicted"] == pytest.approx(1.0, abs=1e-3)
    assert quiet["attacked"] == 1.0
    assert abs(loud["off"]) < 0.2


@pytest.mark.slow
def test_first_rounds_of_adapters_send_less(tmp_path) -> None:
    pytest.importorskip("peft")
    tables = tmp_path / "tables.json"
    texts.main(
        ["adapters", "--kinds", "bert", "--sentences", "1", "--rows", str(tmp_path / "rows"), "--json", str(tables)]
    )
    (table,) = json.loads(tables.read_text())["tables"]
    first, _, later, _ = table["rows"]
    assert (first["entries"], first["moving"]) == (later["entries"], later["entries"] // 2)
    assert first["rank"] <= first["moving"] < later["rank"]
