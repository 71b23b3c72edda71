"""One product H v: this project's operator beside published ways to compute it.

    python -m benchmarks.operator --models lenet-28 --data mnist_test.npz

The unit is one plain gradient of the whole batch per sample of it ("gradient-equivalents").
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from benchmarks.contestants import CONTESTANTS, OURS, UNIT, Contestant, Product, describe_ours
from benchmarks.memory import mebibytes, peak_memory
from benchmarks.models import Case, normal_vectors
from benchmarks.options import Printer, Settings, make_parser, read_settings
from benchmarks.tables import Spread, Table
from benchmarks.timing import median_ratio, setup_seconds, take_turns
from benchmarks.work import load, prepare_product
from riskaudit.release import Batch, Release

COLUMNS = {
    "contestant": "contestant",
    "samples": "samples",
    "setup": "setup, gradients",
    "milliseconds": "H v, ms per sample",
    "gradients": "gradient-equivalents",
    "ratio": f"times {OURS}",
    "difference": f"differs from {OURS} by",
    "mebibytes": "peak memory, MiB",
}
# Peak memory is the same at every repetition; in a quick run two processes are enough to try it.
QUICK_MEMORY = (OURS, "rebuilt")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), help="contestants (the unit always runs)")
    parser.add_argument("--memory", action="store_true", help="measure peak memory only")
    options = parser.parse_args(arguments)
    settings, cases = read_settings(options)
    printer = Printer("One product H v", settings)
    for case in cases:
        printer.add(compare(case, settings, chosen(options)))
    printer.finish(options.json)


def chosen(options: argparse.Namespace) -> tuple[list[Contestant], bool]:
    """The contestants asked for, and whether they are timed; the unit is always among timed ones."""
    names = options.only or list(CONTESTANTS)
    if not options.memory and UNIT not in names:
        names = [*names, UNIT]
    return [CONTESTANTS[name] for name in names], not options.memory


def compare(case: Case, settings: Settings, chosen: tuple[list[Contestant], bool]) -> Table:
    """The table of one model."""
    contestants, timed = chosen
    size = settings.size(case)
    release, batch, source = load(case.name, size, settings)
    shape = " x ".join(str(length) for length in case.shape)
    title = f"{case.name}, {shape}, {release.num_entries} parameters, B = {size}, {source}"
    table = Table(title, COLUMNS if timed else {key: COLUMNS[key] for key in ("contestant", "mebibytes")})
    rows = {contestant.name: {"contestant": contestant.name} for contestant in contestants}
    if timed:
        _add_times(rows, table, case, settings, contestants, release, batch)
    for contestant in contestants:
        if settings.quick and contestant.name not in QUICK_MEMORY:
            continue
        rows[contestant.name]["mebibytes"] = mebibytes(
            peak_memory(prepare_product, settings.torch_device, settings, case.name, contestant.name, size)
        )
    table.rows = list(rows.values())
    if OURS in rows:
        table.notes.append(describe_ours(release, batch))
    table.notes.append("\n".join(f"- {contestant.name}: {contestant.description}" for contestant in contestants))
    return table


def _add_times(
    rows: Mapping[str, dict[str, object]],
    table: Table,
    case: Case,
    settings: Settings,
    contestants: Sequence[Contestant],
    release: Release,
    batch: Batch,
) -> None:
    """Fill in all columns but memory."""
    device = settings.torch_device
    vectors = normal_vectors(len(batch), batch.inputs[0].numel(), settings.torch_dtype, device)
    parts = {contestant.name: _part(contestant, case, batch) for contestant in contestants}
    makers = {contestant.name: contestant.maker(release, parts[contestant.name]) for contestant in contestants}
    products = {name: _bound(makers[name](part), vectors[: len(part)]) for name, part in parts.items()}
    settled = {contestant.name: contestant.settles_after for contestant in contestants}
    times = take_turns(products, settings.repeats, device, settled)
    seconds = {name: [time / len(parts[name]) for time in values] for name, values in times.items()}
    for contestant in contestants:
        name, row = contestant.name, rows[contestant.name]
        row["samples"], row["seconds per sample"] = len(parts[name]), seconds[name]
        row["milliseconds"] = Spread.of([1000 * value for value in seconds[name]])
        row["gradients"] = median_ratio(seconds[name], seconds[UNIT])
        row["ratio"] = median_ratio(seconds[name], seconds[OURS]) if OURS in seconds else None
        if contestant.has_setup:
            row["setup"] = _setup(contestant, makers[name], parts[name], vectors, settings, seconds[UNIT])
    _add_differences(rows, table, {name: product() for name, product in products.items() if name != UNIT})


def _setup(
    contestant: Contestant,
    make: Callable[[Batch], Product],
    part: Batch,
    vectors: Tensor,
    settings: Settings,
    unit: Sequence[float],
) -> float:
    """What is done once per batch, per sample of it, in gradients."""

    def begin() -> Callable[[], Tensor]:
        return _bound(make(part), vectors[: len(part)])

    taken = [setup_seconds(begin, contestant.settles_after, settings.torch_device) for _ in range(settings.repeats)]
    return statistics.median(taken) / len(part) / statistics.median(unit)


def _add_differences(rows: Mapping[str, dict[str, object]], table: Table, results: Mapping[str, Tensor]) -> None:
    """How far the products are apart, in the 2-norm relative to the row's own, at the worst sample."""
    for name, result in results.items():
        if OURS in results and name != OURS:
            rows[name]["difference"] = relative_difference(results[OURS], result)
    pairs = [relative_difference(a, b) for i, a in enumerate(results.values()) for b in list(results.values())[:i]]
    if pairs:
        table.notes.append(f"Largest relative difference between any two contestants' products: {max(pairs):.1e}.")


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest ||found - expected|| / ||expected|| over the samples that both have."""
    count = min(len(found), len(expected))
    found, expected = found[:count].double(), expected[:count].double()
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def _part(contestant: Contestant, case: Case, batch: Batch) -> Batch:
    """The samples that a contestant is timed on."""
    return batch.select(list(range(min(case.few, len(batch))))) if contestant.per_sample else batch


def _bound(product: Product, vectors: Tensor) -> Callable[[], Tensor]:
    return lambda: product(vectors)


if __name__ == "__main__":
    main()
