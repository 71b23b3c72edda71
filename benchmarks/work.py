"""Pieces of work that both commands measure, made from plain names so that another process can make them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.contestants import CONTESTANTS, structured
from benchmarks.memory import Work
from benchmarks.models import CASES, build_release, load_batch, normal_vectors
from benchmarks.options import Settings
from riskaudit.linalg import Lanczos, LinearOperator
from riskaudit.release import Batch, Release

# Products per sample of a stream; about what l_1 to 1e-4 takes.
STREAM_PRODUCTS = 10


def load(case: str, count: int, settings: Settings) -> tuple[Release, Batch, str]:
    """Release, samples, and where these come from."""
    dtype, device = settings.torch_dtype, settings.torch_device
    batch, source = load_batch(CASES[case], count, settings.data, dtype, device)
    return build_release(CASES[case], dtype, device), batch, source


def prepare_product(settings: Settings, case: str, contestant: str, size: int) -> Work:
    """One product of a whole batch by one contestant, with its setup, for `peak_memory`."""
    settings.apply()
    release, batch, _ = load(case, size, settings)
    vectors = normal_vectors(size, batch.inputs[0].numel(), release.dtype, release.device)
    how = CONTESTANTS[contestant]
    make = how.maker(release, batch)
    step = 1 if how.per_sample else size

    def work(count: int) -> None:
        for first in range(0, count, step):
            indices = list(range(first, min(first + step, count)))
            product = make(batch.select(indices))
            for _ in range(how.settles_after):
                product(vectors[indices])

    # Two samples load whatever a batch of them needs.
    return partial(work, min(size, 1 if how.per_sample else 2)), partial(work, size)


def prepare_stream(settings: Settings, case: str, count: int, size: int) -> Work:
    """`stream` over ``count`` samples, for `peak_memory`."""
    settings.apply()
    release, batch, _ = load(case, count, settings)
    make = structured(release, batch)
    small = batch.select(list(range(min(2, count))))
    return partial(stream, make, small, size), partial(stream, make, batch, size)


def stream(make: Callable[[Batch], LinearOperator], samples: Batch, size: int) -> list[float]:
    """l_1 of many samples, ``size`` at once, with a fixed number of products each."""
    values: list[float] = []
    for first in range(0, len(samples), size):
        part = samples.select(list(range(first, min(first + size, len(samples)))))
        operator = make(part)
        start = normal_vectors(len(part), operator.shape[1], operator.dtype, operator.device)
        solver = Lanczos(tolerance=0.0, max_matvecs=STREAM_PRODUCTS)
        values += solver.solve(operator, start).value.tolist()
    return values
