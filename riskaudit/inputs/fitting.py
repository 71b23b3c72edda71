"""Model, samples and loss put together: the arrangement of axes, and the output, with which they fit.

Inputs are tried as they are first. Only where the model or the loss can't take them so is an axis added, left out or
moved, and the audit says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from riskaudit.errors import SamplesError
from riskaudit.inputs.arrays import are_images
from riskaudit.inputs.checkpoints import Checkpoint
from riskaudit.inputs.compatibility import check_compatibility
from riskaudit.inputs.losses import Loss
from riskaudit.inputs.normalization import OutputEntry, entry_of_loss
from riskaudit.inputs.samples import Samples
from riskaudit.inputs.text import shape_text

# Two sizes of batches: a layer that takes a batch for one sample's channels can do so for one of them only.
_BATCHES = (2, 3)


def fit_together(checkpoint: Checkpoint, samples: Samples, loss: Loss) -> tuple[Checkpoint, Samples]:
    """The checkpoint and the samples as they fit each other and the loss.

    Raises:
        SamplesError: they fit in no arrangement; the message says what was tried.
    """
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
    first, second = _outputs(checkpoint, inputs[:1]), _outputs(checkpoint, bare.inputs[:1])
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
