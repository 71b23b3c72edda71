"""The contestants of a product H v under one interface, this project's operators among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines import DoubleBackprop, Textbook, batch_gradient
from riskaudit.jacobian import GenericJacobian, jacobian_maker
from riskaudit.linalg import LinearOperator
from riskaudit.release import Batch, Release

# v [B, d] to H v [B, d].
Product = Callable[[Tensor], Tensor]
OURS, UNIT = "structured", "gradient"
# The generic operator traces its linearisation in the fifth product.
GENERIC_SETTLES_AFTER = 6


@dataclass(frozen=True)
class Contestant:
    """A way to multiply with H.

    Attributes:
        name: as ``--only`` takes it.
        description: for the reader of a table.
        maker: what is done once per model; returns what is done once per batch (graphs, traces), which in
            turn returns the product.
        settles_after: products of a batch until they cost what all later ones cost.
        per_sample: takes one sample after the other, so that it never needs the memory of a whole batch.
        has_setup: does something once per batch that is worth timing.
    """

    name: str
    description: str
    maker: Callable[[Release, Batch], Callable[[Batch], Product]]
    settles_after: int = 1
    per_sample: bool = False
    has_setup: bool = False


def structured(release: Release, batch: Batch) -> Callable[[Batch], LinearOperator]:
    """This project's operator H for batches of a release."""
    make = jacobian_maker(release, batch)
    return lambda samples: make(samples).hessian()


def describe_ours(release: Release, batch: Batch) -> str:
    """A sentence on whether the layers are really made use of."""
    made = jacobian_maker(release, batch)
    return f"What {OURS} stands for here is the {made.kind} operator: {made.reason}."


def generic(release: Release, _batch: Batch) -> Callable[[Batch], LinearOperator]:
    """This project's operator H that knows no layers."""
    return lambda samples: GenericJacobian(release, samples).hessian()


def _products(
    operators: Callable[[Release, Batch], Callable[[Batch], LinearOperator]],
) -> Callable[[Release, Batch], Callable[[Batch], Product]]:
    def maker(release: Release, batch: Batch) -> Callable[[Batch], Product]:
        make = operators(release, batch)
        return lambda samples: make(samples).matvec

    return maker


def _one_by_one(cached: bool) -> Callable[[Release, Batch], Callable[[Batch], Product]]:
    def maker(release: Release, _batch: Batch) -> Callable[[Batch], Product]:
        def make(samples: Batch) -> Product:
            pairs = zip(samples.inputs, samples.targets, strict=True)
            parts = [DoubleBackprop(release, inputs, target, cached=cached) for inputs, target in pairs]
            return lambda vectors: torch.stack([p.apply(v) for p, v in zip(parts, vectors, strict=True)])

        return make

    return maker


def _textbook(release: Release, _batch: Batch) -> Callable[[Batch], Product]:
    return lambda samples: Textbook(release, samples).apply


def _gradient(release: Release, _batch: Batch) -> Callable[[Batch], Product]:
    def make(samples: Batch) -> Product:
        def product(vectors: Tensor) -> Tensor:
            batch_gradient(release, samples)
            return vectors

        return product

    return make


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(OURS, "this project's operator", _products(structured), settles_after=2, has_setup=True),
        Contestant(
            "generic",
            "this project's operator for unknown layers",
            _products(generic),
            settles_after=GENERIC_SETTLES_AFTER,
            has_setup=True,
        ),
        Contestant("textbook", "vmap(jvp(grad)), then vmap(vjp(grad))", _textbook),
        Contestant(
            "cached",
            "sample by sample, double back-propagation, one graph per sample",
            _one_by_one(cached=True),
            per_sample=True,
            has_setup=True,
        ),
        Contestant(
            "rebuilt",
            "sample by sample, double back-propagation, graph rebuilt per product (I2F authors)",
            _one_by_one(cached=False),
            per_sample=True,
        ),
        Contestant(UNIT, "one gradient of the whole batch: the unit", _gradient),
    )
}
