"""Which precision an audit computes in.

"float64" and "float32" are all in that. "mixed" is float64 but for the products that Lanczos iterations make with H,
nearly all of their work, which are in float32 where `riskaudit.linalg.mixed_precision` finds that the noise allows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from riskaudit.copying import copy_model
from riskaudit.jacobian import AnyJacobianMaker, Jacobian, JacobianMaker
from riskaudit.jacobian.distinct import DistinctJacobian
from riskaudit.release import Batch, make_release
from riskaudit.results import SampleRow


def single_maker(maker: AnyJacobianMaker, first: Batch) -> AnyJacobianMaker | None:
    """Makes the same Jacobians in single precision, tried on some samples; None where the model can't be run in it.

    Args:
        maker: makes them in double precision.
        first: the samples.
    """
    release = maker.release
    try:
        single = maker.of(make_release(copy_model(release.model).float(), release.loss, release.spec))
        jacobian = single_jacobian(single, maker(first))
        product = jacobian.hessian().matvec(jacobian.batch.inputs.reshape(jacobian.num_samples, -1))
    except Exception:  # code of one precision only; what else is wrong shows in double precision
        return None
    return single if product.dtype == torch.float32 else None


def single_jacobian(single: AnyJacobianMaker, jacobian: Jacobian) -> Jacobian:
    """The Jacobian of ``single`` where another one is in double precision."""
    double = jacobian.jacobian if isinstance(jacobian, DistinctJacobian) else jacobian
    batch = double.batch
    targets = batch.targets.float() if batch.targets.is_floating_point() else batch.targets
    batch = replace(batch, inputs=batch.inputs.float(), targets=targets)
    # In double precision each was compared with itself alone.
    made = single.around(batch, apart=double.separate) if isinstance(single, JacobianMaker) else single(batch)
    return jacobian.same_inputs_of(made) if isinstance(jacobian, DistinctJacobian) else made


def precision_notes(is_mixed: bool, can_be_single: bool, rows: Sequence[SampleRow]) -> list[str]:
    """What an audit by Lanczos iterations alone did in double precision, where it was to be mixed.

    Args:
        is_mixed: whether it was.
        can_be_single: whether the model runs in single precision.
        rows: of the samples.
    """
    if not is_mixed:
        return []
    if not can_be_single:
        return ["the model can't be run in float32: all was computed in float64"]
    evidence = [row.solvers.get("largest_eigenvalue") for row in rows]
    count = sum(each is not None and each.dtype == "float64" for each in evidence)
    if not count:
        return []
    return [
        f"the noise is below what float32 resolves of {count} of {len(rows)} samples: their products were made in "
        "float64"
    ]


@contextmanager
def full_single_precision() -> Iterator[None]:
    """Products in single precision with all of its digits: CUDA devices round to 10 bits (TF32) where they may."""
    backends = torch.backends
    switches: list[tuple[object, str, object]] = [
        (backends.cudnn, "allow_tf32", False),
        (backends.cuda.matmul, "allow_tf32", False),
    ]
    try:
        before = [getattr(owner, name) for owner, name, _ in switches]
    except RuntimeError:  # the program has used the newer switches, beside which the older ones can't be read
        newer = [getattr(backends.cudnn, name) for name in ("conv", "rnn")]
        switches = [(owner, "fp32_precision", "ieee") for owner in (*newer, backends.cuda.matmul)]
        before = [getattr(owner, name) for owner, name, _ in switches]
    try:
        for owner, name, value in switches:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(switches, before, strict=True):
            setattr(owner, name, value)
