"""Lower bounds of the reconstruction error for two-layer networks: exact, loosened, and as a law of scaling.

Liu, Wang and Lei, "Data reconstruction attacks and defenses: a systematic evaluation", theorem 3.2 and Table 1. For the
network f(x) = sum_j a_j s(w_j . x) with w_j ~ N(0, 1), a_j = +-1/m, inputs of norm 1 and the squared loss, an unbiased
attacker who sees what leaves with noise of standard deviation sigma has, over all B samples together,

    error^2 >= sigma^2 tr(H^-1) >= sigma^2 (B d)^2 / ||J||_F^2,    H = J^T J,

the Cramer-Rao bound and, since the harmonic mean of H's eigenvalues is at most the arithmetic one, its loosened form.
With ||J||_F^2 ~ m d / B for a mean of B gradients (each dL/da_j contributes ||w_j||^2 ~ d) the latter is the law
B sigma sqrt(d / m) for one sample, times a factor of the defence.

The loosened form lies below the exact one by as much as the eigenvalues spread. It says which way an error moves, and
no release is called protected by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.errors import SettingsError
from riskaudit.jacobian import Jacobian
from riskaudit.jacobian.joint import joint_jacobian_maker
from riskaudit.linalg import Spectrum
from riskaudit.linalg.solvers.dense import dense_matrices
from riskaudit.release import Batch, make_release
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.joint import JointRelease
from riskaudit.release.steps.clip import Clip
from riskaudit.release.steps.dropout import Dropout
from riskaudit.release.steps.mask import Mask
from riskaudit.release.steps.prune import Prune

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky-relu": nn.functional.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


class TwoLayers(nn.Module):
    """f(x) = sum_j a_j s(w_j . x), without biases.

    Args:
        inner: w, [m, d].
        outer: a, [m].
        activation: one of `ACTIVATIONS`.
    """

    def __init__(self, inner: Tensor, outer: Tensor, activation: str) -> None:
        super().__init__()
        self.inner, self.outer = nn.Parameter(inner), nn.Parameter(outer)
        self.activation = ACTIVATIONS[activation]

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x @ self.inner.T) @ self.outer


@final
@dataclass(frozen=True)
class Problem:
    """A random network with random data.

    Attributes:
        width: m, hidden units.
        dimension: d, of an input.
        samples: B, which leave together.
        activation: one of `ACTIVATIONS`.
        seed: of all that is random.

    Raises:
        SettingsError: a size below 1, or an unknown activation.
    """

    width: int
    dimension: int
    samples: int = 1
    activation: str = "tanh"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "dimension", "samples"):
            if getattr(self, name) < 1:
                raise SettingsError(f"expected a {name} of at least 1, found {getattr(self, name)}")
        if self.activation not in ACTIVATIONS:
            raise SettingsError(f"expected one of {', '.join(ACTIVATIONS)} as activation, found {self.activation!r}")

    def draw(self) -> tuple[TwoLayers, Batch]:
        """The network and one upload: w_j ~ N(0, 1), a_j = +-1/m, inputs of norm 1, targets +-1; float64."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        inner, outer = normal(self.width, self.dimension), normal(self.width).sign() / self.width
        inputs = normal(self.samples, self.dimension)
        targets = normal(self.samples).sign()
        model = TwoLayers(inner, outer, self.activation).eval()
        return model, Batch(inputs / inputs.norm(dim=1, keepdim=True), targets, self.samples)


@final
@dataclass(frozen=True)
class LowerBounds:
    """Of the root mean square error of one sample, as a 2-norm.

    Attributes:
        exact: sigma sqrt(tr(H^-1) / B), the Cramer-Rao bound; None where H is singular: then no attacker without
            a prior is right on average, and the bound is infinite.
        status: "exact", or "singular".
        loosened: sigma B d / (||J||_F sqrt(B)), never above ``exact``. No protection follows from it.
        law: B sigma sqrt(d / m) times the factor of the defence (Table 1), without constants; None where Table 1 has
            no row for what is done.
    """

    exact: float | None
    status: Literal["exact", "singular"]
    loosened: float
    law: float | None


