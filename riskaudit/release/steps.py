"""The steps of a release pipeline: what each does to one sample's gradient.

Deterministic steps map a vector [P] to a vector [P] and are differentiable almost everywhere; the
choice they make (which entries survive, whether the norm is over the bound) is constant around a
sample, so its derivative is zero. Noise steps leave the mean as it is. All of them run under
``torch.func`` transforms: no data-dependent control flow.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from riskaudit.errors import ReleaseError
from riskaudit.release.derivatives import Derivative, Kept, Projected
from riskaudit.release.noise import Noise

Apply = Callable[[Tensor], Tensor]


def identity(released: Tensor) -> Tensor:
    """The mean of a step that changes nothing or adds noise of mean zero."""
    return released


class Step(ABC):
    """One step of the pipeline."""

    name: ClassVar[str]
    usage: ClassVar[str]
    summary: ClassVar[str]
    linear: ClassVar[bool] = False
    """Whether noise of an earlier step keeps its law when it passes through this one."""

    @classmethod
    @abstractmethod
    def parse(cls, arguments: list[str]) -> Step:
        """Build from the text after the name, split at colons.

        Raises:
            ReleaseError: wrong number of arguments or a value out of range.
        """

    @abstractmethod
    def bind(self, num_entries: int, dtype: torch.dtype, device: torch.device) -> Apply:
        """The step's mean as a function [P] to [P], its constants made once for P = ``num_entries``."""

    @abstractmethod
    def derivative(self, released: Tensor) -> Derivative:
        """The derivative of the step's mean at vectors [B, P]; None where it is the identity."""

    @property
    @abstractmethod
    def spec(self) -> str:
        """The step as ``--release`` takes it."""


STEPS: dict[str, type[Step]] = {}


def register(step: type[Step]) -> type[Step]:
    """Class decorator: make a step known to ``--release``."""
    if step.name in STEPS:
        raise ReleaseError(f"the release step {step.name!r} is registered twice")
    STEPS[step.name] = step
    return step


def _number(cls: type[Step], arguments: list[str], meaning: str, check: Callable[[float], bool]) -> float:
    """The only argument of a step as a finite number that passes ``check``."""
    if len(arguments) != 1:
        raise ReleaseError(f"expected {cls.usage}, found {len(arguments)} values after the name")
    try:
        value = float(arguments[0])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not check(value):
        raise ReleaseError(f"expected {cls.usage} with {meaning}, found {arguments[0]!r}")
    return value


@register
@final
@dataclass(frozen=True)
class Gradient(Step):
    """The gradient of the sample's loss w.r.t. all trainable parameters; always the first step."""

    name: ClassVar[str] = "gradient"
    usage: ClassVar[str] = "gradient"
    summary: ClassVar[str] = "the sample's gradient as it is (always the first step)"
    linear: ClassVar[bool] = True

    @classmethod
    def parse(cls, arguments: list[str]) -> Gradient:
        """See `Step.parse`."""
        if arguments:
            raise ReleaseError(f"expected gradient without a value, found {arguments[0]!r}")
        return cls()

    def bind(self, num_entries: int, dtype: torch.dtype, device: torch.device) -> Apply:
        """The gradient itself."""
        return identity

    def derivative(self, released: Tensor) -> None:
        """See `Step.derivative`."""

    @property
    def spec(self) -> str:
        """See `Step.spec`."""
        return self.name


@register
@final
@dataclass(frozen=True)
class Clip(Step):
    """Scale one sample's vector down to 2-norm ``bound`` where it is longer.

    Beyond the bound the Jacobian is (C / ||r||)(I - rhat rhat^T) J (docs/theory.md, section 2).
    """

    bound: float
    name: ClassVar[str] = "clip"
    usage: ClassVar[str] = "clip:C"
    summary: ClassVar[str] = "scale each sample's vector down to 2-norm C"

    @classmethod
    def parse(cls, arguments: list[str]) -> Clip:
        """See `Step.parse`."""
        return cls(_number(cls, arguments, "C > 0", lambda value: value > 0))

    def bind(self, num_entries: int, dtype: torch.dtype, device: torch.device) -> Apply:
        """Min(1, C / ||r||) r."""
        return self._apply

    def _apply(self, released: Tensor) -> Tensor:
        squared = released.square().sum()
        # Not bound**2: floats raise OverflowError there instead of giving infinity.
        longer = squared > self.bound * self.bound
        # The inner choice keeps the derivative of the untaken branch finite at r = 0.
        norm = torch.where(longer, squared, torch.ones_like(squared)).sqrt()
        return released * torch.where(longer, self.bound / norm, torch.ones_like(norm))

    def derivative(self, released: Tensor) -> Projected:
        """(C / ||r||)(I - rhat rhat^T) beyond the bound, else the identity."""
        squared = released.square().sum(-1)
        longer = squared > self.bound * self.bound
        norm = torch.where(longer, squared, torch.ones_like(squared)).sqrt()
        scale = torch.where(longer, self.bound / norm, torch.ones_like(norm))
        return Projected(scale, released * (longer / norm)[:, None])

    @property
    def spec(self) -> str:
        """See `Step.spec`."""
        return f"{self.name}:{self.bound!r}"


def num_removed(ratio: float, num_entries: int) -> int:
    """How many of the entries a removed share of ``ratio`` is."""
    return round(ratio * num_entries)


