"""Whether a derivative can be believed: J v held against what r(x) itself does, and against what stands in r(x).

A derivative is blind to whatever it can't see: rounding, thresholds, ``detach``, layers that are flat at the sample
and steep a step away. Three tests need no derivative at all, only values of r:

1. A tiny step, near x, where no two entries of a max-pooling tie: r(x + h v) - r(x) is h J v up to h^2, whatever the
   model. What moves more than J says, parameter by parameter, is what J leaves out.
2. A visible step, a quarter of the prior's standard deviation, at random and towards the prior's mean: honest networks
   bend, and ReLU networks jump, but not by orders of magnitude. What turns r far more than J says is not in J. Growth
   of r alone doesn't count: a confident network's gradient grows exponentially towards another class.
   A straight-through estimator passes: J says what a visible step does.
3. dW_i / db_i of a fully connected layer that sees the input (or nearly): the input stands in the release with a known
   error (Phong et al., 2018), which no claim may exceed.

Differences are those of the gradient, passed through the derivative of the release's steps: which entries pruning keeps
may change with any step. A difference counts only where the noise doesn't cover it: for v with the prior's
covariance, |J v|^2 / sigma^2 is on average the trace of J C J^T / sigma^2, which bounds the revealed fraction times d
(THEORY, section 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riskaudit.jacobian import Jacobian, JacobianMaker
from riskaudit.jacobian.base import CHUNK_ENTRIES
from riskaudit.priors import BoundPrior
from riskaudit.release import Batch, Release
from riskaudit.release.copying import copy_model

# Steps in the prior's standard deviations per coordinate, and how far from x the tiny one is made.
TINY, VISIBLE, ASIDE = 1e-7, 0.25, 1e-2
# How many times what J says of a parameter a tiny step's difference may be, and how much more, relative to what J says
# of all parameters.
OWN_FACTOR, WHOLE_SHARE = 2.0, 0.1
# How many times what J says a visible step's difference may be.
VISIBLE_FACTOR = 20.0
# A revealed fraction that doesn't matter.
NEGLIGIBLE = 1e-3
# Rounding of a difference of two releases, in units of the dtype's precision times the release's norm.
ROUNDING = 1e3
# An error that is claimed may be this many times the error of the quotient.
RATIO_FACTOR = 1.5
# The bias's gradient counts as known where it is this many times the noise.
KNOWN = 5.0


@dataclass(frozen=True)
class Difference:
    """r(x + step v) - r(x) of one sample, v with the prior's standard deviation per coordinate.

    Attributes:
        step: its size.
        unseen: norm of what J doesn't account for.
        allowed: what it may be without any noise.
    """

    step: float
    unseen: float
    allowed: float

    def counts(self, noise_std: float, dimension: int) -> bool:
        """Whether more is unseen than noise of this std covers."""
        covered = self.step * noise_std * math.sqrt(NEGLIGIBLE * dimension)
        # Not "above": what isn't a number isn't small.
        return not self.unseen <= self.allowed + covered


@dataclass(frozen=True)
class Quotient:
    """What dW_i / db_i of one layer tells of one sample's input.

    Attributes:
        bias: mean square error without noise, data units squared.
        variance: mean square error per squared noise std.
        strength: norm of the bias's gradient.
    """

    bias: float
    variance: float
    strength: float

    def error(self, noise_std: float) -> float:
        """RMSE per coordinate at noise of this std; infinity where the noise covers the bias's gradient."""
        if not self.strength > KNOWN * noise_std:
            return math.inf
        return math.sqrt(self.bias + noise_std**2 * self.variance)


@dataclass(frozen=True)
class Evidence:
    """What values of r tell about the derivative at one sample.

    Attributes:
        dimension: of the input.
        tiny: differences at a tiny step.
        visible: differences at a visible step.
        quotients: of layers that see the input.
    """

    dimension: int
    tiny: tuple[Difference, ...]
    visible: tuple[Difference, ...]
    quotients: tuple[Quotient, ...] = ()

    def doubt(self, noise_std: float, claimed_rmse: float | None = None) -> str | None:
        """Why the derivative isn't believed at noise of this std (Fisher-equivalent, per entry of r), if it isn't.

        Args:
            noise_std: 0 for none.
            claimed_rmse: the posterior error that was read off the derivative.
        """
        if any(one.counts(noise_std, self.dimension) for one in self.tiny):
            return (
                "the gradient changes with the input where its derivative says that it doesn't (detach, no_grad, "
                "rounding, a custom backward), so nothing read off the derivative can be believed; remove what hides "
                "the input from the derivative"
            )
        if any(one.counts(noise_std, self.dimension) for one in self.visible):
            return (
                "a visible change of the input changes the gradient far more than its derivative says (rounding, "
                "thresholds, a saturated or very steep layer), so nothing read off the derivative can be believed; "
                "remove such steps or add noise"
            )
        if claimed_rmse is not None:
            best = min((one.error(noise_std) for one in self.quotients), default=math.inf)
            if not claimed_rmse <= RATIO_FACTOR * best:
                return (
                    "the quotient of a layer's gradients by its bias's gives the input more precisely than its "
                    "derivative says, so nothing read off the derivative can be believed"
                )
        return None


