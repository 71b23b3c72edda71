"""What ``riskaudit study directions`` adds to an audit, under ``studies.directions``.

J is the Jacobian of one sample's release [P, d], H = J^T J with eigenvalues l_1 >= ... >= l_d, u_i = J v_i / sqrt(l_i).
Errors are root mean squares per input coordinate in data units; noise standard deviations are per released entry;
``revealed`` is the effective dimension over d at the audit's noise (the reference noise where there is none) for an
isotropic prior.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from riskaudit.results.base import Record, Status
from riskaudit.results.studies import StudyRecord
from riskaudit.statistics.rank_correlation import Scaling

Scheme: TypeAlias = Literal["isotropic", "in_range", "water_filled", "water_filled_in_range", "per_layer"]
Attacker: TypeAlias = Literal["ignores", "knows"]


class SpectrumRow(Record):
    """Eigenvalues of one sample's H.

    ``values`` are at the study's ``quantile_shares``, ascending; with "bracketed" only the largest are known: they
    are the ``num_known`` converged Ritz values, ascending, and nothing that needs the others has a value.
    ``spread`` is l_1 over the smallest eigenvalue that can be told from zero, ``rank`` the number of those.
    ``effective_rank`` is (sum l)^2 / sum l^2, ``entropy_rank`` the exponential of the entropy of l / sum l.
    """

    sample_id: str
    dimension: int
    num_known: int
    rank: int | None
    largest: float | None
    smallest: float | None
    spread: float | None
    effective_rank: float | None
    entropy_rank: float | None
    values: list[float]
    status: Status
    reason: str | None = None


class DirectionRow(Record):
    """One perturbation of fixed norm of one sample's release, what it should do to an attacker, and what it did.

    ``share`` is the place in the spectrum of a singular direction (0 is the smallest eigenvalue), ``eigenvalue`` its
    l. ``attacked`` holds the RMSE per attack.
    """

    sample_id: str
    direction: str
    share: float | None = None
    eigenvalue: float | None = None
    predicted_rmse: float | None
    status: Status
    reason: str | None = None
    attacked: dict[str, float] = Field(default_factory=dict)
    attack_status: dict[str, Status] = Field(default_factory=dict)


class DirectionAgreement(Scaling):
    """An attack's mean squared error against 1 / l over samples and singular directions, of slope 1 to first order.

    ``tightness_median`` is attack RMSE over predicted RMSE.
    """

    attack: str
    tightness_median: float | None = None


class LayerRow(Record):
    """One layer's part of one sample's release.

    ``revealed`` is what an attacker learns who gets this layer's entries alone, ``revealed_without`` who gets all
    others. ``information_share`` is tr H_layer / tr H.
    """

    sample_id: str
    layer: str
    num_entries: int
    revealed: float | None
    revealed_without: float | None
    information_share: float | None
    status: Status


class LayerSummary(Record):
    """A layer over all samples: means, and the range of ``revealed``."""

    layer: str
    num_entries: int
    num_samples: int
    revealed: float | None
    revealed_low: float | None
    revealed_high: float | None
    revealed_without: float | None
    information_share: float | None


class ShapingAttack(Record):
    """A least-squares attack with the prior's term, started at the truth, on one draw of shaped noise.

    The attacker "ignores" the covariance (takes the noise for isotropic noise of the same power) or "knows" it.
    """

    scheme: Scheme
    attacker: Attacker
    rmse: float | None
    status: Status


class ShapingRow(Record):
    """One sample under noise of equal power (trace of the covariance) and different shape.

    ``predicted`` is the posterior error per scheme, to first order; ``water_level`` is w of the water-filled noise.
    ``layer_stds`` are those of the per-layer noise.
    """

    sample_id: str
    predicted: dict[str, float]
    water_level: float | None
    layer_stds: dict[str, float] = Field(default_factory=dict)
    attacks: list[ShapingAttack] = Field(default_factory=list)
    status: Status
    reason: str | None = None


class ShapingSummary(Record):
    """A scheme over all samples; ``share_better`` is the share with a larger predicted error than isotropic noise.

    ``attacked`` is the mean RMSE per attacker.
    """

    scheme: Scheme
    num_samples: int
    predicted: float
    share_better: float | None
    attacked: dict[str, float] = Field(default_factory=dict)


class DirectionsStudy(StudyRecord):
    """``studies.directions`` of audit.json.

    ``norm`` is that of every perturbation, ``noise_std`` the noise at which layers and shapes are compared (the
    reference noise if ``reference``), ``power`` its trace over the released entries that carry noise.
    """

    norm: float
    noise_std: float
    reference: bool
    prior_std: float
    num_entries: int
    dimension: int
    power: float
    prune_ratio: float
    attacks: list[str]
    quantile_shares: list[float]
    spectra: list[SpectrumRow]
    directions: list[DirectionRow]
    agreement: list[DirectionAgreement]
    layers: list[LayerSummary]
    layer_rows: list[LayerRow] = Field(default_factory=list)
    shaping: list[ShapingRow]
    shaping_summary: list[ShapingSummary]
    layers_reason: str | None = None
    shaping_reason: str | None = None
    seconds: float
