"""``riskaudit encoding infer`` and ``scan --encoding``: what is written, what is printed, and what isn't."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from table_cases import network, rows_of, write_table

from riskaudit.tables import read_encoding


def test_infer_then_scan(command, tmp_path: Path) -> None:
    table, file = write_table(tmp_path / "cancer.csv"), tmp_path / "encoding.toml"
    outcome = command("encoding", "infer", table, "--out", file)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"mean concavity +category +4 +3 +a category of its own\n", outcome.out)
    assert "label: diagnosis; 14 inputs" in outcome.out
    # Neither words nor statistics are printed, and the file is its owner's alone.
    encoding = read_encoding(file)
    assert not any(word in outcome.out for word in ("tiny", "malignant", f"{encoding.numbers[0].std:.3g}"))
    assert file.stat().st_mode & 0o077 == 0
    again = command("encoding", "infer", table, "--out", file, "--label", "is large", "-q")
    assert (again.code, again.out) == (0, "")
    assert read_encoding(file).label == "is large"

    command("encoding", "infer", table, "--out", file, "-q")
    torch.save(network(14).state_dict(), tmp_path / "mlp.pt")
    words = ["scan", tmp_path / "mlp.pt", "--arch", "mlp", "--data", table, "--encoding", file, "--limit", "4"]
    outcome = command(*words, "--release", "gaussian:0.1", "--out", "out", "--format", "json")
    assert outcome.code == 0, outcome.err
    assert re.search(r"worst column [a-z ]+: up to [a-z0-9. ]+\u00a0% revealed in sample \d; verdicts", outcome.out)
    info = outcome.result.data.encoding
    assert info.sha256 == read_encoding(file).sha256
    assert [(column.name, column.kind, column.inputs) for column in info.columns][-2:] == [
        ("mean symmetry", "category", 5),
        ("is large", "boolean", 1),
    ]
    text = outcome.audit.decode()
    assert "--encoding encoding.toml" in text
    assert str(tmp_path) not in text
    assert not any(word in text for word in ("tiny", "huge"))


def test_refusals_are_one_sentence(command, tmp_path: Path) -> None:
    table = write_table(tmp_path / "cancer.csv", [*rows_of()[:4]])
    torch.save(network(9).state_dict(), tmp_path / "mlp.pt")
    words = ["scan", tmp_path / "mlp.pt", "--arch", "mlp", "--data", table, "--out", "out"]
    outcome = command(*words)
    assert outcome.code == 2
    assert "riskaudit encoding infer" in outcome.err
    assert "--encoding" in outcome.err
    for arguments in (
        ["encoding", "infer", tmp_path / "mlp.pt", "--out", tmp_path / "e.toml"],
        ["encoding", "infer", table, "--out", tmp_path / "e.toml", "--label", "nothing"],
        ["encoding", "infer", table, "--out", table],
        [*words, "--encoding", tmp_path / "e.toml"],
    ):
        outcome = command(*arguments)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert not (tmp_path / "e.toml").exists()
