"""Reading and writing ``release``: what leaves the client, from left to right. Loads without torch.

    gradient,clip:1.0,gaussian:0.01,mask:0.5:0

First the gradient, which may be left out; then steps, separated by commas, each with its numbers after colons; noise
of one law at most, after which only steps may follow that set the same entries of every sample to 0, since others would
change its law.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self, cast

from riskaudit.errors import ReleaseError
from riskaudit.release.arguments import read_arguments
from riskaudit.release.noise import SCALES, Law, Noise, noise_usages
from riskaudit.release.steps import STEPS, Step

GRADIENT = "gradient"


@dataclass(frozen=True)
class ReleaseSpec:
    """A release's description: printed by ``str``, read by `parse`.

    Attributes:
        steps: what is done to the gradient, in this order.
        noise: its law per released entry; None without.
        steps_after_noise: steps that remove entries for everybody, with their noise.

    Raises:
        ReleaseError: a step after the noise that would change its law.
    """

    steps: tuple[Step, ...] = ()
    noise: Noise | None = None
    steps_after_noise: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if self.steps_after_noise and self.noise is None:
            raise ReleaseError("expected steps after the noise only where there is noise; give them as steps")
        for step in self.steps_after_noise:
            self._refuse_change_of_law(step)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a text such as ``"clip:1.0,gaussian:0.01"``.

        Raises:
            ReleaseError: naming the step's position and text.
        """
        spec = cls()
        for position, part in enumerate(text.split(","), start=1):
            try:
                spec = spec._then(part.strip(), first=position == 1)
            except ReleaseError as error:
                raise ReleaseError(f"release step {position} ({part.strip()!r}): {error}") from error
        return spec

    def __str__(self) -> str:
        """As ``release`` takes it, every default written out."""
        noise = [] if self.noise is None else [self.noise]
        return ",".join([GRADIENT, *map(str, [*self.steps, *noise, *self.steps_after_noise])])

    @property
    def names(self) -> list[str]:
        """Of the gradient, the steps and the noise, from left to right."""
        noise = [] if self.noise is None else [self.noise.law]
        return [GRADIENT, *(each.name for each in self.steps), *noise, *(each.name for each in self.steps_after_noise)]

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """The steps before and after the noise."""
        return (*self.steps, *self.steps_after_noise)

    def with_noise(self, noise: Noise | None) -> ReleaseSpec:
        """The same steps with this noise, or none, at their end instead of their own."""
        return ReleaseSpec(self.all_steps, noise)

    def _then(self, text: str, first: bool) -> Self:
        """With one more part of the text at the end."""
        name, *values = text.split(":")
        if name == GRADIENT:
            read_arguments(GRADIENT, (), values)
            if not first:
                raise ReleaseError("expected gradient as the first step only; remove it here")
            return self
        if name in SCALES:
            return self._then_noise(Noise(cast(Law, name), read_arguments(name, (SCALES[name],), values)[0]))
        if name not in STEPS:
            close = get_close_matches(name, [GRADIENT, *STEPS, *SCALES], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ReleaseError(f"expected one of {', '.join(usages())}, found {text!r}{hint}")
        step = STEPS[name].parse(values)
        if self.noise is None:
            return type(self)((*self.steps, step))
        self._refuse_change_of_law(step)
        return type(self)(self.steps, self.noise, (*self.steps_after_noise, step))

    def _then_noise(self, noise: Noise) -> Self:
        if self.noise is not None:
            raise ReleaseError(
                f"the release already carries noise from '{self.noise}'; give one noise step "
                "(normal noises add up to the root of the sum of their squared stds)"
            )
        return type(self)(self.steps, noise)

    def _refuse_change_of_law(self, step: Step) -> None:
        if not step.keeps_noise:
            raise ReleaseError(
                f"'{step}' would change the law of the noise added by '{self.noise}'; put it before the noise"
            )


def usages() -> dict[str, str]:
    """How everything that ``release`` takes is written, and what it does."""
    steps = {step.usage(): step.summary for step in STEPS.values()}
    return {GRADIENT: "the sample's gradient as it is (always the first step)", **steps, **noise_usages()}
