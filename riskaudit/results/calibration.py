"""``calibration.json``: how far attacks strayed from their prediction, for later scans of the same release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from riskaudit.errors import ResultError
from riskaudit.results.base import FileRecord, Record, first_fault, read_file
from riskaudit.results.subject import CheckpointInfo, DataInfo, PriorInfo, Tool


class CalibrationLevel(Record):
    """One noise level.

    On new samples the strongest attack's RMSE lies between ``low_factor`` and ``high_factor`` times the prediction
    with probability ``coverage``, if they are exchangeable with the ``num_samples``; a factor is None where these
    were too few. ``ratios`` are attack RMSE / prediction, ascending.
    """

    noise_std: float
    proxy: Literal["map_rmse", "posterior_rmse"]
    num_samples: int
    low_factor: float | None
    high_factor: float | None
    ratios: list[float]


class Calibration(FileRecord):
    """The file that ``riskaudit calibrate`` writes. ``binding`` is a hash of weights, loss, release and prior."""

    schema_version: Literal[1] = 1
    tool: Tool
    created_at: str
    command: str | None = None
    binding: str
    checkpoint: CheckpointInfo
    data: DataInfo
    release: str
    prior: PriorInfo
    coverage: float
    attacks: list[str]
    levels: list[CalibrationLevel]

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a calibration.

        Raises:
            ResultError: the file is missing or isn't one.
        """
        name = Path(path).name
        try:
            content = json.loads(read_file(path))
        except (ValueError, RecursionError) as error:
            raise ResultError(f"expected a calibration as JSON in {name}, found something else") from error
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            fault = first_fault(error)
            raise ResultError(f"{name} is no calibration that riskaudit calibrate wrote: {fault}") from error
