"""Whether torch.compile makes a product H v of the structured operator cheaper.

    python -m benchmarks.compiled --models lenet-28 --data mnist_test.npz

Compiled as it stands, the graph breaks wherever autograd is called, so little but the contractions is compiled. Traced,
everything that a product does is compiled, back-propagation included: with the activations of one batch as
constants, so anew for every batch. On CUDA, captured: the eager product's kernels, recorded once and replayed as a
graph, without the time that Python takes to queue them. Every way is held against the eager one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.contestants import structured
from benchmarks.models import CASES, Case, normal_vectors
from benchmarks.options import Printer, Settings, make_parser, read_settings
from benchmarks.tables import Spread, Table
from benchmarks.timing import median_ratio, seconds, take_turns
from benchmarks.work import load
from riskaudit.linalg import LinearOperator

EAGER = "not compiled"
# Of a product before it is captured.
WARM_UPS = 3
COLUMNS = {
    "contestant": "contestant",
    "first": "first call, s",
    "milliseconds": "H v, ms per sample",
    "ratio": f"times {EAGER}",
    "difference": f"differs from {EAGER} by",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = make_parser(__doc__).parse_args(arguments)
    settings, cases = read_settings(options)
    if not options.models and not settings.quick:
        # Larger ones compile for many minutes.
        cases = [CASES["lenet-28"]]
    printer = Printer("torch.compile", settings)
    for case in cases:
        printer.add(compare(case, settings))
    printer.finish(options.json)


def compare(case: Case, settings: Settings) -> Table:
    """The table of one model."""
    size = settings.size(case)
    release, batch, source = load(case.name, size, settings)
    operator = structured(release, batch)(batch)
    vectors = normal_vectors(size, operator.shape[1], operator.dtype, operator.device)
    expected = operator.matvec(vectors)
    product = product_of(operator)
    with torch.no_grad():
        makers: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
            "compiled": lambda: torch.compile(product, dynamic=False),
            "traced, compiled": lambda: torch.compile(make_fx(product)(vectors), dynamic=False),
        }
        if settings.device == "cuda":
            makers["captured"] = lambda: captured(product, vectors)
        calls, first, notes = {EAGER: _call(product, vectors)}, {}, list[str]()
        first[EAGER] = seconds(calls[EAGER], settings.torch_device)
        for name, make in makers.items():
            try:
                call = _call(make(), vectors)
                first[name], calls[name] = seconds(call, settings.torch_device), call
            except Exception as error:  # whatever a compiler or a driver raises: the other ways can still be measured
                notes.append(f"The product can't be {name}: {(str(error) or type(error).__name__).splitlines()[0]}")
        differences = {name: float((call() - expected).norm() / expected.norm()) for name, call in calls.items()}
        times = take_turns(calls, settings.repeats, settings.torch_device)
    table = Table(f"{case.name}, B = {size}, {source}", COLUMNS, notes=notes)
    for name, values in times.items():
        row = {"contestant": name, "first": first[name], "difference": differences[name]}
        row["milliseconds"] = Spread.of([1000 * value / size for value in values])
        table.rows.append({**row, "ratio": median_ratio(values, times[EAGER])})
    return table


def product_of(operator: LinearOperator) -> Callable[[Tensor], Tensor]:
    """H v as a function of v alone: a bound method would be traced with its operator as an argument."""

    def product(columns: Tensor) -> Tensor:
        return operator.matvec(columns)

    return product


def captured(product: Callable[[Tensor], Tensor], vectors: Tensor) -> Callable[[Tensor], Tensor]:
    """The product as a CUDA graph, for vectors of the same shape; its result is overwritten by the next call.

    Raises:
        RuntimeError: the product waits for the device, which can't be captured.
    """
    held, stream = vectors.clone(), torch.cuda.Stream()
    # On a stream of its own, as capturing asks for, until everything is allocated and chosen.
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            product(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = product(held)

    def replay(columns: Tensor) -> Tensor:
        held.copy_(columns)
        graph.replay()
        return result

    return replay


def _call(way: Callable[[Tensor], Tensor], vectors: Tensor) -> Callable[[], Tensor]:
    return lambda: way(vectors)


if __name__ == "__main__":
    main()
