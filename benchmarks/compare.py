"""Proxies beside attacks: what a scan costs per sample, what the published proxies cost, and what each attack costs.

    python -m benchmarks.compare --models lenet-28 --data mnist_test.npz

Contestants take turns until each has had its rounds or its share of time, of which one round is always whole: on a
quiet machine of two cores the three default models take about ten minutes together. On a processor seconds are those
that it worked for this process, which other work disturbs less than the time on the wall. Attacks are undefended, with
the labels known and their default settings; a few of their steps are timed and scaled to a whole run: from what it
takes where the search ends early to all its steps (see `Attack.effort`). Proxies run to their end, and so do attacks
named by ``--searches``, undefended and at the scan's noise.

``--json FILE --resume`` leaves out models that FILE has already: it is written after every one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.attacks import observe
from benchmarks.baselines import DoubleBackprop, batch_gradient, largest_by_arpack, largest_by_power
from benchmarks.contestants import UNIT, structured
from benchmarks.models import Case, normal_vectors
from benchmarks.options import Printer, Settings, make_parser, read_settings
from benchmarks.tables import Spread, Table, saved_tables, shown
from benchmarks.timing import take_turns_within
from benchmarks.work import load
from riskaudit.attacks import ATTACKS, AttackNotApplicable, Observation
from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit
from riskaudit.inputs import Samples
from riskaudit.linalg import Lanczos
from riskaudit.release import Batch, Release

COLUMNS = {
    "contestant": "contestant",
    "samples": "samples",
    "seconds": "s per sample",
    "products": "products per sample",
    "gradients": "gradient-equivalents",
    "whole": "times the whole scan",
    "headline": "times the headline alone",
}
DEFAULT_MODELS = ("lenet-28", "resnet18", "vit")
WHOLE, HEADLINE, LARGEST = "whole scan, Krylov", "headline only, Krylov", "l_1 only"
HEADLINES = ("revealed_fraction", "posterior_rmse")
HEADLINE_OPTIONS: dict[str, Any] = {"solver": "lanczos", "checks": False, "proxies": HEADLINES}
DENSE = "whole scan, dense"
# Inputs of more coordinates have no dense spectrum within minutes.
LARGEST_DENSE = 1100
# Samples of a model at most: small ones have more.
MOST_SAMPLES = {"lenet-28": 16, "lenet-32": 16, "mlp": 16}
FEW_SAMPLES = 4
# Seconds of a contestant after which it has no further round.
SECONDS, ROUNDS = 10.0, 3
NOISE = "gaussian:0.01"
# Of l_1, relative.
TOLERANCE = 1e-4
# Of the published power iteration.
POWER_TOLERANCE, POWER_PRODUCTS = 1e-3, 100


@dataclass(frozen=True)
class Proxy:
    """A way to a proxy of some samples.

    Attributes:
        count: samples.
        run: gives the products that all samples took together.
    """

    count: int
    run: Callable[[], int]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    attacks = [name for name, attack in ATTACKS.items() if not attack.oracle_start]
    parser.add_argument("--attacks", nargs="+", choices=attacks, default=attacks)
    parser.add_argument("--searches", nargs="+", choices=attacks, default=[], help="attacks that are run to their end")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no further round of a contestant after so many")
    parser.add_argument("--resume", action="store_true", help="leave out models that are in the JSON file")
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or (None if options.quick else ROUNDS)
    if not options.models and not options.quick:
        options.models = list(DEFAULT_MODELS)
    settings, cases = read_settings(options)
    printer = Printer("Proxies beside attacks", settings)
    done = {table.title.partition(",")[0]: table for table in (saved_tables(options.json) if options.resume else [])}
    for case in cases:
        printer.add(done.get(case.name) or compare(case, settings, options))
        printer.finish(options.json)


def compare(case: Case, settings: Settings, options: argparse.Namespace) -> Table:
    """The table of one model."""
    size = settings.batch_size or min(MOST_SAMPLES.get(case.name, FEW_SAMPLES), case.batch_size)
    release, batch, source = load(case.name, size, settings)
    proxies = _proxies(case, release, batch, settings)
    observation, _ = observe(case, min(size, case.few), settings)
    noisy, _ = observe(case, min(size, case.few), settings, NOISE)
    products: dict[str, int] = {}

    def note(name: str, proxy: Proxy) -> None:
        products[name] = proxy.run()

    functions: dict[str, Callable[[], object]] = {name: partial(note, name, proxy) for name, proxy in proxies.items()}
    functions[UNIT] = partial(batch_gradient, release, batch)
    attacked = {name: call for name in options.attacks if (call := _probe(name, observation)) is not None}
    searches = {
        f"{name} to its end, {words}": partial(ATTACKS[name]().run, seen, torch.Generator().manual_seed(0))
        for words, seen in (("undefended", observation), (NOISE, noisy))
        for name in options.searches
    }
    functions |= {**attacked, **searches}
    times = take_turns_within(functions, settings.repeats, settings.torch_device, options.seconds)
    counts = {UNIT: size, **{name: proxy.count for name, proxy in proxies.items()}}
    seconds = {name: [time / counts.get(name, len(observation)) for time in values] for name, values in times.items()}
    table = Table(f"{case.name}, d = {batch.inputs[0].numel()}, {release.num_entries} parameters, {source}", COLUMNS)
    for name in (*proxies, UNIT):
        taken = products[name] / counts[name] if name in products else None
        table.rows.append(_proxy_row(name, counts[name], taken, seconds))
    table.rows += [_attack_row(name, len(observation), seconds) for name in options.attacks]
    table.rows += [_proxy_row(name, len(observation), None, seconds) for name in searches]
    table.notes += _notes()
    return table


def _proxies(case: Case, release: Release, batch: Batch, settings: Settings) -> dict[str, Proxy]:
    size, dimension = len(batch), batch.inputs[0].numel()
    few = batch.select(list(range(min(case.few, size))))
    proxies = {
        WHOLE: Proxy(size, partial(_audited, release, batch, settings, solver="lanczos")),
        HEADLINE: Proxy(size, partial(_audited, release, batch, settings, **HEADLINE_OPTIONS)),
        LARGEST: Proxy(size, partial(_largest, release, batch)),
        "I2F, as its authors do": Proxy(len(few), partial(_by_arpack, release, few)),
        "LAVP, power iteration": Proxy(len(few), partial(_by_power, release, few)),
    }
    if dimension <= LARGEST_DENSE:
        proxies[DENSE] = Proxy(size, partial(_audited, release, batch, settings, solver="dense"))
    return proxies


def _audited(release: Release, batch: Batch, settings: Settings, **options: Any) -> int:
    samples = Samples.from_tensors(batch.inputs.cpu(), batch.targets.cpu())
    chosen = AuditSettings(release=NOISE, dtype=settings.dtype, device=settings.device, **options)
    return audit(release.model, samples, chosen).cost.matvecs


# PyTorch's fused attention has no second derivative; the project's operators replace it themselves.
_twice_differentiable = sdpa_kernel(SDPBackend.MATH)


def _largest(release: Release, batch: Batch) -> int:
    operator = structured(release, batch)(batch)
    start = normal_vectors(len(batch), operator.shape[1], operator.dtype, operator.device)
    solution = Lanczos(tolerance=TOLERANCE, max_matvecs=min(200, operator.shape[1])).solve(operator, start)
    return int(solution.matvecs.sum())


@_twice_differentiable
def _by_arpack(release: Release, batch: Batch) -> int:
    samples = zip(batch.inputs, batch.targets, strict=True)
    return sum(largest_by_arpack(DoubleBackprop(release, x, y, cached=False), TOLERANCE)[1] for x, y in samples)


@_twice_differentiable
def _by_power(release: Release, batch: Batch) -> int:
    samples = (DoubleBackprop(release, x, y, cached=False) for x, y in zip(batch.inputs, batch.targets, strict=True))
    return sum(largest_by_power(sample, POWER_TOLERANCE, POWER_PRODUCTS)[1] for sample in samples)


def _probe(name: str, observation: Observation) -> Callable[[], object] | None:
    """The attack's short run; None where it can't be run on the model."""
    probe = ATTACKS[name]().effort.probe

    def run() -> object:
        return probe.run(observation, torch.Generator().manual_seed(0))

    try:
        run()
    except AttackNotApplicable:
        return None
    return run


def _proxy_row(name: str, count: int, products: float | None, seconds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "contestant": name,
        "samples": count,
        "seconds": Spread.of(seconds[name]),
        "products": products,
        "gradients": ratio(seconds[name], seconds[UNIT]),
        "whole": ratio(seconds[name], seconds[WHOLE]),
        "headline": ratio(seconds[name], seconds[HEADLINE]),
        "seconds per sample": seconds[name],
    }


def _attack_row(name: str, count: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """An attack from the seconds of its short run, scaled to the whole one."""
    title = f"attack {name}"
    if name not in seconds:
        return {"contestant": f"{title} (can't be run here)", "samples": count}
    effort = ATTACKS[name]().effort
    row: dict[str, Any] = {"contestant": title, "samples": count, "timed": seconds[name]}
    for key, reference in (("seconds", None), ("gradients", UNIT), ("whole", WHOLE), ("headline", HEADLINE)):
        unit = statistics.median(seconds[name]) if reference is None else ratio(seconds[name], seconds[reference])
        low, high, most = (unit / effort.done * units for units in (effort.low, effort.high, effort.most))
        row[key] = shown(high) if low == high else f"{shown(low)} to {shown(high)}"
        row[f"{key}, low to most"] = [low, high, most]
    return row


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Of medians, since contestants have different numbers of rounds."""
    return statistics.median(times) / statistics.median(others)


def _notes() -> list[str]:
    newton = ATTACKS["gauss-newton"]().effort
    return [
        f"Whole scan: all proxies and the leak checks at {NOISE}; headline: revealed fraction and posterior error, "
        f"without checks; {LARGEST}: Lanczos to {TOLERANCE:g}. I2F: ARPACK on J J^T with the graph rebuilt for every "
        f"product, to {TOLERANCE:g}; LAVP: power iteration with such products until the value changes by less than "
        f"{POWER_TOLERANCE:g}, {POWER_PRODUCTS} products at most; both give l_1 alone, one sample after the other.",
        "Attacks: undefended, labels known, defaults; a few steps are timed and scaled, from a search that ends early "
        "to one that takes all its steps (gauss-newton: from an untrained network to one that tells little, without "
        f"the rounds for samples that get stuck, which may take {newton.most / newton.high:.0f} times as much).",
    ]


if __name__ == "__main__":
    main()
