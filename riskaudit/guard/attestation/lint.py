"""What in a declaration, a policy or a guard's settings hardly is what was meant, each with a stable id.

Loads without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from riskaudit.guard.attestation.declaration import Declaration
from riskaudit.policy import Policy
from riskaudit.results.attestation import LintFinding, Severity

if TYPE_CHECKING:
    from torch import Tensor

# Noise multipliers of published trainings lie within these.
SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 0.1, 10.0
# From so many samples on, noise of a sum and of a mean can't be taken for one another.
MANY = 8
# Numbers that are said to be equal were perhaps rounded when they were written.
SAME = 1e-3
# The widest last digit beside the noise, in its standard deviations, that leaves the noise its law.
COARSEST = 0.25


class _Lint(NamedTuple):
    title: str
    severity: Severity
    advice: str


LINTS: Mapping[str, _Lint] = {
    "clip-after-noise": _Lint(
        "Clip after noise",
        "error",
        "Clip before the noise is added: a clip after it scales the noise with the data, whose law is then unknown.",
    ),
    "sensitivity-below-clip": _Lint(
        "Sensitivity below the clip norm",
        "error",
        "Set the sensitivity to the clip norm over the number of clipped vectors in the mean, or clip lower.",
    ),
    "sensitivity-without-clip": _Lint(
        "Sensitivity without a clip",
        "error",
        "Clip to the sensitivity before the noise; nothing else bounds what one sample changes.",
    ),
    "noise-below-multiplier": _Lint(
        "Less noise than the multiplier asks for",
        "error",
        "Set the noise's standard deviation to the multiplier times the sensitivity of what is sent.",
    ),
    "noise-below-rounding": _Lint(
        "Noise lost in rounding",
        "error",
        "Send the update in a dtype with more digits, or clip it, or add more noise: what is rounded away protects "
        "nobody.",
    ),
    "noise-per-sum": _Lint(
        "Noise of a sum on a mean",
        "warning",
        "Divide the standard deviation by the number of samples where the mean is sent, or sum instead.",
    ),
    "noise-divided-twice": _Lint(
        "Noise divided by the number of samples twice",
        "warning",
        "Check whether the standard deviation is per entry of the mean: the noise of the sum over their number, once.",
    ),
    "noise-without-clip": _Lint(
        "Noise without a clip",
        "warning",
        "Clip before the noise; otherwise no guarantee follows from it, and the norm can't be attested.",
    ),
    "policy-without-noise": _Lint(
        "Limits without noise",
        "warning",
        'Declare noise, or let the policy sanitise (on_violation = "sanitise"): every upload without is withheld.',
    ),
    "policy-clip-idle": _Lint(
        "A sanitiser's clip that changes nothing",
        "warning",
        "Set clip_norm of the policy below the clip norm of the release.",
    ),
    "policy-fails-open": _Lint(
        "Uploads that couldn't be reviewed leave",
        "warning",
        'Set on_failure = "block" in the policy.',
    ),
}


def lint(
    declaration: Declaration,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    policy: Policy | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> list[LintFinding]:
    """Everything that is found, in the order of `LINTS`.

    Args:
        declaration: of the release.
        tensors: an upload of it, for what rounding does.
        policy: of the guard.
        reduction: whether the samples' gradients are averaged or summed before they leave.
    """
    messages = dict(_of_declaration(declaration, reduction == "sum"))
    if tensors is not None:
        messages |= dict(_of_rounding(declaration, tensors))
    if policy is not None:
        messages |= dict(_of_policy(declaration, policy))
    return [
        LintFinding(id=name, title=rule.title, severity=rule.severity, message=messages[name], advice=rule.advice)
        for name, rule in LINTS.items()
        if name in messages
    ]


def _of_declaration(declaration: Declaration, summed: bool) -> Iterator[tuple[str, str]]:
    noise, bound, count = declaration.noise, declaration.bound, 1 if summed else declaration.num_parts
    if declaration.misplaced is not None:
        yield "clip-after-noise", f"'{declaration.text}' clips after '{declaration.misplaced}' was added"
    sensitivity, multiplier = declaration.sensitivity, declaration.noise_multiplier
    if bound is None:
        if sensitivity is not None:
            yield "sensitivity-without-clip", f"a sensitivity of {sensitivity:g} is declared and no clip"
        if noise is not None:
            yield "noise-without-clip", f"'{noise}' is declared and no clip"
        return
    # Adding or leaving out one sample moves a mean by this much, a sample that leaves alone by all of it.
    least = bound / (count or 1)
    if sensitivity is not None and sensitivity < least * (1 - SAME) and (count is not None or sensitivity < bound):
        over = f" over {count} clipped vectors" if count is not None and count > 1 else ""
        yield (
            "sensitivity-below-clip",
            f"a sensitivity of {sensitivity:g} is declared, and the clip norm {bound:g}{over} allows {least:g}",
        )
    if noise is None:
        return
    if multiplier is not None and noise.std < multiplier * least * (1 - SAME):
        yield (
            "noise-below-multiplier",
            f"noise of std {noise.std:g} is declared, and {multiplier:g} times {least:g} is {multiplier * least:g}",
        )
    yield from _of_sums(noise.std / least, count)


def _of_sums(multiplier: float, count: int | None) -> Iterator[tuple[str, str]]:
    """Whether a noise multiplier looks like one only with the number of samples taken out, or put in once more."""
    if count is None or count < MANY:
        return
    words = f"the noise is {multiplier:.3g} times the sensitivity of a mean over {count}"
    if multiplier > LARGEST_MULTIPLIER and SMALLEST_MULTIPLIER <= multiplier / count <= LARGEST_MULTIPLIER:
        yield "noise-per-sum", f"{words}, and {multiplier / count:.3g} times that of their sum"
    if multiplier < SMALLEST_MULTIPLIER <= multiplier * count <= LARGEST_MULTIPLIER:
        yield "noise-divided-twice", f"{words}; times {count} once more it is {multiplier * count:.3g}"


def _of_rounding(declaration: Declaration, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    import torch

    noise = declaration.noise
    if noise is None:
        return
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Of the typical entry: one large entry of many that loses its noise isn't what this is about.
        digit = torch.finfo(tensor.dtype).eps * float(tensor.detach().double().abs().median())
        if digit > COARSEST * noise.std:
            kind = str(tensor.dtype).removeprefix("torch.")
            yield (
                "noise-below-rounding",
                f"half of the entries of {name} are so large that {kind} rounds them to {digit:.3g} and more, beside "
                f"noise of std {noise.std:g}",
            )
            return


def _of_policy(declaration: Declaration, policy: Policy) -> Iterator[tuple[str, str]]:
    sanitises = policy.on_violation == "sanitise"
    checks: dict[str, tuple[Callable[[], bool], str]] = {
        "policy-without-noise": (
            lambda: bool(policy.limits) and declaration.noise is None and not sanitises and policy.max_revealed != 1,
            f"'{declaration.text}' adds no noise, and the policy limits what is revealed",
        ),
        "policy-clip-idle": (
            lambda: (
                sanitises
                and policy.clip_norm is not None
                and declaration.bound is not None
                and policy.clip_norm >= declaration.bound
            ),
            f"the policy clips to {policy.clip_norm} what is clipped to {declaration.bound} already",
        ),
        "policy-fails-open": (
            lambda: policy.on_failure == "warn",
            'on_failure = "warn" lets updates leave of which nothing is known',
        ),
    }
    for name, (applies, message) in checks.items():
        if applies():
            yield name, message
