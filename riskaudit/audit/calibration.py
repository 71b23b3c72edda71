"""What a calibration against attacks adds to an audit: intervals for new samples with a stated coverage."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from riskaudit.audit.client import Client
from riskaudit.errors import SettingsError
from riskaudit.files import sha256_of_file
from riskaudit.inputs.identifiers import hash_tensors
from riskaudit.results import (
    Calibration,
    CalibrationInfo,
    CalibrationLevel,
    Estimate,
    Status,
    SuccessProbability,
)

# Noise levels that agree to so many digits are the same.
SAME_NOISE = 1e-9


def binding_of(client: Client) -> str:
    """Hex SHA-256 of what a calibration holds for: weights, loss, release without its noise, and prior.

    Where several samples leave together, also how many, and whether batch norm takes their statistics. A prior fitted
    to the audited data counts by its kind, one from a file by the file's hash, and numbers given by the user by
    themselves.
    """
    settings, digest = client.settings, hashlib.sha256()
    hash_tensors(digest, sorted(client.checkpoint.model.state_dict().items()))
    info = client.chosen.info
    prior = [info.kind, info.sha256, settings.prior_mean, settings.prior_std]
    digest.update(repr([client.loss.name, str(client.release.without_noise().spec), prior]).encode())
    if client.is_joint:
        # Not in every release's text: mean:all and local training take all samples there are.
        digest.update(repr([client.upload_size, client.mixes_samples]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Calibrator:
    """A calibration at the audit's own noise level.

    Attributes:
        info: for the result.
        factors: per proxy id, what the prediction is multiplied by: lower and upper end, None where unknown.
    """

    info: CalibrationInfo
    factors: dict[str, tuple[float | None, float | None]]

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """The factors of map_rmse."""
        return self.info.low_factor, self.info.high_factor

    def intervals(self, proxies: dict[str, Estimate], variance: float) -> dict[str, Estimate]:
        """Calibrated intervals of one sample, per proxy id.

        map_rmse and posterior_rmse: where the strongest attack's RMSE lies. revealed_fraction: what that RMSE says of
        the prior's variance, 1 - RMSE^2 / variance.

        Args:
            proxies: of the sample.
            variance: of the prior, per coordinate, in squared data units.
        """
        calibrated = {
            name: _scaled(proxies[name], *ends)
            for name, ends in self.factors.items()
            if name in proxies and proxies[name].assessed
        }
        error, revealed = calibrated.get("map_rmse"), proxies.get("revealed_fraction")
        if error is not None and revealed is not None and revealed.assessed:
            calibrated["revealed_fraction"] = Estimate(
                value=revealed.value,
                low=None if error.high is None else _revealed(error.high, variance),
                high=None if error.low is None else _revealed(error.low, variance),
                status=error.status,
            )
        return calibrated

    def success(
        self,
        rows: list[SuccessProbability],
        probabilities: Callable[[Sequence[float]], list[SuccessProbability]],
    ) -> list[SuccessProbability]:
        """One sample's success probabilities between those of the tolerance divided by either factor.

        An attack that comes out at f times its prediction is within the tolerance where the prediction is within
        tolerance / f.

        Args:
            rows: as theory has them.
            probabilities: the same for other tolerances.
        """
        low, high = self.ends
        widened = []
        for row in rows:
            most = 1.0 if not low else _upper(probabilities([row.tolerance / low])[0])
            least = 0.0 if not high else _lower(probabilities([row.tolerance / high])[0])
            status: Status = "bracketed" if row.status in ("exact", "bracketed") else row.status
            widened.append(row.model_copy(update={"low": least, "high": most, "status": status}))
        return widened


def make_calibrator(path: str | Path, client: Client) -> Calibrator:
    """The calibration in a file, at the noise of the client's release.

    Raises:
        ResultError: the file isn't a calibration.
        SettingsError: it was made for another model, loss, release, prior or noise.
    """
    calibration = Calibration.load(path)
    if calibration.binding != binding_of(client):
        raise SettingsError(
            f"{Path(path).name} was calibrated for {calibration.checkpoint.name} with release {calibration.release} "
            f"and a prior of kind {calibration.prior.kind}, not for these weights, loss, release and prior; "
            "run riskaudit calibrate for them"
        )
    noise = client.release.noise
    if noise is None or noise.law != "gaussian":
        raise SettingsError("`calibration` needs a release with Gaussian noise, whose error can be predicted")
    levels = {
        level.proxy: level
        for level in calibration.levels
        if math.isclose(level.noise_std, noise.std, rel_tol=SAME_NOISE)
    }
    if "map_rmse" not in levels:
        known = sorted({level.noise_std for level in calibration.levels})
        raise SettingsError(
            f"expected a calibration at noise {noise.std:g}, found {', '.join(f'{std:g}' for std in known)} in "
            f"{Path(path).name}; run riskaudit calibrate with `noise_stds={noise.std:g}`"
        )
    level = levels["map_rmse"]
    info = CalibrationInfo(
        name=Path(path).name,
        sha256=sha256_of_file(Path(path)),
        coverage=calibration.coverage,
        num_samples=level.num_samples,
        noise_std=level.noise_std,
        prior=calibration.prior.kind,
        low_factor=level.low_factor,
        high_factor=level.high_factor,
        attacks=calibration.attacks,
    )
    return Calibrator(info, {name: _factors(level) for name, level in levels.items()})


def _factors(level: CalibrationLevel) -> tuple[float | None, float | None]:
    return level.low_factor, level.high_factor


def _scaled(estimate: Estimate, low: float | None, high: float | None) -> Estimate:
    """A prediction's ends times the factors; the certified ends where it has some."""
    least, most = estimate.ends
    return Estimate(
        value=estimate.value,
        low=None if low is None or least is None else low * least,
        high=None if high is None or most is None else high * most,
        status="bracketed",
    )


def _revealed(error: float, variance: float) -> float:
    return min(1.0, max(0.0, 1 - error * error / variance)) if variance > 0 else 0.0


def _upper(row: SuccessProbability) -> float:
    known = row.high if row.high is not None else row.probability
    return 1.0 if known is None else known


def _lower(row: SuccessProbability) -> float:
    known = row.low if row.low is not None else row.probability
    return 0.0 if known is None else known
