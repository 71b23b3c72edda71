"""What reviews and assessments say."""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from riskaudit.errors import RiskauditError
from riskaudit.inputs.text import listing
from riskaudit.policy import Exposure, Range
from riskaudit.version import __version__

FORGETS = (
    "without a ledger, noise and sanitised updates are remembered until this process ends: a later one can't tell "
    "whether noise comes again"
)
# Names of entries that a sentence lists.
LISTED = 3
Action = Literal["allow", "warn", "sanitise", "block"]


@dataclass(frozen=True, eq=False)
class Decision:
    """Whether an update may leave, or which samples may go into one that isn't made yet, and why.

    Attributes:
        action: "allow" and "warn" send the update as it is (let all samples into it), "sanitise" another one (those in
            ``kept``), "block" none. ``noise_std``, ``dropped``, ``reset`` and ``reasons`` say what sanitising did.
        update: what may be sent, in the form it was handed in; None when blocked, and of an assessment.
        reasons: sentences without any private input.
        exposures: per sample, what the update that may be sent reveals (of a blocked one: would have revealed);
            empty where the review came to no number.
        round: number of the review in the log, or the caller's.
        noise_std: of the Gaussian noise that sanitising added to every entry of the update; 0 without.
        dropped: how many samples sanitising left out.
        reset: names of the entries that aren't trained and are sent as they were received, though the training had
            changed them; without noise, dropped samples or clipping the trained weights leave as they are.
        model_digest: SHA-256 of the weights that were reviewed; empty where the review failed before.
        update_digest: SHA-256 of ``update``; empty when blocked.
        seconds: that the review took.
        products: products with H that it took, over all samples.
        warnings: sentences without any private input about what the numbers rest on, such as losses no better than
            guessing; they change no action.
        note: something of the guard itself that is said once, no reason for this decision; empty otherwise.
        kept: of an assessment, places in the batch of the samples that may go into the update.
        attestation: of what leaves, whether it is as declared: outcome, tests with their error rates, and what is odd
            in the settings (docs/attest.md); None where a review came to no update.
    """

    action: Action
    update: Any
    reasons: list[str]
    exposures: list[Exposure] = field(default_factory=list)
    round: int | None = None
    noise_std: float = 0.0
    dropped: int = 0
    reset: list[str] = field(default_factory=list)
    model_digest: str = ""
    update_digest: str = ""
    seconds: float = 0.0
    products: int = 0
    warnings: list[str] = field(default_factory=list)
    note: str = ""
    kept: list[int] = field(default_factory=list)
    attestation: dict[str, Any] | None = None

    @property
    def allowed(self) -> bool:
        """Whether anything may be sent."""
        return self.update is not None

    def withheld(self, reasons: Sequence[str]) -> Decision:
        """The decision once nothing may leave after all, for these reasons."""
        return replace(self, action="block", update=None, update_digest="", reasons=list(reasons))

    def with_reset(self, names: Sequence[str]) -> Decision:
        """The decision once entries of these names, which aren't trained, are sent as they were received."""
        if not names or self.update is None:
            return self
        reason = f"{listing(names, LISTED)} reset to what was received, since nobody reviews what isn't trained"
        if self.action != "allow":
            return replace(self, reset=list(names), reasons=[*self.reasons, reason])
        reason += "; the trained weights leave as they are"
        return replace(self, action="sanitise", reset=list(names), reasons=[reason, *self.reasons])

    def log_entry(self, settings: dict[str, object]) -> dict[str, Any]:
        """What the log gets of it: numbers, digests and sentences, never an input.

        Args:
            settings: of the guard, and where its ledger stands, under the names that the line has them by.
        """
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "round": self.round,
            "decision": self.action,
            "reasons": self.reasons,
            "warnings": self.warnings,
            **({"note": self.note} if self.note else {}),
            **settings,
            "samples": [_numbers(exposure) for exposure in self.exposures],
            **({"attestation": self.attestation} if self.attestation else {}),
            "noise_std": self.noise_std,
            "dropped": self.dropped,
            **({"reset": self.reset} if self.reset else {}),
            "seconds": round(self.seconds, 6),
            "products": self.products,
            "model_sha256": self.model_digest,
            "update_sha256": self.update_digest,
            "versions": {"riskaudit": __version__, "torch": str(torch.__version__)},
        }


def name_error(error: BaseException) -> str:
    """An error of third-party code without its words, which may hold private data: its kind and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    line = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{line}"


def describe(error: BaseException, otherwise: str = "the review failed with ") -> str:
    """An error as a reason: riskaudit's own sentence, or ``otherwise`` and what may be said of any other error."""
    return str(error) if isinstance(error, RiskauditError) else f"{otherwise}{name_error(error)}"


def _numbers(exposure: Exposure) -> dict[str, Any]:
    intervals = {"revealed": exposure.revealed, "rmse": exposure.rmse, "total": exposure.total_revealed}
    if exposure.informed_revealed is not None:
        intervals |= {"informed_revealed": exposure.informed_revealed, "informed_rmse": exposure.informed_rmse}
    return {"id": exposure.id, **{name: _ends(interval) for name, interval in intervals.items()}}


def _ends(interval: Range | None) -> list[float] | None:
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return None
    return [interval.low, interval.high]
