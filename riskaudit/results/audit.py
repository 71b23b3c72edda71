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
    """How a linear-algebra result came about.

    Attributes:
        method: name of the solver or of the quadrature.
        status: how far the result may be relied on.
        value: the number that was solved for, such as the largest eigenvalue of J^T J; null where the result is no
            single number.
        low: its certified lower end; null where none is known.
        high: its certified upper end; null where none is known.
        residual: relative residual of the solution; null where there is none.
        matvecs: number of matrix products that it took.
        dtype: number format of these products, such as "float64"; null where there were none.
    """

    method: str
    status: Status
    value: float | None = None
    low: float | None = None
    high: float | None = None
    residual: float | None = None
    matvecs: int = 0
    dtype: str | None = None


class NoiseTarget(Record):
    """Smallest Gaussian noise that is sure to force the target error on an attacker, for one sample.

    Attributes:
        target_rmse: posterior error to be forced, a root mean square per input coordinate in data units.
        std: standard deviation of the noise per released entry; null where none is known to be enough.
        status: "exact" where all eigenvalues are known; "bracketed" where it is the error's lower end that reaches the
            target, so that less noise may be enough.
    """

    target_rmse: float
    std: float | None
    status: Status = "exact"


class DrawSpread(Record):
    """How much a sample's number differs over several draws of a bottleneck's noise.

    Attributes:
        low: the least, in the proxy's units.
        mean: the mean over draws, in the proxy's units.
        high: the largest, in the proxy's units.
    """

    low: float
    mean: float
    high: float


