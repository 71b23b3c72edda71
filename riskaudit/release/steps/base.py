"""One step of a release: what is done to the gradient before it leaves.

A step maps a vector [P] to a vector, of [P] too unless it leaves entries out, and is differentiable almost everywhere;
the choices it makes (which entries
survive, whether a norm is over a bound) are constant around a sample, so that they have no derivative. It runs under
``torch.func`` transforms: no control flow that depends on values. The derivative is all that an audit sees of a step: a
flat one (rounding, say) has to give one straight through.

A step is one file of this folder. The command line and the reports read the steps too, so that a file imports torch
inside the functions that need it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import TYPE_CHECKING, ClassVar, TypeAlias, final

from riskaudit.errors import ReleaseError
from riskaudit.release.arguments import Argument, read_arguments, usage_of

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import Tensor

    from riskaudit.release.steps.closed_forms import ClosedForm

VectorFunction: TypeAlias = "Callable[[Tensor], Tensor]"


@dataclass(frozen=True)
class StepContext:
    """The vectors [P] that a step is applied to.

    Attributes:
        shapes: of the parameters that the entries belong to, by name, in the order of the vector.
        dtype: of the vectors.
        device: of the vectors.
        upload: position of the upload among all of a client's, for steps that are drawn for each.
    """

    shapes: Mapping[str, torch.Size]
    dtype: torch.dtype
    device: torch.device
    upload: int = 0

    @property
    def num_entries(self) -> int:
        """P."""
        return sum(map(prod, self.shapes.values()))

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """The entries of every parameter, by name, each [size]; the vector is [P]."""
        import torch

        parts = torch.split(vector, [prod(shape) for shape in self.shapes.values()])
        return dict(zip(self.shapes, parts, strict=True))


class Step(ABC):
    """One step of the pipeline; a frozen dataclass whose fields are the numbers (or texts) that follow its name."""

    name: ClassVar[str]
    summary: ClassVar[str]
    arguments: ClassVar[tuple[Argument, ...]] = ()
    """Of the fields, in their order."""
    keeps_noise: ClassVar[bool] = False
    """Whether it does nothing but set entries to 0, the same for every sample and known to all: only such a step may
    follow the noise."""
    chooses: ClassVar[bool] = False
    """Whether it does nothing but keep entries and scale the vector, by choices (which entries survive, whether a norm
    is over a bound) that may change with any step of the inputs. Checks of the derivative (`audit.credibility`) take
    these as constant; through every other step they compare what is really released."""
    before_mean: ClassVar[bool] = False
    """Whether clients that send the mean over a batch do this to every sample's gradient, before the mean."""
    redrawn: ClassVar[bool] = False
    """Whether it is drawn anew for every upload."""

    @abstractmethod
    def bind(self, context: StepContext) -> VectorFunction:
        """The step as a function of vectors [P], its constants made once."""

    def context_after(self, context: StepContext) -> StepContext:
        """The vectors that the step makes of those that it is applied to."""
        return context

    def derivative(self, released: Tensor, context: StepContext) -> ClosedForm | None:
        """The derivative in closed form at vectors [B, P], which products with it are cheaper by.

        None where there is no such form: the step is differentiated automatically.
        """
        return None

    @final
    @classmethod
    def usage(cls) -> str:
        """How the step is written, e.g. ``clip:C``."""
        return usage_of(cls.name, cls.arguments)

    @final
    @classmethod
    def parse(cls, values: list[str]) -> Self:
        """The step with these numbers.

        Raises:
            ReleaseError: too few or too many, or one out of range.
        """
        return cls(*read_arguments(cls.name, cls.arguments, values))

    @final
    def __str__(self) -> str:
        # The constructor of a dataclass takes exactly its fields.
        values = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        return ":".join([self.name, *(value if isinstance(value, str) else repr(value) for value in values)])


@dataclass(frozen=True)
class BoundStep:
    """A step on vectors that are known.

    Attributes:
        step: itself.
        context: of the vectors that it is applied to.
        apply: the step as a function of one of them.
    """

    step: Step
    context: StepContext
    apply: VectorFunction


def bind_steps(steps: Iterable[Step], context: StepContext) -> tuple[list[BoundStep], StepContext]:
    """Steps one after the other, and the vectors that the last of them makes.

    Raises:
        ReleaseError: a step that can't be applied to such vectors.
    """
    bound = []
    for step in steps:
        bound.append(BoundStep(step, context, step.bind(context)))
        context = step.context_after(context)
    return bound, context


STEPS: dict[str, type[Step]] = {}


def register(step: type[Step]) -> type[Step]:
    """Class decorator: make a step known to ``release``."""
    if step.name in STEPS:
        raise ReleaseError(f"the release step {step.name!r} is registered twice")
    STEPS[step.name] = step
    return step


def num_removed(ratio: float, num_entries: int) -> int:
    """How many of the entries a removed share of ``ratio`` is."""
    return round(ratio * num_entries)
