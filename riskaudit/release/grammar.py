"""Reading and writing ``release``: what leaves the client, from left to right. Loads without torch.

    gradient,clip:1.0,gaussian:0.01,mask:0.5:0
    clip:1.0,mean:8,gaussian:0.01
    local:epochs=2:batch=8:lr=0.1,share:head.*,secagg:10,gaussian:0.01

Before all else what the images are transformed by (``ats``), where they are. Then the gradient, which may be left out,
or local training; then steps, separated by commas, each with its numbers
after colons. Without a mean or local training every sample leaves alone. Steps before a mean act on every sample's
gradient, steps after it, or after local training, on the upload of one client, and steps after secure aggregation on
what the server receives. Noise of one law at most, on what is sent, after which only steps may follow that
set the same entries of every sample to 0 or leave them out, since others would change its law.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Self, TypeAlias, cast

from riskaudit.errors import ReleaseError
from riskaudit.release import aggregation, training, transformation
from riskaudit.release.aggregation import Mean, SecureAggregation
from riskaudit.release.arguments import read_arguments
from riskaudit.release.noise import SCALES, Law, Noise, noise_usages
from riskaudit.release.steps import STEPS, Step
from riskaudit.release.training import LOCAL, LocalTraining
from riskaudit.release.transformation import ATS, Transformation

GRADIENT = "gradient"
Part: TypeAlias = Step | Mean | SecureAggregation
_AGGREGATIONS: dict[str, Callable[[list[str]], Mean | SecureAggregation]] = {
    aggregation.MEAN: Mean.parse,
    aggregation.SECURE_AGGREGATION: SecureAggregation.parse,
}


@dataclass(frozen=True)
class ReleaseSpec:
    """A release's description: printed by ``str``, read by `parse`.

    Attributes:
        steps: what is done to the gradient, or to the difference of the weights, in this order.
        noise: its law per released entry; None without.
        steps_after_noise: steps that remove entries for everybody, with their noise.
        training: what comes in the place of the gradient; None for the gradient.
        transformation: of the images before the client trains on them; releases are functions of what it makes.

    Raises:
        ReleaseError: a step after the noise that would change its law, or parts in an order that means nothing.
    """

    steps: tuple[Part, ...] = ()
    noise: Noise | None = None
    steps_after_noise: tuple[Step, ...] = ()
    training: LocalTraining | None = None
    transformation: Transformation | None = None

    def __post_init__(self) -> None:
        if self.steps_after_noise and self.noise is None:
            raise ReleaseError("expected steps after the noise only where there is noise; give them as steps")
        for step in self.steps_after_noise:
            self._refuse_change_of_law(step)
        for position, part in enumerate(self.steps):
            self._refuse_order(self.steps[:position], part)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a text such as ``"clip:1.0,gaussian:0.01"``.

        Raises:
            ReleaseError: naming the step's position and text.
        """
        spec = cls()
        for position, part in enumerate(text.split(","), start=1):
            try:
                spec = spec._then(part.strip(), first=position == (1 if spec.transformation is None else 2))
            except ReleaseError as error:
                raise ReleaseError(f"release step {position} ({part.strip()!r}): {error}") from error
        return spec

    def __str__(self) -> str:
        """As ``release`` takes it, every default written out."""
        noise = [] if self.noise is None else [self.noise]
        before = [] if self.transformation is None else [self.transformation]
        parts = [*before, self.training or GRADIENT, *self.steps, *noise, *self.steps_after_noise]
        return ",".join(map(str, parts))

    @property
    def names(self) -> list[str]:
        """Of what transforms the images, the gradient (or the training), the steps and the noise, left to right."""
        noise = [] if self.noise is None else [self.noise.law]
        before = [] if self.transformation is None else [ATS]
        first = GRADIENT if self.training is None else LOCAL
        parts = [str(part).split(":", 1)[0] for part in (*self.steps, *self.steps_after_noise)]
        return [*before, first, *parts[: len(self.steps)], *noise, *parts[len(self.steps) :]]

    @property
    def is_joint(self) -> bool:
        """Whether several samples leave together."""
        return self.training is not None or any(not isinstance(step, Step) for step in self.steps)

    @property
    def mean(self) -> Mean | None:
        """The mean over samples, where there is one."""
        return next((part for part in self.steps if isinstance(part, Mean)), None)

    @property
    def num_clients(self) -> int:
        """How many clients' uploads are averaged into one; 1 where none are."""
        return next((part.clients for part in self.steps if isinstance(part, SecureAggregation)), 1)

    @property
    def sample_steps(self) -> tuple[Step, ...]:
        """The steps on every sample's gradient, before a mean; all of them where every sample leaves alone."""
        if not self.is_joint:
            return tuple(part for part in self.steps if isinstance(part, Step))
        return () if self.mean is None else self._between(0, self.steps.index(self.mean))

    @property
    def client_steps(self) -> tuple[Step, ...]:
        """The steps on the upload of one client, before secure aggregation."""
        if not self.is_joint:
            return ()
        return self._between(len(self.sample_steps), self.aggregated)

    @property
    def server_steps(self) -> tuple[Step, ...]:
        """The steps on what secure aggregation makes of the clients' uploads."""
        return self._between(self.aggregated, len(self.steps)) if self.is_joint else ()

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """The steps before and after the noise."""
        return (*self._between(0, len(self.steps)), *self.steps_after_noise)

    def with_noise(self, noise: Noise | None) -> ReleaseSpec:
        """The same steps with this noise, or none, at their end instead of their own."""
        return replace(self, steps=(*self.steps, *self.steps_after_noise), noise=noise, steps_after_noise=())

    @property
    def aggregated(self) -> int:
        """Position of secure aggregation among the steps, or of their end."""
        positions = [position for position, part in enumerate(self.steps) if isinstance(part, SecureAggregation)]
        return positions[0] if positions else len(self.steps)

    def _between(self, first: int, end: int) -> tuple[Step, ...]:
        return tuple(part for part in self.steps[first:end] if isinstance(part, Step))

    def _then(self, text: str, first: bool) -> Self:
        """With one more part of the text at the end."""
        name, *values = text.split(":")
        if name == ATS:
            if not first or self.transformation is not None:
                raise ReleaseError(f"expected {ATS} as the first step only; put it before {GRADIENT} or {LOCAL}")
            return replace(self, transformation=Transformation.parse(values))
        if name in (GRADIENT, LOCAL):
            return self._begun(name, values, first)
        if name in SCALES:
            scale = cast(float, read_arguments(name, (SCALES[name],), values)[0])
            return self._then_noise(Noise(cast(Law, name), scale))
        if name in _AGGREGATIONS:
            return self._then_part(_AGGREGATIONS[name](values))
        if name not in STEPS:
            close = get_close_matches(name, [ATS, GRADIENT, LOCAL, *_AGGREGATIONS, *STEPS, *SCALES], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; choose one of them"
            raise ReleaseError(f"expected one of {', '.join(usages())}, found {text!r}{hint}")
        return self._then_part(STEPS[name].parse(values))

    def _begun(self, name: str, values: list[str], first: bool) -> Self:
        if name == GRADIENT:
            read_arguments(GRADIENT, (), values)
        if not first:
            advice = "put it first, without gradient" if name == LOCAL else "remove it here"
            raise ReleaseError(f"expected {name} as the first step only; {advice}")
        return replace(self, training=LocalTraining.parse(values)) if name == LOCAL else self

    def _then_part(self, part: Part) -> Self:
        if self.noise is None:
            return replace(self, steps=(*self.steps, part))
        if not isinstance(part, Step):
            raise ReleaseError(f"'{part}' averages what '{self.noise}' was added to; put it before the noise")
        self._refuse_change_of_law(part)
        return replace(self, steps_after_noise=(*self.steps_after_noise, part))

    def _then_noise(self, noise: Noise) -> Self:
        if self.noise is not None:
            raise ReleaseError(
                f"the release already carries noise from '{self.noise}'; give one noise step "
                "(normal noises add up to the root of the sum of their squared stds)"
            )
        return replace(self, noise=noise)

    def _refuse_change_of_law(self, step: Step) -> None:
        if not step.keeps_noise:
            raise ReleaseError(
                f"'{step}' would change the law of the noise added by '{self.noise}'; put it before the noise"
            )

    def _refuse_order(self, before: tuple[Part, ...], part: Part) -> None:
        aggregated = any(isinstance(other, SecureAggregation) for other in before)
        if isinstance(part, Mean):
            if self.training is not None:
                raise ReleaseError("local training averages over its mini-batches; leave the mean out")
            if aggregated or any(isinstance(other, Mean) for other in before):
                raise ReleaseError("expected one mean, before secure aggregation; leave this one out")
        elif isinstance(part, SecureAggregation):
            if aggregated:
                raise ReleaseError("expected secure aggregation once; leave this one out")
            if self.training is None and not any(isinstance(other, Mean) for other in before):
                raise ReleaseError(
                    "expected the clients' uploads before it, found none; put mean:N before it, or local training first"
                )
        elif part.looks_at_input and (self.training is not None or any(isinstance(other, Mean) for other in before)):
            advice = (
                "local training sends no sample's, so leave it out"
                if self.training is not None
                else "put it before the mean"
            )
            raise ReleaseError(f"'{part}' looks at the sample whose gradient it acts on; {advice}")
        elif part.redrawn and self.training is None and not any(isinstance(other, Mean) for other in before):
            raise ReleaseError(f"'{part}' is drawn for every upload; put it after mean:N or local training")


def usages() -> dict[str, str]:
    """How everything that ``release`` takes is written, and what it does."""
    steps = {step.usage(): step.summary for step in STEPS.values()}
    return {
        GRADIENT: "a sample's gradient as it is (the first step; may be left out)",
        **training.usages(),
        **transformation.usages(),
        **aggregation.usages(),
        **steps,
        **noise_usages(),
    }
