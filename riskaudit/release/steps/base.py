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
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias, TypeVar, final

from riskaudit.errors import ReleaseError
from riskaudit.release.arguments import Argument, read_arguments, usage_of

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import Tensor, nn

    from riskaudit.release.steps.closed_forms import ClosedForm

VectorFunction: TypeAlias = "Callable[[Tensor], Tensor]"

Result = TypeVar("Result")


class ModelRun(Protocol):
    """A model that steps may run: `riskaudit.release.model.ModelFunction`, which no step imports."""

    model: nn.Module
    parameters: dict[str, Tensor]

    def run(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The model's outputs for inputs [B, *S] with these trainable parameters."""

    def or_plainly(self, transformed: Callable[[], Result], plainly: Callable[[], Result]) -> Result:
        """By torch.func transforms, or where they can't run the model by plain autograd."""


def without_wrapper(names: Iterable[str]) -> dict[str, str]:
    """Names of parameters or layers by what they are without the part that all of them begin with.

    Models come wrapped (to normalise pixels, to embed tokens), while users know the names of their own checkpoints.
    """
    parts = {name: name.split(".") for name in names}
    depth = 0
    while parts and len({tuple(each[: depth + 1]) for each in parts.values()}) == 1:
        if any(len(each) <= depth + 1 for each in parts.values()):
            break
        depth += 1
    return {".".join(each[depth:]): name for name, each in parts.items()}


@dataclass(frozen=True)
class StepContext:
    """The vectors [P] that a step is applied to.

    Attributes:
        shapes: of the parameters that the entries belong to, by name, in the order of the vector.
        dtype: of the vectors.
        device: of the vectors.
        upload: position of the upload among all of a client's, for steps that are drawn for each.
        function: the model and its loss, for steps that look at what it makes of a sample; None where it isn't known.
        inputs: of the sample that a vector belongs to, [*S], or of B samples, [B, *S]; None for vectors of several.
    """

    shapes: Mapping[str, torch.Size]
    dtype: torch.dtype
    device: torch.device
    upload: int = 0
    function: ModelRun | None = field(default=None, compare=False)
    inputs: Tensor | None = field(default=None, compare=False)

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
    looks_at_input: ClassVar[bool] = False
    """Whether its choices are made by a sample's input, so that it acts on single samples' gradients only."""

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

    def spoiled(self, context: StepContext) -> frozenset[str]:
        """Parameters whose entries an attacker who knows of the step does better without, by name; none by default."""
        return frozenset()

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
        # The constructor of a dataclass takes exactly its fields; None is what was left out.
        values = [getattr(self, each.name) for each in fields(self)]  # type: ignore[arg-type]
        texts = [value if isinstance(value, str) else repr(value) for value in values if value is not None]
        return ":".join([self.name, *texts])


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

    def at(self, inputs: Tensor | None) -> BoundStep:
        """The step on the vector of a sample with these inputs [*S]."""
        if not self.step.looks_at_input:
            return self
        context = replace(self.context, inputs=inputs)
        return BoundStep(self.step, context, self.step.bind(context))

    def derivative(self, released: Tensor, inputs: Tensor | None) -> ClosedForm | None:
        """`Step.derivative` at vectors [B, P] of samples with these inputs [B, *S]."""
        return self.step.derivative(released, replace(self.context, inputs=inputs))


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


def applied(steps: Iterable[BoundStep], vector: Tensor, inputs: Tensor | None = None) -> Tensor:
    """What steps make of a vector, one after the other.

    Args:
        steps: the first to be applied comes first.
        vector: [P].
        inputs: of the sample that it belongs to, [*S]; None where it belongs to several.
    """
    for bound in steps:
        vector = bound.at(inputs).apply(vector)
    return vector


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
