"""What was audited and how: model, data, release, prior, attacker, settings and cost, as they stand in audit.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from riskaudit.results.base import Record
from riskaudit.results.tables import EncodingInfo
from riskaudit.results.texts import TextInfo


class Tool(Record):
    """The program that made the audit."""

    name: str = "riskaudit"
    version: str


class CheckpointInfo(Record):
    """The audited model. ``name`` is a file name without its folder.

    ``assumed`` is what the weights don't show of an architecture that was recognised from them, ``doubt`` why losses
    don't confirm it; with a doubt no sample is "low", no limit is held and no noise is recommended. ``bottleneck_draw``
    is the number of the draw of its noise where the model has a variational bottleneck (PRECODE), the first of
    ``num_bottleneck_draws`` that follow each other.
    """

    name: str
    sha256: str | None
    architecture: str
    num_parameters: int
    assumed: str | None = None
    doubt: str | None = None
    bottleneck_draw: int | None = None
    num_bottleneck_draws: int = 0


class DataInfo(Record):
    """The audited samples. ``num_samples`` counts those audited, after ``limit``.

    ``target_kind`` is "class numbers", or the type and shape of one sample's target, whose values are private.
    ``doubt`` says why nothing that protects may be claimed of such inputs, where that is so. ``num_unaudited`` of them
    were left out of a run that isn't complete: no policy allows such a result.
    ``text`` is there where they are texts. ``encoding`` says how the columns of a
    table became the inputs.
    """

    name: str
    sha256: str | None
    num_samples: int
    input_shape: list[int]
    input_range: list[float]
    class_names: list[str] | None = None
    target_kind: str | None = None
    doubt: str | None = None
    num_unaudited: int = Field(default=0, ge=0)
    text: TextInfo | None = None
    encoding: EncodingInfo | None = None


class NoiseInfo(Record):
    """Noise on the released tensor: ``std`` is its standard deviation per released entry."""

    law: Literal["gaussian", "laplace"]
    std: float


Attacker = Literal["informed", "outsider"]


class ReleaseInfo(Record):
    """What leaves the client.

    ``spec`` is the pipeline as ``release`` takes it. An undefended release has no ``noise``; it
    is ranked at ``reference_noise_std``, which the client does not add. Where several samples leave together there are
    ``upload_size`` in each, and verdicts and limits go by the numbers of ``attacker``: "informed" knows all others of
    the upload, "outsider" none. ``batch_norm`` says which statistics batch norm took, where the model has any.
    ``adapted`` is the release that an attacker goes by who leaves out what steps spoil; every sample was audited as
    both, and of each number the riskier stands.
    """

    steps: list[str]
    spec: str = "gradient"
    noise: NoiseInfo | None
    defended: bool
    coupling: Literal["per_sample", "joint"] = "per_sample"
    upload_size: int | None = None
    attacker: Attacker | None = None
    batch_norm: Literal["running", "batch"] | None = None
    num_entries: int | None = None
    reference_noise_std: float | None = None
    adapted: str | None = None


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
    """What the audit cost; differs between runs of the same seed.

    An audit that was merged from shards has no ``seconds``, which depend on who worked.
    """

    seconds: float | None
    matvecs: int
    peak_memory_bytes: int | None
