"""Whether model, samples and loss go together, found out before the audit starts.

Inputs are tried as they are first. Only where the model or the loss can't take them so is an axis added, left out or
moved, and the audit says so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from riskaudit.errors import RiskauditError, SamplesError
from riskaudit.inputs.arrays import are_images, first_row
from riskaudit.inputs.checkpoints import Checkpoint
from riskaudit.inputs.losses import Loss
from riskaudit.inputs.models import OutputEntry, entry_of_loss
from riskaudit.inputs.samples import Samples
from riskaudit.inputs.text import clean, shape_text
from riskaudit.inputs.texts import NO_TARGET

# Common marks of samples without a class; PyTorch's ignore_index is the second.
_MARKS = (-1, -100)
# Pixels of masks that belong to no class.
VOID = 255
# Probabilities in float32 sum to 1 to about this.
PROBABILITY_TOLERANCE = 1e-3
# Two sizes of batches: a layer that takes a batch for one sample's channels can do so for one of them only.
_BATCHES = (2, 3)


def check_compatibility(checkpoint: Checkpoint, samples: Samples, loss: Loss) -> None:
    """Run the first sample through model and loss, and check every label.

    Raises:
        SamplesError: shapes, labels or targets that the model or the loss can't take.
    """
    shape = tuple(samples.inputs.shape[1:])
    expected = checkpoint.input_shape
    if expected is not None:
        fits = math.prod(shape) == expected[0] if len(expected) == 1 else tuple(shape) == expected
        if not fits:
            raise SamplesError(
                f"{checkpoint.name} expects inputs of shape {shape_text(expected)}, found {shape_text(shape)} in "
                f"{samples.name}; use the data that the model was trained on"
            )
    outputs = _forward(checkpoint, samples, shape, loss)
    if isinstance(outputs, Tensor):
        check_numbering(samples, loss, outputs)
        targets = samples.targets
        if loss.kind == "classification":
            _check_classes(samples, loss, outputs)
        if loss.kind == "binary":
            wrong = first_row((targets < 0) | (targets > 1))
            if wrong is not None:
                raise SamplesError(f"sample {wrong} in {samples.name} has a target outside 0 to 1, which bce needs")
    actual = f"outputs of shape {shape_text(outputs.shape)}" if isinstance(outputs, Tensor) else "these outputs"
    try:
        with torch.no_grad():
            # The user's own loss may take any output.
            loss(outputs, samples.targets[:1].to(next(checkpoint.model.parameters()).device))  # type: ignore[arg-type]
    except RiskauditError:
        raise
    except Exception as cause:
        raise SamplesError(
            f"the loss {clean(loss.name, 50)} can't compare {actual} with "
            f"targets of shape {shape_text(samples.targets[:1].shape)} in {samples.name} ({clean(cause, 80)}); "
            "choose another `loss` or mend the targets"
        ) from cause


def _forward(checkpoint: Checkpoint, samples: Samples, shape: Sequence[int], loss: Loss) -> object:
    parameter = next(checkpoint.model.parameters())
    x = samples.inputs[:1].to(parameter)
    try:
        with torch.no_grad():
            outputs: object = checkpoint.model(x)
    except Exception as cause:
        if isinstance(cause, TypeError) and "required positional argument" in str(cause):
            raise SamplesError(
                f"{checkpoint.name} ({clean(checkpoint.architecture, 40)}) takes more than the inputs "
                f"({clean(cause, 100)}); name a factory whose model takes them alone, with the rest fixed inside, by "
                "`arch=file.py:factory`"
            ) from cause
        # The model may be the user's own code: any exception means that it can't take this input.
        channels = checkpoint.input_channels
        if channels is not None and len(shape) == 3 and shape[0] != channels:
            raise SamplesError(
                f"{checkpoint.name} expects {channels} channels, found images of shape {shape_text(shape)} in "
                f"{samples.name}; use the data that the model was trained on"
            ) from cause
        wanted = checkpoint.input_shape or (checkpoint.input_channels and (checkpoint.input_channels, "H", "W"))
        hint = f"expected {shape_text(wanted)}, " if wanted else ""  # type: ignore[arg-type]
        raise SamplesError(
            f"{checkpoint.name} ({clean(checkpoint.architecture, 40)}) can't take a sample of {samples.name}: {hint}"
            f"found shape {shape_text(shape)} ({clean(cause, 100)}); use the data that the model was trained on"
        ) from cause
    if loss.kind == "custom" and not isinstance(outputs, Tensor):
        return outputs
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or outputs.shape[0] != 1:
        actual = f"shape {shape_text(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise SamplesError(
            f"{checkpoint.name} returns {actual} for one sample, expected a tensor whose first size is 1; "
            "wrap the model with `arch=file.py:factory`"
        )
    return outputs


def check_numbering(samples: Samples, loss: Loss, outputs: Tensor) -> None:
    """Refuse class numbers that were made up from names unless every output has a name.

    A client often holds some of the classes only, and their places among themselves aren't their numbers. Regression
    takes numbers as they are; outputs are the model's for one sample, [1, ...].

    Raises:
        SamplesError: names and outputs differ in number.
    """
    if samples.numbering == "numbers" or samples.class_names is None or loss.kind == "regression" or outputs.ndim < 2:
        return
    # One output tells two classes apart.
    expected, num_names = max(outputs.shape[1], 2), len(samples.class_names)
    if expected == num_names:
        return
    if samples.numbering == "classes":
        raise SamplesError(
            f"`classes` names {num_names} classes, but the model has {expected}; name each output, in order"
        )
    raise SamplesError(
        f"{samples.name} names {num_names} classes, but the model has {expected}, so their numbers are unknown; name "
        "all classes of the model in the order of its outputs: `classes=a,b,c` or a file with one name a line"
    )


def _label_outside(targets: Tensor, first: int, classes: int) -> str:
    """What is wrong with a label, without the label itself, which may be the cell of another column."""
    label = int(targets[first])
    span = f"but the model has {classes} classes (0 to {classes - 1})"
    if label in _MARKS:
        return f"label {label}, which marks no class, {span}"
    if int(targets.min()) == 1 and int(targets.max()) == classes:
        names = ",".join(map(str, range(1, classes + 1))) if classes <= 10 else f"1,2,...,{classes}"
        return f"label {classes}, {span}: if its first class is called 1, give `classes={names}`"
    if label == classes:
        return f"label {classes}, {span}"
    return f"a label {'below 0' if label < 0 else f'above {classes - 1}'}, {span}"


def _check_classes(samples: Samples, loss: Loss, outputs: Tensor) -> None:
    """Class numbers [N, *S] or probabilities [N, C, *S] for logits [1, C, *S]."""
    targets, shape = samples.targets, tuple(outputs.shape[1:])
    if not shape:
        raise SamplesError(
            f"expected outputs of shape (1, classes) for {loss.name}, found {shape_text(outputs.shape)}; "
            "choose another `loss`"
        )
    if tuple(targets.shape[1:]) == shape:
        off = (targets.to(outputs.dtype).sum(dim=1) - 1).abs() > PROBABILITY_TOLERANCE
        wrong = first_row((targets < 0).any(dim=1) | off)
        if wrong is not None:
            raise SamplesError(
                f"expected class numbers or probabilities that sum to 1 in {samples.name} for {loss.name}, found "
                f"targets of shape {shape_text(targets.shape)} of which sample {wrong}'s don't; several "
                "labels at once need `loss=bce`"
            )
        return
    if tuple(targets.shape[1:]) != shape[1:]:
        actual = f"{'fractions' if targets.is_floating_point() else 'targets'} of shape {shape_text(targets.shape)}"
        raise SamplesError(
            f"expected one class number per sample in {samples.name} for {loss.name}, or targets of shape "
            f"{shape_text((len(targets), *shape))} or {shape_text((len(targets), *shape[1:]))}, found {actual}; mend "
            "the targets, or choose another `loss`"
        )
    classes = shape[0]
    if targets.is_floating_point() and bool((targets != targets.round()).any()):
        raise SamplesError(
            f"expected class numbers in {samples.name} for {loss.name}, found fractions; choose another `loss`"
        )
    outside = (targets < 0) | (targets >= classes)
    if samples.tokens is not None:
        outside &= targets != NO_TARGET  # of positions that aren't trained
    first = first_row(outside)
    if first is None:
        return
    if targets.ndim == 1:
        raise SamplesError(
            f"sample {first} in {samples.name} has {_label_outside(targets, first, classes)}; use its own data or "
            "mend the labels"
        )
    label = int(targets[first][outside[first]][0])
    # Only customary marks are repeated: any other number may be private.
    void = str(label) if label in (*_MARKS, VOID) else "NUMBER"
    raise SamplesError(
        f"sample {first} in {samples.name} has labels outside the model's {classes} classes (0 to {classes - 1}); "
        f"leave such places out by a loss of your own: `loss=file.py:function` with ignore_index={void}"
    )


def fit_together(checkpoint: Checkpoint, samples: Samples, loss: Loss) -> tuple[Checkpoint, Samples]:
    """The checkpoint and the samples as they fit each other and the loss.

    Raises:
        SamplesError: they fit in no arrangement; the message says what was tried.
    """
    if samples.tokens is not None:
        check_compatibility(checkpoint, samples, loss)
        return checkpoint, samples
    first: SamplesError | None = None
    tried: list[str] = []
    for inputs, words in _arrangements(samples.inputs):
        arranged = samples if words is None else replace(samples, inputs=inputs, are_images=are_images(inputs))
        try:
            fitted = _with_one_output(checkpoint, arranged, loss)
            check_compatibility(fitted, arranged, loss)
            _check_batches(fitted, arranged)
        except SamplesError as error:
            first = first or error
            tried.append(shape_text(inputs.shape[1:]))
            continue
        stored = samples.stored_shape
        if words is not None and stored == tuple(inputs.shape[1:]) and len(set(stored)) > 1:
            # As the source has them, after all: there is nothing to tell.
            return fitted, arranged
        if words is not None:
            before, after = shape_text(samples.inputs.shape[1:]), shape_text(inputs.shape[1:])
            note = f"inputs of shape {before} were taken as {after}: {words}"
            fitted = replace(fitted, notes=(*fitted.notes, note))
        elif _takes_both(fitted, arranged):
            taken, bare = arranged.inputs.shape[1:], arranged.inputs.shape[2:]
            fitted = replace(
                fitted,
                notes=(
                    *fitted.notes,
                    f"the model takes inputs of shape {shape_text(taken)} and of {shape_text(bare)}, with different "
                    f"results; those of {shape_text(taken)} were audited: if it was trained on {shape_text(bare)}, "
                    "name a factory whose model begins with x.squeeze(1) by `arch=file.py:factory`",
                ),
            )
        return fitted, arranged
    assert first is not None
    _refuse_width(checkpoint, samples, first)
    _refuse_token_ids(checkpoint, samples)
    if len(tried) > 1 and _outputs(checkpoint, samples.inputs[:1]) is None:
        raise SamplesError(f"{first}; tried as {', '.join(dict.fromkeys(tried))}") from first
    raise first


def _takes_both(checkpoint: Checkpoint, samples: Samples) -> bool:
    """Whether the model takes inputs [N, 1, *S] without their axis of channels too, with another result."""
    inputs = samples.inputs
    if inputs.ndim < 3 or inputs.shape[1] != 1 or checkpoint.architecture == "torch.export":
        return False
    bare = replace(samples, inputs=inputs.squeeze(1), are_images=False)
    first = _outputs(checkpoint, inputs[:1])
    with warnings.catch_warnings():
        # What layers have to say of inputs that nobody gave, as Dropout2d has, is nothing that the user could mend.
        warnings.simplefilter("ignore")
        second = _outputs(checkpoint, bare.inputs[:1])
        if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.shape != second.shape:
            return False
        try:
            _check_batches(checkpoint, bare)
        except SamplesError:
            return False
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-6)


def _arrangements(inputs: Tensor) -> Iterator[tuple[Tensor, str | None]]:
    """Inputs [N, *S] as they are, then with an axis left out, added or moved; with words for what was done."""
    yield inputs, None
    if inputs.ndim > 2 and inputs.shape[1] == 1:
        yield inputs.squeeze(1), "the axis of channels is left out"
        if inputs.ndim == 4:
            yield inputs.squeeze(1).transpose(1, 2), "channels come second"
    if inputs.ndim in (2, 3, 4):
        yield inputs.unsqueeze(1), "an axis of one channel is added"
    if inputs.ndim > 2:
        yield inputs.movedim(-1, 1), "channels come second"
        yield inputs.movedim(1, -1), "channels come last"


def _with_one_output(checkpoint: Checkpoint, samples: Samples, loss: Loss) -> Checkpoint:
    """The checkpoint with the one output that the loss takes; the user's own loss takes all of them."""
    if loss.kind == "custom":
        return checkpoint
    outputs = _outputs(checkpoint, samples.inputs[:1])
    key = None if outputs is None else entry_of_loss(outputs, checkpoint.num_classes, checkpoint.name)
    if key is None:
        return checkpoint
    note = (
        f"the model returns a {type(outputs).__name__}, of which {key!r} was taken for the loss; "
        "`loss=file.py:function` gets all of it"
    )
    return replace(checkpoint, model=OutputEntry(checkpoint.model, key).eval(), notes=(*checkpoint.notes, note))


