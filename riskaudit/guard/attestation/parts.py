"""The entries of an upload that carry noise, in the parts that are tested by themselves, and what rounding did to them.

An upload's entries are rounded to their dtype, or to a grid (`riskaudit.guard.noise.randomness`). Every test takes the
rounding that is least in favour of a rejection, so that its false alarms stay below what it states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from riskaudit.guard.attestation.contract import Contract
from riskaudit.guard.attestation.vectors import Vector
from riskaudit.guard.noise.order import digit_width
from riskaudit.release import Noise, ReleaseSpec
from riskaudit.release.steps.base import Step
from riskaudit.release.steps.mask import Mask
from riskaudit.release.steps.share import Share


@dataclass(frozen=True, eq=False)
class Part:
    """Some entries of an upload, or of its difference to something.

    Attributes:
        name: of the tensor; empty for all of them.
        values: [n], float64.
        error: largest 2-norm of what rounding did to them.
        step: twice what rounding did to one of them at most.
    """

    name: str
    values: Tensor
    error: float = 0.0
    step: float = 0.0

    def sizes(self, noise: Noise) -> tuple[float, float]:
        """Least and largest size (`Noise.size`) that these may have had before they were rounded."""
        order, count = (2, 1.0) if noise.law == "gaussian" else (1, math.sqrt(max(1, len(self.values))))
        length = float(torch.linalg.vector_norm(self.values, ord=order)) / noise.scale
        slack = count * self.error / noise.scale
        return _size(max(0.0, length - slack), noise), _size(length + slack, noise)


def _size(length: float, noise: Noise) -> float:
    return length * length if noise.law == "gaussian" else 2 * length


def rounding_error(values: Tensor, dtype: torch.dtype, noise_std: float) -> tuple[float, float]:
    """Largest 2-norm of what rounding did to entries [n], and twice what it did to one of them at most."""
    if not len(values):
        return 0.0, 0.0
    step = noise_std * digit_width(values.numpy(), noise_std)
    relative = torch.finfo(dtype).eps
    error = 0.5 * (step * math.sqrt(len(values)) + relative * float(values.norm()))
    return error, max(step, relative * float(values.abs().max()))


def parts_of(
    update: Vector, noise: Noise, chosen: Tensor | None = None, subtracted: Vector | None = None
) -> list[Part]:
    """Every tensor of an upload, and all together where there are several.

    Args:
        update: the upload.
        noise: on its entries.
        chosen: which of the entries [P] count; None for all.
        subtracted: the update before noise, of the same tensors.
    """
    flat, parts, first = update.flat(), list[Part](), 0
    for name, tensor in update.tensors.items():
        some = slice(first, first + tensor.numel())
        first = some.stop
        picked = slice(None) if chosen is None else chosen[some]
        stored = flat[some][picked]
        error, step = rounding_error(stored, tensor.dtype, noise.std)
        values = stored
        if subtracted is not None:
            clean = subtracted.tensors[name]
            before = clean.reshape(-1).double()[picked]
            values, error = stored - before, error + 0.5 * torch.finfo(clean.dtype).eps * float(before.norm())
        if len(values):
            parts.append(Part(name, values, error, step))
    return (
        [*parts, whole(parts)] if len(parts) > 1 else [Part("", part.values, part.error, part.step) for part in parts]
    )


def whole(parts: Sequence[Part]) -> Part:
    """All of them as one."""
    error = math.sqrt(sum(part.error**2 for part in parts))
    return Part("", torch.cat([part.values for part in parts]), error, max(part.step for part in parts))


@dataclass(frozen=True, eq=False)
class Structure:
    """Which entries of an upload are of which kind, each [P].

    Attributes:
        noisy: carry noise.
        pure: carry nothing else.
        empty: carry nothing at all.
    """

    noisy: Tensor
    pure: Tensor
    empty: Tensor


def structure_of(contract: Contract, spec: ReleaseSpec) -> Structure:
    """By the steps of a release that keep the same entries for everybody.

    Raises:
        ReleaseError: a step that can't be applied to such an upload.
    """
    context = contract.context
    held, noisy = torch.ones(context.num_entries), torch.ones(context.num_entries)
    for step in spec.steps:
        if isinstance(step, Mask | Share):
            apply = step.bind(context)
            held, context = apply(held), step.context_after(context)
            noisy = noisy[: len(held)]
    pure = held == 0
    for after in spec.steps_after_noise:
        apply, context = after.bind(context), after.context_after(context)
        noisy, pure = apply(noisy), apply(pure.float()) > 0
    is_noisy = (noisy > 0) if spec.noise is not None else torch.zeros(len(held), dtype=torch.bool)
    return Structure(is_noisy, pure & is_noisy, ~is_noisy if spec.noise is not None else held == 0)


def has_mask(spec: ReleaseSpec) -> bool:
    """Whether which entries carry something depends on their order."""
    return any(isinstance(step, Mask) for step in spec.all_steps)


def class_sums(update: Vector, contract: Contract, spec: ReleaseSpec) -> Part | None:
    """What the last linear layer's rows add up to, over the root of their number; None where that may be anything.

    The gradient of softmax cross-entropy is p - y at the logits, whose classes add up to 0: so do the rows of the last
    layer's weight and bias, in means, clipped, and after steps of SGD without weight decay. With Gaussian noise of std
    s on every entry their sum over the root of the number of classes is that noise alone, of std s.
    """
    if contract.model is None or not keeps_class_sums(spec):
        return None
    layers = {name: layer for name, layer in contract.model.named_modules() if isinstance(layer, nn.Linear)}
    if not layers:
        return None
    name, layer = list(layers.items())[-1]
    tensors = _tensors_of(update, name, layer)
    if not tensors or layer.out_features < 2:
        return None
    sums = [tensor.double().sum(0).reshape(-1) / math.sqrt(len(tensor)) for tensor in tensors]
    stored = torch.cat([tensor.double().reshape(-1) for tensor in tensors])
    error, step = rounding_error(stored, tensors[0].dtype, 1.0)
    return Part(name, torch.cat(sums), error, step)


def keeps_class_sums(spec: ReleaseSpec) -> bool:
    """Whether sums over classes that are 0 in a gradient are 0 in a release too."""
    if any(isinstance(step, Step) and step.name in ("mask", "prune", "dropout") for step in spec.all_steps):
        return False
    training: object = spec.training
    if training is None:
        return True
    return getattr(training, "optimizer", "") == "sgd" and not getattr(training, "weight_decay", 1.0)


def _tensors_of(update: Vector, name: str, layer: nn.Linear) -> list[Tensor]:
    prefix = f"{name}." if name else ""
    parameters: Mapping[str, Tensor | None] = {"weight": layer.weight, "bias": layer.bias}
    return [
        update.tensors[prefix + key]
        for key, parameter in parameters.items()
        if parameter is not None and prefix + key in update.tensors
    ]
