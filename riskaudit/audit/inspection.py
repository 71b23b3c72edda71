"""`inspect_received`: does a received model look as if it was changed so that its gradients tell more?"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import nn

from riskaudit.audit.alarm import is_cross_entropy
from riskaudit.audit.provenance import checkpoint_info, data_info, versions
from riskaudit.checks.received import SIGNS
from riskaudit.checks.received.judging import judge_model
from riskaudit.errors import SettingsError
from riskaudit.formatting import present_time
from riskaudit.inputs import Checkpoint, Samples, fit_together, load_loss
from riskaudit.results.inspection import Comparison, InspectionResult, InspectionSettings
from riskaudit.results.subject import Tool
from riskaudit.version import __version__


def inspect_received(
    received: Checkpoint | nn.Module,
    samples: Samples,
    *,
    previous: Checkpoint | nn.Module | None = None,
    batch_size: int | None = None,
    loss: str = "cross-entropy",
    seed: int = 0,
    command: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> InspectionResult:
    """Look for signs that a received model was changed so that its gradients tell more, before training on it.

    The model is held against its own architecture freshly initialised, and against the model of the round before
    where that is given. Labels aren't looked at. No sign is a proof, and none that is missing either.

    Args:
        received: the model as it came.
        samples: of the user, one or more; with fewer than 8 some signs don't apply, which their rows say.
        previous: the model of the round before, of the same architecture.
        batch_size: samples that the client takes the gradient of at once (default: 16).
        loss: that the samples' targets are for; labels are silenced only in a cross-entropy.
        seed: of the freshly initialised models.
        command: that is recorded in the result.
        progress: called with the number of finished models and of all.

    Raises:
        RiskauditError: model and data don't fit, or the previous model is of another architecture.
    """
    started = time.perf_counter()
    if batch_size is not None and batch_size < 1:
        raise SettingsError(f"expected `batch_size` of at least 1, found {batch_size}")
    loaded = load_loss(loss)
    checkpoint, fitted = fit_together(_checkpoint(received, "received"), samples, loaded)
    before = None
    if previous is not None:
        before, _ = fit_together(_checkpoint(previous, "previous"), samples, loaded)
    judged = judge_model(
        checkpoint.model,
        fitted.inputs,
        previous=None if before is None else before.model,
        batch_size=batch_size,
        classifies=is_cross_entropy(loaded),
        seed=seed,
        progress=progress,
    )
    warnings = [*fitted.notes, *checkpoint.notes]
    if checkpoint.assumed is not None:
        warnings.append(
            f"the architecture {checkpoint.architecture} was recognised from the weights, which don't show all of it "
            f"(assumed: {checkpoint.assumed}); `arch` names it"
        )
    return InspectionResult(
        tool=Tool(version=__version__),
        created_at=present_time(),
        command=command,
        versions=versions(),
        checkpoint=checkpoint_info(checkpoint, None),
        data=data_info(fitted),
        compared_with=Comparison(
            schemes=judged.schemes,
            num_models=judged.num_models,
            previous=None if before is None else checkpoint_info(before, None),
            not_judged=judged.not_judged,
        ),
        settings=InspectionSettings(
            seed=seed, batch_size=judged.batch_size, num_samples=judged.num_samples, loss=loaded.name
        ),
        seconds=round(time.perf_counter() - started, 3),
        flagged=any(row.flagged for row in judged.rows),
        signs=judged.rows,
        sign_infos=[sign.info() for sign in SIGNS.values()],
        warnings=warnings,
    )


def _checkpoint(model: Checkpoint | nn.Module, name: str) -> Checkpoint:
    return model if isinstance(model, Checkpoint) else Checkpoint.from_model(model, name=name)
