"""The result of an audit: typed rows, JSON in and out (schema 1). Nothing here needs torch.

Reports, the policy and the studies are functions of an `AuditResult` and of nothing else. A number
that isn't known is ``None`` with a status that says why, never NaN, infinity or a made-up value.

Units: every error (``*_rmse``, ``i2f*``, ``map_*``) is a root mean square per input coordinate in
data units (pixels in [0, 1] unless the data says otherwise); noise standard deviations are per
released entry; ``revealed_fraction`` is a share of the input's dimension.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, WrapSerializer, WrapValidator
from typing_extensions import override

from riskaudit.errors import ResultError
from riskaudit.files import write_file
from riskaudit.results.base import (
    Estimate,
    Record,
    Status,
    SuccessProbability,
    Target,
    Verdict,
    VersionedRecord,
    read_file,
)
from riskaudit.results.checks import CheckFinding
from riskaudit.results.columns import SampleColumns, from_parquet
from riskaudit.results.consistency import check_consistency
from riskaudit.results.groups import ClassTest, GroupStatistic
from riskaudit.results.stored import StoredRows
from riskaudit.results.studies import Studies, StudyRecord
from riskaudit.results.subject import (
    CheckpointInfo,
    Cost,
    DataInfo,
    PriorInfo,
    ReleaseInfo,
    Settings,
    ThreatModel,
    Tool,
)
from riskaudit.results.tables import ColumnRisk
from riskaudit.results.texts import TokenPosition
from riskaudit.results.words import ProxyInfo


class SolverEvidence(Record):
    """How a linear-algebra result came about. ``residual`` is relative, ``dtype`` that of its matrix products."""

    method: str
    status: Status
    value: float | None = None
    low: float | None = None
    high: float | None = None
    residual: float | None = None
    matvecs: int = 0
    dtype: str | None = None


class NoiseTarget(Record):
    """Smallest Gaussian noise std per released entry for which posterior_rmse is sure to reach the target.

    "exact" where all eigenvalues are known; "bracketed" where its interval's lower end reaches the target, so
    that less noise may be enough.
    """

    target_rmse: float
    std: float | None
    status: Status = "exact"


class DrawSpread(Record):
    """How much a sample's number differs over several draws of a bottleneck's noise: its least, mean and largest."""

    low: float
    mean: float
    high: float


class SampleRow(Record):
    """One audited sample. A sample that failed stays, with a reason.

    ``target`` is a class number; another target is there only when the user asked to show the samples.
    ``image_png`` (base64) holds the private input and is there only when the user asked to show it.
    ``predicted_rmse`` is the RMSE of the Bayes-optimal attack with its 90 % predictive interval: a single
    outcome, not a mean. ``calibrated`` holds, per proxy id, the interval that a calibration gives it.
    Where samples leave together, ``upload`` is the number of its upload and ``classmates`` how many others in it are of
    its class, copies left out; ``copies`` counts those in it with the very input, itself among them, which are one
    unknown. ``proxies`` are the outsider's then, ``informed_*`` those of an attacker who knows all others in it.
    ``concentration`` is the number of coordinates over that of those that the release depends on, where these are fewer
    than half, else 1: verdicts and limits go by the revealed fraction times this, the mean over what is reached.
    Where the client transforms images, errors are against T(x): ``transformation_rmse`` is what T changed, and
    ``original_rmse`` brackets the posterior error that decides against x instead.
    ``positions`` are those of a text, in their order.
    ``adapted`` names the proxies whose number is that of the release ``ReleaseInfo.adapted``, being the riskier.
    Over several draws of a bottleneck's noise every number is that of the riskiest draw, and ``over_draws`` says by
    proxy how much they differ.
    Of a table by an encoding ``columns`` holds each column's own numbers; verdicts and limits go by the most revealed.
    """

    id: str
    target: Target | None
    upload: int | None = None
    classmates: int | None = None
    copies: int = Field(default=1, ge=1)
    loss: float | None
    status: Status
    reason: str | None = None
    proxies: dict[str, Estimate]
    noise_std_for_target: NoiseTarget | None = None
    verdict: Verdict
    solvers: dict[str, SolverEvidence] = Field(default_factory=dict)
    success_probability: list[SuccessProbability] = Field(default_factory=list)
    predicted_rmse: Estimate | None = None
    calibrated: dict[str, Estimate] = Field(default_factory=dict)
    concentration: float = Field(default=1.0, ge=1.0)
    adapted: list[str] = Field(default_factory=list)
    over_draws: dict[str, DrawSpread] = Field(default_factory=dict)
    transformation_rmse: float | None = None
    original_rmse: Estimate | None = None
    positions: list[TokenPosition] | None = None
    image_png: str | None = None
    columns: dict[str, ColumnRisk] = Field(default_factory=dict)


def shows_tokens(row: SampleRow) -> bool:
    """Whether a row holds words of its text."""
    return any(each.token is not None for each in row.positions or ())


def _as_they_are(rows: Any, check: Callable[[Any], Any]) -> Any:
    return rows if isinstance(rows, StoredRows) else check(rows)


SampleRows: TypeAlias = Annotated[
    Sequence[SampleRow], WrapValidator(_as_they_are), WrapSerializer(lambda rows, serialize: serialize(list(rows)))
]
"""A list, or of a large audit that was merged, on disk."""


class ClassRow(Record):
    """One class; ``num_samples`` counts all its audited samples, each statistic those with a value."""

    target: int
    name: str
    num_samples: int
    proxies: dict[str, GroupStatistic]


class Inequality(Record):
    """How unevenly one proxy falls on samples and classes.

    ``max_min_ratio`` is the largest over the smallest value of all samples (``None`` when the
    smallest is 0); ``worst_class`` and ``worst_samples`` are the riskiest, worst first.
    """

    gini: float | None = None
    max_min_ratio: float | None = None
    kruskal_wallis: ClassTest | None = None
    worst_class: int | None = None
    worst_samples: list[str] = Field(default_factory=list)
    note: str | None = None


class Fairness(Record):
    """Unfairness of the leak, per proxy id."""

    proxies: dict[str, Inequality] = Field(default_factory=dict)


class NoiseCurvePoint(Record):
    """The posterior over all samples if the release carried Gaussian noise of this std instead.

    Of intervals the extremes are the cautious ends, the means those of the values; ``revealed_fraction_mean_low`` and
    ``revealed_fraction_mean_high`` are then the means of the ends.
    """

    std: float
    revealed_fraction_mean: float
    revealed_fraction_max: float
    posterior_rmse_mean: float
    posterior_rmse_min: float
    revealed_fraction_mean_low: float | None = None
    revealed_fraction_mean_high: float | None = None


class NoiseNeed(Record):
    """Smallest Gaussian noise std that keeps every sample's revealed_fraction at or below ``max_revealed``.

    ``std`` is what the neediest sample, ``sample_id``, takes; ``median_std`` suffices for half of them.
    """

    max_revealed: float
    std: float
    median_std: float
    sample_id: str
    status: Status = "exact"


class CalibrationInfo(Record):
    """How far attacks strayed from their prediction on a calibration set (split conformal prediction).

    On new samples the strongest attack's RMSE lies between ``low_factor`` and ``high_factor`` times map_rmse with
    probability ``coverage``, if they are exchangeable with the ``num_samples`` of the calibration. A factor is
    None where too few samples were there to give that end.
    """

    name: str
    sha256: str | None
    coverage: float
    num_samples: int
    noise_std: float
    prior: str
    low_factor: float | None
    high_factor: float | None
    attacks: list[str] = Field(default_factory=list)


class PolicyOutcome(Record):
    """What the policy says of this audit, and why.

    ``limits`` are those that were set; ``exceeded`` lists ids of samples over a limit. ``max_unassessed`` is the
    share of samples that may go without a number; ``forbid_checks`` are those that may find nothing.
    """

    decision: Literal["allow", "warn", "block"]
    reasons: list[str]
    limits: dict[str, float]
    source: str
    exceeded: list[str] = Field(default_factory=list)
    max_unassessed: float = 0.0
    forbid_checks: list[str] = Field(default_factory=list)


class AuditResult(VersionedRecord):
    """A whole audit, as it stands in audit.json."""

    file_name: ClassVar[str] = "audit.json"
    noun: ClassVar[str] = "an audit"
    remedy: ClassVar[str] = "run the scan again"

    schema_version: Literal[1] = 1
    tool: Tool
    created_at: str
    command: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    checkpoint: CheckpointInfo
    data: DataInfo
    release: ReleaseInfo
    threat_model: ThreatModel = ThreatModel()
    prior: PriorInfo
    settings: Settings
    cost: Cost
    proxies: list[ProxyInfo] = Field(default_factory=list)
    samples: SampleRows
    columns: SampleColumns | None = None
    classes: list[ClassRow] = Field(default_factory=list)
    fairness: Fairness = Fairness()
    noise_curve: list[NoiseCurvePoint] = Field(default_factory=list)
    noise_needed: list[NoiseNeed] = Field(default_factory=list)
    checks: list[CheckFinding] = Field(default_factory=list)
    studies: Studies = Field(default_factory=Studies)
    calibration: CalibrationInfo | None = None
    policy: PolicyOutcome | None = None
    warnings: list[str] = Field(default_factory=list)

    @property
    def doubts(self) -> list[str]:
        """Why nothing that protects is claimed of any sample, in sentences: of the model, and of the inputs."""
        return [doubt for doubt in (self.checkpoint.doubt, self.data.doubt) if doubt is not None]

    def with_study(self, record: StudyRecord) -> AuditResult:
        """The audit with a study beside those that it has; doubts about the whole audit are among its notes."""
        if self.doubts:
            record = record.model_copy(update={"notes": [*self.doubts, *record.notes]})
        return self.model_copy(update={"studies": self.studies.with_study(record)})

    @classmethod
    @override
    def load(cls, path: str | Path) -> Self:
        path = Path(path)
        result = cls.parse(read_file(path), path.name)
        if result.columns is not None:
            table = path.with_name(result.columns.file)
            content = read_file(table)
            if hashlib.sha256(content).hexdigest() != result.columns.sha256:
                raise ResultError(f"{table} isn't what {path.name} was written with; put it back")
            document = result.model_dump(mode="json") | {"samples": from_parquet(content, table.name), "columns": None}
            result = cls.parse(json.dumps(document), path.name)
        result.refuse_contradiction(path.name)
        return result

    @override
    def refuse_contradiction(self, name: str) -> None:
        if self.columns is not None:
            raise ResultError(
                f"{name} holds {len(self.samples)} of {self.columns.num_samples} samples, of which nothing can be "
                f"decided; load it from its folder, where {self.columns.file} has all of them"
            )
        check_consistency(self, name)

    @override
    def save(self, path: str | Path) -> None:
        shown = any(row.image_png is not None or shows_tokens(row) for row in self.samples)
        write_file(Path(path), self.to_json().encode(), private=shown)
