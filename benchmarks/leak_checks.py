"""Share of a batch that stands in the clear in an upload: MLPs 784-m-10 with ReLU on MNIST, by `singleton-unit`.

    python -m benchmarks.leak_checks --data ../shared/data --scratch FOLDER

Untrained and trained, means of 8, 16 and 32 images, and differences of local training by SGD, momentum, weight decay
and Adam; beside each share the largest relative error of what is recovered of the first layer's inputs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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
EPOCHS = 8


def untrained(width: int) -> nn.Sequential:
    """PyTorch's initialization."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10)).double().eval()


def trained(bench: Bench, width: int) -> tuple[nn.Sequential, float]:
    """After training on 9,000 images, and the share of 500 others whose class it finds."""
    path, model = bench.scratch / f"mlp-{width}.pt", untrained(width).float()
    if path.exists():
        model.load_state_dict(torch.load(path))
    else:
        train(model, bench.images("mnist_train", 0, 9000), EPOCHS)
        torch.save(model.state_dict(), path)
    right = accuracy(model, bench.images("mnist_test", 0, 500))
    return model.double().eval(), right


def share(bench: Bench, model: nn.Module, release: str, size: int, uploads: int) -> tuple[float, float]:
    """Mean share of the samples of an upload that stand in the clear, and the largest relative error of any."""
    shares, errors = [], [0.0]
    for upload in range(uploads):
        samples = bench.images("mnist_test", FIRST + size * upload, size)
        client = make_client(
            model, samples, AuditSettings(release=release.format(size=size), proxies=("gradient_norm",))
        )
        first = next(each for each in check_leaks(client) if each.id == "singleton-unit" and each.layer == "1")
        shares.append(len(first.sample_ids) / size)
        if first.status == "leak":
            errors.append(float(first.details["largest_relative_error"]))  # type: ignore[arg-type]
    return fmean(shares), max(errors)


def main(arguments: Sequence[str] | None = None) -> None:
    """Both tables."""
    parser = experiment_parser(__doc__, "mnist_train.npz and mnist_test.npz")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for trained weights")
    options = parser.parse_args(arguments)
    measurement = Measurement(threads=options.threads, dtype="float64")
    measurement.apply()
    printer = Printer("Samples in the clear", measurement)
    options.scratch.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.data, options.scratch, printer, options.quick)
    uploads = 1 if options.quick else UPLOADS
    for name, release in TRAININGS.items():
        columns = ("width", "model", *(f"n = {size}" for size in SIZES), "largest error", "seconds")
        table = Table(f"{name}: {release}, share of a batch in the clear", {column: column for column in columns})
        for width in WIDTHS[: 1 if options.quick else None]:
            models = {"untrained": untrained(width)}
            if not options.quick:
                model, right = trained(bench, width)
                models[f"trained ({right:.1%})"] = model
            for title, model in models.items():
                began = time.perf_counter()
                results = {size: share(bench, model, release, size, uploads) for size in SIZES}
                row = {f"n = {size}": value for size, (value, _) in results.items()}
                worst = max(error for _, error in results.values())
                seconds = time.perf_counter() - began
                table.rows.append({"width": width, "model": title, **row, "largest error": worst, "seconds": seconds})
        printer.add(table)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
