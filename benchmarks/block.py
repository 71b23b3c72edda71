"""K columns per sample at once: what they cost, and what a block iteration for l_1 would make of them.

    python -m benchmarks.block --data mnist_test.npz cifar10_test.npz

A block Lanczos iteration from K independent normal vectors z_1 to z_K takes fewer steps than one vector does, each of
them dearer. It pays where steps times the cost of a step fall.

Its certificate [derived]: the space of s steps holds p(H) z_i for every polynomial p of degree s, so every z_i by
itself bounds l_1 as in `riskaudit.linalg.krylov.certificates`, from the Jacobi matrix of its own scalar measure
(which s steps on the block tridiagonal T give). With each end at failure q^(1/K), the largest of the K ends lies
below l_1 only where all K do, that is where every (z_i . u_1)^2 / ||z_i||^2 is below its q^(1/K)-quantile. These are
independent, so that happens with probability q at most.

Not for an operator whose rank is so low that a block loses a column: nothing is deflated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contestants import structured
from benchmarks.models import CASES, Case, normal_vectors
from benchmarks.options import Printer, Settings, make_parser, read_settings
from benchmarks.scan import FAILURE, PRECISION, TOLERANCE
from benchmarks.tables import Spread, Table
from benchmarks.timing import median_ratio, take_turns
from benchmarks.work import load
from riskaudit.linalg import LinearOperator, MatrixOperator, lanczos, largest_error, upper_end
from riskaudit.linalg.krylov.tridiagonal import Array, RitzPairs

COLUMNS, SIZES = (1, 2, 4, 8), (1, 2)
STEP_SAMPLES, MAX_STEPS = 4, 30
HEADINGS = {
    "columns": "K",
    "milliseconds": "ms per product of K columns",
    "cost": "times one column",
    "steps": "steps, mean (least-most)",
    "time": "cost times steps, K = 1 being 1",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = make_parser(__doc__).parse_args(arguments)
    settings, cases = read_settings(options)
    if not options.models and not settings.quick:
        cases = [CASES["lenet-28"], CASES["resnet18"]]
    printer = Printer("K columns per sample at once", settings)
    for case in cases:
        for table in tables(case, settings):
            printer.add(table)
    printer.finish(options.json)


def tables(case: Case, settings: Settings) -> list[Table]:
    """One table for each number of samples in a batch."""
    widths = COLUMNS[:2] if settings.quick else COLUMNS
    release, batch, source = load(case.name, STEP_SAMPLES, settings)
    make = structured(release, batch)
    n = batch.inputs[0].numel()
    vectors = normal_vectors(STEP_SAMPLES * max(widths), n, release.dtype, release.device)
    starts = vectors.reshape(STEP_SAMPLES, max(widths), n).mT
    steps = {width: block_steps(make(batch), starts[..., :width], FAILURE, MAX_STEPS) for width in widths}
    found = []
    for size in (settings.batch_size,) if settings.batch_size else SIZES[:1] if settings.quick else SIZES:
        part = batch.select([index % STEP_SAMPLES for index in range(size)])
        columns = torch.randn((size, n, max(widths)), generator=torch.Generator().manual_seed(0)).to(vectors)
        # An operator for each K: it keeps the graph of its copies.
        products = {str(width): partial(_product, make(part), columns[..., :width]) for width in widths}
        times = take_turns(products, settings.repeats, settings.torch_device, dict.fromkeys(products, 2))
        table = Table(f"K columns per sample: {case.name}, B = {size}, {source}", HEADINGS)
        for width in widths:
            cost = median_ratio(times[str(width)], times["1"])
            taken = steps[width]
            mean = sum(taken) / len(taken)
            row = {"columns": width, "milliseconds": Spread.of([1000 * value for value in times[str(width)]])}
            row["cost"], row["steps"] = cost, Spread(mean, min(taken), max(taken))
            table.rows.append({**row, "time": cost * mean * len(steps[1]) / sum(steps[1])})
        table.notes.append(
            f"Steps: until l_1 has converged to {TOLERANCE:g} and is certified within {PRECISION:.0%} with "
            f"{1 - FAILURE:.0%} confidence per sample, {STEP_SAMPLES} samples."
        )
        found.append(table)
    return found


def _product(operator: LinearOperator, columns: Tensor) -> Tensor:
    return operator.matmat(columns)


def block_steps(operator: LinearOperator, start: Tensor, failure: float, max_steps: int) -> list[int]:
    """Steps of a block iteration per sample until l_1 has converged and is certified; ``max_steps`` at most.

    Args:
        operator: symmetric positive semidefinite, [B, n, n].
        start: standard normal, [B, n, K].
        failure: probability, per sample, that the certified end lies below l_1.
        max_steps: products of K columns; K (max_steps + 1) may not exceed n.
    """
    taken: dict[int, int] = {}
    for step, found in enumerate(block_lanczos(operator, start, max_steps), start=1):
        for index, block in enumerate(found):
            if index not in taken and block.finished(failure):
                taken[index] = step
        if len(taken) == len(start):
            break
    return [taken.get(index, max_steps) for index in range(len(start))]


@dataclass(frozen=True, eq=False)
class BlockTridiagonal:
    """T of one sample after some steps with K columns.

    Attributes:
        matrix: T with the row and column of the block that comes next, whose own diagonal block is unknown and
            0, [K (steps + 1), K (steps + 1)].
        start: coordinates of z_1 to z_K in the first block, [K, K].
        steps: products of K columns.
        dimension: n.
        rounding: machine epsilon of the operator's dtype.
    """

    matrix: Array
    start: Array
    steps: int
    dimension: int
    rounding: float

    @cached_property
    def ritz(self) -> RitzPairs:
        """Ritz values and residuals."""
        known, K = self.steps * len(self.start), len(self.start)
        values, vectors = np.linalg.eigh(self.matrix[:known, :known])
        residuals = np.linalg.norm(self.matrix[known:, known - K : known] @ vectors[-K:], axis=0)
        return RitzPairs(values, vectors, residuals)

    def upper_end(self, failure: float) -> float:
        """The end of l_1, see above."""
        K = len(self.start)
        vectors = torch.zeros(K, len(self.matrix), dtype=torch.float64)
        vectors[:, :K] = torch.from_numpy(self.start.T.copy())
        matrices = MatrixOperator(torch.from_numpy(self.matrix).expand(K, *self.matrix.shape), psd=True)
        ends = [float(self.ritz.values[-1])]
        for space in lanczos(matrices, vectors, lambda *_: False, self.steps):
            own = replace(space.tridiagonal, dimension=self.dimension, rounding=self.rounding)
            ends.append(upper_end(own, failure ** (1 / K)))
        return max(ends)

    def finished(self, failure: float) -> bool:
        """Whether l_1 has converged and its end is near."""
        largest = float(self.ritz.values[-1])
        converged = largest_error(self.ritz) <= TOLERANCE * largest
        return converged and self.upper_end(failure) <= (1 + PRECISION) * largest


def block_lanczos(operator: LinearOperator, start: Tensor, max_steps: int) -> Iterator[list[BlockTridiagonal]]:
    """T of every sample after each step; the basis is in float64 and reorthogonalised in full.

    Arguments are those of `block_steps`.
    """
    dimension, K = start.shape[1:]
    current, first = torch.linalg.qr(start.double())
    basis, matrix = current, first.new_zeros(len(start), K, K)
    for step in range(1, max_steps + 1):
        remainder = operator.matmat(current.to(operator.dtype)).double()
        diagonal = current.mT @ remainder
        for _ in range(2):
            remainder = remainder - basis @ (basis.mT @ remainder)
        known = K * step
        matrix = F.pad(matrix, (0, K, 0, K))
        matrix[:, known - K : known, known - K : known] = (diagonal + diagonal.mT) / 2
        current, beside = torch.linalg.qr(remainder)
        matrix[:, known:, known - K : known] = beside
        matrix[:, known - K : known, known:] = beside.mT
        basis = torch.cat([basis, current], dim=-1)
        rounding = torch.finfo(operator.dtype).eps
        yield [
            BlockTridiagonal(T.numpy(), own.numpy(), step, dimension, rounding)
            for T, own in zip(matrix.cpu(), first.cpu(), strict=True)
        ]


if __name__ == "__main__":
    main()
