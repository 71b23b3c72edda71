"""Moments of a network's gradient over its random weights, and the directions that they are made of.

Of y_j = sum_i r_i s(w_j . z_i) with w_j ~ N(0, I), j = 1 ... m, Stein's identity gives for the Hermite tensors He_p

    T_p = (1 / m) sum_j y_j He_p(w_j)  ->  sum_i r_i k_p(|z_i|) u_i^(x p),    k_p(t) = E s(t v) He_p(v),  v ~ N(0, 1)

with u_i = z_i / |z_i|: T_1 a vector, He_2(w) = w w^T - I, and so on. The error falls as 1 / sqrt(m). Directions u_i
that aren't orthogonal are told apart by diagonalising slices of the tensors together, all of them U diag(.) U^T:
Kuleshov, Chaganty and Liang, "Tensor factorization via matrix factorization", AISTATS 2015, algorithm 1; Zhong et al.,
ICML 2017, algorithm 3; Wang, Lee and Lei, "Reconstructing training data from model gradient, provably", AISTATS 2023.
Before a moment is taken, what those of lower order explain is taken out of y, which spares sampling noise.

Entries of w that are independent, but not normal, as PyTorch's uniform ones are, give the diagonal of T_2 the factor
(E w^4 - 1) / 2, which is divided out; of projections on few directions their sums are normal enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Orders of moments beyond the first.
ORDERS = (2, 3, 4)
# A moment smaller than this share of the largest tells nothing but noise.
NEGLIGIBLE = 0.05
# Block power iterations, and rounds of alternating least squares at most.
ITERATIONS, ROUNDS = 30, 200
# Directions beyond those looked for, which power iteration takes along.
BESIDE = 4
# Random pairs of matrices whose common eigenvectors are tried.
PAIRS = 12
# Points at which an activation is averaged; one of them is 0, where many have a kink.
NODES = 281
# Change of the fit, and relative change of the leading eigenvalues' sum, at which iterations end.
SETTLED = 1e-9


@dataclass(frozen=True, eq=False)
class Components:
    """Directions that make up moments.

    Attributes:
        directions: u, unit vectors up to their signs, [n, D].
        weights: r_i k_p of every direction, by order, [C, n] each.
        residual: share of the slices' norm that the directions leave unexplained.
    """

    directions: Tensor
    weights: Mapping[int, Tensor]
    residual: float


def first_moment(weights: Tensor, signals: Tensor) -> tuple[Tensor, Tensor]:
    """T_1 of y [C, m] for w [m, D], [C, D], and what it and the mean leave of y.

    With enough units by least squares, in which T_1 is exact where y is linear.
    """
    units, dimension = weights.shape
    centred = signals - signals.mean(1, keepdim=True)
    if units < 2 * dimension:
        return centred @ weights / units, centred
    gram = weights.T @ weights
    moment = torch.linalg.solve(gram, weights.T @ centred.T).T
    return moment, centred - moment @ weights.T


def principal_span(
    weights: Tensor, signals: Tensor, count: int, generator: torch.Generator, kurtosis: float = 3.0
) -> Tensor:
    """Orthonormal directions [D, n] that the moments up to the third are made of.

    The leading left singular vectors of T_1, T_2 and T_3(., ., T_1 / |T_1|) side by side, by block power iteration; no
    matrix of the inputs' dimension squared is formed.

    Args:
        weights: w, of mean 0 and variance 1, [m, D].
        signals: y, [C, m].
        count: n.
        generator: of the first guess, on the CPU.
        kurtosis: E w^4.
    """
    units, dimension = weights.shape
    first, rest = first_moment(weights, signals)
    axes = first / first.norm(dim=1, keepdim=True).clamp_min(1e-300)
    along = axes @ weights.T
    # The diagonal by itself, for entries that aren't normal.
    repair = 2 / max(kurtosis - 1, 1e-3) - 1
    values = torch.cat([rest, rest * along])
    means = values.mean(1)
    scales = repair * (values @ weights.square() / units - means[:, None]) - means[:, None]
    pulled = rest @ weights / units

    def second(number: int, block: Tensor) -> Tensor:
        """T_2 of one of the values [m], times a block [D, k]."""
        product = weights.T @ (values[number][:, None] * (weights @ block)) / units
        return product + scales[number][:, None] * block

    def third(number: int, block: Tensor) -> Tensor:
        """T_3(., ., axis) of one of the y, times a block [D, k]."""
        axis, along_it = axes[number], pulled[number]
        crossed = torch.outer(axis, along_it @ block) + torch.outer(along_it, axis @ block)
        return second(len(rest) + number, block) - crossed

    def squared(block: Tensor) -> Tensor:
        total = first.T @ (first @ block)
        for number in range(len(rest)):
            for moment in (second, third):
                total = total + moment(number, moment(number, block)) / 2
        return total

    start = torch.randn(dimension, min(dimension, count + BESIDE), generator=generator, dtype=torch.float64)
    block, before = torch.linalg.qr(start.to(weights)).Q, 0.0
    for _ in range(ITERATIONS):
        product = squared(block)
        eigenvalues, vectors = torch.linalg.eigh(block.T @ product)
        leading: Tensor = block @ vectors[:, eigenvalues.argsort(descending=True)[:count]]
        total = float(eigenvalues.sort(descending=True).values[:count].sum())
        if abs(total - before) <= SETTLED * total:
            break
        block, before = torch.linalg.qr(product).Q, total
    return leading


def decompose(
    weights: Tensor, signals: Tensor, span: Tensor, sizes: Mapping[int, float], generator: torch.Generator
) -> Components:
    """The directions of y [C, m] in a span [D, n].

    Args:
        weights: w, [m, D].
        signals: y.
        span: orthonormal columns.
        sizes: |k_p| of every order; negligible ones are left out.
        generator: of the pairs of matrices, on the CPU.
    """
    projected = weights @ span
    moments = _moments(projected, signals)
    largest = max(sizes[order] for order in ORDERS)
    used = [order for order in ORDERS if sizes[order] > NEGLIGIBLE * largest]
    stacks = {order: moments[order].flatten(0, -3) for order in used}
    if span.shape[1] == 1:
        mixing, residual = torch.ones(1, 1, dtype=torch.float64, device=span.device), 0.0
    else:
        mixing, residual = diagonalise(torch.cat(list(stacks.values())), generator)
    found = {order: _weights(moments[order], mixing) for order in (1, *ORDERS)}
    return Components((span @ mixing).T, found, residual)


def _moments(projected: Tensor, signals: Tensor) -> dict[int, Tensor]:
    """T_p of y [C, m] for w [m, n], p = 1 ... 4, [C, n, ...] with n p times; lower orders are taken out before."""
    units, size = projected.shape
    identity = torch.eye(size, dtype=projected.dtype, device=projected.device)
    first, rest = first_moment(projected, signals)
    pairs = projected[:, :, None] * projected[:, None] - identity
    second = torch.einsum("cm,mab->cab", rest, pairs) / units
    rest = rest - torch.einsum("cab,mab->cm", second, pairs) / 2
    triples = projected[:, :, None, None] * pairs[:, None]
    crossed = torch.einsum("ma,bk->mbak", projected, identity), torch.einsum("ma,bk->mbka", projected, identity)
    triples = triples - crossed[0] - crossed[1]
    third = torch.einsum("cm,mabk->cabk", rest, triples) / units
    rest = rest - torch.einsum("cabk,mabk->cm", third, triples) / 6
    fourth = _fourth(projected, rest, identity)
    return {1: first, 2: second, 3: third, 4: fourth}


def _fourth(projected: Tensor, values: Tensor, identity: Tensor) -> Tensor:
    """T_4, [C, n, n, n, n]: what is known of its lower parts comes from moments of the same values."""
    units, size = projected.shape
    products = (projected[:, :, None] * projected[:, None]).flatten(1)
    plain = torch.stack([(products * each[:, None]).T @ products for each in values]) / units
    plain = plain.reshape(len(values), size, size, size, size)
    mean = values.mean(1)
    square = torch.einsum("cm,mab->cab", values, products.reshape(units, size, size)) / units
    total = plain
    for pair in ("ab,kl", "ak,bl", "al,bk", "bk,al", "bl,ak", "kl,ab"):
        total = total - torch.einsum(f"c{pair}->cabkl", square, identity)
    for pattern in ("ab,kl->abkl", "ak,bl->abkl", "al,bk->abkl"):
        total = total + mean[:, None, None, None, None] * torch.einsum(pattern, identity, identity)
    return total


def _weights(moment: Tensor, mixing: Tensor) -> Tensor:
    """Of every direction, a column of ``mixing``, in a moment [C, n, ...], by least squares, [C, n]."""
    order, size = moment.ndim - 1, mixing.shape[1]
    products = mixing
    for _ in range(order - 1):
        products = (products[:, None] * mixing[None]).reshape(-1, size)
    solution: Tensor = torch.linalg.lstsq(products, moment.reshape(len(moment), -1).T, driver="gelsd").solution.T
    return solution


def diagonalise(matrices: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """U [n, n] with unit columns such that all matrices [K, n, n], which are symmetric, are nearly U diag(.) U^T.

    From the common eigenvectors of random pairs of their sums, the best of several, by alternating least squares.

    Returns:
        U, and the share of the matrices' norm that is left.
    """
    norm = matrices.norm().clamp_min(1e-300)
    best: tuple[Tensor, float] | None = None
    for _ in range(PAIRS):
        mixed = torch.randn(2, len(matrices), generator=generator, dtype=torch.float64).to(matrices)
        one, other = torch.einsum("pk,kab->pab", mixed, matrices)
        start = _unit(torch.linalg.eig(one @ torch.linalg.pinv(other)).eigenvectors.real)
        left = float(_left(matrices, start) / norm)
        if best is None or left < best[1]:
            best = start, left
    assert best is not None
    mixing, left = best
    for _ in range(ROUNDS):
        diagonals = _diagonals(matrices, mixing)
        scaled = mixing[None] * diagonals[:, None]
        right = torch.einsum("kab,kbi->ai", matrices, scaled)
        gram = torch.einsum("kbi,kbj->ij", scaled, scaled)
        moved = _unit(right @ torch.linalg.pinv(gram, hermitian=True))
        now = float(_left(matrices, moved) / norm)
        if not now < left:
            break
        mixing, before, left = moved, left, now
        if before - left <= SETTLED:
            break
    return mixing, left


def _unit(columns: Tensor) -> Tensor:
    scaled: Tensor = columns / columns.norm(dim=0, keepdim=True).clamp_min(1e-300)
    return scaled


def _diagonals(matrices: Tensor, mixing: Tensor) -> Tensor:
    """The diagonals [K, n] that are best for U."""
    gram = (mixing.T @ mixing).square()
    projected = torch.einsum("ai,kab,bi->ki", mixing, matrices, mixing)
    diagonals: Tensor = projected @ torch.linalg.pinv(gram, hermitian=True)
    return diagonals


def _left(matrices: Tensor, mixing: Tensor) -> Tensor:
    diagonals = _diagonals(matrices, mixing)
    left: Tensor = (matrices - torch.einsum("ai,ki,bi->kab", mixing, diagonals, mixing)).norm()
    return left


def hermite_moments(activation: Callable[[Tensor], Tensor], lengths: Tensor, biases: Tensor, orders: int = 4) -> Tensor:
    """k_p(t) = E s(t v + b) He_p(v) over v ~ N(0, 1) and given biases, [orders, len(lengths)], p = 1 ...

    Args:
        activation: s, of every number of a vector.
        lengths: t, [L].
        biases: equally likely ones, [k].
        orders: the largest p.
    """
    nodes = torch.linspace(-7, 7, NODES, dtype=torch.float64, device=lengths.device)
    density = torch.exp(-nodes.square() / 2)
    density = density / density.sum()
    points = lengths[:, None, None] * nodes[:, None] + biases
    values = activation(points.reshape(-1)).reshape(points.shape).mean(-1)
    polynomials = [torch.ones_like(nodes), nodes]
    for order in range(2, orders + 1):
        polynomials.append(nodes * polynomials[-1] - (order - 1) * polynomials[-2])
    return torch.stack([(values * density * polynomial).sum(-1) for polynomial in polynomials[1:]])
