"""How often the certified intervals contain the dense float64 value, and how wide they are.

``python -m benchmarks.coverage --data FILE.npz --samples 1000`` audits lenet (weights uniform(-0.5, 0.5)) by
Lanczos iterations and, beside it, from H itself: every eigenvalue, every solution by Cholesky. It prints,
per proxy, the share of samples whose interval contains the dense value, and the intervals' median width
relative to it.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.models import lenet_for, real_images
from benchmarks.tables import hardware_line, markdown_table
from riskaudit.jacobian import jacobian_maker
from riskaudit.linalg.operators import identity_columns
from riskaudit.priors import IsotropicPrior
from riskaudit.proxies import PROXIES, Linearisation, Plan
from riskaudit.release import Batch, Release
from riskaudit.results import Estimate

CONFIDENCE = 0.99
COLUMNS = 128


@dataclass
class Tally:
    """Of one proxy: samples with an interval, those that contain the dense value, and relative widths."""

    intervals: int = 0
    one_sided: int = 0
    held: int = 0
    widths: list[float] = field(default_factory=list)

    def add(self, found: Estimate, truth: float) -> None:
        """Count one sample."""
        if found.low is None and found.high is None:
            return
        low, high = found.low or 0.0, math.inf if found.high is None else found.high
        # The dense value has rounding of its own.
        slack = 1e-7 * abs(truth)
        self.intervals += 1
        self.held += low - slack <= truth <= high + slack
        if math.isfinite(high):
            self.widths.append((high - low) / truth if truth else 0.0)
        else:
            self.one_sided += 1


def main() -> None:
    """Run the comparison and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--data", required=True, help=".npz of images and labels")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--skip", type=int, default=0, help="samples to leave out at the beginning")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--max-matvecs", type=int, default=50)
    parser.add_argument("--sigmas", default="0.01,0.1")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch = real_images(arguments.data, arguments.skip + arguments.samples)
    batch = batch.select(list(range(arguments.skip, len(batch))))
    model = lenet_for(batch).double()
    prior = IsotropicPrior.fit(batch.inputs)
    sigmas = [float(part) for part in arguments.sigmas.split(",")]
    tallies: dict[float, dict[str, Tally]] = {sigma: defaultdict(Tally) for sigma in sigmas}
    matvecs = dict.fromkeys(sigmas, 0)
    for first in range(0, len(batch), arguments.batch_size):
        indices = list(range(first, min(first + arguments.batch_size, len(batch))))
        part = batch.select(indices)
        spectra = list(_dense(model, part))
        for sigma in sigmas:
            at = _linearised(model, part, indices, prior, sigma, arguments.max_matvecs, len(batch))
            scores = {name: proxy.score(at) for name, proxy in PROXIES.items()}
            matvecs[sigma] += at.matvecs
            for place, hessian in enumerate(spectra):
                for name, truth in hessian.proxies(at, place).items():
                    tallies[sigma][name].add(scores[name].estimates[place], truth)
    print(hardware_line(torch.float64, arguments.threads, "cpu"))
    for sigma in sigmas:
        print(
            f"\nlenet, {len(batch)} samples of {tuple(batch.inputs.shape[1:])}, noise {sigma:g}, prior std "
            f"{prior.std:.3g}, confidence {CONFIDENCE:g} for all samples together, "
            f"{matvecs[sigma] / len(batch):.0f} products per sample\n"
        )
        print(_table(tallies[sigma], len(batch)))


def _table(tallies: dict[str, Tally], samples: int) -> str:
    rows = []
    for name in PROXIES:
        tally = tallies.get(name)
        if tally is None or not tally.intervals:
            continue
        widths = np.array(tally.widths)
        rows.append(
            [
                name,
                f"{tally.intervals} of {samples}",
                f"{100 * tally.held / tally.intervals:.1f} %",
                str(tally.one_sided),
                f"{np.median(widths):.2g}" if len(widths) else "-",
                f"{np.quantile(widths, 0.9):.2g}" if len(widths) else "-",
            ]
        )
    head = ["proxy", "intervals", "contain the dense value", "one-sided", "median relative width", "90th percentile"]
    return markdown_table(head, rows)


