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
    """The program that made the audit.

    Attributes:
        name: name of the program.
        version: version of the program.
    """

    name: str = "riskaudit"
    version: str


class CheckpointInfo(Record):
    """The audited model.

    Attributes:
        name: name of the file or folder that the weights were read from, without the folder around it.
        sha256: SHA-256 of the weights' file or of a folder's content, in hexadecimal digits; null for a model in
            memory.
        architecture: name of the architecture.
        num_parameters: number of its parameters.
        assumed: what the weights don't show of an architecture that was recognised from them, in words; null where
            nothing is.
        doubt: one sentence on why the losses don't confirm it; with a doubt no sample is "low", no limit is held and no
            noise is recommended; null without one.
        bottleneck_draw: number of the draw of the noise in a variational bottleneck (PRECODE); null without one.
        num_bottleneck_draws: number of draws, which follow each other; 0 without a bottleneck.
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
    """The audited samples, without any of their values.

    Attributes:
        name: name of the file or folder that they were read from, without the folder around it.
        sha256: SHA-256 of the file, or of a folder's names and contents, in hexadecimal digits; null for samples in
            memory.
        num_samples: number of audited samples, after a limit on it.
        input_shape: shape of one sample's input as the model takes it, such as [channels, height, width].
        input_range: the least and the largest value of all inputs, in data units.
        class_names: name of each class, by its number; null where none are known.
        target_kind: "class numbers", or type and shape of one sample's target, whose values are private.
        doubt: one sentence on why nothing that protects may be claimed of such inputs; null without one.
        num_unaudited: number of them that a run that isn't complete left out: no policy allows such a result.
        text: what there is to say where samples are texts; null where they aren't.
        encoding: how the columns of a table became the inputs; null where samples come from no encoded table.
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
    """Noise on the released tensor.

    Attributes:
        law: distribution of each entry's noise.
        std: its standard deviation per released entry.
    """

    law: Literal["gaussian", "laplace"]
    std: float


Attacker = Literal["informed", "outsider"]


class ReleaseInfo(Record):
    """What leaves the client.

    Attributes:
        steps: names of the steps, in their order.
        spec: the whole pipeline, as the option ``--release`` takes it.
        noise: what noise it carries; null where it carries none.
        defended: whether it carries noise.
        coupling: "per_sample" where every sample leaves alone, "joint" where several leave together.
        upload_size: number of samples in one upload, those of all its clients together; null where every sample leaves
            alone.
        attacker: whose numbers verdicts and limits go by: "informed" knows all others of the upload, "outsider" none;
            null where every sample leaves alone.
        batch_norm: statistics that batch norm took, its running ones or those of the batch; null without such layers.
        num_entries: number of entries that leave the client, P.
        reference_noise_std: standard deviation per released entry at which an undefended release is ranked, and which
            the client does not add; null where the release carries noise.
        adapted: the release that an attacker goes by who leaves out what steps spoil; every sample was audited as both,
            and of each number the riskier stands; null where there is none.
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
    """What the attacker is taken to know of the input beforehand.

    Attributes:
        kind: the kind of prior: "isotropic", "data", "class" or "vocabulary".
        mean: mean of one input coordinate, averaged over coordinates, in data units.
        std: standard deviation of one input coordinate, the root mean square over coordinates, in data units.
        source: name of the file or data that it was fitted to; null for one that was not fitted.
        sha256: SHA-256 of this file, in hexadecimal digits; null where it was fitted to no file.
        num_images: number of samples that it was fitted to; null for one that was not fitted.
        class_counts: number of these of each class, by class number; null where there are no classes.
        fallback_classes: numbers of the audited data's classes that were too rare for a prior of their own.
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

    Attributes:
        weights_known: whether the attacker knows the weights.
        labels_known: whether the attacker knows the samples' labels.
        rest_of_batch_known: whether the attacker knows all other samples of an upload.
        evaluation: "deployment" where the audited release is what a client computes, "diagnostic" where it differs.
        reason: one sentence on how it differs; null where it doesn't.
    """

    weights_known: bool = True
    labels_known: bool = True
    rest_of_batch_known: bool = True
    evaluation: Literal["diagnostic", "deployment"] = "deployment"
    reason: str | None = None


class Thresholds(Record):
    """Where verdicts begin, as revealed fractions of the input, 0 to 1.

    Attributes:
        high: a sample is "high" above this.
        medium: a sample is "medium" from this on, else "low".
    """

    high: float = 0.5
    medium: float = 0.1


class Settings(Record):
    """Everything that decides the numbers, and why the solver is what it is.

    Options that a later version records are kept where they are plain values.

    Attributes:
        seed: seed of every random draw.
        device: where the numbers were computed, such as "cpu" or "cuda:0".
        dtype: number format they were computed in: "float64", "float32", or "mixed".
        solver: method that gave the eigenvalues.
        inverse: method that gave the solutions of linear systems.
        solver_reason: why this solver was taken, in words.
        inverse_reason: why this inverse was taken, in words.
        loss: name of the loss that the client trains with.
        batch_size: number of samples in memory at once; null where it isn't known.
        tolerance: relative error at which a solver stops (``solver_tolerance``), not that of a reconstruction.
        max_matvecs: number of matrix products per sample and iteration, at most.
        precision: relative width that certified intervals were to have; null for the default.
        budget_seconds: seconds that the whole run was given; null where it had no limit.
        jacobian: how products with J are made: "structured" by the layers' own formulas, "unrolled" through local
            steps, "generic" or "sample_by_sample" by automatic differentiation.
        jacobian_reason: why, in words.
        confidence: probability with which all certified ends hold together, 0 to 1.
        target_rmse: posterior error that enough noise is to force, in data units.
        thresholds: where verdicts begin.
        normalization_mean: mean that the model subtracts from its input, one number or one for each channel, in data
            units; null where inputs aren't normalised.
        normalization_std: standard deviation that the model divides its input by, likewise.
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
    """What the audit took; differs between runs of the same seed.

    Attributes:
        seconds: wall time in seconds; null for an audit that was merged from shards, which depends on who worked.
        matvecs: number of matrix products over all samples.
        peak_memory_bytes: most memory that the process held at once, in bytes; on a GPU that of the GPU.
    """

    seconds: float | None
    matvecs: int
    peak_memory_bytes: int | None
