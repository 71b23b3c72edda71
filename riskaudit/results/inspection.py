"""What an inspection of a received model found: typed rows, JSON in and out (schema 1). Nothing here needs torch."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from pydantic import Field
from typing_extensions import override

from riskaudit.errors import ResultError
from riskaudit.results.base import Record, VersionedRecord
from riskaudit.results.subject import CheckpointInfo, DataInfo, Tool

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


class InspectionResult(VersionedRecord):
    """A whole inspection, as it stands in inspection.json.

    ``flagged`` says whether any sign is, ``failed`` whether any came to no number for another reason than that it
    doesn't apply.
    """

    file_name: ClassVar[str] = "inspection.json"
    noun: ClassVar[str] = "an inspection"
    remedy: ClassVar[str] = "inspect again"

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

    @override
    def refuse_contradiction(self, name: str) -> None:
        if self.flagged != bool(self.flags):
            raise ResultError(f"{name} says flagged = {self.flagged}, against its own rows; inspect again")
