"""Every sign at every layer of a received model, held against freshly initialised models and the previous round's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from riskaudit.checks.received.base import SIGNS, Judgement, Measurement, Sign, SignNotApplicable
from riskaudit.checks.received.observation import ObservedModel, observe
from riskaudit.checks.received.references import SCHEMES, SEEDS, fresh_models
from riskaudit.errors import SamplesError, SettingsError
from riskaudit.results.inspection import SignRow

# Multiplications of all passes together, so that resnet18 takes seconds.
MAX_WORK = 3e11
MAX_SAMPLES, MIN_SAMPLES = 256, 2
# Samples that are worth more than further draws of fresh models.
ENOUGH_SAMPLES = 64
DEFAULT_BATCH = 16
NO_PREVIOUS = (
    "without the model of the round before (`previous`), weights that grew or shrank by less than a factor of 100, and "
    "activity that leapt to what trained networks may show, aren't judged"
)
Progress: TypeAlias = Callable[[int, int], None]
Measured: TypeAlias = Mapping[str, Measurement] | str


@dataclass(frozen=True)
class Judged:
    """Rows of all signs, and what they were held against; ``num_samples`` is how many of the samples were used."""

    rows: list[SignRow]
    schemes: list[str]
    num_models: int
    not_judged: list[str]
    num_samples: int
    batch_size: int


@torch.no_grad()
def judge_model(
    model: nn.Module,
    inputs: Tensor,
    *,
    previous: nn.Module | None = None,
    batch_size: int | None = None,
    classifies: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Judged:
    """Look for every sign.

    Args:
        model: as received; never changed. Evaluated in eval mode.
        inputs: [N, *S] in data units, of the user.
        previous: the model of the round before, of the same architecture.
        batch_size: samples that a client takes the gradient of at once (default: 16, or all where there are fewer).
        classifies: whether the loss is the cross-entropy of the outputs.
        seed: of the freshly initialised models.
        progress: called with the number of finished models and of all.

    Raises:
        SettingsError: a previous model of another architecture.
        SamplesError: the model can't be run on the inputs.
        ArchitectureError: the model can't be copied.
    """
    if previous is not None:
        _refuse_another(model, previous)
    seeds, count = _affordable(model, inputs, 1 if previous is None else 2)
    total = 1 + (previous is not None) + seeds * len(SCHEMES)
    inputs = inputs[:count]
    size = min(DEFAULT_BATCH if batch_size is None else batch_size, len(inputs))
    report = progress or (lambda done, of: None)
    observed = _observed(model, inputs, size, classifies)
    received = {name: _measure(sign, observed) for name, sign in SIGNS.items()}
    report(1, total)
    before: dict[str, Measured] = {}
    if previous is not None:
        earlier = _observed(previous, inputs, size, classifies)
        before = {name: _measure(sign, earlier) for name, sign in SIGNS.items()}
        report(2, total)
    fresh: dict[str, list[Measured]] = {name: [] for name in SIGNS}
    schemes, done = list[str](), 1 + (previous is not None)
    for scheme, drawn in fresh_models(model, seed, seeds):
        done += 1
        try:
            other = _observed(drawn, inputs, size, classifies)
        except SamplesError:
            # Some schemes explode in some networks; without any that doesn't no sign is judged.
            continue
        for name, sign in SIGNS.items():
            fresh[name].append(_measure(sign, other))
        schemes.append(scheme)
        report(done, total)
    rows = [row for name, sign in SIGNS.items() for row in _rows(sign, received[name], fresh[name], before.get(name))]
    missing = [NO_PREVIOUS] if previous is None else []
    missing += [f"{row.id}: {row.reason}" for row in rows if row.status == "not_applicable"]
    return Judged(rows, list(dict.fromkeys(schemes)), len(schemes), missing, len(inputs), size)


def _observed(model: nn.Module, inputs: Tensor, batch_size: int, classifies: bool = True) -> ObservedModel:
    modes = {module: module.training for module in model.modules()}
    parameter = next((value for value in model.parameters() if value.is_floating_point()), inputs)
    try:
        model.eval()
        return observe(model, inputs.to(parameter), batch_size, classifies)
    finally:
        for module, training in modes.items():
            module.training = training


def _affordable(model: nn.Module, inputs: Tensor, others: int) -> tuple[int, int]:
    """Draws per scheme, and how many inputs, as all passes may take; by sizes alone, so that it is the same everywhere.

    Args:
        model: to be passed through.
        inputs: [N, *S].
        others: models besides the fresh ones.
    """
    work = max(1, _observed(model, inputs[:1], 1).multiplications)
    wanted = min(len(inputs), ENOUGH_SAMPLES)
    for seeds in range(SEEDS, 0, -1):
        count = int(MAX_WORK / ((others + seeds * len(SCHEMES)) * work))
        if count >= wanted:
            break
    return seeds, min(len(inputs), max(MIN_SAMPLES, min(MAX_SAMPLES, count)))


def _measure(sign: Sign, observed: ObservedModel) -> Measured:
    """The sign's numbers by layer; where there are none, why: in the words of a caller who can mend it, or not."""
    if observed.num_samples < sign.min_samples:
        return f"needs {sign.min_samples} samples or more, and {observed.num_samples} were there"
    try:
        return sign.measure(observed)
    except SignNotApplicable as reason:
        return str(reason)


