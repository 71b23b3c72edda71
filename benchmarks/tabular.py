"""Columns of a table, foretold and attacked: scikit-learn's breast cancer, a third of its columns put into bins.

    python -m benchmarks.tabular

An MLP is trained on the whole table; single gradients of some rows are audited and attacked over noise levels.
Categories: the predicted probability that an attacker who knows everything else of a row picks the right one, beside
such attackers run on 25 draws of the noise, and beside TabLeak and Gauss-Newton, which know nothing of the
row but its label. Numbers: the attacks' root mean square errors over the predicted ones, median over columns.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from benchmarks.options import Printer, experiment_parser
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from riskaudit.attacks import ATTACKS
from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client
from riskaudit.audit.client import Client, make_client
from riskaudit.inputs import Samples, infer_encoding, load_samples
from riskaudit.results import AuditResult
from riskaudit.studies.attacking import Target, reconstruct
from riskaudit.studies.settings import with_fields
from riskaudit.tables import CategoryInputs, save_encoding

NOISE_STDS = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
# Every third column is put into as many bins of equally many rows.
BINS = (2, 3, 4, 5, 6, 8, 3, 4, 5, 10)
WORDS = "abcdefghij"
# Of the noise, for every attacker who knows all else.
DRAWS = 25
ATTACKED = ("tableak", "gauss-newton")


def write_table(path: Path) -> None:
    """The table as a CSV of numbers and words."""
    data = load_breast_cancer()
    columns: dict[str, list[str]] = {}
    for place, name in enumerate(data.feature_names):
        values = data.data[:, place]
        if place % 3:
            columns[name] = [f"{value:.9g}" for value in values]
            continue
        edges = np.quantile(values, np.linspace(0, 1, BINS[place // 3] + 1)[1:-1])
        columns[name] = [WORDS[bin_] for bin_ in np.digitize(values, edges)]
    columns["diagnosis"] = [str(target) for target in data.target]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])


def read_table() -> Samples:
    """All rows, by the encoding that is inferred from them."""
    with TemporaryDirectory() as folder:
        table, encoding = Path(folder) / "cancer.csv", Path(folder) / "cancer.toml"
        write_table(table)
        save_encoding(infer_encoding(table), encoding)
        return load_samples(table, encoding=encoding)


def trained(samples: Samples, width: int, steps: int) -> tuple[nn.Module, float]:
    """An MLP of two hidden layers after full-batch Adam, float64, and the share of rows that it gets right."""
    torch.manual_seed(0)
    inputs, targets = samples.inputs, samples.targets
    layers = [nn.Linear(inputs.shape[1], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)]
    model = nn.Sequential(*layers).double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    accuracy = float((model(inputs).argmax(1) == targets).double().mean())
    return model.eval(), accuracy


@torch.no_grad()
def knowing_attacker(client: Client, std: float, category: CategoryInputs) -> float:
    """How often the likeliest code is the sample's own, for an attacker who knows all else, over samples and draws."""
    release, codes = client.at_noise(std).release, torch.from_numpy(category.codes)
    generator, hits = torch.Generator().manual_seed(0), list[bool]()
    for index in range(len(client.samples)):
        batch = client.batch([index])
        candidates = batch.select([0] * len(codes))
        inputs = candidates.inputs.clone()
        inputs[:, category.span] = codes
        released = release.mean(candidates.with_inputs(inputs))
        own = int(category.nearest(batch.inputs[0, category.span].numpy()))
        for _ in range(DRAWS):
            observed = release.observe(batch, generator)
            hits.append(int((observed - released).square().sum(1).argmin()) == own)
    return float(np.mean(hits))


@dataclass(frozen=True)
class Attacked:
    """Reconstructions [B, d] by attack, of samples [B, d]."""

    truth: Tensor
    guesses: Mapping[str, Tensor]

    def right(self, name: str, category: CategoryInputs) -> float:
        """Share of the samples whose category an attack has right."""
        guess, truth = (category.nearest(each[:, category.span].numpy()) for each in (self.guesses[name], self.truth))
        return float((guess == truth).mean())

    def errors(self, name: str, position: int) -> Tensor:
        """Of an input, [B]."""
        return (self.guesses[name] - self.truth)[:, position].abs()


def attacked(client: Client, std: float, names: Sequence[str], changes: dict[str, Any]) -> Attacked:
    """Every attack on all samples at one noise level, with some of its settings changed."""
    indices = list(range(len(client.samples)))
    target = Target.of(client, std, labels_known=True)
    guesses = {}
    for name in names:
        guesses[name] = reconstruct(with_fields(ATTACKS[name](), changes), target, indices).inputs.flatten(1)
    return Attacked(client.samples.inputs.flatten(1), guesses)


