"""What of a release an attacker who knows its defences goes by.

Some steps spoil the entries of single parameters for a matching and leave all others as they are (`Step.spoiled`).
Whoever leaves those parameters out has an undefended rest (Balunovic et al., ICLR 2022, equation 6, on Soteria).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from riskaudit.release.base import Release
from riskaudit.release.grammar import Part, ReleaseSpec
from riskaudit.release.steps import Step, StepContext
from riskaudit.release.steps.share import Share

AnyRelease = TypeVar("AnyRelease", bound=Release)


def without_spoiled(release: AnyRelease) -> AnyRelease | None:
    """The release without the parameters that its steps spoil; None where they spoil none.

    Raises:
        ReleaseError: nothing else is sent.
    """
    context, spoiled = release.context, set[str]()
    for step in release.spec.all_steps:
        spoiled |= step.spoiled(context)
        context = step.context_after(context)
    return left_out(release, sorted(spoiled)) if spoiled else None


def left_out(release: AnyRelease, parameters: Sequence[str]) -> AnyRelease:
    """The release without the entries of some parameters.

    Steps that do nothing but spoil parameters are taken to spoil these, and are left out with them: to make their
    choices at every guess is dear.

    Args:
        release: of any coupling.
        parameters: by name; of each something is sent.

    Raises:
        ReleaseError: nothing else is sent.
    """
    share = Share("+".join(f"!{name}" for name in parameters))
    spec = _without_spoiling_steps(release.spec, release.context)
    if spec.noise is None:
        return release.with_spec(replace(spec, steps=(*spec.steps, share)))
    return release.with_spec(replace(spec, steps_after_noise=(*spec.steps_after_noise, share)))


def _without_spoiling_steps(spec: ReleaseSpec, context: StepContext) -> ReleaseSpec:
    """The description without steps that spoil parameters and leave all others alone."""
    kept: list[Part] = []
    for place, part in enumerate(spec.steps):
        later = [other for other in spec.steps[place + 1 :] if isinstance(other, Step)]
        if not isinstance(part, Step):
            kept.append(part)
            continue
        # What comes later may spread what the step does over other entries, as clipping does.
        spreads = not all(other.keeps_noise or other.redrawn or other.spoiled(context) for other in later)
        if not part.spoiled(context) or spreads:
            kept.append(part)
        context = part.context_after(context)
    return replace(spec, steps=tuple(kept))