def examine(
    maker: JacobianMaker, batch: Batch, prior: BoundPrior, drawn: Tensor, *, apart: bool = False
) -> list[Evidence]:
    """Evidence for or against the derivative at every sample of a batch.

    The tiny step is made in double precision only: in single precision rounding hides it (see `check_code`).

    Args:
        maker: makes the Jacobian.
        batch: samples whose losses and gradients are finite.
        prior: of the attacker, at the samples.
        drawn: a standard normal vector for every sample, [B, d].
        apart: whether the samples have to be worked out one by one, as their own Jacobian has told.
    """
    with torch.no_grad():
        size, found = max(1, CHUNK_ENTRIES // maker.release.num_entries), list[Evidence]()
        random, towards = _directions(batch, prior, drawn)
        for first in range(0, len(batch), size):
            places = list(range(first, min(first + size, len(batch))))
            probe = _Probe(maker, batch.select(places), apart)
            visible = [probe.visible(each[places]) for each in (random, towards)]
            aside = probe.batch.inputs + ASIDE * random[places].roll(1, 1).reshape(probe.batch.inputs.shape)
            precise = maker.release.dtype == torch.float64
            tiny = [_Probe(maker, Batch(aside, probe.batch.targets), apart).tiny(random[places])] if precise else []
            for place, quotients in enumerate(probe.quotients()):
                small, large = (tuple(each[place] for each in kind) for kind in (tiny, visible))
                found.append(Evidence(batch.inputs[0].numel(), small, large, tuple(quotients)))
        return found


def check_code(maker: JacobianMaker, batch: Batch) -> str | None:
    """Whether the model's code has the derivative that it says, tried in double precision on a few samples.

    Args:
        maker: makes the Jacobian, in any precision.
        batch: the samples.

    Returns:
        Why its derivative isn't believed, if it isn't.
    """
    release = Release(copy_model(maker.release.model).double(), maker.release.loss)
    inputs = batch.inputs.double()
    spread = float(inputs.std()) if inputs.numel() > 1 else 0.0
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, *inputs.shape, generator=generator, dtype=torch.float64).to(inputs)
    random, aside = drawn * (spread or 1.0)
    targets = batch.targets.double() if batch.targets.is_floating_point() else batch.targets
    try:
        moved = Batch(inputs + ASIDE * aside, targets)
        maker = replace(maker, release=release)
        probe = _Probe(maker, moved, maker(moved).separate)
        found = probe.tiny(random.flatten(1))
    except Exception:  # code of one precision only; what else is wrong shows where the model is run as it is
        return None
    dimension = inputs[0].numel()
    doubts = (Evidence(dimension, (one,), ()).doubt(0.0) for one in found if math.isfinite(one.unseen))
    return next((doubt for doubt in doubts if doubt is not None), None)


