"""The result of an audit: typed rows, JSON in and out (schema 1). Nothing here needs torch.

Reports, the policy and the studies are functions of an `AuditResult` and of nothing else. A number
that isn't known is ``None`` with a status that says why, never NaN, infinity or a made-up value.

Units: every error (``*_rmse``, ``i2f*``, ``map_*``) is a root mean square per input coordinate in
data units (pixels in [0, 1] unless the data says otherwise); noise standard deviations are per
released entry; ``revealed_fraction`` is a share of the input's dimension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from riskaudit.errors import ResultError
from riskaudit.files import write_file
from riskaudit.results.base import Estimate, Record, Status, SuccessProbability, Target, Verdict
from riskaudit.results.consistency import check_consistency
from riskaudit.results.groups import ClassTest, GroupStatistic
from riskaudit.results.studies import Studies, StudyRecord
from riskaudit.results.words import ProxyInfo

SCHEMA_VERSION = 1


class Tool(Record):
    """The program that made the audit."""

    name: str = "riskaudit"
    version: str


class CheckpointInfo(Record):
    """The audited model. ``name`` is a file name without its folder.

    ``assumed`` is what the weights don't show of an architecture that was recognised from them, ``doubt`` why losses
    don't confirm it; with a doubt no sample is "low", no limit is held and no noise is recommended.
    """

    name: str
    sha256: str | None
    architecture: str
    num_parameters: int
    assumed: str | None = None
    doubt: str | None = None


class DataInfo(Record):
    """The audited samples. ``num_samples`` counts those audited, after ``limit``.

    ``target_kind`` is "class numbers", or the type and shape of one sample's target, whose values are private.
    ``doubt`` says why nothing that protects may be claimed of such inputs, where that is so.
    """

    name: str
    sha256: str | None
    num_samples: int
    input_shape: list[int]
    input_range: list[float]
    class_names: list[str] | None = None
    target_kind: str | None = None
    doubt: str | None = None


class NoiseInfo(Record):
    """Noise on the released tensor: ``std`` is its standard deviation per released entry."""

    law: Literal["gaussian", "laplace"]
    std: float


class ReleaseInfo(Record):
    """What leaves the client.

    ``spec`` is the pipeline as ``release`` takes it. An undefended release has no ``noise``; it
    is ranked at ``reference_noise_std``, which the client does not add.
    """

    steps: list[str]
    spec: str = "gradient"
    noise: NoiseInfo | None
    defended: bool
    coupling: Literal["per_sample", "joint"] = "per_sample"
    reference_noise_std: float | None = None


class PriorInfo(Record):
    """What the attacker is taken to know of the input beforehand, in data units.

    ``mean`` and ``std`` are of one coordinate: the average over coordinates, and the root mean square of the
    standard deviations. ``num_images`` is how many samples the prior was fitted to, ``class_counts`` how many of
    each class, ``fallback_classes`` the classes of the audited data that were too rare for a prior of their own.
    """

    kind: str
    mean: float
    std: float
    source: str | None = None
    sha256: str | None = None
    num_images: int | None = None
    class_counts: dict[str, int] | None = None
    fallback_classes: list[int] = Field(default_factory=list)


class ThreatModel(Record):
    """Who the attacker is.

    ``evaluation`` is "deployment" where the audited release is what a client computes, "diagnostic"
    where it differs (``reason`` says how).
    """

    weights_known: bool = True
    labels_known: bool = True
    rest_of_batch_known: bool = True
    evaluation: Literal["diagnostic", "deployment"] = "deployment"
    reason: str | None = None


class Thresholds(Record):
    """Verdict per sample: "high" above ``high``, "medium" from ``medium`` on, else "low"."""

    high: float = 0.5
    medium: float = 0.1


class Settings(Record):
    """Everything that decides the numbers, and why the solver is what it is.

    ``tolerance`` is the solver's relative error (``solver_tolerance``), not that of a reconstruction. Options that a
    later version records are kept where they are plain values.
    """

    model_config = ConfigDict(extra="allow")

    seed: int
    device: str
    dtype: str
    solver: str
    inverse: str
    solver_reason: str | None = None
    inverse_reason: str | None = None
    loss: str = "cross-entropy"
    batch_size: int | None = None
    tolerance: float | None = None
    max_matvecs: int | None = None
    precision: float | None = None
    budget_seconds: float | None = None
    jacobian: str | None = None
    jacobian_reason: str | None = None
    confidence: float | None = None
    target_rmse: float | None = None
    thresholds: Thresholds = Thresholds()
    normalization_mean: list[float] | None = None
    normalization_std: list[float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_plain_values(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: value for name, value in values.items() if name in cls.model_fields or _is_plain(value)}


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))


class Cost(Record):
    """What the audit cost; differs between runs of the same seed."""

    seconds: float
    matvecs: int
    peak_memory_bytes: int | None


class SolverEvidence(Record):
    """How a linear-algebra result came about. ``residual`` is relative."""

    method: str
    status: Status
    value: float | None = None
    low: float | None = None
    high: float | None = None
    residual: float | None = None
    matvecs: int = 0


class NoiseTarget(Record):
    """Smallest Gaussian noise std per released entry for which posterior_rmse is sure to reach the target.

    "exact" where all eigenvalues are known; "bracketed" where its interval's lower end reaches the target, so
    that less noise may be enough.
    """

    target_rmse: float
    std: float | None
    status: Status = "exact"


class SampleRow(Record):
    """One audited sample. A sample that failed stays, with a reason.

    ``target`` is a class number; another target is there only when the user asked to show the samples.
    ``image_png`` (base64) holds the private input and is there only when the user asked to show it.
    ``predicted_rmse`` is the RMSE of the Bayes-optimal attack with its 90 % predictive interval: a single
    outcome, not a mean. ``calibrated`` holds, per proxy id, the interval that a calibration gives it.
    ``concentration`` is the number of coordinates over that of those that the release depends on, where these are fewer
    than half, else 1: verdicts and limits go by the revealed fraction times this, the mean over what is reached.
    """

    id: str
    target: Target | None
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
    image_png: str | None = None


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
    share of samples that may go without a number.
    """

    decision: Literal["allow", "warn", "block"]
    reasons: list[str]
    limits: dict[str, float]
    source: str
    exceeded: list[str] = Field(default_factory=list)
    max_unassessed: float = 0.0


