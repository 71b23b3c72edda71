"""Whole audits of uploads of several samples, with the default settings: time, products, and how narrow intervals are.

    python -m benchmarks.upload_scan --data /path/to/data --threads 2

The network is lenet for MNIST with weights uniform in (-0.5, 0.5), whose gradients tell much of their inputs. Processor
seconds are those of all threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

import riskaudit
from benchmarks.tables import Table, machine
from riskaudit.inputs import Samples
from riskaudit.inputs.architectures.registry import ARCHITECTURES
from riskaudit.results import AuditResult

RELEASES = ("local:epochs=5:batch=8:lr=0.1", "mean:8", "mean:all")
COLUMNS = {
    "release": "release",
    "noise": "noise std",
    "seconds": "s",
    "processor": "processor s",
    "products": "products",
    "solver": "solver of the upload",
    "informed": "informed revealed: median interval",
    "outsider": "outsider revealed: median interval",
    "exact": "informed, exact",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist_test.npz")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--releases", nargs="+", default=list(RELEASES))
    parser.add_argument("--noises", nargs="+", type=float, default=[0.001, 0.01])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    samples, rows = _samples(given.data / "mnist_test.npz", given.samples), []
    for release in given.releases:
        for noise in given.noises:
            rows.append(_row(samples, release, noise))
            print(json.dumps(rows[-1]), flush=True)
    print(machine(given.threads, "float64", torch.device("cpu")))
    print(Table(f"lenet-28, MNIST, {given.samples} samples", COLUMNS, rows).markdown())
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _samples(path: Path, count: int) -> Samples:
    with np.load(path) as content:
        images, labels = content["images"][:count], content["labels"][:count]
    return Samples.from_tensors(torch.from_numpy(images)[:, None].double() / 255, torch.from_numpy(labels).long())


def _row(samples: Samples, release: str, noise: float) -> dict[str, object]:
    torch.manual_seed(0)
    model = ARCHITECTURES["lenet"].build(channels=1, features=588, classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    wall, processor = time.perf_counter(), time.process_time()
    result = riskaudit.audit(model.eval(), samples, release=f"{release},gaussian:{noise}")
    return {
        "release": release,
        "noise": noise,
        "seconds": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
        "products": result.cost.matvecs,
        "solver": result.settings.solver,
        "informed": _interval(result, "informed_revealed_fraction"),
        "outsider": _interval(result, "revealed_fraction"),
        "exact": sum(row.proxies["informed_revealed_fraction"].status == "exact" for row in result.samples),
    }


def _interval(result: AuditResult, proxy: str) -> str:
    estimates = [row.proxies[proxy] for row in result.samples]
    low, high = (median(each.ends[end] or 0.0 for each in estimates) for end in (0, 1))
    return f"{low:.3g}-{high:.3g}"


if __name__ == "__main__":
    main()
