"""Audits of clients that train on transformed images: T(x) is audited, and errors are told against x as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from riskaudit.errors import SettingsError
from riskaudit.inputs import Samples
from riskaudit.release.augmentation import transform
from riskaudit.release.transformation import Transformation
from riskaudit.results import Estimate, SampleRow
from riskaudit.results.stored import kept_as


def transformed(samples: Samples, transformation: Transformation) -> Samples:
    """What the client trains on.

    Raises:
        SettingsError: the inputs aren't images in [0, 1].
    """
    require_images(samples, f"'{transformation}'", "leave it out")
    return replace(samples, inputs=transform(samples.inputs, transformation))


def require_images(samples: Samples, purpose: str, remedy: str) -> None:
    """Refuse what can't be transformed.

    Raises:
        SettingsError: the inputs aren't images in [0, 1].
    """
    inputs = samples.inputs
    if not samples.are_images or not bool(((inputs >= 0) & (inputs <= 1)).all()):
        raise SettingsError(
            f"expected images with values from 0 to 1 for {purpose}, found inputs of shape "
            f"{list(inputs.shape[1:])} from {float(inputs.min()):g} to {float(inputs.max()):g}; {remedy}"
        )


def with_originals(rows: Sequence[SampleRow], samples: Samples, originals: Samples, error: str) -> Sequence[SampleRow]:
    """Rows of transformed samples with what the transformation did to each, and the error against the original.

    By the triangle inequality an attacker whose root mean square error from T(x) is e, and who takes T(x) for x, is
    between |e - c| and e + c from x, where c is that of T(x) from x. Whoever undoes what T keeps, such as a translation
    of known length, may come nearer.

    Args:
        rows: of all samples, in the order of the data.
        samples: transformed.
        originals: as they were.
        error: id of the posterior error that decides.
    """
    changes = (samples.inputs - originals.inputs).flatten(1).square().mean(1).sqrt().tolist()
    changed = (
        row.model_copy(
            update={"transformation_rmse": change, "original_rmse": _against_original(row.proxies.get(error), change)}
        )
        for row, change in zip(rows, changes, strict=True)
    )
    return kept_as(rows, changed)


def _against_original(error: Estimate | None, change: float) -> Estimate | None:
    if error is None:
        return None
    low, high = error.ends
    if low is None or high is None:
        return Estimate(value=None, status=error.status)
    return Estimate(value=None, low=max(0.0, low - change, change - high), high=high + change, status="bracketed")
