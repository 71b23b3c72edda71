"""Times of contestants that take turns, so that a slow minute of the machine meets all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, with everything that it queued on the device."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def work_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that the processor worked for this process in one call; on other devices wall-clock seconds."""
    if device.type != "cpu":
        return seconds(function, device)
    start = time.process_time()
    function()
    return time.process_time() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue; a processor has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warm_ups: Mapping[str, int] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every function in each of ``repeats`` rounds A B C, A B C, ..., after warming up each."""
    for name, function in functions.items():
        for _ in range(1 if warm_ups is None else warm_ups[name]):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        gc.collect()
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return times


def take_turns_within(
    functions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, most: float
) -> dict[str, list[float]]:
    """Seconds (`work_seconds`) of every function in at most ``repeats`` rounds, of which those leave that had ``most``.

    What has more than one round begins with one that doesn't count, for warming up.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        gc.collect()
        for name, function in functions.items():
            if sum(times[name]) < most or not times[name]:
                times[name].append(work_seconds(function, device))
    return {name: values[1:] or values for name, values in times.items()}


def median_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the rounds of one contestant's time in another's of the same round."""
    return statistics.median(time / other for time, other in zip(times, reference, strict=True))


def setup_seconds(make: Callable[[], Callable[[], object]], products: int, device: torch.device) -> float:
    """Seconds for what is done once per batch.

    ``make`` gives the product; the first ``products`` products may do part of the work, so as many settled
    ones are taken off. At least 0.
    """
    made: list[Callable[[], object]] = []

    def begin() -> None:
        product = make()
        for _ in range(products):
            product()
        made.append(product)

    total = seconds(begin, device)
    return max(0.0, total - sum(seconds(made[0], device) for _ in range(products)))