class SampleRow(Record):
    """One audited sample. A sample that failed stays, with a reason.

    Where samples leave together, ``proxies`` are the outsider's, ``informed_*`` those of an attacker who knows all
    others of the upload. Over several draws of a bottleneck's noise every number is that of the riskiest draw.

    Attributes:
        id: place of the sample in the data, from 0, or a hash of the identifier that the data give it.
        target: class number; another target is there only when the user asked to show the samples, as a number or a
            flat list.
        upload: number of the upload that the sample is in, from 0; null where every sample leaves alone.
        classmates: number of others in its upload that are of its class, copies left out; null where samples leave
            alone, and for targets that are no class.
        copies: number of samples in its upload with the very same input, itself among them, which are one unknown.
        loss: the model's loss on the sample; null where it failed.
        status: status of the revealed fraction that the verdict goes by.
        reason: one sentence on why there is no number, or why it can't be relied on; null where there is nothing to
            say.
        proxies: number of each proxy by its id, in the units that the proxy's entry in ``proxies`` of the file states.
        noise_std_for_target: Gaussian noise that keeps an attacker from this sample; null where none is told.
        verdict: "high", "medium" or "low" by the thresholds in ``settings``, "not_assessed" where nothing may be
            claimed.
        solvers: how each iterative result came about, by what was solved for.
        success_probability: one entry for each tolerance of the settings, ascending.
        predicted_rmse: RMSE of the Bayes-optimal attack in data units with its 90 % predictive interval, which is for a
            single outcome, not for a mean.
        calibrated: interval that a calibration gives each proxy, by its id; empty without a calibration.
        concentration: number of input coordinates over the number of those that the release depends on, where these are
            fewer than half, else 1; verdicts and limits go by the revealed fraction times this, the mean over what is
            reached.
        adapted: ids of the proxies whose number is that of the release ``release.adapted``, being the riskier.
        over_draws: how much each proxy differs over the draws of a bottleneck's noise, by its id; empty without several
            draws.
        transformation_rmse: root mean square per coordinate, in data units, of what the client's transformation T
            changed in the input x; errors are against T(x) then; null without a transformation.
        original_rmse: bounds on the posterior error that decides, against x instead of T(x), in data units; null
            without a transformation.
        positions: one entry for each position of a text, in their order; null where samples are no texts.
        image_png: the private input as a PNG in base64, only there when the user asked to show it.
        columns: what is told of each column of a table, by its name; verdicts and limits go by the most revealed; empty
            where samples come from no encoded table.
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
    """One class that occurs in the data.

    Attributes:
        target: the class number.
        name: the class's name; its number in words where none is known.
        num_samples: number of its audited samples, with a number or without.
        proxies: statistics over its samples with a value, by the proxy's id.
    """

    target: int
    name: str
    num_samples: int
    proxies: dict[str, GroupStatistic]


class Inequality(Record):
    """How unevenly one proxy falls on samples and classes.

    Attributes:
        gini: Gini coefficient of the samples' values, 0 (all alike) to 1; null where there is no value.
        max_min_ratio: the largest over the smallest value of all samples; null where the smallest is 0.
        kruskal_wallis: test that all classes have the same distribution; null where no sample has a class and a value.
        worst_class: number of the class with the riskiest mean; null where there are fewer than two.
        worst_samples: ids of the riskiest samples, worst first.
        note: one sentence on what can't be told; null where there is nothing to say.
    """

    gini: float | None = None
    max_min_ratio: float | None = None
    kruskal_wallis: ClassTest | None = None
    worst_class: int | None = None
    worst_samples: list[str] = Field(default_factory=list)
    note: str | None = None


class Fairness(Record):
    """Unfairness of the leak.

    Attributes:
        proxies: inequality of each proxy that is compared, by its id.
    """

    proxies: dict[str, Inequality] = Field(default_factory=dict)


class NoiseCurvePoint(Record):
    """The posterior over all samples if the release carried Gaussian noise of this std instead.

    Of intervals the extremes are the cautious ends, the means those of the values.

    Attributes:
        std: standard deviation of the noise per released entry.
        revealed_fraction_mean: mean over samples of the revealed fraction, 0 to 1.
        revealed_fraction_max: the most revealed sample's fraction, 0 to 1.
        posterior_rmse_mean: mean over samples of the posterior error, a root mean square per coordinate in data units.
        posterior_rmse_min: the most exposed sample's posterior error, in data units.
        revealed_fraction_mean_low: mean of the lower ends; null where no sample's fraction is an interval.
        revealed_fraction_mean_high: mean of the upper ends; null where no sample's fraction is an interval.
    """

    std: float
    revealed_fraction_mean: float
    revealed_fraction_max: float
    posterior_rmse_mean: float
    posterior_rmse_min: float
    revealed_fraction_mean_low: float | None = None
    revealed_fraction_mean_high: float | None = None


class NoiseNeed(Record):
    """Smallest Gaussian noise that keeps every sample's revealed fraction within a limit.

    Attributes:
        max_revealed: the limit, a fraction between 0 and 1.
        std: standard deviation of the noise per released entry that the neediest sample takes.
        median_std: standard deviation per released entry that is enough for half of the samples.
        sample_id: id of the neediest sample.
        status: "bracketed" where less noise may be enough, see NoiseTarget.
    """

    max_revealed: float
    std: float
    median_std: float
    sample_id: str
    status: Status = "exact"


class CalibrationInfo(Record):
    """How far attacks strayed from their prediction on a calibration set (split conformal prediction).

    On new samples the strongest attack's RMSE lies between ``low_factor`` and ``high_factor`` times map_rmse with
    probability ``coverage``, if they are exchangeable with those of the calibration.

    Attributes:
        name: name of the calibration's file, without its folder.
        sha256: SHA-256 of the file, in hexadecimal digits.
        coverage: probability that the interval holds, 0 to 1.
        num_samples: number of samples in the calibration.
        noise_std: standard deviation per released entry at which it was made.
        prior: kind of prior that predictions were made with.
        low_factor: lower end as a multiple of the prediction; null where too few samples were there to give it.
        high_factor: upper end as a multiple of the prediction; null where too few samples were there to give it.
        attacks: ids of the attacks that were run.
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

    Attributes:
        decision: "allow" within all limits, "block" beyond one or where one can't be held, "warn" where there is no
            limit.
        reasons: one sentence each.
        limits: limits that were set, by name: ``max_revealed`` is a fraction, ``min_rmse`` an error in data units.
        source: where the limits came from.
        exceeded: ids of the samples that exceed a limit or have data in the clear by a forbidden check.
        max_unassessed: share of the samples that may go without a number, 0 to 1.
        forbid_checks: ids of the leak checks that may find nothing.
    """

    decision: Literal["allow", "warn", "block"]
    reasons: list[str]
    limits: dict[str, float]
    source: str
    exceeded: list[str] = Field(default_factory=list)
    max_unassessed: float = 0.0
    forbid_checks: list[str] = Field(default_factory=list)


class AuditResult(VersionedRecord):
    """A whole audit, as it stands in audit.json.

    Attributes:
        schema_version: version of this layout.
        tool: the program that made the audit.
        created_at: when the audit was made: date and time in UTC, ISO 8601.
        command: the command line that makes the audit again; null for an audit made in Python.
        versions: version of each program and library that computed the numbers, by name.
        checkpoint: the audited model.
        data: the audited samples, without any of their values.
        release: what leaves the client.
        threat_model: who the attacker is.
        prior: what the attacker knows of the inputs beforehand.
        settings: everything else that decides the numbers.
        cost: what the audit took.
        proxies: what each proxy means, in the order of tables.
        samples: one entry for each audited sample in the order of the data; of a large audit the most exposed, see
            ``columns``.
        columns: where the other samples of a large audit are, and what all say together; null where ``samples`` holds
            all.
        classes: one entry for each class that occurs; empty where targets are no classes.
        fairness: how unevenly the leak falls on samples and classes.
        noise_curve: what would be left of the leak at other noise, one entry for each standard deviation, ascending.
        noise_needed: noise that keeps all samples within each limit on the revealed fraction, the largest limit first;
            empty where none is recommended.
        checks: findings of the exact leak checks.
        studies: what attacks and studies found, by the study's name.
        calibration: the calibration that widened the intervals; null without one.
        policy: what the limits that were set say; null where none were set.
        warnings: what a reader must know before relying on the numbers, one sentence each.
    """

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
