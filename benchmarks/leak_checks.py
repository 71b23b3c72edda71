"""Share of a batch that stands in the clear in an upload: MLPs 784-m-10 with ReLU on MNIST, by `singleton-unit`.

    python -m benchmarks.leak_checks --data ../shared/data --scratch FOLDER

Untrained, trained by SGD until 95 % of other images are classified, and for 8 epochs of Adam; means of 8, 16 and 32
images, and differences of local training by SGD, momentum, weight decay and Adam. Beside the shares stands the largest
relative error of what is recovered of the first layer's inputs; where nothing is, how far the nearest quotient is off.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from benchmarks.agreement import FIRST, Bench
from benchmarks.options import Printer, experiment_parser
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from benchmarks.training import accuracy, train
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import make_client
from riskaudit.audit.leaks import check_leaks

WIDTHS, SIZES, UPLOADS = (512, 2048), (8, 16, 32), 10
TRAININGS = {
    "one step": "mean:{size}",
    "SGD": "local:epochs=2:batch=8:lr=0.1",
    "momentum": "local:epochs=2:batch=8:lr=0.05:momentum=0.9",
    "weight decay": "local:epochs=2:batch=8:lr=0.1:momentum=0.9:weight_decay=0.01",
    "Adam": "local:epochs=2:batch=8:lr=0.001:optimizer=adam",
}
NETWORKS = ("untrained", "SGD", "Adam")
EPOCHS, UNTIL = 8, 0.95


def untrained(width: int) -> nn.Sequential:
    """PyTorch's initialization."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10)).double().eval()


def trained(bench: Bench, width: int, until: float | None) -> tuple[nn.Sequential, float]:
    """After training on 9,000 images, and the share of 500 others whose class it finds.

    Args:
        bench: images, and where weights are kept.
        width: of the hidden layer.
        until: share of the others at which training by SGD ends; None for `EPOCHS` of Adam.
    """
    model, others = untrained(width).float(), bench.images("mnist_test", 0, 500)
    path = bench.scratch / f"mlp-{width}{'' if until is None else f'-until-{until:g}'}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
    else:
        images = bench.images("mnist_train", 0, 9000)
        if until is None:
            train(model, images, EPOCHS)
        else:
            train(model, images, 100, 0.1, 0, torch.optim.SGD, lambda model: accuracy(model, others) >= until)
        torch.save(model.state_dict(), path)
    return model.eval(), accuracy(model, others)


@dataclass
class Shares:
    """Over the uploads of one size."""

    shares: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    nearest: list[float] = field(default_factory=list)


def measure(bench: Bench, model: nn.Module, release: str, size: int, uploads: int) -> Shares:
    """Share of the samples of each upload that stand in the clear, and relative errors of what quotients give."""
    found = Shares()
    for upload in range(uploads):
        samples = bench.images("mnist_test", FIRST + size * upload, size)
        client = make_client(
            model, samples, AuditSettings(release=release.format(size=size), proxies=("gradient_norm",))
        )
        first = next(each for each in check_leaks(client) if each.id == "singleton-unit" and each.layer == "1")
        # What is only nearly an input isn't counted.
        is_exact = first.status == "leak" and first.exactness == "exact"
        found.shares.append(len(first.sample_ids) / size if is_exact else 0.0)
        errors = first.details.get("relative_error") or {}
        near = min(errors.values()) if isinstance(errors, dict) and errors else None
        if is_exact:
            found.errors.append(float(first.details["largest_relative_error"]))  # type: ignore[arg-type]
        else:
            found.nearest.append(float(near or first.details["smallest_relative_error"]))  # type: ignore[arg-type]
    return found


def networks(bench: Bench, width: int, wanted: Sequence[str]) -> dict[str, nn.Sequential]:
    """Those of `NETWORKS` that are wanted, by what they are called in the tables."""
    models = {"untrained": untrained(width)} if "untrained" in wanted else {}
    if not bench.quick:
        for name, until in {"SGD": UNTIL, "Adam": None}.items():
            if name in wanted:
                model, right = trained(bench, width, until)
                models[f"{name} ({right:.1%})"] = model.double()
    return models


def main(arguments: Sequence[str] | None = None) -> None:
    """A table for each way of training."""
    parser = experiment_parser(__doc__, "mnist_train.npz and mnist_test.npz")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for trained weights")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, metavar="NAME", help=", ".join(TRAININGS))
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME", help=", ".join(NETWORKS)
    )
    options = parser.parse_args(arguments)
    measurement = Measurement(threads=options.threads, dtype="float64")
    measurement.apply()
    printer = Printer("Samples in the clear", measurement)
    options.scratch.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.data, options.scratch, printer, options.quick)
    uploads, widths, sizes = (1, WIDTHS[:1], (4,)) if options.quick else (UPLOADS, WIDTHS, SIZES)
    chosen = {name: TRAININGS[name] for name in options.trainings or TRAININGS}
    models = {
        (width, title): model for width in widths for title, model in networks(bench, width, options.networks).items()
    }
    for name, release in chosen.items():
        columns = ("width", "model", *(f"n = {size}" for size in sizes), "largest error", "nearest", "seconds")
        table = Table(f"{name}: {release}, share of a batch in the clear", {column: column for column in columns})
        for (width, title), model in models.items():
            began = time.perf_counter()
            results = {size: measure(bench, model, release, size, uploads) for size in sizes}
            errors = [error for found in results.values() for error in found.errors]
            nearest = [error for found in results.values() for error in found.nearest]
            table.rows.append(
                {
                    "width": width,
                    "model": title,
                    **{f"n = {size}": fmean(found.shares) for size, found in results.items()},
                    "largest error": max(errors) if errors else None,
                    "nearest": min(nearest) if nearest else None,
                    "seconds": time.perf_counter() - began,
                }
            )
        printer.add(table)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
