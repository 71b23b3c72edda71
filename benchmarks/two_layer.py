"""Lower bounds of reconstruction errors for random two-layer networks: exact, loosened, and the law of Table 1.

    python -m benchmarks.two_layer

Liu, Wang and Lei, theorem 3.2 and Table 1. Per defence the bounds at the largest network, and the exponents of d and m.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from benchmarks.options import Printer, experiment_parser
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from riskaudit.theory import LowerBounds, Problem, Slopes, fit_slopes, lower_bounds

SIGMA = 0.01
# By the name of a row: the release of B samples.
DEFENCES = {
    "none": "mean:{B},gaussian:{s}",
    # Small beside a_j = 1/m, as the theory wants, and as clients train.
    "2 steps of 1e-5": "local:epochs=2:batch={B}:lr=1e-5,gaussian:{s}",
    "2 steps of 0.1": "local:epochs=2:batch={B}:lr=0.1,gaussian:{s}",
    "clipping to 0.1": "mean:{B},clip:0.1,gaussian:{s}",
    "DP-SGD, clipping to 0.1": "clip:0.1,mean:{B},gaussian:{s}",
    "dropout 0.5": "mean:{B},dropout:0.5,gaussian:{s}",
    "pruning 0.5": "mean:{B},prune:0.5,gaussian:{s}",
    "pruning 0.9": "mean:{B},prune:0.9,gaussian:{s}",
}


def scaling(
    defence: str, widths: Sequence[int], dimensions: Sequence[int], samples: int, activation: str, seeds: int
) -> dict[Problem, LowerBounds]:
    """Bounds at every width, dimension and seed."""
    release = DEFENCES[defence].format(B=samples, s=SIGMA)
    problems = [Problem(m, d, samples, activation, seed) for m, d, seed in product(widths, dimensions, range(seeds))]
    return {problem: lower_bounds(problem, release) for problem in problems}


def table(title: str, rows: dict[str, dict[Problem, LowerBounds]]) -> Table:
    """A line per defence."""
    columns = ("defence", "exact", "loosened", "law", "d, exact", "m, exact", "d, loosened", "m, loosened", "singular")
    made = Table(title, {column: column for column in columns})
    for defence, bounds in rows.items():
        last = list(bounds.values())[-1]
        line: dict[str, object] = {"defence": defence, "exact": last.exact, "loosened": last.loosened, "law": last.law}
        regular = {problem: found.exact for problem, found in bounds.items() if found.exact is not None}
        if len(regular) == len(bounds):
            exact = fit_slopes(regular)
            line |= {"d, exact": shown(exact.dimension), "m, exact": shown(exact.width)}
        loosened: Slopes = fit_slopes({problem: found.loosened for problem, found in bounds.items()})
        line |= {"d, loosened": shown(loosened.dimension), "m, loosened": shown(loosened.width)}
        made.rows.append({**line, "singular": f"{len(bounds) - len(regular)} of {len(bounds)}"})
    made.notes.append("The law has 0.5 for d and -0.5 for m. Exponents with their 95 % intervals over seeds.")
    return made


def shown(slope: tuple[float, float, float]) -> str:
    """An exponent with its interval."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*slope)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit and print."""
    parser = experiment_parser(__doc__, None)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--activations", nargs="+", default=["tanh", "relu"])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    measurement = Measurement(threads=options.threads, dtype="float64")
    measurement.apply()
    printer = Printer("Two-layer networks", measurement)
    widths, dimensions, seeds = (
        ((16, 32), (2, 4), 2) if options.quick else ((128, 256, 512), (8, 16, 32), options.seeds)
    )
    for activation, samples in product(options.activations, options.samples):
        rows = {defence: scaling(defence, widths, dimensions, samples, activation, seeds) for defence in DEFENCES}
        title = f"{activation}, B = {samples}, m = {widths}, d = {dimensions}: bounds at the largest, and exponents"
        printer.add(table(title, rows))
    printer.finish(options.json)


if __name__ == "__main__":
    main()
