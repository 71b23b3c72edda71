"""The benchmark of transformers runs end to end, by layers and as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import transformers
from riskaudit.torchvision_compat import import_torchvision


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_quick(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import_torchvision()
    pytest.importorskip("transformers")
    transformers.main(["--quick", "--dtype", "float64", "--json", str(tmp_path / "transformers.json")])
    assert "ms per token" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "transformers.json").read_text())["tables"]
    assert [row["release"] for row in table["rows"]] == ["gradient", "mean:2"]
    for row in table["rows"]:
        assert row["difference"] < 1e-9
        assert row["gradients"] > 0
        assert row["mebibytes"] > 0
