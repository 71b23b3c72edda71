"""How an attacker's error follows the spectrum of H = J^T J, and what noise in better shapes is worth.

    python -m benchmarks.directions --data ../shared/data

Perturbations of one norm along four singular directions of every image's release, predicted and attacked from the
truth (`local`) and from random starts (`dlg`); then noise of equal power, isotropic, water-filled and per layer,
against attackers who ignore or know its covariance. LeNet with weights uniform(-0.5, 0.5); images from the 100th on.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import Printer
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from benchmarks.training import lenet
from riskaudit.audit import AuditSettings
from riskaudit.inputs import load_samples
from riskaudit.studies.base import StudyRun
from riskaudit.studies.directions.record import DirectionsStudy
from riskaudit.studies.directions.run import directions_study
from riskaudit.studies.settings import DirectionSettings

FIRST = 100


@dataclass(frozen=True)
class Case:
    """One data set.

    Attributes:
        shape: of an image.
        norm: of the perturbations: small enough that the smallest direction stays in the linear range.
        shares: places of the directions in the spectrum.
        attacks: that check the predictions.
        shaped: images on which noise shapes are attacked.
    """

    shape: tuple[int, int, int]
    norm: float
    shares: tuple[float, ...]
    attacks: tuple[str, ...]
    shaped: int


CASES = {
    "mnist": Case((1, 28, 28), 0.01, (0.0, 0.25, 0.9, 1.0), ("local", "dlg"), 16),
    "cifar10": Case((3, 32, 32), 0.005, (0.05, 0.25, 0.9, 1.0), ("local",), 2),
}


def studied(case: Case, name: str, folder: Path, count: int, *, shaping: bool) -> DirectionsStudy:
    """One study; with shapes of noise, directions are left to the other one."""
    every = load_samples(folder / f"{name}_test.npz", channels=case.shape[0], limit=FIRST + count)
    looked_at = DirectionSettings(
        norm=case.norm,
        shares=(1.0,) if shaping else case.shares,
        attack_names=("local",) if shaping else case.attacks,
        shaping=shaping,
    )
    result = directions_study(
        lenet(case.shape),
        every.select(list(range(FIRST, FIRST + count))),
        AuditSettings(proxies=("gradient_norm",)),
        StudyRun(attacks=True),
        looked_at,
    )
    return result.studies.get(DirectionsStudy)


def direction_table(name: str, study: DirectionsStudy) -> Table:
    """Rank correlation and slope per attack."""
    rows: list[dict[str, Any]] = [
        {
            "attack": row.attack,
            "samples": row.num_samples,
            "pairs": row.num_pairs,
            "decades": row.decades,
            "spearman": _with_interval(row.spearman, row.spearman_low, row.spearman_high),
            "slope": _with_interval(row.slope, row.slope_low, row.slope_high),
            "tightness": row.tightness_median,
        }
        for row in study.agreement
    ]
    columns = {
        "attack": "attack",
        "samples": "images",
        "pairs": "pairs",
        "decades": "decades of l",
        "spearman": "Spearman of 1/l and MSE (95 %)",
        "slope": "log-log slope (95 %)",
        "tightness": "attack / predicted RMSE, median",
    }
    note = f"Norm {study.norm:g}; singular directions only in the correlations, all directions in the last column."
    return Table(f"{name}: error along singular directions", columns, rows, [note])


def per_direction_table(name: str, study: DirectionsStudy) -> Table:
    """Median prediction and attacks per direction."""
    rows = []
    for direction in dict.fromkeys(row.direction for row in study.directions):
        own = [row for row in study.directions if row.direction == direction]
        line: dict[str, Any] = {"direction": direction, "predicted": _median([row.predicted_rmse for row in own])}
        line |= {attack: _median([row.attacked.get(attack) for row in own]) for attack in study.attacks}
        rows.append(line)
    columns = {"direction": "direction", "predicted": "predicted RMSE", **{name: name for name in study.attacks}}
    return Table(f"{name}: median over the images", columns, rows)


def layer_table(name: str, study: DirectionsStudy) -> Table:
    """What each layer reveals."""
    rows: list[dict[str, Any]] = [
        {
            "layer": row.layer,
            "entries": row.num_entries,
            "alone": row.revealed,
            "without": row.revealed_without,
            "share": row.information_share,
        }
        for row in study.layers
    ]
    columns = {"layer": "layer", "entries": "entries", "alone": "revealed alone", "without": "revealed without it",
               "share": "share of tr H"}  # fmt: skip
    return Table(f"{name}: layers, at noise {study.noise_std:g}", columns, rows)


def shaping_table(name: str, study: DirectionsStudy) -> Table:
    """Schemes of equal power."""
    rows: list[dict[str, Any]] = [
        {
            "scheme": row.scheme,
            "predicted": row.predicted,
            "better": None if row.share_better is None else f"{row.share_better:.0%}",
            "ignores": row.attacked.get("ignores"),
            "knows": row.attacked.get("knows"),
        }
        for row in study.shaping_summary
    ]
    columns = {
        "scheme": "noise",
        "predicted": "predicted posterior RMSE, mean",
        "better": "images with more than isotropic",
        "ignores": "attack ignoring the covariance",
        "knows": "attack knowing it",
    }
    note = (
        f"{len(study.shaping)} images, total power that of isotropic noise of std {study.noise_std:g} on all entries."
    )
    return Table(f"{name}: noise of equal power", columns, rows, [note])


def _with_interval(value: float | None, low: float | None, high: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.4f} to {high:.4f})"


def _median(values: list[float | None]) -> float | None:
    known = torch.tensor([value for value in values if value is not None])
    return float(known.median()) if len(known) else None


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="with mnist_test.npz, cifar10_test.npz"
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    arguments = parser.parse_args()
    measurement = Measurement(dtype="float64", threads=arguments.threads)
    measurement.apply()
    printer = Printer("Directions, layers and shapes of noise", measurement)
    for name in arguments.cases:
        case = CASES[name]
        study = studied(case, name, arguments.data, arguments.samples, shaping=False)
        for make in (direction_table, per_direction_table, layer_table):
            printer.add(make(name, study))
        printer.add(
            shaping_table(name, studied(case, name, arguments.data, min(case.shaped, arguments.samples), shaping=True))
        )
    printer.finish(arguments.json)


if __name__ == "__main__":
    main()
