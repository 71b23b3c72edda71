"""How often the certified intervals contain the dense float64 value, and how wide they are.

``python -m benchmarks.coverage --data FILE.npz --samples 1000`` audits lenet (weights uniform(-0.5, 0.5)) by
Lanczos iterations and, beside it, from H itself, column by column, by Cholesky factors. It prints,
per proxy, the share of samples whose interval contains the dense value, the intervals' median width
relative to it, and how far from it the value lies that stands for an interval, where one does.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from benchmarks.models import CASES, build_release, load_batch
from benchmarks.tables import Table, machine
from riskaudit.audit import AuditSettings
from riskaudit.audit.plan import choose_plan
from riskaudit.audit.precision import single_jacobian, single_maker
from riskaudit.jacobian import JacobianMaker, jacobian_maker
from riskaudit.linalg.solvers.dense import dense_matrices
from riskaudit.priors import IsotropicPrior
from riskaudit.proxies import PROXIES
from riskaudit.release import Batch, PerSampleRelease
from riskaudit.results import Estimate
from riskaudit.sensitivity import Linearisation

CONFIDENCE = 0.99
# Tables are printed after so many samples too, since the whole takes long.
REPORT_EVERY = 50
COLUMNS = {
    "proxy": "proxy",
    "intervals": "samples with an interval",
    "held": "contain the dense value, %",
    "one_sided": "of them without an upper end",
    "median": "median relative width",
    "wide": "90th percentile",
    "valued": "with a value",
    "error": "its median relative error",
    "worst": "largest",
}


@dataclass
class Tally:
    """Of one proxy: intervals, those that contain the dense value, and relative widths and errors of their values."""

    intervals: int = 0
    one_sided: int = 0
    held: int = 0
    widths: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

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
        if found.value is not None and truth:
            self.errors.append(abs(found.value - truth) / abs(truth))


def main() -> None:
    """Run the comparison and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--model", choices=("lenet-28", "lenet-32"), default="lenet-28")
    parser.add_argument("--data", type=Path, required=True, help=".npz of images and labels")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--max-matvecs", type=int, default=50)
    parser.add_argument("--sigmas", default="0.01,0.1")
    parser.add_argument("--dtype", choices=("float64", "mixed"), default="float64", help="of Lanczos iterations")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, case = torch.device("cpu"), CASES[arguments.model]
    model = build_release(case, torch.float64, device).model
    batch, name = load_batch(case, arguments.samples, [arguments.data], torch.float64, device)
    prior = IsotropicPrior.fit(batch.inputs)
    releases = {
        sigma: PerSampleRelease(model, torch.nn.functional.cross_entropy, f"gaussian:{sigma!r}")
        for sigma in map(float, arguments.sigmas.split(","))
    }
    makers = {sigma: jacobian_maker(release, batch.select([0, 1])) for sigma, release in releases.items()}
    tallies: dict[float, dict[str, Tally]] = {sigma: defaultdict(Tally) for sigma in releases}
    matvecs, doubled = dict.fromkeys(releases, 0), dict.fromkeys(releases, 0)
    singles = {
        sigma: single_maker(maker, batch.select([0, 1])) if arguments.dtype == "mixed" else None
        for sigma, maker in makers.items()
    }
    settings = AuditSettings(solver="lanczos", max_matvecs=arguments.max_matvecs, confidence=CONFIDENCE)
    release = next(iter(releases.values()))
    dimension = batch.inputs[0].numel()
    plan = choose_plan(settings, dimension, release.num_entries, len(batch), arguments.batch_size, device)
    for first in range(0, len(batch), arguments.batch_size):
        indices = list(range(first, min(first + arguments.batch_size, len(batch))))
        part = batch.select(indices)
        at = {}
        for sigma, maker in makers.items():
            jacobian, single = maker(part), singles[sigma]
            part_of_it = None if single is None else single_jacobian(single, jacobian)
            at[sigma] = Linearisation(jacobian, indices, prior, plan, seed=0, single=part_of_it)
            doubled[sigma] += at[sigma].products_dtypes.count("float64")
        scores = {sigma: {name: proxy.score(point) for name, proxy in PROXIES.items()} for sigma, point in at.items()}
        for place, hessian in enumerate(_dense(next(iter(makers.values())), part)):
            for sigma, point in at.items():
                for proxy, truth in hessian.proxies(point, place).items():
                    tallies[sigma][proxy].add(scores[sigma][proxy].estimates[place], truth)
        for sigma, point in at.items():
            matvecs[sigma] += point.matvecs
        done = indices[-1] + 1
        print(f"{done} of {len(batch)} samples", file=sys.stderr, flush=True)
        if done % REPORT_EVERY and done < len(batch):
            continue
        print(machine(arguments.threads, arguments.dtype, device), end="\n\n")
        for sigma, found in tallies.items():
            title = (
                f"{case.name}, {done} samples of {name}, noise {sigma:g}, prior std {prior.std:.3g}, confidence "
                f"{CONFIDENCE:g} for {len(batch)} samples together, {matvecs[sigma] / done:.0f} products per sample"
            )
            if arguments.dtype == "mixed":
                title += f", {doubled[sigma]} samples in float64"
            print(_table(title, found).markdown(), flush=True)


