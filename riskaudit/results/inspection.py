"""What an inspection of a received model found: typed rows, JSON in and out (schema 1). Nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field, ValidationError

from riskaudit.errors import ResultError
from riskaudit.files import write_file
from riskaudit.results.base import FileRecord, Record, first_fault, read_file
from riskaudit.results.subject import CheckpointInfo, DataInfo, Tool

SCHEMA_VERSION = 1
SignStatus: TypeAlias = Literal["judged", "not_applicable", "failed"]
# Stands wherever a verdict does.
NO_PROOF = (
    "Signs are no proof: honest models can show them, and a server that knows these can avoid them. That nothing was "
    "flagged doesn't mean that updates are safe."
)


class SignInfo(Record):
    """A sign, for readers: what it means where it is flagged, and what else can have caused it."""

    id: str
    title: str
    summary: str
    innocent: str
    source: str
    units: str
    threshold: float


class SignRow(Record):
    """One sign at one layer.

    Attributes:
        id: of the sign.
        layer: name in the model; None where the sign is of no layer.
        status: "judged", or why there is no number.
        value: the number.
        reference: median of the models that it is held against; None without any.
        z: distance to the reference in its spreads.
        previous: the number of the previous round's model, where that is known.
        flagged: whether it is far from what honest models show.
        reason: a sentence.
    """

    id: str
    layer: str | None = None
    status: SignStatus = "judged"
    value: float | None = None
    reference: float | None = None
    z: float | None = None
    previous: float | None = None
    flagged: bool = False
    reason: str


class Comparison(Record):
    """What the received model was held against.

    ``not_judged`` says in sentences what this couldn't show.
    """

    schemes: list[str]
    num_models: int
    previous: CheckpointInfo | None = None
    not_judged: list[str] = Field(default_factory=list)


class InspectionSettings(Record):
    """What decides the numbers besides the model and the samples; ``num_samples`` is how many of these were used."""

    seed: int
    batch_size: int
    num_samples: int
    loss: str = "cross-entropy"


class InspectionResult(FileRecord):
    """A whole inspection, as it stands in inspection.json.

    ``flagged`` says whether any sign is, ``failed`` whether any came to no number for another reason than that it
    doesn't apply.
    """

    schema_version: Literal[1] = 1
    title: str = "Inspection of a received model"
    tool: Tool
    created_at: str
    command: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    checkpoint: CheckpointInfo
    data: DataInfo
    compared_with: Comparison
    settings: InspectionSettings
    seconds: float
    flagged: bool
    signs: list[SignRow]
    sign_infos: list[SignInfo] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)

    @property
    def flags(self) -> list[SignRow]:
        """The rows that are flagged, farthest first."""
        rows = [row for row in self.signs if row.flagged]
        return sorted(rows, key=lambda row: -abs(row.z or 0.0))

    @property
    def failures(self) -> list[SignRow]:
        """The rows without a number that should have one."""
        return [row for row in self.signs if row.status == "failed"]

    @property
    def verdict(self) -> str:
        """One sentence: which sign, at which layer, or that there is none."""
        titles = {info.id: info.title for info in self.sign_infos}
        if self.flags:
            shown = [f"{row.id} at {row.layer}" if row.layer else row.id for row in self.flags[:3]]
            more = f" and {len(self.flags) - 3} more" if len(self.flags) > 3 else ""
            return f"the received model shows signs of having been changed to leak: {', '.join(shown)}{more}"
        if self.failures:
            names = ", ".join(dict.fromkeys(row.id for row in self.failures))
            return f"the inspection is incomplete, since {names} failed; that is no sign of safety"
        judged = {row.id for row in self.signs if row.status == "judged"}
        if not judged:
            return "no sign could be judged; that is no sign of safety"
        return f"none of {len(judged)} of {len(titles)} signs is flagged"

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "inspection.json") -> InspectionResult:
        """Read an inspection from JSON; ``name`` is for messages.

        Raises:
            ResultError: not JSON, another schema version, a field that doesn't fit, or a verdict against its own rows.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ResultError(f"expected an inspection as JSON in {name}, found something else ({error})") from error
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise ResultError(
                f"expected schema_version {SCHEMA_VERSION} in {name}, found {version!r}; "
                "inspect again or use the riskaudit that wrote the file"
            )
        try:
            result = cls.model_validate(document)
        except ValidationError as error:
            raise ResultError(f"{name} does not follow schema {SCHEMA_VERSION}: {first_fault(error)}") from error
        if result.flagged != bool(result.flags):
            raise ResultError(f"{name} says flagged = {result.flagged}, against its own rows; inspect again")
        return result

    def save(self, path: str | Path) -> None:
        """Write the inspection as JSON, in one step.

        Raises:
            OutputError: the place can't be written.
        """
        write_file(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> InspectionResult:
        """Read an inspection that `save` or the command line wrote.

        Raises:
            ResultError: the file is missing or isn't an inspection.
        """
        return cls.from_json(read_file(path), name=Path(path).name)
