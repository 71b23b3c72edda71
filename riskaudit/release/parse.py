"""Reading ``--release``: steps from left to right, separated by commas, values after colons."""

from __future__ import annotations

from difflib import get_close_matches

from riskaudit.errors import ReleaseError
from riskaudit.release.steps import STEPS, Gradient, NoiseStep, Step


def parse_steps(text: str) -> tuple[Step, ...]:
    """Parse a pipeline such as ``"clip:1.0,gaussian:0.01"``; ``gradient`` is put in front if missing.

    Raises:
        ReleaseError: naming the step's position and text.
    """
    steps: list[Step] = []
    for position, part in enumerate(text.split(","), start=1):
        try:
            steps.append(_parse_step(part.strip()))
        except ReleaseError as error:
            raise ReleaseError(f"release step {position} ({part.strip()!r}): {error}") from error
    if not isinstance(steps[0], Gradient):
        steps.insert(0, Gradient())
        offset = 0
    else:
        offset = 1
    check_order(tuple(steps), first_position=offset)
    return tuple(steps)


def _parse_step(text: str) -> Step:
    name, *arguments = text.split(":")
    if name not in STEPS:
        close = get_close_matches(name, STEPS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        known = ", ".join(step.usage for step in STEPS.values())
        raise ReleaseError(f"expected one of {known}, found {text!r}{hint}")
    return STEPS[name].parse(arguments)


def check_order(steps: tuple[Step, ...], first_position: int = 1) -> None:
    """Refuse pipelines whose noise law isn't known in closed form.

    Args:
        steps: the pipeline, beginning with the gradient.
        first_position: position of ``steps[0]`` in the user's text, for messages.

    Raises:
        ReleaseError: naming the step's position and text.
    """
    noise: Step | None = None
    for position, step in enumerate(steps, start=first_position):
        place = f"release step {position} ({step.spec!r})"
        if isinstance(step, Gradient) and step is not steps[0]:
            raise ReleaseError(f"{place}: expected gradient as the first step only; remove it here")
        if noise is not None and isinstance(step, NoiseStep):
            raise ReleaseError(
                f"{place}: the release already carries noise from {noise.spec!r}; give one noise step "
                "(normal noises add up to the root of the sum of their squared stds)"
            )
        if noise is not None and not step.linear:
            raise ReleaseError(
                f"{place}: it would change the law of the noise added by {noise.spec!r}; put it before the noise"
            )
        if isinstance(step, NoiseStep):
            noise = step