def _outputs(checkpoint: Checkpoint, inputs: Tensor) -> object | None:
    try:
        with torch.no_grad():
            outputs: object = checkpoint.model(inputs.to(next(checkpoint.model.parameters())))
    except Exception:  # The model may be the user's own code, which raises what it likes.
        return None
    return outputs


def _check_batches(checkpoint: Checkpoint, samples: Samples) -> None:
    """Refuse an arrangement in which the model takes a batch for one sample."""
    if checkpoint.architecture == "torch.export":
        return  # A program may be for one sample at a time; its sizes are known.
    for size in _BATCHES:
        outputs = _outputs(checkpoint, samples.inputs[:1].expand(size, *samples.inputs.shape[1:]).contiguous())
        if outputs is None or (isinstance(outputs, Tensor) and (outputs.ndim == 0 or outputs.shape[0] != size)):
            raise SamplesError(
                f"{checkpoint.name} can't take {size} samples of shape {shape_text(samples.inputs.shape[1:])} at once; "
                "its first axis must be the batch"
            )


def _refuse_width(checkpoint: Checkpoint, samples: Samples, cause: SamplesError) -> None:
    """Say which columns became how many inputs, where the model doesn't take as many."""
    encoding, expected = samples.encoding, checkpoint.input_shape
    if encoding is None or (expected is not None and math.prod(expected) == encoding.width):
        return
    if _outputs(checkpoint, samples.inputs[:1]) is not None:
        return  # Something else is wrong.
    takes = f"takes {shape_text(expected)}" if expected is not None else "doesn't take as many"
    raise SamplesError(
        f"{encoding.name} makes {encoding.width} inputs of {samples.name} ({encoding.widths()}), but {checkpoint.name} "
        f"{takes}; declare the columns as they were when the model was trained: their order, every category, and those "
        'that it doesn\'t see as kind = "ignore"'
    ) from cause


def _refuse_token_ids(checkpoint: Checkpoint, samples: Samples) -> None:
    """Say what to do about inputs that only an embedding's table can take."""
    inputs = samples.inputs[:1]
    if bool((inputs != inputs.round()).any()) or not any(
        isinstance(module, torch.nn.Embedding) for module in checkpoint.model.modules()
    ):
        return
    whole = [inputs.long()] + ([inputs.squeeze(1).long()] if inputs.ndim > 2 and inputs.shape[1] == 1 else [])
    for ids in whole:
        try:
            with torch.no_grad():
                checkpoint.model(ids)
        except Exception:
            continue
        raise SamplesError(
            f"{samples.name} holds numbers of tokens, which {checkpoint.name} looks up in a table, so that no gradient "
            "with respect to them exists; audit the embedded tokens: a model that takes embeddings (`arch` "
            "file.py:factory, inputs_embeds in Hugging Face's) and the embeddings as inputs"
        )
