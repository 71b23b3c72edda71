"""On whom the leak falls: a network trained to at least 95 %, Gaussian noise, predicted and attacked.

    python -m benchmarks.fairness --data ../shared/data

LeNet after 20 epochs on 9000 MNIST images; test images from the 100th on; class prior of the training images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import nn

from benchmarks.agreement import FIRST, MNIST, Bench
from benchmarks.options import Printer, Settings, experiment_parser
from benchmarks.tables import Table
from benchmarks.training import accuracy, lenet, train
from riskaudit.audit import AuditSettings
from riskaudit.results import AuditResult
from riskaudit.studies.fairness.record import FairnessStudy
from riskaudit.studies.fairness.run import with_fairness
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.run import verify

EPOCHS, SAMPLES = 20, 100


def measure(model: nn.Module, bench: Bench, noise: float, steps: int | None) -> AuditResult:
    """The fairness study with Gauss-Newton attacks at this noise."""
    settings = AuditSettings(release=f"gaussian:{noise}", prior=bench.prior("class", "mnist_train"))
    samples = bench.images("mnist_test", FIRST, SAMPLES)
    found = verify(model, samples, settings, AttackSettings(("gauss-newton",), steps), noise_stds=[noise])
    return with_fairness(found)


def report(found: AuditResult, noise: float, table: Table, classes: Table) -> None:
    """Rows of one study."""
    study = found.studies.get(FairnessStudy)
    for one in study.distributions:
        table.rows.append(
            {
                "noise": noise, "measure": one.measure, "n": one.num_samples, "median": one.median, "worst": one.worst,
                "ratio": one.worst_to_median, "gini": one.gini, "tenth": one.worst_tenth_share,
            }
        )  # fmt: skip
    pairs = [
        (one.protection, one.attack_rmse) for one in study.samples if None not in (one.protection, one.attack_rmse)
    ]
    agreement = spearmanr(*zip(*pairs, strict=True))
    table.notes.append(
        f"noise {noise}: Spearman of predicted and attack error {agreement.statistic:.3f} over {len(pairs)} samples"
    )
    for one in study.comparisons:
        if one.by == "class":
            different = [pair for pair in one.pairs if pair.differs]
            strongest = max(different, key=lambda pair: abs(pair.effect), default=None)
            others = "-" if strongest is None else strongest.second or "all others"
            classes.rows.append(
                {
                    "noise": noise, "measure": one.measure, "p": one.kruskal_wallis.p_value,
                    "epsilon": one.epsilon_squared, "differs": one.differs,
                    "pairs": f"{len(different)} of {len(one.pairs)}",
                    "strongest": strongest and f"{strongest.first} against {others}: {strongest.effect:.2f}",
                }
            )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = experiment_parser(__doc__, "mnist_train.npz and mnist_test.npz")
    parser.add_argument("--noise", type=float, nargs="+", default=[1e-3, 1e-2])
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    printer = Printer("On whom the leak falls", Settings(dtype="float64", threads=options.threads, quick=options.quick))
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.data, Path(scratch), printer, options.quick)
        model = lenet(MNIST)
        train(model, bench.images("mnist_train", 0, 9000), 1 if options.quick else EPOCHS)
        reached = accuracy(model, bench.images("mnist_test", 0, 500))
        columns = ("noise", "measure", "n", "median", "worst", "ratio", "gini", "tenth")
        table = Table(f"lenet, MNIST, {reached:.1%} of test images right", {name: name for name in columns})
        table.columns |= {"ratio": "worst to median", "tenth": "share of the riskiest tenth"}
        names = ("noise", "measure", "p", "epsilon", "differs", "pairs", "strongest")
        classes = Table("Do classes differ (Kruskal-Wallis; Mann-Whitney, Holm)", {name: name for name in names})
        classes.columns |= {"epsilon": "epsilon squared", "pairs": "pairs that differ", "strongest": "Cliff's delta"}
        for noise in options.noise:
            report(measure(model, bench, noise, 3 if options.quick else None), noise, table, classes)
        printer.add(table)
        printer.add(classes)
        printer.finish(options.json)


if __name__ == "__main__":
    main()
