"""Audit a model on a table with words and missing cells: scikit-learn's wines, one of whose columns is put into words.

    python examples/audit_table.py [FOLDER]

Writes the table, its encoding, and the report into FOLDER (default: riskaudit-table). The command line does the same:
riskaudit encoding infer wine.csv --out encoding.toml, then riskaudit scan mlp.pt --arch mlp --data wine.csv --encoding
encoding.toml --release gaussian:0.3
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from torch import nn

import riskaudit

SHOWN = ("alcohol", "malic_acid", "magnesium", "color_intensity")


def write_table(path: Path) -> None:
    """Four columns of numbers, one of them with gaps, hue in words, and the cultivar as the label."""
    wine = load_wine()
    columns = {name: [f"{value:g}" for value in wine.data[:, wine.feature_names.index(name)]] for name in SHOWN}
    columns["magnesium"][::9] = ["?"] * len(columns["magnesium"][::9])
    hues = wine.data[:, wine.feature_names.index("hue")]
    columns["hue"] = ["blue" if hue < 0.8 else "violet" if hue < 1.1 else "red" for hue in hues]
    columns["cultivar"] = [str(target) for target in wine.target]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "wine.csv")
    # Here the model is trained with what is inferred; of a model that is there, the file is to be compared with its own
    # preprocessing.
    riskaudit.save_encoding(riskaudit.infer_encoding(folder / "wine.csv"), folder / "encoding.toml")
    samples = riskaudit.load_samples(folder / "wine.csv", encoding=folder / "encoding.toml")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(samples.inputs.shape[1], 24), nn.ReLU(), nn.Linear(24, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(samples.inputs), samples.targets).backward()
        optimizer.step()

    result = riskaudit.audit(model, samples.select(list(range(0, 178, 18))), release="gaussian:0.3")

    for name in result.samples[0].columns:
        risks = [row.columns[name] for row in result.samples]
        worst = max(risks, key=lambda risk: risk.revealed.ends[1])
        found = f"{worst.revealed.ends[1]:.0%} revealed in the most exposed wine"
        if worst.kind == "number":
            print(f"{name}: {found}, known to {worst.estimate.value:.3g} where a guess leaves {worst.guess:.3g}")
        else:
            print(f"{name}: {found}, recognised with {worst.estimate.value:.0%} where a guess has {worst.guess:.0%}")
    for name, content in riskaudit.render(result, ["html", "json"]).items():
        (folder / name).write_bytes(content)
        print("wrote", folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("riskaudit-table"))