class AuditResult(Record):
    """A whole audit, as it stands in audit.json."""

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
    samples: list[SampleRow]
    classes: list[ClassRow] = Field(default_factory=list)
    fairness: Fairness = Fairness()
    noise_curve: list[NoiseCurvePoint] = Field(default_factory=list)
    noise_needed: list[NoiseNeed] = Field(default_factory=list)
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

    def to_json(self) -> str:
        """The audit as indented JSON with a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "audit.json") -> AuditResult:
        """Read an audit from JSON; ``name`` is for messages.

        Raises:
            ResultError: not JSON, another schema version, or a field that doesn't fit.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ResultError(f"expected an audit as JSON in {name}, found something else ({error})") from error
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise ResultError(
                f"expected schema_version {SCHEMA_VERSION} in {name}, found {version!r}; "
                "run the scan again or use the riskaudit that wrote the file"
            )
        try:
            result = cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ResultError(f"{name} does not follow schema {SCHEMA_VERSION}: {field}: {first['msg']}") from error
        check_consistency(result, name)
        return result

    def save(self, path: str | Path) -> None:
        """Write the audit as JSON, in one step.

        Raises:
            OutputError: the place can't be written.
        """
        shown = any(row.image_png is not None for row in self.samples)
        write_file(Path(path), self.to_json().encode(), private=shown)

    @classmethod
    def load(cls, path: str | Path) -> AuditResult:
        """Read an audit that `save` or the command line wrote.

        Raises:
            ResultError: the file is missing or isn't an audit.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ResultError(f"can't read {path}: {error.strerror or error}") from error
        return cls.from_json(content, name=path.name)