def lower_bounds(problem: Problem, release: str) -> LowerBounds:
    """Bounds of the error of whoever sees a release of a two-layer network.

    Args:
        problem: the network and its data.
        release: in the grammar of ``--release``, joint and with noise, such as "mean:4,prune:0.5,gaussian:0.01"; its
            uploads are of all of the problem's samples.

    Raises:
        SettingsError: a release of another size, or without noise.
        ReleaseError: a text that can't be read.
    """
    spec = ReleaseSpec.parse(release)
    if spec.noise is None or not spec.is_joint:
        raise SettingsError(f"expected a release with noise in which samples leave together, found '{spec}'")
    model, batch = problem.draw()
    bound = make_release(model, squared_loss, spec)
    assert isinstance(bound, JointRelease)
    if [len(upload) for upload in bound.uploads(problem.samples)] != [problem.samples]:
        raise SettingsError(f"expected one upload of all {problem.samples} samples, found '{spec}'")
    jacobian = joint_jacobian_maker(bound, batch)(batch)
    spectrum = Spectrum.of(jacobian.hessian())
    values, sigma = spectrum.values[0], spec.noise.fisher_std
    singular, squared_norm = int(spectrum.rank[0]) < values.numel(), float(values.sum())
    exact = None if singular else sigma * math.sqrt(float(values.reciprocal().sum()) / problem.samples)
    loosened = sigma * values.numel() / math.sqrt(squared_norm * problem.samples)
    return LowerBounds(exact, "singular" if singular else "exact", loosened, _law(problem, spec, squared_norm, sigma))


def squared_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the mean squared error; outputs and targets [B]."""
    return (outputs - targets).square().mean() / 2


def _law(problem: Problem, spec: ReleaseSpec, squared_norm: float, sigma: float) -> float | None:
    """Table 1's lower row, given ||J||_F^2 of what leaves.

    Of local training it is that of no defence, but that what is sent is as long as its steps.
    """
    factor = 1.0 if spec.training is None else 1 / spec.training.lr
    for step in spec.all_steps:
        if isinstance(step, Clip):
            factor *= max(1.0, _largest_norm(problem, spec) / step.bound)
        elif isinstance(step, Dropout):
            factor /= math.sqrt(1 - step.probability)
        elif isinstance(step, Mask):
            factor /= math.sqrt(1 - step.ratio)
        elif isinstance(step, Prune):
            # ||J~||_F^2 / ||J||_F^2, where J~ has the rows that pruning keeps.
            factor /= math.sqrt(min(1.0, squared_norm / _squared_norm(_undefended(problem))))
        else:
            return None
    return problem.samples * sigma * math.sqrt(problem.dimension / problem.width) * factor


def _undefended(problem: Problem) -> Jacobian:
    """J of the mean gradient."""
    model, batch = problem.draw()
    plain = make_release(model, squared_loss, f"mean:{problem.samples}")
    assert isinstance(plain, JointRelease)
    return joint_jacobian_maker(plain, batch)(batch)


def _largest_norm(problem: Problem, spec: ReleaseSpec) -> float:
    """||g|| of what is clipped: the mean, or of each sample's gradient the longest."""
    if not any(isinstance(step, Clip) for step in spec.sample_steps):
        return float(_undefended(problem).norms.max())
    model, batch = problem.draw()
    alone = make_release(model, squared_loss, "gradient")
    single = Batch(batch.inputs, batch.targets)
    return float(alone.mean(single).norm(dim=-1).max())


def _squared_norm(jacobian: Jacobian) -> float:
    """||J||_F^2 = tr H."""
    return sum(float(matrix.trace()) for matrix in dense_matrices(jacobian.hessian()))


@final
@dataclass(frozen=True)
class Slopes:
    """How fast an error grows: exponents of d and of m, with 95 % intervals over seeds (Student's t).

    Attributes:
        dimension: exponent of d, with its ends.
        width: exponent of m, with its ends.
        num_seeds: that gave both.
    """

    dimension: tuple[float, float, float]
    width: tuple[float, float, float]
    num_seeds: int


def fit_slopes(errors: Mapping[Problem, float]) -> Slopes:
    """Least squares of log error on log d and log m, for each seed by itself.

    Args:
        errors: positive, by their problem; every seed needs several d and m.

    Raises:
        SettingsError: fewer than two seeds, or a seed with one d or one m only.
    """
    rows: dict[int, list[tuple[float, float, float]]] = {}
    for problem, error in errors.items():
        row = math.log(problem.dimension), math.log(problem.width), math.log(error)
        rows.setdefault(problem.seed, []).append(row)
    if len(rows) < 2:
        raise SettingsError(f"expected two seeds at least, found {len(rows)}")
    fitted = []
    for seed, points in rows.items():
        table = np.array(points)
        design = np.column_stack([table[:, :2], np.ones(len(table))])
        if np.linalg.matrix_rank(design) < 3:
            raise SettingsError(f"expected several dimensions and widths for seed {seed}, found too few to tell them")
        fitted.append(np.linalg.lstsq(design, table[:, 2], rcond=None)[0][:2])
    slopes = np.array(fitted)
    return Slopes(_interval(slopes[:, 0]), _interval(slopes[:, 1]), len(slopes))


def _interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean of independent values with the ends of its 95 % interval."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach
