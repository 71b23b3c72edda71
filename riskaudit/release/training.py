"""Local training between two uploads, as federated averaging does it (McMahan et al., AISTATS 2017). Without torch.

    local:epochs=E:batch=B:lr=L[:momentum=M][:weight_decay=W][:optimizer=sgd|adam][:shuffle=SEED]

What leaves is the difference of the weights, before minus after. Steps minimise the mean loss of a mini-batch by
torch's update rules.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Self, final

from riskaudit.errors import ReleaseError
from riskaudit.formatting import count
from riskaudit.release.arguments import read_count, read_number, read_seed

LOCAL = "local"
ALL = "all"
OPTIMIZERS = ("sgd", "adam")
# Of one training: one product goes through all of them, so that more can't be audited in any time.
MAX_STEPS = 100_000
EXAMPLE = f"{LOCAL}:epochs=2:batch=8:lr=0.05"


@final
@dataclass(frozen=True)
class LocalTraining:
    """How a client trains before it uploads.

    Attributes:
        epochs: passes over its samples.
        batch: samples of a mini-batch; None for all.
        lr: the learning rate.
        momentum: of SGD, as torch.optim.SGD has it.
        weight_decay: as torch.optim has it: added to the gradient, times the weights.
        optimizer: SGD, or Adam with torch's other settings (betas 0.9 and 0.999, eps 1e-8).
        shuffle: seed of the order of the samples, another one in every epoch; None for the order of the data in each.
        recorded: positions of the samples of every step, where a training was recorded as it happened; epochs, batch
            and shuffle say nothing then, and its text can't be read back.
        rates: of every recorded step, in the place of ``lr``; None where all have that.
    """

    epochs: int
    batch: int | None
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    shuffle: int | None = None
    recorded: tuple[tuple[int, ...], ...] | None = None
    rates: tuple[float, ...] | None = None

    @property
    def diverged(self) -> str:
        """What is said of a training whose weights don't stay finite."""
        rates = sorted({self.lr} if self.rates is None else set(self.rates))
        between = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
        return (
            f"the local training diverges at a learning rate of {between} ({self.optimizer}): the weights that it "
            "leaves aren't finite numbers; lower the learning rate (lr)"
        )

    def __post_init__(self) -> None:
        if self.optimizer == "adam" and self.momentum:
            raise ReleaseError(
                f"expected momentum with optimizer=sgd only, found momentum={self.momentum!r} with adam; leave one of "
                "them out"
            )

    @classmethod
    def parse(cls, values: list[str]) -> Self:
        """Read what follows the name: ``key=value`` each, in any order.

        Raises:
            ReleaseError: a key that isn't known, is missing or comes twice, or a value out of range.
        """
        given: dict[str, Any] = {}
        for text in values:
            key, separator, value = text.partition("=")
            if key not in _VALUES or not separator:
                close = get_close_matches(key, _VALUES, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; write it like {EXAMPLE}"
                raise ReleaseError(f"expected key=value with a key of {', '.join(_VALUES)}, found {text!r}{hint}")
            if key in given:
                raise ReleaseError(f"expected {key} once, found it twice; leave one out")
            condition, example, read = _VALUES[key]
            given[key] = read(value)
            if given[key] is _REFUSED:
                raise ReleaseError(f"expected {key} with {condition}, found {value!r}; write {key}={example}")
        missing = [key for key in ("epochs", "batch", "lr") if key not in given]
        if missing:
            raise ReleaseError(f"expected epochs=E, batch=B and lr=L, found no {' and no '.join(missing)}; add it")
        return cls(**given)

    def __str__(self) -> str:
        """As ``release`` takes it, without what is left at its default."""
        parts = [LOCAL, f"epochs={self.epochs}", f"batch={self.batch or ALL}", f"lr={self.lr!r}"]
        if self.recorded is not None:
            rates = sorted({self.rate(step) for step in range(len(self.recorded))})
            parts = [
                LOCAL,
                f"steps={len(self.recorded)}",
                f"lr={' to '.join(map(repr, rates[:: len(rates) - 1 or 1]))}",
            ]
        parts += [f"momentum={self.momentum!r}"] if self.momentum else []
        parts += [f"weight_decay={self.weight_decay!r}"] if self.weight_decay else []
        parts += [f"optimizer={self.optimizer}"] if self.optimizer != "sgd" else []
        parts += [f"shuffle={self.shuffle}"] if self.shuffle is not None else []
        return ":".join(parts)

    def mini_batches(self, num_samples: int) -> list[list[int]]:
        """Positions of the samples of every step, in the order of the steps; the last of an epoch may be fewer.

        Raises:
            ReleaseError: more steps than `MAX_STEPS`.
        """
        if self.recorded is not None:
            return [list(positions) for positions in self.recorded]
        size, steps = self.batch or num_samples, []
        if self.epochs * -(-num_samples // size) > MAX_STEPS:
            raise ReleaseError(
                f"expected local training of at most {MAX_STEPS:,} steps, found {self.epochs:,} epochs of "
                f"{count(-(-num_samples // size), 'step')}; audit fewer epochs, or larger mini-batches"
            )
        for epoch in range(self.epochs):
            order = list(range(num_samples))
            if self.shuffle is not None:
                random.Random(f"{self.shuffle}:{epoch}").shuffle(order)
            steps += [order[first : first + size] for first in range(0, num_samples, size)]
        return steps

    def size_notes(self, num_samples: int) -> list[str]:
        """What is said where mini-batches of the size that is named aren't all there are, of a client's samples."""
        named, size = self.batch, count(num_samples, "sample")
        if self.recorded is not None or named is None or num_samples % named == 0:
            return []
        if named > num_samples:
            return [
                f"{LOCAL} names mini-batches of {named:,}, and a client has {size} here: each mini-batch is all "
                f"that it has, as torch's DataLoader makes it (batch={ALL} says the same), and no number is of "
                f"{named:,} together"
            ]
        return [
            f"mini-batches of {named:,} don't divide the {size} of a client: the last of every epoch holds "
            f"{num_samples % named:,}, as torch's DataLoader makes it without drop_last"
        ]

    def rate(self, step: int) -> float:
        """The learning rate of one step, from 0."""
        return self.lr if self.rates is None else self.rates[step]


def usages() -> dict[str, str]:
    """How it is written in ``release``, and what it does."""
    usage = f"{LOCAL}:epochs=E:batch=B:lr=L[:momentum=M][:weight_decay=W][:optimizer=sgd|adam][:shuffle=SEED]"
    return {usage: "the difference of the weights after training on mini-batches of B samples (first, for gradient)"}


_REFUSED = object()


def _number(accepts: Callable[[float], bool]) -> Callable[[str], object]:
    def read(text: str) -> object:
        value = read_number(text)
        return value if value is not None and accepts(value) else _REFUSED

    return read


def _or_refused(read: Callable[[str], int | None]) -> Callable[[str], object]:
    def checked(text: str) -> object:
        value = read(text)
        return _REFUSED if value is None else value

    return checked


# Of every key: which values are accepted, what to write instead, and how a text is read.
_VALUES: dict[str, tuple[str, str, Callable[[str], object]]] = {
    "epochs": ("a whole number above 0", "2 for two passes", _or_refused(read_count)),
    "batch": (
        "a whole number above 0, or all",
        "8 for mini-batches of 8",
        lambda text: None if text == ALL else _or_refused(read_count)(text),
    ),
    "lr": ("a number above 0", "0.05 or another rate", _number(lambda value: value > 0)),
    "momentum": ("0 <= M < 1", "0.9, or leave it out", _number(lambda value: 0 <= value < 1)),
    "weight_decay": ("W >= 0", "0.001, or leave it out", _number(lambda value: value >= 0)),
    "optimizer": (
        " or ".join(OPTIMIZERS),
        "adam or sgd, and train with it",
        lambda text: text if text in OPTIMIZERS else _REFUSED,
    ),
    "shuffle": ("a whole number as SEED", "0, or leave it out for the order of the data", _or_refused(read_seed)),
}