def _rows(sign: Sign, received: Measured, fresh: Sequence[Measured], before: Measured | None) -> list[SignRow]:
    if isinstance(received, str):
        return [SignRow(id=sign.id, status="not_applicable", reason=received)]
    rows = []
    for layer, measured in received.items():
        values = [
            each[layer].value
            for each in fresh
            if not isinstance(each, str) and layer in each and math.isfinite(each[layer].value)
        ]
        earlier = None if before is None or isinstance(before, str) else before.get(layer)
        rows.append(_row(sign, layer, measured, values, None if earlier is None else earlier.value))
    return rows


def _row(sign: Sign, layer: str, measured: Measurement, values: list[float], previous: float | None) -> SignRow:
    if not math.isfinite(measured.value):
        return SignRow(id=sign.id, layer=layer, status="failed", reason="the number isn't finite")
    if not values and not measured.chance:
        return SignRow(id=sign.id, layer=layer, status="failed", reason="no freshly initialised model has this layer")
    judgement = sign.judge(measured, values, previous)
    return SignRow(
        id=sign.id,
        layer=layer,
        value=measured.value,
        reference=judgement.reference,
        z=judgement.z,
        previous=previous,
        flagged=judgement.flagged,
        reason=_reason(sign, measured, judgement, previous),
    )


def _reason(sign: Sign, measured: Measurement, judgement: Judgement, previous: float | None) -> str:
    beside = "no model to compare with" if judgement.reference is None else f"{judgement.reference:.3g} is usual"
    if previous is not None:
        beside += f", and it was {previous:.3g} a round ago"
    if judgement.flagged:
        return f"{measured.detail or f'{sign.units}: {measured.value:.3g}'}; {beside}"
    return f"not flagged: {measured.value:.3g}, {beside}"


def _refuse_another(model: nn.Module, previous: nn.Module) -> None:
    """Refuse a previous model whose weights have other names or shapes.

    Raises:
        SettingsError: it has.
    """
    first = {name: tuple(value.shape) for name, value in model.named_parameters()}
    second = {name: tuple(value.shape) for name, value in previous.named_parameters()}
    if first != second:
        different = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
        raise SettingsError(
            f"expected `previous` with the same weights as the received model, found {len(different)} of other names "
            f"or shapes, {different[0]} first; hand in the model of the round before"
        )


def refusal(rows: Sequence[SignRow]) -> str | None:
    """Why nothing should be trained on a received model, in one sentence; None where nothing speaks against it."""
    flagged = [row for row in rows if row.flagged]
    if flagged:
        row = max(flagged, key=lambda each: abs(each.z or 0.0))
        more = f" and {len(flagged) - 1} more signs" if len(flagged) > 1 else ""
        return f"the received model shows {row.id} at {row.layer}{more}: {row.reason}"
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        return f"the received model can't be inspected ({failed[0].id} failed: {failed[0].reason})"
    if not any(row.status == "judged" for row in rows):
        return "the received model can't be inspected: no sign applies to it"
    return None
