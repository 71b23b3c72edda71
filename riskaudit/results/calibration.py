"""``calibration.json``: how far attacks strayed from their prediction, for later scans of the same release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from riskaudit.errors import ResultError
from riskaudit.files import write_file
from riskaudit.results.audit import CheckpointInfo, DataInfo, PriorInfo, Tool
from riskaudit.results.base import Record


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


class Calibration(Record):
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

    def save(self, path: str | Path) -> None:
        """Write as JSON, in one step.

        Raises:
            OutputError: the place can't be written.
        """
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_file(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a calibration.

        Raises:
            ResultError: the file is missing or isn't one.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise ResultError(f"can't read {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise ResultError(f"expected a calibration as JSON in {path.name}, found something else") from error
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ResultError(
                f"{path.name} is no calibration that riskaudit calibrate wrote: {field}: {first['msg']}"
            ) from error
