"""Sharing a part of the parameters: only the head, only adapters, everything but the first layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from math import prod
from typing import ClassVar, final

from typing_extensions import override

from riskaudit.errors import ReleaseError
from riskaudit.release.arguments import Argument, pattern
from riskaudit.release.steps.base import Step, StepContext, VectorFunction, register, without_wrapper

# Names of parameters in a message.
MOST_SHOWN = 12


@register
@final
@dataclass(frozen=True)
class Share(Step):
    """Keep the entries of the parameters whose names match one of the shell patterns, separated by ``+``.

    Those that match a pattern after ``!`` are left out; with no other patterns all others are kept. What all names
    begin with may be left out of a pattern that no whole name matches.

    Raises:
        ReleaseError: a pattern that matches no trainable parameter, or all of them left out, where they are known.
    """

    patterns: str
    name: ClassVar[str] = "share"
    summary: ClassVar[str] = (
        "send only the parameters whose names match the shell PATTERN (several joined by +; !PATTERN for all others)"
    )
    arguments: ClassVar[tuple[Argument, ...]] = (pattern("PATTERN"),)
    keeps_noise: ClassVar[bool] = True
    before_mean: ClassVar[bool] = True

    @override
    def bind(self, context: StepContext) -> VectorFunction:
        import torch

        names, first, ranges = self._names(context), 0, []
        for name, shape in context.shapes.items():
            if name in names:
                ranges.append(torch.arange(first, first + prod(shape)))
            first += prod(shape)
        entries = torch.cat(ranges).to(context.device)
        return lambda released: released.index_select(0, entries)

    @override
    def context_after(self, context: StepContext) -> StepContext:
        names = self._names(context)
        return replace(context, shapes={name: shape for name, shape in context.shapes.items() if name in names})

    def _names(self, context: StepContext) -> frozenset[str]:
        patterns = self.patterns.split("+")
        short = without_wrapper(context.shapes)
        names = set(context.shapes) if all(each.startswith("!") for each in patterns) else set[str]()
        # What is left out goes last.
        for each in sorted(patterns, key=lambda each: each.startswith("!")):
            pattern = each.removeprefix("!")
            # What a whole name says goes first: "!a.b.*" must not leave out a.a.b too where a.b is there.
            matching = {full for full in context.shapes if fnmatchcase(full, pattern)}
            matching = matching or {full for name, full in short.items() if fnmatchcase(name, pattern)}
            if not matching:
                shown = ", ".join(islice(short.values(), MOST_SHOWN))
                more = f" and {len(short) - MOST_SHOWN} more" if len(short) > MOST_SHOWN else ""
                raise ReleaseError(
                    f"expected a pattern that matches some of the trainable parameters {shown}{more}, "
                    f"found {each!r} in '{self}'; correct it, or leave it out"
                )
            names = names - matching if each.startswith("!") else names | matching
        if not names:
            raise ReleaseError(
                f"expected some parameters to be sent, found all of them left out by '{self}'; leave out fewer"
            )
        return frozenset(names)
