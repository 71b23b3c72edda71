"""Whether model, samples and loss go together, found out before the audit starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from riskaudit.errors import RiskauditError, SamplesError
from riskaudit.inputs.checkpoints import Checkpoint
from riskaudit.inputs.losses import Loss
from riskaudit.inputs.samples import Samples
from riskaudit.inputs.text import clean, shape_text

# Common marks of samples without a class; PyTorch's ignore_index is the second.
_MARKS = (-1, -100)


def check_compatibility(checkpoint: Checkpoint, samples: Samples, loss: Loss) -> None:
    """Run the first sample through model and loss, and check every label.

    Raises:
        SamplesError: shapes, labels or targets that the model or the loss can't take.
    """
    shape = tuple(samples.inputs.shape[1:])
    _check_shape(checkpoint, samples, shape)
    outputs = _forward(checkpoint, samples, shape)
    check_numbering(samples, loss, outputs)
    _check_targets(samples, loss, outputs)
    try:
        with torch.no_grad():
            loss(outputs, samples.targets[:1].to(outputs.device))
    except RiskauditError:
        raise
    except Exception as cause:
        raise SamplesError(
            f"the loss {clean(loss.name, 50)} can't compare outputs of shape {shape_text(outputs.shape)} with "
            f"targets of shape {shape_text(samples.targets[:1].shape)} in {samples.name} ({clean(cause, 80)}); "
            "choose another --loss or mend the targets"
        ) from cause


def _check_shape(checkpoint: Checkpoint, samples: Samples, shape: Sequence[int]) -> None:
    expected = checkpoint.input_shape
    if expected is not None:
        fits = math.prod(shape) == expected[0] if len(expected) == 1 else tuple(shape) == expected
        if not fits:
            raise SamplesError(
                f"{checkpoint.name} expects inputs of shape {shape_text(expected)}, found {shape_text(shape)} in "
                f"{samples.name}; use the data that the model was trained on"
            )
    channels = checkpoint.input_channels
    if channels is not None and len(shape) == 3 and shape[0] != channels:
        raise SamplesError(
            f"{checkpoint.name} expects {channels} channels, found images of shape {shape_text(shape)} in "
            f"{samples.name}; use the data that the model was trained on"
        )


def _forward(checkpoint: Checkpoint, samples: Samples, shape: Sequence[int]) -> Tensor:
    parameter = next(checkpoint.model.parameters())
    x = samples.inputs[:1].to(parameter)
    try:
        with torch.no_grad():
            outputs = checkpoint.model(x)
    except Exception as cause:
        # The model may be the user's own code: any exception means that it can't take this input.
        wanted = checkpoint.input_shape or (checkpoint.input_channels and (checkpoint.input_channels, "H", "W"))
        hint = f"expected {shape_text(wanted)}, " if wanted else ""  # type: ignore[arg-type]
        raise SamplesError(
            f"{checkpoint.name} ({clean(checkpoint.architecture, 40)}) can't take a sample of {samples.name}: {hint}"
            f"found shape {shape_text(shape)} ({clean(cause, 100)}); use the data that the model was trained on"
        ) from cause
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or outputs.shape[0] != 1:
        found = f"shape {shape_text(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise SamplesError(
            f"{checkpoint.name} returns {found} for one sample, expected a tensor whose first size is 1; "
            "wrap the model with --arch file.py:factory"
        )
    return outputs


def check_numbering(samples: Samples, loss: Loss, outputs: Tensor) -> None:
    """Refuse class numbers that were made up from names unless every output has a name.

    A client often holds some of the classes only, and their places among themselves aren't their numbers.

    Args:
        samples: with ``numbering`` other than "numbers" if their class numbers come from names.
        loss: regression takes numbers as they are.
        outputs: of the model for one sample, [1, ...].

    Raises:
        SamplesError: names and outputs differ in number.
    """
    if samples.numbering == "numbers" or samples.class_names is None or loss.kind == "regression" or outputs.ndim < 2:
        return
    # One output tells two classes apart.
    expected, found = max(outputs.shape[1], 2), len(samples.class_names)
    if expected == found:
        return
    if samples.numbering == "classes":
        raise SamplesError(f"--classes names {found} classes, but the model has {expected}; name each output, in order")
    raise SamplesError(
        f"{samples.name} names {found} classes, but the model has {expected}, so their numbers are unknown; name all "
        "classes of the model in the order of its outputs: --classes a,b,c or a file with one name a line"
    )


def _label_outside(targets: Tensor, first: int, classes: int) -> str:
    """What is wrong with a label, without the label itself, which may be the cell of another column."""
    label = int(targets[first])
    span = f"but the model has {classes} classes (0 to {classes - 1})"
    if label in _MARKS:
        return f"label {label}, which marks no class, {span}"
    if int(targets.min()) == 1 and int(targets.max()) == classes:
        names = ",".join(map(str, range(1, classes + 1))) if classes <= 10 else f"1,2,...,{classes}"
        return f"label {classes}, {span}: if its first class is called 1, give --classes {names}"
    if label == classes:
        return f"label {classes}, {span}"
    return f"a label {'below 0' if label < 0 else f'above {classes - 1}'}, {span}"


def _check_targets(samples: Samples, loss: Loss, outputs: Tensor) -> None:
    targets = samples.targets
    if loss.kind == "classification":
        if targets.is_floating_point() or targets.ndim != 1:
            raise SamplesError(
                f"expected one class number per sample in {samples.name} for {loss.name}, found "
                f"{'fractions' if targets.is_floating_point() else f'targets of shape {shape_text(targets.shape)}'}; "
                "choose another --loss"
            )
        if outputs.ndim != 2:
            raise SamplesError(
                f"expected outputs of shape (1, classes) for {loss.name}, found {shape_text(outputs.shape)}; "
                "choose another --loss"
            )
        classes = outputs.shape[1]
        wrong = ((targets < 0) | (targets >= classes)).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise SamplesError(
                f"sample {first} in {samples.name} has {_label_outside(targets, first, classes)}; use its own data or "
                "mend the labels"
            )
    if loss.kind == "binary":
        outside = ((targets < 0) | (targets > 1)).flatten(1 if targets.ndim > 1 else 0)
        wrong = (outside.any(dim=1) if outside.ndim > 1 else outside).nonzero()
        if len(wrong):
            raise SamplesError(f"sample {int(wrong[0])} in {samples.name} has a target outside 0 to 1, which bce needs")