def _linearised(
    model: torch.nn.Module, batch: Batch, indices: list[int], prior: IsotropicPrior, sigma: float, products: int,
    samples: int,
) -> Linearisation:  # fmt: skip
    release = Release(model, torch.nn.functional.cross_entropy, f"gaussian:{sigma!r}")
    plan = Plan(
        solver="lanczos",
        solver_reason="",
        inverse="quadrature",
        inverse_reason="",
        tolerance=1e-6,
        max_matvecs=products,
        precision=None,
        max_probes=32,
        failure=(1 - CONFIDENCE) / samples,
        width=len(batch),
        proxies=frozenset(PROXIES),
    )
    return Linearisation(jacobian_maker(release, batch)(batch), indices, prior, plan, seed=0)


@dataclass(frozen=True)
class DenseHessian:
    """H of one sample [d, d] and its eigenvalues, ascending [d], float64."""

    matrix: Tensor
    values: Tensor

    def proxies(self, at: Linearisation, place: int) -> dict[str, float]:
        """Dense values of all proxies that have an interval."""
        d, eps, sigma = at.dimension, at.eps, at.sigma
        values, root = self.values, math.sqrt(at.dimension)
        noise, away = at.pulled_noise[place].double(), at.displacement[place].double()
        vector, norm = at.cosine_vector[place].double(), float(at.gradient_norm[place])
        downdated = torch.linalg.eigvalsh(self.matrix - torch.outer(vector, vector)).clamp_min(0.0)
        shifted = torch.linalg.cholesky(self.matrix + eps * torch.eye(d, dtype=torch.float64))
        bias = eps * _solved(shifted, away)
        revealed = float((values / (values + eps)).sum()) / d
        found = {
            "i2f_lower_bound": float(noise.norm() / (values[-1] * root)),
            "posterior_rmse": at.prior.std * math.sqrt(1 - revealed),
            "revealed_fraction": revealed,
            "map_rmse": math.sqrt(float((bias.square().sum() + sigma**2 * (values / (values + eps) ** 2).sum()) / d)),
            "map_i2f": float(_solved(shifted, noise - eps * away).norm()) / root,
            "lavp_l2_max": 2 * float(values[-1]),
            "lavp_l2_min": 2 * float(values[0]),
            "lavp_cosine_max": float(downdated[-1]) / norm**2,
            "lavp_cosine_min": float(downdated[0]) / norm**2,
        }
        if values[0] > d * torch.finfo(torch.float64).eps * values[-1]:
            found["expected_rmse"] = sigma * math.sqrt(float((1 / values).sum()) / d)
            found["i2f"] = float(_solved(torch.linalg.cholesky(self.matrix), noise).norm()) / root
        return found


def _solved(factor: Tensor, rhs: Tensor) -> Tensor:
    return torch.cholesky_solve(rhs[:, None], factor)[:, 0]


def _dense(model: torch.nn.Module, batch: Batch) -> Iterator[DenseHessian]:
    """H of every sample, column by column."""
    release = Release(model, torch.nn.functional.cross_entropy)
    maker = jacobian_maker(release, batch)
    for place in range(len(batch)):
        operator = maker(batch.select([place])).hessian()
        identity = identity_columns(operator)
        blocks = [
            operator.matmat(identity[:, :, k : k + COLUMNS])[0] for k in range(0, operator.shape[1], COLUMNS)
        ]
        matrix = torch.cat(blocks, dim=1)
        matrix = (matrix + matrix.mT) / 2
        yield DenseHessian(matrix, torch.linalg.eigvalsh(matrix).clamp_min(0.0))


if __name__ == "__main__":
    main()
