"""What studies that compare several models keep of each sample under each model, and spreads over samples."""

from __future__ import annotations

from riskaudit.results.base import Estimate, Record, Status


class SampleRisk(Record):
    """One sample under one model.

    Errors are RMSEs in data units. ``attack_rmse`` is that of the strongest attack, ``oracle_rmse`` that of the
    attack that is started at the truth; both None where none ran.
    """

    sample_id: str
    status: Status
    reason: str | None = None
    loss: float | None = None
    gradient_norm: float | None = None
    largest_eigenvalue: float | None = None
    trace: float | None = None
    expected_rmse: Estimate
    posterior_rmse: Estimate
    revealed_fraction: Estimate
    attack_rmse: float | None = None
    oracle_rmse: float | None = None


class Quartiles(Record):
    """Median and quartiles of ``num_values`` numbers.

    A quartile is None where it is infinite: of ``num_values``, ``num_infinite`` are (an error that no finite number
    describes, since the release is singular).
    """

    lower: float | None
    median: float | None
    upper: float | None
    num_values: int
    num_infinite: int = 0