class _Probe:
    """Values of the gradient around samples, and what its derivative says of them; directions are [B, d]."""

    def __init__(self, maker: JacobianMaker, batch: Batch, apart: bool) -> None:
        self.batch, self.maker, self.apart = batch, maker, apart
        self.jacobian = maker.around(batch, apart=apart)
        release = maker.release
        self.bare = replace(maker, release=Release(release.model, release.loss)) if release.changes_gradient else maker
        same = self.bare is maker
        self.gradient = (self.jacobian if same else self._around(batch)).mean().detach()
        self.chain = None if same else release.derivative(self.gradient)
        losses = self.jacobian.losses().detach().double().abs()
        norms = self.gradient.norm(dim=1).double()
        # Where the loss is tiny, the gradient is a difference of numbers near 1.
        self.rounding = ROUNDING * torch.finfo(release.dtype).eps * norms * (1 + 1 / losses.clamp_min(1e-300))
        self.norms = norms

    def visible(self, direction: Tensor) -> list[Difference]:
        moved = self._moved(VISIBLE, direction)
        lengths = moved.norm(dim=1).double()
        shrunk = torch.where(lengths > self.norms, self.norms / lengths.clamp_min(1e-300), torch.ones_like(lengths))
        # In place, since vectors [B, P] are what takes time here.
        change = moved.mul_(shrunk[:, None].to(moved)).sub_(self.gradient)
        unseen = self._released(change).norm(dim=1).double()
        said = VISIBLE * self._pushed(direction).norm(dim=1).double()
        return self._differences(VISIBLE, unseen, VISIBLE_FACTOR * said + self.rounding)

    def tiny(self, direction: Tensor) -> list[Difference]:
        said = TINY * self._pushed(direction)
        change = self._released(self._moved(TINY, direction) - self.gradient)
        sizes = [value.numel() for value in self.maker.release.parameters.values()]
        parts = [
            torch.stack([part.norm(dim=1) for part in torch.split_with_sizes(each, sizes, 1)], 1)
            for each in (change, said)
        ]
        allowed = OWN_FACTOR * parts[1] + WHOLE_SHARE * said.norm(dim=1, keepdim=True)
        return self._differences(TINY, (parts[0] - allowed).clamp_min(0).norm(dim=1), self.rounding)

    def quotients(self) -> list[list[Quotient]]:
        pairs = _pairs(self.maker.release, self.batch.inputs[0].numel())
        if not pairs:
            return [[] for _ in range(len(self.batch))]
        released = self.gradient if self.chain is None else self.jacobian.mean().detach()
        return _quotients(self.batch, released, pairs)

    def _moved(self, step: float, direction: Tensor) -> Tensor:
        inputs = self.batch.inputs + step * direction.reshape(self.batch.inputs.shape)
        return self._around(Batch(inputs, self.batch.targets)).mean().detach()

    def _around(self, batch: Batch) -> Jacobian:
        return self.bare.around(batch, apart=self.apart)

    def _released(self, change: Tensor) -> Tensor:
        """A change of the gradient as it shows in the release."""
        return change if self.chain is None else self.chain.apply(change)

    def _pushed(self, direction: Tensor) -> Tensor:
        return self.jacobian.matvec(direction).detach()

    @staticmethod
    def _differences(step: float, unseen: Tensor, allowed: Tensor) -> list[Difference]:
        return [Difference(step, *numbers) for numbers in zip(unseen.tolist(), allowed.tolist(), strict=True)]


def _directions(batch: Batch, prior: BoundPrior, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """The drawn one and one towards the prior's mean, both of the prior's size, [B, d]."""
    own = batch.inputs.flatten(1)
    size = prior.variance.sqrt().to(own)[:, None] * math.sqrt(own.shape[1])
    towards = prior.mean - own
    towards = torch.where(towards.any(1, keepdim=True), towards, torch.ones_like(own))
    first, second = (each * (size / each.norm(dim=1, keepdim=True)) for each in (drawn.to(own), towards))
    return first, second


def _quotients(batch: Batch, released: Tensor, pairs: list[tuple[slice, slice]]) -> list[list[Quotient]]:
    """Of weights with one column per input coordinate and the biases beside them, in released [B, P]."""
    flat = batch.inputs.flatten(1)
    found: list[list[Quotient]] = [[] for _ in range(len(flat))]
    for weight, bias in pairs:
        rows, signals = released[:, weight].reshape(len(flat), -1, flat.shape[1]), released[:, bias]
        total = signals.square().sum(1)
        inside = torch.einsum("bo,bod->bd", signals, rows) / total.clamp_min(torch.finfo(flat.dtype).tiny)[:, None]
        bias_error = (inside - flat).square().mean(1)
        variance = (1 + inside.square().mean(1)) / total.clamp_min(torch.finfo(flat.dtype).tiny)
        for place, numbers in enumerate(
            zip(bias_error.tolist(), variance.tolist(), total.sqrt().tolist(), strict=True)
        ):
            if all(map(math.isfinite, numbers)):
                found[place].append(Quotient(*numbers))
    return found


def _pairs(release: Release, dimension: int) -> list[tuple[slice, slice]]:
    """Where weights [o, d] and biases [o] of one module lie in a released vector."""
    places: dict[str, slice] = {}
    start = 0
    for name, value in release.parameters.items():
        places[name] = slice(start, start + value.numel())
        start += value.numel()
    pairs = []
    for name, place in places.items():
        bias = name.removesuffix("weight") + "bias"
        value, own = release.parameters[name], release.parameters.get(bias)
        if name.endswith("weight") and own is not None and value.shape == (own.numel(), dimension) and own.ndim == 1:
            pairs.append((place, places[bias]))
    return pairs