def rows_of(client: Client, std: float, result: AuditResult, found: Attacked) -> dict[str, Any]:
    """Means over samples and columns at one noise level."""
    encoding = client.samples.encoding
    assert encoding is not None
    predicted, ends, known = [], [], []
    right: dict[str, list[float]] = {name: [] for name in found.guesses}
    for category in encoding.categories:
        risks = [row.columns[category.name].estimate for row in result.samples]
        predicted += [risk.value for risk in risks if risk.value is not None]
        ends += [risk.ends[0] for risk in risks]
        known.append(knowing_attacker(client, std, category))
        for name, shares in right.items():
            shares.append(found.right(name, category))
    ratios: dict[str, list[float]] = {name: [] for name in found.guesses}
    for number in encoding.numbers:
        left = [row.columns[number.name].estimate.value or 0.0 for row in result.samples]
        foretold = float(np.sqrt(np.mean(np.square(left)))) / number.std
        for name, values in ratios.items():
            values.append(float(found.errors(name, number.position).square().mean().sqrt()) / foretold)
    return {
        "std": std,
        "predicted": float(np.mean(predicted)),
        "least": float(np.mean([end for end in ends if end is not None])),
        "known": float(np.mean(known)),
        **{f"right {name}": float(np.mean(shares)) for name, shares in right.items()},
        **{f"ratio {name}": median(values) for name, values in ratios.items()},
        "revealed": median(row.proxies["revealed_fraction"].value or 0.0 for row in result.samples),
        "worst": median(max(risk.revealed.ends[1] or 0.0 for risk in row.columns.values()) for row in result.samples),
    }


def columns_of(client: Client, std: float, result: AuditResult, found: Attacked) -> list[dict[str, Any]]:
    """Each column at one noise level, over all samples."""
    encoding, rows = client.samples.encoding, []
    assert encoding is not None
    for number in encoding.numbers:
        risks = [row.columns[number.name] for row in result.samples]
        left = float(np.sqrt(np.mean([(risk.estimate.value or 0.0) ** 2 for risk in risks])))
        errors = {
            name: number.std * float(found.errors(name, number.position).square().mean().sqrt())
            for name in found.guesses
        }
        rows.append({"column": number.name, "predicted": left, "guess": risks[0].guess, **errors})
    for category in encoding.categories:
        risks = [row.columns[category.name] for row in result.samples]
        shares = {name: found.right(name, category) for name in found.guesses}
        predicted = float(np.mean([risk.estimate.value for risk in risks]))
        known = knowing_attacker(client, std, category)
        name = f"{category.name} ({len(category.codes)})"
        rows.append({"column": name, "predicted": predicted, "guess": risks[0].guess, "known": known, **shares})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = experiment_parser(__doc__, None)
    parser.add_argument("--rows", type=int, default=32, help="rows of the table that are audited and attacked")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKED))
    parser.add_argument("--attack-steps", type=int, help="of every attack (default: each's own)")
    parser.add_argument("--restarts", type=int, help="starts of every attack (default: each's own)")
    parser.add_argument("--steps", type=int, default=12, help="of training")
    parser.add_argument("--noise-std", type=float, nargs="+", default=list(NOISE_STDS))
    parser.add_argument("--shown", type=float, default=3e-2, help="noise at which every column is shown")
    options = parser.parse_args(arguments)
    count = 3 if options.quick else options.rows
    given = {"steps": 20 if options.quick else options.attack_steps, "restarts": options.restarts}
    changes = {name: value for name, value in given.items() if value is not None}
    samples = read_table()
    model, accuracy = trained(samples, 32, 5 if options.quick else options.steps)
    chosen = samples.select(list(range(0, len(samples), len(samples) // count))[:count])
    encoding = samples.encoding
    assert encoding is not None
    client = make_client(model, chosen, AuditSettings(checks=False))
    titles = {
        "std": "noise std", "predicted": "categories, predicted", "least": "lower end", "known": "knowing attacker",
        **{f"right {name}": name for name in options.attacks},
        **{f"ratio {name}": f"{name} / predicted error" for name in options.attacks},
        "revealed": "revealed, median", "worst": "worst column, median",
    }  # fmt: skip
    overall = Table(
        f"Breast cancer, {len(encoding.numbers)} numbers and {len(encoding.categories)} categories, MLP "
        f"{encoding.width}-32-32-2 ({accuracy:.1%} right), {count} rows",
        titles,
    )
    by_column = Table(
        f"Column by column at noise {options.shown:g}",
        {"column": "column", "predicted": "predicted", "guess": "guess", "known": "knowing attacker"}
        | {name: name for name in options.attacks},
    )
    measurement = Measurement(threads=options.threads, dtype="float64")
    measurement.apply()
    printer = Printer("Columns of a table", measurement)
    for std in options.noise_std:
        result = audit_client(client, noise_std=std)
        found = attacked(client, std, options.attacks, changes)
        overall.rows.append(rows_of(client, std, result, found))
        if std == options.shown:
            by_column.rows += columns_of(client, std, result, found)
    chance = float(np.mean([1 / len(category.codes) for category in encoding.categories]))
    overall.notes.append(f"A guess has {chance:.3f} of the categories right.")
    for table in (overall, by_column):
        printer.add(table)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
