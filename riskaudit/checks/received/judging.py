"""Every sign at every layer of a received model, held against freshly initialised models and the previous round's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from riskaudit.checks.received.base import SIGNS, WHOLE_MODEL, Judgement, Measurement, Sign, SignNotApplicable
from riskaudit.checks.received.magnification import Magnification
from riskaudit.checks.received.observation import ObservedModel, observe
from riskaudit.checks.received.references import SCHEMES, SEEDS, fresh_models
from riskaudit.errors import SamplesError, SettingsError
from riskaudit.results.inspection import SignRow

# Multiplications of all passes together, so that resnet18 takes seconds; and of products with the gradient's Jacobian.
MAX_WORK, MAX_PRODUCT_WORK = 3e11, 2e11
MAX_SAMPLES, MIN_SAMPLES = 256, 2
# Samples that are worth more than further draws of fresh models.
ENOUGH_SAMPLES = 64
DEFAULT_BATCH = 16
NO_PREVIOUS = (
    "without the model of the round before (`previous`), weights that grew or shrank by less than a factor of 100, a "
    "gradient magnified by less than 10,000, and activity that leapt to what trained networks may show, aren't judged"
)
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Unjudged:
    """Why a sign has no numbers, and with how many samples it would have some; None where more don't help."""

    reason: str
    samples_needed: int | None = None


# The numbers by layer, or why there are none.
Measured: TypeAlias = Mapping[str, Measurement] | Unjudged


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
    others = 1 if previous is None else 2
    work = max(1, _observed(model, inputs[:1], 1).multiplications)
    seeds, count, most = _affordable(work, len(inputs), others)
    size = min(DEFAULT_BATCH if batch_size is None else batch_size, count)
    magnification = Magnification(MAX_PRODUCT_WORK / work, others + len(SCHEMES))
    measurer = _Measurer(inputs[:count], size, classifies, len(inputs), most, magnification)
    total = others + seeds * len(SCHEMES)
    report = progress or (lambda done, of: None)
    received = measurer.measure(model)
    report(1, total)
    before: dict[str, Measured] = {}
    if previous is not None:
        before = measurer.measure(previous)
        report(2, total)
    fresh: dict[str, list[Measured]] = {name: [] for name in SIGNS}
    schemes = list[str]()
    for done, (scheme, drawn) in enumerate(fresh_models(model, seed, seeds), others + 1):
        try:
            # The schemes differ in products by more than their draws do.
            measured = measurer.measure(drawn, with_products=done <= others + len(SCHEMES))
        except SamplesError:
            # Some schemes explode in some networks; without any that doesn't no sign is judged.
            continue
        for name in SIGNS:
            fresh[name].append(measured[name])
        schemes.append(scheme)
        report(done, total)
    rows = [row for name, sign in SIGNS.items() for row in _rows(sign, received[name], fresh[name], before.get(name))]
    missing = [NO_PREVIOUS] if previous is None else []
    missing += [f"{row.id}: {row.reason}" for row in rows if row.status == "not_applicable"]
    return Judged(rows, list(dict.fromkeys(schemes)), len(schemes), missing, count, size)


@dataclass(frozen=True, eq=False)
class _Measurer:
    """Measures all signs in models of one architecture.

    Attributes:
        inputs: that are looked at, [N, *S].
        batch_size: see `judge_model`.
        classifies: likewise.
        given: samples that the caller handed in.
        most: samples that a model of this size is looked at with.
        magnification: makes products with the gradient's Jacobian.
    """

    inputs: Tensor
    batch_size: int
    classifies: bool
    given: int
    most: int
    magnification: Magnification

    def measure(self, model: nn.Module, *, with_products: bool = True) -> dict[str, Measured]:
        """The numbers by layer of every sign, or why there are none.

        Raises:
            SamplesError: the model can't be run on the inputs.
        """
        magnification = self.magnification if with_products else None
        observed = _observed(model, self.inputs, self.batch_size, self.classifies, magnification)
        return {name: self._of(sign, observed) for name, sign in SIGNS.items()}

    def _of(self, sign: Sign, observed: ObservedModel) -> Measured:
        """Of one sign, in the words of a caller who can mend it, or not."""
        needed = sign.min_samples
        if observed.num_samples < needed:
            if self.most < needed:
                return Unjudged(
                    f"needs {needed} samples, and a model of this size is looked at with {self.most} at most"
                )
            were = "was" if self.given == 1 else "were"
            return Unjudged(f"needs {needed} samples, and {self.given} {were} given", needed)
        try:
            return sign.measure(observed)
        except SignNotApplicable as reason:
            return Unjudged(str(reason))


def _observed(
    model: nn.Module,
    inputs: Tensor,
    batch_size: int,
    classifies: bool = True,
    magnification: Magnification | None = None,
) -> ObservedModel:
    modes = {module: module.training for module in model.modules()}
    parameter = next((value for value in model.parameters() if value.is_floating_point()), inputs)
    try:
        model.eval()
        inputs = inputs.to(parameter)
        observed = observe(model, inputs, batch_size, classifies)
        if magnification is None:
            return observed
        return replace(observed, magnification=magnification.of(model, inputs))
    finally:
        for module, training in modes.items():
            module.training = training


def _affordable(work: int, num_samples: int, others: int) -> tuple[int, int, int]:
    """Draws per scheme, how many inputs, and the most inputs, as all passes may take.

    By sizes alone, so that it is the same everywhere.

    Args:
        work: multiplications of a pass, per sample.
        num_samples: that are there.
        others: models besides the fresh ones.
    """
    wanted = min(num_samples, ENOUGH_SAMPLES)
    for seeds in range(SEEDS, 0, -1):
        count = int(MAX_WORK / ((others + seeds * len(SCHEMES)) * work))
        if count >= wanted:
            break
    most = max(MIN_SAMPLES, min(MAX_SAMPLES, int(MAX_WORK / ((others + len(SCHEMES)) * work))))
    return seeds, min(num_samples, max(MIN_SAMPLES, min(MAX_SAMPLES, count))), most


def _rows(sign: Sign, received: Measured, fresh: Sequence[Measured], before: Measured | None) -> list[SignRow]:
    if isinstance(received, Unjudged):
        needed = received.samples_needed
        return [SignRow(id=sign.id, status="not_applicable", reason=received.reason, samples_needed=needed)]
    rows = []
    for layer, measured in received.items():
        values = [
            each[layer].value
            for each in fresh
            if not isinstance(each, Unjudged) and layer in each and math.isfinite(each[layer].value)
        ]
        earlier = None if before is None or isinstance(before, Unjudged) else before.get(layer)
        rows.append(_row(sign, layer, measured, values, None if earlier is None else earlier.value))
    return rows


def _row(sign: Sign, key: str, measured: Measurement, values: list[float], previous: float | None) -> SignRow:
    layer = None if key == WHOLE_MODEL else key
    if not math.isfinite(measured.value):
        return SignRow(id=sign.id, layer=layer, status="failed", reason="the number isn't finite")
    if not values and not measured.chance:
        reason = "no freshly initialised model has such a number"
        return SignRow(id=sign.id, layer=layer, status="failed", reason=reason)
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
        where = "" if row.layer is None else f" at {row.layer}"
        return f"the received model shows {row.id}{where}{more}: {row.reason}"
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        return f"the received model can't be inspected ({failed[0].id} failed: {failed[0].reason})"
    if not any(row.status == "judged" for row in rows):
        return "the received model can't be inspected: no sign applies to it"
    return None
