"""What first weights decide of the leak: uniform, normal, Kaiming and Xavier on lenet, predicted and attacked.

    python -m benchmarks.initialization [mnist|cifar] --data ../shared/data [--attacks]

Ten test images and three seeds per initialization, ranked by the median posterior error at the reference noise; with
--attacks Gauss-Newton and the attack that is started at the truth, at the same noise. Without a name, both data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.agreement import CIFAR, FIRST, MNIST
from benchmarks.options import Printer, experiment_parser
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Spread, Table
from benchmarks.training import lenet
from riskaudit.audit import AuditSettings
from riskaudit.inputs import load_samples
from riskaudit.studies.base import StudyRun
from riskaudit.studies.initialization.record import InitializationStudy
from riskaudit.studies.initialization.run import initialization_study
from riskaudit.studies.rows import Quartiles

NAMES = ("uniform", "normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal")
SHAPES = {"mnist": MNIST, "cifar": CIFAR}
FILES = {"mnist": "mnist_test.npz", "cifar": "cifar10_test.npz"}
ATTACKS = ("gauss-newton", "local")
NUM_IMAGES, NUM_SEEDS = 10, 3


def compare(name: str, folder: Path, noise: float, *, attacks: bool, quick: bool) -> tuple[Table, InitializationStudy]:
    """One data set."""
    shape = SHAPES[name]
    count = 5 if quick else NUM_IMAGES
    samples = load_samples(folder / FILES[name], channels=shape[0], limit=FIRST + count)
    samples = samples.select(list(range(FIRST, FIRST + count)))
    # All eigenvalues of 3072 x 3072 matrices, 250 of them, would take an hour.
    solver = "dense" if name == "mnist" and not quick else "lanczos"
    settings = AuditSettings(solver=solver, reference_noise=noise, max_matvecs=4 if quick else 60, seed=0)
    run = StudyRun(attacks=attacks, attack_steps=2 if quick and attacks else None)
    result = initialization_study(
        lenet(shape), samples, settings, run, seeds=1 if quick else NUM_SEEDS, names=NAMES[:2] if quick else NAMES,
        attacks=ATTACKS,
    )  # fmt: skip
    study = result.studies.get(InitializationStudy)
    columns = {
        "initialization": "initialization",
        "posterior": "posterior RMSE: median (95 %)",
        "revealed": "revealed: median (quartiles)",
        "largest": "l_1: median (quartiles)",
        "trace": "tr H: median (quartiles)",
        "expected": "expected RMSE: median",
        **({"attack": "gauss-newton: median", "local": "oracle start: median"} if attacks else {}),
        "apart": "told apart from the best",
    }
    table = Table(f"lenet, {name}, {count} images, noise {noise:g}, guess {study.prior_rmse:.3f}", columns)
    for row in study.rows:
        median = None if row.posterior_rmse is None else row.posterior_rmse.median
        known = median is not None and row.low is not None and row.high is not None
        table.rows.append(
            {
                "initialization": row.initialization,
                "posterior": Spread(median, row.low, row.high) if known else median,  # type: ignore[arg-type]
                "revealed": spread(row.revealed_fraction),
                "largest": spread(row.largest_eigenvalue),
                "trace": spread(row.trace),
                "expected": None if row.expected_rmse is None else row.expected_rmse.median,
                "attack": None if row.attack_rmse is None else row.attack_rmse.median,
                "local": None if row.oracle_rmse is None else row.oracle_rmse.median,
                "apart": {True: "yes", False: "no", None: "-"}[row.told_apart],
                "study": row.model_dump(mode="json"),
            }
        )
    table.notes.append(f"{study.recommendation} Solver: {result.settings.solver}; {result.cost.seconds:.0f} s.")
    return table, study


def spread(quartiles: Quartiles | None) -> Spread | None:
    """Median and quartiles as one cell."""
    if quartiles is None or quartiles.median is None or quartiles.lower is None or quartiles.upper is None:
        return None
    return Spread(quartiles.median, quartiles.lower, quartiles.upper)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the data sets named."""
    parser = experiment_parser(__doc__, "mnist_test.npz and cifar10_test.npz")
    parser.add_argument("names", nargs="*", metavar="|".join(SHAPES))
    parser.add_argument("--attacks", action="store_true")
    parser.add_argument("--noise", type=float, default=1e-3, help="std per released entry")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(SHAPES)):
        parser.error(f"expected {' or '.join(SHAPES)}, found {unknown[0]}")
    measurement = Measurement(threads=options.threads, dtype="float64")
    measurement.apply()
    printer = Printer("Leakage by initialization", measurement)
    for name in options.names or SHAPES:
        table, _ = compare(name, options.data, options.noise, attacks=options.attacks, quick=options.quick)
        printer.add(table)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
