"""What an attestation of an upload says: typed rows, JSON in and out (schema 1). Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

from pydantic import Field
from typing_extensions import override

from riskaudit.errors import ResultError
from riskaudit.results.base import Record, VersionedRecord
from riskaudit.results.subject import Tool

Claim: TypeAlias = Literal["norm", "noise", "contract"]
Outcome: TypeAlias = Literal["as_declared", "not_as_declared", "could_not_tell"]
TestStatus: TypeAlias = Literal["as_declared", "not_as_declared", "could_not_tell", "not_applicable"]
Severity: TypeAlias = Literal["error", "warning", "note"]
CLAIMS: tuple[Claim, ...] = ("norm", "noise", "contract")
# Stands wherever an outcome does.
NO_PROOF = (
    "As declared means that no test refuted it, at the error rates that they state; whether the "
    "declaration protects anybody is for an audit."
)


class AttestationTest(Record):
    """One test of an upload against what was declared.

    Attributes:
        id: of the test.
        title: for readers.
        claim: that it is about.
        status: "not_as_declared" where it rejects; "as_declared" where it doesn't and would have with a probability of
            80 % at least; "could_not_tell" where it doesn't and might not have.
        tensor: name of the tensor that it rejects for, where it is about single ones.
        value: the statistic.
        low: least value that it accepts; None where there is none.
        high: likewise the largest.
        false_alarm: probability, at most, that it rejects an upload that is as declared; 0 where nothing is random.
        power: probability, at least, that it rejects one that isn't, as ``power_at`` says; None where unknown.
        power_at: the deviation that the power is of.
        reason: a sentence without any private value.
    """

    id: str
    title: str
    claim: Claim
    status: TestStatus
    tensor: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    false_alarm: float | None = None
    power: float | None = None
    power_at: str | None = None
    reason: str


class LintFinding(Record):
    """Something in a declaration, a policy or a guard's settings that hardly is what was meant.

    Attributes:
        id: stable.
        title: for readers.
        severity: "error" where the declaration doesn't say what it is taken for.
        message: what was seen.
        advice: one sentence: what to do.
    """

    id: str
    title: str
    severity: Severity
    message: str
    advice: str


class DeclarationInfo(Record):
    """What was declared of the upload.

    ``clip_norm`` bounds the 2-norm of what leaves before noise, ``noise_std`` is per entry of what leaves;
    ``num_samples`` says over how many samples the upload is a mean, where that is known.
    """

    release: str
    clip_norm: float | None = None
    noise_law: Literal["gaussian", "laplace"] | None = None
    noise_std: float | None = None
    num_samples: int | None = None
    sensitivity: float | None = None
    noise_multiplier: float | None = None
    loss: str | None = None


class VectorFile(Record):
    """A file of tensors. ``name`` is without its folder."""

    name: str
    sha256: str | None
    num_tensors: int
    num_entries: int
    dtypes: list[str]


class Attestation(VersionedRecord):
    """A whole attestation, as it stands in attestation.json.

    ``not_told`` says what no test of one upload can tell; ``would_tell`` what to hand over, the surest first, where
    norm or noise could not be told.
    """

    file_name: ClassVar[str] = "attestation.json"
    noun: ClassVar[str] = "an attestation"
    remedy: ClassVar[str] = "attest again"

    schema_version: Literal[1] = 1
    title: str = "Attestation of an upload"
    tool: Tool
    created_at: str
    command: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    update: VectorFile
    declared: DeclarationInfo
    received: VectorFile | None = None
    clean: VectorFile | None = None
    false_alarm: float
    outcome: Outcome
    tests: list[AttestationTest]
    findings: list[LintFinding] = Field(default_factory=list)
    not_told: list[str] = Field(default_factory=list)
    would_tell: list[str] = Field(default_factory=list)

    @property
    def rejections(self) -> list[AttestationTest]:
        """The tests that the upload fails."""
        return [test for test in self.tests if test.status == "not_as_declared"]

    @property
    def undecided(self) -> list[AttestationTest]:
        """The tests of claims that nothing else decides."""
        claims = {claim for claim in CLAIMS if outcome_of_claim(self.tests, claim) == "could_not_tell"}
        return [test for test in self.tests if test.claim in claims and test.status == "could_not_tell"]

    @property
    def errors(self) -> list[LintFinding]:
        """What is wrong with the declaration itself."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.rejections:
            names = ", ".join(dict.fromkeys(test.id for test in self.rejections))
            return f"{self.update.name} is not as declared: {names}"
        if self.errors:
            names = ", ".join(dict.fromkeys(finding.id for finding in self.errors))
            return f"the declaration of {self.update.name} is in error: {names}"
        if self.outcome == "could_not_tell":
            claims = ", ".join(dict.fromkeys(test.claim for test in self.undecided)) or "anything"
            return f"could not tell whether {self.update.name} is as declared: {claims}{self._remedy}"
        return f"{self.update.name} is as declared, as far as was tested"

    @property
    def _remedy(self) -> str:
        """What to hand over first, in a clause."""
        return f"; give {self.would_tell[0]}" if self.would_tell else ""

    @override
    def refuse_contradiction(self, name: str) -> None:
        if self.outcome != outcome_of(self.tests):
            raise ResultError(f"{name} says {self.outcome}, against its own tests; attest again")


def outcome_of(tests: Sequence[AttestationTest]) -> Outcome:
    """What all tests say together: nothing is as declared of which nothing was tested."""
    outcomes = [outcome for claim in CLAIMS if (outcome := outcome_of_claim(tests, claim)) is not None]
    if "not_as_declared" in outcomes:
        return "not_as_declared"
    return "could_not_tell" if "could_not_tell" in outcomes or not outcomes else "as_declared"


def outcome_of_claim(tests: Sequence[AttestationTest], claim: Claim) -> Outcome | None:
    """What the tests of one claim say: one that would have noticed is enough; None where none applies."""
    statuses = {test.status for test in tests if test.claim == claim} - {"not_applicable"}
    if not statuses:
        return None
    if "not_as_declared" in statuses:
        return "not_as_declared"
    # Deterministic: what can't be told of a contract isn't made good by its other tests.
    if claim == "contract":
        return "could_not_tell" if "could_not_tell" in statuses else "as_declared"
    return "as_declared" if "as_declared" in statuses else "could_not_tell"
