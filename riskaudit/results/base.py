"""What every row of a result has in common. Nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from riskaudit.errors import ResultError
from riskaudit.files import write_file

Status: TypeAlias = Literal["exact", "converged", "bracketed", "not_converged", "singular", "not_applicable", "failed"]
Verdict: TypeAlias = Literal["high", "medium", "low", "not_assessed"]
Target: TypeAlias = int | float | list[float]


# Of audits, inspections and attestations.
SCHEMA_VERSION = 1
# Statuses of numbers that may be relied on; a number with any other one is never "safe".
RELIABLE: frozenset[Status] = frozenset({"exact", "converged", "bracketed"})


class Record(BaseModel):
    """Base of every row: immutable, no NaN or infinity, unknown keys of later versions ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class FileRecord(Record):
    """A record that is a file of its own."""

    def to_json(self) -> str:
        """The record as indented JSON with a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, in one step.

        Raises:
            OutputError: the place can't be written.
        """
        write_file(Path(path), self.to_json().encode())


class VersionedRecord(FileRecord):
    """A file whose content is judged before it is believed.

    Attributes:
        file_name: that the command line writes it under.
        noun: what it is, for messages.
        remedy: what to do about a file of another version.
    """

    file_name: ClassVar[str]
    noun: ClassVar[str]
    remedy: ClassVar[str]

    def refuse_contradiction(self, name: str) -> None:
        """Refuse a record that contradicts itself; ``name`` is for the message.

        Raises:
            ResultError: the contradiction, in one sentence.
        """

    @classmethod
    def from_json(cls, text: str | bytes, name: str | None = None) -> Self:
        """Read the record from JSON; ``name`` of the file is for messages.

        Raises:
            ResultError: not JSON, another schema version, a field that doesn't fit, or a contradiction.
        """
        name = cls.file_name if name is None else name
        result = cls.parse(text, name)
        result.refuse_contradiction(name)
        return result

    @classmethod
    def parse(cls, text: str | bytes, name: str) -> Self:
        """The same, whatever it contradicts.

        Raises:
            ResultError: not JSON, another schema version, or a field that doesn't fit.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ResultError(f"expected {cls.noun} as JSON in {name}, found something else ({error})") from error
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise ResultError(
                f"expected schema_version {SCHEMA_VERSION} in {name}, found {version!r}; "
                f"{cls.remedy} or use the riskaudit that wrote the file"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ResultError(f"{name} does not follow schema {SCHEMA_VERSION}: {first_fault(error)}") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a record that `save` or the command line wrote.

        Raises:
            ResultError: the file is missing or isn't one.
        """
        return cls.from_json(read_file(path), name=Path(path).name)


def read_file(path: str | Path) -> bytes:
    """A file's content.

    Raises:
        ResultError: it can't be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ResultError(f"can't read {path}: {error.strerror or error}") from error


def first_fault(error: ValidationError, whole: str = "") -> str:
    """The first field that doesn't fit, and why; ``whole`` names the record itself."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or whole}: {first['msg']}"


class Estimate(Record):
    """A number with what is known of it: an interval where one is known, and a status.

    Attributes:
        value: the number; null where none is known, and for intervals too wide for a point value.
        low: lower end of the interval that it surely lies in; null where none is known.
        high: upper end of the interval that it surely lies in; null where none is known.
        status: how far it may be relied on: "exact"; "converged" to the solver's tolerance; "bracketed" by the two
            ends; any other gives nothing to rely on.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    status: Status

    @property
    def reliable(self) -> float | None:
        """The value, where it may be relied on."""
        return self.value if self.status in RELIABLE else None

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """The lower and the upper end of what may be relied on: the value, where it has no interval."""
        if self.status not in RELIABLE:
            return None, None
        return (
            self.value if self.low is None else self.low,
            self.value if self.high is None else self.high,
        )

    @property
    def assessed(self) -> bool:
        """Whether a value or both ends of an interval may be relied on."""
        return self.reliable is not None or None not in self.ends


class SuccessProbability(Record):
    """Probability that the Bayes-optimal attacker comes close to a sample.

    Attributes:
        tolerance: root mean square per coordinate, in data units, that counts as close.
        probability: from 0 to 1; null where only bounds are known.
        low: lower bound, where the probability isn't exact or a calibration widens it.
        high: upper bound likewise.
        status: how far the probability may be relied on.
    """

    tolerance: float
    probability: float | None
    low: float | None = None
    high: float | None = None
    status: Status
