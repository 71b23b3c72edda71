"""What can't be audited, in words: models whose samples aren't independent, errors of torch, empty results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.targets import CARRIED
from riskaudit.errors import CoupledReleaseError, SamplesError
from riskaudit.inputs import Samples
from riskaudit.jacobian import Jacobian
from riskaudit.jacobian.obstacles import NOT_DETERMINISTIC
from riskaudit.jacobian.structured import StructuredJacobian
from riskaudit.jacobian.structured.operator import agree
from riskaudit.results import SampleRow


def refuse_coupling(model: nn.Module, samples: Samples, settings: AuditSettings) -> None:
    """Refuse a model whose output for one sample changes with the company that the sample keeps."""
    if len(samples) < 2:
        return
    device = next(model.parameters()).device
    inputs = samples.inputs[:2].to(device=device, dtype=settings.torch_dtype())
    try:
        with torch.no_grad():
            alone, again, together = model(inputs[:1]), model(inputs[:1]), model(inputs)[:1]
    except Exception:  # a program that was exported for one sample at a time can't mix them
        return
    if not bool(alone.isfinite().all()):
        # Nothing can be compared; the samples' own rows say that their losses aren't finite.
        return
    tolerance = torch.finfo(inputs.dtype).eps ** 0.5
    allowed = tolerance * float(alone.abs().max())
    if not torch.allclose(alone, again, rtol=tolerance, atol=allowed, equal_nan=True):
        raise CoupledReleaseError(NOT_DETERMINISTIC)
    if not torch.allclose(alone, together, rtol=tolerance, atol=allowed, equal_nan=True):
        raise CoupledReleaseError(
            "the model's output for a sample depends on the other samples of its batch, although the model is in eval "
            "mode; use layers without batch statistics in eval mode"
        )


def agree_alone(jacobian: Jacobian) -> bool:
    """Whether every sample's gradient has the size in its batch that it has alone; losses were compared before."""
    if jacobian.separate or not isinstance(jacobian, StructuredJacobian):
        return True
    release, batch = jacobian.release, jacobian.batch
    norms = [release.mean(batch.select([place])).detach().norm().double() for place in range(len(batch))]
    alone = torch.stack(norms).to(release.dtype)
    return agree(jacobian.norms.to(release.dtype), alone)


def refuse_if_all_failed(rows: Sequence[SampleRow]) -> None:
    """Refuse a result without any number in it."""
    if all(row.status == "failed" for row in rows):
        reason = rows[0].reason or ""
        # Doubts about the derivative and the target say themselves what to do.
        complete = "derivative" in reason or reason == CARRIED or reason.endswith("lower lr")
        advice = "" if complete else "; check the scale of the inputs and the weights, and the loss"
        raise SamplesError(f"none of the {len(rows)} samples could be audited (the first: {reason}){advice}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