@register
@final
@dataclass(frozen=True)
class Prune(Step):
    """Set the ``ratio`` share of entries that are smallest in magnitude to zero, per sample."""

    ratio: float
    name: ClassVar[str] = "prune"
    usage: ClassVar[str] = "prune:RATIO"
    summary: ClassVar[str] = "set the share RATIO of entries that are smallest in magnitude to 0, per sample"

    @classmethod
    def parse(cls, arguments: list[str]) -> Prune:
        """See `Step.parse`."""
        return cls(_number(cls, arguments, "0 <= RATIO < 1", lambda value: 0 <= value < 1))

    def bind(self, num_entries: int, dtype: torch.dtype, device: torch.device) -> Apply:
        """Keep exactly P - round(ratio P) entries."""
        return lambda released: released * self._kept(released)

    def derivative(self, released: Tensor) -> Kept:
        """The kept entries, which are constant around a sample."""
        return Kept(torch.stack([self._kept(row) for row in released]))

    def _kept(self, released: Tensor) -> Tensor:
        """1 at the largest entries of a vector [P], 0 elsewhere."""
        count = len(released) - num_removed(self.ratio, len(released))
        kept = torch.topk(released.abs(), count, sorted=False).indices
        return torch.zeros_like(released).scatter(0, kept, 1.0)

    @property
    def spec(self) -> str:
        """See `Step.spec`."""
        return f"{self.name}:{self.ratio!r}"


@register
@final
@dataclass(frozen=True)
class Mask(Step):
    """Set a random share ``ratio`` of entries to zero: the same entries for every sample, known to all."""

    ratio: float
    seed: int = 0
    name: ClassVar[str] = "mask"
    usage: ClassVar[str] = "mask:RATIO[:SEED]"
    summary: ClassVar[str] = "set the share RATIO of entries, drawn once with SEED and known to the attacker, to 0"
    linear: ClassVar[bool] = True

    @classmethod
    def parse(cls, arguments: list[str]) -> Mask:
        """See `Step.parse`."""
        ratio = _number(cls, arguments[:1], "0 <= RATIO < 1", lambda value: 0 <= value < 1)
        if len(arguments) == 1:
            return cls(ratio)
        # The length comes first: int() refuses thousands of digits with an error of its own.
        digits = arguments[1]
        if len(arguments) > 2 or len(digits) > 19 or not digits.isdecimal() or int(digits) >= 2**63:
            raise ReleaseError(f"expected {cls.usage} with a whole number as SEED, found {':'.join(arguments[1:])!r}")
        return cls(ratio, int(digits))

    def bind(self, num_entries: int, dtype: torch.dtype, device: torch.device) -> Apply:
        """Multiply by the mask, which is the same on every device."""
        kept = self._kept(num_entries, dtype, device)
        return lambda released: released * kept

    def derivative(self, released: Tensor) -> Kept:
        """The mask."""
        return Kept(self._kept(released.shape[-1], released.dtype, released.device))

    def _kept(self, num_entries: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        order = torch.randperm(num_entries, generator=torch.Generator().manual_seed(self.seed))
        kept = torch.ones(num_entries, dtype=dtype)
        kept[order[: num_removed(self.ratio, num_entries)]] = 0
        return kept.to(device)

    @property
    def spec(self) -> str:
        """See `Step.spec`."""
        return f"{self.name}:{self.ratio!r}:{self.seed}"


class NoiseStep(Step):
    """Independent noise on every released entry."""

    linear: ClassVar[bool] = True

    @property
    @abstractmethod
    def scale(self) -> float:
        """The law's own parameter."""

    @property
    @abstractmethod
    def noise(self) -> Noise:
        """The law of the noise."""

    @final
    def bind(self, num_entries: int, dtype: torch.dtype, device: torch.device) -> Apply:
        """Noise has mean zero."""
        return identity

    @final
    def derivative(self, released: Tensor) -> None:
        """See `Step.derivative`."""

    @final
    @property
    def spec(self) -> str:
        """See `Step.spec`."""
        return f"{self.name}:{self.scale!r}"


@register
@final
@dataclass(frozen=True)
class GaussianNoise(NoiseStep):
    """N(0, std^2) on every released entry of one sample, before any averaging over samples."""

    std: float
    name: ClassVar[str] = "gaussian"
    usage: ClassVar[str] = "gaussian:STD"
    summary: ClassVar[str] = "add normal noise of standard deviation STD to every entry of each sample"

    @classmethod
    def parse(cls, arguments: list[str]) -> GaussianNoise:
        """See `Step.parse`."""
        return cls(_number(cls, arguments, "STD > 0", lambda value: value > 0))

    @property
    def scale(self) -> float:
        """The standard deviation."""
        return self.std

    @property
    def noise(self) -> Noise:
        """See `NoiseStep.noise`."""
        return Noise("gaussian", self.std)


@register
@final
@dataclass(frozen=True)
class LaplaceNoise(NoiseStep):
    """Laplace noise with density exp(-|n| / b) / (2 b) on every released entry of one sample."""

    b: float
    name: ClassVar[str] = "laplace"
    usage: ClassVar[str] = "laplace:B"
    summary: ClassVar[str] = "add Laplace noise of scale B (standard deviation sqrt(2) B) to every entry of each sample"

    @classmethod
    def parse(cls, arguments: list[str]) -> LaplaceNoise:
        """See `Step.parse`."""
        return cls(_number(cls, arguments, "B > 0", lambda value: value > 0))

    @property
    def scale(self) -> float:
        """The scale b."""
        return self.b

    @property
    def noise(self) -> Noise:
        """See `NoiseStep.noise`."""
        return Noise("laplace", self.b)
