"""One batch of samples to rows of the result."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from riskaudit.priors import IsotropicPrior
from riskaudit.proxies import PROXIES, Linearisation, Plan, ProxyScores, noise_std_for_target
from riskaudit.release import Batch, Release
from riskaudit.results import Estimate, SampleRow, SolverEvidence, Target, Thresholds, Verdict

HEADLINE = "revealed_fraction"


@dataclass(frozen=True)
class RowMaker:
    """Turns batches into rows; what stays the same for the whole audit.

    ``release`` carries noise; where the client adds none (not ``defended``), it is the reference noise.
    """

    release: Release
    defended: bool
    prior: IsotropicPrior
    plan: Plan
    thresholds: Thresholds
    target_rmse: float
    seed: int


@dataclass
class BatchRows:
    """Rows of a batch, their spectra where known, why proxies are missing, and products used."""

    rows: list[SampleRow]
    spectra: list[npt.NDArray[np.float64]] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    matvecs: int = 0

    def extend(self, part: BatchRows) -> None:
        """Add the samples of a later batch."""
        self.rows += part.rows
        self.spectra += part.spectra
        self.reasons |= part.reasons
        self.matvecs += part.matvecs


def audit_batch(
    maker: RowMaker, batch: Batch, indices: list[int], ids: list[str], images: list[str | None]
) -> BatchRows:
    """Rows for the samples at positions ``indices`` of the data; those that can't be linearised fail alone."""
    losses = maker.release.losses(batch)
    finite = torch.isfinite(losses) & torch.isfinite(maker.release.mean(batch)).all(-1)
    good = [position for position, fine in enumerate(finite.tolist()) if fine]
    done = BatchRows(
        [
            failed_row(ids[position], _target(batch.targets[position]), "the loss or the gradient is not finite")
            for position in range(len(batch))
        ]
    )
    if not good:
        return done
    kept = batch.select(good) if len(good) < len(batch) else batch
    try:
        at = Linearisation(
            maker.release, kept, [indices[position] for position in good], maker.prior, maker.plan, maker.seed
        )
        scores = {name: proxy.score(at) for name, proxy in PROXIES.items()}
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        if len(good) > 1:
            return _one_by_one(maker, batch, indices, ids, images)
        done.rows[good[0]] = failed_row(ids[good[0]], _target(kept.targets[0]), f"no eigenvalues: {error}")
        return done
    for place, position in enumerate(good):
        done.rows[position] = _row(maker, at, scores, place, ids[position], float(losses[position]), images[position])
    if at.spectrum is not None:
        done.spectra = list(at.spectrum.values.cpu().numpy())
    done.reasons = {name: score.reason for name, score in scores.items() if score.reason is not None}
    done.matvecs = at.matvecs
    return done


def _one_by_one(
    maker: RowMaker, batch: Batch, indices: list[int], ids: list[str], images: list[str | None]
) -> BatchRows:
    """The same batch, a sample at a time, so that one bad sample doesn't take the others along."""
    total = BatchRows([])
    for place, index in enumerate(indices):
        total.extend(audit_batch(maker, batch.select([place]), [index], [ids[place]], [images[place]]))
    return total


def failed_row(sample_id: str, target: Target | None, reason: str) -> SampleRow:
    """A sample without any number."""
    proxies = {name: Estimate(value=None, status="failed") for name in PROXIES}
    return SampleRow(
        id=sample_id, target=target, loss=None, status="failed", reason=reason, proxies=proxies, verdict="not_assessed"
    )


def _row(
    maker: RowMaker, at: Linearisation, scores: dict[str, ProxyScores], place: int, sample_id: str, loss: float,
    image: str | None,
) -> SampleRow:  # fmt: skip
    proxies = {name: score.estimates[place] for name, score in scores.items()}
    headline = proxies[HEADLINE]
    target = None
    if at.spectrum is not None:
        eigenvalues = at.spectrum.values[place].cpu().numpy()
        target = noise_std_for_target(eigenvalues, maker.prior.std, maker.target_rmse)
    solvers = {"largest_eigenvalue": _largest(at, place)}
    solvers |= {name: score.evidence[place] for name, score in scores.items() if score.evidence is not None}
    return SampleRow(
        id=sample_id,
        target=_target(at.batch.targets[place]),
        loss=loss,
        status=headline.status,
        reason=scores[HEADLINE].reason,
        proxies=proxies,
        noise_std_for_target=target,
        verdict=verdict(headline.value, maker.thresholds, maker.defended),
        solvers=solvers,
        image_png=image,
    )


def _largest(at: Linearisation, place: int) -> SolverEvidence:
    largest = at.largest
    low, high = largest.low, largest.high
    assert low is not None
    assert high is not None
    upper = float(high[place])
    return SolverEvidence(
        method=at.plan.solver,
        status=largest.status[place],
        value=float(largest.value[place]),
        low=float(low[place]),
        high=upper if np.isfinite(upper) else None,
        residual=float(largest.residual[place]) if bool(torch.isfinite(largest.residual[place])) else None,
        matvecs=int(largest.matvecs[place]),
    )


def verdict(revealed: float | None, thresholds: Thresholds, defended: bool) -> Verdict:
    """High above ``high``, medium from ``medium`` on, low below it.

    An undefended sample is high whatever it reveals at the reference noise, which nobody adds.
    """
    if not defended:
        return "high"
    if revealed is None:
        return "not_assessed"
    if revealed > thresholds.high:
        return "high"
    return "medium" if revealed >= thresholds.medium else "low"


def _target(target: Tensor) -> Target:
    if target.ndim == 0:
        return float(target) if target.is_floating_point() else int(target)
    return [float(value) for value in target.flatten()]


def image_png(image: Tensor) -> str | None:
    """An image [C, H, W] of 1 or 3 channels in [0, 1] as base64 PNG."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        return None
    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
