"""What a guard remembers of what has left: traces of noise, and results of sanitising.

With a ledger, traces and the digests of sanitised updates are in the ledger (`riskaudit.guard.ledger.noise`), for
later processes too; without one they are in memory, and end with the guard. Results are in memory only.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riskaudit.guard.decision import Decision
from riskaudit.guard.ledger import Ledger
from riskaudit.guard.noise.order import Extremes
from riskaudit.guard.noise.traces import TRACES, Trace, keyed, repetition, trace_of

# Digests of sanitised updates; entries of results that can be handed out again, though always the last one.
DIGESTS, ENTRIES = 2**16, 2**22
# Sums of a projection of an update, and how many projections are kept.
BUCKETS, PROJECTIONS = 128, 4096
# Updates that differ by less, relative to their norm, are one: two draws of noise on them average out like on one.
NEARLY = 1e-2


class NoiseMemory:
    """The memory of one guard, whose reviews run one at a time.

    Of sanitised updates without noise of the client's it keeps secret projections that keep distances and hide the
    rest: every entry is added with a random sign to one of 128 sums at random (a count sketch), so that the squared
    norm of a difference is kept within about an eighth.

    Args:
        ledger: that remembers traces and digests for later processes; None without.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = ledger
        self._key = secrets.token_bytes(32) if ledger is None else ledger.noise.trace_key
        self._traces: deque[Trace] = deque(maxlen=TRACES)
        self._results: OrderedDict[str, Decision | None] = OrderedDict()
        self._seed = secrets.randbits(128)
        self._projections: deque[tuple[str, np.ndarray, str]] = deque(maxlen=PROJECTIONS)

    def keyed(self, key: str) -> bytes:
        """Digest of an update that says nothing to who hasn't the memory's key."""
        return keyed(self._key, key)

    def traces(
        self, noises: Sequence[Tensor], sizes: Sequence[int], key: str, extremes: Sequence[Extremes] | None = None
    ) -> list[Trace]:
        """Traces of a round's noise, with the extremes of the first where they are known.

        ``noises`` are scores [P] of the noise on what was handed in, and of that on what leaves where it is another.
        """
        digest = self.keyed(key)
        pairs = zip_longest(noises, [extremes] if noises else [])
        return [trace_of(self._key, noise.numpy(), sizes, digest, largest) for noise, largest in pairs]

    def refuse_or_remember(self, traces: Sequence[Trace]) -> str | None:
        """Why the noise isn't independent of earlier rounds'; where it is, the traces are kept, and None returned.

        An update that left before, bit by bit, tells nothing new, and is not compared with itself. With a ledger
        nothing is done: it compares when the round is recorded.
        """
        if self._ledger is not None or not traces:
            return None
        earlier = [trace for trace in self._traces if trace.digest != traces[0].digest]
        problem = repetition(traces[0], earlier)
        if problem is None and len(earlier) == len(self._traces):
            self._traces.extend(traces)
        return problem

    def sanitised(self, key: str) -> tuple[bool, Decision | None]:
        """Whether an update was sanitised before, and what was decided; None where that is no longer held."""
        if key in self._results:
            return True, self._results[key]
        return self._ledger is not None and self._ledger.was_sanitised(self.keyed(key)), None

    def remember_result(self, key: str, decision: Decision) -> Decision:
        """Keep a sanitised result; returns the first one where a review inside this one was faster."""
        first = self._results.get(key)
        if first is not None:
            return first
        self._results[key] = decision
        entries = 0
        for other, result in reversed(list(self._results.items())):
            entries += 0 if result is None else _num_entries(result.update)
            if entries > ENTRIES and other != key:
                self._results[other] = None
        while len(self._results) > DIGESTS:
            self._results.popitem(last=False)
        return decision

    def key_of_similar(self, mean: Tensor, model_digest: str, key: str) -> str:
        """The key of an earlier update that is nearly this one [P] at the same weights; ``key`` where there is none."""
        if not self._projections:
            return key
        projection = self._projected(mean)
        limit = NEARLY * float(np.linalg.norm(projection))
        for digest, other, earlier in self._projections:
            comparable = digest == model_digest and len(other) == len(projection)
            if comparable and float(np.linalg.norm(other - projection)) <= limit:
                return earlier
        return key

    def remember_clean(self, mean: Tensor, model_digest: str, key: str) -> None:
        """Keep the projection of an update [P], before any noise, under its key."""
        self._projections.append((model_digest, self._projected(mean), key))

    def _projected(self, mean: Tensor) -> np.ndarray:
        values = mean.detach().to(device="cpu", dtype=torch.float64).numpy()
        if len(values) <= BUCKETS:
            return values.copy()
        drawn = np.random.default_rng(self._seed).integers(0, 2 * BUCKETS, len(values), dtype=np.uint8)
        signed = np.where(drawn < BUCKETS, values, -values)
        sums: np.ndarray = np.bincount(drawn % BUCKETS, weights=signed, minlength=BUCKETS)
        return sums


def _num_entries(update: Any) -> int:
    values = update.values() if isinstance(update, Mapping) else update
    return sum(torch.as_tensor(value).numel() for value in values)
