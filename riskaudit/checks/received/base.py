"""The interface of signs that a received model was changed so that its gradients tell more.

A sign measures one number per layer. It is judged against the same architecture freshly initialised, and where the
model of the round before is there, against that too. Training moves most numbers of a network, so every sign has a
threshold besides, which trained networks don't reach (benchmarks/RESULTS.md has the counts). No sign is a proof.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from riskaudit.checks.received.observation import ObservedModel
from riskaudit.errors import SettingsError
from riskaudit.results.inspection import SignInfo

# From this many spreads of the reference on, a number is far from it.
FAR = 6.0
# The key of a number that is no single layer's.
WHOLE_MODEL = ""
# A median absolute deviation of a normal law, as a part of its standard deviation.
_MAD = 0.6745


class SignNotApplicable(Exception):  # noqa: N818 - an answer, not an error
    """A model, or too few samples, in which the sign has nothing to look at; ``str`` says why."""


@dataclass(frozen=True)
class Measurement:
    """A sign's number at one layer.

    Attributes:
        value: the number.
        detail: what it counts, in words without any private value; the reason of a flag begins with it.
        chance: the same number of random rearrangements of the layer's own weights, where these say more than
            other initialisations do.
        may_shrink: whether a number far below the reference is what honest models have here.
    """

    value: float
    detail: str = ""
    chance: tuple[float, ...] = ()
    may_shrink: bool = True


@dataclass(frozen=True)
class Judgement:
    """What a measurement is beside its references.

    Attributes:
        reference: what the models that it is held against have, the median where the sign doesn't say otherwise; None
            without one.
        z: distance to it in spreads, robust.
        flagged: whether it is far from what honest models show.
    """

    reference: float | None
    z: float | None
    flagged: bool


class Sign(ABC):
    """A number per layer that attacks by the server raise and training doesn't.

    Attributes:
        id: the key in inspection.json.
        title: for readers.
        summary: what it means where it is flagged, one sentence.
        innocent: what else can have caused it, one sentence.
        source: the attack that it shows.
        units: of the number.
        threshold: least value that is flagged.
        spread: least spread that a reference is taken to have.
        min_samples: fewer than these and it isn't applicable.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    innocent: ClassVar[str]
    source: ClassVar[str]
    units: ClassVar[str]
    threshold: ClassVar[float]
    spread: ClassVar[float]
    min_samples: ClassVar[int] = 1

    @abstractmethod
    def measure(self, observed: ObservedModel) -> Mapping[str, Measurement]:
        """The number by layer, or at `WHOLE_MODEL`.

        Raises:
            SignNotApplicable: no layer of a kind that shows it.
        """

    def judge(self, measured: Measurement, fresh: Sequence[float], previous: float | None) -> Judgement:
        """Hold a measurement against freshly initialised models and against the previous round's, where known."""
        reference = list(measured.chance or fresh)
        if not reference:
            return Judgement(None, None, False)
        median = statistics.median(reference)
        z = (measured.value - median) / max(robust_spread(reference), self.spread)
        return Judgement(median, z, measured.value >= self.threshold and z >= FAR)

    def info(self) -> SignInfo:
        """What inspection.json says of this sign."""
        return SignInfo(
            id=self.id,
            title=self.title,
            summary=self.summary,
            innocent=self.innocent,
            source=self.source,
            units=self.units,
            threshold=self.threshold,
        )


SIGNS: dict[str, Sign] = {}


def register(sign: type[Sign]) -> type[Sign]:
    """Class decorator: make a sign part of every inspection.

    Raises:
        SettingsError: the id is taken.
    """
    if sign.id in SIGNS:
        raise SettingsError(f"the sign {sign.id!r} is registered twice")
    SIGNS[sign.id] = sign()
    return sign


def robust_spread(values: Sequence[float]) -> float:
    """The larger of the standard deviation and of what the median absolute deviation makes of it; 0 of one value."""
    if len(values) < 2:
        return 0.0
    median = statistics.median(values)
    deviation = statistics.median(abs(value - median) for value in values) / _MAD
    spread = max(deviation, statistics.stdev(values))
    return spread if math.isfinite(spread) else math.inf
