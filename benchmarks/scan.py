"""What an audit computes with products H v: largest eigenvalues, streams of samples, dense spectra.

    python -m benchmarks.scan --sections largest certificate --models lenet-28 --data mnist_test.npz

The unit is one plain gradient of the whole batch per sample of it ("gradient-equivalents").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.baselines import DoubleBackprop, batch_gradient, largest_by_arpack
from benchmarks.contestants import CONTESTANTS, OURS, UNIT, describe_ours, generic, structured
from benchmarks.memory import mebibytes, peak_memory
from benchmarks.models import Case, build_release, normal_vectors
from benchmarks.options import Printer, Settings, make_parser, read_settings
from benchmarks.tables import Spread, Table
from benchmarks.timing import median_ratio, take_turns
from benchmarks.work import STREAM_PRODUCTS, load, prepare_product, prepare_stream, stream
from riskaudit.jacobian import GenericJacobian
from riskaudit.linalg import Lanczos, LinearOperator, Spectrum
from riskaudit.release import Batch, Release

TOLERANCE = 1e-4
MAX_PRODUCTS = 100
# ARPACK's tolerance is on the residual; the eigenvalue's error is about its square. These settings favour it.
SMALL_BASIS, SMALL_BASIS_TOLERANCE = 8, 5e-3
# The certificate: l_1 lies within 5 % above the value for all samples of a batch, with 99 % confidence.
PRECISION, FAILURE = 0.05, 0.01
REFERENCE_SAMPLES, REFERENCE_PRODUCTS, REFERENCE_TOLERANCE = 8, 60, 1e-9
STREAM_COUNTS, STREAM_BATCH = (16, 64, 256, 1024), 64
MEMORY_BATCH = 32
SPECTRUM_SAMPLES, SPECTRUM_THREADS = 4, 2
TIMES = {
    "contestant": "contestant",
    "samples": "samples",
    "milliseconds": "ms per sample",
    "products": "products per sample, mean (least-most)",
    "gradients": "gradient-equivalents",
    "ratio": f"times {OURS}",
}


@dataclasses.dataclass
class Found:
    """l_1 of some samples, the products that each took, and what is known of the upper end."""

    values: list[float]
    products: list[int]
    high: list[float] | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options = parser.parse_args(arguments)
    settings, cases = read_settings(options)
    printer = Printer("What an audit computes", settings)
    for section in options.sections:
        for table in SECTIONS[section](cases, settings):
            printer.add(table)
    printer.finish(options.json)


def largest(cases: Sequence[Case], settings: Settings) -> list[Table]:
    """l_1 to a relative error of 1e-4, setup included."""
    return [_largest(case, settings) for case in cases]


def _largest(case: Case, settings: Settings) -> Table:
    size = settings.size(case)
    release, batch, source = load(case.name, size, settings)
    few = batch.select(list(range(min(case.few, size))))
    solver = Lanczos(tolerance=TOLERANCE, max_matvecs=min(MAX_PRODUCTS, batch.inputs[0].numel()))
    contestants: dict[str, tuple[int, Callable[[], Found | None]]] = {
        OURS: (size, partial(_by_lanczos, structured(release, batch), batch, solver)),
        "generic": (len(few), partial(_by_lanczos, generic(release, few), few, solver)),
        "ARPACK, small basis": (len(few), partial(_by_arpack, release, few, True, SMALL_BASIS_TOLERANCE, SMALL_BASIS)),
        "ARPACK, cached": (len(few), partial(_by_arpack, release, few, True)),
        "ARPACK, rebuilt": (len(few), partial(_by_arpack, release, few, False)),
        UNIT: (size, partial(_unit, release, batch)),
    }
    if settings.quick:
        # Its trace takes seconds for any model.
        del contestants["generic"]
    title = f"l_1 to a relative error of {TOLERANCE:g}: {case.name}, B = {size}, {source}"
    table = Table(title, {**TIMES, "error": "relative error"})
    found = _add_times(table, contestants, settings)
    reference = _reference(case, few, settings)
    for row in table.rows:
        values = found.get(row["contestant"])
        if values is not None:
            row["error"] = _relative_error(values.values, reference)
    table.notes.append(
        f"ARPACK: scipy's eigsh on J J^T [{release.num_entries} x {release.num_entries}], sample by sample, on "
        f"{len(few)} of the {size} samples; generic on the same. With scipy's own settings and tol = {TOLERANCE:g} it "
        "builds a basis of 20 vectors before it first looks at the tolerance; small basis: the graph cached, ncv = "
        f"{SMALL_BASIS}, tol = {SMALL_BASIS_TOLERANCE:g}. Relative error: the worst of {len(reference)} samples, "
        "against Lanczos in float64."
    )
    table.notes.append(describe_ours(release, batch))
    return table


def certificate(cases: Sequence[Case], settings: Settings) -> list[Table]:
    """l_1 with an upper end that is certified for all samples of the batch."""
    return [_certificate(case, settings) for case in cases]


def _certificate(case: Case, settings: Settings) -> Table:
    size = settings.size(case)
    release, batch, source = load(case.name, size, settings)
    solver = Lanczos(
        tolerance=TOLERANCE,
        max_matvecs=min(MAX_PRODUCTS, batch.inputs[0].numel()),
        failure=FAILURE / size,
        precision=PRECISION,
    )
    contestants: dict[str, tuple[int, Callable[[], Found | None]]] = {
        OURS: (size, partial(_by_lanczos, structured(release, batch), batch, solver)),
        UNIT: (size, partial(_unit, release, batch)),
    }
    title = (
        f"l_1 certified within {PRECISION:.0%} for all samples at once with {1 - FAILURE:.0%} confidence: "
        f"{case.name}, B = {size}, {source}"
    )
    table = Table(title, {**TIMES, "certified": "samples certified"})
    found = _add_times(table, contestants, settings)[OURS]
    assert found.high is not None
    # The quotient may round up by its last digit.
    within = [h <= (1 + PRECISION) * value * (1 + 1e-12) for value, h in zip(found.values, found.high, strict=True)]
    table.rows[0]["certified"] = f"{sum(within)} of {size}"
    return table


def scaling(_cases: Sequence[Case], settings: Settings) -> list[Table]:
    """Time and memory of streams of samples."""
    case, counts = ("tiny", (2, 4)) if settings.quick else ("lenet-28", STREAM_COUNTS)
    size = 2 if settings.quick else settings.batch_size or STREAM_BATCH
    release, samples, source = load(case, max(counts), settings)
    make = structured(release, samples)
    parts = {count: samples.select(list(range(count))) for count in counts}
    functions = {str(count): partial(stream, make, part, size) for count, part in parts.items()}
    times = take_turns(functions, settings.repeats, settings.torch_device)
    columns = {"samples": "samples", "milliseconds": "ms per sample", "ratio": f"times {counts[-1]} samples"}
    title = f"Streams: {case}, {size} at once, {STREAM_PRODUCTS} products each, {source}"
    table = Table(title, {**columns, "mebibytes": "peak memory, MiB"})
    seconds = {count: [time / count for time in times[str(count)]] for count in counts}
    for count in counts[:1] if settings.quick else counts:
        peak = peak_memory(prepare_stream, settings.torch_device, settings, case, count, size)
        table.rows.append(
            {
                "samples": count,
                "seconds per sample": seconds[count],
                "milliseconds": Spread.of([1000 * value for value in seconds[count]]),
                "ratio": median_ratio(seconds[count], seconds[counts[-1]]),
                "mebibytes": mebibytes(peak),
            }
        )
    return [table]


def memory(_cases: Sequence[Case], settings: Settings) -> list[Table]:
    """Peak memory of one product of a large batch."""
    case, size = ("tiny", 3) if settings.quick else ("resnet18", settings.batch_size or MEMORY_BATCH)
    table = Table(
        f"Peak memory of one product H v: {case}, B = {size}",
        {"contestant": "contestant", "mebibytes": "peak memory, MiB"},
    )
    for name in (OURS,) if settings.quick else CONTESTANTS:
        peak = peak_memory(prepare_product, settings.torch_device, settings, case, name, size)
        table.rows.append({"contestant": name, "mebibytes": mebibytes(peak)})
    return [table]


def spectrum(_cases: Sequence[Case], settings: Settings) -> list[Table]:
    """All eigenvalues of dense H."""
    # Threads that wait for each other make a small problem slow on a busy machine.
    case, size, threads = ("tiny", 2, 1) if settings.quick else ("lenet-28", SPECTRUM_SAMPLES, SPECTRUM_THREADS)
    size = settings.batch_size or size
    release, batch, source = load(case, size, settings)
    makers = {OURS: structured(release, batch), "generic": generic(release, batch)}
    results: dict[str, Spectrum] = {}

    def decompose(name: str, make: Callable[[Batch], LinearOperator]) -> None:
        results[name] = Spectrum.of(make(batch))

    torch.set_num_threads(threads)
    try:
        functions = {name: partial(decompose, name, make) for name, make in makers.items()}
        times = take_turns(functions, settings.repeats, settings.torch_device)
    finally:
        torch.set_num_threads(settings.threads)
    title = f"Dense spectrum: {case}, d = {batch.inputs[0].numel()}, B = {size}, {threads} threads, {source}"
    keys = ("contestant", "milliseconds", "ratio")
    table = Table(title, {**{key: TIMES[key] for key in keys}, "generic": "times generic"})
    for name, values in times.items():
        row = {"contestant": name, "milliseconds": Spread.of([1000 * value / size for value in values])}
        row["ratio"], row["generic"] = median_ratio(values, times[OURS]), median_ratio(values, times["generic"])
        table.rows.append({**row, "seconds per sample": [value / size for value in values]})
    expected, actual = results["generic"].values, results[OURS].values
    difference = float(((actual - expected).abs().amax(-1) / expected[:, -1]).max())
    table.notes.append(f"Largest difference between the two's eigenvalues, relative to l_1: {difference:.1e}.")
    return [table]


SECTIONS: dict[str, Callable[[Sequence[Case], Settings], list[Table]]] = {
    "largest": largest,
    "certificate": certificate,
    "scaling": scaling,
    "memory": memory,
    "spectrum": spectrum,
}


def _by_lanczos(make: Callable[[Batch], LinearOperator], batch: Batch, solver: Lanczos) -> Found:
    operator = make(batch)
    start = normal_vectors(len(batch), operator.shape[1], operator.dtype, operator.device)
    solution = solver.solve(operator, start)
    high = None if solution.high is None else solution.high.tolist()
    return Found(solution.value.tolist(), solution.matvecs.tolist(), high)


def _by_arpack(
    release: Release, batch: Batch, cached: bool, tolerance: float = TOLERANCE, basis: int | None = None
) -> Found:
    found = Found([], [])
    for inputs, target in zip(batch.inputs, batch.targets, strict=True):
        sample = DoubleBackprop(release, inputs, target, cached=cached)
        value, products = largest_by_arpack(sample, tolerance, basis)
        found.values.append(value)
        found.products.append(products)
    return found


def _unit(release: Release, batch: Batch) -> None:
    batch_gradient(release, batch)


def _reference(case: Case, batch: Batch, settings: Settings) -> list[float]:
    """l_1 of the first samples by Lanczos in float64, with products in reverse mode that know no layers."""
    count = min(REFERENCE_SAMPLES, len(batch))
    release = build_release(case, torch.float64, settings.torch_device)
    samples = Batch(batch.inputs[:count].double(), batch.targets[:count])
    solver = Lanczos(tolerance=REFERENCE_TOLERANCE, max_matvecs=min(REFERENCE_PRODUCTS, samples.inputs[0].numel()))
    return _by_lanczos(partial(_in_reverse_mode, release), samples, solver).values


def _in_reverse_mode(release: Release, batch: Batch) -> LinearOperator:
    return GenericJacobian(release, batch, forward=False).hessian()


def _relative_error(values: Sequence[float], reference: Sequence[float]) -> float:
    """The worst of the samples that both have."""
    return max(abs(value - right) / right for value, right in zip(values, reference, strict=False))


def _add_times(
    table: Table, contestants: Mapping[str, tuple[int, Callable[[], Found | None]]], settings: Settings
) -> dict[str, Found]:
    """A row for each contestant (number of samples, what to do), and what each found."""
    found: dict[str, Found] = {}

    def run(name: str, function: Callable[[], Found | None]) -> None:
        result = function()
        if result is not None:
            found[name] = result

    functions = {name: partial(run, name, function) for name, (_, function) in contestants.items()}
    times = take_turns(functions, settings.repeats, settings.torch_device)
    seconds = {name: [time / contestants[name][0] for time in values] for name, values in times.items()}
    for name, (count, _) in contestants.items():
        row: dict[str, Any] = {"contestant": name, "samples": count, "seconds per sample": seconds[name]}
        row["milliseconds"] = Spread.of([1000 * value for value in seconds[name]])
        row["gradients"] = median_ratio(seconds[name], seconds[UNIT])
        row["ratio"] = median_ratio(seconds[name], seconds[OURS])
        if name in found:
            products = found[name].products
            row["products"] = Spread(sum(products) / len(products), min(products), max(products))
        table.rows.append(row)
    return found


if __name__ == "__main__":
    main()
