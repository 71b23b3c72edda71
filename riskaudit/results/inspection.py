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
        reference: of the models that it is held against, the median or what the sign says; None without any.
        z: distance to the reference in its spreads.
        previous: the number of the previous round's model, where that is known.
        flagged: whether it is far from what honest models show.
        reason: a sentence.
        samples_needed: with how many samples it would be judged, where that is all that is missing.
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
    samples_needed: int | None = None


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
    def judged(self) -> list[str]:
        """Signs that came to a number at a layer at least, in their order."""
        return list(dict.fromkeys(row.id for row in self.signs if row.status == "judged"))

    @property
    def unjudged(self) -> list[SignRow]:
        """One row of every sign that came to none, with the reason: nothing is known of these, so nothing is safe."""
        judged = self.judged
        return list({row.id: row for row in reversed(self.signs) if row.id not in judged}.values())[::-1]

    @property
    def verdict(self) -> str:
        """One sentence: which sign, at which layer, or that there is none."""
        if self.flags:
            shown = [f"{row.id} at {row.layer}" if row.layer else row.id for row in self.flags[:3]]
            more = f" and {len(self.flags) - 3} more" if len(self.flags) > 3 else ""
            return f"the received model shows signs of having been changed to leak: {', '.join(shown)}{more}"
        if self.failures:
            names = ", ".join(dict.fromkeys(row.id for row in self.failures))
            return f"the inspection is incomplete, since {names} failed; that is no sign of safety"
        if not self.judged:
            return f"no sign could be judged: {self._unjudged_words}; that is no sign of safety"
        if not self.unjudged:
            return f"all {len(self.judged)} signs judged, none flagged"
        total = len(self.judged) + len(self.unjudged)
        return (
            f"{len(self.judged)} of {total} signs judged, none flagged; {len(self.unjudged)} not judged: "
            f"{self._unjudged_words}"
        )

    @property
    def _unjudged_words(self) -> str:
        """The signs that weren't judged, with the number of samples where more would do."""
        return ", ".join(
            row.id if row.samples_needed is None else f"{row.id} (needs {row.samples_needed} samples)"
            for row in self.unjudged
        )

    @override
    def refuse_contradiction(self, name: str) -> None:
        if self.flagged != bool(self.flags):
            raise ResultError(f"{name} says flagged = {self.flagged}, against its own rows; inspect again")