def _table(title: str, tallies: dict[str, Tally]) -> Table:
    table = Table(title, COLUMNS)
    for name in PROXIES:
        tally = tallies.get(name)
        if tally is None or not tally.intervals:
            continue
        table.rows.append(
            {
                "proxy": name,
                "intervals": tally.intervals,
                "held": 100 * tally.held / tally.intervals,
                "one_sided": tally.one_sided,
                "median": float(np.median(tally.widths)) if tally.widths else None,
                "wide": float(np.quantile(tally.widths, 0.9)) if tally.widths else None,
                "valued": len(tally.errors),
                "error": float(np.median(tally.errors)) if tally.errors else None,
                "worst": max(tally.errors) if tally.errors else None,
            }
        )
    return table


@dataclass(frozen=True)
class DenseHessian:
    """H of one sample [d, d], float64.

    All comes from Cholesky factors and inverses, and from ARPACK to rounding: several times sooner than from all
    eigenvalues, and by other code than the package's own.
    """

    matrix: Tensor

    def proxies(self, at: Linearisation, place: int) -> dict[str, float]:
        """Dense values of all proxies that have an interval, but for the smallest cosine eigenvalue."""
        d, eps, sigma, root = at.dimension, float(at.eps[place]), at.sigma, math.sqrt(at.dimension)
        noise, away = at.pulled_noise[place].double(), at.displacement[place].double()
        vector, norm = at.cosine_vector[place].double(), float(at.gradient_norm[place])
        shifted = torch.linalg.cholesky(self.matrix + eps * torch.eye(d, dtype=torch.float64))
        inverse = torch.cholesky_inverse(shifted)
        revealed = 1 - eps * float(inverse.diagonal().sum()) / d
        # tr H (H + eps)^-2 = tr (H + eps)^-1 - eps tr (H + eps)^-2
        variance = float(inverse.diagonal().sum() - eps * inverse.square().sum())
        bias = eps * _solved(shifted, away)
        largest = _largest(self.matrix)
        found = {
            "i2f_lower_bound": float(noise.norm()) / (largest * root),
            "posterior_rmse": float(at.prior.std[place]) * math.sqrt(1 - revealed),
            "revealed_fraction": revealed,
            "map_rmse": math.sqrt((float(bias.square().sum()) + sigma**2 * variance) / d),
            "map_i2f": float(_solved(shifted, noise - eps * away).norm()) / root,
            "lavp_l2_max": 2 * largest,
            "lavp_cosine_max": _largest(self.matrix - torch.outer(vector, vector)) / norm**2,
        }
        factor, failed = torch.linalg.cholesky_ex(self.matrix)
        least = 0.0 if failed else 1 / _largest_of_inverse(factor)
        # A smaller one can't be told from rounding, nor can what depends on it.
        if least > d * torch.finfo(torch.float64).eps * largest:
            found["lavp_l2_min"] = 2 * least
            found["expected_rmse"] = sigma * math.sqrt(float(torch.cholesky_inverse(factor).diagonal().sum()) / d)
            found["i2f"] = float(_solved(factor, noise).norm()) / root
        return found


def _largest(matrix: Tensor) -> float:
    return float(eigsh(matrix.numpy(), k=1, which="LA", tol=0, return_eigenvectors=False)[0])


def _largest_of_inverse(factor: Tensor) -> float:
    """Largest eigenvalue of the inverse of the matrix with this Cholesky factor."""
    d = len(factor)
    inverse = LinearOperator((d, d), lambda v: _solved(factor, torch.from_numpy(v).flatten()).numpy(), dtype=np.float64)
    return float(eigsh(inverse, k=1, which="LA", tol=0, return_eigenvectors=False)[0])


def _solved(factor: Tensor, rhs: Tensor) -> Tensor:
    return torch.cholesky_solve(rhs[:, None], factor)[:, 0]


def _dense(maker: JacobianMaker, batch: Batch) -> Iterator[DenseHessian]:
    """H of every sample; noise doesn't enter it."""
    for matrix in dense_matrices(maker(batch).hessian()):
        yield DenseHessian(matrix)


if __name__ == "__main__":
    main()
