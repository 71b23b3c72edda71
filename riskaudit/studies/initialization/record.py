"""What ``riskaudit study initialization`` adds to an audit, under ``studies.initialization``.

Errors are RMSEs in data units, larger is safer.
"""

from __future__ import annotations

from pydantic import Field

from riskaudit.results.base import Record
from riskaudit.studies.rows import ModelsStudy, Quartiles, SampleRisk

# Initializations for readers.
TITLES = {
    "uniform": "uniform (−0.5, 0.5)",
    "normal": "normal, same variance",
    "kaiming_uniform": "Kaiming uniform",
    "kaiming_normal": "Kaiming normal",
    "xavier_uniform": "Xavier uniform",
    "xavier_normal": "Xavier normal",
    "orthogonal": "orthogonal",
    "default": "PyTorch's default",
    "checkpoint": "the checkpoint itself",
}


class InitializationTrial(Record):
    """One initialization with one seed.

    Attributes:
        initialization: name of the initialization.
        number: number of the seed, from 0; null for the checkpoint itself.
        samples: one entry for each sample.
        attack_notes: what a reader must know of the attacks, one sentence each.
        reason: one sentence on why there are no samples; null where there are some.
    """

    initialization: str
    number: int | None
    samples: list[SampleRisk] = Field(default_factory=list)
    attack_notes: list[str] = Field(default_factory=list)
    reason: str | None = None


class InitializationRow(Record):
    """One initialization over its seeds and all samples.

    Attributes:
        initialization: name of the initialization.
        description: what the initialization is, for readers.
        num_seeds: number of seeds.
        num_failed_seeds: number of seeds that gave no number.
        num_failed_samples: number of samples without a number, over all seeds.
        rank: place by leakage, 1 for the least; null where it can't be ranked.
        largest_eigenvalue: largest eigenvalue l_1 of J^T J, in released units over data units, squared.
        trace: trace of J^T J, in the same units.
        expected_rmse: error of the proxy of this id, a root mean square per coordinate in data units.
        posterior_rmse: posterior error, a root mean square per coordinate in data units.
        revealed_fraction: revealed fraction, 0 to 1.
        attack_rmse: RMSE of the strongest attack, in data units; null where none ran.
        oracle_rmse: RMSE of the attack that is started at the truth, in data units; null where it didn't run.
        low: lower end of the bootstrap interval of the median posterior error over samples and seeds, in data units;
            null where there is none.
        high: upper end of this interval.
        difference: the best initialization's median posterior error minus this one's, in data units; null where there
            is none.
        difference_low: lower end of its paired bootstrap interval; null where there is none.
        difference_high: upper end of this interval.
        told_apart: whether the interval leaves out 0; null where there is none, and for the best itself (which the
            checkpoint can't be).
        reasons: which seeds or samples gave no number, one sentence each.
    """

    initialization: str
    description: str
    num_seeds: int
    num_failed_seeds: int = 0
    num_failed_samples: int = 0
    rank: int | None = None
    largest_eigenvalue: Quartiles | None = None
    trace: Quartiles | None = None
    expected_rmse: Quartiles | None = None
    posterior_rmse: Quartiles | None = None
    revealed_fraction: Quartiles | None = None
    attack_rmse: Quartiles | None = None
    oracle_rmse: Quartiles | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    told_apart: bool | None = None
    reasons: list[str] = Field(default_factory=list)


class InitializationStudy(ModelsStudy):
    """What ``riskaudit study initialization`` found: how much each initialization leaks.

    Attributes:
        num_seeds: number of seeds of each initialization.
        confidence: confidence of all intervals, 0 to 1.
        rows: one entry for each initialization, least leakage first, failed ones last.
        trials: one entry for each initialization and seed.
        recommended: name of the initialization that leaks least; null where the numbers support none.
        recommendation: what is recommended and why, in words.
    """

    num_seeds: int
    confidence: float
    rows: list[InitializationRow]
    trials: list[InitializationTrial]
    recommended: str | None = None
    recommendation: str
