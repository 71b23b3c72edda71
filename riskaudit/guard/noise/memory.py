"""What a guard remembers of what has left: traces of noise, and results of sanitising.

With a ledger, traces and the digests of sanitised updates are in the ledger (`riskaudit.guard.ledger.noise`), for
later processes too; without one they are in memory, and end with the guard. Results are in memory only.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from riskaudit.guard.contents import CleanUpdates
from riskaudit.guard.decision import Decision
from riskaudit.guard.ledger import Ledger
from riskaudit.guard.ledger.noise import NoiseRound
from riskaudit.guard.noise.order import Extremes
from riskaudit.guard.noise.traces import TRACES, Trace, Tracer, repetition

# Digests of sanitised updates; entries of results that can be handed out again, though always the last one.
DIGESTS, ENTRIES = 2**16, 2**22


class NoiseMemory:
    """Of one guard; safe to share between threads without a ledger.

    Args:
        ledger: that remembers it for later processes; None without.

    Attributes:
        clean: what sanitised updates were before noise.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger, self.clean = ledger, CleanUpdates()
        self._tracer = Tracer(secrets.token_bytes(32)) if ledger is None else ledger.noise.tracer
        self._lock = threading.Lock()
        self._traces: deque[Trace] = deque(maxlen=TRACES)
        self._results: OrderedDict[str, Decision | None] = OrderedDict()

    def round_of(
        self, noises: Sequence[Tensor], sizes: Sequence[int], digest: str, *, sanitised: bool = False,
        extremes: Sequence[Extremes] | None = None,
    ) -> NoiseRound:  # fmt: skip
        """What is to be remembered of a round.

        Args:
            noises: scores [P] of the noise on what was handed in, and of that on what leaves where it is another one.
            sizes: of the tensors.
            digest: of the update.
            sanitised: whether noise was added to it.
            extremes: of the first scores, where they are known.
        """
        keyed = self._tracer.keyed(digest)
        known = [extremes, *(None for _ in noises)]
        traces = tuple(
            self._tracer.trace(noise.numpy(), sizes, keyed, one) for noise, one in zip(noises, known, strict=False)
        )
        return NoiseRound(traces, keyed if sanitised else None)

    def refuse_or_remember(self, noise: NoiseRound) -> str | None:
        """Why the noise isn't independent of earlier rounds'; where it is, the traces are kept, and None returned.

        An update that left before, bit by bit, tells nothing new, and is not compared with itself. With a ledger
        nothing is done: it compares when the round is recorded.
        """
        if self._ledger is not None or not noise.traces:
            return None
        own = noise.traces[0]
        with self._lock:
            earlier = [one for one in self._traces if one.digest != own.digest]
            problem = repetition(own, earlier)
            if problem is None and len(earlier) == len(self._traces):
                self._traces.extend(noise.traces)
            return problem

    def sanitised(self, key: str) -> tuple[bool, Decision | None]:
        """Whether an update was sanitised before, and what was decided; None where that is no longer held."""
        with self._lock:
            if key in self._results:
                return True, self._results[key]
        known = self._ledger is not None and self._ledger.was_sanitised(self._tracer.keyed(key))
        return known, None

    def remember_result(self, key: str, decision: Decision) -> Decision:
        """Keep a sanitised result; returns the first one where another thread was faster."""
        with self._lock:
            first = self._results.get(key)
            if first is not None:
                return first
            self._results[key] = decision
            held = 0
            for other, one in reversed(list(self._results.items())):
                held += 0 if one is None else sum(torch.as_tensor(value).numel() for value in _values(one.update))
                if held > ENTRIES and other != key:
                    self._results[other] = None
            while len(self._results) > DIGESTS:
                self._results.popitem(last=False)
            return decision


def _values(update: Any) -> list[Tensor]:
    values: Iterable[Tensor] = update.values() if isinstance(update, Mapping) else update
    return list(values)
