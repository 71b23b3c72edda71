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
    """Eigenvalues of one sample's H = J^T J, in released units over data units, squared.

    Attributes:
        sample_id: id of the sample, as in ``samples`` of the file.
        dimension: number of input coordinates, d.
        num_known: number of eigenvalues that are known.
        rank: number of eigenvalues that can be told from zero; null where not all are known.
        largest: the largest eigenvalue, l_1; null where unknown.
        smallest: the smallest eigenvalue that can be told from zero; null where not all are known.
        spread: l_1 over this smallest one; null where not all are known.
        effective_rank: (sum l)^2 / sum l^2; null where not all are known.
        entropy_rank: exponential of the entropy of l / sum l; null where not all are known.
        values: quantiles of the eigenvalues at the study's ``quantile_shares``, ascending; with "bracketed" the
            ``num_known`` largest converged Ritz values, ascending.
        status: "exact" where all eigenvalues are known, "bracketed" where only the largest are.
        reason: one sentence on what isn't known; null where all is.
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

    Attributes:
        sample_id: id of the sample, as in ``samples`` of the file.
        direction: name of the perturbation's direction.
        share: place of a singular direction in the spectrum, from 0 (the smallest eigenvalue) to 1; null for other
            directions.
        eigenvalue: its eigenvalue l, in released units over data units, squared; null for other directions.
        predicted_rmse: error that it should cause, a root mean square per coordinate in data units; null where unknown.
        status: status of the prediction.
        reason: one sentence on why there is no prediction; null where there is one.
        attacked: RMSE of each attack by its id, in data units.
        attack_status: status of each attack by its id.
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

    Attributes:
        attack: id of the attack.
        tightness_median: median of attack RMSE over predicted RMSE; null where there is none.
    """

    attack: str
    tightness_median: float | None = None


class LayerRow(Record):
    """One layer's part of one sample's release.

    Attributes:
        sample_id: id of the sample, as in ``samples`` of the file.
        layer: name of the layer in the model.
        num_entries: number of released entries that are the layer's.
        revealed: revealed fraction for an attacker who gets this layer's entries alone, 0 to 1; null where unknown.
        revealed_without: revealed fraction for an attacker who gets all others, 0 to 1; null where unknown.
        information_share: tr H_layer / tr H, 0 to 1; null where H is zero.
        status: "exact", or why there is no number.
    """

    sample_id: str
    layer: str
    num_entries: int
    revealed: float | None
    revealed_without: float | None
    information_share: float | None
    status: Status


class LayerSummary(Record):
    """A layer over all samples.

    Attributes:
        layer: name of the layer in the model.
        num_entries: number of released entries that are the layer's.
        num_samples: number of samples that have a number.
        revealed: mean of the fraction that this layer's entries reveal alone, 0 to 1; null where none is known.
        revealed_low: the least revealed sample's; null where none is known.
        revealed_high: the most revealed sample's; null where none is known.
        revealed_without: mean of the fraction that all other entries reveal, 0 to 1; null where none is known.
        information_share: mean of tr H_layer / tr H, 0 to 1; null where none is known.
    """

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

    Attributes:
        scheme: shape of the noise.
        attacker: whether the attacker "knows" the noise's covariance, or "ignores" it and takes the noise for isotropic
            noise of the same power.
        rmse: RMSE of the reconstruction, in data units; null where it failed.
        status: what became of the attack.
    """

    scheme: Scheme
    attacker: Attacker
    rmse: float | None
    status: Status


class ShapingRow(Record):
    """One sample under noise of equal power (trace of the covariance) and different shape.

    Attributes:
        sample_id: id of the sample, as in ``samples`` of the file.
        predicted: posterior error to first order by scheme, a root mean square per coordinate in data units.
        water_level: level w of the water-filled noise; null where there is none.
        layer_stds: standard deviations per released entry of the per-layer noise, by layer.
        attacks: attacks on such noise.
        status: "exact", or why there is no number.
        reason: one sentence on why there is no number; null where there is one.
    """

    sample_id: str
    predicted: dict[str, float]
    water_level: float | None
    layer_stds: dict[str, float] = Field(default_factory=dict)
    attacks: list[ShapingAttack] = Field(default_factory=list)
    status: Status
    reason: str | None = None


class ShapingSummary(Record):
    """A scheme over all samples.

    Attributes:
        scheme: shape of the noise.
        num_samples: number of samples that have a number.
        predicted: mean posterior error, a root mean square per coordinate in data units.
        share_better: share of samples with a larger predicted error than under isotropic noise, 0 to 1; null for the
            latter.
        attacked: mean RMSE by attacker, in data units.
    """

    scheme: Scheme
    num_samples: int
    predicted: float
    share_better: float | None
    attacked: dict[str, float] = Field(default_factory=dict)


class DirectionsStudy(StudyRecord):
    """What ``riskaudit study directions`` found: which directions, layers and shapes of noise protect.

    Attributes:
        norm: Euclidean norm of every perturbation of the released vector.
        noise_std: standard deviation per released entry at which layers and shapes are compared.
        reference: whether that is the reference noise, which the client does not add.
        prior_std: standard deviation of one input coordinate before the release is seen, in data units.
        num_entries: number of entries that leave the client, P.
        dimension: number of input coordinates, d.
        power: trace of the noise's covariance over the released entries that carry noise.
        prune_ratio: share of the entries that the perturbation "pruning" sets to zero, 0 to 1.
        attacks: ids of the attacks that were run.
        quantile_shares: levels of the eigenvalues' quantiles, ascending, 0 to 1.
        spectra: one entry for each sample.
        directions: one entry for each sample and perturbation.
        agreement: one entry for each attack.
        layers: one entry for each layer, over all samples.
        layer_rows: one entry for each sample and layer.
        shaping: one entry for each sample.
        shaping_summary: one entry for each scheme, over all samples.
        layers_reason: one sentence on why no layers are compared; null where they are.
        shaping_reason: one sentence on why no shapes are compared; null where they are.
        seconds: wall time that the study took.
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
